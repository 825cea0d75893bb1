import { Type } from 'typebox'
import { givenWeightMax, givenWeightMin, replicasMax } from '../../shared/cluster-map.ts'
import type { Api } from './build-api.ts'
import { errorAnswer, nullable } from './schemas.ts'
import type { ApiDeps } from './types.ts'

const closed = { additionalProperties: false } as const
const id = Type.String({ pattern: '^[a-z0-9][a-z0-9.-]{0,62}$' })
// What is out of range is refused in words (TopologyControl); a union of schemas could only say that none of them fits.
const weight = Type.Number({ description: `${givenWeightMin} to ${givenWeightMax}, with three decimals at most` })
const url = Type.String({ pattern: '^https?://[^/?#@\\s]{1,255}$' })
const nodeVerb = [Type.Literal('drain-node'), Type.Literal('remove-node'), Type.Literal('out-node'), Type.Literal('in-node')] as const // prettier-ignore
const shardVerb = [Type.Literal('drain-shard'), Type.Literal('remove-shard'), Type.Literal('out-shard'), Type.Literal('in-shard')] as const // prettier-ignore
const wantedChange = Type.Union([
  Type.Object({ op: Type.Literal('add-node'), url }, closed),
  Type.Object({ op: Type.Union([...nodeVerb]), node: id }, closed),
  Type.Object({ op: Type.Literal('add-shard'), shard: id, weight: Type.Optional(weight) }, closed),
  Type.Object({ op: Type.Literal('reweight-shard'), shard: id, weight }, closed),
  Type.Object({ op: Type.Union([...shardVerb]), shard: id }, closed),
  Type.Object({ op: Type.Literal('replicas'), replicas: Type.Integer({ description: `1 to ${replicasMax}` }) }, closed),
])
const changes = Type.Array(wantedChange, { maxItems: 64 })
const bytesPerSecond = Type.Optional(
  Type.Integer({
    minimum: 1_000,
    maximum: Number.MAX_SAFE_INTEGER,
    description: 'That each shard gets, if its node takes as much; 64 MiB unless told',
  }),
)
const byBytes = Type.Optional(
  Type.Boolean({
    description:
      'Also swap partitions between shards of a zone where counts are even and bytes are not: 5 % of all bytes at most',
  }),
)
const planView = Type.Object({
  epoch: Type.Integer(),
  partitions: Type.Integer({ description: 'Partitions that get another owner' }),
  copies: Type.Integer({ description: 'Copies of partitions that move' }),
  copiesMin: Type.Integer({ description: 'Fewest that any table for these weights must move' }),
  balance: Type.Object({ max: Type.Number(), min: Type.Number() }),
  replicas: Type.Object({ before: Type.Integer(), after: Type.Integer() }, { description: 'Copies of everything' }),
  zones: Type.Object(
    { before: Type.Integer(), after: Type.Integer() },
    { description: 'Fewest zones that any partition has copies in' },
  ),
  shards: Type.Array(
    Type.Object({
      shard: Type.String(),
      node: Type.String(),
      zone: Type.String(),
      weight: Type.Number(),
      before: Type.Integer(),
      after: Type.Integer(),
      gains: Type.Integer(),
      losses: Type.Integer(),
    }),
  ),
  estimate: Type.Object({
    blobs: Type.Integer(),
    references: Type.Integer(),
    bytes: Type.Integer(),
    bytesFreed: Type.Integer({
      description: 'Of copies that go to the trash of their shards, once the others are there',
    }),
    seconds: Type.Integer({ description: 'By the node that takes longest' }),
    slowest: Type.Optional(
      Type.Object({ node: Type.String(), bytes: Type.Integer() }, { description: 'That node, and what it gets' }),
    ),
    unknownPartitions: Type.Integer({ description: 'Of which no owner answers' }),
  }),
  problems: Type.Array(Type.String(), { description: 'Why it is refused unless it is forced' }),
  byBytes: Type.Optional(
    Type.Object(
      {
        swaps: Type.Integer(),
        bytes: Type.Integer({ description: 'That they copy' }),
        spread: Type.Array(
          Type.Object({
            zone: Type.String(),
            bytes: Type.Integer(),
            before: Type.Number({ description: 'Bytes of the fullest shard relative to its share by weight' }),
            after: Type.Number(),
          }),
        ),
      },
      { description: 'Of a plan by bytes' },
    ),
  ),
})
const run = Type.Object(
  { id: Type.Integer(), job: Type.String(), state: Type.String() },
  {
    additionalProperties: true,
    description:
      'The run of the task `rebalance`, as under /tasks; absent: PostgreSQL is away, which knows (there may be a newer map, too)',
  },
)
const topologyView = Type.Object({
  epoch: Type.Integer(),
  replicas: Type.Integer(),
  copies: Type.Integer(),
  change: nullable(
    Type.Object({
      since: Type.Integer({ description: 'The epoch in which it began' }),
      unsettled: Type.Integer({ description: 'Partitions whose copies are not all with their new owners' }),
      partitions: Type.Integer(),
      state: Type.String({ description: 'running, paused, waiting (for PostgreSQL)' }),
    }),
  ),
  run: Type.Optional(nullable(run)),
  shards: Type.Array(
    Type.Object({
      shard: Type.String(),
      node: Type.String(),
      zone: Type.String(),
      weight: Type.Number(),
      partitions: Type.Integer(),
      leaving: Type.Integer({ description: 'Partitions it has not handed over yet' }),
      state: Type.String({ description: 'Of its node: up, suspect, down, draining; out, failed: of the shard' }),
      since: Type.Optional(Type.Number({ description: 'Since when it is away or out; ms since 1970' })),
      bytes: Type.Optional(Type.Integer({ description: 'Of the partitions it owns, with ?bytes=true' })),
    }),
  ),
  spread: Type.Optional(
    Type.Object(
      {
        zones: Type.Array(
          Type.Object({
            zone: Type.String(),
            bytes: Type.Integer(),
            shard: Type.Optional(Type.String({ description: 'The fullest for its weight' })),
            max: Type.Number({ description: 'Its bytes relative to its share by weight' }),
          }),
        ),
        unknownPartitions: Type.Integer({ description: 'Of which no owner says how many bytes they have' }),
      },
      { description: 'How evenly bytes follow the weights, with ?bytes=true' },
    ),
  ),
  warnings: Type.Array(Type.String(), {
    description: 'Weights that an aborted change has left, and the next change goes by',
  }),
  unassigned: Type.Array(Type.Object({ shard: Type.String(), node: Type.String(), weight: Type.Number() }), {
    description: 'Shards that nodes have and the cluster map has not',
  }),
})

const tags = ['topology']
const admin = { access: { demands: [{ action: 'admin' }] } } as const

/** /api/v1/topology: who owns what, and changes of that; the task `rebalance` carries them out. */
export function addTopologyRoutes(app: Api, { topology }: ApiDeps): void {
  app.get(
    '/topology',
    {
      config: admin,
      schema: {
        tags,
        summary: 'Owners, and the change under way',
        querystring: Type.Object(
          { bytes: Type.Optional(Type.Literal('true', { description: 'Ask all shards how many bytes they have' })) },
          closed,
        ),
        response: { 200: topologyView, default: errorAnswer },
      },
    },
    async request => topology.show(request.query.bytes === 'true'),
  )
  app.post(
    '/topology/plan',
    {
      config: { ...admin, audit: 'topology.plan' },
      schema: {
        tags,
        summary: 'What a change would move; changes nothing',
        body: Type.Object({ changes, bytesPerSecond, byBytes }, closed),
        response: { 200: planView, default: errorAnswer },
      },
    },
    async ({ body: { changes: wanted, ...options } }) => topology.plan(wanted, options),
  )
  app.post(
    '/topology/changes',
    {
      config: { ...admin, audit: 'topology.apply' },
      schema: {
        tags,
        summary: 'Carry out a change',
        description: 'One at a time: CONFLICT until the one before is settled.',
        body: Type.Object({ changes, force: Type.Optional(Type.Boolean()), bytesPerSecond, byBytes }, closed),
        response: { 202: run, default: errorAnswer },
      },
    },
    async (request, reply) => {
      const { changes: wanted, force = false, ...options } = request.body
      const user = request.principal.name
      request.auditSubject = `${options.byBytes === true ? 'by bytes ' : ''}${JSON.stringify(wanted)}`.slice(0, 500)
      return reply.code(202).send(await topology.apply(wanted, { ...options, user, force }))
    },
  )
  const verbs = {
    pause: 'Stop copying after the step in hand; reads and writes go on',
    resume: 'Go on copying',
  } as const
  for (const [verb, summary] of Object.entries({
    ...verbs,
    abort: 'Give back what is not settled to its old owners, and everything its old number of copies; weights stay',
  })) {
    app.post(
      `/topology/${verb}`,
      {
        config: { ...admin, audit: `topology.${verb}` },
        schema: { tags, summary, body: Type.Object({ bytesPerSecond }, closed), response: { 202: run, default: errorAnswer } }, // prettier-ignore
      },
      async (request, reply) => {
        const { name } = request.principal
        const done =
          verb === 'pause'
            ? topology.pause(name)
            : verb === 'resume'
              ? topology.resume(name, request.body.bytesPerSecond)
              : topology.abort(name, request.body.bytesPerSecond)
        return reply.code(202).send(await done)
      },
    )
  }
}
