/** Child of races.test.ts: a primary that postpones one repair over and over, until it is told that it is none. */
import assert from 'node:assert/strict'
import { isHoldfastError } from '../../../shared/errors.ts'
import { openMetadata } from '../../../proxy/metadata/open-metadata.ts'
import { silent } from './fixtures.ts'

const [url, id, token] = process.argv.slice(2)
assert(url !== undefined)
const metadata = await openMetadata({ url, log: silent })
try {
  for (let i = 0; ; i++) {
    await metadata.postponeRepair(Number(id), Number(token), 0, ['ours'])
    if (i === 20) process.send?.('at work')
  }
} catch (error) {
  process.send?.({ code: isHoldfastError(error) ? error.code : String(error) })
}
await metadata.close()
process.disconnect()
