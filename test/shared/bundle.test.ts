/** Bundles of small blobs: whatever pieces the stream comes in, what goes in comes out, and nothing that is damaged does. */
import { hash } from 'node:crypto'
import fc from 'fast-check'
import t from 'tap'
import { crc32 } from 'node:zlib'
import { type BundleItem, BundleReader, bundledBlob, bundledRefusal, bundleEnd } from '../../shared/bundle.ts'
import { type Digest, newGeneration } from '../../shared/ids.ts'
import { encodeRecord, inlineBlobBytesMax, type BlobRecord } from '../../shared/record.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
t.comment(`seed ${seed}`)

function recordOf(payload: Buffer): BlobRecord {
  const digest = hash('sha256', payload) as Digest
  const facts = { bytes: payload.length, crc: crc32(payload), time: 1_700_000_000_000, confirmed: true } as const
  return { kind: 'blob', partition: 7, digest, generation: newGeneration(), ...facts }
}

function streamOf(items: readonly (Buffer | number)[]): Buffer {
  const parts = items.flatMap(item =>
    typeof item === 'number'
      ? bundledRefusal({ index: item, code: 'BLOB_CORRUPT' })
      : bundledBlob(recordOf(item), item),
  )
  return Buffer.concat([...parts, bundleEnd])
}

/** Read in pieces that end at these places. */
function readIn(stream: Buffer, cuts: readonly number[]): BundleItem[] {
  const reader = new BundleReader()
  const ends = [...new Set(cuts.map(cut => cut % (stream.length + 1)))].sort((a, b) => a - b)
  const items: BundleItem[] = []
  let from = 0
  for (const end of [...ends, stream.length]) {
    items.push(...reader.push(stream.subarray(from, end)))
    from = end
  }
  reader.finish()
  return items
}

const shown = (item: BundleItem): Buffer | number => ('record' in item ? Buffer.from(item.payload) : item.index)

const payload = fc.oneof(
  fc.uint8Array({ maxLength: 300 }),
  fc.integer({ min: 0, max: inlineBlobBytesMax }).map(bytes => Buffer.alloc(bytes, bytes % 251)),
)
const contents = fc.array(
  fc.oneof(
    payload.map(bytes => Buffer.from(bytes)),
    fc.nat(5_000),
  ),
  { maxLength: 40 },
)
const cuts = fc.array(fc.nat(3_000_000), { maxLength: 60 })

t.test('what goes in comes out, whatever the pieces', async t => {
  fc.assert(
    fc.property(contents, cuts, (items, places) => {
      const found = readIn(streamOf(items), places)
      t.strictSame(found.map(shown), items)
      for (const item of found) {
        if (!('record' in item)) continue
        // What the target appends is the very record, with the payload where it says.
        if (!item.frame.equals(encodeRecord(item.record, item.payload))) t.fail('the frame is another one')
        if (!item.frame.subarray(item.payloadOffset).equals(item.payload)) t.fail('the payload is elsewhere')
      }
    }),
    { seed, numRuns: 40 },
  )
})

t.test('items stay as they are while others are read', async t => {
  const items = Array.from({ length: 60 }, (_, index) => Buffer.alloc(60_000, index))
  t.strictSame(readIn(streamOf(items), [1, 999_999, 1_048_576, 1_048_577]).map(shown), items)
})

t.test('I35: a stream that is cut off, or of which a bit has flipped, gives no item that was not sent', async t => {
  const items = [Buffer.from('one'), 3, Buffer.alloc(5_000, 'x'), Buffer.alloc(0)]
  const stream = streamOf(items)
  const sent = items.map(String)
  fc.assert(
    fc.property(fc.nat(stream.length - 1), fc.nat(7), fc.boolean(), (place, bit, cut) => {
      const broken = Buffer.from(stream)
      broken[place] = broken[place]! ^ (1 << bit)
      const reader = new BundleReader()
      const found: BundleItem[] = []
      try {
        // In two pieces, so that what came before the damage is given out.
        found.push(...reader.push(cut ? stream.subarray(0, place) : broken.subarray(0, place)))
        if (!cut) found.push(...reader.push(broken.subarray(place)))
        reader.finish()
        t.fail(`accepted: ${cut ? 'cut at' : 'bit flipped in'} ${place}`)
      } catch (error) {
        t.match(error, { code: 'RECORD_DAMAGED' })
      }
      const blobs = found.filter(item => 'record' in item)
      for (const item of blobs) t.ok(sent.includes(String(shown(item))))
    }),
    { seed, numRuns: 300 },
  )
})

t.test('what no source of ours sends is refused', async t => {
  const other = encodeRecord({ kind: 'drop', partition: 1, digest: '0'.repeat(64) as Digest, generation: newGeneration(), reason: 'moved', time: 1 }) // prettier-ignore
  const refusal = (text: string, sum = crc32(text)): Buffer => {
    const head = Buffer.of(1, text.length, 0, 0, 0, 0, 0)
    head.writeUInt32LE(sum, 3)
    return Buffer.concat([head, Buffer.from(text)])
  }
  const streams = {
    'another mark': Buffer.of(9),
    'a record of another kind': Buffer.concat([Buffer.of(0), other]),
    'something behind the end': Buffer.concat([bundleEnd, bundleEnd]),
    'a refusal that is no JSON': refusal('{'),
    'a refusal of nothing': refusal('{"index":-1,"code":"X"}'),
    'a refusal without a code': refusal('{"index":1}'),
    'a refusal whose checksum is another': refusal('{"index":1,"code":"X"}', 7),
    'an item without an end': Buffer.concat([Buffer.of(0, 255, 255, 15, 0), Buffer.alloc(200_000)]),
  }
  for (const [what, stream] of Object.entries(streams)) {
    t.throws(() => new BundleReader().push(stream), { code: 'RECORD_DAMAGED' }, what)
  }
  t.throws(() => new BundleReader().finish(), { code: 'RECORD_DAMAGED' }, 'nothing at all')
})
