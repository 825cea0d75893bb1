/**
 * Is what clients saw of one path explained by some order of the operations that agrees with real time (I37)? The search of Wing and
 * Gong with Lowe's memory of states already seen: fast, because few operations on a path overlap. Pure.
 */

/** One operation on one path, as its client saw it. Times are of one clock. */
export interface Operation {
  readonly called: number
  /** Infinity: no answer, or one that leaves open whether it took effect. It may do so at any time after the call, or never. */
  readonly returned: number
  /** What the path must have held for this answer; undefined: anything. */
  readonly needs?: 'absent' | 'present' | { readonly value: string }
  /** What the path holds afterwards: a digest, or one of several, or null for nothing; undefined: what it held before. */
  readonly sets?: string | null | readonly string[]
  /**
   * A read that PostgreSQL had no part in. It knows every acknowledged write, but of one whose outcome nobody was told it may know less
   * than an earlier reader that asked PostgreSQL.
   */
  readonly weak?: boolean
  /** For the report of a failure. */
  readonly note?: string
}

export type Verdict =
  | { readonly linearizable: true; readonly states: number }
  /** `stuck`: operations none of which can come next, after the longest order that was found. */
  | { readonly linearizable: false; readonly stuck: readonly Operation[]; readonly value: string | null }

interface State {
  /** Definite operations before this index are done, and those in `extras`. */
  readonly prefix: number
  readonly extras: readonly number[]
  /** Open operations that took effect. */
  readonly open: readonly number[]
  readonly value: string | null
}

const statesMax = 2_000_000

/** Throws if the search becomes too large to finish: a test has too many writers on one path then. */
export function checkRegister(all: readonly Operation[], initial: string | null = null): Verdict {
  const operations = narrowed(all)
  const definite = operations.filter(one => one.returned !== Infinity).sort((a, b) => a.called - b.called)
  const open = openOperations(operations)
  const seen = new Set<string>()
  const stack: State[] = [{ prefix: 0, extras: [], open: [], value: initial }]
  let furthest = stack[0] as State
  while (stack.length > 0) {
    const state = stack.pop() as State
    if (state.prefix === definite.length) return { linearizable: true, states: seen.size }
    const key = `${state.prefix}:${state.extras.join()}:${state.open.join()}:${state.value}`
    if (seen.has(key)) continue
    if (seen.size >= statesMax) throw new Error('too many overlapping operations on one path to check them')
    seen.add(key)
    if (doneCount(state) > doneCount(furthest)) furthest = state
    stack.push(...successors(state, definite, open))
  }
  return { linearizable: false, stuck: candidates(furthest, definite), value: furthest.value }
}

/** Of values that nobody has seen on the path one is as good as any other. */
function narrowed(operations: readonly Operation[]): Operation[] {
  const seen = seenValues(operations)
  return operations.map(operation => {
    if (!isChoice(operation.sets)) return operation
    const unseen = operation.sets.find(value => !seen.has(value))
    return { ...operation, sets: [...operation.sets.filter(value => seen.has(value)), ...(unseen ? [unseen] : [])] }
  })
}

function seenValues(operations: readonly Operation[]): Set<string | null> {
  const seen = new Set<string | null>()
  for (const { needs, returned } of operations) {
    if (returned === Infinity || needs === undefined || needs === 'present') continue
    seen.add(needs === 'absent' ? null : needs.value)
  }
  return seen
}

const isChoice = (sets: Operation['sets']): sets is readonly string[] => Array.isArray(sets)

/** What the path may hold after the operation. */
function valuesAfter({ sets }: Operation, before: string | null): readonly (string | null)[] {
  if (sets === undefined) return [before]
  return isChoice(sets) ? sets : [sets]
}

/** Of the writes with an unknown outcome only those that can explain something: their value was seen, or presence was needed. */
function openOperations(operations: readonly Operation[]): Operation[] {
  const seen = seenValues(operations)
  const presence = operations.some(({ needs, returned }) => returned !== Infinity && needs === 'present')
  return operations.filter(
    ({ returned, sets }) =>
      returned === Infinity &&
      sets !== undefined &&
      (isChoice(sets)
        ? presence || sets.some(value => seen.has(value))
        : seen.has(sets) || (presence && sets !== null)),
  )
}

const doneCount = (state: State): number => state.prefix + state.extras.length

/** Definite operations that may come next: none of those left had returned before they were called. */
function candidates(state: State, definite: readonly Operation[]): Operation[] {
  return candidateIndexes(state, definite).map(index => definite[index] as Operation)
}

function candidateIndexes({ prefix, extras }: State, definite: readonly Operation[]): number[] {
  const found: number[] = []
  let firstReturn = Infinity
  for (let index = prefix; index < definite.length; index++) {
    const operation = definite[index] as Operation
    if (operation.called > firstReturn) break
    if (extras.includes(index)) continue
    found.push(index)
    firstReturn = Math.min(firstReturn, operation.returned)
  }
  return found.filter(index => (definite[index] as Operation).called <= firstReturn)
}

function successors(state: State, definite: readonly Operation[], open: readonly Operation[]): State[] {
  const next: State[] = []
  const indexes = candidateIndexes(state, definite)
  const firstReturn = Math.min(...indexes.map(index => (definite[index] as Operation).returned))
  open.forEach((operation, index) => {
    if (state.open.includes(index) || operation.called > firstReturn || !holds(operation, state.value)) return
    const done = [...state.open, index].sort((a, b) => a - b)
    for (const value of valuesAfter(operation, state.value)) next.push({ ...state, open: done, value })
  })
  // Pushed last, tried first: most often the operation that returned first also came first.
  for (const index of indexes.sort(
    (a, b) => (definite[b] as Operation).returned - (definite[a] as Operation).returned,
  )) {
    const operation = definite[index] as Operation
    if (!holds(operation, state.value)) continue
    for (const value of valuesAfter(operation, state.value)) next.push({ ...advance(state, index), value })
  }
  return next
}

function advance({ prefix, extras, open }: State, index: number): Omit<State, 'value'> {
  const done = [...extras, index].sort((a, b) => a - b)
  while (done[0] === prefix) {
    done.shift()
    prefix++
  }
  return { prefix, extras: done, open }
}

function holds({ needs }: Operation, value: string | null): boolean {
  if (needs === undefined) return true
  if (needs === 'absent') return value === null
  return needs === 'present' ? value !== null : value === needs.value
}

interface Recorded extends Operation {
  /** A copy: it sets what that path held at some time between call and return. */
  readonly from?: string
}

/** All operations of a test, by path. */
export class History {
  /** Paths on which a weak read knew less of an unacknowledged write than somebody before it. */
  unseen = 0
  readonly #paths = new Map<string, Recorded[]>()

  record(path: string, operation: Operation): void {
    this.#add(path, operation)
  }

  /** `to` holds afterwards what `from` held. Checked path by path: the copy of a value that could have been read there is a true one. */
  recordCopy(from: string, to: string, operation: Pick<Operation, 'called' | 'returned' | 'note'>): void {
    this.#add(to, { ...operation, from, sets: [] })
  }

  #add(path: string, operation: Recorded): void {
    const operations = this.#paths.get(path)
    if (operations === undefined) this.#paths.set(path, [operation])
    else operations.push(operation)
  }

  get paths(): readonly string[] {
    return [...this.#paths.keys()]
  }

  /** With a write or a deletion that was acknowledged: of these there is a newest reference. */
  get writtenPaths(): readonly string[] {
    const isDone = ({ sets, returned }: Operation): boolean => sets !== undefined && returned !== Infinity
    return [...this.#paths].filter(([, operations]) => operations.some(isDone)).map(([path]) => path)
  }

  get size(): number {
    let count = 0
    for (const operations of this.#paths.values()) count += operations.length
    return count
  }

  /** What is wrong, path by path, in words; empty when every path is explained. */
  problems(): string[] {
    const copied = copiedValues(this.#paths)
    return [...this.#paths].flatMap(([path, operations]) => {
      const explicit = operations.map(one =>
        one.from === undefined ? one : { ...one, sets: [...(copied.get(one) ?? [])] },
      )
      const verdict = checkRegister(explicit)
      if (verdict.linearizable) return []
      if (isExplainedWeakly(explicit)) {
        this.unseen++
        return []
      }
      const stuck = verdict.stuck.map(describe).join('; ')
      const around = nearby(operations, verdict.stuck).map(describe).join('; ')
      return [`${path}: holding ${short(verdict.value)}, none of these can come next: ${stuck}. Around it: ${around}`]
    })
  }
}

/**
 * Is all that PostgreSQL had a part in explained together, and each weak read by that without what only a write of unknown outcome
 * explains? Where every write was acknowledged a weak read is a read like any other.
 */
function isExplainedWeakly(operations: readonly Operation[]): boolean {
  const unknown = operations.filter(({ sets, returned }) => sets !== undefined && returned === Infinity)
  const weak = operations.filter(one => one.weak === true)
  const strong = operations.filter(one => one.weak !== true)
  if (unknown.length === 0 || weak.length === 0 || !checkRegister(strong).linearizable) return false
  const known = strong.filter(one => one.sets !== undefined || !unknown.some(write => mayShow(one, write)))
  return weak.every(read => checkRegister([...known, read]).linearizable)
}

/** Could the read have seen what the write left? */
function mayShow({ needs, returned }: Operation, { called, sets }: Operation): boolean {
  if (called > returned || needs === undefined) return false
  if (needs === 'absent') return sets === null
  if (needs === 'present') return sets !== null
  return isChoice(sets) ? sets.includes(needs.value) : sets === needs.value
}

const nearbyCount = 24

/** The last operations that were called before the stuck ones returned, in the order of their calls. */
function nearby(operations: readonly Recorded[], stuck: readonly Operation[]): readonly Recorded[] {
  const end = Math.max(...stuck.map(({ returned }) => returned))
  const before = operations.filter(({ called }) => called <= end)
  return before.sort((a, b) => a.called - b.called).slice(-nearbyCount)
}

/** Of each copy what it may have read. A source may be the target of copies in turn, even in a circle: until nothing is new. */
function copiedValues(paths: ReadonlyMap<string, readonly Recorded[]>): Map<Recorded, Set<string>> {
  const copies = [...paths.values()].flat().filter(({ from }) => from !== undefined)
  const values = new Map(copies.map(copy => [copy, new Set<string>()]))
  const writes = new Map(copies.map(copy => [copy, writesSeenBy(copy, paths.get(copy.from ?? '') ?? [])]))
  for (let grown = true; grown;) {
    grown = false
    for (const [copy, known] of values) {
      const before = known.size
      for (const write of writes.get(copy) ?? []) {
        if (typeof write.sets === 'string') known.add(write.sets)
        else for (const value of values.get(write) ?? []) known.add(value)
      }
      grown ||= known.size > before
    }
  }
  return values
}

/** Writes that began before the copy ended, unless another one came after them and before the copy. */
function writesSeenBy(copy: Recorded, operations: readonly Recorded[]): Recorded[] {
  const writes = operations.filter(({ sets }) => sets !== undefined)
  const before = writes.filter(({ returned }) => returned < copy.called)
  const lastCalled = before.reduce((latest, { called }) => Math.max(latest, called), -Infinity)
  return writes.filter(({ called, returned }) => called <= copy.returned && returned >= lastCalled)
}

function describe({ note, needs, sets, called, returned }: Operation): string {
  const needed = needs === undefined ? '' : ` needs ${typeof needs === 'string' ? needs : short(needs.value)}`
  const set = sets === undefined ? '' : ` sets ${isChoice(sets) ? `one of ${sets.map(short).join()}` : short(sets)}`
  return `${note ?? 'operation'}${needed}${set} [${called.toFixed(1)}, ${returned.toFixed(1)}]`
}

function short(value: string | null): string {
  return value === null ? 'nothing' : value.slice(0, 12)
}
