import { join } from 'node:path'
import t from 'tap'
import { commit, done, open, put } from './fixtures.ts'

t.test('PGlite serves the same contract from a folder, to one process', async t => {
  const url = `pglite:${join(t.testdir(), 'database')}`
  const first = await open(t, url, { clusterId: 'c' })
  const repository = await first.createRepository({ name: 'r' })
  const commits = Array.from({ length: 20 }, (_, i) => commit(repository, `d/${i}`, { missing: ['s'] }))
  const results = await Promise.all(commits.map(one => put(first, one)))
  t.equal(new Set(results.map(result => result.artifact.version)).size, 20)
  const token = await first.issueToken('primary', 'me')
  t.equal((await first.dueRepairs(100)).length, 20)
  t.same(await first.reclaimUnconfirmed([commits[0]!.blob, commit(repository, 'x').blob], token), ['live', 'reclaim'])
  t.equal((await first.commitArtifacts([commit(repository, 'e'), commit(repository, 'f')])).results.length, 2)
  const refused = commit(repository, 'e', { conditions: { redeploy: 'once' } })
  t.match(await first.commitArtifacts([commit(repository, 'g'), refused]), { results: [{ outcome: 'refused' }] })
  t.equal(await first.findArtifact(repository.id, 'g'), undefined, 'rolled back')
  t.same(
    (await first.listFolder(repository.id, '', '', 2)).entries.map(entry => entry.name),
    ['d', 'e'],
  )
  await t.rejects(open(t, url), { code: 'DATA_IN_USE' })
  await first.close()

  const second = await open(t, url)
  t.equal(second.incarnation, first.incarnation)
  t.ok(await second.findArtifact(repository.id, 'd/7'))
  const again = done(await second.commitArtifact(commit(repository, 'd/7')))
  t.ok(again.artifact.version > 20)
})
