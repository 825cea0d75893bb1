import { readConfig, type ConfigOf, type ConfigSource } from '../shared/config.ts'

export const upOptions = {
  data: { kind: 'string', default: './data', doc: 'Folder of everything this cluster keeps.' },
  host: { kind: 'string', default: '0.0.0.0', doc: 'Address the public port listens on.' },
  port: { kind: 'int', min: 1, max: 65_535, default: 8080, doc: 'Public port.' },
  workers: { kind: 'int', min: 1, max: 64, default: 1, doc: 'Processes of the proxy.' },
  replacedShards: {
    kind: 'list',
    flag: 'replaced-shard',
    default: [],
    countMax: 16,
    doc: 'Shards (node-a-1 …) whose empty folder may be set up again: a new disk in the place of a broken one.',
  },
  postgresUrl: { kind: 'secret', doc: 'A PostgreSQL to use in place of the embedded one.' },
  redisUrl: { kind: 'secret', doc: 'A Redis to coordinate proxies with; without it PostgreSQL does.' },
  adminPassword: {
    kind: 'secret',
    charsMin: 8,
    doc: "Password of the user 'admin' at the first start; made up, printed once and kept in <data>/admin.password if not given.",
  },
  logLevel: {
    kind: 'string',
    default: 'warn',
    pattern: [/^(trace|debug|info|warn|error|fatal|silent)$/, 'must be a level of log, from trace to silent'],
    doc: 'Least important lines that are printed; the logs of the parts are in <data>/log.',
  },
} as const

export type UpConfig = ConfigOf<typeof upOptions>

/** Throws CONFIG_INVALID with all problems. */
export function readUpConfig(source: ConfigSource): UpConfig {
  return readConfig(upOptions, source)
}
