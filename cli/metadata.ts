/** `holdfast metadata catch-up | rebuild`: speaks to PostgreSQL and the storage nodes themselves, so that it works without any proxy. */
import { pino } from 'pino'
import { proxyOptions } from '../proxy/config.ts'
import type { RecoveryOptions } from '../proxy/recovery/recover.ts'
import { type FinishedRecovery, runRecovery } from '../proxy/recovery/run-recovery.ts'
import { readConfig, type ConfigSource, type Options } from '../shared/config.ts'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { standardWriter, type Writer } from './client.ts'

export const metadataUsage = `holdfast metadata catch-up   (a database that was restored from an older copy learns what the shards know)
holdfast metadata rebuild    (an empty database is filled from the shards)

Give it the settings of a proxy. Proxies may run: they use the database by themselves as soon as it is ready.
Garbage collection stays disarmed until 'holdfast gc arm'.
`

export const metadataOptions = {
  postgresUrl: proxyOptions.postgresUrl,
  secret: proxyOptions.secret,
  storageNodes: {
    ...proxyOptions.storageNodes,
    required: true,
    doc: 'Storage nodes, as http://host:port; one that answers is enough.',
  },
  adminPassword: {
    ...proxyOptions.adminPassword,
    doc: "Password of the user 'admin', if no administrator can be restored; made up and printed if not given.",
  },
  force: {
    kind: 'bool',
    default: false,
    doc: 'Go on although so many shards are away that acknowledged writes may be missing.',
  },
  json: { kind: 'bool', default: false, doc: 'Print the report as JSON.' },
} as const satisfies Options

/** Resolves with the exit code: 1 also when artifacts without any copy were found. */
export async function metadata({ args, env }: ConfigSource, write: Writer = standardWriter): Promise<number> {
  try {
    const [verb, ...rest] = args
    if (verb !== 'catch-up' && verb !== 'rebuild') {
      throw new HoldfastError('CONFIG_INVALID', `what does 'metadata ${verb ?? ''}' mean? Try:\n${metadataUsage}`)
    }
    const config = readConfig(metadataOptions, { args: rest, env })
    const options: RecoveryOptions = { kind: verb, force: config.force }
    const log = pino({ level: 'error' }, pino.destination(2))
    const signal = new AbortController().signal
    const report = await runRecovery(config, options, { log, signal, progress: line => write.err(`${line}\n`) })
    write.out(config.json ? JSON.stringify(report, null, 2) + '\n' : reportText(report))
    return report.withoutBytesCount > 0 ? 1 : 0
  } catch (error) {
    if (!isHoldfastError(error)) throw error
    write.err(`holdfast: ${error.message} [${error.code}]\n`)
    return error.code === 'CONFIG_INVALID' ? 2 : 1
  }
}

function reportText(report: FinishedRecovery): string {
  const { paths, written, deleted, shardsRead, ms, identityTakenAt, newPassword } = report
  const lines = [
    `${paths} paths on ${shardsRead} shards read in ${(ms / 1_000).toFixed(1)} s: ${written} artifacts and ${deleted} deletions brought to the database`,
    identityTakenAt === undefined
      ? 'configuration: no copy on the shards is newer than the database'
      : `users, repositories, cleanup policies and settings of tasks as of ${new Date(identityTakenAt).toISOString()}`,
    ...report.repositoriesMade.map(
      name => `repository '${name}' was not known: made anew, readable by administrators, nothing is overwritten in it`,
    ),
    ...(report.adminMade
      ? [
          `no administrator could be restored: 'admin' was made${newPassword === undefined ? '' : `, password ${newPassword}`}`,
        ]
      : []),
    ...(report.shardsAway.length > 0 ? [`not read, because they do not answer: ${report.shardsAway.join(', ')}`] : []),
    ...report.withoutBytes.map(name => `no copy found of the bytes of ${name}`),
    ...(report.withoutBytesCount > report.withoutBytes.length ? [`… ${report.withoutBytesCount} in all`] : []),
    "not recoverable from shards: artifacts' first creation times, history and audit; what was in the trash; days of downloads",
    "garbage collection is disarmed: look at 'holdfast gc plan', then 'holdfast gc arm'",
  ]
  return lines.join('\n') + '\n'
}
