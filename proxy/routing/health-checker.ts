import type { MapNode } from '../../shared/cluster-map.ts'
import { parseNodeId } from '../../shared/ids.ts'
import { type NodeStatus, type ShardState, type ShardStatus, wirePath, wireVersion } from '../../shared/wire.ts'
import type { ClusterView } from './cluster-view.ts'
import type { HealthTable } from './health.ts'
import type { NodeClients } from './node-client.ts'

const intervalMsDefault = 1_000
const timeoutMsDefault = 500

export interface HealthCheckerDeps {
  readonly view: ClusterView
  readonly clients: NodeClients
  readonly health: HealthTable
  /** A node knows a newer cluster map than this worker. */
  readonly onNewerEpoch?: (node: MapNode, epoch: number) => void
  readonly intervalMs?: number
  readonly timeoutMs?: number
}

/** Asks every node of the newest map for its status once a second and tells the health table. */
export class HealthChecker {
  readonly #deps: HealthCheckerDeps
  readonly #asking = new Map<string, Promise<void>>()
  #timer: NodeJS.Timeout | undefined

  constructor(deps: HealthCheckerDeps) {
    this.#deps = deps
  }

  /** Resolves after the first round: what is down at the start is then at least suspect. Never rejects. */
  async start(): Promise<void> {
    this.#timer ??= setInterval(() => void this.#round(), this.#deps.intervalMs ?? intervalMsDefault)
    await this.#round()
  }

  async close(): Promise<void> {
    clearInterval(this.#timer)
    this.#timer = undefined
    await Promise.all(this.#asking.values())
  }

  /** A node that has not answered the round before is not asked twice at once. */
  async #round(): Promise<void> {
    const { nodes } = this.#deps.view.current().map
    await Promise.all(
      nodes.map(node => {
        const asking = this.#asking.get(node.id) ?? this.#ask(node).finally(() => this.#asking.delete(node.id))
        this.#asking.set(node.id, asking)
        return asking
      }),
    )
  }

  async #ask(node: MapNode): Promise<void> {
    const { clients, health, view, onNewerEpoch } = this.#deps
    let status: NodeStatus | undefined
    try {
      const answer = await clients.get(node).probe(wirePath.status, this.#deps.timeoutMs ?? timeoutMsDefault)
      status = statusOf(answer, node, view.current().map.clusterId)
    } catch {
      // No answer in time, whatever the reason, is what the check is about: told to the table just below.
    }
    health.checked(node.id, status)
    if (status !== undefined && status.epoch > view.current().map.epoch) onNewerEpoch?.(node, status.epoch)
  }
}

const shardStates: ReadonlySet<string> = new Set<ShardState>(['ok', 'full', 'read-only', 'failed'])

/**
 * The answer if it is the status of this node of this cluster: another process may listen where the node was. A new node is of no
 * cluster until the primary has brought it the map, and brings it only to nodes that are heard; its shards are failed until then.
 */
function statusOf(answer: unknown, node: MapNode, clusterId: string): NodeStatus | undefined {
  if (typeof answer !== 'object' || answer === null) return undefined
  const status = answer as Partial<NodeStatus>
  if (parseNodeId(String(status.node)) !== node.id) return undefined
  if (status.clusterId !== clusterId && status.clusterId !== '') return undefined
  if (status.wire !== wireVersion || (status.state !== 'up' && status.state !== 'draining')) return undefined
  if (!Number.isSafeInteger(status.epoch) || !Array.isArray(status.shards)) return undefined
  return status.shards.every(isShardStatus) ? (status as NodeStatus) : undefined
}

function isShardStatus(value: unknown): value is ShardStatus {
  if (typeof value !== 'object' || value === null) return false
  const { id, state, bytesFree } = value as Partial<ShardStatus>
  return typeof id === 'string' && shardStates.has(String(state)) && typeof bytesFree === 'number'
}
