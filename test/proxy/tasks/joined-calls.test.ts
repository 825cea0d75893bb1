/** Questions that go together: everybody gets his own answers, and nobody waits for ever. */
import { setImmediate } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import { JoinedCalls } from '../../../proxy/tasks/joined-calls.ts'

const seed = Date.now() & 0x7fffffff
t.comment(`seed ${seed}`)

/** Turns come when the test gives them. */
function world(costMax = 10) {
  const turns: (() => void)[] = []
  const calls: { readonly key: string; readonly items: readonly number[] }[] = []
  const facts = { refusal: undefined as Error | undefined, failure: undefined as Error | undefined, waiting: true }
  const joined = new JoinedCalls<string, number, string>({
    call: async (key, items) => {
      calls.push({ key, items: [...items] })
      await setImmediate()
      if (facts.failure !== undefined) throw facts.failure
      return items.map(item => `${key}${item}`)
    },
    turn: async (_key, work) => {
      if (facts.waiting) await new Promise<void>(resolve => turns.push(resolve))
      if (facts.refusal !== undefined) throw facts.refusal
      return work()
    },
    costOf: item => item,
    costMax,
  })
  return { joined, turns, calls, facts }
}

t.test('what waits for its turn takes along what comes meanwhile, up to what goes together, key by key', async t => {
  const { joined, turns, calls } = world()
  const answers = [joined.ask('a', [1, 2]), joined.ask('a', [3]), joined.ask('b', [4]), joined.ask('a', [7]), joined.ask('a', [30])] // prettier-ignore
  t.equal(turns.length, 3, 'two of a key wait for a turn at once')
  turns.shift()!()
  await setImmediate()
  t.same(calls, [{ key: 'a', items: [1, 2, 3] }])
  const late = joined.ask('a', [2])
  while (calls.length < 4) {
    turns.shift()?.()
    await setImmediate()
  }
  t.same(await Promise.all(answers), [['a1', 'a2'], ['a3'], ['b4'], ['a7'], ['a30']])
  t.same(calls.slice(1).map(({ items }) => items), [[4], [7], [30]]) // prettier-ignore
  while (calls.length < 5) {
    turns.shift()?.()
    await setImmediate()
  }
  t.same(await late, ['a2'], 'a call that has begun takes nobody along')
})

t.test('a failure is that of all who went together, and of nobody else', async t => {
  const { joined, facts, calls } = world()
  facts.waiting = false
  facts.failure = new Error('no')
  const both = [joined.ask('a', [1]), joined.ask('a', [2])]
  for (const one of both) await t.rejects(one, /no/)
  facts.failure = undefined
  t.same(await joined.ask('a', [3]), ['a3'])
  facts.refusal = new Error('the run has ended')
  await t.rejects(joined.ask('a', [4]), /the run has ended/)
  facts.refusal = undefined
  t.same(await joined.ask('a', [5]), ['a5'], 'who never had a turn keeps nobody waiting')
  t.same(await joined.ask('a', []), [])
  t.equal(calls.flatMap(({ items }) => items).includes(4), false)
})

t.test('whoever asks whatever and whenever, each is asked for once, and gets its own answers', async t => {
  const asks = fc.array(
    fc.record({
      key: fc.constantFrom('a', 'b'),
      items: fc.array(fc.integer({ min: 1, max: 12 }), { maxLength: 5 }),
      pause: fc.boolean(),
    }),
    { maxLength: 30 },
  )
  await t.resolves(
    fc.assert(
      fc.asyncProperty(asks, fc.integer({ min: 1, max: 20 }), async (list, costMax) => {
        const { joined, calls, facts } = world(costMax)
        facts.waiting = false
        const answers: Promise<readonly string[]>[] = []
        for (const { key, items, pause } of list) {
          answers.push(joined.ask(key, items))
          if (pause) await setImmediate()
        }
        const found = await Promise.all(answers)
        const isRight = list.every(({ key, items }, at) => found[at]!.join() === items.map(item => `${key}${item}`).join()) // prettier-ignore
        const cost = (items: readonly number[]): number => items.reduce((sum, one) => sum + one, 0)
        const largest = Math.max(costMax, ...list.map(({ items }) => cost(items)))
        const asked = calls.reduce((sum, { items }) => sum + items.length, 0)
        return isRight && asked === list.flatMap(({ items }) => items).length && calls.every(one => cost(one.items) <= largest) // prettier-ignore
      }),
      { seed, numRuns: 500 },
    ),
  )
})
