/** fsck and dispersion while owners change, with shards that are a set each: what moves is no loss, and what is lost is found. */
import t from 'tap'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { dispersion } from '../../../proxy/inspection/dispersion.ts'
import { fsckPage } from '../../../proxy/inspection/fsck.ts'
import type { InspectionDeps } from '../../../proxy/inspection/types.ts'
import type { InspectedArtifact } from '../../../proxy/metadata/types.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { ClusterMap } from '../../../shared/cluster-map.ts'
import type { Digest, Generation, ShardId } from '../../../shared/ids.ts'
import { partitionOf } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { type TouchRequest, type VersionsRequest, wirePath } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

const before = buildClusterMap(topologyOf(evenSpec(4, 3)))
const drained = planChanges(before, [{ op: 'weight', shard: 'n3-s0', weight: 0 }]).next

/** A path whose partition moves by this map. */
function movingPath(map: ClusterMap): string {
  const view = new ClusterView(map).current()
  for (let at = 0; ; at += 1) {
    if (view.previousOwners(partitionOf('raw', `p/${at}`)) !== undefined) return `p/${at}`
  }
}

/** One artifact, whose bytes and reference are on these shards; `silent` ones do not answer. */
function world(map: ClusterMap, path: string, holders: readonly ShardId[], silent: readonly ShardId[] = []) {
  const view = new ClusterView(map)
  const partition = partitionOf('raw', path)
  const blob = { digest: 'd' as Digest, generation: 'g' as Generation, partition, bytes: 1, md5: '', sha1: '', state: 'live' as const } // prettier-ignore
  const row = { repositoryId: 1, repository: 'raw', path, version: 5, live: true, ageMs: 60_000, blob } as unknown as InspectedArtifact // prettier-ignore
  const repairs: unknown[] = []
  const answer = (shard: ShardId, url: string, body: unknown): unknown => {
    if (silent.includes(shard)) throw new HoldfastError('NODE_UNREACHABLE', 'away')
    const has = holders.includes(shard)
    if (url === wirePath.touch) return { results: (body as TouchRequest).items.map(() => (has ? 'held' : 'missing')) }
    return { versions: (body as VersionsRequest).references.map(() => (has ? 5 : null)) }
  }
  const deps = {
    view,
    health: { state: () => 'up', shardState: () => 'ok' },
    log: { debug: () => {} },
    metadata: {
      pageOfReferences: async () => Promise.resolve([row]),
      pageOfBlobs: async () => Promise.resolve([blob]),
      addRepairs: async (entries: readonly unknown[]) => Promise.resolve(void repairs.push(...entries)),
    },
    clients: {
      ofShard: (shard: ShardId) => ({
        requestJson: async (_: string, url: string, body: unknown) => Promise.resolve().then(() => answer(shard, url, body)), // prettier-ignore
      }),
    },
  } as unknown as InspectionDeps
  return { deps, repairs, view: view.current(), partition }
}

t.test('copies on old owners count until the partition is settled; what is lost is found meanwhile', async t => {
  const path = movingPath(drained)
  const { view, partition } = world(drained, path, [])
  const [old, added] = [view.previousOwners(partition)!, view.owners(partition).filter(one => !view.previousOwners(partition)!.includes(one))] // prettier-ignore
  t.ok(old.length === 3 && added.length === 1)
  const unsettled = view.unsettled().length
  const calm = { findings: [], unreachable: [], queued: 0, unsettled }
  const whole = { blobs: 1, whole: 1, spread: 1, byCopies: [0, 0, 0, 1], unsettled }

  const asBefore = world(drained, path, old)
  t.match(await fsckPage(asBefore.deps, '', true), calm, 'nothing has moved yet')
  t.match(await dispersion(asBefore.deps, ''), whole)
  const copied = world(drained, path, [...old, ...added])
  t.match(await fsckPage(copied.deps, '', true), calm, 'on both')
  t.match(await dispersion(copied.deps, ''), whole)
  const written = world(drained, path, view.owners(partition))
  t.match(await fsckPage(written.deps, '', true), calm, 'written since')
  t.same([...asBefore.repairs, ...copied.repairs, ...written.repairs], [])

  const lost = world(drained, path, old.slice(1))
  const findings = [
    { problem: 'too-few-references', partition },
    { problem: 'too-few-copies', partition },
  ]
  t.match(await fsckPage(lost.deps, '', true), { findings, queued: 2 })
  t.match(lost.repairs, [{ kind: 'reference' }, { kind: 'blob' }])
  t.match(await dispersion(lost.deps, ''), { whole: 0, byCopies: [0, 0, 1, 0] })
  const gone = world(drained, path, [])
  t.match(await fsckPage(gone.deps, '', false), { findings: [{}, { problem: 'reference-without-bytes' }] })
  const away = world(drained, path, old.slice(1), old.slice(0, 1))
  t.match(await fsckPage(away.deps, '', false), { findings: [], unreachable: [old[0]] }, 'it may have it')
})

t.test('where nothing moves, each owner must have its copy', async t => {
  const { view, partition } = world(before, 'a', [])
  const owners = view.owners(partition)
  t.match(await fsckPage(world(before, 'a', owners).deps, '', false), { findings: [], unsettled: 0 })
  const { deps } = world(before, 'a', owners.slice(1))
  const found = { findings: [{ shards: [owners[0]] }, { shards: [owners[0]] }] }
  t.match(await fsckPage(deps, '', false), found)
  t.match(await dispersion(deps, ''), { whole: 0, unsettled: 0 })
})

t.test('while everything gets another number of copies, the smaller one is enough for what is not settled', async t => {
  for (const replicas of [2, 4]) {
    const { next } = planChanges(before, [{ op: 'replicas', replicas }])
    const path = movingPath(next)
    const { view, partition } = world(next, path, [])
    const { deps } = world(next, path, view.previousOwners(partition)!)
    t.match(await fsckPage(deps, '', false), { findings: [], unsettled: Number })
    t.match(await dispersion(deps, ''), { whole: 1, spread: 1 })
  }
})
