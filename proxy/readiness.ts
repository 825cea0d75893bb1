import type { Resolver } from './artifacts/resolver.ts'
import type { Coordinator } from './coordination/types.ts'
import type { Readiness } from './http/server.ts'
import type { IdentityKeeper } from './identity/identity-keeper.ts'
import type { DatabaseGate } from './recovery/database-gate.ts'
import type { HealthTable, NodeHealth } from './routing/health.ts'

interface ReadinessParts {
  readonly resolver: Resolver
  readonly coordinator: Coordinator
  readonly health: HealthTable
  readonly identity: IdentityKeeper
  readonly gate: Pick<DatabaseGate, 'problem'>
}

/**
 * Ready means that reads are served; what limits the service without ending it is told as a problem. Anybody may ask: what is down is
 * said, and not why. The reasons quote servers and addresses; they are in the log, and in the status for administrators.
 */
export function readiness({ resolver, coordinator, health, identity, gate }: ReadinessParts): Readiness {
  const problems: string[] = []
  if (gate.problem !== undefined) problems.push(gate.problem)
  if (!resolver.metadataAvailable) problems.push(...withoutDatabase(identity))
  if (!coordinator.state().up) problems.push('coordination is away: tasks pause, caches are bypassed')
  const nodes = health.nodes()
  for (const node of nodes) problems.push(...problemsOf(node))
  const answering = nodes.filter(node => node.state !== 'down')
  // A node of which nothing is known yet counts: only one try tells.
  const ready = answering.some(({ status }) => status?.shards.every(({ state }) => state === 'failed') !== true)
  if (!ready) problems.push(answering.length === 0 ? 'no storage node answers' : 'no shard can be read')
  return { ready, problems }
}

function problemsOf({ node, state, status }: NodeHealth): string[] {
  if (state !== 'up') return [`storage node ${node} is ${state}`]
  if (status?.clusterId === '') return [`storage node ${node} waits for its first cluster map`]
  const broken = status?.shards.filter(shard => shard.state === 'failed' || shard.state === 'read-only') ?? []
  return broken.map(shard => `shard ${shard.id} is ${shard.state}`)
}

function withoutDatabase({ ageMs, outdated }: IdentityKeeper): string[] {
  const minutes = Math.floor((ageMs ?? 0) / 60_000)
  if (!outdated) return [`the database is away: reads only, with users and repositories as of ${minutes} min ago`]
  const known = ageMs === undefined ? 'nothing is known of users' : `what is known of users is ${minutes} min old`
  return ['the database is away: reads only', `${known}: only what everybody may read is served`]
}
