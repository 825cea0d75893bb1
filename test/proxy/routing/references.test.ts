import t from 'tap'
import type { Digest, Generation, ShardId } from '../../../shared/ids.ts'
import { partitionOf } from '../../../shared/partition.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { judge } from '../../../proxy/routing/reference-store.ts'
import { startWriteCluster } from '../../support/write-cluster.ts'

const reference = (path: string, version: number, op: 'put' | 'delete' = 'put'): ReferenceRecord => ({
  kind: 'reference',
  partition: partitionOf('repo', path),
  repository: 'repo',
  path,
  op,
  version,
  incarnation: 'db-1',
  time: 1,
  user: 'somebody',
  ...(op === 'delete'
    ? {}
    : {
        blob: {
          digest: 'd'.repeat(64) as Digest,
          generation: 'abcdefghijkl' as Generation,
          partition: 7,
          bytes: 3,
          md5: 'm',
          sha1: 's',
        },
      }),
})

t.test('I3: a reference is on a majority of the owners, and the newest one is found from any majority', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a'])
  const path = 'some/path with ünïcode & more'
  t.same(await cluster.references.append(reference(path, 1)), { missing: [] })
  const owners = cluster.view.current().owners(partitionOf('repo', path))
  t.equal(cluster.nodes.flatMap(node => [...node.references]).length, 3)
  t.match(await cluster.references.newest('repo', path), { version: 1 })

  cluster.node(owners[0] as ShardId).die()
  const second = await cluster.references.append(reference(path, 2))
  t.same(second.missing, [owners[0]])
  await cluster.node(owners[0] as ShardId).start()
  cluster.node(owners[1] as ShardId).die()
  t.match(await cluster.references.newest('repo', path), { version: 2 }, 'although one owner knows only the old one')

  t.equal(await cluster.references.newest('repo', 'never there'), undefined)
  cluster.node(owners[2] as ShardId).die()
  await t.rejects(cluster.references.newest('repo', path), { code: 'REPLICAS_UNREACHABLE' })
})

t.test('I16: a deletion wins over the older reference that an owner still has', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  await cluster.references.append(reference('x', 1))
  const [away] = cluster.view.current().owners(partitionOf('repo', 'x'))
  cluster.node(away as ShardId).die()
  await cluster.references.append(reference('x', 2, 'delete'))
  await cluster.node(away as ShardId).start()
  t.equal(await cluster.references.newest('repo', 'x'), undefined)
})

t.test('I3: with too few owners and no handoff the append is refused; handoffs count', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  cluster.nodes[0]?.die()
  cluster.nodes[1]?.die()
  await t.rejects(cluster.references.append(reference('x', 1)), { code: 'QUORUM_NOT_REACHED' })
  const larger = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b'])
  const owners = larger.view.current().owners(partitionOf('repo', 'x'))
  for (const owner of owners.slice(0, 2)) larger.node(owner).die()
  const { missing } = await larger.references.append(reference('x', 1))
  t.same([...missing].sort(), owners.slice(0, 2).sort())
  t.ok(larger.nodes.flatMap(node => [...node.references]).length >= 2)
})

t.test('I16: a deletion that two handoffs took is found, wherever in the ring they are', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c', 'a', 'b', 'c', 'a', 'b', 'c'])
  for (let path = 0; path < 24; path += 1) {
    const name = `x${path}`
    await cluster.references.append(reference(name, 1))
    const owners = cluster.view.current().owners(partitionOf('repo', name))
    const away = [owners[path % 3]!, owners[(path + 1) % 3]!]
    for (const owner of away) cluster.node(owner).die()
    await cluster.references.append(reference(name, 2, 'delete'))
    for (const owner of away) await cluster.node(owner).start()
    const told = owners.find(owner => !away.includes(owner))!
    cluster.node(told).die()
    t.equal(await cluster.references.newest('repo', name), undefined, name)
    await cluster.node(told).start()
  }
})

t.test('I30: a frozen owner delays neither the append nor the lookup by a second', async t => {
  const cluster = await startWriteCluster(t, ['a', 'b', 'c'])
  const [frozen] = cluster.view.current().owners(partitionOf('repo', 'x'))
  cluster.node(frozen as ShardId).freeze()
  const startedAt = performance.now()
  t.same((await cluster.references.append(reference('x', 1))).missing, [frozen])
  t.match(await cluster.references.newest('repo', 'x'), { version: 1 })
  t.ok(performance.now() - startedAt < 1_000)
})

t.test('I7: with R = 2 one owner suffices to find a reference, two to say that there is none', async t => {
  const [a, b] = ['a', 'b'] as unknown as [ShardId, ShardId]
  t.match(judge(new Map([[a, reference('x', 1)]]), [a, b], 1), { version: 1 })
  t.throws(() => judge(new Map([[a, 'none']]), [a, b], 1), { code: 'REPLICAS_UNREACHABLE' })
  t.equal(
    judge(
      new Map([
        [a, 'none'],
        [b, 'none'],
      ]),
      [a, b],
      1,
    ),
    undefined,
  )
  t.equal(judge(new Map([[a, reference('x', 2, 'delete')]]), [a, b], 1), undefined)
})
