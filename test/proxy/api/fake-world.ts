/** The API on fakes of a few lines: users whose hash is their password, repositories in a Map, changes in a list. */
import type { LightMyRequestResponse } from 'fastify'
import type { Test } from 'tap'
import { Authenticator } from '../../../proxy/access/authenticator.ts'
import { LoginLimiter } from '../../../proxy/access/login-limiter.ts'
import { buildApi, type Api } from '../../../proxy/api/build-api.ts'
import type { BackupSummary } from '../../../proxy/backup/types.ts'
import type { ClusterStatus } from '../../../proxy/api/schemas.ts'
import type { ApiDeps, ArtifactPlace } from '../../../proxy/api/types.ts'
import type { CleanupPolicy } from '../../../proxy/metadata/cleanup-types.ts'
import type { CollectionAges, Disarmed } from '../../../proxy/metadata/collection-types.ts'
import type { Repository, User } from '../../../proxy/metadata/types.ts'
import type { TrashEntry } from '../../../proxy/metadata/trash-types.ts'
import type { Job } from '../../../proxy/tasks/job.ts'
import { JobControl } from '../../../proxy/tasks/job-control.ts'
import type { RepairProgress } from '../../../proxy/tasks/repair-progress.ts'
import type { ClusterMap } from '../../../shared/cluster-map.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { MemoryJobStore } from '../tasks/memory-job-store.ts'
import type { Digest, Generation, ShardId } from '../../../shared/ids.ts'

export const basic = (name: string, password: string): string =>
  'Basic ' + Buffer.from(`${name}:${password}`).toString('base64')
export const admin = { authorization: basic('admin', 'root-root') }
export const ann = { authorization: basic('ann', 'ann-secret') }

export const status: ClusterStatus = {
  version: '1',
  clusterId: 'c',
  epoch: 3,
  replicas: 3,
  nodes: [{ id: 'n', zone: 'a', url: 'http://n', state: 'up', shards: [{ id: 's', weight: 1, state: 'ok' }] }],
  primary: null,
  members: [{ id: 'm', address: 'a', version: '1', startedAt: 1 }],
  pendingRepairs: 0,
  postgres: { up: true },
  coordination: { driver: 'memory', up: false, reason: 'gone' },
}

const backupSummary: BackupSummary = {
  format: 1, id: '20260301t000000z-1', clusterId: 'c', incarnation: 'i', time: 1, finishedAt: 2, missing: 0, encrypted: false,
  counts: { repositories: 1, users: 1, artifacts: 3, blobs: 2, bytes: 5 }, copied: { blobs: 1, bytes: 4 },
} // prettier-ignore

const tasks: readonly Job[] = [
  {
    name: 'tidy',
    title: 'Tidy up',
    defaultSchedule: '0 4 * * *',
    checkParams: ({ deep }) => {
      if (deep !== undefined && typeof deep !== 'boolean') throw new HoldfastError('BAD_REQUEST', 'deep: true or false')
    },
    run: async () => undefined,
  },
  { name: 'backup', title: 'Back up', defaultSchedule: null, checkParams: () => undefined, run: async () => undefined },
  { name: 'drill', title: 'Practise', defaultSchedule: null, run: async () => undefined },
]

export interface World {
  readonly api: Api
  readonly repositories: Map<string, Repository>
  readonly users: Map<string, User>
  readonly audit: Parameters<ApiDeps['metadata']['audit']>[0][]
  readonly announced: string[]
  readonly changes: unknown[]
  readonly logged: unknown[]
  /** Behind two tasks: 'tidy' takes a parameter `deep`, 'drill' has no schedule. */
  readonly jobStore: MemoryJobStore
  fault: Error | undefined
  disarmed: Disarmed | undefined
  trash: readonly TrashEntry[]
  readonly policies: Map<string, CleanupPolicy>
  repairs: RepairProgress
  readonly collectionAges: CollectionAges
  map: ClusterMap | undefined
  readonly call: (
    method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE',
    path: string,
    body?: unknown,
    headers?: object,
  ) => Promise<LightMyRequestResponse>
}

export const nothingToRepair: RepairProgress = {
  blobs: 0, references: 0, bytes: 0, due: 0, failing: 0, waiting: 0, oldestAgeMs: null, shards: [], away: [],
  entriesPerSec: 0, bytesPerSec: 0, partitionsToCompare: 0, lostBlobs: 0, lost: [], remainingMs: null,
} // prettier-ignore

export async function setUp(t: Test): Promise<World> {
  const repository = (name: string, anonymousRead: boolean): Repository => ({
    id: 1, name, format: 'raw', type: 'hosted', upstream: null, redeploy: 'allow', artifactBytesMax: null, anonymousRead, trashDays: 7,
  }) // prettier-ignore
  const repositories = new Map([['open', repository('open', true)], ['shut', repository('shut', false)]]) // prettier-ignore
  const users = new Map<string, User>([
    ['admin', { name: 'admin', passwordHash: 'root-root', admin: true }],
    ['ann', { name: 'ann', passwordHash: 'ann-secret', admin: false }],
  ])
  const world: Omit<World, 'api' | 'call'> = {
    repositories, users, audit: [], announced: [], changes: [], logged: [], jobStore: new MemoryJobStore(), fault: undefined,
    disarmed: undefined, trash: [], policies: new Map(), repairs: nothingToRepair, collectionAges: { minAgeMs: 1, holdMs: 2 }, map: undefined,
  } // prettier-ignore
  const found = (name: string): Repository => {
    const one = repositories.get(name)
    if (one === undefined) throw new HoldfastError('REPOSITORY_NOT_FOUND', 'none')
    return one
  }
  const metadata: ApiDeps['metadata'] = {
    createRepository: async change => {
      if (repositories.has(change.name)) throw new HoldfastError('CONFLICT', 'the name is taken')
      const made = { ...repository(change.name, false), ...change }
      repositories.set(change.name, made)
      return made
    },
    changeRepository: async (name, change, force = false) => {
      if (name === 'full' && change.upstream != null && !force) throw new HoldfastError('CONFLICT', 'not empty')
      const changed = { ...found(name), ...change }
      repositories.set(name, changed)
      return changed
    },
    deleteRepository: async name => {
      found(name)
      repositories.delete(name)
    },
    findUser: async name => users.get(name),
    putUser: async user => void users.set(user.name, user),
    audit: async entry => {
      if (world.fault !== undefined) throw world.fault
      world.audit.push(entry)
    },
    listAudit: async (before, limit) =>
      world.audit
        .map((entry, index) => ({ ...entry, id: index + 1, at: 1_000 * index }))
        .filter(({ id }) => id < before)
        .toReversed()
        .slice(0, limit),
  }
  const shown = ({ repository: { name }, path }: ArtifactPlace): string => `${name}/${path}`
  const authenticator = new Authenticator({
    metadata,
    passwords: { verify: async (phc, password) => phc === password },
    limiter: new LoginLimiter(() => 0),
    now: () => 0,
  })
  const api = await buildApi({
    authenticator,
    addressOf: () => '192.0.2.1',
    passwords: { hash: async password => password },
    metadata,
    repositories: { all: async () => repositories },
    artifacts: {
      deleteArtifact: async (place, user) => void world.changes.push(['delete', shown(place), user]),
      deleteFolder: async (place, user, confirmed) => {
        if (shown(place).endsWith('/many/') && confirmed !== 5_000) {
          throw new HoldfastError('CONFLICT', 'many', { confirm: 5_000 })
        }
        if (shown(place).endsWith('/nope/')) throw new HoldfastError('ARTIFACT_NOT_FOUND', 'nothing there')
        return world.changes.push(['delete folder', shown(place), user])
      },
      transfer: async (kind, from, to, user) => world.changes.push([kind, shown(from), shown(to), user]),
    },
    trash: {
      list: async (place, after) => {
        world.changes.push(['list trash', shown(place), after])
        return after === undefined ? world.trash : []
      },
      restore: async (place, user, overwrite) => {
        world.changes.push(['restore', shown(place), user, overwrite])
        if (world.trash.length === 0) return { restored: 0, refused: 0, refusals: [] }
        return { restored: world.trash.length, refused: 1, refusals: [{ path: 'x', reason: 'exists' }] }
      },
      purge: async place => {
        world.changes.push(['purge', shown(place)])
        return world.trash.length
      },
    },
    cleanup: {
      listPolicies: async () => [...world.policies.values()],
      createPolicy: async policy => {
        if (world.policies.has(policy.name)) throw new HoldfastError('CONFLICT', 'the name is taken')
        world.policies.set(policy.name, policy)
      },
      changePolicy: async policy => void world.policies.set(policy.name, policy),
      deletePolicy: async name => world.policies.delete(name),
    },
    previewCleanup: async ({ name }) => {
      return { artifacts: 3, bytes: 2_048, first: [`open/${name}`], examined: 9, complete: false }
    },
    tasks: new JobControl(world.jobStore, tasks),
    restores: {
      begin: async () => 'begun',
      addUsers: async added => added.map(({ name }) => name),
      setHistory: async artifacts => artifacts.length,
      end: async () => undefined,
    },
    backups: { list: async () => ({ backups: [backupSummary], damaged: [{ id: '20260301t000000z-2', why: 'torn' }] }) },
    topology: {
      show: notHere,
      plan: notHere,
      apply: notHere,
      pause: notHere,
      resume: notHere,
      abort: notHere,
    },
    collection: {
      disarmed: async () => world.disarmed,
      disarm: async (reason, by) => void (world.disarmed ??= { reason, by, at: 1 }),
      arm: async () => void (world.disarmed = undefined),
      counted: async () => ({ at: 7, blobs: 3, bytes: 15, ageMs: 1, incarnation: 'one' }),
      explain: async digest => {
        if (!digest.startsWith('a')) return undefined
        return {
          digest,
          bytes: 5,
          verdict: 'referenced',
          createdAt: 1,
          since: 1,
          references: ['open/a'],
          trash: [],
          pins: 0,
        }
      },
    },
    collectionAges: world.collectionAges,
    inspection: {
      verify: async (one, path) => ({
        repository: one.name, path, version: 1, partition: 1, copiesWanted: 0, copies: [], references: [], healthy: true,
        blob: { digest: 'd' as Digest, generation: 'g' as Generation, partition: 1, bytes: 1 },
      }), // prettier-ignore
      dispersion: async () => ({
        replicas: 3, blobs: 0, byCopies: [], byZones: [], unknown: 0, spread: 0, whole: 0, unsettled: 0,
      }), // prettier-ignore
      fsck: async (mark, repair) => {
        if (repair) world.changes.push(['fsck', mark])
        return { paths: 0, blobs: 0, findings: [], unreachable: [], queued: 0, unsettled: 0 }
      },
    },
    repairs: {
      progress: async () => world.repairs,
      runNow: async () => world.changes.push(['repairs now']),
    },
    scrubs: {
      status: async () => [{ node: 'n', shard: 's' as ShardId, state: 'waiting', losses: 0 }],
      command: async (action, target) => {
        world.changes.push(['scrub', action, target])
        return [{ node: 'n', shard: 's' as ShardId, state: 'paused', losses: 0 }]
      },
    },
    announce: async keys => {
      world.announced.push(...keys)
      for (const key of keys) if (key.startsWith('!user/')) authenticator.forget(key.slice(6))
    },
    status: async () => {
      if (world.fault !== undefined) throw world.fault
      return status
    },
    clusterMap: () => world.map,
    log: { error: (facts: unknown) => world.logged.push(facts), warn: () => undefined },
    version: '1',
  })
  t.teardown(() => api.close())
  const call: World['call'] = (method, path, body, headers = admin) =>
    api.inject({
      method,
      url: '/api/v1' + path,
      headers: { ...headers },
      ...(body === undefined ? {} : { payload: body as object }),
    })
  return Object.assign(world, { api, call })
}

const notHere = async (): Promise<never> => {
  throw new HoldfastError('NOT_FOUND', 'no topology here')
}
