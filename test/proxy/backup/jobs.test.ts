/** The tasks of backups on real targets, with a cluster that is a map of bytes. */
import { hash, randomBytes } from 'node:crypto'
import { appendFile, mkdir, readdir, readFile, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises'
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
  backups(target: string, more: object = {}, listMs?: number): Backups {
    const backupTargets = {
      isKnown: async (label: string) => this.known.has(label),
      remember: async (label: string) => void this.known.add(label),
    }
    return backupsOf({ backupTarget: target, backupPassphrase: undefined, ...more }, { clusterId: 'c', backupTargets }, listMs) // prettier-ignore
  }

  create(backups: Backups, params: JobParams = {}, keep = 0): Promise<void> {
    const reader = {
      readWhole: async ({ digest }: { digest: string }) => {
        await this.onRead(digest)
        this.reads.push(digest)
        return [...this.artifacts.values()].find(body => hash('sha256', body) === digest)!
      },
    }
    const metadata = { clusterId: 'c', incarnation: 'i', findBlob: async () => undefined, snapshot: this.#snapshot } as unknown as Metadata // prettier-ignore
    const job = backup({ ...backups, metadata, reader: reader as never, throttle, keep, now: Date.now, version: '1' }) // prettier-ignore
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
  const said: string[] = []
  const deps = (store: BackupStore): RestoreDeps => {
    return { store, client: { call }, origin, authorization: 'Basic x', atOnce: 4, goesLive: true, signal: new AbortController().signal, say: line => void said.push(line) } // prettier-ignore
  }
  return { artifacts, calls, said, deps }
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

t.test('why a scratch cluster did not start is said', async t => {
  const world = new World()
  world.put('a')
  const folder = t.testdir({ target: {}, scratch: {}, 'main.mjs': '' })
  await world.create(world.backups(join(folder, 'target')))
  // In place of `holdfast up`.
  await writeFile(
    join(folder, 'main.mjs'),
    `import { mkdirSync, writeFileSync } from 'node:fs'
    const folder = process.argv[process.argv.indexOf('--data') + 1]
    mkdirSync(folder + '/log')
    writeFileSync(folder + '/log/proxy.log', 'what the proxy said')
    process.stderr.write('holdfast: proxy did not start; see ' + folder + '/log/proxy.log [INTERNAL]')
    process.exitCode = 3`,
  )
  const program = process.argv[1] ?? ''
  process.argv[1] = join(folder, 'main.mjs')
  t.teardown(() => (process.argv[1] = program))
  let err = ''
  const write = { out: () => {}, err: (text: string) => void (err += text) }
  const args = ['--backup-target', join(folder, 'target'), '--scratch', join(folder, 'scratch')]
  t.equal(await drill({ args, env: process.env }, write), 1)
  t.match(err, /proxy did not start; see .*\nwhat the proxy said\nholdfast: the scratch cluster ended with 3 before/)
  t.same(await readdir(join(folder, 'scratch')), [])
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

/** As releases wrote them that knew neither checksums nor copies of the claim. */
async function makeOld(folder: string): Promise<void> {
  const files = (await readdir(join(folder, 'backups'))).map(id => join(folder, 'backups', id))
  for (const file of [...files, join(folder, 'target', 'cluster')]) {
    const document = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>
    delete document['sha256']
    if (file.includes('/backups/')) delete document['encryption']
    await writeFile(file, JSON.stringify(document) + '\n')
  }
}

async function flipSalt(claim: string): Promise<void> {
  const text = await readFile(claim, 'utf8')
  await writeFile(
    claim,
    text.replace(/"salt":"(.)/, (_, digit) => `"salt":"${digit === '0' ? '1' : '0'}`),
  )
}

t.test('a claim that got lost is made again from the summaries, and what needs none goes on without it', async t => {
  for (const backupPassphrase of [undefined, 'correct horse']) {
    for (const loss of ['missing', 'flipped', 'flipped, and without a checksum', 'torn', 'unreadable']) {
      // Deriving keys takes long.
      if (
        loss.startsWith('flipped')
          ? backupPassphrase === undefined
          : backupPassphrase !== undefined && loss !== 'missing'
      )
        continue
      const what = `${loss}, ${backupPassphrase === undefined ? 'in the clear' : 'encrypted'}`
      const folder = t.testdir({})
      const world = new World()
      world.put('a')
      await world.create(world.backups(folder, { backupPassphrase }))
      const claim = join(folder, 'target', 'cluster')
      const before = await readFile(claim, 'utf8')
      if (loss.startsWith('flipped')) await flipSalt(claim)
      if (loss.endsWith('checksum')) {
        await writeFile(claim, (await readFile(claim, 'utf8')).replace(/,"sha256":"[0-9a-f]+"/, ''))
      }
      if (loss === 'torn') await truncate(claim, 20)
      if (loss === 'missing' || loss === 'unreadable') await rm(claim)
      if (loss === 'unreadable') await symlink('/proc/self/mem', claim)

      const cluster = await emptyCluster(t)
      const store = await BackupStore.open(openBackupTarget(folder, {}), backupPassphrase)
      t.match(await restoreBackup(cluster.deps(store), await store.idOf(undefined)), { artifacts: 1, missing: 0 }, what)
      t.ok(cluster.artifacts.get('/repository/raw/a')?.equals(world.artifacts.get('a')!))
      if (loss === 'missing') {
        const wrong = BackupStore.open(openBackupTarget(folder, {}), 'a wrong one')
        await t.rejects(wrong, { code: 'CONFIG_INVALID' }, 'no passphrase but the right one')
        const other = BackupStore.openOrClaim(openBackupTarget(folder, {}), backupPassphrase, 'd')
        await t.rejects(other, { code: 'CONFLICT', message: /another cluster/ }, 'nor another cluster')
      }

      world.put('b')
      await world.create(world.backups(folder, { backupPassphrase }))
      t.equal(await readFile(claim, 'utf8'), before, 'the same claim as before')
      await world.verify(world.backups(folder, { backupPassphrase }))
    }
  }
})

t.test('nothing is begun anew on a target that has lost the salt of its key', async t => {
  const folder = t.testdir({})
  const world = new World()
  const backupPassphrase = 'correct horse'
  world.put('a')
  await world.create(world.backups(folder, { backupPassphrase }))
  await makeOld(folder)
  const claim = join(folder, 'target', 'cluster')
  const text = await readFile(claim, 'utf8')
  await rm(claim)
  const lost = { code: 'BACKUP_DAMAGED', message: /target\/cluster on .* is missing, though there are 1 backups, 1 manifests, 1 blobs, / } // prettier-ignore
  for (const anew of [false, true]) {
    await t.rejects(world.create(world.backups(folder, { backupPassphrase }), { anew }), lost)
    await t.rejects(new World().create(world.backups(folder), { anew }), lost, 'nor in the clear')
  }
  await t.rejects(BackupStore.open(openBackupTarget(folder, {}), backupPassphrase), lost)
  t.same(await readdir(join(folder, 'target')), [])
  await writeFile(claim, text)
  await world.create(world.backups(folder, { backupPassphrase }))
  await world.verify(world.backups(folder, { backupPassphrase }))

  for (const left of ['manifests', 'blobs']) {
    for (const name of ['target', 'backups', left === 'blobs' ? 'manifests' : 'blobs']) {
      await rm(join(folder, name), { recursive: true })
    }
    const message = new RegExp(`is missing, though there are \\d ${left},`)
    await t.rejects(world.create(world.backups(folder), { anew: true }), { code: 'BACKUP_DAMAGED', message })
    await rm(join(folder, left), { recursive: true })
    world.known.clear()
    await world.create(world.backups(folder))
  }
})

t.test('a claim of an earlier release in the clear is made again, too', async t => {
  const folder = t.testdir({})
  const world = new World()
  world.put('a')
  await world.create(world.backups(folder))
  await makeOld(folder)
  await rm(join(folder, 'target', 'cluster'))
  await world.create(world.backups(folder))
  t.equal((await world.backups(folder).list()).backups.length, 2)
})

/** A disk that cannot give a file any more answers as this does. */
async function makeUnreadable(file: string): Promise<void> {
  await rm(file)
  await symlink('/proc/self/mem', file)
}

t.test('what is damaged in a backup is named, and the rest is restored to the end', async t => {
  const folder = t.testdir({})
  const world = new World()
  const backups = world.backups(folder)
  for (const path of ['flipped', 'good', 'longer', 'missing', 'shorter', 'unreadable']) {
    world.put(path, Buffer.concat([Buffer.from(path), randomBytes(600_000)]))
  }
  await world.create(backups)
  const fileOf = (path: string): string => {
    const digest = hash('sha256', world.artifacts.get(path)!)
    return join(folder, 'blobs', digest.slice(0, 2), digest)
  }
  const flipped = Buffer.from(world.artifacts.get('flipped')!)
  flipped[flipped.length - 1]! ^= 1
  await writeFile(fileOf('flipped'), flipped)
  await appendFile(fileOf('longer'), 'more')
  await truncate(fileOf('shorter'), 300_000)
  await rm(fileOf('missing'))
  await makeUnreadable(fileOf('unreadable'))

  const cluster = await emptyCluster(t)
  const store = await BackupStore.open(openBackupTarget(folder, {}), undefined)
  t.match(await restoreBackup(cluster.deps(store), await store.idOf(undefined)), { artifacts: 1, missing: 5 })
  t.same([...cluster.artifacts.keys()], ['/repository/raw/good'])
  t.equal(cluster.calls.at(-1)?.[0], '/restore/end')
  t.match(cluster.said.sort(), [
    'raw/flipped is not restored: it is damaged in the backup (checksum)',
    'raw/longer is not restored: it is damaged in the backup (more than 600006 bytes)',
    /^raw\/missing is not restored: .*ENOENT/,
    'raw/shorter is not restored: it is damaged in the backup (300000 of 600007 bytes)',
    /^raw\/unreadable is not restored: .*\(EIO\)/,
  ])

  await t.rejects(world.verify(backups, { repair: true }), { code: 'BACKUP_DAMAGED', message: /^5 blobs of backup/ })
  await world.create(backups)
  await world.verify(backups)
  t.match(world.lines.at(-1), /6 of 6 blobs read, .* 0 bad/)
})

t.test('a damaged backup stops neither new ones nor what can safely be pruned, until it is removed', async t => {
  const folder = t.testdir({})
  const world = new World()
  const backups = world.backups(folder)
  const idsIn = async (name: string): Promise<string[]> => (await readdir(join(folder, name))).sort()
  const blobs = async (): Promise<number> =>
    (await readdir(join(folder, 'blobs'), { recursive: true })).filter(name => name.length > 60).length
  for (const path of ['a', 'b', 'c']) {
    world.artifacts.clear()
    world.put(path)
    await world.create(backups)
  }
  const [first = '', second = '', third = ''] = await idsIn('backups')
  const manifest = join(folder, 'manifests', third)
  const bytes = await readFile(manifest)
  bytes[bytes.length - 40]! ^= 1
  await writeFile(manifest, bytes)
  const stray = '20990101t000000z-1'
  await writeFile(join(folder, 'backups', stray), '{"format":1}')
  await writeFile(join(folder, 'manifests', 'notes'), 'not ours')

  await world.create(backups, {}, 2)
  const fourth = (await idsIn('backups')).at(-2)!
  t.same(await idsIn('backups'), [second, third, fourth, stray], 'two good ones are kept; what is damaged stays')
  t.equal(await blobs(), 3, 'blobs that the damaged ones may name stay')
  t.match(
    world.lines.filter(line => line.startsWith('WARNING')),
    [
      new RegExp(`backup ${stray} is damaged: backups/${stray} is damaged`),
      new RegExp(`backup ${third} is damaged: backup ${third}: the manifest is damaged`),
      new RegExp(`no blobs are removed while ${stray}, ${third} cannot be read`),
    ],
  )
  t.notOk((await idsIn('backups')).includes(first))
  t.match(await backups.list(), { backups: { length: 3 }, damaged: [{ id: stray, why: /backups\/2099.* is damaged/ }] })

  await t.rejects(world.create(backups, { prune: 3 }), { code: 'BACKUP_DAMAGED', message: new RegExp(stray) })
  await t.rejects(world.create(backups, { remove: 'nosuch' }), { code: 'NOT_FOUND', message: new RegExp(`no backup 'nosuch' on .*${second}, ${third}, ${fourth}`) }) // prettier-ignore
  await world.create(backups, { remove: third })
  t.equal(await blobs(), 3, 'the other one is still there')
  await world.create(backups, { remove: stray })
  t.same(await idsIn('backups'), [second, fourth])
  t.equal(await blobs(), 2, 'now what nothing names is gone')

  await world.create(backups, { remove: fourth })
  await t.rejects(world.create(backups, { remove: second }), {
    code: 'CONFLICT',
    message: /the last good backup: --last/,
  })
  await world.create(backups, { remove: second, last: true })
  t.same(await idsIn('backups'), [])
  t.equal(await blobs(), 0)
})

t.test('which backups there are is told to whoever names another one, or asks where there are none', async t => {
  const folder = t.testdir({})
  await t.rejects(BackupStore.open(openBackupTarget(folder, {}), undefined), { code: 'NOT_FOUND', message: /^there are no backups on / }) // prettier-ignore
  const world = new World()
  world.put('a')
  await world.create(world.backups(folder))
  const { backups } = await world.backups(folder).list()
  const message = new RegExp(`^there is no backup '../x' on .*, but ${backups[0]!.id}$`)
  await t.rejects(world.verify(world.backups(folder), { backup: '../x' }), { code: 'NOT_FOUND', message })
})

t.test('a target that does not answer is named in time', async t => {
  const server = await BucketServer.start(t)
  const world = new World()
  world.put('a')
  const backups = world.backups(server.url(), server.keys, 100)
  await world.create(backups)
  server.fault = () => ({ slowMs: 3_000 })
  await t.rejects(backups.list(), {
    code: 'NODE_UNREACHABLE',
    message: /^backup target s3:\/\/.* does not answer within/,
  })
  server.fault = () => undefined
})
