import t from 'tap'
import fc from 'fast-check'
import { Authenticator, parseBasic } from '../../../proxy/access/authenticator.ts'
import { decide, type Action } from '../../../proxy/access/decide.ts'
import { FailedLogins } from '../../../proxy/access/failed-logins.ts'
import { addressGroup, defaultLoginLimits, LoginLimiter } from '../../../proxy/access/login-limiter.ts'
import { loadPasswords, Passwords } from '../../../proxy/access/passwords.ts'
import { anonymous, type Principal } from '../../../proxy/access/principal.ts'
import type { User } from '../../../proxy/metadata/types.ts'
import { HoldfastError } from '../../../shared/errors.ts'

const actions: readonly Action[] = ['read', 'write', 'delete', 'admin']
const ann: Principal = { name: 'ann', admin: false, anonymous: false }
const root: Principal = { name: 'admin', admin: true, anonymous: false }

const connection = {}

t.test('access is denied unless a rule allows it', async t => {
  for (const action of actions) {
    for (const repository of [undefined, { anonymousRead: false }, { anonymousRead: true }]) {
      const open = action === 'read' && repository?.anonymousRead === true
      t.equal(decide(root, action, repository), 'allow')
      t.equal(decide(ann, action, repository), open ? 'allow' : 'forbidden')
      t.equal(decide(anonymous, action, repository), open ? 'allow' : 'unauthorized')
    }
  }
})

t.test('passwords are hashed with argon2id, or with scrypt where that cannot load; both verify both', async t => {
  const [argon2, scrypt] = [await loadPasswords(), new Passwords(undefined)]
  t.equal(argon2.algorithm, 'argon2id')
  t.equal(scrypt.algorithm, 'scrypt')
  const [a, s] = [await argon2.hash('pässword'), await scrypt.hash('pässword')]
  t.match(a, /^\$argon2id\$v=19\$m=19456,t=2,p=1\$/)
  t.match(s, /^\$scrypt\$ln=15,r=8,p=1\$/)
  t.not(await argon2.hash('pässword'), a, 'salted')
  for (const phc of [a, s]) {
    t.ok(await argon2.verify(phc, 'pässword'))
    t.notOk(await argon2.verify(phc, 'password'))
    t.notOk(await argon2.verify(phc, 'pässword' + 'x'.repeat(2_000)))
  }
  t.ok(await scrypt.verify(s, 'pässword'))
  t.notOk(await argon2.verify(undefined, 'pässword'), 'nobody has no password')
  await t.rejects(scrypt.verify(a, 'pässword'), { code: 'INTERNAL' })
  await t.rejects(scrypt.verify('$scrypt$ln=30,r=8,p=1$' + s.split('$').slice(-2).join('$'), 'x'), { code: 'INTERNAL' })
  t.same([argon2.needsRehash(a), argon2.needsRehash(s), scrypt.needsRehash(s), scrypt.needsRehash(a)], [false, true, false, true]) // prettier-ignore
})

t.test('hashing is bounded: two at once, the rest wait, too many are refused', async t => {
  let running = 0
  let most = 0
  const release: (() => void)[] = []
  const slow = {
    hash: async () => 'x',
    verify: async () => {
      most = Math.max(most, ++running)
      await new Promise<void>(resolve => release.push(resolve))
      running--
      return true
    },
  }
  const passwords = new Passwords(slow, { runningMax: 2, waitingMax: 3 })
  const calls = Array.from({ length: 5 }, () => passwords.verify('$argon2id$', 'x'))
  await t.rejects(passwords.verify('$argon2id$', 'x'), { code: 'OVERLOADED' })
  while (release.length > 0 || running > 0) {
    release.shift()?.()
    await new Promise(setImmediate)
  }
  t.same(await Promise.all(calls), [true, true, true, true, true])
  t.equal(most, 2)
})

t.test(
  'ten failed logins block the address for this name, longer each time; the right password elsewhere works',
  async t => {
    let now = 1_000
    const limiter = new LoginLimiter(() => now)
    for (let i = 0; i < 10; i++) t.equal(limiter.begin('1.1.1.1', 'ann'), undefined)
    t.equal(limiter.begin('1.1.1.1', 'ann'), 5_000)
    t.equal(limiter.begin('::ffff:1.1.1.1', 'ann'), 5_000, 'the same address in other clothes')
    t.equal(limiter.begin('1.1.1.1', 'bob'), undefined, 'another name from there')
    t.equal(limiter.begin('2.2.2.2', 'ann'), undefined, 'ann from her own address')
    const waits = []
    for (let i = 0; i < 8; i++) {
      const wait = limiter.begin('1.1.1.1', 'ann') ?? 0
      waits.push(wait / 1000)
      now += wait
      t.equal(limiter.begin('1.1.1.1', 'ann'), undefined, 'one more try after the wait')
    }
    t.same(waits, [5, 10, 20, 40, 80, 160, 300, 300])
    limiter.succeeded('1.1.1.1', 'ann')
    t.equal(limiter.begin('1.1.1.1', 'ann'), undefined, 'a success starts afresh')
    limiter.succeeded('1.1.1.1', 'ann')
    for (let i = 0; i < 10; i++) limiter.begin('3.3.3.3', 'ann')
    now += 5_000 + defaultLoginLimits.windowMs
    for (let i = 0; i < 9; i++) t.equal(limiter.begin('3.3.3.3', 'ann'), undefined, 'forgotten after the window')
  },
)

t.test('many names from one address, and many addresses for one name, are slowed down too', async t => {
  const limiter = new LoginLimiter(() => 0)
  for (let i = 0; i < 50; i++) t.equal(limiter.begin('2001:db8::1', `user${i}`), undefined)
  t.ok(limiter.begin('2001:db8::ffff', 'somebody'), 'the same /64')
  t.notOk(limiter.begin('2001:db8:1::1', 'somebody'))
  for (let i = 0; i < 100; i++) limiter.begin(`10.0.0.${i}`, 'ann')
  t.equal(limiter.begin('10.1.0.1', 'ann'), undefined, 'a first try is always heard')
  t.ok(limiter.begin('10.1.0.1', 'ann'), 'a second one is not')
  for (let i = 0; i < 200; i++) {
    t.equal(limiter.begin('10.2.0.1', 'busy'), undefined)
    limiter.undecided('10.2.0.1', 'busy')
  }
})

t.test('a flood of invented names and addresses does not grow memory', async t => {
  const limiter = new LoginLimiter(() => 0, { ...defaultLoginLimits, countersMax: 50 })
  for (let i = 0; i < 1_000; i++) limiter.begin(`10.0.${i >> 8}.${i & 255}`, `user${i}`)
  t.equal(limiter.begin('10.0.0.0', 'user0'), undefined)
})

t.test('addresses are grouped as their owners hold them', async t => {
  const groups = {
    '10.0.0.1': '10.0.0.1',
    '::ffff:10.0.0.1': '10.0.0.1',
    '::1': '0:0:0:0::/64',
    '2001:DB8:0:12::5': '2001:db8:0:12::/64',
    '2001:0db8:0000:0012:1:2:3:4': '2001:db8:0:12::/64',
    'fe80::1%eth0': 'fe80:0:0:0::/64',
    'no address': 'no address',
  }
  for (const [address, group] of Object.entries(groups)) t.equal(addressGroup(address), group)
})

t.test('Basic credentials are read as RFC 7617 says', async t => {
  const basic = (text: string): string => 'Basic ' + Buffer.from(text).toString('base64')
  t.same(parseBasic(basic('ann:pä:ß')), { name: 'ann', password: 'pä:ß' })
  t.same(parseBasic(basic('ann:').replace('Basic', 'bAsIc')), { name: 'ann', password: '' })
  for (const header of [
    '',
    'Basic',
    'Basic !',
    'Bearer abc',
    basic('ann'),
    basic(':x'),
    basic('a\0b:x'),
    basic('x'.repeat(5000)),
  ]) {
    t.equal(parseBasic(header), undefined, header.slice(0, 30))
  }
  fc.assert(
    fc.property(
      fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }),
      fc.string({ unit: 'grapheme' }),
      (n, p) => {
        const name = n.replaceAll(':', '.')
        const read = parseBasic(basic(`${name}:${p}`))
        return read?.name === name && read.password === p
      },
    ),
  )
})

const header = (name: string, password: string): string =>
  'Basic ' + Buffer.from(`${name}:${password}`).toString('base64')

/** A world with users whose hash is their password, and counters of who was asked how often. */
function setUp() {
  const users = new Map<string, User>([
    ['ann', { name: 'ann', passwordHash: 'secret', admin: false }],
    ['admin', { name: 'admin', passwordHash: 'root', admin: true }],
  ])
  const world = { now: 0, down: false, reads: 0, hashes: 0, pause: undefined as Promise<void> | undefined, users }
  const authenticator = new Authenticator({
    metadata: {
      findUser: async name => {
        world.reads++
        const found = users.get(name)
        await world.pause
        if (world.down) throw new HoldfastError('METADATA_UNAVAILABLE', 'down')
        return found
      },
    },
    passwords: {
      verify: async (phc, password) => {
        world.hashes++
        await new Promise(setImmediate)
        return phc === password
      },
    },
    limiter: new LoginLimiter(() => world.now),
    now: () => world.now,
  })
  return { world, users, authenticator }
}

t.test('credentials are verified once and then known without asking', async t => {
  const { world, authenticator } = setUp()
  const ann = header('ann', 'secret')
  t.equal(authenticator.authenticateCached(undefined, connection), anonymous)
  t.equal(await authenticator.authenticate(undefined, ''), anonymous)
  t.equal(authenticator.authenticateCached(ann, connection), undefined)
  const all = await Promise.all(Array.from({ length: 50 }, () => authenticator.authenticate(ann, '1.1.1.1')))
  t.same(all[49], { name: 'ann', admin: false, anonymous: false })
  t.equal(world.hashes, 1, 'fifty connections, one hash')
  t.same(authenticator.authenticateCached(ann, connection), all[0])
  world.now += 60_000
  t.equal(authenticator.authenticateCached(ann, connection), undefined, 'believed for a minute')
  world.users.set('ann', { name: 'ann', passwordHash: 'secret', admin: true })
  t.equal((await authenticator.authenticate(ann, '1.1.1.1')).admin, true, 'the row is read again')
  t.equal(world.hashes, 1, 'but nothing hashed')
  world.users.set('ann', { name: 'ann', passwordHash: 'other', admin: true })
  world.now += 60_000
  await t.rejects(authenticator.authenticate(ann, '1.1.1.1'), { code: 'UNAUTHORIZED' }, 'a change nobody told of')
})

t.test('wrong credentials are refused and limited; those who are known are not', async t => {
  const { world, authenticator } = setUp()
  await authenticator.authenticate(header('ann', 'secret'), '1.1.1.1')
  await t.rejects(authenticator.authenticate('Bearer x', '1.1.1.1'), { code: 'UNAUTHORIZED' })
  await t.rejects(authenticator.authenticate(header('nobody', 'secret'), '1.1.1.1'), { code: 'UNAUTHORIZED' })
  const guess = (i: number): Promise<Principal> => authenticator.authenticate(header('ann', `guess${i}`), '1.1.1.1')
  const results = await Promise.allSettled(Array.from({ length: 30 }, (_, i) => guess(i)))
  const codes = results.map(result => (result.status === 'rejected' ? (result.reason as HoldfastError).code : 'in'))
  t.equal(codes.filter(code => code === 'UNAUTHORIZED').length, 10, 'a burst gets no more than one by one')
  t.equal(codes.filter(code => code === 'TOO_MANY_REQUESTS').length, 20)
  await t.rejects(guess(99), { code: 'TOO_MANY_REQUESTS', data: { retryAfterSeconds: 5 } })
  await t.rejects(authenticator.authenticate(header('ann', 'secret '), '1.1.1.1'), { code: 'TOO_MANY_REQUESTS' })
  world.now += 60_000
  t.equal((await authenticator.authenticate(header('ann', 'secret'), '1.1.1.1')).name, 'ann')
})

t.test('a new password ends the old one at once, also for a login that is under way', async t => {
  const { world, users, authenticator } = setUp()
  const old = header('ann', 'secret')
  await authenticator.authenticate(old, '1.1.1.1')
  users.set('ann', { name: 'ann', passwordHash: 'better', admin: false })
  authenticator.forget('ann')
  t.equal(authenticator.authenticateCached(old, connection), undefined)
  await t.rejects(authenticator.authenticate(old, '1.1.1.1'), { code: 'UNAUTHORIZED' })
  t.equal((await authenticator.authenticate(header('ann', 'better'), '1.1.1.1')).name, 'ann')

  let go = (): void => {}
  world.pause = new Promise(resolve => (go = resolve))
  const underway = authenticator.authenticate(header('admin', 'root'), '1.1.1.1')
  users.set('admin', { name: 'admin', passwordHash: 'other', admin: true })
  authenticator.forget('admin')
  go()
  t.equal((await underway).name, 'admin', 'began before the change')
  t.equal(authenticator.authenticateCached(header('admin', 'root'), connection), undefined, 'but is not remembered')
  await t.rejects(authenticator.authenticate(header('admin', 'root'), '1.1.1.1'), { code: 'UNAUTHORIZED' })
})

t.test('without PostgreSQL those who are known go on for a day, others get 503', async t => {
  const { world, users, authenticator } = setUp()
  const ann = header('ann', 'secret')
  await authenticator.authenticate(ann, '1.1.1.1')
  world.down = true
  await t.rejects(authenticator.authenticate(header('admin', 'root'), '1.1.1.1'), { code: 'METADATA_UNAVAILABLE' })
  authenticator.forget()
  t.equal(authenticator.authenticateCached(ann, connection), undefined, 'after a gap everybody is asked again')
  t.equal((await authenticator.authenticate(ann, '1.1.1.1')).name, 'ann')
  const reads = world.reads
  for (let i = 0; i < 20; i++) {
    world.now += 65_000
    t.equal((await authenticator.authenticate(ann, '1.1.1.1')).name, 'ann')
  }
  t.ok(world.reads - reads <= 20)
  await t.rejects(authenticator.authenticate(header('ann', 'wrong'), '1.1.1.1'), { code: 'UNAUTHORIZED' })
  world.now += 24 * 3_600_000
  await t.rejects(authenticator.authenticate(ann, '1.1.1.1'), { code: 'METADATA_UNAVAILABLE' })
  world.down = false
  world.now += 10_000
  users.delete('ann')
  await t.rejects(authenticator.authenticate(ann, '1.1.1.1'), { code: 'UNAUTHORIZED' }, 'removed meanwhile')
})

t.test('failed logins are counted by all workers together', async t => {
  const keys: string[] = []
  let reachable = true
  const workers = [0, 1, 2].map(() => {
    const limiter = new LoginLimiter(() => 0)
    const tell = async (key: string): Promise<void> => {
      keys.push(key)
      if (!reachable) throw new HoldfastError('COORDINATION_UNAVAILABLE', 'away')
      for (const other of workers) if (other.limiter !== limiter) other.failures.heard(key)
    }
    return { limiter, failures: new FailedLogins({ limiter, tell }) }
  })
  const attempt = (worker: number, address: string): number | undefined => {
    const one = workers[worker % 3]!
    const waitMs = one.limiter.begin(address, 'ann')
    if (waitMs === undefined) one.failures.failed(address, 'ann')
    return waitMs
  }
  for (let i = 0; i < 10; i++) t.equal(attempt(i, '1.1.1.1'), undefined)
  for (const worker of [0, 1, 2]) t.equal(attempt(worker, '1.1.1.1'), 5_000, 'ten in all, not ten each')
  t.notOk(
    keys.some(key => key.includes('ann')),
    'names are not told in clear',
  )
  t.equal(attempt(0, '2.2.2.2'), undefined)
  for (let i = 0; i < 20; i++) for (const { failures } of workers) failures.heard(keys.at(-1)!)
  t.equal(attempt(1, '2.2.2.2'), undefined, 'told again it counts once')
  for (const { failures } of workers) for (const key of ['raw/a', '!user/ann']) failures.heard(key)
  reachable = false
  for (let i = 0; i < 10; i++) t.equal(attempt(0, '3.3.3.3'), undefined)
  t.ok(attempt(0, '3.3.3.3'), 'alone, each counts its own')
  t.equal(attempt(1, '3.3.3.3'), undefined)
})
