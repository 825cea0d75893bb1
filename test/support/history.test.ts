import fc from 'fast-check'
import t from 'tap'
import { checkRegister, History, type Operation } from './history.ts'

const put = (called: number, returned: number, sets: string): Operation => ({ called, returned, sets })
const get = (called: number, returned: number, value: string | null): Operation => ({
  called,
  returned,
  needs: value === null ? 'absent' : { value },
})

t.test('a read after a write that had returned must see it', async t => {
  t.equal(checkRegister([put(0, 1, 'a'), get(2, 3, 'a')]).linearizable, true)
  t.equal(checkRegister([put(0, 1, 'a'), get(2, 3, null)]).linearizable, false)
  t.equal(checkRegister([put(0, 1, 'a'), put(2, 3, 'b'), get(4, 5, 'a')]).linearizable, false)
})

t.test('a read during a write may see either value, but two reads in a row never go back', async t => {
  const before = [put(0, 1, 'a'), put(2, 10, 'b')]
  t.equal(checkRegister([...before, get(3, 4, 'a'), get(5, 6, 'b')]).linearizable, true)
  t.equal(checkRegister([...before, get(3, 4, 'b'), get(5, 6, 'a')]).linearizable, false)
})

t.test('a write without an answer may have happened, late, or not at all', async t => {
  const lost = put(2, Infinity, 'b')
  t.equal(checkRegister([put(0, 1, 'a'), lost, get(3, 4, 'a')]).linearizable, true)
  t.equal(checkRegister([put(0, 1, 'a'), lost, get(3, 4, 'a'), get(50, 51, 'b')]).linearizable, true)
  t.equal(checkRegister([put(0, 1, 'a'), lost, get(3, 4, 'b'), get(50, 51, 'a')]).linearizable, false)
  t.equal(checkRegister([get(0, 1, 'b'), lost]).linearizable, false)
})

t.test('a delete that found something needs something to be there', async t => {
  const deleted: Operation = { called: 2, returned: 3, needs: 'present', sets: null }
  t.equal(checkRegister([put(0, 1, 'a'), deleted, get(4, 5, null)]).linearizable, true)
  t.equal(checkRegister([deleted]).linearizable, false)
  t.equal(checkRegister([put(0, Infinity, 'a'), deleted]).linearizable, true)
})

t.test('a history names the path and the operation that nothing explains', async t => {
  const history = new History()
  history.record('raw/good', put(0, 1, 'a'))
  history.record('raw/bad', put(0, 1, 'a'))
  history.record('raw/bad', { ...get(2, 3, 'zzz'), note: 'GET' })
  t.match(history.problems(), [/^raw\/bad: holding a, .*GET needs zzz/])
  t.equal(history.problems().length, 1)
})

t.test(
  'a copy holds what its source held between call and return, through other copies too, and nothing else',
  async t => {
    const check = (...reads: [string, Operation][]): string[] => {
      const history = new History()
      history.record('a', put(0, 1, 'old'))
      history.record('a', put(2, 3, 'one'))
      history.recordCopy('a', 'b', { called: 4, returned: 8 })
      history.record('a', put(6, 7, 'two'))
      history.recordCopy('b', 'c', { called: 20, returned: 21 })
      history.recordCopy('c', 'b', { called: 30, returned: Infinity })
      history.recordCopy('empty', 'd', { called: 30, returned: Infinity })
      for (const [path, operation] of reads) history.record(path, operation)
      return history.problems()
    }
    t.same(check(['b', get(9, 10, 'one')], ['c', get(22, 23, 'one')]), [])
    t.same(check(['b', get(9, 10, 'two')], ['c', get(22, 23, 'two')], ['b', get(40, 41, 'two')], ['d', get(40, 41, null)]), []) // prettier-ignore
    t.match(check(['b', get(9, 10, 'old')]), [/^b: /], 'overwritten before the copy began')
    t.match(check(['b', get(9, 10, 'one')], ['b', get(11, 12, 'two')]), [/^b: /], 'one copy has one value')
    t.match(check(['c', get(22, 23, 'else')]), [/^c: /])
    t.match(check(['c', get(22, 23, null)]), [/^c: /])
    t.match(check(['d', get(31, 32, 'one')]), [/^d: /], 'nothing was ever there')
  },
)

t.test(
  'I3: a read from the shards knows what was acknowledged, of other writes perhaps less than PostgreSQL has told',
  async t => {
    const check = (second: Pick<Operation, 'returned'>, ...reads: Operation[]) => {
      const history = new History()
      history.record('a', { called: 0, returned: 1, sets: 'one' })
      history.record('a', { called: 2, sets: 'two', ...second })
      for (const read of reads) history.record('a', read)
      return { problems: history.problems().length, unseen: history.unseen }
    }
    const get = (called: number, value: string, weak = false): Operation => ({
      called,
      returned: called + 1,
      needs: { value },
      weak,
    })
    const lost = { returned: Infinity }
    t.same(check(lost, get(10, 'two'), get(12, 'one', true)), { problems: 0, unseen: 1 })
    t.same(check(lost, get(10, 'two'), get(12, 'one')), { problems: 1, unseen: 0 }, 'PostgreSQL forgets nothing')
    t.same(check({ returned: 3 }, get(10, 'two'), get(12, 'one', true)), { problems: 1, unseen: 0 }, 'acknowledged')
    t.same(check(lost, get(10, 'two'), get(12, 'else', true)), { problems: 1, unseen: 0 }, 'never written')
    t.same(check(lost, get(10, 'one', true), get(12, 'two')), { problems: 0, unseen: 0 })
    for (const unknown of [[], [{ called: 4, returned: Infinity, sets: 'three' }]]) {
      const history = new History()
      for (const sets of ['one', 'two']) history.record('a', { called: 0, returned: 5, sets })
      for (const operation of [...unknown, get(10, 'two'), get(12, 'one', true)]) history.record('a', operation)
      t.equal(history.problems().length, 1, 'the order of two acknowledged writes is one for all')
    }
  },
)

/** Runs a register for real, each operation taking effect somewhere between call and return. */
const runs = fc.array(
  fc.record({
    kind: fc.constantFrom('put', 'get', 'delete', 'lost'),
    at: fc.integer({ min: 0, max: 400 }),
    early: fc.integer({ min: 1, max: 40 }),
    late: fc.integer({ min: 1, max: 40 }),
  }),
  { maxLength: 40 },
)

type Step = { kind: string; at: number; early: number; late: number }

function simulate(run: readonly Step[]): Operation[] {
  let value: string | null = null
  return [...run]
    .sort((a, b) => a.at - b.at)
    .map(({ kind, at, early, late }, index): Operation => {
      const span = { called: at - early, returned: kind === 'lost' ? Infinity : at + late }
      if (kind === 'get') return { ...span, needs: value === null ? 'absent' : { value } }
      if (kind === 'delete') {
        const needs = value === null ? 'absent' : 'present'
        value = null
        return { ...span, needs, sets: null }
      }
      const sets = `v${index}`
      if (kind === 'put' || index % 2 === 0) value = sets
      return { ...span, sets }
    })
}

t.test('histories of a real register pass, and fail once a read is turned to a value that nobody wrote', async t => {
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 2 ** 31)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  fc.assert(
    fc.property(runs, run => {
      const operations = simulate(run)
      if (!checkRegister(operations).linearizable) throw new Error('a true history was refused')
      const reads = operations.filter(one => one.needs !== undefined && one.sets === undefined)
      const victim = reads[reads.length >> 1]
      if (victim === undefined) return
      const spoilt = operations.map(one => (one === victim ? { ...one, needs: { value: 'never' } } : one))
      if (checkRegister(spoilt).linearizable) throw new Error('a wrong read was accepted')
    }),
    { seed, numRuns: 300 },
  )
})
