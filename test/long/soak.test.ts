/** A short soak with every run of the tests; `npm run soak` runs it as long as one likes. */
import t from 'tap'
import { soak } from '../soak/soak.ts'
import { seededRandom } from '../support/random.ts'

const minutes = Number(process.env['HOLDFAST_TEST_SOAK_MINUTES'] ?? 0.5)

t.test(`${minutes} minutes of load under random faults`, { timeout: minutes * 60_000 + 300_000 }, async t => {
  await soak(t, seededRandom(t), minutes)
})
