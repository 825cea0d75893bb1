import fc from 'fast-check'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pino } from 'pino'
import t from 'tap'
import { readColdState } from '../../../proxy/identity/cold-state.ts'
import { IdentityKeeper } from '../../../proxy/identity/identity-keeper.ts'
import { fingerprintOf, openIdentity, sealIdentity } from '../../../proxy/identity/sealed-identity.ts'
import type { IdentityTables } from '../../../proxy/metadata/identity-tables.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { encodeClusterMap } from '../../../shared/cluster-map.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { parseNodeId, parseShardId, parseZone } from '../../../shared/ids.ts'
import { eventually } from '../../support/eventually.ts'

const log = pino({ level: 'silent' })
const secret = 'a secret of sixteen characters'
const row = { format: 'raw', type: 'hosted', redeploy: 'allow', artifact_bytes_max: null }
const tables: IdentityTables = {
  repositories: [
    { ...row, id: 1, name: 'closed', anonymous_read: false },
    { ...row, id: 2, name: 'open', anonymous_read: true },
  ],
  users: [{ name: 'admin', password_hash: '$argon2id$x', admin: true }],
}
const snapshot = { clusterId: 'c', incarnation: 'i', takenAt: 1, tables }

t.test('a sealed copy opens under its secret only, and not with any byte changed or missing', async t => {
  const sealed = sealIdentity(secret, snapshot)
  t.strictSame(openIdentity(secret, sealed), snapshot)
  t.throws(() => openIdentity(secret + '.', sealed), { code: 'RECORD_DAMAGED' })
  for (let at = 0; at < sealed.length; at++) {
    const changed = Buffer.from(sealed)
    changed[at]! ^= 1
    t.throws(() => openIdentity(secret, changed), { code: 'RECORD_DAMAGED' })
    t.throws(() => openIdentity(secret, sealed.subarray(0, at)), { code: 'RECORD_DAMAGED' })
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), bytes => {
      t.throws(() => openIdentity(secret, Buffer.from(bytes)), { code: 'RECORD_DAMAGED' })
    }),
    { numRuns: 50 },
  )
  t.not(fingerprintOf(secret, tables), fingerprintOf(secret, { ...tables, users: [] }))
  t.not(fingerprintOf(secret, tables), fingerprintOf(secret + '.', tables))
})

function mapOf(clusterId: string): string {
  const [node, zone, shard] = [parseNodeId('n')!, parseZone('z')!, parseShardId('s')!]
  return encodeClusterMap(
    buildClusterMap({
      clusterId,
      replicas: 1,
      spread: 'strict',
      nodes: [{ id: node, zone, url: 'http://h:1' }],
      shards: [{ id: shard, node, weight: 1 }],
    }),
  )
}

t.test('a start finds what the last run left, unless it is damaged or of another cluster', async t => {
  const stateFolder = t.testdir()
  const read = (clusterId?: string) => readColdState({ stateFolder, secret, clusterId }, log)
  t.equal(await read(), undefined)
  await writeFile(join(stateFolder, 'cluster-map.json'), mapOf('c'))
  t.equal(await read(), undefined, 'a map alone is not enough')
  await writeFile(join(stateFolder, 'identity.sealed'), sealIdentity(secret, snapshot))
  t.match(await read(), { identity: snapshot, map: { epoch: 1 } })
  t.match(await read('c'), { identity: snapshot })
  t.equal(await read('other'), undefined)
  await writeFile(join(stateFolder, 'cluster-map.json'), mapOf('other'))
  t.equal(await read(), undefined)
  await writeFile(join(stateFolder, 'cluster-map.json'), '{')
  t.equal(await read(), undefined)
})

t.test(
  'the keeper follows the database, remembers it while it is away, and does not trust what is too old',
  async t => {
    const stateFolder = join(t.testdir(), 'state')
    await mkdir(stateFolder)
    let [now, away, current] = [0, false, tables]
    const metadata = {
      clusterId: 'c',
      incarnation: 'i',
      exportIdentity: async () => {
        if (away) throw new HoldfastError('METADATA_UNAVAILABLE', 'away')
        return current
      },
    }
    const deps = { metadata, secret, stateFolder, maxAgeMs: 1_000, now: () => now, log, lookMs: 5 }
    const keeper = new IdentityKeeper(deps)
    t.ok(keeper.outdated, 'nothing is known')
    t.equal(keeper.user('admin'), undefined)
    await keeper.start()
    t.match(keeper.user('admin'), { user: { admin: true } })
    t.strictSame(keeper.user('nobody'), { user: undefined }, 'known not to be')
    current = { ...tables, users: [] }
    await eventually('the change is seen', () => keeper.user('admin')?.user === undefined)
    const file = join(stateFolder, 'identity.sealed')
    await eventually('and kept', async () => openIdentity(secret, await readFile(file)).tables.users.length === 0)
    away = true
    now = 900
    t.notOk(keeper.outdated)
    now = 5_000
    await eventually('too old', () => keeper.outdated)
    t.equal(keeper.user('admin'), undefined)
    t.equal(keeper.repositories()?.length, 2)
    away = false
    await eventually('confirmed', () => !keeper.outdated)
    await keeper.close()

    const found = { ...snapshot, takenAt: Date.now() - 600 }
    const next = new IdentityKeeper(deps, found)
    t.notOk(next.outdated)
    now += 500
    t.ok(next.outdated, 'the time on disk counts, too')
  },
)
