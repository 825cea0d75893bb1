import { setTimeout as sleep } from 'node:timers/promises'
import { isBlobFileName } from './blob-name.ts'
import type { Shard } from './shard.ts'

const pauseMs = 5

/**
 * Blob files without a record: a crash came between rename and record, or between the record of a drop and the move. Nobody was
 * promised them. Looked for once after each start, a folder at a time, and moved to the trash.
 */
export class Leftovers {
  readonly #shard: Shard
  #done = false
  #stopped = false

  constructor(shard: Shard) {
    this.#shard = shard
  }

  /** What runs ends soon, and may be waited for. */
  stop(): void {
    this.#stopped = true
  }

  async clear(): Promise<void> {
    if (this.#done) return
    let count = 0
    for (const partition of await this.#shard.files.blobFolders()) {
      for (const file of await this.#shard.files.blobsIn(partition)) {
        if (this.#shard.health.state !== 'ok' && this.#shard.health.state !== 'full') return
        if (isBlobFileName(file) && (await this.#shard.discardLeftover(`${partition}/${file}`))) count += 1
      }
      // A large shard has thousands of folders; requests come first.
      await sleep(pauseMs)
      if (this.#stopped) return
    }
    this.#done = true
    if (count > 0) this.#shard.log.info({ count }, 'files without a record moved to the trash')
  }
}
