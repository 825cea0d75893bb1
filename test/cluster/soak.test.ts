/** Three minutes of soak with every run of the tests; `npm run soak` runs it as long as one likes. */
import t from 'tap'
import { kinds } from '../soak/faults.ts'
import { soak } from '../soak/soak.ts'
import { seededRandom } from '../support/random.ts'

const minutes = Number(process.env['HOLDFAST_TEST_SOAK_MINUTES'] ?? 3)
const named = process.env['HOLDFAST_TEST_SOAK_ONLY']?.split(',')
const unknown = named?.filter(name => !kinds.some(kind => kind === name)) ?? []
if (unknown.length > 0) throw new Error(`no kind of fault: ${unknown.join(', ')}; there are ${kinds.join(', ')}`)
const only = kinds.filter(kind => named === undefined || named.includes(kind))

t.test(`${minutes} minutes of load under random faults`, { timeout: minutes * 60_000 + 600_000 }, async t => {
  await soak(t, seededRandom(t), { minutes, only })
})
