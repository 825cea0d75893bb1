import { fork } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { newGeneration } from '../../../shared/ids.ts'
import type { CommitResult, Metadata } from '../../../proxy/metadata/types.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { blob, commit, connect, digestOf, done, open } from './fixtures.ts'
import { builtFile } from '../../support/paths.ts'

const server = await startTestPostgres(t)
const url = await server.createDatabase()
/** Three proxies. */
const proxies: readonly Metadata[] = [await open(t, url), await open(t, url), await open(t, url)]
const [one, two] = proxies as [Metadata, Metadata, Metadata]
const repository = await one.createRepository({ name: 'r' })

t.test('writers of one path through all proxies: versions only grow, in the order of the commits', async t => {
  const results: number[] = []
  const outcomes = new Set<string>()
  await Promise.all(
    Array.from({ length: 24 }, async (_, writer) => {
      const metadata = proxies[writer % 3]!
      let seen = 0
      for (let i = 0; i < 15; i++) {
        const result = done(await metadata.commitArtifact(commit(repository, 'one/path')))
        outcomes.add(result.outcome)
        t.ok(result.artifact.version > seen, 'a writer sees its versions grow')
        seen = result.artifact.version
        results.push(seen)
        const read = await metadata.findArtifact(repository.id, 'one/path')
        if ((read?.version ?? 0) < seen) t.fail('a read after the commit saw an older version')
      }
    }),
  )
  t.equal(new Set(results).size, results.length, 'no version twice')
  t.equal((await one.findArtifact(repository.id, 'one/path'))?.version, Math.max(...results))
  t.same([...outcomes].sort(), ['created', 'replaced'])
})

t.test('If-None-Match: *: exactly one of many writers wins', async t => {
  for (let round = 0; round < 15; round++) {
    const path = `absent/${round}`
    const results = await Promise.all(
      Array.from({ length: 12 }, (_, i) =>
        proxies[i % 3]!.commitArtifact(commit(repository, path, { conditions: { redeploy: 'allow', absent: true } })),
      ),
    )
    const winners = results.filter(result => result.outcome === 'created')
    if (winners.length !== 1) t.fail(`${winners.length} winners`)
    const refused = results.filter(result => result.outcome === 'refused' && result.reason === 'exists')
    if (refused.length !== 11) t.fail(`${refused.length} refused`)
  }
  t.pass()
})

t.test('If-Match: of all who saw the same artifact exactly one replaces it', async t => {
  let current = done(await one.commitArtifact(commit(repository, 'swap'))).artifact.blob.digest
  for (let round = 0; round < 15; round++) {
    const results = await Promise.all(
      proxies.map(metadata =>
        metadata.commitArtifact(commit(repository, 'swap', { conditions: { redeploy: 'allow', match: [current] } })),
      ),
    )
    const winners = results.flatMap(result => (result.outcome === 'replaced' ? [result.artifact.blob.digest] : []))
    if (winners.length !== 1) t.fail(`${winners.length} winners`)
    current = winners[0] ?? current
  }
  t.pass()
})

t.test('many uploads of one new digest: one generation wins, the others are told which', async t => {
  for (let round = 0; round < 10; round++) {
    const text = `digest ${round}`
    const commits = Array.from({ length: 12 }, (_, i) => commit(repository, `same/${round}/${i}`, { blob: blob(text) }))
    const results = await Promise.all(commits.map((change, i) => proxies[i % 3]!.commitArtifact(change)))
    const created = results.flatMap(result => (result.outcome === 'created' ? [result.artifact.blob] : []))
    t.equal(created.length, 1)
    const others = results.flatMap(result => (result.outcome === 'blob-exists' ? [result.blob] : []))
    t.same(others, new Array(11).fill(created[0]))
  }
})

t.test('I11: a commit and the reclaiming of its unconfirmed bytes never both succeed', async t => {
  const token = await one.issueToken('primary', 'races')
  const seen = { live: 0, reclaim: 0 }
  for (let round = 0; round < 60; round++) {
    const commits = Array.from({ length: 4 }, (_, i) => commit(repository, `reclaim/${round}/${i}`))
    const committing = Promise.all(commits.map(change => two.commitArtifact(change)))
    // Sweep over the whole time a commit takes.
    await sleep((round % 6) * 0.5)
    const [results, verdicts] = await Promise.all([
      committing,
      one.reclaimUnconfirmed(
        commits.map(change => change.blob),
        token,
      ),
    ])
    for (const [i, result] of results.entries()) {
      const verdict = verdicts[i]!
      seen[verdict]++
      if ((result.outcome === 'created') !== (verdict === 'live')) t.fail(`${result.outcome}, yet ${verdict}`)
    }
  }
  t.pass(`${seen.live} commits first, ${seen.reclaim} reclaimed first`)
})

t.test('I11: whoever comes second waits for the one in flight', async t => {
  const client = await connect(t, url)
  const token = await one.issueToken('primary', 'races')
  const lock = `INSERT INTO blobs (digest, generation, partition, bytes, md5, sha1) VALUES (decode($1, 'hex'), $2, 7, 1, '', '')`

  const committed = blob()
  await client.query('BEGIN')
  await client.query(lock, [committed.digest, committed.generation])
  const reclaiming = one.reclaimUnconfirmed([committed], token)
  t.equal(await undecided(reclaiming), true, 'reclaiming waits for the commit')
  await client.query('COMMIT')
  t.same(await reclaiming, ['live'])

  const reclaimed = commit(repository, 'late')
  await client.query('BEGIN')
  await client.query('SELECT * FROM reclaim_unconfirmed_1($1)', [
    JSON.stringify([
      { ord: 0, digest: `\\x${reclaimed.blob.digest}`, generation: reclaimed.blob.generation, partition: 7, bytes: 1 },
    ]),
  ])
  const committing = two.commitArtifact(reclaimed)
  t.equal(await undecided(committing), true, 'the commit waits for the fence')
  await client.query('COMMIT')
  t.same(await committing, { outcome: 'blob-gone' })

  const collected = commit(repository, 'kept')
  await one.commitArtifact(collected)
  await client.query('BEGIN')
  await client.query(`UPDATE blobs SET state = 'purging' WHERE digest = decode($1, 'hex')`, [collected.blob.digest])
  const naming = two.commitArtifact({ ...collected, path: 'new', blobIs: 'existing' })
  t.equal(await undecided(naming), true, 'a reference waits for the collector')
  await client.query('COMMIT')
  t.same(await naming, { outcome: 'blob-gone' })
})

t.test('overlapping groups, moves and folder deletions never deadlock', async t => {
  const path = (): string => `hot/${Math.floor(Math.random() * 8)}`
  const change = () => {
    const text = `hot ${Math.floor(Math.random() * 6)}`
    return commit(repository, path(), { blob: blob(text), missing: Math.random() < 0.3 ? ['s1'] : [] })
  }
  const dedup = async (metadata: Metadata): Promise<CommitResult> => {
    const wanted = change()
    const first = await metadata.commitArtifact(wanted)
    if (first.outcome !== 'blob-exists') return first
    return metadata.commitArtifact({ ...wanted, blob: first.blob, blobIs: 'existing' })
  }
  const place = { repositoryId: repository.id, repository: 'r', user: 'u' }
  await Promise.all(
    Array.from({ length: 18 }, async (_, i) => {
      const metadata = proxies[i % 3]!
      for (let n = 0; n < 25; n++) {
        if (i % 6 === 0) await metadata.deleteFolder({ ...place, prefix: 'hot/' }, 5)
        else if (i % 6 === 1) await metadata.deleteArtifact({ ...place, path: path() })
        else if (i % 6 === 2) await metadata.commitArtifacts([change(), change()], [{ ...place, path: path() }])
        else await dedup(metadata)
      }
    }),
  )
  const client = await connect(t, url)
  const { rows } = await client.query<{ deadlocks: string }>(
    'SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()',
  )
  t.equal(Number(rows[0]?.deadlocks), 0)
  const orphans =
    await client.query(`SELECT FROM artifacts a WHERE digest IS NOT NULL AND path LIKE 'hot/%' AND NOT EXISTS
    (SELECT FROM blobs b WHERE b.digest = a.digest AND b.state = 'live')`)
  t.equal(orphans.rowCount, 0, 'every artifact names a live blob')
})

t.test('I27: a takeover waits for the transaction of a leader in flight, which then has no successor', async t => {
  const old = await one.issueToken('primary', 'old')
  await one.addRepairs([{ kind: 'reference', partition: 1, key: 'r/x', version: 1, missing: ['s'], handoffs: [] }])
  const [entry] = (await one.dueRepairs(100)).filter(repair => repair.key === 'r/x')
  const client = await connect(t, url)
  await client.query('BEGIN')
  await client.query(`SELECT token FROM leaders WHERE role = 'primary' FOR SHARE`)
  const takeover = two.issueToken('primary', 'new')
  t.equal(await undecided(takeover), true)
  await client.query('COMMIT')
  t.equal(await takeover, old + 1)
  await t.rejects(one.finishRepair(entry!.id, old), { code: 'LEASE_LOST' })
})

t.test('I27: a leader stopped in the middle of its transactions changes nothing after the takeover', async t => {
  const old = await one.issueToken('primary', 'old')
  await one.addRepairs([{ kind: 'reference', partition: 1, key: 'r/y', version: 1, missing: ['s'], handoffs: [] }])
  const [entry] = (await one.dueRepairs(100)).filter(repair => repair.key === 'r/y')
  const child = fork(builtFile('test/proxy/metadata/stopped-leader.ts'), [url, String(entry!.id), String(old)])
  t.teardown(() => child.kill('SIGKILL'))
  await once(child, 'message') // it is at work
  const client = await connect(t, url)
  for (let caught = 0; caught === 0;) {
    child.kill('SIGSTOP')
    await sleep(20) // statements already sent come to their end
    const { rows } = await client.query<{ n: string }>(
      `SELECT count(*) n FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()
        AND (query LIKE '%FOR SHARE%' OR query LIKE 'UPDATE repairs%')`,
    )
    caught = Number(rows[0]?.n)
    if (caught === 0) child.kill('SIGCONT')
  }
  const before = performance.now()
  const token = await two.issueToken('primary', 'new')
  t.ok(performance.now() - before < 2_500, 'locks of a stopped process are taken from it')
  await two.postponeRepairs([{ id: entry!.id, retryMs: 0, missing: ['theirs'], attempts: 1 }], token)
  const ended = once(child, 'message')
  child.kill('SIGCONT')
  t.match(await ended, [{ code: /LEASE_LOST|METADATA_UNAVAILABLE/ }])
  await once(child, 'exit')
  const [after] = (await one.dueRepairs(100)).filter(repair => repair.key === 'r/y')
  t.match(after, { missing: ['theirs'] })
})

t.test('a generation that lost stays lost when the winner is collected', async t => {
  const token = await one.issueToken('primary', 'races')
  const winner = commit(repository, 'w', { blob: blob('contested') })
  await one.commitArtifact(winner)
  const loser = { ...winner, path: 'l', blob: { ...winner.blob, generation: newGeneration() } }
  t.same(await one.reclaimUnconfirmed([loser.blob], token), ['reclaim'])
  const client = await connect(t, url)
  await client.query(`DELETE FROM blobs WHERE digest = decode($1, 'hex')`, [digestOf('contested')])
  t.same(await one.commitArtifact(loser), { outcome: 'blob-gone' })
})

/** Whether a promise is still open after a moment that would be enough if nothing held it up. */
async function undecided(promise: Promise<unknown>): Promise<boolean> {
  return Promise.race([promise.then(() => false), sleep(150, true)])
}
