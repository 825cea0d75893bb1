import fc from 'fast-check'
import t from 'tap'
import type { CleanupCandidate, CleanupConditions } from '../../../proxy/metadata/cleanup-types.ts'
import {
  checkConditions,
  CleanupSelection,
  isDue,
  looksPrerelease,
  matchesGlob,
  parseGlob,
} from '../../../proxy/tasks/cleanup-selection.ts'
import type { Digest } from '../../../shared/ids.ts'

const day = 24 * 3_600_000
const now = 1_000 * day
const recordedSince = now - 50 * day

const names = fc.constantFrom('a', 'b', '1.0', '1.1-rc.1', '2.0-SNAPSHOT', 'x-y', 'x')
const paths = fc.array(names, { minLength: 1, maxLength: 4 }).map(parts => parts.join('/'))
const candidates = fc
  .uniqueArray(paths, { maxLength: 40 })
  .chain(all =>
    fc.tuple(
      ...all.map(path =>
        fc.record({
          path: fc.constant(path),
          digest: fc.constant('' as Digest),
          version: fc.constant(1),
          bytes: fc.constant(1),
          updatedAt: fc.integer({ min: 0, max: 30 }).map(age => now - age * day),
          writtenAt: fc.option(
            fc.integer({ min: 0, max: 60 }).map(age => now - age * day),
            { nil: null, freq: 2 },
          ),
          downloadedAt: fc.option(
            fc.integer({ min: 0, max: 30 }).map(age => now - age * day),
            { nil: null },
          ),
        }),
      ),
    ),
  )
  // In the order of their bytes, as PostgreSQL gives them.
  .map(all => all.sort((a, b) => Buffer.compare(Buffer.from(a.path), Buffer.from(b.path))))
const conditions: fc.Arbitrary<CleanupConditions> = fc.record(
  {
    unchangedDays: fc.integer({ min: 1, max: 25 }),
    notDownloadedDays: fc.integer({ min: 1, max: 25 }),
    keepNewest: fc.record({
      count: fc.integer({ min: 1, max: 3 }),
      of: fc.constantFrom('artifacts' as const, 'folders' as const),
    }),
    path: fc.constantFrom('**', 'a/**', '**/x*', '*/1.0/*'),
    prerelease: fc.constantFrom('only' as const, 'never' as const),
  },
  { requiredKeys: [] },
)

const folderOf = (path: string): string | undefined => (path.includes('/') ? path.replace(/\/[^/]*$/, '') : undefined)

/** The same, said as plainly as can be. */
function naive(all: readonly CleanupCandidate[], policy: CleanupConditions): string[] {
  const { keepNewest, path: glob, prerelease } = policy
  const inScope = all.filter(
    ({ path }) =>
      (glob === undefined || matchesGlob(parseGlob(glob), path)) &&
      (prerelease === undefined || (prerelease === 'only') === looksPrerelease(path)),
  )
  const versionOf = (path: string): string | undefined => (keepNewest?.of === 'artifacts' ? path : folderOf(path))
  const times = new Map<string, number>()
  for (const { path, updatedAt, writtenAt } of inScope) {
    const version = versionOf(path)
    if (version !== undefined) times.set(version, Math.max(times.get(version) ?? 0, writtenAt ?? updatedAt))
  }
  const isKept = (path: string): boolean => {
    if (keepNewest === undefined) return false
    const version = versionOf(path)
    if (version === undefined) return true
    const rivals = [...times.keys()].filter(other => folderOf(other) === folderOf(version))
    const newest = rivals.sort((a, b) => times.get(b)! - times.get(a)! || (a < b ? 1 : -1)).slice(0, keepNewest.count)
    return newest.includes(version)
  }
  return inScope.filter(one => isDue(one, policy, { now, recordedSince }) && !isKept(one.path)).map(({ path }) => path)
}

function select(all: readonly CleanupCandidate[], policy: CleanupConditions): string[] {
  const selection = new CleanupSelection(policy, { now, recordedSince })
  return [...all.flatMap(one => selection.add(one)), ...selection.end()].map(({ path }) => path)
}

t.test('artifact by artifact, in any repository, the same go as by a look at the whole', async t => {
  const details = fc.check(
    fc.property(candidates, conditions, (all, policy) => {
      t.same(select(all, policy).sort(), naive(all, policy).sort())
    }),
    { numRuns: 1_000 },
  )
  t.notOk(details.failed, fc.defaultReportMessage(details) ?? `seed ${details.seed}`)
})

t.test('what a second run finds: nothing more', async t => {
  const details = fc.check(
    fc.property(candidates, conditions, (all, policy) => {
      const gone = new Set(select(all, policy))
      const left = all.filter(({ path }) => !gone.has(path))
      // A version that lost its artifacts was not among the newest; those that are stay so.
      t.same(select(left, policy), [])
    }),
    { numRuns: 300 },
  )
  t.notOk(details.failed, fc.defaultReportMessage(details) ?? `seed ${details.seed}`)
})

t.test('times: written, downloaded on a day, and nothing known from before', async t => {
  const due = (updated: number, downloaded: number | null, notDownloadedDays = 10): boolean =>
    isDue(
      {
        updatedAt: now - updated * day,
        writtenAt: null,
        downloadedAt: downloaded === null ? null : now - downloaded * day,
      },
      { notDownloadedDays },
      { now, recordedSince },
    )
  t.equal(due(10, null), true)
  t.equal(due(9.9, null), false, 'what is new was not downloaded yet')
  t.equal(due(40, 11), true)
  t.equal(due(40, 10.9), false, 'a download counts to the end of its day')
  t.equal(due(400, null, 50), true)
  t.equal(due(400, null, 51), false, 'before recording began it may have been downloaded')
  const facts = { now, recordedSince }
  t.equal(isDue({ updatedAt: now - 5 * day, writtenAt: null, downloadedAt: now }, { unchangedDays: 5 }, facts), true)
  for (const [restored, policy, due] of [
    [6, {}, false],
    [7, {}, true],
    [4, { unchangedDays: 5 }, false],
    [5, { unchangedDays: 5 }, true],
    [1, { notDownloadedDays: 2 }, false],
    [50, { notDownloadedDays: 50 }, true],
  ] as const) {
    const back = { updatedAt: now - restored * day, writtenAt: now - 90 * day, downloadedAt: null }
    t.equal(isDue(back, policy, facts), due, `restored ${restored} days ago, ${JSON.stringify(policy)}`)
  }
})

t.test('globs', async t => {
  const fits = (pattern: string, path: string): boolean => matchesGlob(parseGlob(pattern), path)
  for (const [pattern, path] of [
    ['a/*.zip', 'a/b.zip'], ['**/*.zip', 'b.zip'], ['**/*.zip', 'a/b/c.zip'], ['a/**', 'a/b/c'], ['a/', 'a/b'], ['a/**/c', 'a/c'],
    ['?ü', 'xü'], ['*', ''], ['a/**/b/**/c', 'a/x/b/y/b/c'], ['a*b*c', 'abxbc'], ['[a].zip', '[a].zip'],
  ] as const) t.ok(fits(pattern, path), `${pattern} fits ${path}`) // prettier-ignore
  for (const [pattern, path] of [
    ['a/*.zip', 'a/b/c.zip'], ['*', 'a/b'], ['a/**', 'a'], ['a/**', 'ab/c'], ['**/x', 'ax'], ['a.b', 'axb'], ['?', ''],
  ] as const) t.notOk(fits(pattern, path), `${pattern} does not fit ${path}`) // prettier-ignore
  for (const pattern of ['a//b', '/a', 'a**', '']) t.throws(() => parseGlob(pattern), { code: 'BAD_REQUEST' }, pattern)
  const started = performance.now()
  fits('*a'.repeat(200), 'a'.repeat(255) + 'b')
  fits('**/a/'.repeat(90) + 'b', 'a/'.repeat(900) + 'c')
  t.ok(performance.now() - started < 2_000, 'no pattern is slow')
})

t.test('what looks like a pre-release', async t => {
  for (const path of ['com/x/1.0-SNAPSHOT/x.jar', 'app-2.0.0-rc.1.tgz', 'v3.1.dev4', 'lib-1.0b2.whl', '1.0.0-alpha', '5-preview/x', 'x-1.2M1'])
    t.ok(looksPrerelease(path), path) // prettier-ignore
  for (const path of ['com/x/1.0/x-1.0-sources.jar', 'app-2.0.0.tgz', 'beta/x', 'dev/1.0/x', '2a3f9c', 'prefix-1.0', '1.0-precise'])
    t.notOk(looksPrerelease(path), path) // prettier-ignore
})

t.test('a policy that would delete all there is is none', async t => {
  t.throws(() => checkConditions({ path: '**' }), { code: 'BAD_REQUEST' })
  t.throws(() => checkConditions({ prerelease: 'only' }), { code: 'BAD_REQUEST' })
  t.throws(() => checkConditions({ unchangedDays: 1, path: '//' }), { code: 'BAD_REQUEST' })
  t.doesNotThrow(() => checkConditions({ keepNewest: { count: 1, of: 'folders' } }))
})
