import t, { type Test } from 'tap'
import type { Leadership } from '../../../proxy/coordination/types.ts'
import { Primary, type PrimaryTask, type Term } from '../../../proxy/tasks/primary.ts'
import { replayOutbox } from '../../../proxy/tasks/replay-outbox.ts'
import type { Publication } from '../../../proxy/artifacts/publisher.ts'
import type { OutboxEntry } from '../../../proxy/metadata/types.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { eventually } from '../../support/eventually.ts'
import { artifactOf, gate, silent } from '../artifacts/fixtures.ts'

/** A role that can be had when `free`, and be lost. */
class FakeCoordinator {
  free = true
  token = 0
  asked = 0
  released: number[] = []
  fault: Error | undefined
  /** As after a pause of the process: the lease ran out, and no timer has said so yet. */
  ranOut = false
  #lease = new AbortController()

  async acquire(): Promise<Leadership | undefined> {
    this.asked++
    if (this.fault !== undefined) throw this.fault
    if (!this.free) return undefined
    this.free = false
    this.#lease = new AbortController()
    const lease = this.#lease
    const token = ++this.token
    const ranOut = (): boolean => this.ranOut
    return {
      token,
      get signal() {
        if (ranOut()) lease.abort(new Error('ran out'))
        return lease.signal
      },
      release: async () => void this.released.push(token),
    }
  }

  lose(): void {
    this.#lease.abort(new Error('lost'))
  }
}

const task = (name: string, step: PrimaryTask['step'], pauseMs = 1): PrimaryTask => ({ name, pauseMs, step })

function start(t: Test, coordinator: FakeCoordinator, tasks: readonly PrimaryTask[]): Primary {
  const primary = new Primary({ coordinator, tasks, prepare: async () => {}, log: silent })
  t.teardown(() => primary.close())
  primary.start()
  return primary
}

t.test('whoever gets the role runs every task again and again, under its token', async t => {
  const coordinator = new FakeCoordinator()
  const steps: string[] = []
  const tasks = ['a', 'b'].map(name =>
    task(name, async ({ token }) => {
      steps.push(`${name}${token}`)
      return 'idle'
    }),
  )
  const primary = start(t, coordinator, tasks)
  await eventually('both ran twice', () => ['a1', 'b1'].every(step => steps.filter(one => one === step).length > 1))
  t.equal(primary.token, 1)
  await primary.close()
  t.same(coordinator.released, [1], 'the role is given back')
  t.equal(primary.token, undefined)
})

t.test('who does not get it tries again, also when asking fails', async t => {
  const coordinator = new FakeCoordinator()
  coordinator.fault = new HoldfastError('COORDINATION_UNAVAILABLE', 'away')
  let ran = false
  const primary = start(t, coordinator, [task('a', async () => ((ran = true), 'idle'))]) // prettier-ignore
  await eventually('it was asked', () => coordinator.asked === 1)
  t.equal(primary.token, undefined)
  coordinator.fault = undefined
  await eventually('it is primary', () => ran)
})

t.test(
  'a term that the database does not know is over, although its lease is renewed: a rebuilt one begins at another token',
  async t => {
    const coordinator = new FakeCoordinator()
    const done: number[] = []
    const primary = start(t, coordinator, [
      task('fenced', async ({ token }) => {
        if (token === 1) throw new HoldfastError('LEASE_LOST', 'another process is primary now')
        done.push(token)
        return 'idle'
      }),
      task('other', async () => 'idle'),
    ])
    await eventually('it gives the role back', () => coordinator.released.includes(1))
    t.same(done, [])
    coordinator.free = true
    await eventually('the next term works', () => done.length > 0, { withinMs: 5_000 })
    t.equal(primary.token, 2)
  },
)

t.test('I27: a lost lease ends every task after the step in hand, and the next term has another token', async t => {
  const coordinator = new FakeCoordinator()
  const inHand = gate()
  const terms: Term[] = []
  const primary = start(t, coordinator, [
    task('slow', async term => {
      terms.push(term)
      if (terms.length === 1) await inHand.promise
      return terms.length === 1 ? 'more' : 'idle'
    }, 1_000), // prettier-ignore
  ])
  await eventually('a step is in hand', () => terms.length === 1)
  coordinator.lose()
  t.ok(terms[0]?.signal.aborted, 'the step can see it')
  coordinator.free = true
  inHand.open()
  await eventually('the next term', () => terms.some(({ token }) => token === 2))
  t.equal(terms.filter(({ token }) => token === 1).length, 1, 'no step began under the lost lease')
  await primary.close()
  t.same(coordinator.released, [1, 2])
})

t.test('I27: after a pause of the process no step begins under a lease that ran out meanwhile', async t => {
  const coordinator = new FakeCoordinator()
  const tokens: number[] = []
  const step = gate()
  start(t, coordinator, [
    task('a', async ({ token }) => {
      tokens.push(token)
      await step.promise
      return 'more'
    }),
  ])
  await eventually('a step is in hand', () => tokens.length === 1)
  coordinator.ranOut = true
  step.open()
  await eventually('the role was given back', () => coordinator.released.length === 1)
  t.same(tokens, [1])
})

t.test("'more' asks for the next step at once; a step that fails is repeated, less and less often", async t => {
  const coordinator = new FakeCoordinator()
  let more = 0
  let failed = 0
  let others = 0
  start(t, coordinator, [
    task('more', async () => (++more < 50 ? 'more' : 'idle'), 60_000), // prettier-ignore
    task('failing', async () => {
      failed++
      throw failed === 1 ? new Error('a bug') : new HoldfastError('METADATA_UNAVAILABLE', 'away')
    }),
    task('other', async () => (others++, 'idle'), 1), // prettier-ignore
  ])
  await eventually('all at once', () => more === 50)
  await eventually('it is tried again', () => failed > 3)
  t.ok(others > 3, 'and keeps nobody else from working')
})

t.test('I27: no step of a term before it has what it leans on, the newest cluster map', async t => {
  const coordinator = new FakeCoordinator()
  const seen: string[] = []
  const prepare = async (): Promise<void> => {
    seen.push('prepare')
    if (seen.length < 2) throw new HoldfastError('METADATA_UNAVAILABLE', 'the database is away')
    return Promise.resolve()
  }
  const tasks = [task('a', async () => (seen.push('step'), 'idle'), 600_000)]
  const primary = new Primary({ coordinator, tasks, prepare, log: silent })
  t.teardown(() => primary.close())
  primary.start()
  await eventually('it has begun', () => seen.includes('step'))
  t.same(seen, ['prepare', 'prepare', 'step'])
})

t.test('closing wakes whoever pauses, and may come at any time', async t => {
  const coordinator = new FakeCoordinator()
  let ran = false
  const primary = start(t, coordinator, [task('a', async () => ((ran = true), 'idle'), 600_000)]) // prettier-ignore
  await eventually('it ran', () => ran)
  await primary.close()
  await primary.close()
  const idle = new Primary({ coordinator, tasks: [], prepare: async () => {}, log: silent })
  await idle.close()
  t.same(coordinator.released, [1])
})

t.test('I3: what a crash left in the outbox is told to the shards and the caches', async t => {
  const common = { repository: 'raw', user: 'ann', time: 5 }
  const entries: OutboxEntry[] = [
    { ...common, seq: 4, artifact: artifactOf('a', 7), op: 'put', path: 'a', version: 7 },
    { ...common, seq: 5, artifact: null, op: 'delete', path: 'b', version: 8 },
  ]
  const published: Publication[] = []
  let asked: readonly number[] = []
  const replay = replayOutbox({
    metadata: {
      incarnation: 'i',
      pendingOutbox: async (olderThanMs, limit) => {
        asked = [olderThanMs, limit]
        return entries
      },
    },
    publisher: { publish: async publications => void published.push(...publications) },
  })
  const term: Term = { token: 1, signal: new AbortController().signal }
  t.equal(await replay.step(term), 'idle')
  t.ok((asked[0] ?? 0) >= 1_000, 'younger entries are in the hands of their proxy')
  t.match(published, [
    { outboxSeq: 4, record: { op: 'put', repository: 'raw', path: 'a', version: 7, incarnation: 'i', blob: { bytes: 1 } } },
    { outboxSeq: 5, record: { op: 'delete', repository: 'raw', path: 'b', version: 8, incarnation: 'i', user: 'ann', time: 5 } },
  ]) // prettier-ignore
  published.length = 0
  entries.length = 0
  await replay.step(term)
  t.same(published, [])
})
