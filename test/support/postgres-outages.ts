import type { Cluster } from './cluster.ts'

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
