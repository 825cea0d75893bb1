/** `holdfast backup create | list | verify | prune | remove | drill` */
import type { BackupList } from '../proxy/backup/backups.ts'
import type { BackupSummary } from '../proxy/backup/types.ts'
import type { JobLogLine, JobRun } from '../proxy/metadata/job-types.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type ClientCommand, type Writer } from './client.ts'
import { drill } from './drill.ts'
import { awaitRun, humanTime, runText } from './task.ts'
import { humanBytes, textTable } from './text-table.ts'

export const backupUsage = `holdfast backup create [--anew]               (runs by itself each night)
holdfast backup list
holdfast backup verify [<id>] [--percent <n>] [--repair]
holdfast backup prune --keep <n>
holdfast backup remove <id> [--last]          (one backup, damaged or not; --last: even if no other is good)
holdfast backup drill [--percent <n>] [--backup <id>] [--scratch <folder>]
                                              (restores into a scratch cluster on this machine, reads it back, measures RPO and RTO;
                                              asks the target only, so: HOLDFAST_BACKUP_TARGET; also as the task 'drill-backup')
`

export const backupOptions = {
  keep: { kind: 'int', min: 0, max: 10_000, default: 0, doc: 'How many backups prune leaves, the newest ones.' },
  percent: { kind: 'int', min: 1, max: 100, default: 100, doc: 'How many of a hundred blobs verify reads.' },
  repair: {
    kind: 'bool',
    default: false,
    doc: 'verify removes what is damaged: the next backup copies it again, if the cluster has it still.',
  },
  last: { kind: 'bool', default: false, doc: 'remove also removes the last good backup.' },
  anew: {
    kind: 'bool',
    default: false,
    doc: 'create accepts an empty target that had backups before, and begins with a full one; one that is not empty is refused.',
  },
} as const satisfies Options

type Command = ClientCommand<typeof backupOptions>

interface List {
  readonly backups: readonly BackupSummary[]
  /** Proxies of earlier releases only count them. */
  readonly damagedBackups?: BackupList['damaged']
  readonly damaged: number
}

const verbs: Readonly<Record<string, (command: Command, word: string | undefined) => Promise<number>>> = {
  create: command => runTask(command, '/backups', command.config.anew ? { anew: true } : {}),
  list: async ({ client, print }) => {
    const list = (await client.call('GET', '/backups')) as List
    const text = textTable(['BACKUP', 'AGE', 'ARTIFACTS', 'BLOBS', 'BYTES', 'NEW', 'MISSING'], list.backups.map(row))
    const damaged = (list.damagedBackups ?? []).map(({ id, why }) => `${id} is damaged: ${why}`)
    print([text, ...damaged].join('\n'), list)
    return list.damaged === 0 ? 0 : 1
  },
  verify: (command, backup) => {
    const { percent, repair } = command.config
    return runTask(command, '/backups/verify', { percent, repair, ...(backup === undefined ? {} : { backup }) })
  },
  prune: command => {
    const { keep } = command.config
    if (keep === 0) throw new HoldfastError('CONFIG_INVALID', 'say how many to keep: --keep <n>')
    return runTask(command, '/backups/prune', { keep })
  },
  remove: (command, backup) => {
    if (backup === undefined) throw new HoldfastError('CONFIG_INVALID', `which backup? Try:\n${backupUsage}`)
    return runTask(command, '/backups/remove', { backup, ...(command.config.last ? { last: true } : {}) })
  },
}

/** Resolves with the exit code. */
export function backup(source: ConfigSource, write?: Writer): Promise<number> {
  if (source.args[0] === 'drill') return drill({ args: source.args.slice(1), env: source.env }, write)
  return runWordCommand(
    backupOptions,
    source,
    (command, words) => {
      const [verb = '', word, ...more] = words
      const run = Object.hasOwn(verbs, verb) ? verbs[verb] : undefined
      if (run === undefined || more.length > 0 || (word !== undefined && verb !== 'verify' && verb !== 'remove')) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'backup ${words.join(' ')}' mean? Try:\n${backupUsage}`)
      }
      return run(command, word)
    },
    write,
  )
}

async function runTask({ client, print }: Command, path: string, body: object): Promise<number> {
  const { id, job } = (await client.call('POST', path, body)) as JobRun
  const run = await awaitRun(client, `/tasks/${job}`, id)
  const { lines } = (await client.call('GET', `/tasks/${job}/runs/${id}/log`)) as { lines: readonly JobLogLine[] }
  const said = lines.map(({ line }) => line)
  print([...said, runText(run)].join('\n'), { run, lines: said })
  return run.state === 'succeeded' ? 0 : 1
}

function row({ id, time, counts, copied, missing }: BackupSummary): string[] {
  return [
    id,
    humanTime(Date.now() - time),
    String(counts.artifacts),
    String(counts.blobs),
    humanBytes(counts.bytes),
    humanBytes(copied.bytes),
    missing === 0 ? '-' : String(missing),
  ]
}
