import fc from 'fast-check'
import type { MapNode, MapShard } from '../../shared/cluster-map.ts'
import { parseNodeId, parseShardId, parseZone } from '../../shared/ids.ts'
import type { Topology } from '../../shared/placement.ts'

/** A node in words: `weights` are those of its shards. */
export interface NodeSpec {
  readonly name: string
  readonly zone: string
  readonly weights: readonly number[]
}

export interface Spec {
  readonly replicas: number
  readonly spread: Topology['spread']
  readonly nodes: readonly NodeSpec[]
}

export function topologyOf({ replicas, spread, nodes }: Spec): Topology {
  return {
    clusterId: 'test',
    replicas,
    spread,
    nodes: nodes.map(({ name, zone }, index): MapNode => ({
      id: known(parseNodeId(name)),
      zone: known(parseZone(zone)),
      url: `http://10.0.0.1:${9000 + index}`,
    })),
    shards: nodes.flatMap(({ name, weights }) =>
      weights.map((weight, index): MapShard => ({
        id: known(parseShardId(`${name}-s${index}`)),
        node: known(parseNodeId(name)),
        weight,
      })),
    ),
  }
}

/** `count` nodes named n0, n1… in zones z0, z1… by turns, one shard of weight 1 each. */
export function evenSpec(count: number, zones: number, replicas = 3): Spec {
  const nodes = Array.from({ length: count }, (_, i) => ({ name: `n${i}`, zone: `z${i % zones}`, weights: [1] }))
  return { replicas, spread: 'strict', nodes }
}

const weights = fc.array(fc.constantFrom(1, 1, 1, 2, 0.5, 1.25, 0), { minLength: 1, maxLength: 3 })
const zone = fc.constantFrom('za', 'zb', 'zc', 'zd')

/** One change of a topology, applied to whatever there is. `pick` chooses among the nodes. */
export type Change =
  | { readonly kind: 'add'; readonly zone: string; readonly weights: readonly number[] }
  | { readonly kind: 'remove' | 'drain'; readonly pick: number }
  | { readonly kind: 'reweight'; readonly pick: number; readonly weights: readonly number[] }
  | { readonly kind: 'rezone'; readonly pick: number; readonly zone: string }
  | { readonly kind: 'replicas'; readonly replicas: number }
  | { readonly kind: 'spread'; readonly spread: Topology['spread'] }

export const change: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ kind: fc.constant('add' as const), zone, weights }),
  fc.record({ kind: fc.constantFrom('remove' as const, 'drain' as const), pick: fc.nat(99) }),
  fc.record({ kind: fc.constant('reweight' as const), pick: fc.nat(99), weights }),
  fc.record({ kind: fc.constant('rezone' as const), pick: fc.nat(99), zone }),
  fc.record({ kind: fc.constant('replicas' as const), replicas: fc.integer({ min: 1, max: 5 }) }),
  fc.record({ kind: fc.constant('spread' as const), spread: fc.constantFrom('strict' as const, 'balanced' as const) }),
)

export const spec: fc.Arbitrary<Spec> = fc
  .record({
    replicas: fc.integer({ min: 1, max: 5 }),
    spread: fc.constantFrom('strict' as const, 'strict' as const, 'balanced' as const),
    nodes: fc.array(fc.record({ zone, weights }), { minLength: 1, maxLength: 9 }),
  })
  .map(({ replicas, spread, nodes }) => ({
    replicas,
    spread,
    nodes: nodes.map((node, i) => ({ ...node, name: `n${i}`, weights: i === 0 ? [1] : node.weights })),
  }))

/** The topology after the change; the same one when the change would leave no shard to fill. `serial` names new nodes. */
export function applyChange(before: Spec, change: Change, serial: number): Spec {
  const after = changed(before, change, serial)
  return after.nodes.some(node => node.weights.some(weight => weight > 0)) ? after : before
}

function changed(before: Spec, change: Change, serial: number): Spec {
  const at = 'pick' in change ? change.pick % before.nodes.length : -1
  const replace = (edit: (node: NodeSpec) => NodeSpec): Spec => ({
    ...before,
    nodes: before.nodes.map((node, index) => (index === at ? edit(node) : node)),
  })
  switch (change.kind) {
    case 'add':
      return { ...before, nodes: [...before.nodes, { ...change, name: `x${serial}` }] }
    case 'remove':
      return { ...before, nodes: before.nodes.filter((_, index) => index !== at) }
    case 'drain':
      return replace(node => ({ ...node, weights: node.weights.map((weight, i) => (i === 0 ? 0 : weight)) }))
    case 'reweight':
      return replace(node => ({ ...node, weights: change.weights }))
    case 'rezone':
      return replace(node => ({ ...node, zone: change.zone }))
    case 'replicas':
      return { ...before, replicas: change.replicas }
    case 'spread':
      return { ...before, spread: change.spread }
  }
}

/** fast-check's settings: `runs` kept small, since every run plans whole tables; a failure prints its seed. */
export function settings<Values>(runs: number): fc.Parameters<Values> {
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 2 ** 31)
  return { numRuns: runs, seed }
}

export function known<Value>(value: Value | undefined): Value {
  if (value === undefined) throw new Error('the test is wrong: a value it relies on is missing')
  return value
}
