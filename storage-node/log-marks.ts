/**
 * For how long, at least, what stands in the log has been here, by the monotonic clock: where the log ended, and when. Times in records
 * are another process's, or those of a clock that has jumped since, and would make an upload in hand look like a leftover (I29). A copy
 * that a compaction moves stands at a new place, and counts as younger than it is.
 */
export interface LogPlace {
  readonly segment: number
  readonly offset: number
}

interface Mark {
  readonly end: LogPlace
  /** What stands before `end` is here since then, or longer; ms. */
  readonly at: number
}

/** So many remain of ten years at most, when they are thinned. */
const countMax = 1_000
/** By how much an age may be told too short: this, or an eighth of it. */
const blurMs = 1_000
const blurShare = 1 / 8

export class LogMarks {
  /** In the order of their places, which is that of their times. */
  #marks: Mark[] = []

  /** The log was read to its end: all that stands in it may have come a moment before. */
  begin(end: LogPlace, now: number): void {
    this.#marks = [{ end, at: now }]
  }

  /** The index has what stands before `end`. */
  reached({ segment, offset }: LogPlace, now: number): void {
    this.#marks.push({ end: { segment, offset }, at: now })
    if (this.#marks.length > countMax) this.#marks = thinned(this.#marks, now)
  }

  get count(): number {
    return this.#marks.length
  }

  /** In ms; 0 of what stands behind the end. */
  heldMs(place: LogPlace, now: number): number {
    const marks = this.#marks
    let [low, high] = [0, marks.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (isBefore(place, marks[middle]!.end)) high = middle
      else low = middle + 1
    }
    const mark = marks[low]
    return mark === undefined ? 0 : Math.max(0, Math.floor(now - mark.at))
  }
}

/** Without those that tell little more than the one behind them: what stood before them counts as younger, by the blur at most. */
function thinned(marks: readonly Mark[], now: number): Mark[] {
  const kept: Mark[] = []
  for (const [index, mark] of marks.entries()) {
    const [before, behind] = [kept.at(-1), marks[index + 1]]
    const isNeeded =
      before === undefined ||
      behind === undefined ||
      behind.at - before.at > Math.max(blurMs, (now - behind.at) * blurShare)
    if (isNeeded) kept.push(mark)
  }
  return kept
}

/** Also an empty payload, which is where its record ends. */
function isBefore(one: LogPlace, other: LogPlace): boolean {
  return one.segment < other.segment || (one.segment === other.segment && one.offset <= other.offset)
}
