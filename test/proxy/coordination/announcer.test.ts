import t, { type Test } from 'tap'
import { Announcer } from '../../../proxy/coordination/announcer.ts'
import { announcedKeysMax, defaultTimings } from '../../../proxy/coordination/timings.ts'
import { eventually } from '../../support/eventually.ts'

/** An announcer over a server that answers each message when it is told to. */
function setUp(t: Test) {
  const rounds: { readonly text: string; readonly end: (error?: Error) => void }[] = []
  const announcer = new Announcer({
    store: {
      messageLimits: { bytesMax: 1e6, messagesMax: 1e3 },
      announce: messages =>
        new Promise((resolve, reject) => {
          const end = (error?: Error): void => (error ? reject(error) : resolve({ holders: [], waitMs: 0 }))
          rounds.push({ text: messages.join(), end })
        }),
      revoke: async () => 0,
    },
    self: 'me',
    timings: { ...defaultTimings, leaseRenewMs: 10, suspendAfterMs: 0, unreachableMs: 0 },
    log: { debug: () => {}, info: () => {}, warn: () => {} } as never,
    alone: () => true,
    markLocally: () => {},
    unmarkLocally: () => {},
  })
  t.teardown(() => announcer.close())
  const round = (number: number) => eventually(`round ${number}`, () => rounds[number])
  return { announcer, round }
}

/** So many calls wait for their round; one more is refused. */
const waitingMax = 10_000

for (const [name, owed] of [
  ['that is owed already', ['late']],
  ['beyond those that are listed', Array.from({ length: announcedKeysMax + 1 }, (_, i) => `k${i}`)],
] as const) {
  t.test(`I37: a change that is refused while debts are paid is owed: of a key ${name}`, async t => {
    const { announcer, round } = setUp(t)
    const failed = t.rejects(announcer.invalidate(owed), { code: 'COORDINATION_UNAVAILABLE' })
    ;(await round(0)).end(new Error('away'))
    await failed
    const paying = await round(1)
    t.match(paying.text, owed.length === 1 ? '"late"' : '"all"')
    const waiting = Array.from({ length: waitingMax }, () => announcer.invalidate(['other']))
    await t.rejects(announcer.invalidate(['late']), { code: 'COORDINATION_UNAVAILABLE' })
    paying.end()
    const next = await round(2)
    t.match(next.text, owed.length === 1 ? '"late"' : '"all"', 'what was paid before its write does not count')
    next.end()
    await Promise.all(waiting)
    // Now it is settled.
    const last = announcer.invalidate(['other'])
    const after = await round(3)
    t.notMatch(after.text, /"late"|"all"/)
    after.end()
    await last
  })
}
