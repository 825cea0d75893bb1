/** `holdfast repair status | run`: what the cluster lacks, how fast it is made good, and when that is over. */
import type { RepairProgress } from '../proxy/tasks/repair-progress.ts'
import type { ConfigSource } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type Writer } from './client.ts'
import { humanTime } from './task.ts'
import { humanBytes, textTable } from './text-table.ts'

export const repairUsage = `holdfast repair status   (exit code 1 if anything waits, or an owner is away)
holdfast repair run      (what has failed is tried now, and all shards are compared once more; repairs start by themselves)
`

/** Shards to name; a whole zone may be away. */
const awayShown = 8

/** Resolves with the exit code. */
export function repair(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    {},
    source,
    async ({ client, print }, words) => {
      const [verb] = words
      if (words.length !== 1 || (verb !== 'status' && verb !== 'run')) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'repair ${words.join(' ')}' mean? Try:\n${repairUsage}`)
      }
      if (verb === 'run') {
        const { hurried } = (await client.call('POST', '/repairs/run', {})) as { hurried: number }
        print(`${hurried} repairs that waited are tried now; all shards are compared once more`, { hurried })
        return 0
      }
      const progress = (await client.call('GET', '/repairs')) as RepairProgress
      print(progressText(progress), progress)
      return progress.blobs + progress.references + progress.lostBlobs + progress.away.length === 0 ? 0 : 1
    },
    write,
  )
}

/** Pure. */
export function progressText(progress: RepairProgress): string {
  const { blobs, references, bytes, due, failing, waiting, oldestAgeMs, shards, partitionsToCompare } = progress
  const compared = partitionsToCompare === 0 ? [] : [`${partitionsToCompare} partitions are still to be compared`]
  const warnings = [...awayTexts(progress), ...lostTexts(progress)]
  if (blobs + references === 0) return ['Nothing waits for repair.', ...compared, ...warnings].join('\n')
  return [
    `${blobs} blobs (about ${humanBytes(bytes)}) and ${references} references wait: ${due} now, ${failing} have failed before`,
    `the oldest for ${humanTime(oldestAgeMs ?? 0)}; ${rateText(progress)}`,
    ...(waiting === 0 ? [] : [`${waiting} of them lack a copy on a shard that is away: no time is told for these`]),
    ...compared,
    ...warnings,
    '',
    textTable(
      ['SHARD', 'LACKS'],
      shards.map(({ shard, copies }) => [shard, String(copies)]),
    ),
  ].join('\n')
}

/** The queue has what was noticed to be missing, which is what was written since. */
function awayTexts({ away }: RepairProgress): readonly string[] {
  const shown = away.slice(0, awayShown).map(({ shard, state, partitions }) => {
    const until = state === 'failed' ? 'until its disk is replaced, or it is out' : 'unless it is out'
    return `! shard ${shard} is ${state}: of what it held in ${partitions} partitions nothing is counted here, nor made anew ${until}`
  })
  return away.length > awayShown ? [...shown, `! and so are ${away.length - awayShown} more shards`] : shown
}

function lostTexts({ lostBlobs, lost }: RepairProgress): readonly string[] {
  const shown = lost.map(
    ({ digest, names }) => `! no good copy is left of ${digest}: ${names.join(', ') || 'nothing names it'}`,
  )
  return lostBlobs > lost.length ? [...shown, `! and of ${lostBlobs - lost.length} more`] : shown
}

/** Pure. */
export function rateText({
  entriesPerSec,
  bytesPerSec,
  remainingMs,
}: Pick<RepairProgress, 'entriesPerSec' | 'bytesPerSec' | 'remainingMs'>): string {
  if (entriesPerSec === 0) return 'nothing was repaired in the last minute'
  const left = remainingMs === null ? '' : `, about ${humanTime(remainingMs)} left`
  return `${entriesPerSec.toFixed(1)} repairs and ${humanBytes(Math.round(bytesPerSec))} a second${left}`
}
