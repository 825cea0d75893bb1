/** Bodies of /api/v1: types, validation, serialisation and the OpenAPI document come from here. */
import { Type, type Static } from 'typebox'
import { passwordBytesMax, passwordCharsMin } from '../access/passwords.ts'

const closed = { additionalProperties: false } as const
export const nullable = <Schema extends Type.TSchema>(schema: Schema) => Type.Union([schema, Type.Null()])

export const repositoryName = Type.String({ pattern: '^[a-z0-9][a-z0-9._-]{0,63}$' })
const redeploy = Type.Union([Type.Literal('allow'), Type.Literal('once'), Type.Literal('deny')], {
  description: "'once': a path may be written once, identical bytes again are fine; 'deny': nothing may be written",
})
const artifactBytesMax = Type.Union([Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }), Type.Null()], {
  description: 'Largest artifact in bytes; null: no limit of its own',
})
const anonymousRead = Type.Boolean({ description: 'May everybody read, without credentials?' })
const trashDays = Type.Integer({
  minimum: 0,
  maximum: 3_650,
  description: 'For how many days what is deleted can be restored; 0: not at all. Holds for deletions from then on',
})

const seconds = { minimum: 0, maximum: 366 * 24 * 3_600 } as const
const maxAgeSeconds = Type.Integer({
  ...seconds,
  description: 'For how long a copy of what may change is current; paths with a version in them never change',
})
const absentMaxAgeSeconds = Type.Integer({
  ...seconds,
  description: "For how long the upstream's word counts that there is nothing",
})
const upstreamUrl = Type.String({ maxLength: 2_000, description: 'http:// or https://; paths are appended' })
const upstreamView = nullable(Type.Object({ url: upstreamUrl, maxAgeSeconds, absentMaxAgeSeconds }))
const upstream = nullable(
  Type.Object(
    {
      url: upstreamUrl,
      maxAgeSeconds: Type.Optional(maxAgeSeconds),
      absentMaxAgeSeconds: Type.Optional(absentMaxAgeSeconds),
    },
    {
      ...closed,
      description:
        'What is asked for here is fetched from there and kept (type proxy). null: hosted; what was kept stays',
    },
  ),
)

export const repositoryView = Type.Object({
  name: repositoryName,
  format: Type.String(),
  type: Type.String(),
  redeploy,
  artifactBytesMax,
  anonymousRead,
  trashDays,
  upstream: upstreamView,
})
export const repositoryList = Type.Object({ repositories: Type.Array(repositoryView) })
export const repositoryChange = Type.Object(
  {
    redeploy: Type.Optional(redeploy),
    artifactBytesMax: Type.Optional(artifactBytesMax),
    anonymousRead: Type.Optional(anonymousRead),
    trashDays: Type.Optional(trashDays),
    upstream: Type.Optional(upstream),
    force: Type.Optional(
      Type.Boolean({
        description: "An upstream may be given although there are artifacts, which the upstream's take the place of",
      }),
    ),
  },
  { ...closed, minProperties: 1 },
)
export const newRepository = Type.Object(
  {
    name: repositoryName,
    redeploy: Type.Optional(redeploy),
    artifactBytesMax: Type.Optional(artifactBytesMax),
    anonymousRead: Type.Optional(anonymousRead),
    trashDays: Type.Optional(trashDays),
    upstream: Type.Optional(upstream),
  },
  closed,
)
export const repositoryParams = Type.Object({ name: repositoryName })

export const place = Type.Object(
  {
    repository: repositoryName,
    path: Type.String({ maxLength: 2_000, description: 'Decoded, without a leading slash; a folder ends in "/"' }),
  },
  closed,
)
const recursive = Type.Optional(Type.Boolean({ description: 'Needed for folders: everything below' }))
export const transferRequest = Type.Object({ from: place, to: place, recursive }, closed)
const confirm = Type.Optional(
  Type.Integer({ minimum: 0, description: 'Of a folder: as many artifacts may go. Needed where a refusal says so' }),
)
export const deleteRequest = Type.Object({ from: place, recursive, confirm }, closed)
export const changedCount = Type.Object({ artifacts: Type.Integer({ description: 'How many artifacts were changed' }) })

export const passwordChange = Type.Object(
  { password: Type.String({ minLength: passwordCharsMin, maxLength: passwordBytesMax / 4 }) },
  closed,
)
export const userParams = Type.Object({ name: Type.String({ minLength: 1, maxLength: 255 }) })

const partState = Type.Object({ up: Type.Boolean(), reason: Type.Optional(Type.String()) })
export const clusterStatus = Type.Object({
  version: Type.String(),
  clusterId: Type.String(),
  /** Version of the cluster map; null before there is one. */
  epoch: nullable(Type.Integer()),
  replicas: Type.Integer(),
  nodes: Type.Array(
    Type.Object({
      id: Type.String(),
      zone: Type.String(),
      url: Type.String(),
      state: Type.String({ description: 'up, suspect, down, draining: as this proxy sees the node; out: its copies are made anew elsewhere' }), // prettier-ignore
      since: Type.Optional(Type.Number({ description: 'Since when it is suspect, down or out; ms since 1970' })),
      shards: Type.Array(
        Type.Object({
          id: Type.String(),
          weight: Type.Number(),
          state: Type.String({ description: 'ok, full, read-only, failed, unknown' }),
          reason: Type.Optional(Type.String()),
          recovering: Type.Optional(
            Type.Boolean({ description: 'Not known to have all that it should: its disk is new, or lost something' }),
          ),
          bytesTotal: Type.Optional(Type.Number()),
          bytesFree: Type.Optional(Type.Number()),
          out: Type.Optional(
            Type.Object(
              { weight: Type.Number(), since: Type.Number(), auto: Type.Boolean() },
              { description: 'What it weighs when it is taken in again; auto: that happens by itself' },
            ),
          ),
        }),
      ),
    }),
  ),
  refusedOuts: Type.Optional(
    Type.Array(Type.String(), { description: 'Why nodes or disks that are away are not taken out' }),
  ),
  /** Member id of the primary, if there is one and it can be known. */
  primary: nullable(Type.String()),
  members: Type.Array(
    Type.Object({ id: Type.String(), address: Type.String(), version: Type.String(), startedAt: Type.Number() }),
  ),
  /** null: PostgreSQL cannot be asked. */
  pendingRepairs: nullable(Type.Integer()),
  /** What the primary repairs; absent without one. */
  repairs: Type.Optional(
    Type.Object({
      entriesPerSec: Type.Number({ description: 'Over the last minute' }),
      bytesPerSec: Type.Number(),
      partitionsToCompare: Type.Integer(),
      lostBlobs: Type.Integer({ description: 'Of which no owner has a good copy' }),
    }),
  ),
  /** Of the primary; absent while PostgreSQL cannot be asked. */
  tasks: Type.Optional(
    Type.Array(
      Type.Object({
        name: Type.String(),
        state: Type.String({ description: 'idle, queued, running' }),
        /** How its last run ended; null before the first. */
        lastState: nullable(Type.String()),
        lastError: nullable(Type.String()),
      }),
    ),
  ),
  postgres: partState,
  coordination: Type.Object({ driver: Type.String(), up: Type.Boolean(), reason: Type.Optional(Type.String()) }),
})
export type ClusterStatus = Static<typeof clusterStatus>

const mapTable = Type.String({
  description: 'Base64 of little-endian u16: entry `partition * copies + i` is the index in `shards` of the i-th owner',
})
export const clusterMapView = Type.Object({
  format: Type.Integer(),
  hash: Type.String({ description: 'sha256: of names and digests, for their partitions' }),
  partitions: Type.Integer(),
  clusterId: Type.String(),
  epoch: Type.Integer({ description: 'Version of the map; only grows' }),
  replicas: Type.Integer({ description: 'Copies wanted of everything' }),
  spread: Type.String({ description: 'strict: zones before balance; balanced: weights first' }),
  copies: Type.Integer({ description: 'Entries of each partition in `table`' }),
  nodes: Type.Array(Type.Object({ id: Type.String(), zone: Type.String(), url: Type.String() })),
  shards: Type.Array(
    Type.Object({
      id: Type.String(),
      node: Type.String(),
      weight: Type.Number(),
      out: Type.Optional(Type.Object({ weight: Type.Number(), since: Type.Number(), auto: Type.Boolean() })),
    }),
  ),
  table: mapTable,
  writesFrom: Type.Optional(Type.Integer({ description: 'Nodes refuse writes sent by an older epoch than this' })),
  previous: Type.Optional(
    Type.Object(
      { since: Type.Integer(), copies: Type.Integer(), replicas: Type.Optional(Type.Integer()), table: mapTable },
      {
        description:
          'Owners before the change under way, of partitions that are not settled; 65535 in `table`: settled',
      },
    ),
  ),
  checksum: Type.String({ description: 'sha256 of the document without it' }),
})

/** A 204. */
export const nothing = Type.Null({ description: 'Done' })

export const errorAnswer = Type.Object(
  { code: Type.String(), message: Type.String(), requestId: Type.String() },
  { additionalProperties: true },
)

export const pathQuery = Type.Object(
  { path: Type.String({ minLength: 1, maxLength: 2_000, description: 'Decoded, without a leading slash' }) },
  closed,
)
const shardPlace = { shard: Type.String(), node: Type.String(), zone: Type.String() }
const because = { reason: Type.Optional(Type.String()) }
export const verification = Type.Object({
  repository: Type.String(),
  path: Type.String(),
  version: Type.Integer(),
  partition: Type.Integer({ description: 'Of the path: where its references are' }),
  blob: Type.Object({
    digest: Type.String(),
    generation: Type.String(),
    partition: Type.Integer(),
    bytes: Type.Integer(),
  }),
  copiesWanted: Type.Integer(),
  copies: Type.Array(
    Type.Object({
      ...shardPlace,
      role: Type.String({ description: 'owner, handoff' }),
      state: Type.String({ description: 'good, corrupt, missing, unreachable' }),
      ...because,
    }),
  ),
  references: Type.Array(
    Type.Object({
      ...shardPlace,
      state: Type.String({ description: 'current, old, newer, different, missing, unreachable' }),
      version: Type.Optional(Type.Integer()),
      ...because,
    }),
  ),
  healthy: Type.Boolean({ description: 'Every owner has a good copy and the newest reference' }),
})
export type VerificationView = Static<typeof verification>

export const dispersionQuery = Type.Object(
  { after: Type.Optional(Type.String({ description: "'' begins with all blobs, `next` goes on; without: a sample" })) },
  closed,
)
const unsettled = Type.Integer({
  description:
    'Partitions that are not settled, while a change of topology is under way; there the copies of old owners count as well',
})
export const dispersionReport = Type.Object({
  replicas: Type.Integer(),
  blobs: Type.Integer(),
  byCopies: Type.Array(Type.Integer(), { description: 'Blobs with 0, 1, … copies on their owners' }),
  byZones: Type.Array(Type.Integer(), { description: 'Blobs with copies in 0, 1, … zones' }),
  unknown: Type.Integer({ description: 'Blobs of which an owner could not be asked' }),
  spread: Type.Integer({ description: 'Blobs with copies in as many zones as there can be' }),
  whole: Type.Integer({
    description: 'Blobs with all their copies; while owners change, old and new ones count together',
  }),
  unsettled,
  next: Type.Optional(Type.String()),
})
export type DispersionReport = Static<typeof dispersionReport>

export const fsckQuery = Type.Object(
  { mark: Type.Optional(Type.String({ maxLength: 2_100, description: '`next` of the page before' })) },
  closed,
)
export const fsckPage = Type.Object({
  paths: Type.Integer(),
  blobs: Type.Integer(),
  findings: Type.Array(
    Type.Object({
      problem: Type.String({
        description:
          'reference-without-bytes, too-few-copies, too-few-references, bytes-without-reference, other-generation',
      }),
      partition: Type.Integer(),
      name: Type.String(),
      shards: Type.Array(Type.String()),
    }),
  ),
  unreachable: Type.Array(Type.String()),
  queued: Type.Integer({ description: 'Repairs that were queued' }),
  unsettled,
  next: Type.Optional(Type.String()),
})
export type FsckReport = Static<typeof fsckPage>
