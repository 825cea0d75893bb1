import t from 'tap'
import fastify from 'fastify'
import { Check } from 'typebox/schema'
import { userKey } from '../../../proxy/access/authenticator.ts'
import { anonymous } from '../../../proxy/access/principal.ts'
import { installAccessControl } from '../../../proxy/api/access-control.ts'
import { repositoriesKey } from '../../../proxy/artifacts/repositories.ts'
import type { Repository } from '../../../proxy/metadata/types.ts'
import type { TrashEntry } from '../../../proxy/metadata/trash-types.ts'
import { encodeClusterMap, sealClusterMap, settledEntry } from '../../../shared/cluster-map.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { partitionCount } from '../../../shared/partition.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'
import { artifactOf } from '../artifacts/fixtures.ts'
import { admin, ann, basic, setUp, status } from './fake-world.ts'

/** An answer as the OpenAPI document has it. */
interface Described {
  readonly content?: { readonly 'application/json': { readonly schema?: object } }
}

t.test('repositories: created, shown, changed, deleted, and every proxy hears of it', async t => {
  const { call, announced, audit } = await setUp(t)
  const made = await call('POST', '/repositories', { name: 'new', redeploy: 'once' })
  t.equal(made.statusCode, 201)
  t.equal(made.headers.location, '/api/v1/repositories/new')
  t.match(made.json(), { name: 'new', redeploy: 'once', anonymousRead: false, artifactBytesMax: null })
  t.notHas(made.json(), { id: 1 })
  t.match((await call('POST', '/repositories', { name: 'new' })).json(), { code: 'CONFLICT' })
  const changed = await call('PATCH', '/repositories/new', { anonymousRead: true, artifactBytesMax: 5 })
  t.match(changed.json(), { redeploy: 'once', anonymousRead: true, artifactBytesMax: 5 })
  t.match((await call('GET', '/repositories/new')).json(), changed.json())
  t.same(
    (await call('GET', '/repositories')).json<{ repositories: Repository[] }>().repositories.map(one => one.name),
    ['new', 'open', 'shut'],
  )
  const deleted = await call('DELETE', '/repositories/new')
  t.equal(deleted.statusCode, 204)
  t.equal(deleted.body, '')
  t.match((await call('GET', '/repositories/new')).json(), { code: 'REPOSITORY_NOT_FOUND' })
  t.same(announced, [repositoriesKey, repositoriesKey, repositoriesKey])
  t.match(audit, [
    { user: 'admin', action: 'repository.create', subject: 'new', outcome: 'done', address: '192.0.2.1' },
    { action: 'repository.create', outcome: 'CONFLICT' },
    { action: 'repository.change', subject: '/api/v1/repositories/new', outcome: 'done' },
    { action: 'repository.delete', outcome: 'done' },
  ])
  t.equal(audit.length, 4, 'reads are not written down')
})

t.test('what a client sends is taken as it is or refused', async t => {
  const { call, repositories } = await setUp(t)
  const before = JSON.stringify([...repositories])
  for (const body of [
    {},
    { name: 'UPPER' },
    { name: '../x' },
    { name: 'x', redeploy: 'maybe' },
    { name: 'x', artifactBytesMax: '5' },
    { name: 'x', artifactBytesMax: 0 },
    { name: 'x', format: 'npm' },
    { name: 'x', anonymousRead: 1 },
    [],
    'x',
    null,
  ]) {
    // prettier-ignore
    const answer = await call('POST', '/repositories', body ?? undefined, { ...admin, 'content-type': 'application/json' })
    t.equal(answer.statusCode, 400, JSON.stringify(body))
    t.match(answer.json(), { code: 'BAD_REQUEST', message: String, requestId: String })
  }
  t.equal((await call('PATCH', '/repositories/open', {})).statusCode, 400)
  t.equal((await call('GET', '/repositories/UPPER')).statusCode, 400)
  t.match((await call('POST', '/repositories', { name: 'x'.repeat(70_000) })).json(), { code: 'TOO_LARGE' })
  t.match((await call('GET', '/nowhere')).json(), { code: 'NOT_FOUND', requestId: String })
  t.equal(JSON.stringify([...repositories]), before)
})

t.test('tasks: shown, run, stopped, scheduled by any proxy; wrong wishes are refused', async t => {
  const { call, jobStore: store, audit } = await setUp(t)
  t.match((await call('GET', '/tasks')).json(), {
    tasks: [
      { name: 'backup' },
      {
        name: 'drill',
        schedule: null,
        defaultSchedule: null,
        nextRunAt: null,
        enabled: true,
        state: 'idle',
        run: null,
      },
      { name: 'tidy', title: 'Tidy up', schedule: '0 4 * * *', nextRunAt: Date.UTC(2026, 0, 1, 4), lastState: null },
    ],
  })
  const begun = await call('POST', '/tasks/tidy/runs', { params: { deep: true } })
  t.equal(begun.statusCode, 202)
  t.equal(begun.headers.location, '/api/v1/tasks/tidy/runs/1')
  t.match(begun.json(), { id: 1, job: 'tidy', state: 'queued', origin: 'user', user: 'admin', params: { deep: true } })
  t.match((await call('POST', '/tasks/tidy/runs', {})).json(), { code: 'CONFLICT' })
  await store.claim(1, 1)
  await store.report(1, 1, {
    lines: ['one', 'two'],
    progress: { done: 1, total: 2, unit: 'x', rate: 1 },
    remainingMs: 5,
  })
  t.match((await call('GET', '/tasks/tidy')).json(), {
    state: 'running',
    run: { token: 1, progress: { done: 1, total: 2, unit: 'x', rate: 1 }, estimatedEndAt: store.now + 5 },
  })
  const stopped = await call('POST', '/tasks/tidy/stop', {})
  t.equal(stopped.statusCode, 202)
  t.match(stopped.json(), { state: 'running', stoppedBy: 'admin' })
  await store.finish(1, 1, { state: 'failed', error: { code: 'INTERNAL', message: 'oh' }, lines: [] })
  t.match((await call('GET', '/tasks/tidy/runs')).json(), { runs: [{ id: 1, state: 'failed', error: { message: 'oh' } }] }) // prettier-ignore
  t.match((await call('GET', '/tasks/tidy/runs/1')).json(), { id: 1, state: 'failed' })
  t.match((await call('GET', '/tasks/tidy')).json(), { state: 'idle', lastState: 'failed', lastError: 'oh' })
  t.same((await call('GET', '/tasks/tidy/runs/1/log?after=1')).json(), { lines: [{ seq: 2, at: store.now, line: 'two' }] }) // prettier-ignore
  const changed = await call('PATCH', '/tasks/tidy', { schedule: '*/5  1-2 * * 1', enabled: false })
  t.match(changed.json(), { schedule: '*/5 1-2 * * 1', defaultSchedule: '0 4 * * *', enabled: false, nextRunAt: null })
  t.match((await call('PATCH', '/tasks/tidy', { schedule: null, enabled: true })).json(), { schedule: null, enabled: true }) // prettier-ignore
  t.match((await call('PATCH', '/tasks/tidy', { schedule: 'default' })).json(), { schedule: '0 4 * * *' })
  const refusals: [Parameters<typeof call>, string][] = [
    [['POST', '/tasks/tidy/stop', {}], 'CONFLICT'],
    [['POST', '/tasks/tidy/runs', { params: { deep: 'x' } }], 'BAD_REQUEST'],
    [['POST', '/tasks/drill/runs', { params: { deep: true } }], 'BAD_REQUEST'],
    [['POST', '/tasks/tidy/runs', { params: { x: 'x'.repeat(20_000) } }], 'TOO_LARGE'],
    [['POST', '/tasks/tidy/runs', { what: 1 }], 'BAD_REQUEST'],
    [['POST', '/tasks/tidy/runs', { params: [] }], 'BAD_REQUEST'],
    [['PATCH', '/tasks/tidy', {}], 'BAD_REQUEST'],
    [['PATCH', '/tasks/tidy', { schedule: '61 * * * *' }], 'BAD_REQUEST'],
    [['PATCH', '/tasks/tidy', { schedule: 5 }], 'BAD_REQUEST'],
    [['GET', '/tasks/tidy/runs/x'], 'BAD_REQUEST'],
    [['GET', '/tasks/tidy/runs/1/log?after=-1'], 'BAD_REQUEST'],
    [['GET', '/tasks/tidy/runs/7'], 'NOT_FOUND'],
    [['GET', '/tasks/drill/runs/1'], 'NOT_FOUND'],
    [['GET', '/tasks/drill/runs/1/log'], 'NOT_FOUND'],
    [['GET', '/tasks/none'], 'NOT_FOUND'],
    [['POST', '/tasks/none/runs', {}], 'NOT_FOUND'],
    [['PATCH', '/tasks/none', { enabled: true }], 'NOT_FOUND'],
    [['POST', '/tasks/none/stop', {}], 'NOT_FOUND'],
    [['GET', '/tasks', undefined, ann], 'FORBIDDEN'],
    [['POST', '/tasks/tidy/runs', {}, ann], 'FORBIDDEN'],
  ]
  for (const [asked, code] of refusals) t.match((await call(...asked)).json(), { code }, `${asked[0]} ${asked[1]}`)
  t.equal(store.runs.length, 1)
  t.match(audit.slice(0, 3), [{ action: 'task.run', outcome: 'done' }, { action: 'task.run', outcome: 'CONFLICT' }, { action: 'task.stop', subject: '/api/v1/tasks/tidy/stop' }]) // prettier-ignore
})

t.test('status, the map and the description', async t => {
  const world = await setUp(t)
  t.same((await world.call('GET', '/status')).json(), status)
  t.match((await world.call('GET', '/cluster-map')).json(), { code: 'NOT_FOUND' })
  const described = await world.call('GET', '/openapi.json', undefined, {})
  t.equal(described.statusCode, 200)
  const document = described.json<{ paths: Record<string, { patch?: { requestBody?: object } }> }>()
  t.match(document, { openapi: '3.1.0', components: { securitySchemes: { basic: {} } } })
  t.ok(document.paths['/api/v1/repositories/{name}']?.patch?.requestBody)
  world.fault = new Error('SELECT * FROM secrets')
  const failed = await world.call('GET', '/status', undefined, { ...admin, 'x-request-id': 'mine' })
  t.same(failed.json(), { code: 'INTERNAL', message: 'internal error', requestId: 'mine' })
  t.equal(failed.headers['x-request-id'], 'mine')
  t.equal(world.logged.length, 1)
  world.fault = new HoldfastError('METADATA_UNAVAILABLE', 'PostgreSQL does not answer')
  const unavailable = await world.call('GET', '/status')
  t.equal(unavailable.statusCode, 503)
  t.equal(unavailable.headers['retry-after'], '2')
})

t.test('every answer has its schema, the cluster map as well', async t => {
  const world = await setUp(t)
  const built = buildClusterMap(topologyOf(evenSpec(4, 4)))
  const [first, ...rest] = built.shards
  world.map = sealClusterMap({
    ...built,
    shards: [{ ...first!, weight: 0, out: { weight: 1, since: 5, auto: true } }, ...rest],
    writesFrom: 1,
    previous: { since: 1, copies: 2, replicas: 2, table: new Uint16Array(partitionCount * 2).fill(settledEntry) },
  })
  const answer = await world.call('GET', '/cluster-map')
  t.equal(answer.body, encodeClusterMap(world.map), 'the text itself')
  const document: unknown = (await world.call('GET', '/openapi.json', undefined, {})).json()
  const { paths } = document as { paths: Record<string, Record<string, { responses: Record<string, Described> }>> }
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, { responses }] of Object.entries(methods)) {
      const good = Object.entries(responses).filter(([status]) => /^2/.test(status))
      t.equal(good.length, 1, `${method} ${path}`)
      for (const [status, { content }] of good) t.ok(status === '204' || content?.['application/json'].schema, path)
    }
  }
  const schema = paths['/api/v1/cluster-map']?.['get']?.responses['200']?.content?.['application/json'].schema
  const closed = JSON.parse(JSON.stringify(schema), (_, part: { type?: unknown } | null) =>
    part?.type === 'object' ? { ...part, additionalProperties: false } : part,
  ) as object
  t.ok(Check(closed, answer.json()), 'it has what is described, and nothing else')
  t.notOk(Check(closed, { ...answer.json<object>(), more: 1 }))
})

t.test('a new password works at once and ends the old one', async t => {
  const { call, announced } = await setUp(t)
  t.equal((await call('GET', '/status')).statusCode, 200)
  t.equal((await call('PUT', '/users/admin/password', { password: 'short' })).statusCode, 400)
  t.equal((await call('PUT', '/users/nobody/password', { password: 'long enough' })).statusCode, 404)
  t.equal((await call('PUT', '/users/admin/password', { password: 'long enough' })).statusCode, 204)
  t.same(announced, [userKey('admin')])
  t.equal((await call('GET', '/status')).statusCode, 401)
  t.equal((await call('GET', '/status', undefined, { authorization: basic('admin', 'long enough') })).statusCode, 200)
})

t.test('copy, move and delete go to the artifact service with normal paths', async t => {
  const { call, changes, audit } = await setUp(t)
  const [from, to] = [{ repository: 'open', path: 'a/b' }, { repository: 'shut', path: 'c' }] // prettier-ignore
  t.same((await call('POST', '/artifacts/copy', { from, to })).json(), { artifacts: 1 })
  await call('POST', '/artifacts/move', { from, to, recursive: true })
  await call('POST', '/artifacts/delete', { from })
  await call('POST', '/artifacts/delete', { from: { repository: 'open', path: '' }, recursive: true })
  t.same(changes, [
    ['copy', 'open/a/b', 'shut/c', 'admin'],
    ['move', 'open/a/b/', 'shut/c/', 'admin'],
    ['delete', 'open/a/b', 'admin'],
    ['delete folder', 'open/', 'admin'],
  ])
  t.match(audit[0], { action: 'artifact.copy', subject: 'open/a/b -> shut/c', outcome: 'done' })
  for (const path of ['../x', 'a//b', '/a', 'a/./b', 'a\\b', 'a\u0000', 'x'.repeat(300)]) {
    const answer = await call('POST', '/artifacts/copy', { from, to: { repository: 'shut', path } })
    t.match(answer.json(), { code: 'PATH_INVALID' }, JSON.stringify(path))
  }
  for (const path of ['', 'a/']) {
    t.equal((await call('POST', '/artifacts/delete', { from: { repository: 'open', path } })).statusCode, 400, path)
  }
  t.match((await call('POST', '/artifacts/copy', { from, to: { repository: 'none', path: 'x' } })).json(), {
    code: 'REPOSITORY_NOT_FOUND',
  })
  t.equal(changes.length, 4)
})

t.test('I41: every route declares who may use it; without credentials all but the description answer 401', async t => {
  const { api, call } = await setUp(t)
  t.ok(api.declaredRoutes.length >= 14, `${api.declaredRoutes.length} routes`)
  for (const { method, url, access } of api.declaredRoutes) {
    const open = access.demands === 'none'
    t.equal(open, url === '/api/v1/openapi.json', `${method} ${url}`)
    const send = (credentials: object) => {
      const changes = ['POST', 'PUT', 'PATCH', 'DELETE'].includes(method)
      const headers = { ...credentials, ...(changes ? { 'content-type': 'application/json' } : {}) }
      return api.inject({
        method: method as 'GET',
        url: url.replace(':name', 'open'),
        headers,
        ...(changes ? { payload: '{}' } : {}),
      })
    }
    const without = await send({})
    t.equal(without.statusCode, open ? 200 : 401, `${method} ${url} without credentials`)
    if (!open) t.match(without.headers['www-authenticate'], /^Basic realm=/)
    if (!open)
      t.ok([401, 429].includes((await send({ authorization: basic('admin', 'guess') })).statusCode), 'a wrong password')
    // Demands that depend on the body meet an empty one: refused as malformed before anything is done.
    const refused = typeof access.demands === 'function' ? 400 : 403
    t.equal((await send(ann)).statusCode, open ? 200 : refused, `${method} ${url} as a user without rights`)
  }
  const from = { repository: 'open', path: 'a' }
  for (const to of ['open', 'shut', 'none']) {
    const answer = await call('POST', '/artifacts/copy', { from, to: { repository: to, path: 'x' } }, ann)
    t.equal(answer.statusCode, 403, `copy to ${to}`)
  }
  t.equal((await call('POST', '/artifacts/delete', { from }, ann)).statusCode, 403)
})

t.test('I41: what reads all copies and names shards is for administrators, not for whoever may read', async t => {
  const { call } = await setUp(t)
  for (const name of ['open', 'shut', 'none']) {
    const path = `/repositories/${name}/verify?path=a`
    t.match((await call('GET', path, undefined, ann)).json(), { code: 'FORBIDDEN' }, name)
  }
  t.match((await call('GET', '/repositories/open/verify?path=a')).json(), { healthy: true, path: 'a' })
})

t.test('a method that a route does not have is answered with those it has', async t => {
  const { call } = await setUp(t)
  for (const [method, path, allow] of [
    ['DELETE', '/status', 'GET, HEAD'],
    ['GET', '/artifacts/copy', 'POST'],
    ['GET', '/users/ann/password', 'PUT'],
  ] as const) {
    const answer = await call(method, path)
    t.equal(answer.statusCode, 405, `${method} ${path}`)
    t.same(answer.headers['allow']?.toString().split(', ').sort().join(', '), allow)
    t.match(answer.json(), { code: 'METHOD_NOT_ALLOWED', requestId: String })
  }
  for (const path of ['/nothing', '/users//password', '/status/more']) {
    t.equal((await call('GET', path)).statusCode, 404, path)
  }
})

t.test('I41: a route that does not say who may use it cannot be registered', async t => {
  const app = fastify()
  t.teardown(() => app.close())
  installAccessControl(app, {
    addressOf: () => '',
    authenticator: { authenticate: async () => anonymous },
    repositories: { all: async () => new Map() },
  })
  t.throws(() => app.get('/x', async () => 'secret'), /does not say who may use it/)
  const config = { access: { demands: 'none' } } as const
  t.throws(() => app.post('/x', { config }, async () => 'done'), /without a name for the audit log/)
})

t.test('a page of another site can change nothing with the credentials a browser remembers', async t => {
  const { api, call, changes, audit } = await setUp(t)
  const payload = JSON.stringify({ from: { repository: 'open', path: 'a' } })
  for (const type of [
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data',
    '',
    'text/plain; application/json',
  ]) {
    const headers = { ...admin, ...(type === '' ? {} : { 'content-type': type }) }
    const answer = await api.inject({
      method: 'POST',
      url: '/api/v1/artifacts/delete',
      headers,
      payload: Buffer.from(payload),
    })
    t.match(answer.json(), { code: 'UNSUPPORTED_MEDIA_TYPE' }, type)
  }
  const cross = { ...admin, 'sec-fetch-site': 'cross-site' }
  t.equal((await call('DELETE', '/repositories/open', undefined, cross)).statusCode, 403)
  t.equal((await call('GET', '/status', undefined, cross)).statusCode, 200)
  t.same(changes, [])
  t.equal(audit.length, 6, 'each refusal is written down')
})

t.test('refusals are written down, but not every question of a stranger', async t => {
  const world = await setUp(t)
  await world.call('GET', '/status', undefined, {})
  t.equal(world.audit.length, 0)
  await world.call('GET', '/status', undefined, { authorization: basic('admin', 'guess') })
  await world.call('GET', '/status', undefined, ann)
  await world.call('DELETE', '/repositories/open', undefined, {})
  t.match(world.audit, [
    { user: 'anonymous', action: 'api.read', subject: '/api/v1/status', outcome: 'UNAUTHORIZED' },
    { user: 'ann', action: 'api.read', outcome: 'FORBIDDEN' },
    { user: 'anonymous', action: 'repository.delete', subject: '/api/v1/repositories/open', outcome: 'UNAUTHORIZED' },
  ])
  world.fault = new HoldfastError('METADATA_UNAVAILABLE', 'down')
  t.equal((await world.call('DELETE', '/repositories/open')).statusCode, 204, 'a lost entry fails no request')
  t.match(world.logged, [{ audit: { action: 'repository.delete', outcome: 'done' } }], 'it stands in the log instead')
})

t.test('a flood of refusals is not a flood of audit entries', async t => {
  const world = await setUp(t)
  const startedAt = performance.now()
  // Few at once: more than 64 at the same moment are not written down anyway.
  for (let turn = 0; turn < 200; turn += 20) {
    const asked = Array.from({ length: 20 }, () => world.call('DELETE', '/repositories/open', undefined, {}))
    for (const { statusCode } of await Promise.all(asked)) t.equal(statusCode, 401)
  }
  const most = 101 + (performance.now() - startedAt) / 100
  t.ok(world.audit.length >= 100 && world.audit.length < most, `${world.audit.length} are written down`)
  const before = world.audit.length
  await world.call('DELETE', '/repositories/open')
  t.equal(world.audit.length, before + 1, 'what is done is written down all the same')
})

t.test('what does not even get to a route is refused like everything else', async t => {
  const { call, users } = await setUp(t)
  const broken = await call('GET', '/tasks/%zz')
  t.equal(broken.statusCode, 400)
  t.match(broken.json(), { code: 'BAD_REQUEST', message: String, requestId: String })
  t.equal(broken.headers['x-request-id'], broken.json<{ requestId: string }>().requestId)
  t.equal(broken.headers['cache-control'], 'no-store')
  const long = await call('GET', `/tasks/${'x'.repeat(4_000)}`)
  t.match(long, { statusCode: 414 })
  t.match(long.json(), { code: 'URI_TOO_LONG', requestId: String })
  const name = 'ü'.repeat(255)
  users.set(name, { name, passwordHash: 'before', admin: false })
  const changed = await call('PUT', `/users/${encodeURIComponent(name)}/password`, { password: 'long-enough' })
  t.equal(changed.statusCode, 204)
  t.equal(users.get(name)?.passwordHash, 'long-enough')
})

t.test('guessing passwords through the API is slowed down', async t => {
  const { call } = await setUp(t)
  const codes: number[] = []
  for (let i = 0; i < 12; i++) {
    const answer = await call('GET', '/status', undefined, { authorization: basic('admin', `guess${i}`) })
    codes.push(answer.statusCode)
    if (answer.statusCode === 429) t.equal(answer.headers['retry-after'], '5')
  }
  t.same(codes, [...Array.from({ length: 10 }, () => 401), 429, 429])
})

t.test('garbage collection can be asked why, and stopped', async t => {
  const { call, audit } = await setUp(t)
  t.match((await call('GET', '/gc')).json(), { armed: true, disarmed: null, minAgeMs: 1, holdMs: 2, counted: { at: 7, blobs: 3, bytes: 15 } }) // prettier-ignore
  t.match((await call('POST', '/gc/disarm', { reason: 'a restore is under way' })).json(), {
    armed: false,
    disarmed: { reason: 'a restore is under way', by: 'admin' },
  })
  t.equal((await call('POST', '/gc/disarm', {})).statusCode, 400)
  t.match((await call('POST', '/gc/arm', {})).json(), { armed: true })
  t.match((await call('GET', `/gc/blobs/${'a'.repeat(64)}`)).json(), { verdict: 'referenced', references: ['open/a'] })
  t.equal((await call('GET', `/gc/blobs/${'b'.repeat(64)}`)).statusCode, 404)
  t.equal((await call('GET', '/gc/blobs/nonsense')).statusCode, 400)
  t.equal((await call('POST', '/gc/disarm', { reason: 'x' }, ann)).statusCode, 403)
  t.match(
    audit.map(({ action }) => action),
    ['gc.disarm', 'gc.disarm', 'gc.arm', 'gc.disarm'],
  )
})

t.test('backups', async t => {
  const { call, audit } = await setUp(t)
  t.match((await call('GET', '/backups')).json(), {
    backups: [{ id: '20260301t000000z-1', copied: { bytes: 4 } }],
    damaged: 1,
    damagedBackups: [{ id: '20260301t000000z-2', why: 'torn' }],
  })
  const made = await call('POST', '/backups', {})
  t.equal(made.statusCode, 202)
  t.match(made.json(), { job: 'backup', params: {} })
  t.equal((await call('POST', '/backups/prune', { keep: 2 })).statusCode, 409, 'one run at a time')
  t.equal((await call('POST', '/backups/prune', { keep: 0 })).statusCode, 400)
  t.equal((await call('POST', '/backups/remove', { backup: '20260301t000000z-2', last: true })).statusCode, 409)
  t.equal((await call('POST', '/backups/remove', {})).statusCode, 400)
  t.equal((await call('POST', '/backups/verify', { backup: 'x'.repeat(101) })).statusCode, 400)
  t.equal((await call('POST', '/backups', {}, ann)).statusCode, 403)
  t.ok(audit.some(entry => entry.action === 'backup.create' && entry.outcome === 'ok') || audit.length > 0)
})

t.test('the trash: listed, restored and purged, each by those who may', async t => {
  const world = await setUp(t)
  t.equal((await world.call('GET', '/trash/open', undefined, ann)).statusCode, 403)
  t.equal(
    (await world.call('POST', '/trash/restore', { from: { repository: 'open', path: 'a' } }, ann)).statusCode,
    403,
  )
  t.equal((await world.call('POST', '/trash/purge', { from: { repository: 'open', path: '' } }, ann)).statusCode, 403)
  t.equal((await world.call('GET', '/trash/none')).statusCode, 404)
  t.equal((await world.call('GET', '/trash/open?path=a//b')).statusCode, 400)
  t.equal((await world.call('GET', '/trash/open?after=x')).statusCode, 400)
  t.same(world.changes, [])

  const entry = (id: number): TrashEntry => ({
    id, artifact: artifactOf('a/b'), deletedBy: 'dan', deletedAt: 5, expiresAt: 6,
  }) // prettier-ignore
  world.trash = Array.from({ length: 500 }, (_, index) => entry(500 - index))
  const first = (await world.call('GET', '/trash/open?path=a/')).json<{ entries: object[]; next: string }>()
  t.match(first.entries[0], { path: 'a/b', bytes: 3, version: 1, deletedBy: 'dan', deletedAt: 5, expiresAt: 6 })
  t.equal(first.next, '1:a/b')
  t.same((await world.call('GET', `/trash/open?after=${first.next}`)).json(), { entries: [] })
  t.same(world.changes, [['list trash', 'open/a/', undefined], ['list trash', 'open/', { id: 1, path: 'a/b' }]]) // prettier-ignore

  const restored = await world.call('POST', '/trash/restore', { from: { repository: 'open', path: 'a/' } })
  t.same(restored.json(), { restored: 500, refused: 1, refusals: [{ path: 'x', reason: 'exists' }] })
  t.equal((await world.call('POST', '/trash/purge', { from: { repository: 'shut', path: 'a' } })).statusCode, 200)
  world.trash = []
  t.equal((await world.call('POST', '/trash/restore', { from: { repository: 'open', path: 'a/' } })).statusCode, 404)
  t.match(world.audit.slice(-3), [
    { action: 'trash.restore', subject: 'open/a/', outcome: 'done' },
    { action: 'trash.purge', subject: 'shut/a', outcome: 'done' },
    { action: 'trash.restore', outcome: 'ARTIFACT_NOT_FOUND' },
  ])
})

t.test('deleting many artifacts at once has to be confirmed', async t => {
  const world = await setUp(t)
  const body = { from: { repository: 'open', path: 'many/' }, recursive: true }
  const refused = await world.call('POST', '/artifacts/delete', body)
  t.equal(refused.statusCode, 409)
  t.match(refused.json(), { code: 'CONFLICT', confirm: 5_000 })
  t.equal((await world.call('POST', '/artifacts/delete', { ...body, confirm: 5_000 })).statusCode, 200)
})

t.test('a request that does not fit its schema is told what would', async t => {
  const { call } = await setUp(t)
  for (const [method, path, body, message] of [
    ['PATCH', '/repositories/open', { redeploy: 'x' }, 'body/redeploy must be one of allow, once, deny'],
    ['PATCH', '/repositories/open', { artifactBytesMax: 0 }, 'body/artifactBytesMax must be >= 1 or must be null'],
    ['PATCH', '/repositories/open', { trashDays: 3_651 }, 'body/trashDays must be <= 3650'],
    ['PATCH', '/repositories/open', { upstream: { url: 'https://h', frob: 1 } }, "body/upstream must not have a field 'frob' or must be null"],
    ['POST', '/repositories', { name: 'a', frob: 1 }, "body must not have a field 'frob'"],
    ['POST', '/repositories', { name: 'a', ['x'.repeat(200)]: 1 }, `body must not have a field '${'x'.repeat(100)}'`],
    ['POST', '/repositories', {}, "body must have required property 'name'"],
    ['POST', '/scrub', { action: 'x' }, 'body/action must be one of start, pause'],
    ['GET', '/topology?bytes=x', undefined, 'querystring/bytes must be true'],
    ['GET', '/topology?octets=true', undefined, "querystring must not have a field 'octets'"],
  ] as const) {
    const answer = await call(method, path, body)
    t.equal(answer.statusCode, 400)
    const { code, message: said } = answer.json<{ code: string; message: string }>()
    t.same([code, said], ['BAD_REQUEST', message])
  } // prettier-ignore
  const change = await call('POST', '/topology/plan', { changes: [{ op: 'frob', node: 'a' }] })
  t.match(change.json(), { message: /body\/changes\/0\/op must be one of drain-node, remove-node, / })
})
