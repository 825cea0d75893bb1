import t from 'tap'
import fc from 'fast-check'
import { inspect } from 'node:util'
import { configHelp, envName, flagName, readConfig, type Options } from '../../shared/config.ts'
import { proxyOptions, readProxyConfig } from '../../proxy/config.ts'
import { parseShard, readStorageNodeConfig, storageNodeOptions } from '../../storage-node/options.ts'
import { isHoldfastError } from '../../shared/errors.ts'

const options = {
  port: { kind: 'int', min: 1, max: 65_535, default: 80, doc: 'Port.' },
  cacheBytes: { kind: 'int', unit: 'bytes', min: 0, max: 2 ** 40, default: 2 ** 20, doc: 'Cache.' },
  leaseTtlMs: { kind: 'int', unit: 'ms', min: 1_000, max: 60_000, default: 10_000, doc: 'Lease.' },
  leaseRenewMs: { kind: 'int', unit: 'ms', min: 100, max: 20_000, default: 3_000, doc: 'Renewal.' },
  name: { kind: 'string', required: true, pattern: [/^[a-z]+$/, 'must be lower-case letters'], doc: 'Name.' },
  level: { kind: 'string', default: 'info', doc: 'Level.' },
  zone: { kind: 'string', doc: 'Zone.' },
  fast: { kind: 'bool', default: false, doc: 'Fast.' },
  shards: { kind: 'list', flag: 'shard', default: [], countMax: 3, doc: 'Shards.' },
  secret: { kind: 'secret', required: true, charsMin: 4, doc: 'Secret.' },
} as const satisfies Options
const env = { HOLDFAST_NAME: 'x', HOLDFAST_SECRET: 'hush-hush' }

const problemsOf = (work: () => unknown): readonly string[] => {
  try {
    work()
  } catch (error) {
    if (isHoldfastError(error, 'CONFIG_INVALID')) return error.data['problems'] as string[]
    throw error
  }
  return []
}

t.test('flags win over variables, those over defaults', async t => {
  t.same({ ...readConfig(options, { args: [], env }) }, {
    port: 80, cacheBytes: 2 ** 20, leaseTtlMs: 10_000, leaseRenewMs: 3_000, name: 'x', level: 'info', zone: undefined,
    fast: false, shards: [], secret: 'hush-hush',
  }) // prettier-ignore
  const config = readConfig(options, {
    args: [
      '--port',
      '81',
      '--cache-bytes=64MiB',
      '--lease-ttl-ms',
      '20s',
      '--fast',
      '--shard',
      'a=/x',
      '--shard=b,c',
      '--zone=',
    ],
    env: { ...env, HOLDFAST_PORT: '82', HOLDFAST_LEVEL: 'warn', HOLDFAST_LEASE_RENEW_MS: '', HOLDFAST_SHARDS: 'z' },
  })
  const { port, cacheBytes, leaseTtlMs, leaseRenewMs, level, fast, shards, zone } = config
  t.same(
    [port, cacheBytes, leaseTtlMs, leaseRenewMs, level, fast, zone],
    [81, 2 ** 26, 20_000, 3_000, 'warn', true, ''],
  )
  t.same(shards, ['a=/x', 'b', 'c'])
  t.equal(readConfig(options, { args: ['--fast=off'], env: { ...env, HOLDFAST_FAST: 'yes' } }).fast, false)
  t.throws(() => Object.assign(config, { port: 1 }), TypeError, 'frozen')
})

t.test('all problems are reported at once, each by the name it was given under', async t => {
  const problems = problemsOf(() =>
    readConfig(options, {
      args: ['--port', '0', '--what', 'ever', 'extra', '--shard', 'a,b,c,d', '--secret', 'abcd', '--level'],
      env: { HOLDFAST_CACHE_BYTES: '1.5GiB', HOLDFAST_FAST: 'perhaps', HOLDFAST_NAME: 'X' },
    }),
  )
  t.equal(problems.length, 10)
  const text = problems.join('\n')
  for (const part of [
    "--port is '0', but must be a number from 1 to 65535",
    '--what is no option (--help shows them)',
    "what does 'extra' mean?",
    '--shard has 4 values',
    'set HOLDFAST_SECRET',
    '--level needs a value',
    'HOLDFAST_CACHE_BYTES is',
    'HOLDFAST_FAST is',
    'HOLDFAST_SECRET is required',
    "HOLDFAST_NAME is 'X', but must be lower-case letters",
  ])
    t.match(text, part)
  const relation = problemsOf(() =>
    readConfig(options, { args: [], env }, config =>
      config.leaseRenewMs * 5 > config.leaseTtlMs ? ['leaseTtlMs must leave room for five renewals'] : [],
    ),
  )
  t.same(relation, ['leaseTtlMs must leave room for five renewals'])
})

t.test('a number outside its bounds, or none, is never accepted', async () => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.integer().map(String), fc.double().map(String)), text => {
      const source = { args: [`--port=${text}`], env }
      const bad = problemsOf(() => readConfig(options, source)).length > 0
      if (bad) return true
      const { port } = readConfig(options, source)
      return Number.isInteger(port) && port >= 1 && port <= 65_535 && Number(text) === port
    }),
    { numRuns: 2_000 },
  )
})

t.test('a configuration that is printed or logged shows no secret', async t => {
  const config = readConfig(options, { args: [], env })
  t.notMatch(JSON.stringify(config) + inspect(config) + inspect({ deep: { config } }), 'hush')
  t.match(JSON.stringify(config), '"secret":"[secret]"')
  t.equal(config.secret, 'hush-hush')
})

t.test('help is complete, and every option has a sentence and sane bounds', async t => {
  for (const table of [options, proxyOptions, storageNodeOptions] as readonly Options[]) {
    const help = configHelp(table)
    for (const [name, option] of Object.entries(table)) {
      t.match(help, envName(name))
      if (option.kind !== 'secret') t.match(help, '--' + flagName(name, option))
      t.match(option.doc, /^[A-Z].*\.$/, name)
      if (option.kind === 'int') t.ok(option.min <= option.default && option.default <= option.max, name)
    }
  }
  t.match(configHelp(options), '--cache-bytes <bytes>  HOLDFAST_CACHE_BYTES\n      Cache. (0 to 1TiB, default 1MiB)')
})

const secrets = { HOLDFAST_SECRET: 'x'.repeat(16), HOLDFAST_POSTGRES_URL: 'postgres://u:p@h/d' }

t.test('the proxy: what it needs, and relations between options', async t => {
  const config = readProxyConfig({
    args: ['--state-folder', '/tmp/x', '--storage-nodes', 'http://a:1,http://b:2'],
    env: secrets,
  })
  t.equal(config.port, 8080)
  t.equal(config.hotCacheBytes, 67_108_864)
  t.same(config.storageNodes, ['http://a:1', 'http://b:2'])
  const problems = problemsOf(() =>
    readProxyConfig({
      args: ['--state-folder=/x', '--storage-nodes', 'a:1,http://u:p@b', '--uploads-max=9000'],
      env: { ...secrets, HOLDFAST_POSTGRES_URL: 'mysql://p4ssword', HOLDFAST_REDIS_URL: 'http://p4ssword' },
    }),
  )
  t.match(problems, [/'a:1'/, /'http:\/\/u:p@b'/, /uploadsMax/, /POSTGRES_URL/, /REDIS_URL/])
  t.notMatch(problems.join(), 'p4ssword')
})

t.test('the proxy: where backups go, and that no key stands in it', async t => {
  const args = ['--state-folder', '/tmp/x', '--storage-nodes', 'http://a:1']
  const read = (target: string) =>
    readProxyConfig({ args, env: { ...secrets, HOLDFAST_BACKUP_TARGET: target, HOLDFAST_BACKUP_SECRET_ACCESS_KEY: 'p4ssword' } }) // prettier-ignore
  for (const target of ['/folder', 'file:///folder', 's3://backups/a?endpoint=https://host:1&region=x']) {
    t.equal(read(target).backupTarget, target)
    t.notMatch(JSON.stringify(read(target)), 'p4ssword')
  }
  for (const target of [
    'folder',
    'file://',
    'https://key:p4ssword@host',
    's3://key:p4ssword@host',
    's3://b?secret=p4ssword',
  ]) {
    const problems = problemsOf(() => read(target))
    t.match(problems, [/the backup target must be/], target)
    t.notMatch(problems.join(), 'p4ssword')
  }
  const flag = () => readProxyConfig({ args: [...args, '--backup-secret-access-key', 'p4ssword'], env: secrets })
  t.match(problemsOf(flag), [/would show a secret to everybody/])
})

t.test('a storage node: shards, and no two of them in one place', async t => {
  const args = ['--node', 'n1', '--zone', 'a', '--state-folder', '/s']
  const { config } = readStorageNodeConfig({
    args: [...args, '--shard', 'd1=/d/1', '--shard', 'd2=/d/2:250'],
    env: secrets,
  })
  t.same(config.shards, [
    { id: 'd1', folder: '/d/1', weight: 100 },
    { id: 'd2', folder: '/d/2', weight: 250 },
  ])
  t.equal(config.stateFolder, '/s')
  t.notHas(config, { clusterId: '' })
  const wrong = (...more: string[]): readonly string[] =>
    problemsOf(() => readStorageNodeConfig({ args: [...args, ...more], env: secrets }))
  t.match(wrong(), [/required/])
  t.match(wrong('--shard', 'd1=/d', '--shard', 'd1=/e'), [/given twice/])
  t.match(wrong('--shard', 'd1=/d', '--shard', 'd2=/d/../d/'), [/share a folder/])
  t.match(wrong('--shard', 'd1=/d', '--shard', 'd2=/d/2'), [/share a folder/])
  t.match(wrong('--shard', 'd1=/'), [/state folder lies in shard/])
  t.match(wrong('--shard', 'd1=/d', '--replaced-shard', 'd9'), [/no shard of this node/])
  t.same(wrong('--shard', 'd1=/d', '--shard', 'd2=/d2'), [])
  for (const text of ['d1', '=x', 'd1=', 'D=/x', 'a/b=/x', '../x=/x', 'd1=/x:0', 'd1=/x:9999999']) {
    t.equal(parseShard(text), undefined, text)
  }
  t.equal(parseShard('d1=/a:b')?.folder, '/a:b')
  t.equal(parseShard('d1=/a:b:7')?.weight, 7)
})
