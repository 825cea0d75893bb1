/** Child of migrations.test.ts: opens the database and tells who it is. */
import assert from 'node:assert/strict'
import { openMetadata } from '../../../proxy/metadata/open-metadata.ts'
import { silent } from './fixtures.ts'

const [url] = process.argv.slice(2)
assert(url !== undefined)
try {
  const metadata = await openMetadata({ url, log: silent })
  process.send?.({ clusterId: metadata.clusterId, incarnation: metadata.incarnation })
  await metadata.close()
} catch (error) {
  process.send?.({ error: String(error) })
}
process.disconnect()
