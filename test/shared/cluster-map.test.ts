import { createHash } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import {
  type ClusterMap,
  decodeClusterMap,
  encodeClusterMap,
  PlacementView,
  sealClusterMap,
} from '../../shared/cluster-map.ts'
import {
  isDigest,
  newGeneration,
  parseDigest,
  parseGeneration,
  parseNodeId,
  parseShardId,
  parseZone,
} from '../../shared/ids.ts'
import { parsePartition, partitionBits, partitionCount, partitionName, partitionOf } from '../../shared/partition.ts'
import { buildClusterMap } from '../../shared/placement.ts'
import { evenSpec, known, settings, spec, topologyOf } from './topologies.ts'

const even = (nodes: number, zones: number, weights = [1]) =>
  topologyOf({ ...evenSpec(nodes, zones), nodes: evenSpec(nodes, zones).nodes.map(node => ({ ...node, weights })) })

t.test('a map survives encoding, and equal maps give equal text', async t => {
  const parameters = settings(15)
  t.comment(`seed ${parameters.seed}`)
  fc.assert(
    fc.property(spec, spec => {
      const map = buildClusterMap(topologyOf(spec))
      const text = encodeClusterMap(map)
      const back = decodeClusterMap(text)
      t.strictSame(back, map)
      if (encodeClusterMap(back) !== text) throw new Error('not stable')
    }),
    parameters,
  )
})

t.test('a text with any flipped bit is refused with CLUSTER_MAP_INVALID', async t => {
  // One copy: its base64 ends in padding, where a careless decoder has several spellings of one table.
  const one = buildClusterMap(topologyOf({ ...evenSpec(3, 3, 1), nodes: evenSpec(3, 3).nodes }))
  for (const map of [one, buildClusterMap(even(4, 2, [0.3, 1.125]))]) {
    const bytes = Buffer.from(encodeClusterMap(map))
    const refused = (position: number, bit: number) => {
      const damaged = Buffer.from(bytes)
      damaged[position] = (damaged[position] ?? 0) ^ (1 << bit)
      try {
        decodeClusterMap(damaged.toString())
      } catch (error) {
        if ((error as { code?: string }).code === 'CLUSTER_MAP_INVALID') return
        throw error
      }
      throw new Error(`bit ${bit} of byte ${position} may flip unnoticed`)
    }
    // All bits of what surrounds the table and of its two ends; a sample of its middle, which is all alike.
    const table = bytes.indexOf('"table"')
    for (let position = 0; position < bytes.length; position += 1) {
      const middle = position > table + 40 && position < bytes.length - 140
      if (middle && position % 499 !== 0) continue
      for (let bit = 0; bit < 8; bit += 1) if (map === one || bit === position % 8) refused(position, bit)
    }
    t.pass()
  }
})

t.test('a truncated or extended text is refused', async t => {
  const text = encodeClusterMap(buildClusterMap(even(3, 3)))
  for (const length of [0, 1, 100, text.length - 1]) {
    t.throws(() => decodeClusterMap(text.slice(0, length)), { code: 'CLUSTER_MAP_INVALID' })
  }
  t.throws(() => decodeClusterMap(`${text}}`), { code: 'CLUSTER_MAP_INVALID' })
})

t.test('a well-sealed map that breaks a rule is refused, and the error names the rule', async t => {
  const map = buildClusterMap(even(4, 2))
  const first = known(map.shards[0])
  const refused = (change: Partial<Record<keyof ClusterMap, unknown>>, message: RegExp) => {
    const sealed = sealClusterMap({ ...map, ...change } as ClusterMap)
    t.throws(() => decodeClusterMap(encodeClusterMap(sealed)), { code: 'CLUSTER_MAP_INVALID', message })
  }
  const table = (edit: (table: Uint16Array) => void) => {
    const copy = map.table.slice()
    edit(copy)
    return copy
  }
  refused({ format: 2 }, /format/)
  refused({ epoch: 0 }, /epoch/)
  refused({ epoch: 1.5 }, /epoch/)
  refused({ replicas: 17 }, /replicas/)
  refused({ spread: 'loose' }, /spread/)
  refused({ clusterId: 'a b' }, /clusterId/)
  refused({ copies: 2 }, /copies/)
  refused({ replicas: 2 }, /copies/)
  refused({ table: map.table.slice(3) }, /entries/)
  refused({ table: table(copy => (copy[7] = 4)) }, /shard index 4/)
  refused({ table: table(copy => (copy[1] = known(copy[0]))) }, /partition 0 is twice on node/)
  refused({ nodes: map.nodes.toReversed() }, /order/)
  refused({ shards: [first, ...map.shards] }, /twice/)
  refused({ nodes: map.nodes.slice(1) }, /unknown node/)
  refused({ nodes: map.nodes.map(node => ({ ...node, url: 'http://host:1/path' })) }, /url/)
  refused({ nodes: map.nodes.map(node => ({ ...node, id: '../n' })) }, /node id/)
  refused({ shards: map.shards.map(shard => ({ ...shard, weight: -1 })) }, /weight/)
  refused({ shards: map.shards.map(shard => ({ ...shard, weight: null })) }, /weight/)
})

t.test('unknown, missing and wrongly typed fields are refused', async t => {
  const fields = JSON.parse(encodeClusterMap(buildClusterMap(even(3, 3)))) as Record<string, unknown>
  for (const name of Object.keys(fields)) {
    const without = Object.fromEntries(Object.entries(fields).filter(([other]) => other !== name))
    t.throws(() => decodeClusterMap(JSON.stringify(without)), { code: 'CLUSTER_MAP_INVALID', message: /lacks/ })
    for (const value of [null, {}, [], 'x', -1, true]) {
      t.throws(() => decodeClusterMap(JSON.stringify({ ...fields, [name]: value })), { code: 'CLUSTER_MAP_INVALID' })
    }
  }
  t.throws(() => decodeClusterMap(JSON.stringify({ ...fields, more: 1 })), { code: 'CLUSTER_MAP_INVALID' })
  t.throws(() => decodeClusterMap('[]'), { code: 'CLUSTER_MAP_INVALID' })
  t.throws(() => decodeClusterMap('null'), { code: 'CLUSTER_MAP_INVALID' })
  const turned = Object.fromEntries(Object.entries(fields).toReversed())
  t.equal(decodeClusterMap(JSON.stringify(turned, null, 2)).epoch, 1, 'a store may reorder and indent fields')
})

t.test('a map that was changed without sealing is never written', async t => {
  t.throws(() => encodeClusterMap({ ...buildClusterMap(even(3, 3)), epoch: 9 }), { code: 'ERR_ASSERTION' })
})

t.test('a view answers what the table says', async t => {
  const map = buildClusterMap(even(6, 3, [1, 2]))
  const view = new PlacementView(map)
  for (let partition = 0; partition < partitionCount; partition += 1) {
    const expected = Array.from(map.table.slice(partition * 3, partition * 3 + 3), index => map.shards[index]?.id)
    if (String(view.owners(partition)) !== String(expected)) t.fail(`partition ${partition}`)
  }
  const shard = known(parseShardId('n4-s1'))
  t.equal(view.shard(shard).weight, 2)
  t.equal(view.node(shard).id, 'n4')
  t.equal(view.zone(shard), 'z1')
  t.ok(view.has('n4-s1'))
  t.notOk(view.has('n9-s1'))
  t.throws(() => view.shard(known(parseShardId('n9-s1'))), { code: 'ERR_ASSERTION' })
  t.throws(() => view.owners(partitionCount), { code: 'ERR_ASSERTION' })
})

t.test('handoffs: best shard of each other node first, no owner node, no drained shard, each once', async t => {
  const nodes = evenSpec(8, 4).nodes.map((node, i) => ({ ...node, weights: i === 7 ? [0, 1] : [1, 1, 1] }))
  const map = buildClusterMap(topologyOf({ ...evenSpec(8, 4), nodes }))
  const view = new PlacementView(map)
  for (let partition = 0; partition < partitionCount; partition += 101) {
    const owners = new Set(view.owners(partition).map(id => view.node(id).id))
    const handoffs = view.handoffs(partition)
    const usable = map.shards.filter(shard => shard.weight > 0 && !owners.has(shard.node)).map(shard => shard.id)
    t.strictSame([...handoffs].sort(), usable, 'all usable shards of the other nodes')
    t.equal(new Set(handoffs.slice(0, 5).map(id => view.node(id).id)).size, 5, 'first one per node')
    t.equal(view.handoffs(partition), handoffs, 'kept')
    const owner = known(view.owners(partition)[0])
    const siblings = map.shards.filter(s => s.weight > 0 && s.node === view.node(owner).id && s.id !== owner)
    t.strictSame(
      [...view.siblings(partition, owner)].sort(),
      siblings.map(({ id }) => id),
    )
  }
  const firsts = new Set(
    Array.from({ length: 200 }, (_, partition) => view.node(known(view.handoffs(partition)[0])).id),
  )
  t.equal(firsts.size, 8, 'the writes for a lost node spread over all others')
})

t.test('handoff lists evicted from the cache are found again, the same', async t => {
  const map = buildClusterMap(even(12, 3, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]))
  const view = new PlacementView(map)
  const all = Array.from({ length: partitionCount }, (_, partition) => view.handoffs(partition))
  const again = Array.from({ length: partitionCount }, (_, partition) => view.handoffs(partition))
  t.ok(
    all.some((list, partition) => list !== again[partition]),
    'the cache has a bound',
  )
  t.strictSame(again, all)
})

t.test('with as many nodes as copies there is no handoff, only siblings', async t => {
  const view = new PlacementView(buildClusterMap(even(3, 3, [1, 1])))
  t.strictSame(view.handoffs(5), [])
  t.equal(view.siblings(5, known(view.owners(5)[0])).length, 1)
})

t.test('ids: a short alphabet, no way out of a folder, lower-case digests only', async t => {
  for (const parse of [parseShardId, parseNodeId, parseZone]) {
    for (const good of ['a', 'n1', 'node-1.rack.2', 'a'.repeat(63)]) t.equal(parse(good), good)
    for (const bad of ['', '.', '..', 'a..b', '-a', 'A', 'a/b', 'a\n', 'ä', 'a b', 'a'.repeat(64)]) {
      t.equal(parse(bad), undefined, JSON.stringify(bad))
    }
  }
  const digest = createHash('sha256').digest('hex')
  t.equal(parseDigest(digest), digest)
  for (const bad of [digest.toUpperCase(), digest.slice(1), `${digest}\n`, `${digest}0`, '']) t.notOk(isDigest(bad))
  const generations = new Set(Array.from({ length: 1000 }, () => newGeneration()))
  t.equal(generations.size, 1000)
  for (const generation of generations) t.equal(parseGeneration(generation), generation)
  for (const bad of ['', 'a'.repeat(11), 'a'.repeat(13), 'A'.repeat(12), 'a/'.repeat(6)]) {
    t.equal(parseGeneration(bad), undefined)
  }
})

t.test('partitions: the first twelve bits of the hash, named by three hex digits', async t => {
  t.equal(2 ** partitionBits, partitionCount)
  fc.assert(
    fc.property(fc.string(), fc.string(), (repository, path) => {
      const bytes = createHash('sha256').update(`${repository}/${path}`).digest()
      return partitionOf(repository, path) === bytes.readUInt16BE(0) >> 4
    }),
  )
  for (let partition = 0; partition < partitionCount; partition += 1) {
    if (parsePartition(partitionName(partition)) !== partition) t.fail(String(partition))
  }
  t.equal(partitionName(0xa3), '0a3')
  for (const bad of ['', '0a', '0A3', '00a3', '0a3\n', '../', ' 12']) t.equal(parsePartition(bad), undefined)
})
