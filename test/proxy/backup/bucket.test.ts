/** Targets of backups: a folder and a bucket keep the same promises; what a bucket answers, and what is made of it. */
import { randomBytes } from 'node:crypto'
import { chmod, readdir, utimes, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import t, { type Test } from 'tap'
import { BucketTarget, partBytesOf } from '../../../proxy/backup/bucket-target.ts'
import { addressOf, parseBucketUrl } from '../../../proxy/backup/bucket-url.ts'
import { elementsOf, textOf } from '../../../proxy/backup/bucket-xml.ts'
import { credentialsOf, parseCredentials } from '../../../proxy/backup/credentials.ts'
import { openBackupTarget } from '../../../proxy/backup/open-target.ts'
import { sha256, signV4 } from '../../../proxy/backup/sign-v4.ts'
import type { BackupTarget } from '../../../proxy/backup/types.ts'
import { BucketServer, type BucketServerOptions } from '../../support/bucket-server.ts'

const MiB = 2 ** 20

async function* stream(...chunks: readonly Buffer[]): AsyncGenerator<Buffer> {
  for (const chunk of chunks) yield chunk
}
async function* failing(chunk: Buffer): AsyncGenerator<Buffer> {
  yield chunk
  throw new Error('on the way')
}
async function gather(chunks: AsyncIterable<Buffer>): Promise<Buffer> {
  const taken: Buffer[] = []
  for await (const chunk of chunks) taken.push(chunk)
  return Buffer.concat(taken)
}

async function setUp(t: Test, options: BucketServerOptions = {}) {
  const server = await BucketServer.start(t, options)
  return { server, target: targetAt(server) }
}

function targetAt(server: BucketServer, url = server.url(), silentMs = 30_000): BucketTarget {
  return new BucketTarget(parseBucketUrl(url), {
    silentMs,
    credentials: credentialsOf(server.keys),
    now: Date.now,
    pauseMs: 2,
    partBytesMin: 5 * MiB,
  })
}

const blob = (digit: string, prefix = '3f'): string => `blobs/${prefix}/${digit.repeat(62)}`

/** What any target promises. */
async function keepsPromises(t: Test, target: BackupTarget): Promise<void> {
  const large = randomBytes(16 * MiB + 7)
  t.same(await target.list('backups'), [], 'nothing is there yet')
  await t.rejects(gather(target.get('backups/20260301t023000z-1')), { code: 'NOT_FOUND' })
  t.equal(await target.put(blob('a'), stream(Buffer.from('one'), Buffer.from(' body'))), true)
  t.equal(await target.put(blob('a'), stream(Buffer.from('another'))), false, 'a name is given once')
  t.equal((await gather(target.get(blob('a')))).toString(), 'one body')
  t.equal(await target.put(blob('b'), stream()), true, 'nothing is a body, too')
  t.equal((await gather(target.get(blob('b')))).length, 0)
  const chunks = Array.from({ length: 9 }, (_, index) => large.subarray(index * 2 * MiB, (index + 1) * 2 * MiB))
  t.equal(await target.put(blob('c'), stream(...chunks), { bytes: large.length }), true)
  t.equal(await target.put(blob('c'), stream(...chunks)), false)
  t.ok((await gather(target.get(blob('c')))).equals(large))
  const exact = large.subarray(0, 16 * MiB)
  await target.put(blob('d'), stream(exact))
  t.ok((await gather(target.get(blob('d')))).equals(exact), 'as long as two parts')
  await t.rejects(target.put(blob('e'), failing(Buffer.from('half'))), /on the way/)
  await t.rejects(target.put(blob('e'), failing(large)), /on the way/)
  await t.rejects(target.put(blob('e'), stream(large), { signal: AbortSignal.abort(new Error('enough')) }), /enough/)
  await target.put(blob('a', '40'), stream(Buffer.from('x')))
  t.same(
    [...(await target.list('blobs/3f'))].sort(),
    ['a', 'b', 'c', 'd'].map(digit => digit.repeat(62)),
  )
  t.same(await target.list('blobs'), [], 'folders are no objects')
  await target.remove(blob('a'))
  await target.remove(blob('a'))
  await t.rejects(gather(target.get(blob('a'))), { code: 'NOT_FOUND' })
  t.equal((await target.list('blobs/3f')).length, 3)
  await t.rejects(target.put('blobs/../x', stream()), { code: 'PATH_INVALID' })
  const begun = target.get(blob('c'))[Symbol.asyncIterator]()
  t.equal((await begun.next()).done, false)
  await begun.return?.(undefined) // who stops in the middle leaves nothing open
  for (const name of [blob('b'), blob('c'), blob('d'), blob('a', '40')]) await target.remove(name)
}

t.test('a folder', async t => {
  const folder = t.testdir({})
  const target = openBackupTarget(folder, {})
  await keepsPromises(t, target)
  t.same(await readdir(join(folder, 'tmp')), [], 'what failed leaves nothing')
  for (const [name, age] of [['a'.repeat(24), 7_200], ['b'.repeat(24), 60], ['not-ours', 7_200]] as const) {
    await writeFile(join(folder, 'tmp', name), '')
    await utimes(join(folder, 'tmp', name), Date.now() / 1_000 - age, Date.now() / 1_000 - age)
  } // prettier-ignore
  t.equal(await target.tidy(3_600_000), 1)
  t.same((await readdir(join(folder, 'tmp'))).sort(), ['b'.repeat(24), 'not-ours'])
  const absent = openBackupTarget(join(folder, 'not-mounted'), {})
  await t.rejects(absent.put('target/cluster', stream()), { code: 'CONFLICT', message: /does not exist: make it, or mount/ }) // prettier-ignore
})

t.test('a bucket', async t => {
  const { server, target } = await setUp(t, { pageNames: 3 })
  await keepsPromises(t, target)
  t.equal(server.objects.size, 0)
  t.equal(server.uploads.size, 0, 'what failed leaves no parts')
  t.equal(await target.tidy(0), 0)
})

t.test('a bucket that knows no conditional writes', async t => {
  const { server, target } = await setUp(t, { conditional: 'no' })
  await keepsPromises(t, target)
  t.equal(server.uploads.size, 0)
})

const real = process.env['HOLDFAST_TEST_BUCKET']
t.test('the bucket of HOLDFAST_TEST_BUCKET', { skip: real === undefined && 'none is given' }, async t => {
  const url = new URL(real ?? '')
  url.pathname += `/test-${randomBytes(6).toString('hex')}`
  const target = openBackupTarget(url.href, {
    backupAccessKeyId: process.env['HOLDFAST_BACKUP_ACCESS_KEY_ID'],
    backupSecretAccessKey: process.env['HOLDFAST_BACKUP_SECRET_ACCESS_KEY'],
    backupSessionToken: process.env['HOLDFAST_BACKUP_SESSION_TOKEN'],
    backupCredentialsFile: process.env['HOLDFAST_BACKUP_CREDENTIALS_FILE'],
  })
  await keepsPromises(t, target)
  t.equal(await target.tidy(0), 0)
  const wrong = openBackupTarget(url.href, { backupAccessKeyId: 'nobody', backupSecretAccessKey: 'nothing' })
  await t.rejects(wrong.list('backups'), { code: /CONFIG_INVALID|FORBIDDEN/ })
})

t.test('lists longer than a page, and names that are not ours', async t => {
  const { server, target } = await setUp(t, { pageNames: 2 })
  const names = ['1', '2', '3', '4', '5'].map(digit => digit.repeat(62))
  for (const name of names) await target.put(`blobs/3f/${name}`, stream(Buffer.from('x')))
  server.objects.set('some/prefix/blobs/3f/&<strange> name', { body: Buffer.alloc(0), ticket: undefined })
  server.objects.set('elsewhere/blobs/3f/' + '9'.repeat(62), { body: Buffer.alloc(0), ticket: undefined })
  t.same(await target.list('blobs/3f'), names)
  for (let count = 0; count < 5; count++) {
    server.uploads.set(`id${count}`, { key: `some/prefix/blobs/3f/${names[0]}`, ticket: undefined, begun: Date.now() - 9e5, parts: new Map() }) // prettier-ignore
  }
  server.uploads.set('new', { key: `some/prefix/${blob('a')}`, ticket: undefined, begun: Date.now(), parts: new Map() })
  server.uploads.set('other', { key: 'elsewhere/x', ticket: undefined, begun: 0, parts: new Map() })
  t.equal(await target.tidy(6e5), 5)
  t.same([...server.uploads.keys()], ['new', 'other'], 'only what is old and ours')
})

t.test('errors that pass are outlived, and a name that was taken by a lost answer counts as taken by us', async t => {
  const { server, target } = await setUp(t)
  const large = randomBytes(6 * MiB)
  for (const fault of ['error', 'lost'] as const) {
    for (const body of [Buffer.from('small'), large]) {
      // Every request fails twice, whatever it asks.
      const seen = new Map<string, number>()
      server.fault = (...asked) => {
        const times = (seen.get(asked.join(' ')) ?? 0) + 1
        seen.set(asked.join(' '), times)
        return times <= 2 ? fault : undefined
      }
      t.equal(await target.put(blob('a'), stream(body)), true, `${fault}, ${body.length} bytes`)
      t.equal(await target.put(blob('a'), stream(Buffer.from('other'))), false)
      t.ok((await gather(target.get(blob('a')))).equals(body))
      t.equal((await target.list('blobs/3f')).length, 1)
      await target.remove(blob('a'))
    }
  }
  let failures = 2
  server.fault = (method, _, query) => (method === 'POST' && query.has('uploadId') && failures-- > 0 ? 'error-in-200' : undefined) // prettier-ignore
  t.equal(await target.put(blob('a'), stream(large)), true, 'an error that comes with status 200')
  server.fault = () => 'error'
  await t.rejects(target.list('blobs/3f'), { code: 'NODE_UNREACHABLE', message: /again and again \(503 SlowDown\)/ })
  await t.rejects(target.put(blob('b'), stream(large)), { code: 'NODE_UNREACHABLE' })
})

t.test('a download that breaks off goes on where it was', async t => {
  const { server, target } = await setUp(t)
  const large = randomBytes(4 * MiB)
  await target.put(blob('a'), stream(large))
  server.asked.length = 0
  let cuts = 3
  server.fault = method => (method === 'GET' && cuts-- > 0 ? 'cut' : undefined)
  t.ok((await gather(target.get(blob('a')))).equals(large))
  t.equal(server.asked.length, 4)
  server.fault = method => (method === 'GET' ? 'cut' : undefined)
  await t.rejects(gather(target.get(blob('a'))), { code: 'NODE_UNREACHABLE' }, 'but not for ever')
})

// undici 7 ended the process here: the connection ends while its reader pauses.
t.test(
  'a server that closes the connection after each answer: a slow reader gets all, whatever he holds back',
  async t => {
    const { server } = await setUp(t)
    const silentMs = 300
    const target = targetAt(server, server.url(), silentMs)
    const large = randomBytes(12 * MiB)
    server.fault = () => 'close'
    t.equal(await target.put(blob('a'), stream(large)), true)
    server.asked.length = 0
    const taken: Buffer[] = []
    let pauses = 0
    for await (const chunk of target.get(blob('a'))) {
      taken.push(chunk)
      if (pauses++ < 3) await sleep(2 * silentMs)
    }
    t.ok(Buffer.concat(taken).equals(large))
    t.equal(server.asked.length, 1, 'a reader that takes his time is no silence')
  },
)

t.test('an answer that falls silent in the middle is given up and asked for again', async t => {
  const { server } = await setUp(t)
  const target = targetAt(server, server.url(), 300)
  const large = randomBytes(4 * MiB)
  await target.put(blob('a'), stream(large))
  server.asked.length = 0
  let stalls = 2
  server.fault = () => (stalls-- > 0 ? 'stall' : undefined)
  t.ok((await gather(target.get(blob('a')))).equals(large))
  t.equal(server.asked.length, 3)
  stalls = 1
  t.equal((await target.list('blobs/3f')).length, 1, 'lists, too')
  server.fault = () => ({ slowMs: 60_000 })
  const begun = performance.now()
  await t.rejects(target.list('blobs/3f'), { code: 'NODE_UNREACHABLE', message: /does not answer \(ETIMEDOUT\)/ })
  t.ok(performance.now() - begun < 30_000, 'no answer at all')
})

t.test('a failed upload gives its parts back', async t => {
  const { server, target } = await setUp(t)
  const large = randomBytes(11 * MiB)
  server.fault = (_, __, query) => (query.get('partNumber') === '2' ? 'error' : undefined)
  await t.rejects(target.put(blob('a'), stream(large)), { code: 'NODE_UNREACHABLE' })
  t.equal(server.uploads.size, 0)
  const ending = new AbortController()
  server.fault = (_, __, query) => {
    if (query.get('partNumber') === '2') ending.abort(new Error('enough'))
    return undefined
  }
  await t.rejects(target.put(blob('a'), stream(large), { signal: ending.signal }), /enough/)
  t.equal(server.uploads.size, 0)
  t.same(await target.list('blobs/3f'), [])
})

t.test('a stream of any length takes the memory of a part', async t => {
  const { server, target } = await setUp(t)
  const chunk = randomBytes(MiB)
  let ahead = 0
  let most = 0
  // What is taken from the body before the part of it has arrived.
  const body = async function* (): AsyncGenerator<Buffer> {
    for (let count = 0; count < 30; count++) {
      most = Math.max(most, ++ahead)
      yield chunk
    }
  }
  server.fault = (_, __, query) => {
    if (query.has('partNumber')) ahead -= 5
    return undefined
  }
  t.equal(await target.put(blob('a'), body()), true)
  t.ok(most <= 6, `${most} MiB at most`)
})

t.test('what an operator gets wrong is said in words, without secrets', async t => {
  const { server } = await setUp(t)
  const skewed = await BucketServer.start(t, { skewMs: 3_600_000 })
  const { href } = new URL(server.url())
  const secret = 'a-wrong-secret'
  const wrong: readonly [string, string, BucketServer, object, object][] = [
    ['bucket', href.replace('s3://backups', 's3://others'), server, {}, { code: 'CONFIG_INVALID', message: /no bucket 'others'/ }],
    ['key', href, server, { backupAccessKeyId: 'AKNOBODY' }, { code: 'CONFIG_INVALID', message: /access key is unknown/ }],
    ['secret', href, server, { backupSecretAccessKey: secret }, { code: 'CONFIG_INVALID', message: /secret does not belong/ }],
    ['region', href.replace('eu-test-1', 'us-east-1'), server, {}, { code: 'CONFIG_INVALID', message: /region eu-test-1, not us-east-1/ }],
    ['clock', skewed.url(), skewed, {}, { code: 'CONFIG_INVALID', message: /clock of this machine is wrong: 3(600|599) s behind/ }],
  ] // prettier-ignore
  for (const [what, url, { keys }, change, expected] of wrong) {
    const config = { ...keys, ...change }
    const target = openBackupTarget(url, config)
    const error = await target.list('backups').catch((error: unknown) => error)
    t.match(error, expected, what)
    t.notMatch(inspect({ error, target }, { depth: 9, showHidden: true }), config.backupSecretAccessKey)
  }
  const closed = createServer()
  await new Promise<void>(done => closed.listen(0, '127.0.0.1', done))
  const { port } = closed.address() as AddressInfo
  await new Promise<void>(done => closed.close(() => done()))
  const nobody = targetAt(server, `s3://backups?endpoint=http://127.0.0.1:${port}`)
  await t.rejects(nobody.list('backups'), { code: 'NODE_UNREACHABLE', message: /does not answer \(ECONNREFUSED\)/ })
  const none = openBackupTarget(server.url(), {})
  await t.rejects(none.list('backups'), { code: 'CONFIG_INVALID', message: /HOLDFAST_BACKUP_CREDENTIALS_FILE/ })
})

t.test('a bucket that has a name of its own', async t => {
  const server = await BucketServer.start(t)
  const place = parseBucketUrl(`s3://backups?endpoint=http://s3.test:${server.port}&region=eu-test-1&style=virtual`)
  const target = new BucketTarget(place, {
    credentials: credentialsOf(server.keys),
    now: Date.now,
    pauseMs: 5,
    lookup: (_, options, done) =>
      options.all === true ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4),
  })
  t.equal(await target.put(blob('a'), stream(Buffer.from('x'))), true)
  t.same([...server.objects.keys()], [blob('a')])
  t.same(await target.list('blobs/3f'), ['a'.repeat(62)])
})

t.test('the published examples of signatures', async t => {
  // https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
  const credentials = {
    accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
    secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
  }
  const host = 'examplebucket.s3.amazonaws.com'
  const at = Date.parse('2013-05-24T00:00:00Z')
  const bodySha256 = sha256('')
  const signature = (request: Omit<Parameters<typeof signV4>[0], 'host'>) =>
    /Signature=(.*)$/.exec(signV4({ host, ...request }, credentials, 'us-east-1', at)['authorization'] ?? '')?.[1]
  t.equal(
    signature({ method: 'GET', path: '/test.txt', query: [], headers: { range: 'bytes=0-9' }, bodySha256 }),
    'f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
  )
  t.equal(
    signature({
      method: 'PUT',
      path: '/test%24file.text',
      query: [],
      headers: { date: 'Fri, 24 May 2013 00:00:00 GMT', 'x-amz-storage-class': 'REDUCED_REDUNDANCY' },
      bodySha256: sha256('Welcome to Amazon S3.'),
    }),
    '98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd',
  )
  t.equal(
    signature({ method: 'GET', path: '/', query: [['lifecycle', '']], headers: {}, bodySha256 }),
    'fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543',
  )
  t.equal(
    signature({ method: 'GET', path: '/', query: [['prefix', 'J'], ['max-keys', '2']], headers: {}, bodySha256 }), // prettier-ignore
    '34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7',
  )
})

t.test('names of buckets', async t => {
  t.match(parseBucketUrl('s3://backups/a/b/?region=eu-central-1'), {
    bucket: 'backups', prefix: 'a/b/', endpoint: 'https://s3.eu-central-1.amazonaws.com', style: 'virtual', label: 's3://backups/a/b',
  }) // prettier-ignore
  t.match(parseBucketUrl('s3://a.b.c'), { prefix: '', style: 'path' })
  const own = parseBucketUrl('s3://backups?endpoint=http://10.0.0.1:9000/')
  t.match(own, { style: 'path', endpoint: 'http://10.0.0.1:9000', label: 's3://backups at http://10.0.0.1:9000' })
  t.same(addressOf(own, ''), { origin: 'http://10.0.0.1:9000', host: '10.0.0.1:9000', path: '/backups' })
  t.same(addressOf(own, 'a/b c'), { origin: 'http://10.0.0.1:9000', host: '10.0.0.1:9000', path: '/backups/a/b%20c' })
  t.same(addressOf(parseBucketUrl('s3://backups'), 'k'), { origin: 'https://backups.s3.us-east-1.amazonaws.com', host: 'backups.s3.us-east-1.amazonaws.com', path: '/k' }) // prettier-ignore
  for (const url of ['s3://', 's3://AB', 's3://backups/a b', 's3://backups/é', 's3://backups?style=x', 's3://backups?region=A B', 's3://backups?endpoint=ftp://h', 's3://backups?endpoint=https://h/path', 's3://backups?key=hush', 's3://key:hush@backups', 's3://backups?endpoint=https://k:hush@h']) {
    const error = await Promise.resolve().then(() => parseBucketUrl(url)).catch((error: unknown) => error) // prettier-ignore
    t.match(error, { code: 'CONFIG_INVALID' }, url)
    t.notMatch(String(error), 'hush')
  } // prettier-ignore
  t.equal(partBytesOf(0), 8 * MiB)
  t.equal(partBytesOf(70 * 1024 * MiB), 8 * MiB)
  t.equal(partBytesOf(500 * 1024 * MiB), 57 * MiB)
  t.throws(() => partBytesOf(2 ** 41), { code: 'TOO_LARGE' })
})

t.test('keys in a file are taken only if nobody else can read it', async t => {
  const folder = t.testdir({
    good: '[other]\naws_access_key_id = no\n[default]\naws_access_key_id = AK\naws_secret_access_key=hush/hush+=\n',
    half: 'aws_access_key_id = AK\n',
  })
  const at = (name: string) => credentialsOf({ backupCredentialsFile: join(folder, name) })()
  await chmod(join(folder, 'good'), 0o640)
  await t.rejects(at('good'), { code: 'CONFIG_INVALID', message: /can be read by others \(mode 640\): chmod 600/ })
  await chmod(join(folder, 'good'), 0o600)
  await chmod(join(folder, 'half'), 0o600)
  t.match(await at('good'), { accessKeyId: 'AK', secretAccessKey: 'hush/hush+=', sessionToken: undefined })
  await t.rejects(at('half'), { code: 'CONFIG_INVALID', message: /not complete/ })
  await t.rejects(at('none'), { code: 'CONFIG_INVALID', message: /cannot be read/ })
  t.match(parseCredentials('aws_access_key_id=a\naws_secret_access_key=b\naws_session_token=c'), { sessionToken: 'c' })
})

t.test('the XML of answers', async t => {
  t.equal(textOf('<a><Key>x &amp;amp; &#233;&#x1F600;&lt;</Key></a>', 'Key'), 'x &amp; é😀<')
  t.equal(textOf('<a/>', 'Key'), undefined)
  t.equal(textOf('<Key>&#99999999;&nonsense;</Key>', 'Key'), '&#99999999;&nonsense;')
  t.same(elementsOf('<Contents>\n<Key>1</Key></Contents><Contents>2</Contents>', 'Contents'), ['\n<Key>1</Key>', '2'])
})
