import fc from 'fast-check'
import t from 'tap'
import { Ring, type RingMember } from '../../shared/ring.ts'
import { settings } from './topologies.ts'

const members = (count: number): RingMember[] => Array.from({ length: count }, (_, i) => ({ id: `n${i}`, weight: 1 }))
const names = (ring: Ring, list: readonly RingMember[], partition: number) =>
  ring.order(partition).map(index => list[index]?.id)

t.test('I17: ring order does not depend on the order in which members are given', async t => {
  const parameters = settings<[RingMember[], RingMember[]]>(40)
  t.comment(`seed ${parameters.seed}`)
  const ids = fc.uniqueArray(fc.stringMatching(/^[a-z0-9][a-z0-9.-]{0,9}$/), { minLength: 1, maxLength: 12 })
  const shuffled = ids.chain(ids => {
    const list = ids.map((id, i) => ({ id, weight: 1 + (i % 3) }))
    return fc.tuple(fc.constant(list), fc.shuffledSubarray(list, { minLength: list.length }))
  })
  fc.assert(
    fc.property(shuffled, ([list, other]) => {
      const [a, b] = [new Ring(list), new Ring(other)]
      for (const partition of [0, 1, 77, 4095]) {
        if (String(names(a, list, partition)) !== String(names(b, other, partition))) throw new Error('differs')
      }
    }),
    parameters as object,
  )
})

t.test('I17: nor when so many points collide that thousands are probed past', async t => {
  const list = members(1_000)
  const other = list.toReversed()
  const [a, b] = [new Ring(list), new Ring(other)]
  for (const partition of [3, 1000, 4000]) t.strictSame(names(b, other, partition), names(a, list, partition))
})

t.test('an order names every member once, a short one is its beginning, and sort follows it', async t => {
  const list = members(40)
  const ring = new Ring(list)
  for (let partition = 0; partition < 4096; partition += 37) {
    const order = ring.order(partition)
    t.equal(new Set(order).size, 40)
    t.strictSame(ring.order(partition, 7), order.slice(0, 7))
    t.strictSame(ring.order(partition, 99), order)
    const some = [39, 3, 17]
    t.strictSame(
      ring.sort(partition, some),
      order.filter(member => some.includes(member)),
    )
  }
  t.strictSame(new Ring([]).order(0), [])
})

t.test('a member that leaves changes nothing about the order of the others', async t => {
  const list = members(12)
  const ring = new Ring(list)
  const rest = list.filter(({ id }) => id !== 'n4')
  const without = new Ring(rest)
  let same = 0
  for (let partition = 0; partition < 4096; partition += 1) {
    const expected = names(ring, list, partition).filter(id => id !== 'n4')
    if (String(names(without, rest, partition)) === String(expected)) same += 1
  }
  // A probed collision may shift a point by one slot; that reaches a handful of partitions at most.
  t.ok(same > 4096 * 0.99, `${same} of 4096`)
})

t.test('orders are known: another release that orders differently would scatter handoffs', async t => {
  const list = members(5)
  const ring = new Ring(list)
  t.strictSame(
    [0, 1, 2, 0xfff].map(partition => names(ring, list, partition).join(' ')),
    ['n0 n2 n3 n4 n1', 'n3 n2 n4 n0 n1', 'n4 n3 n0 n2 n1', 'n3 n1 n0 n2 n4'],
  )
})

t.test('first places follow the weights, roughly', async t => {
  const list = [
    { id: 'big', weight: 3000 },
    { id: 'small', weight: 1000 },
    { id: 'tiny', weight: 1 },
  ]
  const ring = new Ring(list)
  const first = Array.from({ length: 4096 }, (_, partition) => ring.order(partition, 1)[0])
  const share = first.filter(member => member === 0).length / 4096
  t.ok(share > 0.65 && share < 0.85, String(share))
})
