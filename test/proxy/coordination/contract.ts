/** What every Coordinator promises. Called once per driver. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import type { Coordinator, Member } from '../../../proxy/coordination/types.ts'
import type { Timings } from '../../../proxy/coordination/timings.ts'

export interface OpenOptions {
  readonly timings?: Partial<Timings>
  readonly issueToken?: (role: string, holder: string) => Promise<number>
}
/** Opens and starts one more worker of the same cluster; closed with the test. */
export type OpenWorker = (t: Test, id: string, options?: OpenOptions) => Promise<Coordinator>

export const member = (id: string): Member => ({
  id,
  role: 'proxy',
  address: `http://${id}.test:8080`,
  version: '1.2.3',
  startedAt: 1_700_000_000_000,
})

export const silentLog = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} }

/** Everything five times as fast: more faults per second, and many spurious ones on a busy machine. */
export const fastTimings: Timings = {
  leaseTtlMs: 750,
  leaseRenewMs: 250,
  leaseMarginMs: 60,
  joinMs: 700,
  acknowledgeMs: 250,
  markMs: 1_000,
  suspendAfterMs: 80,
  suspendMs: 1_500,
  suspendRefreshMs: 250,
  commandMs: 120,
  statementMs: 400,
  unreachableMs: 4_000,
  roleTtlMs: 1_500,
  roleGiveUpMs: 1_000,
  roleRenewMs: 400,
}

/** Resolves once `condition` holds; rejects after `ms`. */
export async function eventually(
  what: string,
  condition: () => boolean | Promise<boolean>,
  ms = 10_000,
): Promise<void> {
  const end = performance.now() + ms
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not within ${ms} ms: ${what}`)
    await sleep(5)
  }
}

/** What a worker was told, in order. */
export function recordTold(coordinator: Coordinator): (readonly string[] | 'all')[] {
  const told: (readonly string[] | 'all')[] = []
  coordinator.cache.onInvalidate(keys => told.push(keys))
  return told
}

export function coordinatorContract(t: Test, openWorker: OpenWorker): void {
  t.test('a worker that starts is told to empty its cache, then may use it, and is a member', async t => {
    const a = await openWorker(t, 'a')
    const b = await openWorker(t, 'b')
    await eventually('both cache', () => a.cache.usable() && b.cache.usable())
    t.match(a.state(), { up: true })
    t.same(
      [...(await a.members())].sort((x, y) => x.id.localeCompare(y.id)),
      [member('a'), member('b')],
    )
    t.equal(a.state().counters.emptied, 1)
  })

  t.test(
    'I37: invalidate() resolves after every other worker was told, and does not tell the writer itself',
    async t => {
      const [a, b, c] = [await openWorker(t, 'a'), await openWorker(t, 'b'), await openWorker(t, 'c')]
      const [toldA, toldB, toldC] = [recordTold(a), recordTold(b), recordTold(c)]
      for (let i = 0; i < 50; i++) {
        await a.cache.invalidate([`repo/path-${i}`])
        t.same(toldB.flat().at(-1), `repo/path-${i}`)
        t.same(toldC.flat().at(-1), `repo/path-${i}`)
      }
      t.same(toldA, [])
      t.ok(
        [a, b, c].every(one => one.state().counters.emptied === 1),
        'nobody lost its lease over it',
      )
    },
  )

  t.test('keys of any length, number and script arrive as they are', async t => {
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    const told = recordTold(b)
    const keys = [
      ...[
        'plain/x',
        'quotes/"\'\\',
        'umlaut/äöü',
        'emoji/🦫',
        'newline/\n',
        'percent/%s%d',
        `long/${'ä'.repeat(1_000)}`,
      ],
      ...Array.from({ length: 60 }, (_, i) => `many/${'x'.repeat(2_000)}/${i}`),
    ]
    await a.cache.invalidate(keys)
    t.same(told.flat(), keys)
  })

  t.test('more keys than a message may carry empty the whole cache', async t => {
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    const told = recordTold(b)
    const keys = Array.from({ length: 20_000 }, (_, i) => `folder/file-${i}`)
    await a.cache.invalidate(keys)
    if (a.driver === 'memory') t.equal(told.flat().length, 20_000)
    else t.same(told, ['all'])
  })

  t.test('calls at the same time share rounds, and each resolves after its own keys were told', async t => {
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    const seen = new Set<string>()
    b.cache.onInvalidate(keys => (keys === 'all' ? t.fail('all') : keys.forEach(key => seen.add(key))))
    const before = a.state().counters.rounds
    const keys = Array.from({ length: 400 }, (_, i) => `k/${i}`)
    await Promise.all(keys.map(key => a.cache.invalidate([key]).then(() => t.ok(seen.has(key), key))))
    t.equal(seen.size, 400)
    if (a.driver !== 'memory') t.ok(a.state().counters.rounds - before <= 5, 'batched')
  })

  t.test('writers on all sides at once hear of each other', async t => {
    const workers = [await openWorker(t, 'a'), await openWorker(t, 'b'), await openWorker(t, 'c')]
    const told = workers.map(recordTold)
    const write = async (at: number): Promise<void> => {
      for (let i = 0; i < 40; i++) {
        await workers[at]?.cache.invalidate([`${at}/${i}`])
        for (const other of [0, 1, 2].filter(one => one !== at)) t.ok(told[other]?.flat().includes(`${at}/${i}`))
      }
    }
    await Promise.all([write(0), write(1), write(2)])
  })

  t.test('I37: a prepared key is not answered from any cache until its write is told, or given up', async t => {
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    await a.cache.invalidate(['warm'])
    await b.cache.invalidate(['warm']) // by now both know that they are two
    await eventually('both cache', () => a.cache.usable() && b.cache.usable())
    const told = recordTold(b)
    await Promise.all([a.cache.prepare(['k', 'l']), a.cache.prepare(['k'])])
    for (const worker of [a, b]) {
      t.ok(worker.cache.usable('other'))
      t.notOk(worker.cache.usable('k'))
    }
    t.same(new Set(told.flat()), new Set(['k', 'l']), 'entries went before the commit')
    told.length = 0
    await a.cache.invalidate(['k'])
    t.notOk(a.cache.usable('k'), 'the second write of the same key is still under way')
    await a.cache.invalidate(['k', 'l'])
    await eventually('the marks are gone', () => b.cache.usable('k') && b.cache.usable('l'))
    t.ok(a.cache.usable('k') && a.cache.usable('l'))
    t.same(new Set(told.flat()), new Set(['k', 'l']), 'and what was read in between')
  })

  t.test('I37: who joins between prepare and commit hears of the key before it may use its cache', async t => {
    const a = await openWorker(t, 'a')
    await openWorker(t, 'b')
    await a.cache.invalidate(['warm'])
    await a.cache.prepare(['k'])
    const c = await openWorker(t, 'c')
    await eventually('c caches', () => c.cache.usable('other'))
    t.notOk(c.cache.usable('k'), 'all but the key')
    await a.cache.invalidate(['k'])
    await eventually('and that too afterwards', () => c.cache.usable('k'))
  })

  t.test('a worker that closes is waited for no longer', async t => {
    const [a, b] = [await openWorker(t, 'a'), await openWorker(t, 'b')]
    await a.cache.invalidate(['k']) // waits for the time in which a young Redis may have forgotten leases
    await b.close()
    t.notOk(b.cache.usable())
    const startedAt = performance.now()
    await a.cache.invalidate(['k'])
    t.ok(performance.now() - startedAt < 200, 'no timeout was waited for')
    t.same(await a.members(), [member('a')])
    await b.close()
  })

  t.test('of many who want a role at once one gets it, with its token; released, it goes to another', async t => {
    let issued = 0
    const issueToken = async (): Promise<number> => ++issued
    const workers = await Promise.all(['a', 'b', 'c'].map(id => openWorker(t, id, { issueToken })))
    await eventually('the role is given away', async () => {
      const terms = await Promise.all(workers.map(worker => worker.acquire('primary')))
      const held = terms.filter(term => term !== undefined)
      if (held.length === 0) return false
      t.equal(held.length, 1)
      t.equal(held[0]?.token, issued)
      t.notOk(held[0]?.signal.aborted)
      const winner = workers[terms.findIndex(term => term !== undefined)]
      t.equal(await winner?.acquire('primary'), undefined, 'not twice')
      t.match(await workers[0]?.holder('primary'), /^[abc]$/)
      await held[0]?.release()
      t.ok(held[0]?.signal.aborted, 'the signal ends with the term')
      return true
    })
    const next = await workers[1]?.acquire('primary')
    t.equal(next?.token, issued)
    t.equal(await workers[0]?.holder('primary'), 'b')
    await workers[1]?.close()
    t.ok(next?.signal.aborted, 'closing ends terms')
    t.ok(await workers[2]?.acquire('primary'), 'and frees the role')
  })

  t.test('without a fencing token there is no term, and the role stays free', async t => {
    const a = await openWorker(t, 'a', { issueToken: () => Promise.reject(new Error('no database')) })
    const b = await openWorker(t, 'b')
    await eventually('roles are given away', async () => {
      t.equal(await a.acquire('primary'), undefined)
      return (await b.acquire('primary')) !== undefined
    })
  })
}
