/**
 * Garbage collection against uploads of the same bytes, as a model small enough to look at every state it can reach: one digest, some
 * uploaders, some shards, a collector whose deletions are delivered late, twice and by primaries that are none any more, and a repair that
 * copies. Each step is what one transaction or one request does in the real thing.
 */
export interface Variant {
  readonly shards: number
  /** So many of the shards are owners, the first ones: the row goes when they have answered. The others are swept afterwards. */
  readonly owners: number
  /** Copies an uploader needs before it commits. */
  readonly quorum: number
  readonly uploaders: number
  /** Generations there are; uploaders that would need more give up. */
  readonly generations: number
  /** Leftovers are swept, also while bytes are on their way. */
  readonly sweeps: boolean
  /** What is left out of the protocol. */
  readonly without?:
    | 'hold and second look' // deleted as soon as it was seen unused, judged by an older snapshot
    | 'generation in deletions'
    | 'touch of the shards' // deduplicated on the database's word
    | 'state in commits'
    | 'generation in commits'
    | 'new generation for purging' // bytes come again under the generation that is being deleted
}

type Row = null | { readonly state: 'live' | 'condemned' | 'purging'; readonly gen: number }

/** -1 where a number stands for none. */
interface Uploader {
  readonly at: 'find' | 'touch' | 'write' | 'commit' | 'named' | 'over'
  readonly gen: number
  readonly isNew: boolean
  /** Shards that were touched or written, as a bit set. */
  readonly done: number
}

interface State {
  readonly row: Row
  /** Generations no commit may bring to life. */
  readonly fences: number
  /** Of each shard: the generations it holds, as a bit set. */
  readonly held: readonly number[]
  readonly uploaders: readonly Uploader[]
  /** Generations whose deletion was sent once: it may arrive at any shard, at any time, for ever. */
  readonly deletions: number
  /** Shards that have answered the deletion of the generation that is being purged. */
  readonly answered: number
  /** The collector saw it unused and has not acted yet (only without the second look). */
  readonly seenUnused: boolean
  /** A copy under way: generation and target. */
  readonly copying: readonly [gen: number, shard: number] | null
  readonly nextGen: number
}

export interface Outcome {
  readonly states: number
  /** What led to a state that must not be, step by step. */
  readonly counterexample?: readonly string[]
}

/** Breadth first, so a counterexample is a shortest one. */
export function explore(variant: Variant): Outcome {
  const start: State = {
    row: null,
    fences: 0,
    held: Array.from({ length: variant.shards }, () => 0),
    uploaders: Array.from({ length: variant.uploaders }, () => idle),
    deletions: 0,
    answered: 0,
    seenUnused: false,
    copying: null,
    nextGen: 0,
  }
  const seen = new Map<string, { readonly from: string; readonly step: string }>([[key(start), { from: '', step: '' }]])
  let frontier: State[] = [start]
  while (frontier.length > 0) {
    const next: State[] = []
    for (const state of frontier) {
      if (!isSafe(state)) return { states: seen.size, counterexample: pathTo(key(state), seen) }
      for (const [step, reached] of steps(state, variant)) {
        const name = key(reached)
        if (seen.has(name)) continue
        seen.set(name, { from: key(state), step })
        next.push(reached)
      }
    }
    frontier = next
  }
  return { states: seen.size }
}

const idle: Uploader = { at: 'find', gen: -1, isNew: false, done: 0 }
const key = (state: State): string => JSON.stringify(state)

function pathTo(name: string, seen: ReadonlyMap<string, { readonly from: string; readonly step: string }>): string[] {
  const path: string[] = []
  for (let at = seen.get(name); at !== undefined && at.step !== ''; at = seen.get(at.from)) path.unshift(at.step)
  return path
}

/** Whoever was told that their artifact is stored can have its bytes. */
function isSafe({ row, held, uploaders }: State): boolean {
  if (!uploaders.some(one => one.at === 'named')) return true
  return row !== null && row.state !== 'purging' && held.some(gens => has(gens, row.gen))
}

function* steps(state: State, variant: Variant): Generator<[string, State]> {
  for (let index = 0; index < variant.uploaders; index++) yield* uploaderSteps(state, variant, index)
  yield* collectorSteps(state, variant)
  if (variant.sweeps) yield* sweepSteps(state, variant)
  yield* repairSteps(state, variant)
}

function* uploaderSteps(state: State, variant: Variant, index: number): Generator<[string, State]> {
  const me = state.uploaders[index] as Uploader // within bounds
  const { row } = state
  const go = (step: string, change: Partial<Uploader>, more: Partial<State> = {}): [string, State] => [
    `uploader ${index}: ${step}`,
    { ...state, ...more, uploaders: state.uploaders.map((one, at) => (at === index ? { ...one, ...change } : one)) },
  ]
  const begin = (found: Row, step: string): [string, State] | undefined => {
    if (found !== null && found.state !== 'purging') {
      const at = variant.without === 'touch of the shards' ? 'commit' : 'touch'
      return go(step, { at, gen: found.gen, isNew: false, done: 0 })
    }
    if (variant.without === 'new generation for purging' && found !== null) {
      return go(step, { at: 'write', gen: found.gen, isNew: true, done: 0 })
    }
    if (state.nextGen >= variant.generations) return undefined
    return go(step, { at: 'write', gen: state.nextGen, isNew: true, done: 0 }, { nextGen: state.nextGen + 1 })
  }
  switch (me.at) {
    case 'find': {
      const begun = begin(row, 'looks the digest up')
      if (begun !== undefined) yield begun
      return
    }
    case 'touch':
      if (count(me.done) >= variant.quorum) yield go('has touched enough', { at: 'commit' })
      for (let shard = 0; shard < variant.shards; shard++) {
        if (has(me.done, shard)) continue
        if (has(state.held[shard] ?? 0, me.gen)) yield go(`touches shard ${shard}`, { done: add(me.done, shard) })
        else yield go(`shard ${shard} lacks it, so the bytes are sent`, { at: 'write', done: 0 })
      }
      return
    case 'write':
      if (count(me.done) >= variant.quorum) yield go('has written enough', { at: 'commit' })
      for (let shard = 0; shard < variant.shards; shard++) {
        if (has(me.done, shard)) continue
        const held = state.held.map((gens, at) => (at === shard ? add(gens, me.gen) : gens))
        yield go(`writes to shard ${shard}`, { done: add(me.done, shard) }, { held })
      }
      return
    case 'commit':
      yield* commitSteps(state, variant, me, go, begin)
      return
    case 'named':
      yield go('deletes its artifact', { at: 'over' })
      return
    case 'over':
  }
}

function* commitSteps(
  state: State,
  { without }: Variant,
  me: Uploader,
  go: (step: string, change: Partial<Uploader>, more?: Partial<State>) => [string, State],
  begin: (found: Row, step: string) => [string, State] | undefined,
): Generator<[string, State]> {
  const { row } = state
  const again = (found: Row): [string, State] | undefined => begin(found, 'is refused and begins again')
  const named = (to: Row, more: Partial<State> = {}): [string, State] =>
    go('commits', { at: 'named' }, { row: to, ...more })
  let next: [string, State] | undefined
  if (row === null) {
    next = me.isNew && !has(state.fences, me.gen) ? named({ state: 'live', gen: me.gen }) : again(null)
  } else if (row.state === 'purging' && without !== 'state in commits') {
    const mayReplace =
      me.isNew && !has(state.fences, me.gen) && (row.gen !== me.gen || without === 'new generation for purging')
    next = mayReplace
      ? named(
          { state: 'live', gen: me.gen },
          { fences: row.gen === me.gen ? state.fences : add(state.fences, row.gen), answered: 0 },
        )
      : again(without === 'new generation for purging' ? row : null)
  } else if (row.gen === me.gen || without === 'generation in commits') {
    next = named(row.state === 'purging' ? row : { state: 'live', gen: row.gen })
  } else {
    next = again(row)
  }
  if (next !== undefined) yield next
}

function* collectorSteps(state: State, variant: Variant): Generator<[string, State]> {
  const { row, held, deletions } = state
  const unused = !state.uploaders.some(one => one.at === 'named')
  const { without } = variant
  if (without === 'hold and second look') {
    if (row?.state === 'live' && unused && !state.seenUnused)
      yield ['collector: sees it unused', { ...state, seenUnused: true }]
    if (row?.state === 'live' && state.seenUnused) {
      const purging: Row = { state: 'purging', gen: row.gen }
      yield [
        'collector: purges',
        { ...state, row: purging, seenUnused: false, deletions: add(deletions, row.gen), answered: 0 },
      ]
    }
  } else {
    if (row?.state === 'live' && unused)
      yield ['collector: condemns', { ...state, row: { state: 'condemned', gen: row.gen } }]
    if (row?.state === 'condemned' && unused) {
      const purging: Row = { state: 'purging', gen: row.gen }
      yield ['collector: purges', { ...state, row: purging, deletions: add(deletions, row.gen), answered: 0 }]
    }
  }
  for (let gen = 0; gen < variant.generations; gen++) {
    if (!has(deletions, gen)) continue
    for (let shard = 0; shard < held.length; shard++) {
      const after = held.map((gens, at) => {
        if (at !== shard) return gens
        return without === 'generation in deletions' ? 0 : remove(gens, gen)
      })
      const answers = row?.state === 'purging' && row.gen === gen ? add(state.answered, shard) : state.answered
      yield [`deletion of generation ${gen} arrives at shard ${shard}`, { ...state, held: after, answered: answers }]
    }
  }
  const owners = (1 << variant.owners) - 1
  if (row?.state === 'purging' && (state.answered & owners) === owners) {
    yield [
      'collector: every owner has answered',
      { ...state, row: null, fences: add(state.fences, row.gen), answered: 0 },
    ]
  }
}

/** What no row names, wherever it is found: fenced off first, so that an upload that is about to name it sends its bytes again. */
function* sweepSteps(state: State, { generations }: Variant): Generator<[string, State]> {
  for (let gen = 0; gen < generations; gen++) {
    if (state.row?.gen === gen || has(state.deletions, gen) || !state.held.some(gens => has(gens, gen))) continue
    const swept = { fences: add(state.fences, gen), deletions: add(state.deletions, gen) }
    yield [`sweep: nothing names generation ${gen}`, { ...state, ...swept }]
  }
}

/** Copies what the row names from a shard that has it; the copy may arrive long after the row has changed. */
function* repairSteps(state: State, { shards }: Variant): Generator<[string, State]> {
  const { row, held, copying } = state
  if (copying !== null) {
    const [gen, shard] = copying
    const after = held.map((gens, at) => (at === shard ? add(gens, gen) : gens))
    yield [`repair: the copy arrives at shard ${shard}`, { ...state, held: after, copying: null }]
    return
  }
  if (row === null || row.state === 'purging' || !held.some(gens => has(gens, row.gen))) return
  for (let shard = 0; shard < shards; shard++) {
    if (!has(held[shard] ?? 0, row.gen))
      yield [`repair: copies to shard ${shard}`, { ...state, copying: [row.gen, shard] }]
  }
}

const has = (set: number, member: number): boolean => (set & (1 << member)) !== 0
const add = (set: number, member: number): number => set | (1 << member)
const remove = (set: number, member: number): number => set & ~(1 << member)
const count = (set: number): number => {
  let rest = set
  let members = 0
  for (; rest !== 0; rest &= rest - 1) members++
  return members
}
