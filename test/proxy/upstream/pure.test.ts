import fc from 'fast-check'
import t from 'tap'
import { AddressGuard } from '../../../proxy/outgoing/address-guard.ts'
import { Breaker } from '../../../proxy/upstream/breaker.ts'
import { isImmutable } from '../../../proxy/upstream/freshness.ts'
import { upstreamOf } from '../../../proxy/upstream/settings.ts'

t.test('a path with a version, a date or a digest in it never changes; one that says that it moves does', async t => {
  const fixed = [
    'app/1.0/app.bin',
    'app-2.0.1-rc.1.tar.gz',
    'v1.2.3/x',
    'nightlies/2026-11-30/x',
    `blobs/${'ab'.repeat(32)}`,
    `commit/${'0f'.repeat(20)}/file`,
  ]
  const moving = [
    'index.html',
    'app/app.bin',
    'app/latest/app.bin',
    'app-1.0-SNAPSHOT.jar',
    'app/1.0/latest.txt',
    'app/1.0/index.json',
    'repo/1.0/maven-metadata.xml',
    'nightly-1.2.tgz',
    'python3/x',
    'centos/8.5/os/repodata/repomd.xml',
    'v3.19/community/APKINDEX.tar.gz',
    'v3.19/APKINDEX.tar.gz',
    'dists/12.5/InRelease',
    'dists/12.5/main/binary/Packages.gz',
    '1.0/docs/deep/file.html',
  ]
  for (const path of fixed) t.equal(isImmutable(path), true, path)
  for (const path of moving) t.equal(isImmutable(path), false, path)
})

t.test('an upstream is an http(s) folder without secrets', async t => {
  t.strictSame(upstreamOf({ url: 'https://host/a' }), {
    url: 'https://host/a/',
    maxAgeSeconds: 600,
    absentMaxAgeSeconds: 300,
  })
  t.equal(upstreamOf({ url: 'http://host', maxAgeSeconds: 5 }).maxAgeSeconds, 5)
  for (const url of ['host/a', 'ftp://host/', 'https://host/?q=1', 'https://host/#x', 'https://u:p4ss@host/']) {
    t.throws(() => upstreamOf({ url }), { code: 'BAD_REQUEST' }, url)
  }
  try {
    upstreamOf({ url: 'https://u:p4ss@host/' })
  } catch (error) {
    t.notMatch(String(error), /p4ss/)
  }
})

t.test('addresses of this machine and its link are refused, in every dress, unless they are allowed', async t => {
  const guard = new AddressGuard([])
  const own = [
    '127.0.0.1',
    '127.8.8.8',
    '0.0.0.0',
    '169.254.169.254',
    '::1',
    '::',
    'fe80::1',
    '::ffff:127.0.0.1',
    '::ffff:a9fe:a9fe',
    '::127.0.0.1',
    '64:ff9b::7f00:1',
    'fd00:ec2::254',
    '100.100.100.200',
  ]
  for (const address of own) t.equal(guard.allows(address), false, address)
  for (const address of ['10.0.0.1', '192.168.1.1', '8.8.8.8', '2001:db8::1', 'fd00::1']) {
    t.equal(guard.allows(address), true, address)
  }
  const lenient = new AddressGuard(['127.0.0.0/8'])
  t.equal(lenient.allows('127.0.0.1'), true)
  t.equal(lenient.allows('169.254.169.254'), false)
  t.throws(() => guard.check(new URL('http://[::ffff:127.0.0.1]/')), { code: 'UPSTREAM_FAILED' })
  t.throws(() => guard.check(new URL('http://2130706433/')), { code: 'UPSTREAM_FAILED' }, 'a number is an address')
  t.doesNotThrow(() => guard.check(new URL('http://host/')))
  const found = await new Promise(done => guard.lookup('localhost', { all: true }, error => done(error)))
  t.match(found, { code: 'UPSTREAM_FAILED' }, 'a name is looked at after it was resolved')
})

t.test(
  'an upstream that fails is asked by one request at a time, after pauses that grow to a minute; one success ends that',
  async t => {
    const breaker = new Breaker()
    let now = 0
    for (let count = 0; count < 4; count += 1) breaker.failed(now)
    t.equal(breaker.waitMs(now), 0, 'four failures are no reason')
    breaker.failed(now)
    for (const pauseMs of [1, 2, 4, 8, 16, 32, 60, 60].map(seconds => seconds * 1_000)) {
      t.equal(breaker.waitMs(now), pauseMs)
      now += pauseMs
      t.equal(breaker.waitMs(now), 0)
      t.ok(breaker.waitMs(now) > 0, 'only one may try')
      breaker.failed(now)
    }
    now += 60_000
    t.equal(breaker.waitMs(now), 0)
    breaker.succeeded()
    t.equal(breaker.waitMs(now), 0)
    t.equal(breaker.waitMs(now), 0)
  },
)

t.test('whatever happens, an upstream is tried again within a minute', async t => {
  const step = fc.record({
    ms: fc.nat(70_000),
    what: fc.constantFrom('failed', 'succeeded', 'gaveUp'),
    retryMs: fc.nat(1e7),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), steps => {
      const breaker = new Breaker()
      let now = 0
      for (const { ms, what, retryMs } of steps) {
        now += ms
        if (breaker.waitMs(now) > 0) continue
        if (what === 'failed') breaker.failed(now, retryMs)
        else if (what === 'succeeded') breaker.succeeded()
        else breaker.gaveUp()
      }
      return breaker.waitMs(now + 60_000) === 0
    }),
  )
  t.pass()
})
