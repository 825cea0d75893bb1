import type { Resolver } from './artifacts/resolver.ts'
import type { Coordinator } from './coordination/types.ts'
import type { Readiness } from './http/server.ts'
import type { IdentityKeeper } from './identity/identity-keeper.ts'
import type { DatabaseGate } from './recovery/database-gate.ts'
import type { HealthTable } from './routing/health.ts'

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
  const away = nodes.filter(node => node.state !== 'up')
  for (const { node, state } of away) problems.push(`storage node ${node} is ${state}`)
  const ready = nodes.some(node => node.state !== 'down')
  if (!ready) problems.push('no storage node answers')
  return { ready, problems }
}

function withoutDatabase({ ageMs, outdated }: IdentityKeeper): string[] {
  const minutes = Math.floor((ageMs ?? 0) / 60_000)
  if (!outdated) return [`the database is away: reads only, with users and repositories as of ${minutes} min ago`]
  const known = ageMs === undefined ? 'nothing is known of users' : `what is known of users is ${minutes} min old`
  return ['the database is away: reads only', `${known}: only what everybody may read is served`]
}
