/** Each blob that nothing names stands among those that lost a name, at every moment that anybody can see. */
import fc from 'fast-check'
import type pg from 'pg'
import t, { type Test } from 'tap'
import type { Metadata, Repository } from '../../../proxy/metadata/types.ts'
import { newGeneration } from '../../../shared/ids.ts'
import { startTestPostgres } from '../../support/postgres.ts'
import { blob, commit, connect, digestOf, open, put } from './fixtures.ts'

const server = await startTestPostgres(t)
const ages = { minAgeMs: 0, holdMs: 0 }

interface Place {
  readonly url: string
  readonly metadata: Metadata
  readonly token: number
  readonly repository: Repository
  readonly behind: pg.Client
}

async function place(t: Test, trashDays = 0): Promise<Place> {
  const url = await server.createDatabase()
  const metadata = await open(t, url)
  const repository = await metadata.createRepository({ name: 'r', trashDays })
  return {
    url,
    metadata,
    repository,
    token: await metadata.issueToken('primary', 'test'),
    behind: await connect(t, url),
  }
}

/** Blobs without any name that are not among the losers, by one snapshot. */
async function forgotten(behind: pg.Client): Promise<number> {
  const { rows } = await behind.query<{ count: string }>(`SELECT count(*) FROM blobs b
    WHERE NOT EXISTS (SELECT FROM artifacts a WHERE a.digest = b.digest)
      AND NOT EXISTS (SELECT FROM trash_refs t WHERE t.digest = b.digest)
      AND NOT EXISTS (SELECT FROM lost_names l WHERE l.digest = b.digest)`)
  return Number(rows[0]!.count)
}

const losers = async ({ metadata }: Place): Promise<Record<string, string>> =>
  Object.fromEntries((await metadata.collection.judgeLosers('', 100, ages)).map(({ digest, verdict }) => [digest, verdict])) // prettier-ignore

t.test('deleted, overwritten, purged from the trash, expired there: each way to lose a name is noted', async t => {
  const at = await place(t, 7)
  const { metadata, repository, behind, token } = at
  const where = { repositoryId: repository.id, repository: 'r', user: 'alice' }
  const [first, second] = [blob('first'), blob('second')]
  await put(metadata, commit(repository, 'a', { blob: first }))
  t.same(await losers(at), {}, 'a new name is no loss')
  await put(metadata, commit(repository, 'a', { blob: second }))
  t.same(await losers(at), { [first.digest]: 'unused' }, 'overwritten')
  await metadata.deleteArtifact({ ...where, path: 'a' })
  t.match(await losers(at), { [second.digest]: 'trash' }, 'deleted, and in the trash')
  await metadata.collection.settleLosers([first.digest, second.digest], token)
  t.same(await losers(at), { [first.digest]: 'unused' }, 'only what has a name is settled')
  await metadata.trash.purge({ repositoryId: repository.id, path: 'a' }, 10)
  t.match(await losers(at), { [second.digest]: 'unused' }, 'purged from the trash')

  const third = blob('third')
  await put(metadata, commit(repository, 'c', { blob: third }))
  await metadata.deleteArtifact({ ...where, path: 'c' })
  await metadata.collection.settleLosers([third.digest], token)
  await behind.query(`UPDATE trash_refs SET expires_at = now() - interval '1 second'`)
  t.match(await metadata.trash.expire(10, token), { entries: 1 })
  t.match(await losers(at), { [third.digest]: 'unused' }, 'expired in the trash')
  await behind.query('DELETE FROM lost_names')

  const fourth = blob('fourth')
  await put(metadata, commit(repository, 'd', { blob: fourth }))
  await behind.query(`DELETE FROM artifacts WHERE path = 'd'`)
  t.match(await losers(at), { [fourth.digest]: 'unused' }, 'by hand')
  await behind.query(`DELETE FROM blobs WHERE digest = '\\x${fourth.digest}'`)
  t.match(await losers(at), { [fourth.digest]: 'gone' })
  await metadata.collection.settleLosers([fourth.digest], token)
  t.same(await losers(at), {}, 'what is gone is settled')
})

t.test('uploads that were refused at last leave no blob that nobody looks at', async t => {
  const at = await place(t)
  const { metadata, repository, behind, token } = at
  await put(metadata, commit(repository, 'taken'))
  const absent = { conditions: { absent: true, redeploy: 'allow' as const } }

  // In one group: the first brings the row, which stays for the second, which is refused as well.
  const twin = blob('twin')
  const refused = await Promise.all([1, 2].map(() => metadata.commitArtifact(commit(repository, 'taken', { blob: twin, ...absent })))) // prettier-ignore
  t.same(refused.map(({ outcome }) => outcome), ['refused', 'refused']) // prettier-ignore
  t.equal(await forgotten(behind), 0, 'two of the same bytes')

  // A generation that is being deleted gives way to a new one, whose path is taken.
  const one = blob('one')
  const where = { repositoryId: repository.id, repository: 'r', user: 'alice' }
  await put(metadata, commit(repository, 'one', { blob: one }))
  await metadata.deleteArtifact({ ...where, path: 'one' })
  await metadata.collection.condemn([one.digest], 0, token)
  t.equal((await metadata.collection.purge(0, 10, token)).length, 1)
  await behind.query(`DELETE FROM lost_names WHERE digest = '\\x${one.digest}'`)
  const again = { ...one, generation: newGeneration() }
  t.match(await metadata.commitArtifact(commit(repository, 'taken', { blob: again, ...absent })), { outcome: 'refused' }) // prettier-ignore
  t.match(await losers(at), { [one.digest]: 'unused' })
  t.equal(await forgotten(behind), 0)
})

t.test('what is being lost while losers are settled stays among them', async t => {
  const at = await place(t)
  const { metadata, repository, behind, token, url } = at
  const one = blob('one')
  for (const path of ['a', 'b']) await put(metadata, commit(repository, path, { blob: one }))
  await behind.query(`UPDATE artifacts SET digest = NULL WHERE path = 'a'`)
  t.same(await losers(at), { [one.digest]: 'referenced' })
  const deleter = await connect(t, url)
  await deleter.query('BEGIN')
  await deleter.query(`UPDATE artifacts SET digest = NULL WHERE path = 'b'`)
  await metadata.collection.settleLosers([one.digest], token)
  t.same(await losers(at), {}, 'it has a name for all that anybody can see')
  await deleter.query('COMMIT')
  t.same(await losers(at), { [one.digest]: 'unused' })
})

t.test('a name that was lost very often is settled in pieces', async t => {
  const at = await place(t)
  const { metadata, repository, behind, token } = at
  const one = blob('one')
  await put(metadata, commit(repository, 'a', { blob: one }))
  await behind.query(`INSERT INTO lost_names (digest) SELECT '\\x${one.digest}'::bytea FROM generate_series(1, 120000)`)
  await metadata.collection.settleLosers([one.digest], token)
  t.same(await losers(at), {})
})

t.test('a catch-up that brings newer references notes what they displace', async t => {
  const at = await place(t)
  const { metadata, repository, behind } = at
  const [old, next] = [blob('old'), blob('next')]
  const { artifact } = await put(metadata, commit(repository, 'a', { blob: old }))
  await put(metadata, commit(repository, 'b', { blob: next }))
  const of = { repository: 'r', user: 'u', time: 1, incarnation: metadata.incarnation }
  const merged = await metadata.recovery.merge([
    { repositoryId: repository.id, record: { kind: 'reference', op: 'put', path: 'a', version: artifact.version + 100, partition: 7, blob: next, ...of } as never }, // prettier-ignore
    { repositoryId: repository.id, record: { kind: 'reference', op: 'delete', path: 'b', version: artifact.version + 101, partition: 7, ...of } as never }, // prettier-ignore
  ])
  t.same(merged, { written: 1, deleted: 1 })
  t.same(await losers(at), { [old.digest]: 'unused', [next.digest]: 'referenced' })
  t.equal(await forgotten(behind), 0)
})

type Step =
  | { readonly op: 'put'; readonly path: string; readonly text: string; readonly absent: boolean }
  | { readonly op: 'delete' | 'empty' | 'restore'; readonly path: string }
  | { readonly op: 'settle' | 'condemn' | 'purge' | 'finish' }

t.test(
  'whatever writers, the trash and garbage collection do at once, nothing without a name is forgotten',
  async t => {
    const at = await place(t, 7)
    const { metadata, repository, behind, token } = at
    const texts = ['x', 'y', 'z']
    const paths = ['a', 'b', 'c', 'd']
    const where = { repositoryId: repository.id, repository: 'r', user: 'alice' }
    const all = texts.map(digestOf)
    const step: fc.Arbitrary<Step> = fc.oneof(
      fc.record({ op: fc.constant('put' as const), path: fc.constantFrom(...paths), text: fc.constantFrom(...texts), absent: fc.boolean() }), // prettier-ignore
      fc.record({ op: fc.constant('delete' as const), path: fc.constantFrom(...paths) }),
      fc.record({ op: fc.constantFrom('empty' as const, 'restore' as const), path: fc.constantFrom(...paths) }),
      fc.record({ op: fc.constantFrom('settle' as const, 'condemn' as const, 'purge' as const, 'finish' as const) }),
    )
    const run = async (one: Step): Promise<void> => {
      const { collection, trash } = metadata
      if (one.op === 'put') {
        const conditions = { redeploy: 'allow' as const, ...(one.absent ? { absent: true } : {}) }
        const what = commit(repository, one.path, { blob: blob(one.text), conditions })
        const result = await metadata.commitArtifact(what)
        if (result.outcome === 'blob-exists') await metadata.commitArtifact({ ...what, blob: result.blob, blobIs: 'existing' }) // prettier-ignore
      } else if (one.op === 'delete') await metadata.deleteArtifact({ ...where, path: one.path })
      else if (one.op === 'empty') await trash.purge({ repositoryId: repository.id, path: one.path }, 1)
      else if (one.op === 'restore') {
        const entries = await trash.list({ repositoryId: repository.id, path: one.path }, undefined, 1)
        await trash.restore(entries, { repository: 'r', user: 'u', overwrite: false, redeploy: 'allow' })
      } else if (one.op === 'settle') await collection.settleLosers(all, token)
      else if (one.op === 'condemn') await collection.condemn(all, 0, token)
      else if (one.op === 'purge') await collection.purge(0, 10, token)
      else await collection.finishPurge(await collection.purging('', 10), token)
    }
    let seen = 0
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(step, { minLength: 1, maxLength: 6 }), { minLength: 4, maxLength: 12 }),
        async rounds => {
          for (const steps of rounds) {
            await Promise.all([...steps.map(run), forgotten(behind).then(count => t.equal(count, 0, 'while they run'))])
            const count = await forgotten(behind)
            if (count > 0) throw new Error(`forgotten after ${JSON.stringify(steps)}`)
          }
          seen += Object.keys(await losers(at)).length
        },
      ),
      { numRuns: 25 },
    )
    t.ok(seen > 0, `${seen} losers on the way`)
  },
)
