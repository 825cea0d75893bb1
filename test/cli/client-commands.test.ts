import t, { type Test } from 'tap'
import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { commands } from '../../cli/commands.ts'
import { repo } from '../../cli/repo.ts'
import { problemsOf, status } from '../../cli/status.ts'
import { humanBytes, textTable } from '../../cli/text-table.ts'
import type { ConfigSource } from '../../shared/config.ts'
import { setUp, status as fakeStatus } from '../proxy/api/fake-world.ts'

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
  const made = await run('create', 'libs', '--redeploy', 'once', '--artifact-bytes-max', '2GiB')
  t.match(made, { code: 0, out: "repository 'libs' created\n", err: '' })
  t.match(repositories.get('libs'), { redeploy: 'once', artifactBytesMax: 2 ** 31, anonymousRead: false })
  t.equal((await run('set', 'libs', '--anonymous-read', 'on', '--artifact-bytes-max=none')).code, 0)
  t.match(repositories.get('libs'), { redeploy: 'once', artifactBytesMax: null, anonymousRead: true })
  const listed = await run('list', '--json')
  t.match(JSON.parse(listed.out), [{ name: 'libs', anonymousRead: true }, { name: 'open' }, { name: 'shut' }])
  t.match((await run('list')).out, /^NAME +FORMAT +REDEPLOY +LARGEST +ANONYMOUS READ\nlibs +raw +once +- +on\n/)
  t.match(await run('create', 'libs'), { code: 1, err: 'holdfast: the name is taken [CONFLICT]\n' })
  t.equal((await run('delete', 'libs')).code, 0)
  t.notOk(repositories.has('libs'))
  const failed = await run('delete', 'libs', '--json')
  t.equal(failed.code, 1)
  t.match(JSON.parse(failed.err), { code: 'REPOSITORY_NOT_FOUND' })
  t.equal((await run('create', 'NO')).code, 2, 'a name that cannot be')
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

t.test('the password is taken from the environment, or from the data folder', async t => {
  const { api } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const data = t.testdir({ 'admin.password': 'root-root\n' })
  t.equal((await runner(repo, { HOLDFAST_URL: url, HOLDFAST_DATA: data })('list')).code, 0)
  const without = await runner(repo, { HOLDFAST_URL: url, HOLDFAST_DATA: join(data, 'none') })('list')
  t.match(without, { code: 1, err: /UNAUTHORIZED/ })
  const wrong = await runner(repo, { HOLDFAST_URL: url, HOLDFAST_DATA: data, HOLDFAST_PASSWORD: 'wrong' })('list')
  t.match(wrong, { code: 1, err: /UNAUTHORIZED/ })
  t.equal((await runner(repo, { HOLDFAST_DATA: data })('list', '--port', new URL(url).port)).code, 0)
})

t.test('a server that is away, silent, or another one is told apart from a refusal', async t => {
  const away = await runner(repo, { HOLDFAST_URL: 'http://127.0.0.1:1', HOLDFAST_PASSWORD: 'x' })('list')
  t.match(away, { code: 1, err: /NODE_UNREACHABLE/ })
  const silent = await serve(t, () => undefined)
  const late = await runner(repo, { HOLDFAST_URL: silent, HOLDFAST_PASSWORD: 'x' })('list', '--timeout-ms=100')
  t.match(late, { code: 1, err: /NODE_UNREACHABLE/ })
  const other = await serve(t, (_, response) => void response.writeHead(502).end('<html>'))
  t.match(await runner(repo, { HOLDFAST_URL: other, HOLDFAST_PASSWORD: 'x' })('list'), { code: 1, err: /502/ })
  const cut = await serve(t, (_, response) => {
    response.writeHead(200, { 'content-length': 100 })
    response.write('{', () => response.destroy())
  })
  t.match(await runner(repo, { HOLDFAST_URL: cut, HOLDFAST_PASSWORD: 'x' })('list'), {
    code: 1,
    err: /NODE_UNREACHABLE/,
  })
})

t.test('status exits with 0 when all is well, with 1 when it is not', async t => {
  const { api } = await setUp(t)
  const url = await serve(t, (request, response) => api.routing(request, response))
  const run = runner(status, { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'root-root' })
  const text = await run()
  t.equal(text.code, 1)
  t.match(text.out, /^cluster c, Holdfast 1, epoch 3/)
  t.match(text.out, '! coordination by memory is away: gone')
  t.match(JSON.parse((await run('--json')).out), { clusterId: 'c', problems: [/coordination/] })
  const good = { ...fakeStatus, primary: 'm', coordination: { driver: 'redis', up: true } }
  t.same(problemsOf(good), [])
  t.same(problemsOf({ ...good, primary: null, pendingRepairs: 2, postgres: { up: false }, epoch: null }).length, 4)
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
  }
})
