/** Keeps this worker's cluster map the newest one, on its disk too, and (as a task of the primary) brings it to the storage nodes. */
import { mkdir, open, rename } from 'node:fs/promises'
import { join } from 'node:path'
import type { Logger } from 'pino'
import { decodeClusterMap, encodeClusterMap, type ClusterMap, type MapNode } from '../../shared/cluster-map.ts'
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { wirePath } from '../../shared/wire.ts'
import type { Metadata } from '../metadata/types.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { HealthTable } from '../routing/health.ts'
import type { NodeClient } from '../routing/node-client.ts'
import { primaryRole, type PrimaryTask } from '../tasks/primary.ts'

const pollMs = 5_000

export interface MapKeeperDeps {
  readonly metadata: Pick<Metadata, 'loadClusterMap'>
  readonly view: ClusterView
  readonly health: Pick<HealthTable, 'nodes'>
  readonly clients: { get(node: MapNode): Pick<NodeClient, 'requestJson'> }
  readonly stateFolder: string
  readonly log: Logger
}

export class MapKeeper {
  readonly #deps: MapKeeperDeps
  #timer: NodeJS.Timeout | undefined
  #polling: Promise<void> | undefined
  #closed = false
  #savedEpoch = 0

  constructor(deps: MapKeeperDeps) {
    this.#deps = deps
  }

  async start(): Promise<void> {
    await this.#polling
    this.#polling = this.#save(this.#deps.view.current().map).finally(() => (this.#polling = undefined))
    await this.#polling
    this.#schedule()
  }

  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#polling
  }

  /**
   * A node says that it has a newer map: fetched at once from PostgreSQL, or from that node while PostgreSQL is away. Never rejects;
   * what fails is tried again when the node says so again, or with the next poll.
   */
  async catchUp(node: MapNode, epoch: number): Promise<void> {
    if (epoch > this.#deps.view.current().map.epoch) await this.#poll(node)
  }

  /** Fetches the newest map now. Never rejects. */
  async renew(): Promise<void> {
    await this.#poll()
  }

  /**
   * For a proxy that has just become primary: what it is told to do goes to the owners, and by an older map these are others. Only
   * a primary publishes maps, so this one is the newest until it publishes the next. Rejects with METADATA_UNAVAILABLE.
   */
  async adoptNewest(): Promise<void> {
    const { metadata, view } = this.#deps
    const newer = await metadata.loadClusterMap(view.current().map.epoch)
    if (newer !== undefined) view.replace(newer)
  }

  /** For the primary: a node whose map is older gets the newest one. */
  readonly distribution: PrimaryTask = {
    name: 'distribute-cluster-map',
    pauseMs: 1_000,
    step: async term => {
      const { view, health, clients } = this.#deps
      const { map } = view.current()
      const behind = health
        .nodes()
        .filter(({ state, status }) => state !== 'down' && status !== undefined && status.epoch < map.epoch)
      // The usual case, each second: a map of thousands of shards is not encoded for nobody.
      if (behind.length === 0) return 'idle'
      const fence = `${primaryRole}:${term.token}`
      const body = Buffer.from(encodeClusterMap(map))
      const ends = await Promise.allSettled(
        behind.flatMap(({ node }) => {
          const target = map.nodes.find(one => one.id === node)
          if (target === undefined) return []
          return [clients.get(target).requestJson('PUT', wirePath.clusterMap, body, { fence, signal: term.signal })]
        }),
      )
      // One that takes no map must not keep it from the others.
      const failed = ends.find(end => end.status === 'rejected')
      if (failed !== undefined) throw failed.reason
      return 'idle'
    },
  }

  #schedule(): void {
    if (this.#closed) return
    this.#timer = setTimeout(() => {
      void this.#poll().finally(() => this.#schedule())
    }, pollMs)
  }

  /** Calls at once share one look, and one file. */
  #poll(informant?: MapNode): Promise<void> {
    if (this.#closed) return Promise.resolve()
    return (this.#polling ??= this.#look(informant).finally(() => (this.#polling = undefined)))
  }

  async #look(informant: MapNode | undefined): Promise<void> {
    const { metadata, view, log } = this.#deps
    try {
      const newer = await metadata.loadClusterMap(view.current().map.epoch).catch((error: unknown) => {
        if (informant === undefined || !isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
        return this.#mapOf(informant)
      })
      if (newer !== undefined && view.replace(newer)) log.info({ epoch: newer.epoch }, 'newer cluster map')
      // What the primary published it has in the view already, and not on its disk.
      const { map } = view.current()
      if (map.epoch > this.#savedEpoch) await this.#save(map)
    } catch (error) {
      const away = isHoldfastError(error, 'METADATA_UNAVAILABLE') || isHoldfastError(error, 'NODE_UNREACHABLE')
      if (!away) log.error({ err: error }, 'could not keep the cluster map')
    }
  }

  async #mapOf(node: MapNode): Promise<ClusterMap> {
    const answer = await this.#deps.clients.get(node).requestJson('GET', wirePath.clusterMap)
    const map = decodeClusterMap(JSON.stringify(answer)) // with its checksum
    const { clusterId } = this.#deps.view.current().map
    if (map.clusterId === clusterId) return map
    throw new HoldfastError('CLUSTER_MAP_INVALID', 'a storage node has the map of another cluster', { node: node.id })
  }

  async #save(map: ClusterMap): Promise<void> {
    const { stateFolder } = this.#deps
    await mkdir(stateFolder, { recursive: true, mode: 0o700 })
    const file = join(stateFolder, 'cluster-map.json')
    const temporary = `${file}.${process.pid}`
    const handle = await open(temporary, 'w', 0o600)
    try {
      await handle.writeFile(encodeClusterMap(map))
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, file)
    this.#savedEpoch = map.epoch
  }
}
