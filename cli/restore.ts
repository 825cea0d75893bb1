/** `holdfast restore <target>` */
import { setMaxListeners } from 'node:events'
import { openBackupTarget } from '../proxy/backup/open-target.ts'
import { BackupStore } from '../proxy/backup/store.ts'
import { credentialOptions } from '../proxy/backup/credentials.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, standardWriter, type ClientCommand, type Writer } from './client.ts'
import { restoreBackup } from './restore-backup.ts'
import { humanTime } from './task.ts'
import { humanBytes } from './text-table.ts'

export const restoreUsage = `holdfast restore file:///folder [--backup <id>]   (into an empty cluster; the same again resumes it)
holdfast restore 's3://bucket/prefix?endpoint=https://host&region=name' …
`

export const restoreOptions = {
  backup: { kind: 'string', doc: 'Which backup; the newest where none is given.' },
  backupPassphrase: { kind: 'secret', doc: 'Of encrypted backups.' },
  ...credentialOptions,
  atOnce: { kind: 'int', min: 1, max: 256, default: 16, doc: 'Artifacts that are written at once.' },
} as const satisfies Options

type Command = ClientCommand<typeof restoreOptions>

/** Resolves with the exit code: 1 also when bytes of some artifact were not in the backup. */
export function restore(source: ConfigSource, write: Writer = standardWriter): Promise<number> {
  return runWordCommand(
    restoreOptions,
    source,
    (command, [target, ...more]) => {
      if (target === undefined || more.length > 0) {
        throw new HoldfastError('CONFIG_INVALID', `restore from where? Try:\n${restoreUsage}`)
      }
      return run(command, target, line => write.err(`${line}\n`))
    },
    write,
  )
}

async function run({ client, config, print }: Command, target: string, say: (line: string) => void): Promise<number> {
  const startedAt = performance.now()
  const { origin, authorization } = client
  if (authorization === undefined) throw new HoldfastError('CONFIG_INVALID', 'a restore needs the administrator: set HOLDFAST_PASSWORD') // prettier-ignore
  const store = await BackupStore.open(openBackupTarget(target, config), config.backupPassphrase)
  const id = await store.idOf(config.backup)
  const { signal } = new AbortController()
  setMaxListeners(0, signal) // each of the requests at once listens
  const restored = await restoreBackup(
    { store, client, origin, authorization, atOnce: config.atOnce, goesLive: true, signal, say },
    id,
  )
  const { artifacts, skipped, bytes, missing, repositories, users, policies, tasks } = restored
  const lines = [
    `backup ${id}: ${artifacts} artifacts (${skipped} were there), ${repositories} repositories, ${users} users, ${policies} cleanup policies, settings of ${tasks} tasks`,
    `${humanBytes(bytes)} sent in ${humanTime(performance.now() - startedAt)}`,
    'not kept: version numbers of artifacts, passwords of users that were here',
    ...(missing === 0 ? [] : [`${missing} artifacts are missing: the backup does not have their bytes`]),
  ]
  print(lines.join('\n'), { ...restored, ms: Math.round(performance.now() - startedAt) })
  return missing === 0 ? 0 : 1
}
