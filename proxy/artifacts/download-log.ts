/** Remembers what was downloaded, once per path and day, and writes it down beside the requests: a GET costs a comparison. */
import type { Logger } from 'pino'
import type { CleanupStore, Download } from '../metadata/cleanup-types.ts'

const dayMs = 24 * 3_600_000
const flushMs = 30_000
/** Paths that wait to be written; those beyond are noted by their next download. */
const pendingMax = 50_000
const pageSize = 1_000

export interface DownloadLogDeps {
  readonly store: Pick<CleanupStore, 'recordDownloads'>
  readonly log: Pick<Logger, 'debug'>
  /** Milliseconds since 1970. */
  readonly now: () => number
}

export class DownloadLog {
  readonly #deps: DownloadLogDeps
  readonly #pending = new Map<string, Download>()
  #timer: NodeJS.Timeout | undefined
  /** By the wall clock, which may jump; looked up every half minute only. */
  #date: number
  /** Grows with each date: what was noted on a day to come, as a clock that had jumped said, is noted on that day again. */
  #day = 0
  #flushing: Promise<void> = Promise.resolve()

  constructor(deps: DownloadLogDeps) {
    this.#deps = deps
    this.#date = Math.floor(deps.now() / dayMs)
  }

  /** `entry` is what the path cache has of it: it remembers the day on which it was last noted. No I/O: for the hot path. */
  note(entry: { notedDay?: number }, repositoryId: number, path: string): void {
    if (entry.notedDay === this.#day || this.#pending.size >= pendingMax) return
    entry.notedDay = this.#day
    this.#pending.set(`${repositoryId}/${path}`, { repositoryId, path })
  }

  start(): void {
    this.#timer = setInterval(() => void this.flush(), flushMs).unref()
  }

  /** Never rejects: what cannot be written is tried again with the next. */
  flush(): Promise<void> {
    return (this.#flushing = this.#flushing.then(() => this.#write()))
  }

  async close(): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }

  async #write(): Promise<void> {
    const date = Math.floor(this.#deps.now() / dayMs)
    if (date !== this.#date) this.#day += 1
    this.#date = date
    const all = [...this.#pending]
    for (let start = 0; start < all.length; start += pageSize) {
      const page = all.slice(start, start + pageSize)
      try {
        await this.#deps.store.recordDownloads(page.map(([, download]) => download))
      } catch (error) {
        this.#deps.log.debug({ err: error, downloads: all.length - start }, 'downloads not recorded yet')
        return
      }
      for (const [key] of page) this.#pending.delete(key)
    }
  }
}
