/** Manifests and sealed objects: what comes out is what went in, or it is refused. */
import fc from 'fast-check'
import { hash, randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { decodeManifest, encodeManifest, type ManifestEntry } from '../../../proxy/backup/manifest.ts'
import { deriveMasterKey, seal, sealedChunkBytes, unseal } from '../../../proxy/backup/seal.ts'
import type { Digest, Generation } from '../../../shared/ids.ts'

async function* stream<Item>(items: readonly Item[]): AsyncGenerator<Item> {
  for (const item of items) yield item
}
async function gather(chunks: AsyncIterable<Buffer>): Promise<Buffer> {
  const taken: Buffer[] = []
  for await (const chunk of chunks) taken.push(chunk)
  return Buffer.concat(taken)
}
async function entriesOf(bytes: Buffer, cut: number): Promise<ManifestEntry[]> {
  const taken: ManifestEntry[] = []
  const at = Math.min(cut, bytes.length)
  for await (const entry of decodeManifest(stream([bytes.subarray(0, at), bytes.subarray(at)]))) taken.push(entry)
  return taken
}

const digests = fc.uint8Array({ maxLength: 8 }).map(bytes => hash('sha256', bytes) as Digest)
const blobs = fc.record({
  kind: fc.constant('blob' as const),
  digest: digests,
  bytes: fc.nat(),
  md5: fc.constant('00'.repeat(16)),
  sha1: fc.constant('00'.repeat(20)),
  generation: fc.constant('abcdefghjkmn' as Generation),
  partition: fc.nat(4_095),
})
const artifacts = fc.record({
  kind: fc.constant('artifact' as const),
  repository: fc.string(),
  path: fc.string({ unit: 'grapheme' }),
  digest: digests,
  bytes: fc.nat(),
  version: fc.nat(),
  contentType: fc.option(fc.string(), { nil: null }),
  attributes: fc.dictionary(fc.string().filter(key => key !== '__proto__'), fc.jsonValue()), // prettier-ignore
  createdBy: fc.string(),
  createdAt: fc.nat(),
  updatedAt: fc.nat(),
})
const manifests = fc.tuple(fc.array(blobs), fc.array(artifacts)).map(([some, named]): ManifestEntry[] => [
  { kind: 'backup', id: '20260301t000000z-1', clusterId: 'c', incarnation: 'i', time: 1, version: '1' },
  { kind: 'repository', name: 'r', format: 'raw', type: 'hosted',
  upstream: null, redeploy: 'once', artifactBytesMax: null, anonymousRead: true, trashDays: 7 }, // prettier-ignore
  { kind: 'user', name: 'admin', passwordHash: '$x$', admin: true },
  { kind: 'policy', name: 'old', repositories: ['r'], conditions: { unchangedDays: 30 }, enabled: true },
  { kind: 'task', name: 'scrub', schedule: null, enabled: false },
  ...some,
  ...named,
])

async function check(t: Test, property: fc.IAsyncProperty<unknown[]>, numRuns = 60): Promise<void> {
  const details = await fc.check(property as fc.IAsyncProperty<[unknown]>, { numRuns })
  t.notOk(details.failed, fc.defaultReportMessage(details) ?? `seed ${details.seed}`)
}

t.test('a manifest comes back as it was written', async t => {
  await check(
    t,
    fc.asyncProperty(manifests, fc.nat(), async (entries, cut) => {
      const bytes = await gather(encodeManifest(stream(entries)))
      t.same(await entriesOf(bytes, cut), JSON.parse(JSON.stringify(entries)))
    }),
  )
})

t.test('a manifest that was cut, lengthened, or in which any bit flipped is refused', async t => {
  await check(
    t,
    fc.asyncProperty(
      manifests,
      fc.nat(),
      fc.nat(7),
      fc.constantFrom('flip', 'cut', 'add'),
      async (entries, at, bit, harm) => {
        const bytes = await gather(encodeManifest(stream(entries)))
        const place = at % bytes.length
        const flipped = Buffer.from(bytes)
        flipped[place]! ^= 1 << bit
        const bad = {
          flip: flipped,
          cut: bytes.subarray(0, place),
          add: Buffer.concat([bytes, bytes.subarray(place)]),
        }[harm]
        await t.rejects(entriesOf(bad, place), { code: 'BACKUP_DAMAGED' })
      },
    ),
    150,
  )
})

t.test('lines out of order, or counts that are wrong, are refused although the checksum is right', async t => {
  const [start] = fc.sample(manifests, 1)[0]!
  const artifact = fc.sample(artifacts, 1)[0]!
  const blob = fc.sample(blobs, 1)[0]!
  for (const entries of [[artifact], [start!, artifact, blob], [start!, start!], []]) {
    await t.rejects(entriesOf(await gather(encodeManifest(stream(entries))), 0), { code: 'BACKUP_DAMAGED' })
  }
})

t.test('sealed objects', async t => {
  const key = await deriveMasterKey('a passphrase', { kdf: 'scrypt', log2N: 14, r: 8, p: 1, salt: 'ab'.repeat(16) })
  const name = 'blobs/ab/x'
  for (const bytes of [0, 1, sealedChunkBytes - 1, sealedChunkBytes, sealedChunkBytes + 1, 3 * sealedChunkBytes + 5]) {
    const plain = randomBytes(bytes)
    const sealed = await gather(seal(stream([plain.subarray(0, 7), plain.subarray(7)]), key, name))
    const pieces = Array.from({ length: Math.ceil(sealed.length / 1_000) }, (_, i) => sealed.subarray(i * 1_000, (i + 1) * 1_000)) // prettier-ignore
    t.ok((await gather(unseal(stream(pieces), key, name))).equals(plain), `${bytes} bytes`)
    const other = await gather(seal(stream([plain]), key, name))
    const at = Math.floor(Math.random() * sealed.length)
    const flipped = Buffer.from(sealed)
    flipped[at]! ^= 1
    const harmed: [string, Buffer, string][] = [
      [`a bit flipped at ${at}`, flipped, name],
      ['cut by a byte', sealed.subarray(0, -1), name],
      ['cut by a chunk', sealed.subarray(0, Math.max(0, sealed.length - sealedChunkBytes - 16)), name],
      ['a chunk of another object', Buffer.concat([sealed.subarray(0, 40), other.subarray(40)]), name],
      ['another name', sealed, 'blobs/ab/y'],
    ]
    for (const [what, bad, as] of harmed) {
      await t.rejects(gather(unseal(stream([bad]), key, as)), { code: 'BACKUP_DAMAGED' }, what)
    }
    const wrong = await deriveMasterKey('another', { kdf: 'scrypt', log2N: 14, r: 8, p: 1, salt: 'ab'.repeat(16) })
    await t.rejects(gather(unseal(stream([sealed]), wrong, name)), { code: 'BACKUP_DAMAGED' }, 'another passphrase')
  }
})
