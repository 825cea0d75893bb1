/** What goes on all the time beside load and faults. */
import { setTimeout as sleep } from 'node:timers/promises'
import { backup } from '../../cli/backup.ts'
import { gc } from '../../cli/gc.ts'
import type { Cluster } from '../support/cluster.ts'
import { run } from './world.ts'

// Several soaks fit on one machine, and each has a collection and a backup in the middle of most faults.
const collectionPauseMs = 3_000
const backupPauseMs = 8_000

/** Garbage collection again and again, also while its primary is killed; resolves with how many blobs went. */
export async function collect(cluster: Cluster, ended: AbortSignal): Promise<number> {
  let purged = 0
  while (!ended.aborted) {
    const { text } = await run(cluster, gc, 'run', '--force')
    purged += Number(/purged: (\d+) blobs/.exec(text)?.[1] ?? 0)
    await sleep(collectionPauseMs)
  }
  return purged
}

/** Backups, one after the other; resolves with how many were finished. */
export async function backUp(cluster: Cluster, ended: AbortSignal): Promise<number> {
  let finished = 0
  while (!ended.aborted) {
    const { code } = await run(cluster, backup, 'create')
    if (code === 0) finished++
    await sleep(backupPauseMs)
  }
  return finished
}
