/** Backups of a real cluster to a folder, and to a bucket: made, listed, verified, pruned, restored. */
import { createHash, randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { backup } from '../../cli/backup.ts'
import { restore } from '../../cli/restore.ts'
import type { BackupSummary } from '../../proxy/backup/types.ts'
import { task } from '../../cli/task.ts'
import { BucketServer } from '../support/bucket-server.ts'
import type { Answer, Client } from '../support/client.ts'
import { startCluster, type Cluster } from '../support/cluster.ts'
import { eventually } from '../support/eventually.ts'
import { seededRandom } from '../support/random.ts'

interface Said {
  readonly code: number
  readonly text: string
}

type Command = typeof backup

async function run(cluster: Cluster, command: Command | string, ...args: (string | object)[]): Promise<Said> {
  const more = args.filter(arg => typeof arg === 'object')
  const words = [...(typeof command === 'string' ? [command] : []), ...args].filter(arg => typeof arg === 'string')
  const login = { HOLDFAST_URL: cluster.proxies[0]!.url, HOLDFAST_PASSWORD: cluster.adminPassword }
  const env = Object.assign(login, ...more) as Record<string, string>
  let text = ''
  const write = { out: (part: string) => void (text += part), err: (part: string) => void (text += part) }
  return { code: await (typeof command === 'string' ? backup : command)({ args: words, env }, write), text }
}

async function targetFolder(t: Test): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'hf-backup-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}

async function blobsOf(folder: string): Promise<string[]> {
  const names = await readdir(join(folder, 'blobs'), { recursive: true })
  return names.filter(name => name.length > 60).sort()
}

async function newest(cluster: Cluster): Promise<BackupSummary> {
  const { text } = await run(cluster, 'list', '--json')
  return (JSON.parse(text) as { backups: BackupSummary[] }).backups[0]!
}

function api(client: Client, method: string, path: string, content: object): Promise<Answer> {
  const headers = { 'content-type': 'application/json' }
  return client.request(method, `/api/v1/${path}`, { body: Buffer.from(JSON.stringify(content)), headers })
}

t.test('a cluster is backed up to a folder', { timeout: 180_000 }, async t => {
  const random = seededRandom(t)
  const folder = await targetFolder(t)
  const proxyFlags = ['--backup-target', `file://${folder}`, '--backup-keep', '0']
  const cluster = await startCluster(t, { proxyFlags })
  const client = cluster.client()
  const small = Buffer.from(`small ${random.seed}`)
  const large = randomBytes(300_000)
  const huge = randomBytes(3_000_000)
  for (const [path, body] of [['raw/small', small], ['raw/again', small], ['raw/d/large', large], ['raw/d/huge', huge], ['raw/empty', Buffer.alloc(0)], ['raw/gone', randomBytes(10)]] as const) {
    t.equal((await client.put(path, body)).status, 201)
  } // prettier-ignore
  t.equal((await client.delete('raw/gone')).status, 204)
  const made = await client.request('POST', '/api/v1/repositories', {
    body: Buffer.from(JSON.stringify({ name: 'once', redeploy: 'once', anonymousRead: true })),
    headers: { 'content-type': 'application/json' },
  })
  t.equal(made.status, 201)
  const typed = { body: small, headers: { 'content-type': 'application/x-typed' } }
  t.equal((await client.request('PUT', 'once/typed', typed)).status, 201)

  const policy = { name: 'old', repositories: ['once'], conditions: { unchangedDays: 30 }, enabled: true }
  t.equal((await api(client, 'POST', 'cleanup/policies', policy)).status, 201)
  t.equal((await api(client, 'PATCH', 'tasks/cleanup', { schedule: '5 4 * * *', enabled: false })).status, 200)

  const first = await eventually('a primary makes a backup', async () => {
    const said = await run(cluster, 'create')
    return said.code === 0 ? said : undefined
  }, { withinMs: 40_000, everyMs: 500 }) // prettier-ignore
  t.match(first.text, /6 artifacts, 4 blobs/)
  t.match(await newest(cluster), { counts: { artifacts: 6, blobs: 4, bytes: small.length + 3_300_000, users: 1 }, copied: { blobs: 4 }, missing: 0, encrypted: false }) // prettier-ignore
  for (const name of await blobsOf(folder)) {
    const sha256 = createHash('sha256')
    for await (const chunk of createReadStream(join(folder, 'blobs', name))) sha256.update(chunk as Buffer)
    t.equal(name.slice(3), sha256.digest('hex'), 'a blob is its bytes')
  }

  await client.put('raw/new', randomBytes(70_000))
  await client.delete('raw/d/huge')
  t.equal((await run(cluster, 'create')).code, 0)
  const second = await newest(cluster)
  t.match(second, { counts: { artifacts: 6, blobs: 4 }, copied: { blobs: 1, bytes: 70_000 } }, 'only what is new')
  t.equal((await blobsOf(folder)).length, 5)
  t.match(await run(cluster, 'verify'), { code: 0, text: /4 of 4 blobs read/ })

  const [victim] = (await blobsOf(folder)).filter(name =>
    name.endsWith(createHash('sha256').update(large).digest('hex')),
  )
  const file = join(folder, 'blobs', victim!)
  const bytes = await readFile(file)
  bytes[random.int(0, bytes.length - 1)]! ^= 1
  await writeFile(file, bytes)
  t.match(await run(cluster, 'verify'), { code: 1, text: new RegExp(`damaged: ${victim!.slice(3)}`) })
  t.match(await run(cluster, 'verify', '--repair'), { code: 1 })
  t.equal((await run(cluster, 'create')).code, 0)
  t.match(await newest(cluster), { copied: { blobs: 1, bytes: 300_000 } }, 'what was removed is copied again')
  t.match(await run(cluster, 'verify'), { code: 0 })

  t.match(await run(cluster, 'prune', '--keep', '1'), { code: 0, text: /removed 2 backups, 1 blobs/ })
  t.equal((await blobsOf(folder)).length, 4)
  t.same((await readdir(join(folder, 'backups'))).length, 1)
  t.match(await run(cluster, 'verify'), { code: 0, text: /0 bad/ })
  t.same(await readdir(join(folder, 'tmp')), [], 'nothing is left over')
  t.same(cluster.crashes(), [])

  await t.test('a drill restores it into a scratch cluster, reads it back and measures', async t => {
    const ran = await run(cluster, task, 'run', 'drill-backup', '--wait')
    const { text } = await run(cluster, task, 'log', 'drill-backup')
    t.equal(ran.code, 0, ran.text)
    t.match(text, /6 artifacts restored, 0 missing; 6 read back, 0 wrong/)
    t.match(text, /RPO \d+ m?s .*, RTO \d+ m?s/)
    t.comment(text)
  })

  await t.test('and restored into a new one of another shape', async t => {
    const other = await startCluster(t, { zones: 1, nodesPerZone: 2, shardsPerNode: 3 })
    const target = `file://${folder}`
    const writer = other.client()
    await writer.put('raw/in-the-way', Buffer.from('x'))
    t.match(await run(other, restore, target), { code: 1, text: /not empty, it has artifacts: restore into a new one/ })
    await writer.delete('raw/in-the-way')
    const env = { HOLDFAST_BACKUP_PASSPHRASE: 'a passphrase that nobody set' }
    t.match(await run(other, restore, target, env), { code: 2, text: /not encrypted/ })

    // A restore that broke off after one artifact.
    const headers = { 'content-type': 'application/json' }
    const { id } = await newest(cluster)
    const begun = await writer.request('POST', '/api/v1/restore', { body: Buffer.from(JSON.stringify({ backup: id })), headers }) // prettier-ignore
    t.match(JSON.parse(begun.body.toString()), { state: 'begun' })
    await writer.put('raw/small', small)
    t.match(await run(other, restore, target), { code: 0, text: /6 artifacts \(1 were there\)/ })
    const paths = ['raw/small', 'raw/again', 'raw/d/large', 'raw/empty', 'raw/new', 'once/typed']
    for (const path of paths) {
      const [was, now] = [await client.get(path), await writer.get(path)]
      t.equal(now.status, 200, path)
      for (const name of ['etag', 'content-type', 'last-modified'])
        t.same(now.headers[name], was.headers[name], `${path}: ${name}`)
    }
    for (const path of ['raw/gone', 'raw/d/huge', 'raw/in-the-way']) t.equal((await writer.get(path)).status, 404, path)
    t.equal((await writer.put('once/typed', Buffer.from('other'))).status, 409, 'settings hold again')
    t.same(JSON.parse((await writer.request('GET', '/api/v1/cleanup/policies')).body.toString()), {
      policies: [policy],
    })
    const task = await writer.request('GET', '/api/v1/tasks/cleanup')
    t.match(JSON.parse(task.body.toString()), { schedule: '5 4 * * *', enabled: false })
  })
})

t.test('a cluster is backed up to a bucket, and restored from it', { timeout: 180_000 }, async t => {
  const random = seededRandom(t)
  const bucket = await BucketServer.start(t)
  const keys = join(await targetFolder(t), 'credentials')
  const pairs = [`aws_access_key_id = ${bucket.accessKeyId}`, `aws_secret_access_key = ${bucket.secretAccessKey}`]
  await writeFile(keys, `[default]\n${pairs.join('\n')}\n`, { mode: 0o600 })
  const target = bucket.url()
  const proxyFlags = ['--backup-target', target, '--backup-keep', '0', '--backup-credentials-file', keys]
  const cluster = await startCluster(t, { proxyFlags })
  const client = cluster.client()
  // More than the 5 MiB of one part, too.
  const bodies = new Map([['raw/small', 40], ['raw/d/middle', 300_000], ['raw/d/large', 12_000_000]].map(([path, bytes]) => [path as string, random.bytes(bytes as number)])) // prettier-ignore
  for (const [path, body] of bodies) t.equal((await client.put(path, body)).status, 201, path)

  await eventually('a primary makes a backup', async () => (await run(cluster, 'create')).code === 0, {
    withinMs: 40_000,
    everyMs: 500,
  })
  t.match(await newest(cluster), { counts: { artifacts: 3, blobs: 3 }, copied: { blobs: 3 }, missing: 0 })
  t.match(await run(cluster, 'verify'), { code: 0, text: /3 of 3 blobs read/ })
  t.same([...bucket.uploads.keys()], [], 'no upload is left half-way')

  const digest = createHash('sha256').update(bodies.get('raw/d/middle')!).digest('hex')
  const victim = [...bucket.objects.keys()].find(key => key.endsWith(digest))!
  const { body, ticket } = bucket.objects.get(victim)!
  const rotten = Buffer.from(body)
  rotten[random.int(0, rotten.length - 1)]! ^= 1
  bucket.objects.set(victim, { body: rotten, ticket })
  t.match(await run(cluster, 'verify'), { code: 1, text: new RegExp(`damaged: ${digest}`) })
  t.match(await run(cluster, 'verify', '--repair'), { code: 1 })
  t.equal((await run(cluster, 'create')).code, 0)
  t.match(await newest(cluster), { copied: { blobs: 1, bytes: 300_000 } }, 'what was removed is copied again')
  t.match(await run(cluster, 'prune', '--keep', '1'), { code: 0, text: /removed \d backups?/ })
  t.match(await run(cluster, 'verify'), { code: 0, text: /3 of 3 blobs read/ })

  const other = await startCluster(t, { zones: 1, nodesPerZone: 2, shardsPerNode: 3 })
  t.match(await run(other, restore, target, { HOLDFAST_BACKUP_ACCESS_KEY_ID: 'x', HOLDFAST_BACKUP_SECRET_ACCESS_KEY: 'y' }), { code: 2, text: /CONFIG_INVALID/ }, 'wrong keys') // prettier-ignore
  t.match(await run(other, restore, target, bucket.env), { code: 0, text: /3 artifacts/ })
  for (const [path, body] of bodies) t.ok((await other.client().get(path)).body.equals(body), path)
  t.same([...cluster.crashes(), ...other.crashes()], [])
})
