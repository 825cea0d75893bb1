/** Child of races.test.ts: a primary that postpones one repair over and over, until it is told that it is none. */
import assert from 'node:assert/strict'
import { isHoldfastError } from '../../../shared/errors.ts'
import { openMetadata } from '../../../proxy/metadata/open-metadata.ts'
import { silent } from './fixtures.ts'

const [url, id, token] = process.argv.slice(2)
assert(url !== undefined)
const metadata = await openMetadata({ url, log: silent })
const work = async (repair: number): Promise<void> => {
  for (let i = 0; ; i++) {
    await metadata.postponeRepairs([{ id: repair, retryMs: 0, missing: ['ours'], attempts: 1 }], Number(token))
    if (i === 10 && repair === Number(id)) process.send?.('at work')
  }
}
try {
  // Several at once, so that a stop finds some between two of their statements; the others' repairs do not exist.
  await Promise.all([work(Number(id)), work(-1), work(-2), work(-3)])
} catch (error) {
  process.send?.({ code: isHoldfastError(error) ? error.code : String(error) })
}
await metadata.close()
process.disconnect()
