/**
 * How many bytes of each log segment are alive: something in the index stands there. Counted once from the index, then kept up with
 * every change. Changes during the count may be counted twice or not at all; who acts on it looks at the segment itself first.
 */
import { decodeBlobLocation, decodeReferenceLocation, logBytesOf } from './index.ts'
import type { IndexReader } from './index.ts'

export class SegmentUse {
  readonly #live = new Map<number, number>()
  #state: 'unknown' | 'counting' | 'known' = 'unknown'

  applied(uses: ReadonlyMap<number, number>): void {
    if (this.#state === 'unknown') return
    for (const [segment, bytes] of uses) this.#add(segment, bytes)
  }

  /** Bytes alive in the segment, about. */
  liveBytes(segment: number): number {
    return Math.max(0, this.#live.get(segment) ?? 0)
  }

  /** Counts, unless that was done. Rejects with what reading the index rejects with. */
  async count(reader: IndexReader): Promise<void> {
    if (this.#state === 'known') return
    this.clear()
    this.#state = 'counting'
    for await (const { location } of eachLocation(reader)) this.#add(location.segment, logBytesOf(location))
    this.#state = 'known'
  }

  forget(segment: number): void {
    this.#live.delete(segment)
  }

  /** Another index: nothing is known of it. */
  clear(): void {
    this.#state = 'unknown'
    this.#live.clear()
  }

  #add(segment: number, bytes: number): void {
    this.#live.set(segment, (this.#live.get(segment) ?? 0) + bytes)
  }
}

/** Every blob and reference of the index with its place, a page at a time; not one instant's picture. */
export async function* eachLocation(reader: IndexReader) {
  for (const prefix of ['b/', 'r/']) {
    for (let after: string | undefined = prefix; after !== undefined;) {
      const page = await reader({ prefix, after, limit: pageCount })
      for (const [key, value] of page) {
        const location = prefix === 'b/' ? decodeBlobLocation(value) : decodeReferenceLocation(value)
        if (location !== undefined) yield { key, location }
      }
      after = page.length < pageCount ? undefined : page.at(-1)?.[0]
    }
  }
}

const pageCount = 1000
