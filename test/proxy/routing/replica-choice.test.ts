import fc from 'fast-check'
import t from 'tap'
import { chooseReplica, passedOver, type ReplicaFacts, replicaTier } from '../../../proxy/routing/replica-choice.ts'
import { parseHead } from '../../../shared/read-head.ts'
import { LatencyDigest, LatencyMean } from '../../../proxy/routing/latency.ts'

const good: ReplicaFacts = {
  state: 'up',
  draining: false,
  shard: 'ok',
  doubtful: false,
  local: false,
  inFlight: 0,
  share: 1,
  latencyMs: 2,
}

/** All picks in order, each removed before the next. */
function order(replicas: readonly ReplicaFacts[], random: () => number): number[] {
  const left = replicas.map((replica, index) => ({ replica, index }))
  const picks: number[] = []
  while (left.length > 0) {
    const at = chooseReplica(
      left.map(({ replica }) => replica),
      random,
    )
    picks.push(...left.splice(at, 1).map(({ index }) => index))
  }
  return picks
}

t.test('better states come first, and all are tried in the end', t => {
  const replicas: ReplicaFacts[] = [
    { ...good, doubtful: true },
    { ...good, shard: 'failed' },
    { ...good, state: 'down' },
    { ...good, state: 'suspect' },
    { ...good, draining: true },
    { ...good, shard: 'full' },
  ]
  t.same(order(replicas, Math.random), [5, 4, 3, 2, 1, 0])
  t.same(
    order(
      replicas.map(replica => ({ ...replica, local: true })),
      Math.random,
    ),
    [5, 4, 3, 2, 1, 0],
  )
  t.equal(chooseReplica([], Math.random), -1)
  t.end()
})

t.test('the own zone is preferred while it does not carry more than 1.5 times the mean', t => {
  const replicas = (inFlight: number): ReplicaFacts[] => [good, { ...good, local: true, inFlight }, good]
  const local = (inFlight: number): number =>
    Array.from({ length: 200 }, () => chooseReplica(replicas(inFlight), Math.random)).filter(pick => pick === 1).length
  t.equal(local(8), 200, 'a small load is no imbalance')
  t.equal(local(9), 0, 'the other zones are idle')
  const busy = [
    { ...good, inFlight: 20 },
    { ...good, local: true, inFlight: 25 },
  ]
  t.equal(chooseReplica(busy, Math.random), 1)
  t.end()
})

t.test('of two drawn at random the less loaded is taken, and the earlier of equals', t => {
  t.equal(
    chooseReplica(
      [
        { ...good, inFlight: 3 },
        { ...good, inFlight: 2 },
      ],
      Math.random,
    ),
    1,
  )
  t.equal(chooseReplica([good, good], Math.random), 0)
  // With three the most loaded one can never win.
  const replicas = [{ ...good, inFlight: 5 }, good, { ...good, inFlight: 1 }]
  const picks = Array.from({ length: 300 }, () => chooseReplica(replicas, Math.random))
  t.notOk(picks.includes(0))
  t.ok(picks.includes(1) && picks.includes(2))
  t.end()
})

t.test('a node in slow start gets its share only', t => {
  const replicas = [
    { ...good, share: 0.2 },
    { ...good, inFlight: 5 },
  ]
  const picks = Array.from({ length: 5_000 }, () => chooseReplica(replicas, Math.random)).filter(
    pick => pick === 0,
  ).length
  t.ok(picks > 5_000 * 0.15 && picks < 5_000 * 0.25, `${picks} of 5000`)
  t.equal(
    chooseReplica([{ ...good, share: 0.1 }], () => 0.99),
    0,
    'alone it is asked',
  )
  t.end()
})

t.test('a slow replica, also in the own zone, is asked by no client while another is quick', t => {
  const picksOf = (replicas: readonly ReplicaFacts[]): number =>
    Array.from({ length: 5_000 }, () => chooseReplica(replicas, Math.random)).filter(pick => pick === 0).length
  const slow = { ...good, local: true, latencyMs: 300 }
  t.equal(picksOf([slow, good, good]), 0)
  t.equal(picksOf([{ ...slow, latencyMs: 45 }, good, good]), 5_000, 'a far zone is no failing disk')
  t.equal(picksOf([slow, { ...good, latencyMs: 100 }]), 5_000, 'all are slow')
  t.equal(picksOf([slow, { ...good, latencyMs: 0 }]), 0, 'one that was never asked may be quicker')
  t.equal(chooseReplica([slow], Math.random), 0, 'alone it is asked')
  t.same(passedOver([slow, good, { ...slow, state: 'suspect' }], 1), [0], 'what is worse in other ways is not told')
  t.same(passedOver([good, good], 1), [])
  t.same(passedOver([slow, { ...good, latencyMs: 100 }], 0), [], 'it was asked')
  t.end()
})

t.test('the choice is always one of the best tier, whatever the facts', t => {
  const facts = fc.record({
    state: fc.constantFrom('up' as const, 'suspect' as const, 'down' as const),
    draining: fc.boolean(),
    shard: fc.constantFrom('ok' as const, 'full' as const, 'read-only' as const, 'failed' as const),
    doubtful: fc.boolean(),
    local: fc.boolean(),
    inFlight: fc.nat(100),
    share: fc.double({ min: 0.1, max: 1, noNaN: true }),
    latencyMs: fc.nat(1_000),
  })
  const draws = fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }))
  fc.assert(
    fc.property(fc.array(facts, { minLength: 1, maxLength: 8 }), draws, (replicas, stream) => {
      const random = (): number => Number(stream.next().value)
      const best = Math.min(...replicas.map(replicaTier))
      const picked = replicas[chooseReplica(replicas, random)]
      if (picked === undefined || replicaTier(picked) !== best) return false
      const slow = passedOver(replicas, replicas.indexOf(picked))
      if (slow.some(at => replicas[at] === picked || replicaTier(replicas[at] ?? picked) !== best)) return false
      return new Set(order(replicas, random)).size === replicas.length
    }),
  )
  t.end()
})

t.test('only heads as our nodes write them are understood', t => {
  const lines = (...more: string[]): string => ['HTTP/1.1 200 OK', 'Content-Length: 12', ...more].join('\r\n')
  t.match(parseHead(lines('Date: now', 'Connection: keep-alive', 'Keep-Alive: timeout=5')), {
    status: 200,
    bytes: 12,
    closes: false,
    keepAliveMs: 5_000,
  })
  t.match(parseHead(lines('connection: close')), { closes: true })
  t.match(parseHead(lines('content-range: bytes 5-16/100')), { range: { first: 5, last: 16, total: 100 } })
  const refused = {
    'another version': 'HTTP/1.0 200 OK\r\nContent-Length: 1',
    'no status': 'HTTP/1.1 abc OK\r\nContent-Length: 1',
    'an interim status': 'HTTP/1.1 100 Continue\r\nContent-Length: 1',
    'no length': 'HTTP/1.1 200 OK',
    'a negative length': 'HTTP/1.1 200 OK\r\nContent-Length: -1',
    'a hexadecimal length': 'HTTP/1.1 200 OK\r\nContent-Length: 0x10',
    'two lengths': lines('Content-Length: 12'),
    chunked: lines('Transfer-Encoding: chunked'),
    'a folded line': lines(' more'),
    'a space before the colon': lines('Name : value'),
    'a bare line feed': lines('Name: value\nOther: value'),
    'a bare carriage return': lines('Name: value\rmore'),
    'no name': lines(': value'),
    'a range backwards': lines('Content-Range: bytes 9-5/100'),
    'a range past the end': lines('Content-Range: bytes 5-100/100'),
    'an unknown total': lines('Content-Range: bytes 5-9/*'),
    nothing: '',
  }
  for (const [name, text] of Object.entries(refused)) t.equal(parseHead(text), undefined, name)
  t.end()
})

t.test('the latency digest follows the 95th percentile of the last 128 answers', t => {
  const digest = new LatencyDigest()
  t.equal(digest.p95Ms, 200, 'a guess at first')
  for (let count = 0; count < 1_000; count += 1) digest.add(count % 100)
  t.ok(digest.p95Ms >= 85 && digest.p95Ms <= 99, `${digest.p95Ms}`)
  for (let count = 0; count < 200; count += 1) digest.add(5)
  t.equal(digest.p95Ms, 5)
  t.end()
})

t.test('the mean follows answers, and is not lowered by those that were not waited for', t => {
  const mean = new LatencyMean()
  t.equal(mean.ms, 0, 'not known')
  for (let count = 0; count < 200; count += 1) mean.add(300)
  for (let count = 0; count < 200; count += 1) mean.addAtLeast(60)
  t.ok(Math.abs(mean.ms - 300) < 1)
  mean.addAtLeast(310)
  t.equal(mean.ms, 620, 'one that was longer than any counts at once')
  for (let count = 0; count < 5; count += 1) mean.addProbe(2)
  t.ok(mean.ms < 50, 'a few probes take that back')
  mean.add(300)
  for (let count = 0; count < 50; count += 1) mean.add(5)
  t.ok(mean.ms < 10, 'it is quick again')
  t.end()
})
