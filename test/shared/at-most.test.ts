import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { atMost } from '../../shared/at-most.ts'

t.test('no more than so many at once, and results in the order of the items', async t => {
  let [underWay, most] = [0, 0]
  const results = await atMost(3, [5, 1, 4, 2, 3, 0], async item => {
    most = Math.max(most, ++underWay)
    for (let turns = 0; turns < item; turns += 1) await turn()
    underWay -= 1
    return item * 2
  })
  t.same(results, [10, 2, 8, 4, 6, 0])
  t.equal(most, 3)
  t.same(await atMost(3, [], async () => Promise.resolve(1)), [])
})

t.test(
  'after a failure nothing more is begun, what is under way is awaited, and the first failure is thrown',
  async t => {
    const [begun, ended]: [number[], number[]] = [[], []]
    const work = async (item: number): Promise<void> => {
      begun.push(item)
      for (let turns = 0; turns < item; turns += 1) await turn()
      ended.push(item)
      throw new Error(`failed: ${item}`)
    }
    await t.rejects(atMost(3, [9, 2, 5, 1, 1], work), { message: 'failed: 2' })
    t.same(begun, [9, 2, 5])
    t.same(ended, [2, 5, 9], 'nothing goes on behind the back of the caller')
    const soon = atMost(2, [1, 2], item => {
      throw new Error(`at once: ${item}`)
    })
    await t.rejects(soon, { message: 'at once: 1' })
  },
)
