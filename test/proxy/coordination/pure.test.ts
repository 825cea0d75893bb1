import fc from 'fast-check'
import t from 'tap'
import { encodeChanges } from '../../../proxy/coordination/encode-changes.ts'
import { deliver, type StoreEvents } from '../../../proxy/coordination/lease-store.ts'
import { ServerMemory } from '../../../proxy/coordination/server-memory.ts'

t.test(
  'whatever the keys, messages fit, arrive in order, and only the last one asks for an acknowledgement',
  async t => {
    const keys = fc.array(fc.string({ unit: 'binary', maxLength: 300 }), { maxLength: 60 })
    const limits = { bytesMax: 1_500, messagesMax: 200 }
    const details = fc.check(
      fc.property(keys, keys, (changing, changed) => {
        const messages = encodeChanges('writer', 7, { changing, changed }, limits) ?? []
        const got = { changing: [] as string[], changed: [] as string[] }
        const lasts: boolean[] = []
        const events: StoreEvents = {
          connected: () => {},
          gap: () => {},
          joined: () => {},
          acknowledged: () => {},
          gone: () => {},
          announced: (_writer, _batch, kind, some, last) => {
            got[kind].push(...some)
            lasts.push(last)
          },
        }
        const fits = messages.every(message => Buffer.byteLength(message) <= limits.bytesMax)
        const understood = messages.every(message => deliver(message, 'reader', events))
        const inOrder = JSON.stringify(got) === JSON.stringify({ changing, changed })
        return fits && understood && inOrder && lasts.every((last, at) => last === (at === lasts.length - 1))
      }),
    )
    t.notOk(details.failed, fc.defaultReportMessage(details) ?? '')
  },
)

t.test('what does not fit is not cut', async t => {
  const limits = { bytesMax: 100, messagesMax: 2 }
  t.equal(encodeChanges('w', 1, { changing: [], changed: ['x'.repeat(100)] }, limits), undefined)
  const many = Array.from({ length: 20 }, (_, i) => `key-number-${i}`)
  t.equal(encodeChanges('w', 1, { changing: [], changed: many }, limits), undefined)
})

t.test('messages that nobody understands count as missed, unless they are of a kind that is new', async t => {
  const events = new Proxy({} as StoreEvents, { get: () => () => t.fail('nothing to hear') })
  t.notOk(deliver('not json', 'self', events))
  t.notOk(deliver('{}', 'self', events))
  t.notOk(deliver('["changed","writer",1,1,17]', 'self', events))
  t.ok(deliver('["sang","writer",1]', 'self', events))
  t.ok(deliver('["changed","self",1,1,["k"]]', 'self', events), 'our own')
})

t.test('a server remembers as far back as the connection, its birth and its clock allow', async t => {
  const memory = new ServerMemory()
  t.equal(memory.reach(1e9, 5_000), 0, 'unknown before the first connection')
  memory.connected(1_000, 0)
  t.equal(memory.reach(1e9, 5_000), 4_000)
  memory.connected(6_000, 60_000)
  t.equal(memory.reach(1e9, 7_000), 61_000, 'it has run undisturbed for longer')
  t.equal(memory.reach(250, 7_000), 250, 'but was emptied')
  memory.disconnected()
  t.equal(memory.reach(1e9, 8_000), 0)
})

t.test('a jump of the server clock, however small the steps before, is noticed; drift and delays are not', async t => {
  const details = fc.check(
    fc.property(
      fc.array(fc.record({ pauseMs: fc.nat(5_000), thereMs: fc.nat(400), backMs: fc.nat(400) }), {
        minLength: 3,
        maxLength: 40,
      }),
      fc.double({ min: -0.009, max: 0.009, noNaN: true }),
      fc.integer({ min: -172_800_000, max: 172_800_000 }).filter(jump => Math.abs(jump) > 3_000),
      (steps, drift, jump) => {
        const memory = new ServerMemory()
        memory.connected(0, Number.POSITIVE_INFINITY)
        let now = 0
        const ask = (offset: number): number => {
          const sentAt = now
          const step = steps[Math.floor(now) % steps.length] ?? { pauseMs: 0, thereMs: 0, backMs: 0 }
          now += step.thereMs
          memory.observe(1_700_000_000_000 + now * (1 + drift) + offset, sentAt, now + step.backMs)
          now += step.backMs + step.pauseMs + 1
          return memory.reach(Number.POSITIVE_INFINITY, now)
        }
        const steady = steps.every(() => ask(0) === Number.POSITIVE_INFINITY)
        return steady && ask(jump) < 10_000
      },
    ),
  )
  t.notOk(details.failed, fc.defaultReportMessage(details) ?? '')
})
