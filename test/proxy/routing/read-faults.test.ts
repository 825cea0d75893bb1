/**
 * Random faults at random bytes on real sockets. Whatever happens, a read ends with the right bytes or with a clean failure, and
 * never with wrong bytes that look complete (I5); and while one good copy is reachable it ends with the right bytes (I6).
 */
import { createHash } from 'node:crypto'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import type { BlobLocation } from '../../../proxy/routing/types.ts'
import type { Fault } from '../../support/fake-node.ts'
import { quickTimes, startCluster, streamed, type TestCluster } from './read-support.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000_000)

/** Bytes that any reader of the test can make again from the number. */
function bodyOf(bytes: number, number: number): Buffer {
  const block = createHash('sha512').update(String(number)).digest()
  const body = Buffer.alloc(bytes, block)
  for (let at = 0; at + 4 <= bytes; at += 4096) body.writeUInt32LE(at, at)
  return body
}

const times = { ...quickTimes, hedgeMsMin: 10, hedgeMsMax: 20, stallMs: 40, dropMs: 150, deadlineMs: 700 }
const position = fc.oneof(fc.nat(70_000), fc.nat(1_500_000), fc.constantFrom(0, 1, 65_535, 65_536, 524_287, 524_288))
const harmless: fc.Arbitrary<Fault> = fc.oneof(
  fc.constant({}),
  fc.record({ pieceBytes: fc.integer({ min: 30_000, max: 700_000 }) }),
  fc.record({ delayMs: fc.nat(30) }),
)
const breaking: fc.Arbitrary<Fault> = fc.oneof(
  fc.record({ cutAt: position, pieceBytes: fc.integer({ min: 30_000, max: 700_000 }) }),
  fc.record({ freezeAt: position }),
  fc.constant<Fault>({ freezeHead: true }),
  fc.constantFrom<Fault>(
    { refuse: { status: 404, code: 'BLOB_NOT_FOUND' } },
    { refuse: { status: 500, code: 'BLOB_CORRUPT' } },
    { refuse: { status: 503, code: 'OVERLOADED' } },
    { raw: 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc' },
    { raw: 'HTTP/1.1 200 OK\r\nContent-Le' },
    { raw: '\r\n\r\n' },
  ),
)
const corrupting: fc.Arbitrary<Fault> = fc.record({ corruptAt: position })
const size = fc.constantFrom(1, 1_000, 70_000, 262_144, 1_000_000, 1_048_577, 1_700_000)
const scripts = (fault: fc.Arbitrary<Fault>): fc.Arbitrary<Fault[]> => fc.array(fault, { minLength: 1, maxLength: 4 })

/** One read of a blob whose nodes follow their scripts, the last line for ever. */
async function play(
  cluster: TestCluster,
  nodes: readonly (readonly Fault[])[],
  read: { bytes: number; slowMs: number; part: readonly [number, number] | undefined },
  number: number,
): Promise<{ outcome: 'right' | 'wrong' | 'clean failure'; blob: BlobLocation }> {
  const body = bodyOf(read.bytes, number)
  const blob = cluster.put(body)
  for (const [index, node] of cluster.nodes.entries()) {
    let turn = 0
    const script = nodes[index] ?? []
    node.fault = () => script[Math.min(turn++, script.length - 1)] ?? {}
  }
  const last = blob.bytes - 1
  const range = read.part && { first: Math.floor(read.part[0] * last), last: Math.floor(Math.max(...read.part) * last) }
  const expected = range === undefined ? body : body.subarray(range.first, range.last + 1)
  if (range === undefined && read.bytes <= 1_048_576 && number % 2 === 0) {
    const found = await cluster.reader.readWhole(blob).catch(() => undefined)
    return { outcome: found === undefined ? 'clean failure' : found.equals(expected) ? 'right' : 'wrong', blob }
  }
  const stream = await streamed(cluster.reader, blob, range, read.slowMs)
  if (stream.outcome === 'complete') return { outcome: stream.body.equals(expected) ? 'right' : 'wrong', blob }
  // What did go out must be a true beginning, short of the whole.
  const sound = stream.body.length < expected.length
  return { outcome: sound ? 'clean failure' : 'wrong', blob }
}

const reads = fc.record({
  bytes: size,
  slowMs: fc.constantFrom(0, 0, 0, 3),
  part: fc.option(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true })), {
    nil: undefined,
    freq: 3,
  }),
})

const run = async (
  t: Test,
  script: fc.Arbitrary<Fault[][]>,
  allowed: readonly string[],
  withParts: boolean,
): Promise<void> => {
  t.comment(`seed ${seed}`)
  const cluster = await startCluster(t, { times, random: Math.random })
  let number = 0
  const seen = new Map<string, number>()
  const property = fc.asyncProperty(script, reads, async (nodes, read) => {
    number += 1
    const { outcome } = await play(cluster, nodes, withParts ? read : { ...read, part: undefined }, number)
    seen.set(outcome, (seen.get(outcome) ?? 0) + 1)
    // Each case stands for itself: what the last one taught must not decide who is asked.
    cluster.health.setNodes([])
    cluster.health.setNodes(cluster.nodes.map(({ id }) => id))
    return allowed.includes(outcome)
  })
  await fc.assert(property, { seed, numRuns: 120, interruptAfterTimeLimit: 25_000, markInterruptAsFailure: false })
  t.comment(JSON.stringify(Object.fromEntries(seen)))
  t.ok((seen.get('right') ?? 0) > 0)
  for (const client of cluster.clients.all()) t.equal(client.inFlight, 0, 'nothing stays in flight')
}

t.test('I6: while one node serves well, every read ends with the right bytes, whatever the two others do', async t => {
  const script = fc
    .tuple(scripts(breaking), scripts(breaking), fc.array(harmless, { minLength: 1, maxLength: 2 }), fc.nat(2))
    .map(([one, two, three, turn]) => [...[one, two, three].slice(turn), ...[one, two, three].slice(0, turn)])
  await run(t, script, ['right'], true)
})

t.test('I5: with cuts, silence and flipped bits everywhere a full read ends right or fails cleanly', async t => {
  const any = fc.oneof(harmless, breaking, corrupting)
  const script = fc.tuple(scripts(any), scripts(any), scripts(any)).map(all => [...all])
  await run(t, script, ['right', 'clean failure'], false)
})
