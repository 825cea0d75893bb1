import { readConfig, type ConfigOf, type ConfigSource } from '../shared/config.ts'
import { isHoldfastError } from '../shared/errors.ts'
import { credentialOptions } from './backup/credentials.ts'
import { openBackupTarget } from './backup/open-target.ts'
import { badNetworks } from './networks.ts'

const MiB = 2 ** 20
const GiB = 2 ** 30

export const proxyOptions = {
  host: { kind: 'string', default: '0.0.0.0', doc: 'Address the public port listens on.' },
  port: { kind: 'int', min: 0, max: 65_535, default: 8080, doc: 'Public port; 0 takes any free one.' },
  workers: { kind: 'int', min: 1, max: 64, default: 1, doc: 'Processes that share the public port.' },
  zone: {
    kind: 'string',
    pattern: [/^[a-z0-9][a-z0-9.-]{0,62}$/, "must be lower-case letters, digits, '.' and '-'"],
    doc: 'Zone this proxy stands in; reads prefer replicas there.',
  },
  stateFolder: {
    kind: 'string',
    required: true,
    doc: 'Folder for what survives a restart: the newest cluster map, and a sealed copy of users and repositories.',
  },
  secret: { kind: 'secret', required: true, charsMin: 16, doc: 'Secret shared by all proxies and storage nodes.' },
  postgresUrl: {
    kind: 'secret',
    required: true,
    doc: 'Where the metadata is: postgres://user:password@host/database.',
  },
  redisUrl: { kind: 'secret', doc: 'Coordination between proxies; without it PostgreSQL serves.' },
  clusterId: {
    kind: 'string',
    pattern: [/^[A-Za-z0-9-]{1,64}$/, "must be letters, digits and '-'"],
    doc: 'Id of the cluster, for its first start; made up if not given, and kept in PostgreSQL.',
  },
  storageNodes: {
    kind: 'list',
    default: [],
    countMax: 1_000,
    doc: 'Storage nodes of the first cluster map, as http://host:port; read only while there is no map.',
  },
  replicas: { kind: 'int', min: 1, max: 7, default: 3, doc: 'Copies of everything in the first cluster map.' },
  adminPassword: {
    kind: 'secret',
    charsMin: 8,
    doc: "Password of the user 'admin' when that is made; changed by the API afterwards.",
  },
  trustProxy: {
    kind: 'list',
    default: [],
    countMax: 100,
    doc: 'Addresses or networks (10.0.0.0/8) of balancers whose X-Forwarded-* headers are believed.',
  },
  hotCacheBytes: {
    kind: 'int',
    unit: 'bytes',
    min: 0,
    max: 64 * GiB,
    default: 64 * MiB,
    doc: 'Memory for small bodies that are read often, per worker.',
  },
  pathCacheEntries: {
    kind: 'int',
    min: 100,
    max: 10_000_000,
    default: 100_000,
    doc: 'Paths whose metadata is remembered, per worker (about 0.7 KiB each).',
  },
  upstreamAllow: {
    kind: 'list',
    default: [],
    countMax: 100,
    doc: 'Addresses or networks (127.0.0.1, 169.254.0.0/16) of this machine or its link that upstreams may be at; others may be anywhere.',
  },
  upstreamFetchesMax: {
    kind: 'int',
    min: 1,
    max: 10_000,
    default: 64,
    doc: 'Artifacts being fetched from upstreams at once, per worker; beyond, 503.',
  },
  artifactBytesMax: {
    kind: 'int',
    unit: 'bytes',
    min: 1,
    max: 256 * GiB,
    default: 256 * GiB,
    doc: 'Largest artifact; a repository may set less.',
  },
  requestHeadBytesMax: {
    kind: 'int',
    unit: 'bytes',
    min: 4_096,
    max: 65_536,
    default: 16_384,
    doc: 'Largest request line and headers together.',
  },
  connectionsMax: { kind: 'int', min: 10, max: 100_000, default: 20_000, doc: 'Client connections per worker.' },
  requestsMax: {
    kind: 'int',
    min: 10,
    max: 100_000,
    default: 5_000,
    doc: 'Requests in flight per worker; beyond, 503.',
  },
  uploadsMax: { kind: 'int', min: 1, max: 10_000, default: 256, doc: 'Uploads in flight per worker; beyond, 503.' },
  idleMs: {
    kind: 'int',
    unit: 'ms',
    min: 1_000,
    max: 3_600_000,
    default: 120_000,
    doc: 'A connection on which nothing moves for so long in mid-request is closed; one that owes a body is told 408.',
  },
  clientGraceMs: {
    kind: 'int',
    unit: 'ms',
    min: 1_000,
    max: 3_600_000,
    default: 120_000,
    doc: 'How long a client may be below clientBytesPerSecondMin before it is given up.',
  },
  clientBytesPerSecondMin: {
    kind: 'int',
    unit: 'bytes',
    min: 0,
    max: MiB,
    default: 256,
    doc: 'Rate a client has to keep, over clientGraceMs, while it sends a body or takes an answer; 0 asks for none.',
  },
  abandonedMs: {
    kind: 'int',
    unit: 'ms',
    min: 1_000,
    max: 30 * 24 * 3_600_000,
    default: 3_600_000,
    doc: 'Age after which bytes of an upload that was never committed are reclaimed.',
  },
  gcMinAgeMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 365 * 24 * 3_600_000,
    default: 3_600_000,
    doc: 'Garbage collection leaves blobs alone that are younger.',
  },
  gcHoldMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 365 * 24 * 3_600_000,
    default: 24 * 3_600_000,
    doc: 'How long an unused blob is condemned, and can still be named again, before it is deleted.',
  },
  backupTarget: {
    kind: 'string',
    doc: 'Where backups go, the same for all proxies: file:///folder on another disk or host, or s3://bucket/prefix?endpoint=https://host&region=name.',
  },
  ...credentialOptions,
  backupPassphrase: {
    kind: 'secret',
    charsMin: 12,
    doc: 'Backups are encrypted with it; set before the first one, and kept elsewhere: without it they are worthless.',
  },
  backupBytesPerSecond: {
    kind: 'int',
    unit: 'bytes',
    min: 64 * 1024,
    max: 16 * GiB,
    default: 128 * MiB,
    doc: 'How fast backups are read and verified, so that clients do not notice.',
  },
  backupKeep: {
    kind: 'int',
    min: 0,
    max: 10_000,
    default: 14,
    doc: 'Backups that are kept; older ones are pruned after each new one. 0: all.',
  },
  antiEntropyMs: {
    kind: 'int',
    unit: 'ms',
    min: 1_000,
    max: 24 * 3_600_000,
    default: 600_000,
    doc: 'Pause between two comparisons of all that the shards hold.',
  },
  outAfterMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 30 * 24 * 3_600_000,
    default: 600_000,
    doc: 'How long all proxies must see a storage node down until its copies are made anew elsewhere. 0: never.',
  },
  diskOutAfterMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 30 * 24 * 3_600_000,
    default: 60_000,
    doc: 'How long a storage node that is up must call a disk failed until its copies are made anew elsewhere. 0: never.',
  },
  identityMaxAgeMs: {
    kind: 'int',
    unit: 'ms',
    min: 60_000,
    max: 365 * 24 * 3_600_000,
    default: 24 * 3_600_000,
    doc: 'While PostgreSQL is away: age up to which the copy of users and repositories counts; beyond, only what everybody may read is served.',
  },
  deleteBrakePercent: {
    kind: 'int',
    min: 0,
    max: 100,
    default: 5,
    doc: 'Deleting a folder with more of the artifacts of its repository than this has to be confirmed; 100: never.',
  },
  deleteBrakeArtifacts: {
    kind: 'int',
    min: 0,
    max: 1_000_000_000,
    default: 1_000,
    doc: 'Deleting a folder with up to so many artifacts never has to be confirmed.',
  },
  lingerMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 600_000,
    default: 0,
    doc: 'How long a proxy that is asked to end still takes new connections, while /readyz says that it goes: at least as long as the balancer needs to notice.',
  },
  drainMs: {
    kind: 'int',
    unit: 'ms',
    min: 0,
    max: 600_000,
    default: 30_000,
    doc: 'How long requests in flight may go on when the proxy is asked to end.',
  },
  logLevel: {
    kind: 'string',
    default: 'info',
    pattern: [/^(trace|debug|info|warn|error|fatal|silent)$/, 'must be a level of log, from trace to silent'],
    doc: 'Least important lines that are logged.',
  },
} as const

export type ProxyConfig = ConfigOf<typeof proxyOptions>

/** Throws CONFIG_INVALID with all problems. */
export function readProxyConfig(source: ConfigSource): ProxyConfig {
  return readConfig(proxyOptions, source, config => {
    const problems: string[] = []
    for (const url of config.storageNodes) {
      if (!/^https?:\/\/[^/?#@\s]+\/?$/.test(url) || !URL.canParse(url)) {
        problems.push(`HOLDFAST_STORAGE_NODES contains '${url}', but wants http://host:port`)
      }
    }
    if (new Set(config.storageNodes).size < config.storageNodes.length) {
      problems.push('HOLDFAST_STORAGE_NODES names a node twice')
    }
    for (const text of badNetworks(config.trustProxy)) {
      problems.push(`HOLDFAST_TRUST_PROXY contains '${text}', but wants addresses or networks such as 10.0.0.0/8`)
    }
    for (const text of badNetworks(config.upstreamAllow)) {
      problems.push(`HOLDFAST_UPSTREAM_ALLOW contains '${text}', but wants addresses or networks such as 127.0.0.0/8`)
    }
    if (config.uploadsMax > config.requestsMax) problems.push('uploadsMax must not be above requestsMax')
    if (!/^(postgres(ql)?:\/\/|pglite:)/.test(config.postgresUrl))
      problems.push('HOLDFAST_POSTGRES_URL must begin with postgres://')
    if (config.backupTarget !== undefined) problems.push(...targetProblems(config.backupTarget))
    if (config.redisUrl !== undefined && !/^rediss?:\/\//.test(config.redisUrl)) {
      problems.push('HOLDFAST_REDIS_URL must begin with redis:// or rediss://')
    }
    return problems
  })
}

/** A pattern would repeat what it refuses, which may have a key in it. */
function targetProblems(url: string): readonly string[] {
  try {
    openBackupTarget(url, {})
    return []
  } catch (error) {
    if (!isHoldfastError(error)) throw error
    return [error.message]
  }
}
