import t, { type Test } from 'tap'
import type { JobRun, JobStore } from '../../../proxy/metadata/job-types.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { MemoryJobStore } from '../tasks/memory-job-store.ts'
import { connect, open } from './fixtures.ts'

const server = await startTestPostgres(t)
const template = await server.createDatabase()
await (await open({ teardown: () => {} }, template)).close()

interface World {
  readonly store: JobStore
  /** A new primary: its token. */
  readonly takeOver: () => Promise<number>
}

const worlds: Readonly<Record<string, (t: Test) => Promise<World>>> = {
  PostgreSQL: async t => {
    const metadata = await open(t, await server.createDatabase(template))
    return { store: metadata.jobs, takeOver: () => metadata.issueToken('primary', 'me') }
  },
  'the fake of the tests': async () => {
    const store = new MemoryJobStore()
    return { store, takeOver: async () => ++store.token }
  },
}

for (const [name, world] of Object.entries(worlds)) {
  t.test(`jobs in ${name}`, async t => {
    t.test('settings are made once, changed, and told', async t => {
      const { store, takeOver } = await world(t)
      const empty = await store.agenda()
      t.match(empty, { jobs: [], active: [] })
      t.type(empty.now, 'number')
      const token = await takeOver()
      await store.applySchedules({ newcomers: ['gc', 'scrub'], due: [], reset: [] }, token)
      await store.changeJob('gc', { schedule: '* * * * *', enabled: false })
      await store.applySchedules({ newcomers: ['gc'], due: [], reset: [] }, token)
      t.match(await store.agenda(), {
        jobs: [
          { name: 'gc', schedule: '* * * * *', enabled: false, lastState: null, lastSuccessAt: null },
          { name: 'scrub', schedule: null, enabled: true },
        ],
      })
      t.match(await store.changeJob('gc', { enabled: true }), { schedule: '* * * * *', enabled: true })
      t.match(await store.changeJob('gc', { schedule: null }), { schedule: null, enabled: true })
      t.match(await store.changeJob('new', { enabled: false }), { name: 'new', schedule: null, enabled: false })
    })

    t.test('a due job is queued once, unless it is disabled or not over', async t => {
      const { store, takeOver } = await world(t)
      const token = await takeOver()
      await store.applySchedules({ newcomers: ['gc', 'off'], due: [], reset: [] }, token)
      await store.changeJob('off', { enabled: false })
      const change = { newcomers: [], due: ['gc', 'off'], reset: [] }
      await Promise.all([store.applySchedules(change, token), store.applySchedules(change, token)])
      const { active, jobs, now } = await store.agenda()
      t.match(active, [{ job: 'gc', origin: 'schedule', user: null, state: 'queued', params: {}, takeovers: 0 }])
      t.equal(active.length, 1)
      t.ok(jobs.every(job => Math.abs(job.scheduledUntil - now) < 60_000))
      await t.rejects(store.enqueue({ job: 'gc', user: 'ann', params: {} }), { code: 'CONFLICT' })
    })

    t.test('a run is claimed, reports, and ends; its job remembers how', async t => {
      const { store, takeOver } = await world(t)
      const token = await takeOver()
      await store.applySchedules({ newcomers: ['gc'], due: [], reset: [] }, token)
      const queued = await store.enqueue({ job: 'gc', user: 'ann', params: { deep: [1] } })
      t.match(queued, { origin: 'user', user: 'ann', state: 'queued', params: { deep: [1] }, startedAt: null })
      const claimed = await store.claim(queued.id, token)
      t.match(claimed, { state: 'running', token, checkpoint: undefined, takeovers: 0, startedAt: Number })
      t.match(await store.claim(queued.id, token), { takeovers: 0, fruitless: 0 }, 'again, by the same primary')
      const progress = { done: 2, total: 4, unit: 'blobs', rate: 2 }
      const report = { checkpoint: { at: 'x' }, progress, remainingMs: 1_000, lines: ['one', 'two'] }
      t.same(await store.report(queued.id, token, report), { stopRequested: false })
      t.same(await store.report(queued.id, token, { lines: ['three'] }), { stopRequested: false })
      t.match(await store.findRun(queued.id), { progress, estimatedEndAt: Number, state: 'running' })
      t.match((await store.claim(queued.id, token))?.checkpoint, { at: 'x' })
      t.match(await store.runLog(queued.id, 1, 10), [{ seq: 2, line: 'two', at: Number }, { seq: 3, line: 'three' }]) // prettier-ignore
      t.match(await store.runLog(queued.id, 0, 1), [{ line: 'one' }])
      await store.finish(queued.id, token, {
        state: 'failed',
        error: { code: 'INTERNAL', message: 'oh' },
        lines: ['end'],
      })
      t.match(await store.findRun(queued.id), {
        state: 'failed', error: { code: 'INTERNAL', message: 'oh' }, finishedAt: Number, estimatedEndAt: null,
      }) // prettier-ignore
      t.match((await store.agenda()).jobs, [{ lastState: 'failed', lastError: 'oh', lastSuccessAt: null }])
      await store.finish(queued.id, token, { state: 'succeeded', lines: ['late'] })
      t.equal((await store.findRun(queued.id))?.state, 'failed', 'the first end stands')
      t.equal((await store.runLog(queued.id, 0, 10)).length, 4)
      t.equal(await store.claim(queued.id, token), undefined, 'what is over stays over')
      await t.rejects(store.report(queued.id, token, { lines: [] }), { code: 'LEASE_LOST' })
      const next = await store.enqueue({ job: 'gc', user: 'ann', params: {} })
      await store.claim(next.id, token)
      await store.finish(next.id, token, { state: 'succeeded', lines: [] })
      const { jobs } = await store.agenda()
      t.match(jobs, [{ lastState: 'succeeded', lastError: null, lastSuccessAt: Number, lastDurationMs: Number }])
      t.same((await store.listRuns('gc', 10)).map(run => run.id), [next.id, queued.id], 'newest first') // prettier-ignore
      t.same(await store.listRuns('gc', 1), [await store.findRun(next.id)])
      t.equal(await store.findRun(999), undefined)
    })

    t.test('a queued run is stopped at once, a running one is told', async t => {
      const { store, takeOver } = await world(t)
      const token = await takeOver()
      t.equal(await store.requestStop('gc', 'ann'), undefined)
      const first = await store.enqueue({ job: 'gc', user: 'ann', params: {} })
      t.match(await store.requestStop('gc', 'bob'), { id: first.id, state: 'stopped', stoppedBy: 'bob', finishedAt: Number }) // prettier-ignore
      t.equal(await store.claim(first.id, token), undefined)
      const { id } = await store.enqueue({ job: 'gc', user: 'ann', params: {} })
      await store.claim(id, token)
      t.match(await store.requestStop('gc', 'bob'), { id, state: 'running', stoppedBy: 'bob' })
      t.match(await store.requestStop('gc', 'eve'), { stoppedBy: 'bob' }, 'twice is harmless')
      t.same(await store.report(id, token, { lines: [] }), { stopRequested: true })
    })

    t.test('I27: after a takeover the old primary changes nothing of jobs, the new one resumes', async t => {
      const { store, takeOver } = await world(t)
      const old = await takeOver()
      await store.applySchedules({ newcomers: ['gc', 'idle'], due: ['gc'], reset: [] }, old)
      const run = (await store.agenda()).active[0] as JobRun
      await store.claim(run.id, old)
      await store.report(run.id, old, { checkpoint: { at: 5 }, lines: ['old'] })
      const token = await takeOver()
      const untouched = async (): Promise<void> => {
        const attempts: readonly (() => Promise<unknown>)[] = [
          () => store.applySchedules({ newcomers: ['x'], due: ['idle'], reset: ['gc'] }, old),
          () => store.claim(run.id, old),
          () => store.enqueue({ job: 'idle', user: 'primary', params: {} }, old),
          () =>
            store.report(run.id, old, { checkpoint: { at: 9 }, progress: { done: 9, unit: 'x' }, lines: ['stale'] }),
          () => store.finish(run.id, old, { state: 'succeeded', lines: ['stale'] }),
          () => store.sweep('pins', 10, old, 1),
        ]
        for (const attempt of attempts) await t.rejects(attempt(), { code: 'LEASE_LOST' })
      }
      await untouched()
      t.match(await store.claim(run.id, token), {
        checkpoint: { at: 5 },
        takeovers: 1,
        fruitless: 1,
        token,
        progress: null,
      })
      await untouched()
      t.match(await store.agenda(), { active: [{ id: run.id, state: 'running', token }] })
      t.same((await store.runLog(run.id, 0, 10)).map(({ line }) => line), ['old']) // prettier-ignore
      await store.report(run.id, token, { checkpoint: { at: 6 }, lines: [] })
      t.match(
        await store.claim(run.id, await takeOver()),
        { takeovers: 2, fruitless: 1 },
        'a saved checkpoint is fruit',
      )
    })

    t.test('history and log are bounded', async t => {
      const { store, takeOver } = await world(t)
      const token = await takeOver()
      await store.applySchedules({ newcomers: ['gc'], due: [], reset: [] }, token)
      const ids: number[] = []
      for (let i = 0; i < 53; i++) {
        const { id } = await store.enqueue({ job: 'gc', user: 'ann', params: {} })
        await store.claim(id, token)
        ids.push(id)
        const lines = i === 52 ? Array.from({ length: 300 }, (_, n) => `a${n}`) : ['x']
        await store.report(id, token, { lines })
        if (i === 52) await store.report(id, token, { lines: Array.from({ length: 300 }, (_, n) => `b${n}`) })
        await store.finish(id, token, { state: 'succeeded', lines: [] })
      }
      t.same((await store.listRuns('gc', 1_000)).map(run => run.id), ids.slice(3).reverse()) // prettier-ignore
      t.same(await store.runLog(ids[0]!, 0, 10), [])
      const log = await store.runLog(ids[52]!, 0, 1_000)
      t.match([log.length, log[0], log.at(-1)], [500, { line: 'a100', seq: 101 }, { line: 'b299', seq: 600 }])
    })
  })
}

t.test('what is due or reset is dealt with until now, and nothing else', async t => {
  const url = await server.createDatabase(template)
  const metadata = await open(t, url)
  const client = await connect(t, url)
  const token = await metadata.issueToken('primary', 'me')
  const names = ['changed', 'due', 'other', 'reset']
  await metadata.jobs.applySchedules({ newcomers: names, due: [], reset: [] }, token)
  await client.query(`UPDATE jobs SET scheduled_until = now() - interval '1 day'`)
  await metadata.jobs.applySchedules({ newcomers: names, due: ['due'], reset: ['reset'] }, token)
  await metadata.jobs.changeJob('changed', { enabled: true })
  const { jobs, now, active } = await metadata.jobs.agenda()
  t.same(
    jobs.map(job => [job.name, now - job.scheduledUntil < 3_600_000]),
    [['changed', true], ['due', true], ['other', false], ['reset', true]],
  ) // prettier-ignore
  t.match([active.length, active[0]?.job], [1, 'due'])
})

t.test('housekeeping deletes what nobody needs, and nothing else', async t => {
  const url = await server.createDatabase(template)
  const metadata = await open(t, url)
  const client = await connect(t, url)
  const token = await metadata.issueToken('primary', 'me')
  await client.query(`
    INSERT INTO pins SELECT decode(md5(i::text), 'hex'), 'u', now() - i * interval '1 minute' FROM generate_series(1, 25) i;
    INSERT INTO pins VALUES ('\\x01', 'u', now() + interval '1 hour');
    INSERT INTO blob_fences VALUES ('\\x01', 'old', now() - interval '91 days'), ('\\x01', 'new', now());
    INSERT INTO audit (at, user_name, action, subject, outcome, address)
      VALUES (now() - interval '11 days', 'old', '', '', '', ''), (now(), 'new', '', '', '', '');
    INSERT INTO job_runs (job, origin, state) SELECT 'gone', 'user', 'stopped' FROM generate_series(1, 60);
    INSERT INTO job_runs (job, origin, state) VALUES ('gone', 'user', 'queued');
    INSERT INTO job_log SELECT id, 1, now(), 'kept' FROM job_runs;
    INSERT INTO job_log VALUES (-1, 1, now(), 'orphan')`)
  const sweepAll = async (kind: Parameters<JobStore['sweep']>[0]): Promise<number[]> => {
    const counts: number[] = []
    do counts.push(await metadata.jobs.sweep(kind, 10, token, 10))
    while (counts.at(-1) === 10)
    return counts
  }
  t.same(await sweepAll('pins'), [10, 10, 5])
  t.same(await sweepAll('fences'), [1])
  t.same(await sweepAll('audit'), [1])
  t.same(await sweepAll('runs'), [10, 1])
  t.same(await sweepAll('log'), [10, 2])
  const rows = async (sql: string): Promise<unknown[]> =>
    (await client.query<unknown[]>({ text: sql, rowMode: 'array' })).rows.flat()
  t.same(await rows('SELECT count(*)::int FROM pins'), [1])
  t.same(await rows('SELECT generation FROM blob_fences'), ['new'])
  t.same(await rows('SELECT user_name FROM audit'), ['new'])
  t.same(await rows('SELECT state, count(*)::int FROM job_runs GROUP BY 1 ORDER BY 1'), ['queued', 1, 'stopped', 49])
  t.same(await rows('SELECT count(*)::int, max(line) FROM job_log'), [50, 'kept'])
})
