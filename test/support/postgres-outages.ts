import type { Client } from './client.ts'
import type { Cluster } from './cluster.ts'
import { eventually } from './eventually.ts'

/**
 * The promises are 2 s for a refusal and 5 s for the return, on a machine that has nothing else to do. Here a dozen processes
 * and other tests share a few cores: twice that is granted. What it must catch took 8 s and more.
 */
const loaded = 2
export const refusedWithinMs = 2_000 * loaded
export const backWithinMs = 5_000 * loaded

/** Its name, how it begins, how it ends. */
type Outage = [string, (cluster: Cluster) => Promise<void>, (cluster: Cluster) => Promise<void>]

export const outages: Outage[] = [
  ['is shut down', ({ postgres }) => postgres.stop(), ({ postgres }) => postgres.start()],
  ['is killed', ({ postgres }) => postgres.kill(), ({ postgres }) => postgres.start()],
  ['hangs', ({ postgres }) => postgres.pause(), ({ postgres }) => postgres.resume()],
]

/**
 * Each proxy takes writes again, and answers reads from the database: its next probe, up to 250 ms later, ends the reading from
 * the shards.
 */
export async function waitForDatabase(clients: readonly Client[], name: string): Promise<void> {
  for (const [index, client] of clients.entries()) {
    const path = `raw/${name}/${index}`
    const body = Buffer.from(path)
    const within = { withinMs: backWithinMs }
    await eventually('writes are taken', async () => (await client.put(path, body)).status === 201, within)
    const isCurrent = async () => {
      const { status, headers } = await client.get(path)
      return status === 200 && headers['holdfast-metadata'] === undefined
    }
    await eventually('answers are current', isCurrent, within)
  }
}
