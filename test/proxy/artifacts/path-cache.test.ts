import fc from 'fast-check'
import t from 'tap'
import { PathCache, type CachedPath } from '../../../proxy/artifacts/path-cache.ts'
import type { Artifact } from '../../../proxy/metadata/types.ts'

const at = (version: number): Artifact => ({ version }) as Artifact

t.test('a fill that began before an invalidation is answered, not kept', async t => {
  const cache = new PathCache({ entriesMax: 10 })
  const early = cache.ticket('a')
  const other = cache.ticket('b')
  cache.invalidate(['a'])
  const late = cache.ticket('a')
  t.equal(cache.store(early, at(1)).artifact?.version, 1, 'its own reader gets it')
  t.equal(cache.get('a'), undefined)
  cache.store(late, at(2))
  t.equal(cache.get('a')?.artifact?.version, 2)
  cache.invalidate('all')
  cache.store(other, at(3))
  t.equal(cache.get('b'), undefined, "'all' voids every ticket")
  cache.store(cache.ticket('b'), null)
  t.equal(cache.get('b')?.artifact, null, 'absence is remembered')
  t.same([cache.hits, cache.misses], [2, 2])
})

t.test('of two fills at once the newer state stays, in whatever order they come back', async t => {
  const cache = new PathCache({ entriesMax: 10 })
  const both = (first: Artifact | null, second: Artifact | null): CachedPath | undefined => {
    cache.invalidate('all')
    const [one, two] = [cache.ticket('a'), cache.ticket('a')]
    cache.store(one, first)
    cache.store(two, second)
    return cache.get('a')
  }
  t.equal(both(at(1), at(2))?.artifact?.version, 2)
  t.equal(both(at(2), at(1))?.artifact?.version, 2)
  t.equal(both(at(2), at(2))?.artifact?.version, 2)
  t.equal(both(at(1), null), undefined, 'which one is newer is not known: ask again')
  t.equal(both(null, at(1)), undefined)
})

t.test('its size is bounded, and so is what it knows of fills under way', async t => {
  const cache = new PathCache({ entriesMax: 100 })
  for (let i = 0; i < 1_000; i++) cache.store(cache.ticket(`k${i}`), null)
  t.equal(cache.size, 100)
  const ticket = cache.ticket('x')
  cache.release(ticket)
  cache.release(ticket)
  cache.store(ticket, at(1))
  t.equal(cache.get('x')?.artifact?.version, 1)
})

type Action = 'read' | 'put' | 'delete' | 'evict' | 'all'

/**
 * One worker, one path. PostgreSQL is a counter of states: each write makes the next one, which is an artifact or its absence. A read
 * goes to the cache, else asks: the question arrives, the answer comes back. A write takes effect at one moment, its worker hears of it
 * at another, invalidates and acknowledges. Each `yield` lets others go on; `order` says who. Now and then an entry is evicted.
 */
function staleReads(actions: readonly Action[], order: readonly number[]): readonly string[] {
  const cache = new PathCache({ entriesMax: 1 })
  const stateOf = new WeakMap<CachedPath, number>()
  let state = 0
  const states: (Artifact | null)[] = [null]
  /** No read that begins now may answer with an older state: that was acknowledged, or somebody has seen it. */
  let floor = 0
  const stale: string[] = []

  function* read(): Generator<void> {
    const least = floor
    let entry = cache.get('k')
    const source = entry === undefined ? 'asked for' : 'cached'
    if (entry === undefined) {
      const ticket = cache.ticket('k')
      yield
      const [seen, found] = [state, states[state] ?? null]
      yield
      entry = cache.store(ticket, found)
      stateOf.set(entry, seen)
    }
    const seen = stateOf.get(entry) ?? NaN
    // Nobody can tell one absence from another.
    const same = states[seen] === null && states[least] === null
    if (!(seen >= least) && !same) stale.push(`${source} ${seen} after ${least}`)
    floor = Math.max(floor, seen)
  }
  function* write(next: () => Artifact | null): Generator<void> {
    state++
    states.push(next())
    const mine = state
    yield
    cache.invalidate(['k'])
    floor = Math.max(floor, mine)
  }
  function* once(what: () => void): Generator<void> {
    what()
  }
  const steps: Record<Action, () => Generator<void>> = {
    read,
    put: () => write(() => at(state)),
    delete: () => write(() => null),
    evict: () => once(() => cache.store(cache.ticket('other'), null)),
    all: () => once(() => cache.invalidate('all')),
  }
  const waiting = [...actions]
  const running: Generator<void>[] = []
  for (let turn = 0; waiting.length + running.length > 0; turn++) {
    const pick = (order[turn % order.length] ?? 0) % (running.length + 1)
    const begin = pick === running.length || running.length === 0
    const next = begin ? waiting.shift() : undefined
    const job = next === undefined ? running[pick % running.length] : steps[next]()
    if (job === undefined) continue
    if (next !== undefined) running.push(job)
    if (job.next().done === true) running.splice(running.indexOf(job), 1)
  }
  return stale
}

t.test('I37: no order of fills, writes and invalidations lets a stale entry out', async t => {
  const action = fc.constantFrom<Action>('read', 'read', 'read', 'read', 'read', 'put', 'put', 'delete', 'evict', 'all')
  const property = fc.property(
    fc.array(action, { minLength: 3, maxLength: 20 }),
    fc.array(fc.nat(20), { minLength: 1, maxLength: 60 }),
    (actions, order) => {
      const stale = staleReads(actions, order)
      if (stale.length > 0) throw new Error(stale.join(', '))
    },
  )
  const limits = { numRuns: 30_000, interruptAfterTimeLimit: 6_000, markInterruptAsFailure: false }
  const result = fc.check(property, limits)
  t.notOk(result.failed, fc.defaultReportMessage(result) ?? '')
  t.comment(`seed ${result.seed}, ${result.numRuns} runs`)
})

t.test('I37: the same with promises, whose continuations have an order of their own', async t => {
  const property = fc.asyncProperty(fc.scheduler(), async scheduler => {
    const cache = new PathCache({ entriesMax: 10 })
    let version = 1
    let acknowledged = 1
    const find = scheduler.scheduleFunction(async () => at(version))
    const answer = scheduler.scheduleFunction(async (found: Artifact) => found)
    const seen: [version: number, least: number][] = []
    const read = async (): Promise<void> => {
      const least = acknowledged
      const hit = cache.get('k')?.artifact
      if (hit != null) return void seen.push([hit.version, least])
      const ticket = cache.ticket('k')
      const entry = cache.store(ticket, await answer(await find()))
      seen.push([entry.artifact?.version ?? 0, least])
    }
    const write = async (): Promise<void> => {
      version = await scheduler.schedule(Promise.resolve(2), 'a write takes effect')
      await scheduler.schedule(Promise.resolve(), 'its worker hears of it')
      cache.invalidate(['k'])
      acknowledged = 2
    }
    const again = scheduler.schedule(Promise.resolve(), 'later').then(read)
    await scheduler.waitFor(Promise.all([read(), write(), again, read().then(read)]))
    return seen.every(([got, least]) => got >= least)
  })
  const result = await fc.check(property, { numRuns: 200 })
  t.notOk(result.failed, fc.defaultReportMessage(result) ?? '')
  t.comment(`seed ${result.seed}`)
})

t.test('I38: long paths, which clients choose, leave room for fewer', async t => {
  const cache = new PathCache({ entriesMax: 100 })
  for (let index = 0; index < 100; index += 1) cache.store(cache.ticket('x'.repeat(2_000) + index), null)
  t.ok(cache.size <= 15, `${cache.size} entries`)
  for (let index = 0; index < 100; index += 1) cache.store(cache.ticket(`repository/path/${index}`), null)
  t.equal(cache.size, 100)
})
