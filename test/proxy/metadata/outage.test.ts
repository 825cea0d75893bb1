import t from 'tap'
import { isHoldfastError } from '../../../shared/errors.ts'
import type { Metadata } from '../../../proxy/metadata/types.ts'
import { eventually } from '../../support/eventually.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { blob, commit, connect, digestOf, done, open, put } from './fixtures.ts'

/** What a call may take at most, and what the scheduler of a busy machine may add. */
const limitMs = 2_000 + 400
/** After its last answer a frozen server is known to be away within 1.3 s; the rest is for a busy machine. */
const awayKnownMs = 1_300 + 400

const server = await startTestPostgres(t)
const url = await server.createDatabase()
const metadata = await open(t, url)
const repository = await metadata.createRepository({ name: 'r' })
await put(metadata, commit(repository, 'there'))

/** Every method that speaks to PostgreSQL. */
function callsOf(one: Metadata): Record<string, () => Promise<unknown>> {
  const target = { repositoryId: repository.id, repository: 'r', user: 'u' }
  return {
    ping: () => one.ping(),
    listRepositories: () => one.listRepositories(),
    createRepository: () => one.createRepository({ name: 'x' }),
    changeRepository: () => one.changeRepository('r', {}),
    deleteRepository: () => one.deleteRepository('x'),
    findUser: () => one.findUser('u'),
    putUser: () => one.putUser({ name: 'u', passwordHash: '', admin: false }),
    audit: () => one.audit({ user: 'u', action: 'a', subject: 's', outcome: 'o', address: '' }),
    listAudit: () => one.listAudit(10, 1),
    findArtifact: () => one.findArtifact(repository.id, 'there'),
    findBlob: () => one.findBlob({ sha1: '00' }),
    digestReadable: () => one.digestReadable(digestOf('x'), [1]),
    commitArtifact: () => one.commitArtifact(commit(repository, 'new')),
    commitArtifacts: () => one.commitArtifacts([commit(repository, 'new')]),
    deleteArtifact: () => one.deleteArtifact({ ...target, path: 'none' }),
    deleteFolder: () => one.deleteFolder({ ...target, prefix: 'none/' }, 10),
    listFolder: () => one.listFolder(repository.id, '', '', 10),
    listArtifacts: () => one.listArtifacts(repository.id, '', '', 10),
    settleOutbox: () => one.settleOutbox([1]),
    pendingOutbox: () => one.pendingOutbox(1e6, 1),
    addRepairs: () =>
      one.addRepairs([{ kind: 'reference', partition: 1, key: 'k', version: 1, missing: [], handoffs: [] }]),
    dueRepairs: () => one.dueRepairs(1),
    finishRepair: () => one.finishRepair(1, 1),
    postponeRepairs: () => one.postponeRepairs([{ id: 1, retryMs: 1, missing: [], attempts: 1 }], 1),
    countRepairs: () => one.countRepairs(),
    reclaimUnconfirmed: () => one.reclaimUnconfirmed([blob()], 1),
    issueToken: () => one.issueToken('other', 'me'),
    newestToken: () => one.newestToken('other'),
    loadClusterMap: () => one.loadClusterMap(),
  }
}

interface Fate {
  readonly name: string
  readonly code: string
  readonly ms: number
  readonly endedAt: number
}

async function fatesOf(calls: Record<string, () => Promise<unknown>>): Promise<readonly Fate[]> {
  return Promise.all(
    Object.entries(calls).map(async ([name, call]) => {
      const startedAt = performance.now()
      const code = await call().then(
        () => 'ok',
        (error: unknown) => (isHoldfastError(error) ? error.code : String(error)),
      )
      const endedAt = performance.now()
      return { name, code, ms: endedAt - startedAt, endedAt }
    }),
  )
}

/** How long it took until calls worked again. */
async function recovery(): Promise<number> {
  const startedAt = performance.now()
  for (;;) {
    const fates = await fatesOf({ find: () => metadata.findArtifact(repository.id, 'there') })
    if (fates[0]?.code === 'ok') break
    if (performance.now() - startedAt > 15_000) throw new Error(`not back after 15 s: ${fates[0]?.code}`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  return performance.now() - startedAt
}

t.test('PostgreSQL stopped: every call fails in time, and works after its return', async t => {
  await server.stop()
  for (const fate of await fatesOf(callsOf(metadata))) {
    t.equal(fate.code, 'METADATA_UNAVAILABLE', fate.name)
    t.ok(fate.ms < limitMs, `${fate.name} took ${Math.round(fate.ms)} ms`)
  }
  await t.rejects(open(t, url), { code: 'METADATA_UNAVAILABLE' }, 'a start without it is refused')
  await server.start()
  const ms = await recovery()
  t.ok(ms < limitMs, `back after ${Math.round(ms)} ms`)
})

t.test('PostgreSQL frozen: calls in flight fail in time, later ones at once, all work when it goes on', async t => {
  await server.pause()
  t.teardown(() => server.resume())
  for (const fate of await fatesOf(callsOf(metadata))) {
    t.equal(fate.code, 'METADATA_UNAVAILABLE', fate.name)
    t.ok(fate.ms < awayKnownMs, `${fate.name} took ${Math.round(fate.ms)} ms`)
  }
  t.notOk(metadata.available)
  for (const fate of await fatesOf(callsOf(metadata))) {
    t.equal(fate.code, 'METADATA_UNAVAILABLE', fate.name)
    t.ok(fate.ms < 300, `${fate.name} took ${Math.round(fate.ms)} ms: known to be away`)
  }
  await server.resume()
  const ms = await recovery()
  t.ok(ms < limitMs, `back after ${Math.round(ms)} ms`)
  const fates = await fatesOf(callsOf(metadata))
  t.same(
    fates.filter(fate => fate.code === 'METADATA_UNAVAILABLE'),
    [],
  )
})

t.test('with nobody asking, PostgreSQL is known to be away and back', async t => {
  let told = 0
  metadata.onAway(() => told++)
  for (const [name, begin, end, withinMs] of [
    ['frozen', () => server.pause(), () => server.resume(), awayKnownMs],
    ['killed', () => server.kill(), () => server.start(), 400],
  ] as const) {
    t.ok(metadata.available)
    await begin()
    const begunAt = performance.now()
    await eventually('known to be away', () => !metadata.available, { everyMs: 5 })
    const ms = performance.now() - begunAt
    t.ok(ms < withinMs, `${name}: known after ${Math.round(ms)} ms`)
    await end()
    await eventually('known to be back', () => metadata.available, { everyMs: 5 })
    t.ok(performance.now() - begunAt < 15_000)
  }
  t.equal(told, 2)
})

t.test('queues are bounded while PostgreSQL is frozen', async t => {
  await server.pause()
  t.teardown(() => server.resume())
  const calls: Record<string, () => Promise<unknown>> = {}
  for (let i = 0; i < 1_500; i++) {
    calls[`commit ${i}`] = () => metadata.commitArtifact(commit(repository, `flood/${i}`))
    calls[`query ${i}`] = () => metadata.countRepairs()
  }
  for (let i = 0; i < 5_000; i++) calls[`read ${i}`] = () => metadata.findArtifact(repository.id, 'there')
  const fates = await fatesOf(calls)
  for (const kind of ['commit', 'query', 'read']) {
    const own = fates.filter(fate => fate.name.startsWith(kind))
    t.same([...new Set(own.map(fate => fate.code))].sort(), ['METADATA_UNAVAILABLE', 'OVERLOADED'], kind)
    const overloaded = own.filter(fate => fate.code === 'OVERLOADED').map(fate => fate.endedAt)
    const others = own.filter(fate => fate.code !== 'OVERLOADED').map(fate => fate.endedAt)
    t.ok(Math.max(...overloaded) < Math.min(...others), 'overload is told at once')
  }
  await server.resume()
  await recovery()
})

t.test(
  'PostgreSQL killed under load: what was acknowledged is there, and a retry of what was not is harmless',
  async t => {
    const acknowledged: string[] = []
    const unknown: string[] = []
    let running = true
    const writers = Array.from({ length: 8 }, async (_, writer) => {
      for (let i = 0; running; i++) {
        const path = `load/${writer}/${i}`
        const change = commit(repository, path)
        const [fate] = await fatesOf({ commit: async () => done(await metadata.commitArtifact(change)) })
        if (fate?.code === 'ok') acknowledged.push(path)
        else {
          t.equal(fate?.code, 'METADATA_UNAVAILABLE')
          unknown.push(path)
          await recovery()
          const retried = done(await metadata.commitArtifact(change))
          t.match(retried.outcome, /^(created|unchanged)$/)
          t.not(retried.outboxSeq, null, 'its reference is still owed')
        }
      }
    })
    while (acknowledged.length < 200) await new Promise(resolve => setTimeout(resolve, 5))
    const killed = server.kill()
    await killed
    await server.start()
    await recovery()
    running = false
    await Promise.all(writers)
    t.ok(unknown.length > 0)
    const missing: string[] = []
    for (const path of [...acknowledged, ...unknown]) {
      if ((await metadata.findArtifact(repository.id, path)) === undefined) missing.push(path)
    }
    t.same(missing, [])
  },
)

t.test('a connection ended by the server harms nobody else', async t => {
  const client = await connect(t, url)
  await Promise.all([metadata.countRepairs(), metadata.countRepairs(), metadata.ping()])
  await client.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'holdfast' AND datname = current_database()`)
  await new Promise(resolve => setTimeout(resolve, 50))
  const fates = await fatesOf(callsOf(metadata))
  t.same(
    fates.filter(fate => fate.code === 'METADATA_UNAVAILABLE'),
    [],
  )
  const { rows } = await client.query<{ n: string }>(`SELECT count(*) n FROM pg_stat_activity
    WHERE application_name = 'holdfast' AND datname = current_database()`)
  t.ok(Number(rows[0]?.n) <= 10, 'no more connections than configured')
})

t.test('a start without PostgreSQL gets it when it comes', async t => {
  await server.stop()
  const early = await open(t, url, { startWithout: true, clusterId: metadata.clusterId })
  t.equal(early.incarnation, '')
  await t.rejects(early.ping(), { code: 'METADATA_UNAVAILABLE' })
  await server.start()
  await recovery()
  for (let i = 0; i < 100 && early.incarnation === ''; i++) await new Promise(resolve => setTimeout(resolve, 50))
  t.equal(early.incarnation, metadata.incarnation)
  t.ok(await early.findArtifact(repository.id, 'there'))
})

t.test('the first server that is no standby is used', async t => {
  const folder = /host=([^&]*)/.exec(url)?.[1] ?? ''
  const several = url.replace(folder, `/nowhere,${folder}`)
  const one = await open(t, several)
  t.ok(await one.findArtifact(repository.id, 'there'))
  t.equal(one.incarnation, metadata.incarnation)
})
