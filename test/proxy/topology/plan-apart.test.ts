import t from 'tap'
import { abortApart, planApart, swapsApart } from '../../../proxy/topology/plan-apart.ts'
import { partitionCount } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges, type TopologyChange } from '../../../shared/placement/changes.ts'
import { proposeSwaps } from '../../../shared/placement/swaps.ts'
import { abortTransition } from '../../../shared/placement/transition.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

const map = buildClusterMap(topologyOf(evenSpec(6, 3)))
const drain: readonly TopologyChange[] = [{ op: 'weight', shard: 'n0-s0', weight: 0 }]

t.test('a plan made apart is the plan, and the caller goes on with its work meanwhile', async t => {
  let turns = 0
  let done = false
  const count = (): void => void (done || (turns++, setImmediate(count)))
  count()
  const plan = await planApart(map, drain)
  done = true
  t.same(plan, planChanges(map, drain))
  t.ok(turns > 10, `${turns} turns of the event loop`)
})

t.test('so are swaps', async t => {
  const bytes = Float64Array.from({ length: partitionCount }, (_, partition) => (partition % 7 === 0 ? 9e6 : 1e6))
  t.same(await swapsApart(map, [], bytes), proposeSwaps(map, bytes, new Set()))
})

t.test('so is the way back', async t => {
  const begun = planChanges(map, [{ op: 'replicas', replicas: 2 }]).next
  t.same(await abortApart(begun), abortTransition(begun))
  await t.rejects(abortApart(map), { code: 'CONFLICT', message: /no change of topology/ })
})

t.test('a change that cannot be made is refused with the same words', async t => {
  const unknown: readonly TopologyChange[] = [{ op: 'remove-shard', shard: 'nobody' }]
  t.throws(() => planChanges(map, unknown), { code: 'NOT_FOUND' })
  await t.rejects(planApart(map, unknown), { code: 'NOT_FOUND', message: /nobody/ })
})
