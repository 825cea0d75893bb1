import t, { type Test } from 'tap'
import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { audit } from '../../cli/audit.ts'
import { backup } from '../../cli/backup.ts'
import { cleanup } from '../../cli/cleanup.ts'
import { runClientCommand } from '../../cli/client.ts'
import { commandOf, commands } from '../../cli/commands.ts'
import { gc } from '../../cli/gc.ts'
import { repair } from '../../cli/repair.ts'
import { repo } from '../../cli/repo.ts'
import { deleteArtifacts } from '../../cli/delete.ts'
import { problemsOf, status } from '../../cli/status.ts'
import { awaitRun, humanTime, progressText, task } from '../../cli/task.ts'
import { trash } from '../../cli/trash.ts'
import { humanBytes, textTable } from '../../cli/text-table.ts'
import type { JobRun } from '../../proxy/metadata/job-types.ts'
import type { Digest } from '../../shared/ids.ts'
import type { ConfigSource } from '../../shared/config.ts'
import { HoldfastError } from '../../shared/errors.ts'
import { artifactOf } from '../proxy/artifacts/fixtures.ts'
import { ann, nothingToRepair, setUp, status as fakeStatus } from '../proxy/api/fake-world.ts'
import { eventually } from '../support/eventually.ts'

/** The address of a server that answers so. */
async function serve(t: Test, listener: RequestListener): Promise<string> {
  const server = createServer(listener).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

type Run = (...args: string[]) => Promise<{ code: number; out: string; err: string }>

function runner(command: typeof repo, env: ConfigSource['env']): Run {
  return async (...args) => {
    let [out, err] = ['', '']
    const write = { out: (text: string) => void (out += text), err: (text: string) => void (err += text) }
    const code = await command({ args, env }, write)
    return { code, out, err }
  }
}

t.test('repositories from the command line, against the real API', async t => {
  const { api, repositories } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const run = runner(repo, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  t.equal((await run('create', 'full')).code, 0)
  const made = await run('create', 'libs', '--redeploy', 'once', '--artifact-bytes-max', '2GiB')
  t.match(made, { code: 0, out: "repository 'libs' created\n", err: '' })
  t.match(repositories.get('libs'), { redeploy: 'once', artifactBytesMax: 2 ** 31, anonymousRead: false })
  t.equal((await run('set', 'libs', '--anonymous-read', 'on', '--artifact-bytes-max=none')).code, 0)
  t.match(repositories.get('libs'), { redeploy: 'once', artifactBytesMax: null, anonymousRead: true })
  const listed = await run('list', '--json')
  t.match(JSON.parse(listed.out), [
    { name: 'full' },
    { name: 'libs', anonymousRead: true },
    { name: 'open' },
    { name: 'shut' },
  ])
  t.match(
    (await run('list')).out,
    /^NAME +FORMAT +REDEPLOY +LARGEST +ANONYMOUS READ +TRASH +UPSTREAM\nfull .*\nlibs +raw +once +- +on +7 d +-\n/,
  )
  t.match(await run('create', 'libs'), { code: 1, err: 'holdfast: the name is taken [CONFLICT]\n' })
  t.equal((await run('delete', 'libs')).code, 0)
  t.notOk(repositories.has('libs'))
  t.equal((await run('create', 'mirror', '--upstream', 'https://host/a', '--upstream-max-age', '60')).code, 0)
  const upstream = { url: 'https://host/a/', maxAgeSeconds: 60, absentMaxAgeSeconds: 300 }
  t.same(repositories.get('mirror')?.upstream, upstream)
  t.equal((await run('set', 'mirror', '--upstream-absent-age', '9')).code, 0)
  t.same(repositories.get('mirror')?.upstream, { ...upstream, absentMaxAgeSeconds: 9 }, 'the rest stays')
  t.match((await run('list')).out, /mirror .* https:\/\/host\/a\//)
  t.match(await run('set', 'open', '--upstream-max-age', '5'), { code: 2, err: /--upstream <url>/ })
  t.match(await run('set', 'mirror', '--upstream', 'https://u:p4ss@host/'), { code: 2, err: /not supported/ })
  t.equal((await run('set', 'mirror', '--upstream', 'none')).code, 0)
  t.equal(repositories.get('mirror')?.upstream, null)
  t.equal((await run('set', 'full', '--upstream', 'https://host/')).code, 1, 'it has artifacts')
  t.equal((await run('set', 'full', '--upstream', 'https://host/', '--force')).code, 0)
  t.match(repositories.get('full')?.upstream, { url: 'https://host/' })
  const failed = await run('delete', 'libs', '--json')
  t.equal(failed.code, 1)
  t.match(JSON.parse(failed.err), { code: 'REPOSITORY_NOT_FOUND' })
  t.equal((await run('create', 'NO')).code, 2, 'a name that cannot be')
})

t.test('deleting, and the trash, from the command line', async t => {
  const world = await setUp(t)
  const url = await serve(t, (request, response) => world.api.routing(request, response))
  const env = { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' }
  const [remove, run] = [runner(deleteArtifacts, env), runner(trash, env)]
  t.match(await remove('open/a/b'), { code: 0, out: '1 artifact deleted\n' })
  t.equal((await remove('open/a/')).code, 0)
  t.match(await remove('open/nope/'), { code: 1, out: '', err: /ARTIFACT_NOT_FOUND/ })
  t.match(await remove('open/many/'), { code: 1, err: /CONFLICT/ })
  t.equal((await remove('open/many/', '--confirm', '5000')).code, 0)
  t.equal((await remove('open')).code, 2, 'a repository must be named with its slash')
  t.match(await run('list', 'open'), { code: 0, out: 'nothing\n' })
  t.match(await run('restore', 'open/a'), { code: 1, err: /ARTIFACT_NOT_FOUND/ })
  world.trash = [{ id: 3, artifact: artifactOf('f/ü'), deletedBy: 'dan', deletedAt: 0, expiresAt: 86_400_000 }]
  const long = { ...world.trash[0]!, artifact: artifactOf('l'.repeat(800)) }
  world.trash = [...world.trash, long]
  t.equal(
    (await run('list', 'open/f/')).out,
    `SIZE   DELETED              BY   UNTIL                PATH
3 B    1970-01-01 00:00:00  dan  1970-01-02 00:00:00  f/ü
800 B  1970-01-01 00:00:00  dan  1970-01-02 00:00:00  ${'l'.repeat(800)}
`,
  )
  world.trash = [world.trash[0]!]
  t.match(await run('restore', 'open/f/', '--overwrite'), {
    code: 1,
    out: /^1 restored, 1 refused\nx: something lives/,
  })
  t.match(await run('purge', 'open/f/'), { code: 0, out: /^1 forgotten\n/ })
  world.trash = []
  t.match(await run('purge', 'open/g/'), { code: 1, err: /ARTIFACT_NOT_FOUND/ })
  t.equal((await run('purge', 'open')).code, 2)
  t.equal((await run('shred', 'open/')).code, 2)
  t.same(world.changes, [
    ['delete', 'open/a/b', 'admin'],
    ['delete folder', 'open/a/', 'admin'],
    ['delete folder', 'open/many/', 'admin'],
    ['list trash', 'open/', undefined],
    ['restore', 'open/a', 'admin', false],
    ['list trash', 'open/f/', undefined],
    ['restore', 'open/f/', 'admin', true],
    ['purge', 'open/f/'],
    ['purge', 'open/g/'],
  ])
  const changed = await runner(repo, env)('set', 'open', '--trash-days', '30')
  t.equal(changed.code, 0)
  t.equal(world.repositories.get('open')?.trashDays, 30)
  t.equal((await runner(repo, env)('set', 'open', '--trash-days', '9999')).code, 2)
})

t.test('repairs from the command line, against the real API', async t => {
  const world = await setUp(t)
  const url = await serve(t, (request, response) => world.api.routing(request, response))
  const run = runner(repair, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  t.match(await run('status'), { code: 0, out: 'Nothing waits for repair.\n' })
  world.repairs = {
    blobs: 1_200, references: 3, bytes: 5 * 2 ** 30, due: 1_203, failing: 0, waiting: 7, oldestAgeMs: 300_000, away: [{ shard: 'node-b-1', state: 'failed', partitions: 1_366 }],
    shards: [{ shard: 'node-a-1', copies: 1_203 }], entriesPerSec: 20, bytesPerSec: 2 ** 26, partitionsToCompare: 40, remainingMs: 80_000, lostBlobs: 12, lost: [{ digest: 'd' as Digest, names: ['raw/a', 'raw/b'] }],
  } // prettier-ignore
  const { code, out } = await run('status')
  t.equal(code, 1)
  t.match(out, /1200 blobs \(about 5 GiB\) and 3 references wait/)
  t.match(
    out,
    /20\.0 repairs and 64 MiB a second, about 80 s left\n7 of them .*\n40 partitions are still to be compared\n/,
  )
  t.match(out, /\n7 of them lack a copy on a shard that is away: no time is told for these\n/)
  t.match(
    out,
    /! shard node-b-1 is failed: of what it held in 1366 partitions nothing is counted here, nor made anew until its disk/,
  )
  t.match(out, /node-a-1 +1203/)
  t.match(out, /no good copy is left of d: raw\/a, raw\/b\n! and of 11 more\n/)
  t.match(JSON.parse((await run('status', '--json')).out), world.repairs)
  world.repairs = { ...nothingToRepair, away: [{ shard: 'node-b-1', state: 'down', partitions: 5 }] }
  t.match(await run('status'), {
    code: 1,
    out: /^Nothing waits for repair\.\n! shard node-b-1 is down: .* unless it is out\n/,
  })
  t.match(await run('run'), { code: 0, out: /^1 repairs that waited/ })
  t.same(world.changes, [['repairs now']])
  t.match(await run('hurry'), { code: 2, err: /holdfast repair status/ })
})

t.test('the audit log from the command line, against the real API', async t => {
  const world = await setUp(t)
  const url = await serve(t, (request, response) => world.api.routing(request, response))
  const run = runner(audit, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  await world.call('DELETE', '/repositories/open')
  await world.call('DELETE', '/repositories/shut', undefined, ann)
  world.audit.push({ user: 'x\n\u001b[2J', action: 'write', subject: 'a', outcome: 'unauthorized', address: '::1' })
  t.equal(
    (await run('--limit', '2')).out,
    `ID  TIME (UTC)           USER    FROM       ACTION             OUTCOME       WHAT
3   1970-01-01 00:00:02  x??[2J  ::1        write              unauthorized  a
2   1970-01-01 00:00:01  ann     192.0.2.1  repository.delete  FORBIDDEN     /api/v1/repositories/shut
`,
  )
  const older = await run('--before', '2', '--json')
  t.match(JSON.parse(older.out), [{ id: 1, user: 'admin', action: 'repository.delete', outcome: 'done' }])
  t.equal((await run('list')).code, 2)
  for (const limit of ['0', '1001']) {
    t.match(await run('--limit', limit), { code: 2, err: '1 to 1000' })
    t.equal((await world.call('GET', `/audit?limit=${limit}`)).statusCode, 400)
  }
  t.equal((await world.call('GET', '/audit', undefined, ann)).statusCode, 403)
})

t.test('ages of garbage collection are told in units that fit', async t => {
  const world = await setUp(t)
  const url = await serve(t, (request, response) => world.api.routing(request, response))
  const run = runner(gc, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  for (const [minAgeMs, holdMs, text] of [
    [3_600_000, 86_400_000, 'unused for 1 h are condemned, and deleted 24 h later'],
    [5_400_000, 60_000, 'unused for 1.5 h are condemned, and deleted 1 min later'],
    [2_000, 1, 'unused for 2 s are condemned, and deleted 0.001 s later'],
    [0, 90_000, 'unused for 0 s are condemned, and deleted 1.5 min later'],
  ] as const) {
    Object.assign(world.collectionAges, { minAgeMs, holdMs })
    t.match(await run('status'), { code: 0, out: text })
  }
})

t.test('cleanup policies from the command line, against the real API', async t => {
  const world = await setUp(t)
  const url = await serve(t, (request, response) => world.api.routing(request, response))
  const run = runner(cleanup, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  t.match(await run('create', 'old', '--path', '**/*.zip'), { code: 2, err: /needs unchangedDays/ })
  const made = await run('create', 'old', '--unchanged-days', '30', '--path', 'a/**', '--repositories', 'open,shut')
  t.match(made, { code: 0, out: /preview old/ })
  const old = {
    name: 'old',
    repositories: ['open', 'shut'],
    conditions: { unchangedDays: 30, path: 'a/**' },
    enabled: false,
  }
  t.same(world.policies.get('old'), old)
  t.equal((await run('create', 'old', '--unchanged-days', '30')).code, 1)
  t.match(
    (await run('preview', 'old')).out,
    /^would delete 3 of 9 artifacts, 2 KiB\nand more: .*\nopen\/old\nand 2 more\n$/,
  )
  const set = [
    '--enabled',
    'on',
    '--repositories',
    'all',
    '--path',
    'none',
    '--keep-newest',
    '3',
    '--prerelease',
    'only',
  ]
  t.equal((await run('set', 'old', ...set)).code, 0)
  t.same(world.policies.get('old'), {
    name: 'old', repositories: null, enabled: true,
    conditions: { unchangedDays: 30, keepNewest: { count: 3, of: 'artifacts' }, prerelease: 'only' },
  }) // prettier-ignore
  t.match((await run('list')).out, /\nold +on +all +pre-releases, unchanged for 30 d, not the newest 3 artifacts\n/)
  t.equal((await run('set', 'old', '--unchanged-days', 'none', '--keep-newest', 'none')).code, 2, 'it would delete all')
  t.equal((await run('set', 'old', '--keep-newest-of', 'folders')).code, 0)
  t.equal((await run('set', 'old', '--keep-newest', '4')).code, 0)
  const { keepNewest } = world.policies.get('old')?.conditions ?? {}
  t.same(keepNewest, { count: 4, of: 'folders' }, 'another number changes no kind of version')
  t.equal((await run('set', 'old', '--keep-newest', 'none')).code, 0)
  t.match(await run('set', 'old', '--keep-newest-of', 'folders'), { code: 2, err: /--keep-newest/ })
  t.equal((await run('set', 'old', '--keep-newest', '3', '--keep-newest-of', 'artifacts')).code, 0)
  t.equal((await run('set', 'old')).code, 2)
  t.equal((await run('set', 'new', '--enabled', 'on')).code, 1)
  t.equal((await run('set', 'old', '--path', '//')).code, 2)
  t.match(await run('run'), { code: 1, err: /NOT_FOUND/ }, 'the fake has no such task')
  t.equal((await run('delete', 'old')).code, 0)
  t.match(await run('delete', 'old'), { code: 1, err: /NOT_FOUND/ })
  t.match(world.audit.map(({ action }) => action).filter(one => one.startsWith('cleanup')).slice(-2), ['cleanup.delete', 'cleanup.delete']) // prettier-ignore
})

t.test('what cannot be meant exits with 2 and asks nobody', async t => {
  const url = await serve(t, () => t.fail('asked'))
  const run = runner(repo, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'x' })
  for (const args of [
    [],
    ['lost'],
    ['toString', 'x'],
    ['create'],
    ['list', 'x'],
    ['create', 'a', 'b'],
    ['set', 'a'],
    ['set', 'a', '--redeploy', 'maybe'],
    ['create', 'a', '--artifact-bytes-max', '0'],
    ['create', 'a', '--password', 'x'],
    ['list', '--url', 'ftp://x'],
    ['list', '--what'],
  ]) {
    // prettier-ignore
    const { code, err } = await run(...args)
    t.equal(code, 2, args.join(' '))
    t.match(err, /^holdfast: /)
  }
})

t.test('a number that cannot be is refused with its bounds, which are those of the API', async t => {
  const { api } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const env = { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' }
  const [repos, policies] = [runner(repo, env), runner(cleanup, env)]
  t.equal((await policies('create', 'old', '--unchanged-days', '30')).code, 0)
  const set = { repo: (...args: string[]) => repos('set', 'open', ...args), policy: (...args: string[]) => policies('set', 'old', ...args) } // prettier-ignore
  for (const [run, flag, bounds] of [
    [set.repo, '--trash-days', [0, 3_650]],
    [set.repo, '--upstream-max-age', [0, 31_622_400]],
    [set.repo, '--upstream-absent-age', [0, 31_622_400]],
    [set.policy, '--unchanged-days', [1, 36_500]],
    [set.policy, '--not-downloaded-days', [1, 36_500]],
    [set.policy, '--keep-newest', [1, 10_000]],
  ] as const) {
    const more = flag.startsWith('--upstream') ? ['--upstream', 'https://host/'] : []
    for (const good of bounds) t.match(await run(`${flag}=${good}`, ...more), { code: 0, err: '' }, `${flag} ${good}`)
    const beyond = await run(`${flag}=${bounds[1] + 1}`, ...more)
    t.match(beyond, { code: 2, err: `must be <= ${bounds[1]}` }, flag)
    for (const bad of ['-1', '99999999999']) {
      t.match(await run(`${flag}=${bad}`), { code: 2, err: `${flag} is '${bad}', but must be a number` })
      t.match((await run(`${flag}=${bad}`)).err, ` from ${bounds[0]} to ${bounds[1]}`)
    }
  }
})

t.test('the password is taken from the environment, or from the data folder', async t => {
  const { api } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const data = t.testdir({ 'admin.password': 'root-root\n' })
  t.equal((await runner(repo, { HOLDFAST_URL: url, HOLDFAST_DATA: data })('list')).code, 0)
  const without = await runner(repo, { HOLDFAST_URL: url, HOLDFAST_DATA: join(data, 'none') })('list')
  t.match(without, { code: 1, err: /UNAUTHORIZED/ })
  t.match(
    without.err,
    `there is no ${join(data, 'none', 'admin.password')}: the password is taken from HOLDFAST_PASSWORD`,
  )
  const torn = await runner(repo, { HOLDFAST_URL: url, HOLDFAST_DATA: join(data, 'admin.password') })('list')
  t.match(torn.err, /admin\.password cannot be read \(ENOTDIR\): the password is taken/)
  const wrong = await runner(repo, { HOLDFAST_URL: url, HOLDFAST_DATA: data, HOLDFAST_PASSWORD: 'wrong' })('list')
  t.match(wrong, { code: 1, err: /UNAUTHORIZED/ })
  t.equal((await runner(repo, { HOLDFAST_DATA: data })('list', '--port', new URL(url).port)).code, 0)
})

t.test('the password of the cluster on this machine is sent to no other host', async t => {
  const sent: (string | null)[] = []
  t.intercept(globalThis, 'fetch', {
    value: async (_: unknown, init: RequestInit) => {
      sent.push(new Headers(init.headers).get('authorization'))
      return new Response('{"repositories":[]}')
    },
  })
  const data = t.testdir({ data: { 'admin.password': 'root-root\n' } })
  const before = process.cwd()
  process.chdir(data)
  t.teardown(() => process.chdir(before))
  const password = 'Basic ' + Buffer.from('admin:root-root').toString('base64')
  for (const [url, ...more] of [
    ['http://127.0.0.1:1'],
    ['http://localhost:1'],
    ['http://[::1]:1'],
    ['http://example.net', '--data', './data'],
  ] as const) {
    t.equal((await runner(repo, {})('list', '--url', url, ...more)).code, 0)
    t.equal(sent.pop(), password, url)
  }
  for (const url of ['http://example.net', 'https://localhost.example.net', 'http://127.0.0.1.example.net:8080']) {
    await runner(repo, {})('list', '--url', url)
    t.equal(sent.pop(), null, url)
  }
  t.match(await runner(repo, {})('list', '--url', 'http://[::'), { code: 2, err: /URL/ })
})

t.test('errors are JSON for whoever asked for JSON, however they did', async t => {
  const failed = await runner(repo, { HOLDFAST_JSON: 'true', HOLDFAST_PASSWORD: 'x' })('list', '--url', 'ftp://x')
  t.match(JSON.parse(failed.err), { code: 'CONFIG_INVALID' })
})

t.test('who waits for a task goes on waiting while a proxy is restarted, not for ever', async t => {
  const answers = [
    new HoldfastError('NODE_UNREACHABLE', 'away'),
    { state: 'running' },
    new HoldfastError('METADATA_UNAVAILABLE', 'away', { status: 503 }),
    new HoldfastError('INTERNAL', 'the server answers 502', { status: 502 }),
    { state: 'succeeded' },
  ]
  const call = async (): Promise<unknown> => {
    const answer = answers.shift()
    if (answer instanceof Error) throw answer
    return answer
  }
  t.match(await awaitRun({ call }, '/tasks/x', 1), { state: 'succeeded' })
  const refused = async (): Promise<unknown> => {
    throw new HoldfastError('NOT_FOUND', 'no such run', { status: 404 })
  }
  await t.rejects(awaitRun({ call: refused }, '/tasks/x', 1), { code: 'NOT_FOUND' })
  const away = async (): Promise<unknown> => {
    throw new HoldfastError('NODE_UNREACHABLE', 'away')
  }
  await t.rejects(awaitRun({ call: away }, '/tasks/x', 1, 0), { code: 'NODE_UNREACHABLE' })
})

t.test('a server that is away, silent, or another one is told apart from a refusal', async t => {
  const away = await runner(repo, { HOLDFAST_URL: 'http://127.0.0.1:1', HOLDFAST_PASSWORD: 'x' })('list')
  t.match(away, { code: 1, err: /NODE_UNREACHABLE/ })
  const silent = await serve(t, () => undefined)
  const late = await runner(repo, { HOLDFAST_URL: silent, HOLDFAST_PASSWORD: 'x' })('list', '--timeout-ms=100')
  t.match(late, { code: 1, err: /no answer .* within 100 ms: --timeout-ms .*NODE_UNREACHABLE/ })
  t.match(away, { err: /nobody answers/ })
  const other = await serve(t, (_, response) => void response.writeHead(502).end('<html>'))
  t.match(await runner(repo, { HOLDFAST_URL: other, HOLDFAST_PASSWORD: 'x' })('list'), { code: 1, err: /502/ })
  for (const body of ['<html>', '"x"', '{"a":1}', 'null']) {
    const page = await serve(t, (_, response) => void response.writeHead(200).end(body))
    const found = await runner(repo, { HOLDFAST_URL: page, HOLDFAST_PASSWORD: 'x' })('list')
    t.match(found, { code: 1, out: '', err: `holdfast: no Holdfast answers at ${page} [NODE_UNREACHABLE]\n` }, body)
  }
  const cut = await serve(t, (_, response) => {
    response.writeHead(200, { 'content-length': 100 })
    response.write('{', () => response.destroy())
  })
  t.match(await runner(repo, { HOLDFAST_URL: cut, HOLDFAST_PASSWORD: 'x' })('list'), {
    code: 1,
    err: /NODE_UNREACHABLE/,
  })
})

t.test('a mistake of ours is not taken for another server', async t => {
  const { api } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const broken = async (): Promise<number> => {
    throw new TypeError('ours')
  }
  const source = { args: [], env: { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' } }
  await t.rejects(runClientCommand({}, source, broken), { message: 'ours' })
})

t.test('backups from the command line, against the real API', async t => {
  const { api, jobStore: store } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const run = runner(backup, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  t.match(await run('list'), { code: 1, out: /^BACKUP .*\n20260301t000000z-1 .*\n20260301t000000z-2 is damaged: torn\n$/ }) // prettier-ignore
  for (const args of [['remove'], ['remove', 'a', 'b'], ['list', 'x']]) t.equal((await run(...args)).code, 2)
  const removing = run('remove', '20260301t000000z-2', '--last')
  await eventually('it is queued', () => store.runs.length === 1)
  t.match(store.runs[0], { job: 'backup', params: { remove: '20260301t000000z-2', last: true } })
  await store.claim(1, 1)
  await store.finish(1, 1, { state: 'failed', lines: ['tried'], error: { code: 'NOT_FOUND', message: 'but a, b' } })
  t.match(await removing, { code: 1, out: /^tried\nrun 1 of backup: failed: but a, b \[NOT_FOUND\]/ })
})

t.test('tasks from the command line, against the real API', async t => {
  const { api, jobStore: store } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const run = runner(task, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  t.match((await run('list')).out, /^TASK +STATE +SCHEDULE.*\nbackup .*\ndrill +idle +- +- +- +Practise\ntidy +idle +0 4 \* \* \* +2026-01-01 04:00:00 +- +Tidy up\n/) // prettier-ignore
  t.match(JSON.parse((await run('list', '--json')).out), [{ name: 'backup' }, { name: 'drill' }, { name: 'tidy' }])
  t.match(await run('run', 'tidy', '--params', '{"deep":true}'), { code: 0, out: 'run 1 of tidy is queued\n', err: '' })
  t.match(await run('run', 'tidy'), { code: 1, err: /CONFLICT/ })
  await store.claim(1, 1)
  await store.report(1, 1, { lines: ['first', 'second'], progress: { done: 1, total: 4, unit: 'files', note: 'a' } })
  t.match((await run('list')).out, 'running 1 of 4 files (25 %), a')
  t.match((await run('stop', 'tidy')).out, 'run 1 of tidy ends after its step\n')
  await store.finish(1, 1, { state: 'stopped', lines: ['third'] })
  t.match(await run('stop', 'tidy'), { code: 1, err: /CONFLICT/ })
  t.match((await run('log', 'tidy')).out, /^2026-01-01 00:00:00 {2}first\n.* {2}second\n.* {2}third\n$/)
  t.equal((await run('log', 'tidy', '--run', '1')).code, 0)
  t.match(await run('log', 'tidy', '--run', '2'), { code: 1, err: /NOT_FOUND/ })
  t.match(await run('log', 'drill'), { code: 1, err: /never run/ })
  t.match((await run('show', 'tidy')).out, /^tidy: Tidy up\n(.*\n)+1 +stopped +admin +2026/)
  t.match(JSON.parse((await run('show', 'tidy', '--json')).out), { name: 'tidy', runs: [{ id: 1 }] })
  t.equal((await run('disable', 'tidy')).out, 'tidy: disabled, schedule 0 4 * * *\n')
  t.equal((await run('enable', 'tidy')).out, 'tidy: enabled, schedule 0 4 * * *\n')
  t.equal((await run('schedule', 'tidy', '5 * * * *')).out, 'tidy: enabled, schedule 5 * * * *\n')
  t.equal((await run('schedule', 'tidy', '6', '*', '*', '*', '*')).out, 'tidy: enabled, schedule 6 * * * *\n')
  t.equal((await run('schedule', 'tidy', 'none')).out, 'tidy: enabled, schedule none\n')
  t.equal((await run('schedule', 'tidy', 'default')).out, 'tidy: enabled, schedule 0 4 * * *\n')
  t.match(await run('schedule', 'tidy', 'never'), { code: 2, err: /BAD_REQUEST/ })
  t.match(await run('run', 'nothing'), { code: 1, err: /NOT_FOUND/ })
  for (const args of [[], ['list', 'x'], ['run'], ['run', 'a', 'b'], ['toString'], ['run', 'a', '--params', '{'], ['log', 'a', '--run', 'x']]) {
    t.equal((await run(...args)).code, 2, args.join(' '))
  } // prettier-ignore

  const waited = run('run', 'drill', '--wait')
  await eventually('it is queued', () => store.runs.length === 2)
  await store.claim(2, 1)
  await store.finish(2, 1, { state: 'succeeded', lines: [], progress: { done: 7, unit: 'files' } })
  t.match(await waited, { code: 0, out: 'run 2 of drill: succeeded, 7 files\n' })
  const failing = run('run', 'drill', '--wait', '--json')
  await eventually('it is queued', () => store.runs.length === 3)
  await store.claim(3, 1)
  await store.finish(3, 1, { state: 'failed', error: { code: 'INTERNAL', message: 'oh' }, lines: [] })
  const failed = await failing
  t.equal(failed.code, 1)
  t.match(JSON.parse(failed.out), { state: 'failed', error: { message: 'oh' } })

  t.same([5, 59_000, 61_000, 180_000, 9_000_000, 400_000_000].map(humanTime), [
    '5 ms',
    '59 s',
    '61 s',
    '3 min',
    '3 h',
    '5 d',
  ])
  const moving = {
    progress: { done: 1, total: 0, unit: 'x', rate: 2.5 },
    estimatedEndAt: null,
    state: 'running',
  } as JobRun
  t.equal(progressText(moving), '1 of 0 x, 2.5/s')
})

t.test('status exits with 0 when all is well, with 1 when it is not', async t => {
  const { api } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const run = runner(status, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  const text = await run()
  t.equal(text.code, 1)
  t.match(text.out, /^cluster c, Holdfast 1, epoch 3/)
  t.match(text.out, '! coordination by memory pauses: gone')
  t.match(JSON.parse((await run('--json')).out), { clusterId: 'c', problems: [/coordination/] })
  const good = { ...fakeStatus, primary: 'm', coordination: { driver: 'redis', up: true } }
  t.same(problemsOf(good), [])
  t.same(problemsOf({ ...good, primary: null, pendingRepairs: 2, postgres: { up: false }, epoch: null }).length, 4)
  const failedTask = { name: 'gc', state: 'idle', lastState: 'failed', lastError: 'oh' }
  t.same(problemsOf({ ...good, tasks: [failedTask] }), ['the last run of task gc failed: oh'])
  const node = good.nodes[0]
  if (node === undefined) throw new Error('no node')
  const failing = { id: 's', weight: 1, state: 'failed', reason: 'EIO' }
  t.same(problemsOf({ ...good, nodes: [{ ...node, shards: [failing] }] }), ['shard s is failed: EIO'])
  t.same(problemsOf({ ...good, nodes: [{ ...node, state: 'down', shards: [failing] }] }), ['node n in zone a is down'])
})

t.test('text is aligned, sizes are readable, every command has its help', async t => {
  t.equal(textTable(['A', 'B'], [['xx', ''], ['y', 'zz']]), 'A   B\nxx\ny   zz') // prettier-ignore
  t.same([0, 1000, 1536, 2 ** 31, 5 * 2 ** 50].map(humanBytes), ['0 B', '1000 B', '1.5 KiB', '2 GiB', '5 PiB'])
  for (const [name, { help, summary }] of Object.entries(commands)) {
    t.match(await help(), /--[a-z-]+/, name)
    t.ok(summary.length < 80)
    t.equal(commandOf(name), commands[name])
  }
  for (const name of [undefined, 'lost', 'toString', 'constructor', '__proto__']) t.equal(commandOf(name), undefined)
  t.match(await commands['backup']?.help(), /--scratch/)
})
