/**
 * One proxy worker: builds all parts in the order they need each other, and closes them in reverse. What a part gets is what it
 * needs, nothing reaches for a global.
 */
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { isHoldfastError } from '../shared/errors.ts'
import type { ClusterMap, MapNode } from '../shared/cluster-map.ts'
import { parseZone } from '../shared/ids.ts'
import { version } from '../shared/version.ts'
import { Authenticator, userKeyPrefix } from './access/authenticator.ts'
import { FailedLogins } from './access/failed-logins.ts'
import { LoginLimiter } from './access/login-limiter.ts'
import { loadPasswords } from './access/passwords.ts'
import { ArtifactChanges } from './artifacts/artifact-changes.ts'
import { ArtifactWriter } from './artifacts/artifact-writer.ts'
import { BodyCache } from './artifacts/body-cache.ts'
import { DownloadLog } from './artifacts/download-log.ts'
import { Folders } from './artifacts/folders.ts'
import { PathCache } from './artifacts/path-cache.ts'
import { Publisher } from './artifacts/publisher.ts'
import { Repositories, repositoriesKey } from './artifacts/repositories.ts'
import { Resolver } from './artifacts/resolver.ts'
import { Trash } from './artifacts/trash.ts'
import { buildApi } from './api/build-api.ts'
import { BadCopies } from './bad-copies.ts'
import { clusterStatus } from './cluster-status.ts'
import { clusterTasks } from './cluster-tasks.ts'
import type { ProxyConfig } from './config.ts'
import { openCoordinator } from './coordination/open-coordinator.ts'
import type { Coordinator, MemberReport } from './coordination/types.ts'
import { prepareFirstStart } from './first-start.ts'
import { checkArtifactPath } from './http/artifact-path.ts'
import { ArtifactRoutes } from './http/artifact-routes.ts'
import { ClientAddresses } from './http/client-address.ts'
import { Metrics } from './http/metrics.ts'
import { wholeBytesMax } from './http/serve-artifact.ts'
import { EdgeServer } from './http/server.ts'
import { inspectionOf } from './inspection/inspection.ts'
import { readColdState, type ColdState } from './identity/cold-state.ts'
import { IdentityKeeper } from './identity/identity-keeper.ts'
import { AddressGuard } from './outgoing/address-guard.ts'
import { openMetadata } from './metadata/open-metadata.ts'
import type { Metadata } from './metadata/types.ts'
import { readiness } from './readiness.ts'
import { readings } from './readings.ts'
import { DatabaseGate } from './recovery/database-gate.ts'
import { ReplicatedBlobReader } from './routing/blob-reader.ts'
import { ReplicatedBlobWriter } from './routing/blob-writer.ts'
import { ClusterView } from './routing/cluster-view.ts'
import { ShardFolders } from './routing/folder-store.ts'
import { HealthChecker } from './routing/health-checker.ts'
import { HealthTable } from './routing/health.ts'
import { NodeClients } from './routing/node-client.ts'
import { ShardReferences } from './routing/reference-store.ts'
import { WriteContext } from './routing/write-context.ts'
import { previewCleanup } from './tasks/cleanup.ts'
import { reportOf } from './tasks/node-states.ts'
import { repairProgress } from './tasks/repair-progress.ts'
import { ScrubControl } from './tasks/scrub-control.ts'
import { askNode, askNodes, firstClusterMap } from './topology/first-map.ts'
import { TopologyControl } from './topology/topology-control.ts'
import { MapKeeper } from './topology/map-keeper.ts'
import { UpstreamCache } from './upstream/upstream-cache.ts'
import { UpstreamClient } from './upstream/upstream-client.ts'

export interface ProxyWorker {
  readonly url: string
  readonly metrics: Metrics
  /** Drains, then closes everything in reverse order. Safe to call twice. */
  close(): Promise<void>
}

export interface WorkerOptions {
  readonly config: ProxyConfig
  readonly log: Logger
  /** Aborts a start that waits for the database or the storage nodes. */
  readonly signal: AbortSignal
  /** The metrics page: of this worker, or of all workers of a process. */
  readonly metricsText?: () => Promise<string>
  /** The file that serves `holdfast`, for what runs as a process of its own. */
  readonly program: string
}

const databasePauseMs = 250

/** Resolves when the public port answers. */
export async function startProxyWorker(options: WorkerOptions): Promise<ProxyWorker> {
  const closers: (() => Promise<void> | void)[] = []
  let closing: Promise<void> | undefined
  const close = (): Promise<void> => (closing ??= closeInReverse(closers, options.log))
  try {
    return { ...(await build(options, closers)), close }
  } catch (error) {
    await close()
    throw error
  }
}

type Closers = (() => Promise<void> | void)[]

async function build(
  { config, log, signal, metricsText, program }: WorkerOptions,
  closers: Closers,
): Promise<Omit<ProxyWorker, 'close'>> {
  const now = (): number => performance.now()
  const cold = await readColdState(config, log)
  const known = [...new Set([...config.storageNodes, ...(cold?.map.nodes ?? []).map(node => node.url)])]
  const ask = { storageNodes: known, secret: config.secret }
  const gate = new DatabaseGate({
    shards: async () => (await askNodes(ask, signal)).flatMap(({ status }) => status.shards),
    log,
  })
  closers.push(() => gate.close())
  const metadata = await waitForDatabase(config, cold, gate, log, signal)
  closers.push(() => metadata.close())
  const passwords = await loadPasswords()
  // Away means that an earlier run was here, so there is nothing to prepare.
  if (metadata.available) await prepareFirstStart({ metadata, passwords, log }, config.adminPassword)
  // What this worker says of the nodes, once it has looked at them.
  let report = (): MemberReport | undefined => undefined
  const coordinator = await startCoordinator(config, metadata, () => report(), log)
  closers.push(() => coordinator.close())
  const map = await firstMap({ metadata, coordinator, log }, config, cold, signal)

  // routing
  const view = new ClusterView(map)
  const health = new HealthTable({
    now,
    onChange: (node, state, reason) =>
      log[state === 'up' ? 'info' : 'warn']({ node, state, reason }, 'storage node changed state'),
  })
  const clients = new NodeClients({ clusterSecret: config.secret, view, health })
  closers.push(() => clients.close())
  const keeper = new MapKeeper({ metadata, view, health, clients, stateFolder: config.stateFolder, log })
  const onNewerEpoch = (node: MapNode, epoch: number): void => void keeper.catchUp(node, epoch)
  const checker = new HealthChecker({ view, clients, health, onNewerEpoch })
  closers.push(() => checker.close())
  await checker.start()
  report = () => reportOf(health)
  gate.askVia(() => health.nodes().flatMap(({ status }) => status?.shards ?? []))
  gate.start(() => metadata.recheck())
  const writes = new WriteContext({ view, health, clients, renewMap: () => keeper.renew() })
  closers.push(() => writes.close())
  const references = new ShardReferences({ context: writes, view, health, clients })
  const blobWriter = new ReplicatedBlobWriter({ context: writes })
  const badCopies = new BadCopies({ metadata, log })
  const reader = new ReplicatedBlobReader({
    view,
    clients,
    health,
    zone: parseZone(config.zone ?? ''),
    onBadReplica: badCopies.report,
    wholeBytesAtOnceMax: 32 * wholeBytesMax,
  })

  // artifacts
  const cache = new PathCache({ entriesMax: config.pathCacheEntries })
  const bodies = new BodyCache({ bytesMax: config.hotCacheBytes, bodyBytesMax: wholeBytesMax })
  const leaseUsable = (key?: string): boolean => coordinator.cache.usable(key)
  const { secret, stateFolder, identityMaxAgeMs } = config
  const identity = new IdentityKeeper(
    { metadata, secret, stateFolder, maxAgeMs: identityMaxAgeMs, now, log },
    cold?.identity,
  )
  const repositories = new Repositories({
    metadata,
    leaseUsable: () => leaseUsable(repositoriesKey),
    now,
    memory: identity,
  })
  const limiter = new LoginLimiter(now)
  const failedLogins = new FailedLogins({ limiter, tell: key => coordinator.cache.invalidate([key]) })
  const onFailed = (address: string, name: string): void => failedLogins.failed(address, name)
  const authenticator = new Authenticator({
    metadata,
    passwords,
    limiter,
    onFailed,
    now,
    remembered: name => identity.user(name),
    keptMsMax: identityMaxAgeMs,
  })
  const invalidateLocal = (keys: readonly string[] | 'all'): void => {
    const settingsChanged = keys === 'all' || keys.includes(repositoriesKey)
    if (settingsChanged) {
      repositories.invalidate()
      upstreams.forget()
    }
    if (keys === 'all') authenticator.forget()
    else
      for (const key of keys) {
        if (key.startsWith(userKeyPrefix)) authenticator.forget(key.slice(userKeyPrefix.length))
        failedLogins.heard(key)
      }
    // Prepared heads depend on the repository's settings.
    cache.invalidate(settingsChanged ? 'all' : keys)
  }
  coordinator.cache.onInvalidate(invalidateLocal)
  const publisher = new Publisher({ metadata, references, lease: coordinator.cache, invalidateLocal, log })
  closers.push(() => publisher.close())
  const resolver = new Resolver({
    metadata,
    references,
    cache,
    leaseUsable,
    onMetadataState: available => {
      if (available) log.info('the database answers again')
      else log.warn('the database is away: artifacts are served from caches and shards, writes are refused')
    },
  })
  closers.push(() => resolver.close())
  if (!metadata.available) resolver.metadataFailed()
  const writer = new ArtifactWriter({
    metadata,
    writer: blobWriter,
    publisher,
    onMetadataUnavailable: () => resolver.metadataFailed(),
    metadataAvailable: () => metadata.available,
    metadataProblem: () => gate.problem,
    artifactBytesMax: config.artifactBytesMax,
  })
  const upstreamClient = new UpstreamClient({ guard: new AddressGuard(config.upstreamAllow), now })
  const fetchesMax = config.upstreamFetchesMax
  const upstreams = new UpstreamCache({
    resolver,
    writer,
    client: upstreamClient,
    fetchesMax,
    now,
    time: Date.now,
    log,
  })
  closers.push(() => upstreams.close())
  const brake = { share: config.deleteBrakePercent / 100, artifacts: config.deleteBrakeArtifacts }
  const changes = new ArtifactChanges({ metadata, publisher, checkPath: checkArtifactPath, brake })
  const trash = new Trash({ metadata, publisher })
  const downloads = new DownloadLog({ store: metadata.cleanup, log, now: Date.now })
  downloads.start()
  closers.push(() => downloads.close())

  // tasks
  // Before their start: one that fails has begun something already.
  closers.push(() => keeper.close())
  await keeper.start()
  closers.push(() => identity.close())
  await identity.start()
  const tasks = clusterTasks({
    config,
    log,
    program,
    now,
    metadata,
    coordinator,
    view,
    keeper,
    health,
    clients,
    references,
    reader,
    writer,
    publisher,
    repositories,
    upstreams,
  })
  const { primary, jobControl, backups } = tasks
  report = tasks.report
  primary.start()
  closers.push(() => primary.close())

  // edge
  const metrics = new Metrics()
  const addressOf = new ClientAddresses(config.trustProxy).of
  const parts = {
    metadata,
    coordinator,
    view,
    health,
    cache,
    bodies,
    reader,
    writes,
    writer,
    publisher,
    resolver,
    identity,
    gate,
    upstreams,
    upstreamClient,
    ...tasks,
  }
  metrics.add(readings(parts))
  const artifacts = new ArtifactRoutes({
    authenticator,
    repositories,
    resolver,
    folders: new Folders({ metadata, resolver, shards: new ShardFolders({ view, health, clients }) }),
    bodies,
    reader,
    writer,
    upstreams,
    changes,
    downloads,
    metadata,
    uploadsMax: config.uploadsMax,
    addressOf,
    metrics,
    log,
  })
  const api = await buildApi({
    authenticator,
    addressOf,
    passwords,
    metadata,
    repositories,
    artifacts: changes,
    trash,
    cleanup: metadata.cleanup,
    previewCleanup: policy => previewCleanup({ metadata }, policy),
    tasks: jobControl,
    backups,
    restores: metadata.restores,
    topology: new TopologyControl({
      view,
      renewMap: () => keeper.renew(),
      health,
      clients,
      jobs: jobControl,
      askNode: url => askNode(url, config.secret),
    }),
    collection: metadata.collection,
    collectionAges: tasks.collectionAges,
    scrubs: new ScrubControl({ view, health, clients }),
    repairs: {
      progress: () => repairProgress({ metadata, coordinator, view, health }),
      runNow: () => metadata.repairQueue.runNow(),
    },
    inspection: inspectionOf({
      metadata,
      clients,
      view,
      health,
      reportBadCopy: badCopies.report,
      log,
      abandonedMs: config.abandonedMs,
    }),
    announce: keys => publisher.invalidate(keys),
    status: () => clusterStatus(parts),
    clusterMap: () => view.current().map,
    log,
    version,
  })
  closers.push(() => api.close())
  const server = new EdgeServer(
    {
      artifacts,
      api: (request, response) => api.routing(request, response),
      metrics,
      metricsText: metricsText ?? (() => metrics.registry.metrics()),
      readiness: () => readiness(parts),
      log,
    },
    config,
  )
  await server.listen()
  closers.push(() => server.close(config.drainMs))
  return { url: server.url, metrics }
}

/** The first connection may take as long as it takes, unless an earlier run left what it takes to serve reads without it. */
async function waitForDatabase(
  config: ProxyConfig,
  cold: ColdState | undefined,
  gate: DatabaseGate,
  log: Logger,
  signal: AbortSignal,
): Promise<Metadata> {
  const clusterId = cold?.identity.clusterId ?? config.clusterId
  const startWithout = cold !== undefined
  for (let tries = 0; ; tries++) {
    try {
      const url = config.postgresUrl
      const admit: DatabaseGate['admit'] = issued => gate.admit(issued)
      return await openMetadata({ url, log, startWithout, admit, ...(clusterId === undefined ? {} : { clusterId }) })
    } catch (error) {
      if (!isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
      if (tries === 0) log.warn({ err: error }, 'waiting for the database')
      await sleep(databasePauseMs, undefined, { signal })
    }
  }
}

/** From the database; while that is away, the one from the state folder, which storage nodes may replace by a newer one. */
async function firstMap(
  deps: Parameters<typeof firstClusterMap>[0],
  config: ProxyConfig,
  cold: ColdState | undefined,
  signal: AbortSignal,
): Promise<ClusterMap> {
  try {
    return await firstClusterMap(deps, config, signal)
  } catch (error) {
    if (cold === undefined || !isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
    return cold.map
  }
}

async function startCoordinator(
  config: ProxyConfig,
  metadata: Metadata,
  report: () => MemberReport | undefined,
  log: Logger,
): Promise<Coordinator> {
  const coordinator = await openCoordinator({
    redisUrl: config.redisUrl,
    postgresUrl: config.postgresUrl,
    clusterId: metadata.clusterId,
    member: {
      id: `${hostname().slice(0, 40)}-${process.pid}-${randomBytes(4).toString('hex')}`,
      role: 'proxy',
      address: `${hostname()}:${config.port}`,
      version,
      startedAt: Date.now(),
      get report() {
        return report()
      },
    },
    issueToken: (role, holder) => metadata.issueToken(role, holder),
    log,
  })
  await coordinator.start()
  return coordinator
}

async function closeInReverse(closers: Closers, log: Logger): Promise<void> {
  while (closers.length > 0) {
    try {
      await closers.pop()?.()
    } catch (error) {
      log.error({ err: error }, 'could not close cleanly')
    }
  }
}
