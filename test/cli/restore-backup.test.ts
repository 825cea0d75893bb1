import t from 'tap'
import { hash } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { restoreBackup } from '../../cli/restore-backup.ts'
import type { BackupStore } from '../../proxy/backup/store.ts'
import { HoldfastError } from '../../shared/errors.ts'

t.test('an artifact that the cluster did not wait for is sent again, and is not missing', async t => {
  const body = Buffer.from('hello')
  const statuses = [408, 201]
  const received: string[] = []
  const server = createServer((request, response) => {
    let text = ''
    request.on('data', (chunk: Buffer) => (text += chunk.toString()))
    request.on('end', () => {
      received.push(text)
      response.writeHead(statuses.shift() ?? 500).end()
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const artifact = {
    kind: 'artifact', repository: 'raw', path: 'a', digest: hash('sha256', body), bytes: body.length, contentType: null, attributes: {},
  } // prettier-ignore
  const store = {
    summary: async () => ({}),
    checkManifest: async () => undefined,
    readManifest: async function* () {
      yield artifact
    },
    getBlob: async function* () {
      yield body
    },
  } as unknown as BackupStore
  const said: string[] = []
  const restored = await restoreBackup(
    {
      store,
      client: { call: async () => ({ state: 'begun', added: [] }) },
      origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      authorization: 'Basic eA==',
      atOnce: 2,
      goesLive: true,
      signal: new AbortController().signal,
      say: line => void said.push(line),
    },
    'b',
  )
  t.match(restored, { artifacts: 1, missing: 0, bytes: 5 })
  t.same(received, ['hello', 'hello'])
  t.same(said, [])
})

t.test(
  'what a resumed restore goes on with can be written, also where it had set an upstream before it broke off',
  async t => {
    const upstream = { url: 'https://host/', maxAgeSeconds: 600, absentMaxAgeSeconds: 300 }
    const entries = [
      { kind: 'repository', name: 'mirror', format: 'raw', type: 'proxy', upstream, redeploy: 'once' },
      { kind: 'repository', name: 'of-an-old-release', format: 'raw', type: 'hosted', redeploy: 'once' },
    ]
    const store = {
      summary: async () => ({}),
      checkManifest: async () => undefined,
      readManifest: async function* () {
        yield* entries
      },
    } as unknown as BackupStore
    const changes: [string, unknown][] = []
    const call = async (method: string, path: string, body?: unknown): Promise<unknown> => {
      if (method === 'POST' && path === '/repositories') throw new HoldfastError('CONFLICT', 'there is one')
      if (method === 'PATCH') changes.push([path, body])
      return { state: 'resumed', added: [] }
    }
    const { signal } = new AbortController()
    const others = {
      origin: 'http://127.0.0.1:1',
      authorization: '',
      atOnce: 1,
      goesLive: true,
      signal,
      say: () => undefined,
    }
    await restoreBackup({ store, client: { call }, ...others }, 'b')
    t.strictSame(changes, [
      ['/repositories/mirror', { redeploy: 'allow', artifactBytesMax: null, upstream: null }],
      ['/repositories/of-an-old-release', { redeploy: 'allow', artifactBytesMax: null }],
      ['/repositories/mirror', { redeploy: 'once', upstream, force: true }],
      ['/repositories/of-an-old-release', { redeploy: 'once' }],
    ])
  },
)
