/** The tasks of backups on real targets, with a cluster that is a map of bytes. */
import { hash, randomBytes } from 'node:crypto'
import { mkdir, readdir, readFile, rename, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { drill } from '../../../cli/drill.ts'
import { restoreBackup, type RestoreDeps } from '../../../cli/restore-backup.ts'
import { backupsOf, type Backups } from '../../../proxy/backup/backups.ts'
import { Throttle } from '../../../proxy/backup/blob-source.ts'
import { openBackupTarget } from '../../../proxy/backup/open-target.ts'
import { BackupStore } from '../../../proxy/backup/store.ts'
import type { Metadata, MetadataSnapshot, Repository } from '../../../proxy/metadata/types.ts'
import { backup } from '../../../proxy/tasks/backup.ts'
import type { Job, JobContext, JobParams } from '../../../proxy/tasks/job.ts'
import { verifyBackup } from '../../../proxy/tasks/verify-backup.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { Digest, Generation } from '../../../shared/ids.ts'
import { BucketServer } from '../../support/bucket-server.ts'

const day = 24 * 3_600_000
const throttle = new Throttle(2 ** 40, () => performance.now())
const repository = { id: 1, name: 'raw', format: 'raw', type: 'hosted', redeploy: 'allow' } as unknown as Repository

/** What a proxy has of the cluster. */
class World {
  readonly artifacts = new Map<string, Buffer>()
  readonly lines: string[] = []
  readonly reads: string[] = []
  readonly known = new Set<string>()
  checkpoint: unknown
  onSave: () => void = () => {}
  onRead: (digest: string) => Promise<void> = async () => {}
  #run = 0

  put(path: string, body: Buffer = randomBytes(1_000)): Digest {
    this.artifacts.set(path, body)
    return hash('sha256', body) as Digest
  }

  /** Of a proxy that has just started. */
  backups(target: string, more: object = {}): Backups {
    const backupTargets = {
      isKnown: async (label: string) => this.known.has(label),
      remember: async (label: string) => void this.known.add(label),
    }
    return backupsOf({ backupTarget: target, backupPassphrase: undefined, ...more }, { clusterId: 'c', backupTargets }) // prettier-ignore
  }

  create(backups: Backups, params: JobParams = {}): Promise<void> {
    const reader = {
      readWhole: async ({ digest }: { digest: string }) => {
        await this.onRead(digest)
        this.reads.push(digest)
        return [...this.artifacts.values()].find(body => hash('sha256', body) === digest)!
      },
    }
    const metadata = { clusterId: 'c', incarnation: 'i', findBlob: async () => undefined, snapshot: this.#snapshot } as unknown as Metadata // prettier-ignore
    const job = backup({ ...backups, metadata, reader: reader as never, throttle, keep: 0, now: Date.now, version: '1' }) // prettier-ignore
    return this.run(job, params)
  }

  verify(backups: Backups, params: JobParams = {}): Promise<void> {
    return this.run(verifyBackup({ ...backups, throttle }), params)
  }

  async run(job: Job, params: JobParams = {}): Promise<void> {
    job.checkParams?.(params)
    const checkpoint = job.name === 'backup' ? this.checkpoint : undefined
    await job.run({
      runId: checkpoint === undefined ? ++this.#run : this.#run,
      term: { token: 1, signal: new AbortController().signal },
      checkpoint,
      params,
      save: async checkpoint => {
        if (job.name !== 'backup') return
        this.checkpoint = JSON.parse(JSON.stringify(checkpoint)) as unknown
        this.onSave()
      },
      progress: () => {},
      log: line => void this.lines.push(line),
      pause: async () => {},
    } satisfies JobContext)
    if (job.name === 'backup') this.checkpoint = undefined
  }

  readonly #snapshot = async <T>(work: (snapshot: MetadataSnapshot) => Promise<T>): Promise<T> => {
    const all = [...this.artifacts].map(([path, body]) => {
      const digest = hash('sha256', body) as Digest
      return { path, blob: { digest, bytes: body.length, md5: '', sha1: '', generation: 'g' as Generation, partition: 1 } } // prettier-ignore
    })
    const blobs = new Map(all.map(({ blob }) => [blob.digest, blob]))
    const named = [...blobs.values()].sort((a, b) => (a.digest < b.digest ? -1 : 1))
    const rest = { version: 1, contentType: null, attributes: {}, createdBy: 'ann', createdAt: day, updatedAt: 2 * day }
    return work({
      time: Date.now(),
      repositories: async () => [repository],
      users: async () => [],
      policies: async () => [],
      taskSettings: async () => [],
      namedBlobs: async after => named.filter(({ digest }) => digest > after),
      artifacts: async ({ path: after }) =>
        all
          .filter(({ path }) => path > after)
          .sort((a, b) => (a.path < b.path ? -1 : 1))
          .map(one => ({ ...one, ...rest, repositoryId: 1 })),
    })
  }
}

/** Takes what a restore writes. */
async function emptyCluster(t: Test) {
  const artifacts = new Map<string, Buffer>()
  const calls: [string, unknown][] = []
  const server = createServer((request, response) => {
    const body: Buffer[] = []
    request.on('data', (chunk: Buffer) => void body.push(chunk))
    request.on('end', () => {
      if (request.method === 'PUT') artifacts.set(request.url ?? '', Buffer.concat(body))
      response.writeHead(201).end()
    })
  })
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  t.teardown(() => new Promise<void>(done => server.close(() => done())))
  const call = async (_: string, path: string, body: unknown): Promise<unknown> => {
    calls.push([path, body])
    return path === '/restore' ? { state: 'begun' } : { added: [] }
  }
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const deps = (store: BackupStore): RestoreDeps => {
    return { store, client: { call }, origin, authorization: 'Basic x', atOnce: 4, goesLive: true, signal: new AbortController().signal, say: line => t.comment(line) } // prettier-ignore
  }
  return { artifacts, calls, deps }
}

/** Each way of keeping backups. */
async function* targets(t: Test): AsyncGenerator<{ what: string; url: string; keys: object }> {
  yield { what: 'a folder', url: `file://${t.testdir({})}`, keys: {} }
  const server = await BucketServer.start(t)
  yield { what: 'a bucket', url: server.url(), keys: server.keys }
}

t.test('another primary goes on with a backup where the first one was', async t => {
  for await (const { what, url, keys } of targets(t)) {
    const world = new World()
    for (let count = 0; count < 200; count++) world.put(`p${count}`)
    let saves = 0
    world.onSave = () => {
      if (++saves === 40) throw new HoldfastError('LEASE_LOST', 'the primary is another one')
    }
    await t.rejects(world.create(world.backups(url, keys)), { code: 'LEASE_LOST' })
    const copied = world.reads.length
    t.ok(copied > 10 && copied < 190, `${copied} of 200 blobs when it ended`)
    const { id } = world.checkpoint as { id: string }
    const second = world.backups(url, keys)
    t.same((await second.list()).backups, [], 'half a backup is none')
    world.put('later')
    await world.create(second)
    t.equal(world.reads.length, 200, `${what}: nothing is copied twice, and nothing that came later`)
    t.match((await second.list()).backups, [{ id, counts: { artifacts: 200, blobs: 200 }, copied: { blobs: 200 }, missing: 0 }]) // prettier-ignore
    await world.verify(second)
    t.match(world.lines.at(-1), /200 of 200 blobs read, .* 0 bad/)
  }
})

t.test('encrypted: made, verified, restored, and closed to another passphrase', async t => {
  const backupPassphrase = randomBytes(9).toString('hex')
  for await (const { what, url, keys } of targets(t)) {
    const world = new World()
    const plain = Buffer.from('a text that is looked for '.repeat(4_000))
    world.put('d/plain', plain)
    world.put('d/empty', Buffer.alloc(0))
    const backups = world.backups(url, { ...keys, backupPassphrase })
    await world.create(backups)
    await world.verify(backups)
    t.match((await backups.list()).backups, [{ encrypted: true, counts: { artifacts: 2 } }])
    const wrong = world.backups(url, { ...keys, backupPassphrase: randomBytes(9).toString('hex') })
    await t.rejects(world.verify(wrong), { code: 'CONFIG_INVALID', message: /not the passphrase of the backups on/ })
    await t.rejects(world.create(wrong), { code: 'CONFIG_INVALID', message: /not the passphrase/ }, 'nor mixed with it')
    const target = openBackupTarget(url, keys)
    await t.rejects(BackupStore.open(target, undefined), { code: 'CONFIG_INVALID', message: /encrypted: set/ })
    const cluster = await emptyCluster(t)
    const store = await BackupStore.open(target, backupPassphrase)
    const [id = ''] = await store.ids()
    t.match(await restoreBackup(cluster.deps(store), id), { artifacts: 2, missing: 0 })
    t.ok(cluster.artifacts.get('/repository/raw/d/plain')?.equals(plain), what)
    t.equal(cluster.artifacts.get('/repository/raw/d/empty')?.length, 0)
    const history = cluster.calls.find(([path]) => path === '/restore/history')?.[1]
    const times = { createdBy: 'ann', createdAt: day, updatedAt: 2 * day }
    t.match(history, { artifacts: [{ path: 'd/empty', ...times }, { path: 'd/plain', digest: hash('sha256', plain), ...times }] }) // prettier-ignore
  }
})

t.test('verify --repair beside a running backup leaves no hole in it', async t => {
  const folder = t.testdir({})
  const world = new World()
  const [first, last] = [world.put('a'), world.put('b')].sort()
  const backups = world.backups(folder)
  await world.create(backups)
  await writeFile(join(folder, 'blobs', first!.slice(0, 2), first!), 'damaged')
  // A new blob, after the damaged one in the order of the copies: while it is read, the other one is removed.
  let third = randomBytes(1_000)
  while (hash('sha256', third) <= (first ?? '')) third = randomBytes(1_000)
  world.put('c', third)
  world.onRead = async digest => {
    if (digest === first) return
    await t.rejects(world.verify(backups, { repair: true }), { code: 'BACKUP_DAMAGED' })
    t.notOk((await readdir(join(folder, 'blobs', first!.slice(0, 2)))).includes(first!), 'it is removed meanwhile')
  }
  await world.create(backups)
  t.match((await backups.list()).backups[0], { counts: { blobs: 3 }, copied: { blobs: 2 }, missing: 0 })
  world.onRead = async () => {}
  await world.verify(backups)
  t.match(world.lines.at(-1), /3 of 3 blobs read, .* 0 bad/)
  t.ok(last)
})

t.test('a disk that is not mounted is not taken for an empty one', async t => {
  const root = t.testdir({ mnt: {} })
  const folder = join(root, 'mnt')
  const world = new World()
  world.put('a')
  const running = world.backups(folder)
  await world.create(running)
  await rename(folder, join(root, 'disk'))
  for (const there of ['no', 'empty'] as const) {
    if (there === 'empty') await mkdir(folder)
    for (const backups of [running, world.backups(folder)]) {
      await t.rejects(world.create(backups), { code: 'CONFLICT', message: /had backups of this cluster, and now has none: is it mounted/ }) // prettier-ignore
      await t.rejects(backups.list(), { code: 'CONFLICT' })
      await t.rejects(world.verify(backups), { code: 'CONFLICT' })
    }
  }
  t.same(await readdir(folder), [], 'nothing was written under the mount point')
  await rename(join(root, 'disk'), folder)
  await world.create(running)
  t.equal((await running.list()).backups.length, 2, 'mounted again')
  await rename(folder, join(root, 'old'))
  await mkdir(folder)
  await world.create(running, { anew: true })
  t.match((await running.list()).backups, [{ copied: { blobs: 1 } }], 'begun anew, since somebody says so')
  await t.rejects(world.create(world.backups(join(root, 'never'))), { code: 'CONFLICT', message: /does not exist: make it, or mount/ }) // prettier-ignore
  const claim = JSON.parse(await readFile(join(folder, 'target', 'cluster'), 'utf8')) as { clusterId: string }
  t.equal(claim.clusterId, 'c')
})

t.test('a drill whose scratch folder is not there says so, with --json as JSON', async t => {
  const world = new World()
  world.put('a')
  const target = `file://${t.testdir({})}`
  await world.create(world.backups(target))
  const scratch = join(t.testdirName, 'missing')
  const args = ['--backup-target', target, '--scratch', scratch]
  const run = async (...more: string[]): Promise<{ code: number; out: string; err: string }> => {
    let [out, err] = ['', '']
    const write = { out: (text: string) => void (out += text), err: (text: string) => void (err += text) }
    return { code: await drill({ args: [...args, ...more], env: {} }, write), out, err }
  }
  const told = `no scratch cluster can be made in ${scratch} (ENOENT): name a folder that exists with --scratch`
  t.same(await run(), { code: 2, out: '', err: `holdfast: ${told} [CONFIG_INVALID]\n` })
  const { code, out, err } = await run('--json')
  t.same([code, out, JSON.parse(err)], [2, '', { code: 'CONFIG_INVALID', message: told }])
  t.match(JSON.parse((await run('--json', '--percent', '0')).err), {
    code: 'CONFIG_INVALID',
    message: /PERCENT|percent/,
  })
})
