import { randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { newGeneration, parseDigest } from '../../shared/ids.ts'
import { BlockCrcs, blockBytes, decodeRecord, encodeRecord, type ShardRecord } from '../../shared/record.ts'

const digest = parseDigest('5f'.repeat(32)) ?? fail()
const generation = newGeneration()
const key = { partition: 163, digest, generation }
const reference = {
  kind: 'reference',
  partition: 7,
  repository: 'raw',
  path: 'a/ü/b.jar',
  op: 'put',
  version: 12,
  incarnation: 'x',
  time: 1,
  user: 'u',
} as const

const records: [ShardRecord, Buffer][] = [
  [{ kind: 'blob', ...key, bytes: 40, crc: 1, time: 2 }, randomBytes(40)],
  [{ kind: 'file', ...key, bytes: 400_000, time: 2 }, randomBytes(8)],
  [{ ...reference, blob: { ...key, bytes: 1, md5: 'm', sha1: 's' } }, Buffer.alloc(0)],
  [{ ...reference, op: 'delete' }, Buffer.alloc(0)],
  [{ kind: 'drop', ...key, reason: 'corrupt', time: 3 }, Buffer.alloc(0)],
]

t.test('a record comes back as it was, wherever it stands', async t => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 70_000 }), fc.nat(20), fc.jsonValue(), (payload, offset, attributes) => {
      const record = { ...reference, attributes: { attributes } } as ShardRecord
      const frame = encodeRecord(record, Buffer.from(payload))
      const input = Buffer.concat([Buffer.alloc(offset, 7), frame, Buffer.from('behind')])
      const decoded = decodeRecord(input, offset)
      if (typeof decoded === 'string') throw new Error(decoded)
      t.equal(decoded.end, offset + frame.length)
      t.ok(decoded.payload.equals(payload))
      t.same(decoded.record, JSON.parse(JSON.stringify(record)))
    }),
    { numRuns: 50 },
  )
})

t.test('I35: no flipped bit and no cut-off frame is ever taken for a record', async t => {
  for (const [record, payload] of records) {
    const frame = encodeRecord(record, payload)
    const problems: string[] = []
    for (let bit = 0; bit < frame.length * 8; bit += 1) {
      const flipped = Buffer.from(frame)
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      if (typeof decodeRecord(flipped) !== 'string') problems.push(`bit ${bit}`)
      const followed = Buffer.concat([flipped, frame])
      if (typeof decodeRecord(followed) !== 'string') problems.push(`bit ${bit}, followed`)
    }
    for (let length = 0; length < frame.length; length += 1) {
      if (decodeRecord(frame.subarray(0, length)) !== 'truncated') problems.push(`cut at ${length}`)
    }
    t.same(problems, [], record.kind)
  }
})

t.test('I35: bytes that are no record are never one, and nothing throws', async t => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), bytes => {
      t.type(decodeRecord(Buffer.from(bytes)), 'string')
    }),
    { numRuns: 500 },
  )
  const notJson = Buffer.from([0, 0, 3, 0, 0x7b, 0x7b, 0x7b])
  const head = Buffer.alloc(8)
  head.writeUInt32LE(notJson.length, 0)
  head.writeUInt32LE(crc32(notJson), 4)
  t.equal(decodeRecord(Buffer.concat([head, notJson])), 'damaged', 'right checksum, wrong content')
})

t.test('a header that names another kind does not change what the frame is', async t => {
  const header = Buffer.from('{"kind":"drop","partition":1}')
  const body = Buffer.concat([Buffer.from([2, 0, header.length, 0]), header])
  const head = Buffer.alloc(8)
  head.writeUInt32LE(body.length, 0)
  head.writeUInt32LE(crc32(body), 4)
  t.match(decodeRecord(Buffer.concat([head, body])), { record: { kind: 'reference', partition: 1 } })
})

t.test('records beyond the limits are refused by the encoder', async t => {
  const attributes = { long: 'x'.repeat(40_000) }
  t.throws(() => encodeRecord({ ...reference, attributes }), { code: 'BAD_REQUEST' })
  const [record] = records[0] ?? fail()
  t.throws(() => encodeRecord(record, Buffer.alloc(5 * 1024 * 1024)), { code: 'BAD_REQUEST' })
})

t.test('block checksums do not depend on how the bytes come', async t => {
  const body = randomBytes(3 * blockBytes + 1000)
  const expected: number[] = []
  for (let at = 0; at < body.length; at += blockBytes) expected.push(crc32(body.subarray(at, at + blockBytes)))
  fc.assert(
    fc.property(fc.array(fc.nat(400_000), { maxLength: 12 }), cuts => {
      const crcs = new BlockCrcs()
      let at = 0
      for (const cut of [...cuts, body.length]) {
        crcs.update(body.subarray(at, at + cut))
        at = Math.min(body.length, at + cut)
      }
      const table = crcs.finish()
      t.same(
        Array.from({ length: table.length / 4 }, (_, index) => table.readUInt32LE(index * 4)),
        expected,
      )
    }),
    { numRuns: 30 },
  )
  t.equal(new BlockCrcs().finish().length, 0, 'nothing has no blocks')
})

function fail(): never {
  throw new Error('cannot happen')
}
