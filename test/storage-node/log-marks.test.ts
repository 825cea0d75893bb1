/** Ages by places in the log: never more than the truth, and little less. */
import fc from 'fast-check'
import t from 'tap'
import { LogMarks, type LogPlace } from '../../storage-node/log-marks.ts'

const seed = Date.now() & 0x7fffffff
t.comment(`seed ${seed}`)

t.test('I29: an age is never more than the truth, at most a second or an eighth less, and takes bounded memory', t => {
  const pause = fc.oneof(fc.integer({ min: 0, max: 20 }), fc.integer({ min: 0, max: 5_000 }), fc.constant(3_600_000))
  const phase = fc.record({ pause, writes: fc.integer({ min: 1, max: 900 }), sealed: fc.boolean() })
  fc.assert(
    fc.property(fc.array(phase, { minLength: 1, maxLength: 12 }), fc.double({ min: 0, max: 1e9, noNaN: true }), (phases, start) => {
      const marks = new LogMarks()
      let now = start
      let end: LogPlace = { segment: 3, offset: 500 }
      marks.begin(end, now)
      const written: { place: LogPlace; at: number }[] = [{ place: { segment: 2, offset: 1e9 }, at: now }, { place: end, at: now }]
      for (const { pause, writes, sealed } of phases) {
        if (sealed) end = { segment: end.segment + 1, offset: 24 }
        for (let count = 0; count < writes; count += 1) {
          now += pause
          const place = { segment: end.segment, offset: end.offset + 100 }
          if (marks.heldMs(place, now) !== 0) return false
          end = { segment: end.segment, offset: end.offset + 150 }
          marks.reached(end, now)
          // The second one: an empty payload at the end of its record.
          written.push({ place, at: now }, { place: end, at: now })
        }
        if (marks.count > 1_000) return false
        for (const { place, at } of written) {
          const [age, told] = [now - at, marks.heldMs(place, now)]
          if (told > age || told < age - Math.max(1_000, age / 8) - 1) return false
        }
      }
      return true
    }),
    { seed, numRuns: 60 },
  ) // prettier-ignore
  t.end()
})

t.test('after a start nothing is older than the start', t => {
  const marks = new LogMarks()
  t.equal(marks.heldMs({ segment: 1, offset: 0 }, 1_000), 0)
  marks.begin({ segment: 7, offset: Infinity }, 1_000)
  t.equal(marks.heldMs({ segment: 7, offset: 5 }, 1_600), 600)
  marks.reached({ segment: 8, offset: 300 }, 1_500)
  t.equal(marks.heldMs({ segment: 8, offset: 200 }, 1_600), 100)
  marks.begin({ segment: 8, offset: 300 }, 2_000)
  t.equal(marks.heldMs({ segment: 1, offset: 5 }, 2_100), 100)
  t.end()
})
