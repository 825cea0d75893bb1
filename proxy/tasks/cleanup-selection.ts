/**
 * Which artifacts a cleanup policy deletes. No I/O and no clock: the same artifacts and facts give the same answer. Artifacts come in the
 * order of their paths, and what is kept in memory is the open folders with their newest versions, however large the repository is.
 */
import { HoldfastError } from '../../shared/errors.ts'
import type { CleanupCandidate, CleanupConditions } from '../metadata/cleanup-types.ts'

const dayMs = 24 * 3_600_000
/** Whoever restores something has so long, at least, to say so: to change the policy, or to use it. */
const restoredDays = 7
/** Artifacts of versions whose fate is open; beyond, the policy is refused. */
const heldMax = 500_000

export interface CleanupFacts {
  readonly now: number
  /** Since when downloads are recorded: what was not seen before then may have been downloaded. */
  readonly recordedSince: number
}

interface Version {
  readonly name: string
  writtenAt: number
  /** Those that the other conditions would let go. */
  readonly due: CleanupCandidate[]
}

/** A folder that is not behind us yet. */
interface OpenFolder {
  readonly folder: string
  /** The folder itself as a version of the one above. */
  version: Version | undefined
  /** Versions in this folder as a group: the newest so far, newest first. */
  readonly newest: Version[]
}

export class CleanupSelection {
  readonly #conditions: CleanupConditions
  readonly #facts: CleanupFacts
  readonly #pattern: readonly string[] | undefined
  readonly #open: OpenFolder[] = []
  #held = 0

  constructor(conditions: CleanupConditions, facts: CleanupFacts) {
    this.#conditions = conditions
    this.#facts = facts
    this.#pattern = conditions.path === undefined ? undefined : parseGlob(conditions.path)
  }

  /** The next artifact, in the order of paths; returns those that are now known to go. */
  add(artifact: CleanupCandidate): CleanupCandidate[] {
    const { keepNewest } = this.#conditions
    const gone = keepNewest === undefined ? [] : this.#leave(artifact.path)
    if (!this.#inScope(artifact.path)) return gone
    const due = isDue(artifact, this.#conditions, this.#facts) ? [artifact] : []
    if (keepNewest === undefined) return due
    const folder = folderOf(artifact.path)
    if (keepNewest.of === 'artifacts') {
      gone.push(...this.#offer(folder, { name: artifact.path, writtenAt: writtenAt(artifact), due }))
    } else if (folder !== '') {
      const at = this.#enter(folder)
      at.version ??= { name: folder, writtenAt: writtenAt(artifact), due: [] }
      at.version.writtenAt = Math.max(at.version.writtenAt, writtenAt(artifact))
      at.version.due.push(...due)
      this.#hold(due.length)
    }
    return gone
  }

  /** After the last artifact. */
  end(): CleanupCandidate[] {
    return this.#leave(undefined)
  }

  #inScope(path: string): boolean {
    const { prerelease } = this.#conditions
    if (this.#pattern !== undefined && !matchesGlob(this.#pattern, path)) return false
    return prerelease === undefined || looksPrerelease(path) === (prerelease === 'only')
  }

  /** Closes the folders in which the path does not lie: they are complete. */
  #leave(path: string | undefined): CleanupCandidate[] {
    const gone: CleanupCandidate[] = []
    for (let last = this.#open.at(-1); last !== undefined; last = this.#open.at(-1)) {
      if (path !== undefined && path.startsWith(last.folder)) break
      this.#open.pop()
      for (const kept of last.newest) this.#held -= kept.due.length
      if (last.version === undefined) continue
      this.#held -= last.version.due.length
      gone.push(...this.#offer(folderOf(last.folder.slice(0, -1)), last.version))
    }
    return gone
  }

  /** One more version of a group: whichever is not among the newest any more goes. */
  #offer(group: string, version: Version): CleanupCandidate[] {
    const { newest } = this.#enter(group)
    const place = newest.findIndex(other => newer(version, other))
    newest.splice(place < 0 ? newest.length : place, 0, version)
    this.#hold(version.due.length)
    if (newest.length <= (this.#conditions.keepNewest?.count ?? 0)) return []
    const { due } = newest.pop()!
    this.#held -= due.length
    return due
  }

  #enter(folder: string): OpenFolder {
    const last = this.#open.at(-1)
    if (last?.folder === folder) return last
    const opened: OpenFolder = { folder, version: undefined, newest: [] }
    this.#open.push(opened)
    return opened
  }

  #hold(count: number): void {
    this.#held += count
    if (this.#held <= heldMax) return
    throw new HoldfastError(
      'CONFLICT',
      `the newest versions have more than ${heldMax} artifacts: narrow the policy down`,
    )
  }
}

/** A restore makes nothing newer: what comes back must not push out what is. */
const writtenAt = (artifact: CleanupCandidate): number => artifact.writtenAt ?? artifact.updatedAt

/** Newer by time of its last update, then by name. A format that knows the order of its versions compares here. */
function newer(a: Pick<Version, 'name' | 'writtenAt'>, b: Pick<Version, 'name' | 'writtenAt'>): boolean {
  return a.writtenAt > b.writtenAt || (a.writtenAt === b.writtenAt && a.name > b.name)
}

/**
 * Do the conditions on time hold? A download counts to the end of its day; before recording began everything may have been downloaded. Ages
 * begin with a restore; where a policy has none, what was restored has a week.
 */
export function isDue(
  { updatedAt, writtenAt, downloadedAt }: Pick<CleanupCandidate, 'updatedAt' | 'writtenAt' | 'downloadedAt'>,
  { unchangedDays, notDownloadedDays }: CleanupConditions,
  { now, recordedSince }: CleanupFacts,
): boolean {
  const graceDays = writtenAt === null || notDownloadedDays !== undefined ? undefined : restoredDays
  const days = unchangedDays ?? graceDays
  if (days !== undefined && now - updatedAt < days * dayMs) return false
  if (notDownloadedDays === undefined) return true
  const lastUse = Math.max(updatedAt, recordedSince, downloadedAt === null ? 0 : downloadedAt + dayMs)
  return now - lastUse >= notDownloadedDays * dayMs
}

/** Throws BAD_REQUEST for conditions that make no sense, or that would delete everything there is. */
export function checkConditions(conditions: CleanupConditions): void {
  const { unchangedDays, notDownloadedDays, keepNewest, path } = conditions
  if (unchangedDays === undefined && notDownloadedDays === undefined && keepNewest === undefined) {
    throw new HoldfastError('BAD_REQUEST', 'a policy needs unchangedDays, notDownloadedDays or keepNewest')
  }
  if (path !== undefined) parseGlob(path)
}

/** With its slash; '' for what stands in no folder. */
function folderOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/') + 1)
}

const anySegments = '**'

/** 'a/**' is everything below a. */
export function parseGlob(pattern: string): readonly string[] {
  const whole = pattern.endsWith('/') ? pattern + anySegments : pattern
  const segments = whole.split('/')
  if (segments.includes('') || segments.some(one => one !== anySegments && one.includes(anySegments))) {
    throw new HoldfastError('BAD_REQUEST', "a path pattern has no empty segments, and '**' only as a whole segment")
  }
  return segments.at(-1) === anySegments ? [...segments, '*'] : segments
}

export function matchesGlob(pattern: readonly string[], path: string): boolean {
  return matches(pattern, path.split('/'), anySegments, (one, segment) => {
    return matches([...one], [...segment], '*', (wanted, found) => wanted === '?' || wanted === found)
  })
}

/** Wildcards with one point to go back to: at most pattern times text steps, whatever the pattern. */
function matches(
  pattern: readonly string[],
  text: readonly string[],
  star: string,
  fits: (wanted: string, found: string) => boolean,
): boolean {
  let [at, index, lastStar, mark] = [0, 0, -1, 0]
  while (index < text.length) {
    const wanted = pattern[at]
    if (wanted === star) {
      lastStar = at++
      mark = index
    } else if (wanted !== undefined && fits(wanted, text[index]!)) {
      at++
      index++
    } else if (lastStar >= 0) {
      at = lastStar + 1
      index = ++mark
    } else return false
  }
  while (pattern[at] === star) at++
  return at === pattern.length
}

const marked =
  /(?:^|[^a-z0-9])v?\d+(?:\.\d+)*[-._+]?(?:snapshot|alpha|beta|milestone|preview|pre|rc|cr|dev|nightly|canary)(?![a-z])/i
const short = /(?:^|[^a-z0-9])v?\d+(?:\.\d+)+-?[abm]\d/i

/**
 * Does a segment of the path look like a version before its release? A number followed by snapshot, alpha, beta, milestone, preview, pre, rc,
 * cr, dev, nightly or canary (1.0-SNAPSHOT, 2.0.0-rc.1, 3.1.dev4), or with a dot in it by a, b or m and a digit (1.0b2). A guess by name:
 * a format that knows its versions will know better.
 */
export function looksPrerelease(path: string): boolean {
  return marked.test(path) || short.test(path)
}
