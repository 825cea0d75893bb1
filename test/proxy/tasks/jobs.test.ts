import t, { type Test } from 'tap'
import { setTimeout as sleep } from 'node:timers/promises'
import { housekeeping } from '../../../proxy/tasks/housekeeping.ts'
import type { Job, JobContext } from '../../../proxy/tasks/job.ts'
import { nextRunOf, planJobs, Rate } from '../../../proxy/tasks/job-plan.ts'
import { Jobs } from '../../../proxy/tasks/jobs.ts'
import type { Term } from '../../../proxy/tasks/primary.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { eventually } from '../../support/eventually.ts'
import { silent } from '../artifacts/fixtures.ts'
import { MemoryJobStore } from './memory-job-store.ts'

const minute = 60_000
const hour = 60 * minute

/** A proxy that is primary for a while. */
class FakePrimary {
  readonly jobs: Jobs
  readonly #end = new AbortController()
  readonly term: Term
  #clock = 0

  constructor(t: Test, store: MemoryJobStore, jobs: readonly Job[]) {
    this.jobs = new Jobs({ store, jobs, log: silent, now: () => this.#clock + performance.now(), pauseMs: 5 })
    this.term = { token: store.token, signal: this.#end.signal }
    t.teardown(() => this.end())
  }

  async look(): Promise<void> {
    await this.jobs.step(this.term)
  }

  passTime(ms: number): void {
    this.#clock += ms
  }

  async end(): Promise<void> {
    this.#end.abort(new Error('the lease is lost'))
    await this.jobs.ended()
  }
}

const job = (run: Job['run'], more: Partial<Job> = {}): Job => ({ name: 'work', title: 'Work', defaultSchedule: null, run, ...more }) // prettier-ignore

/** Counts to `total` in steps, and goes on where it was. */
function counting(total: number, seen: number[]): Job<{ done: number }> {
  return {
    name: 'work',
    title: 'Count',
    defaultSchedule: null,
    async run({ checkpoint, term, save, progress, pause }) {
      for (let done = checkpoint?.done ?? 0; done < total;) {
        term.signal.throwIfAborted()
        seen.push(++done)
        progress({ done, total, unit: 'steps' })
        await save({ done })
        await pause(1)
      }
    },
  }
}

async function ends(store: MemoryJobStore, id = 1): Promise<(typeof store.runs)[number]> {
  await eventually('the run is over', () => !['queued', 'running'].includes(store.runs[id - 1]?.state ?? 'queued'))
  return store.runs[id - 1]!
}

t.test('a run on demand gets its parameters, and its progress, log and end are kept', async t => {
  const store = new MemoryJobStore()
  let given: JobContext['params'] = {}
  const primary = new FakePrimary(t, store, [
    job(async ({ params, progress, log }) => {
      given = params
      log('beg\0in \ud800')
      log('x'.repeat(10_000))
      progress({ done: 3, total: 3, unit: 'things', note: 'the last' })
    }),
  ])
  await store.enqueue({ job: 'work', user: 'ann', params: { a: 1 } })
  await primary.look()
  t.match(await ends(store), { state: 'succeeded', progress: { done: 3, note: 'the last' }, user: 'ann' })
  t.same(given, { a: 1 })
  const lines = store.logs.get(1)?.map(({ line }) => line) ?? []
  t.same(lines, ['begin \ufffd', 'x'.repeat(500)])
  t.match(primary.jobs.known, { rows: [{ name: 'work' }] })
})

t.test('a takeover resumes the run from its checkpoint', async t => {
  const store = new MemoryJobStore()
  const seen: number[] = []
  const first = new FakePrimary(t, store, [counting(60, seen)])
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  await first.look()
  await eventually('it got somewhere', () => seen.length > 5)
  await first.end()
  t.equal(first.jobs.known, undefined)
  t.match(store.runs, [{ state: 'running', token: 1 }], 'it is not over')
  const before = seen.length
  store.token = 2
  const second = new FakePrimary(t, store, [counting(60, seen)])
  await second.look()
  t.match(await ends(store), { state: 'succeeded', token: 2, takeovers: 1, progress: { done: 60, total: 60 } })
  t.equal(store.runs.length, 1, 'the same run')
  t.ok(
    seen[before]! >= before && seen[before]! <= before + 1,
    'from the checkpoint: the step in hand is repeated at most',
  )
  t.same(
    [...new Set(seen)],
    Array.from({ length: 60 }, (_, i) => i + 1),
  )
})

t.test('a job that just returns when its term ends is not over', async t => {
  const store = new MemoryJobStore()
  const heeding = job(async ({ pause }) => pause(600_000).catch(() => undefined))
  const primary = new FakePrimary(t, store, [heeding])
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  await primary.look()
  await primary.end()
  t.match(store.runs, [{ state: 'running' }])
})

t.test('I27: a primary that was paused and overtaken writes nothing, and ends its run', async t => {
  const store = new MemoryJobStore()
  const seen: number[] = []
  const old = new FakePrimary(t, store, [counting(1_000_000, seen)])
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  await old.look()
  await eventually('it got somewhere', () => seen.length > 5)
  // The old one does not know yet: its signal has not aborted.
  store.token = 2
  const run = await store.claim(1, 2)
  const { checkpoint } = run ?? {}
  const count = await eventually('the old one gave up', async () => {
    const now = seen.length
    await sleep(30)
    return seen.length === now ? now : undefined
  })
  t.ok(count)
  old.passTime(minute)
  await t.rejects(old.look(), { code: 'LEASE_LOST' }, 'nor can it claim it again')
  t.match(store.runs, [{ state: 'running', token: 2, checkpoint }], 'all is as the new primary found it')
})

t.test('a run that was asked to stop ends as stopped, also under the next primary', async t => {
  const store = new MemoryJobStore()
  const seen: number[] = []
  const primary = new FakePrimary(t, store, [counting(1_000_000, seen)])
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  await primary.look()
  await eventually('it runs', () => seen.length > 1)
  await store.requestStop('work', 'bob')
  await primary.look()
  t.match(await ends(store), { state: 'stopped', stoppedBy: 'bob', error: null })
  // One that never saves hears of it too; and one whose primary ended before it could.
  const deaf = job(async ({ pause }) => pause(600_000))
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  const second = new FakePrimary(t, store, [deaf])
  await second.look()
  await eventually('it runs', () => store.runs[1]?.state === 'running')
  await second.end()
  await store.requestStop('work', 'bob')
  store.token = 2
  let ran = false
  const third = new FakePrimary(t, store, [job(async () => void (ran = true))])
  await third.look()
  t.match(await ends(store, 2), { state: 'stopped', token: 2 })
  t.notOk(ran, 'it is not begun again')
})

t.test('what fails fails the run; what is away for a while only delays it', async t => {
  const store = new MemoryJobStore()
  const faults: unknown[] = [
    new HoldfastError('METADATA_UNAVAILABLE', 'away'),
    new HoldfastError('COORDINATION_UNAVAILABLE', 'away'),
    new HoldfastError('QUORUM_NOT_REACHED', 'no quorum'),
    new Error('secret'),
    undefined,
  ]
  let runs = 0
  const primary = new FakePrimary(t, store, [
    job(async () => {
      throw faults[runs++]
    }),
  ])
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  await primary.look()
  await eventually('interrupted', () => runs === 1)
  await sleep(5)
  await primary.look()
  t.equal(runs, 1, 'not again at once')
  for (let i = 0; runs < 3 && i < 20; i++) {
    primary.passTime(minute)
    await primary.look()
    await sleep(5)
  }
  t.match(await ends(store), { state: 'failed', error: { code: 'QUORUM_NOT_REACHED', message: 'no quorum' }, takeovers: 0 }) // prettier-ignore
  t.match(store.rows.get('work'), { lastState: 'failed', lastError: 'no quorum' })
  for (const id of [2, 3]) {
    await store.enqueue({ job: 'work', user: 'ann', params: {} })
    await primary.look()
    t.match(await ends(store, id), { state: 'failed', error: { code: 'INTERNAL', message: 'internal error' } })
  }
})

t.test('saving waits for a database that is away, and loses no line meanwhile', async t => {
  const store = new MemoryJobStore()
  let begun = false
  const primary = new FakePrimary(t, store, [
    job(async ({ log, save }) => {
      log('before')
      store.fault = new HoldfastError('METADATA_UNAVAILABLE', 'away')
      begun = true
      await save({ at: 1 })
      log('after')
    }),
  ])
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  await primary.look()
  await eventually('it is away', () => begun)
  await sleep(20)
  store.fault = undefined
  t.match(await ends(store), { state: 'succeeded', checkpoint: { at: 1 } })
  t.same(store.logs.get(1)?.map(({ line }) => line), ['before', 'after']) // prettier-ignore
})

t.test('a run under which one primary after another ends is given up', async t => {
  const store = new MemoryJobStore()
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  let begun = 0
  for (let i = 0; i < 14; i++) {
    const primary = new FakePrimary(t, store, [job(({ pause }) => (begun++, pause(600_000)))])
    await primary.look()
    await primary.end()
    store.token++
  }
  t.match(store.runs, [{ state: 'failed', error: { code: 'INTERNAL' } }])
  t.equal(begun, 11)
})

t.test('schedules: missed times run once, disabled and running jobs are left out', async t => {
  const store = new MemoryJobStore(Date.UTC(2026, 0, 1, 0, 30))
  let runs = 0
  let release = (): void => undefined
  const work = job(
    async () => {
      runs++
      await new Promise<void>(resolve => (release = resolve))
    },
    { defaultSchedule: '0 * * * *' },
  )
  const primary = new FakePrimary(t, store, [work])
  const lookAfter = async (ms: number): Promise<void> => {
    store.now += ms
    await primary.look()
  }
  const finish = async (): Promise<void> => {
    await eventually('it runs', () => store.runs.at(-1)?.state === 'running')
    release()
    await ends(store, store.runs.length)
  }
  await lookAfter(0)
  t.equal(runs, 0, 'a new job does not catch up on times before it was there')
  await lookAfter(29 * minute)
  t.equal(runs, 0)
  await lookAfter(minute)
  t.equal(runs, 1)
  t.match(store.runs, [{ origin: 'schedule', user: null }])
  await lookAfter(hour)
  t.equal(runs, 1, 'a time that comes while it runs is left out')
  await finish()
  await lookAfter(minute)
  t.equal(runs, 1, 'for good')
  await lookAfter(10 * hour)
  await finish()
  t.equal(runs, 2, 'ten missed times are one run')
  await lookAfter(minute)
  t.equal(runs, 2)
  await store.changeJob('work', { enabled: false })
  await lookAfter(5 * hour)
  t.equal(runs, 2)
  await store.changeJob('work', { enabled: true })
  await lookAfter(minute)
  t.equal(runs, 2, 'what passed while it was disabled is not caught up on')
  await store.changeJob('work', { schedule: '*/5 * * * *' })
  await lookAfter(5 * minute)
  await finish()
  t.equal(runs, 3)
  await store.changeJob('work', { schedule: '' })
  await lookAfter(24 * hour)
  t.equal(runs, 3, 'no schedule')
  await store.changeJob('work', { schedule: 'of a later release' })
  await lookAfter(24 * hour)
  t.equal(runs, 3)
})

t.test('I29: a clock that jumped two days ahead and back holds no schedule up', async t => {
  const daily = { name: 'work', defaultSchedule: '0 0 * * *' }
  const store = new MemoryJobStore(Date.UTC(2026, 0, 1, 12))
  await store.applySchedules({ newcomers: ['work'], due: [], reset: [] }, 1)
  const plan = async (): Promise<ReturnType<typeof planJobs>> => planJobs([daily], await store.agenda(), new Set())
  store.now += 48 * hour
  t.same((await plan()).due, ['work'])
  await store.applySchedules({ newcomers: [], due: ['work'], reset: [] }, 1)
  store.now -= 48 * hour
  t.match(await plan(), { due: [], reset: ['work'] })
  await new FakePrimary(t, store, [job(async () => undefined, daily)]).look()
  t.equal(store.rows.get('work')?.scheduledUntil, store.now)
  store.now += 12 * hour
  t.same((await plan()).due, ['work'])
})

t.test('planning leaves alone what a later release queued', async t => {
  const store = new MemoryJobStore()
  await store.enqueue({ job: 'of-tomorrow', user: 'ann', params: {} })
  await store.enqueue({ job: 'work', user: 'ann', params: {} })
  const plan = planJobs([{ name: 'work', defaultSchedule: null }], await store.agenda(), new Set())
  t.match(plan, { newcomers: ['work'], start: [{ job: 'work' }], stop: [] })
  t.equal(plan.start.length, 1)
  t.equal(nextRunOf({ name: 'x', defaultSchedule: null }, undefined, 0), undefined)
})

t.test('rate and estimate', async t => {
  const rate = new Rate()
  const far = { done: 100, total: 1_100, unit: 'x' }
  rate.add(0, 0)
  t.same(rate.describe(far), { progress: far }, 'one sample says nothing')
  rate.add(50, 100)
  t.same(rate.describe(far), { progress: far }, 'nor do two at once')
  rate.add(100, 1_000)
  t.same(rate.describe(far), { progress: { ...far, rate: 100 }, remainingMs: 10_000 })
  const waits = { ...far, waits: true }
  t.same(rate.describe(waits), { progress: waits }, 'for how long it waits nobody knows')
  for (let s = 2; s < 300; s++) rate.add(s * 10, s * 1_000 + 1_000)
  t.ok(Math.abs((rate.describe(far).progress.rate ?? 0) - 10) < 1, 'old samples fade')
  rate.add(0, 400_000)
  t.same(rate.describe(far), { progress: far }, 'it begins anew')
  t.same(rate.describe({ done: 0, unit: 'x' }), { progress: { done: 0, unit: 'x' } })
})

t.test('definitions that cannot be are refused at the start', async t => {
  const store = new MemoryJobStore()
  const make = (...jobs: Job[]): Jobs => new Jobs({ store, jobs, log: silent, now: () => 0 })
  const nothing: Job['run'] = async () => undefined
  t.throws(() => make(job(nothing), job(nothing)))
  t.throws(() => make(job(nothing, { name: 'No Name' })))
  t.throws(() => make(job(nothing, { defaultSchedule: '* * *' })), { code: 'BAD_REQUEST' })
})

t.test('housekeeping sweeps every kind until nothing is left', async t => {
  const store = new MemoryJobStore()
  const keeping = housekeeping({ jobs: store })
  const primary = new FakePrimary(t, store, [keeping])
  await store.enqueue({ job: 'housekeeping', user: 'ann', params: { auditDays: 30 } })
  await primary.look()
  t.match(await ends(store), { state: 'succeeded', progress: { done: 2_030, total: 2_030, unit: 'rows' } })
  t.same(store.swept, ['runs', 'log', 'pins', 'pins', 'pins', 'fences', 'audit'])
  t.match(store.logs.get(1), [{ line: '2000 expired pins deleted' }, { line: '30 old audit entries deleted' }])
  for (const params of [{ auditDays: 0 }, { auditDays: '5' }, { x: 1 }]) {
    t.throws(() => keeping.checkParams?.(params), { code: 'BAD_REQUEST' })
  }
})
