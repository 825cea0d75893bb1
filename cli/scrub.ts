/** `holdfast scrub status | start | pause`: how far each shard is with reading everything it holds. */
import type { ShardScrub } from '../proxy/tasks/scrub-control.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type Writer } from './client.ts'
import { humanBytes, textTable } from './text-table.ts'

export const scrubUsage = `holdfast scrub status   (exit code 1 if copies are lost, or a shard has failed or does not answer)
holdfast scrub start    (a pass now, or on with the one that was paused)
holdfast scrub pause    (until 'scrub start', also across restarts)
`

export const scrubOptions = {
  node: { kind: 'string', doc: 'Only the shards of this node.' },
  shard: { kind: 'string', doc: 'Only this shard.' },
} as const satisfies Options

/** Resolves with the exit code. */
export function scrub(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    scrubOptions,
    source,
    async ({ client, config, print }, [verb = '', ...more]) => {
      if (more.length > 0) throw unknown([verb, ...more])
      const target = {
        ...(config.node === undefined ? {} : { node: config.node }),
        ...(config.shard === undefined ? {} : { shard: config.shard }),
      }
      if (verb === 'status') {
        const query = new URLSearchParams(target).toString()
        const { shards } = (await client.call('GET', `/scrub?${query}`)) as { shards: readonly ShardScrub[] }
        print(scrubText(shards), { shards })
        return shards.every(one => answers(one) && one.losses === 0) ? 0 : 1
      }
      if (verb !== 'start' && verb !== 'pause') throw unknown([verb])
      const answer = await client.call('POST', '/scrub', { action: verb, ...target })
      const { shards } = answer as { shards: readonly ShardScrub[] }
      print(scrubText(shards), { shards })
      return shards.every(answers) ? 0 : 1
    },
    write,
  )
}

const answers = ({ state }: ShardScrub): boolean => state !== 'unknown' && state !== 'failed'

const unknown = (words: readonly string[]): HoldfastError =>
  new HoldfastError('CONFIG_INVALID', `what does 'scrub ${words.join(' ')}' mean? Try:\n${scrubUsage}`)

function scrubText(shards: readonly ShardScrub[]): string {
  return textTable(
    ['NODE', 'SHARD', 'STATE', 'DONE', 'READ', 'BAD', 'LOST', 'LAST FINISHED'],
    shards.map(({ node, shard, state, reason, pass, last, losses }) => [
      node,
      shard,
      reason === undefined ? state : `${state} (${reason})`,
      pass === undefined ? '-' : `${Math.floor(pass.done * 100)} %`,
      humanBytes((pass ?? last)?.bytes ?? 0),
      String((pass ?? last)?.bad ?? 0),
      String(losses ?? '-'),
      last === undefined ? 'never' : new Date(last.finishedAt).toISOString(),
    ]),
  )
}
