import fc from 'fast-check'
import t from 'tap'
import { nextTime, parseCron } from '../../../proxy/tasks/cron.ts'

const after = (schedule: string, from: string): string | undefined => {
  const next = nextTime(parseCron(schedule), Date.parse(from))
  return next === undefined ? undefined : new Date(next).toISOString()
}

t.test('the next time of well-known schedules', async t => {
  t.equal(after('* * * * *', '2026-01-01T00:00:00Z'), '2026-01-01T00:01:00.000Z', 'always later, never now')
  t.equal(after('* * * * *', '2026-01-01T00:00:59.999Z'), '2026-01-01T00:01:00.000Z')
  t.equal(after('30 2 * * *', '2026-01-01T02:30:00Z'), '2026-01-02T02:30:00.000Z')
  t.equal(after('*/15 * * * *', '2026-01-01T23:50:00Z'), '2026-01-02T00:00:00.000Z')
  t.equal(after('5/20 9-17/4 * * *', '2026-01-01T09:46:00Z'), '2026-01-01T13:05:00.000Z')
  t.equal(after('0 0 1,15 * *', '2026-01-02T00:00:00Z'), '2026-01-15T00:00:00.000Z')
  t.equal(after('0 0 31 * *', '2026-01-31T00:00:00Z'), '2026-03-31T00:00:00.000Z', 'months without it are left out')
  t.equal(after('0 0 29 2 *', '2026-01-01T00:00:00Z'), '2028-02-29T00:00:00.000Z')
  t.equal(after('0 0 29 2 *', '2096-03-01T00:00:00Z'), '2104-02-29T00:00:00.000Z', '2100 is no leap year')
  t.equal(after('0 0 * * 7', '2026-01-01T00:00:00Z'), '2026-01-04T00:00:00.000Z', '7 is Sunday too')
  t.equal(after('0 0 * * 5-7', '2026-01-04T00:00:00Z'), '2026-01-09T00:00:00.000Z')
  t.equal(after('0 0 13 * 5', '2026-01-01T00:00:00Z'), '2026-01-02T00:00:00.000Z', 'either day field')
  t.equal(after('0 0 */2 * 1', '2026-01-01T00:00:00Z'), '2026-01-05T00:00:00.000Z', 'a stepped star restricts by both')
  t.equal(after('59 23 31 12 *', '2026-12-31T23:59:00Z'), '2027-12-31T23:59:00.000Z')
})

t.test('what is no schedule is refused', async t => {
  for (const text of [
    '', '* * * *', '* * * * * *', '60 * * * *', '* 24 * * *', '* * 0 * *', '* * 32 * *', '* * * 13 *', '* * * * 8', '-1 * * * *',
    '5-1 * * * *', '*/0 * * * *', '1,,2 * * * *', 'a * * * *', '@daily', '* * * JAN *', '1.5 * * * *', '0 0 30 2 *', '0 0 31 4,6,9,11 *',
    `${'1,'.repeat(200)}1 * * * *`,
  ]) t.throws(() => parseCron(text), { code: 'BAD_REQUEST' }, text) // prettier-ignore
  for (const [text, message] of [
    ['0 0 * * MON', "'MON' is no day of week (0 to 7; 0 and 7 are Sunday)"],
    ['0 0 * JAN *', "'JAN' is no month (1 to 12)"],
    ['60 * * * *', "'60' is no minute (0 to 59)"],
  ] as const) t.throws(() => parseCron(text), { message: `'${text}' is no schedule: ${message}` }) // prettier-ignore
  t.equal(after('  0  0 \t* * * ', '2026-01-01T00:00:00Z'), '2026-01-02T00:00:00.000Z', 'blanks do not matter')
})

/** A field as text, and what it means: written independently of the parser. */
function field(
  min: number,
  max: number,
): fc.Arbitrary<{ text: string; matches: (value: number) => boolean; star: boolean }> {
  const item = fc.oneof(
    fc.integer({ min, max }).map(n => ({ text: String(n), matches: (value: number) => value === n })),
    fc.tuple(fc.integer({ min, max }), fc.integer({ min, max }), fc.integer({ min: 1, max: 20 })).map(([a, b, step]) => {
      const [from, to] = [Math.min(a, b), Math.max(a, b)]
      const matches = (value: number): boolean => value >= from && value <= to && (value - from) % step === 0
      return { text: `${from}-${to}/${step}`, matches }
    }),
  ) // prettier-ignore
  const list = fc.array(item, { minLength: 1, maxLength: 3 }).map(items => ({
    text: items.map(one => one.text).join(','),
    matches: (value: number) => items.some(one => one.matches(value)),
    star: false,
  }))
  return fc.oneof(fc.constant({ text: '*', matches: () => true, star: true }), list)
}

t.test('property: the next time is the first minute that matches every field', async t => {
  const start = Date.UTC(2024, 0, 1)
  const fields = fc.tuple(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6))
  const moment = fc.integer({ min: 0, max: 4 * 365 * 24 * 3_600_000 })
  const property = fc.property(fields, moment, ([minute, hour, day, month, weekday], offset) => {
    const from = start + offset
    const cron = parseCron([minute, hour, day, month, weekday].map(one => one.text).join(' '))
    const matches = (ms: number): boolean => {
      const date = new Date(ms)
      const [d, w] = [day.matches(date.getUTCDate()), weekday.matches(date.getUTCDay())]
      const dayFits = day.star || weekday.star ? d && w : d || w
      return (
        minute.matches(date.getUTCMinutes()) && hour.matches(date.getUTCHours()) &&
        month.matches(date.getUTCMonth() + 1) && dayFits
      ) // prettier-ignore
    }
    const next = nextTime(cron, from)
    if (next === undefined || next <= from || next % 60_000 !== 0 || !matches(next)) return false
    // Nothing in between: every minute of up to a day, and of the last hours before it.
    const first = (Math.floor(from / 60_000) + 1) * 60_000
    for (let ms = first; ms < Math.min(next, first + 24 * 3_600_000); ms += 60_000) if (matches(ms)) return false
    for (let ms = Math.max(first, next - 6 * 3_600_000); ms < next; ms += 60_000) if (matches(ms)) return false
    return true
  })
  const seed = Date.now() & 0x7fffffff
  t.comment(`seed ${seed}`)
  fc.assert(property, { numRuns: 300, seed })
  t.pass('held')
})
