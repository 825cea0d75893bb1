/**
 * A short digest of a set of texts that does not depend on their order: two shards compare what they hold of a partition without
 * telling each other all of it. The sum of a 64-bit hash of each text, so that a set of millions costs one pass and no memory.
 * Not made against somebody who looks for collisions: a hit would hide a missing copy from the comparison until the next change
 * of the partition, not lose one, and reads and `fsck` would still find it.
 */
export interface SetSummary {
  readonly count: number
  /** 16 hex digits; zeros for the empty set. */
  readonly hash: string
}

export const emptySet: SetSummary = { count: 0, hash: '0000000000000000' }

export function sameSet(a: SetSummary, b: SetSummary): boolean {
  return a.count === b.count && a.hash === b.hash
}

export class SetDigest {
  #count = 0
  #high = 0
  #low = 0

  /** Each text once: a text added twice is another set. */
  add(text: string): void {
    // Two multiplicative lanes, crossed and avalanched at the end, so that like texts do not cancel each other out in the sums.
    let a = 0xdeadbeef
    let b = 0x41c6ce57
    for (let at = 0; at < text.length; at++) {
      const code = text.charCodeAt(at)
      a = Math.imul(a ^ code, 2654435761)
      b = Math.imul(b ^ code, 1597334677)
    }
    const high = mix(a, b)
    const low = mix(b, high)
    this.#count += 1
    this.#high = (this.#high + high) >>> 0
    this.#low = (this.#low + low) >>> 0
  }

  finish(): SetSummary {
    const hex = (lane: number): string => lane.toString(16).padStart(8, '0')
    return { count: this.#count, hash: hex(this.#high) + hex(this.#low) }
  }
}

function mix(a: number, b: number): number {
  let x = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909)
  x = Math.imul(x ^ (x >>> 15), 2246822519)
  return (x ^ (x >>> 16)) >>> 0
}
