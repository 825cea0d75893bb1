/** One partition moved between shards that are maps in memory: names in pages, references in bulk, the newest version of each. */
import fc from 'fast-check'
import t from 'tap'
import { unhindered } from '../../../proxy/tasks/calm.ts'
import { MoveCalls, type MoveCallsDeps } from '../../../proxy/tasks/move-calls.ts'
import type { MoveDeps } from '../../../proxy/tasks/move-deps.ts'
import { movePartition } from '../../../proxy/tasks/move-partition.ts'
import type { Copy } from '../../../proxy/tasks/unnamed-blobs.ts'
import { inLanes, LanePace } from '../../../proxy/tasks/move-queue.ts'
import { entriesPage, namesInStep, type NamesPage } from '../../../proxy/tasks/shard-contents.ts'
import type { ShardSummary } from '../../../proxy/tasks/compare-sets.ts'
import { PlacementView } from '../../../shared/cluster-map.ts'
import { inKeyOrder } from '../../../shared/key-order.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { Digest, Generation, ShardId } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import { planChanges } from '../../../shared/placement/changes.ts'
import { movesOf } from '../../../shared/placement/transition.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { SetDigest } from '../../../shared/set-digest.ts'
import type {
  DropAnswer,
  DropRequest,
  EntriesAnswer,
  EntriesRequest,
  EntryListing,
  ReferenceListing,
  ReferencesAnswer,
  ReferencesRequest,
  TransferAnswer,
  TransferRequest,
} from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

const seed = Date.now() & 0x7fffffff
t.comment(`seed ${seed}`)
const signal = new AbortController().signal
const byBytes = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b))

/** Shards that answer as storage nodes do. */
class MemoryShards {
  readonly blobs = new Map<ShardId, Map<string, number>>()
  readonly references = new Map<ShardId, Map<string, ReferenceRecord>>()
  readonly damaged = new Set<string>()
  /** `<digest>.<generation>` that no row has. */
  readonly unnamed = new Set<string>()
  readonly purging = new Set<string>()
  /** Of what is on each shard. */
  readonly heldMs = new Map<ShardId, number>()
  readonly counts = { entries: 0, names: 0, pages: 0, singles: 0, pulled: 0, judged: 0 }
  /** Of the release before: it is asked about one partition at a time. */
  isOld = false
  onTransfer: (request: TransferRequest) => void = () => {}
  requests = 0
  /** So many are answered, and nothing is there afterwards. */
  forgottenTransfers = 0

  blobsOf(shard: ShardId): Map<string, number> {
    return this.blobs.get(shard) ?? this.blobs.set(shard, new Map()).get(shard)!
  }

  referencesOf(shard: ShardId): Map<string, ReferenceRecord> {
    return this.references.get(shard) ?? this.references.set(shard, new Map()).get(shard)!
  }

  append(shard: ShardId, record: ReferenceRecord): void {
    const own = this.referencesOf(shard)
    const key = `${record.repository}/${record.path}`
    if ((own.get(key)?.version ?? 0) < record.version) own.set(key, record)
  }

  summaryOf(shard: ShardId, partition: number): ShardSummary {
    const [blobs, references] = [new SetDigest(), new SetDigest()]
    for (const key of this.blobsOf(shard).keys()) blobs.add(key)
    for (const [key, { version }] of this.referencesOf(shard)) references.add(`${key}@${version}`)
    return new Map([[partition, { partition, blobs: blobs.finish(), references: references.finish() }]])
  }

  ofShard(shard: ShardId) {
    const requestJson = async <Answer>(method: string, path: string, body?: unknown): Promise<Answer> => {
      await Promise.resolve()
      this.requests += 1
      const { pathname, searchParams } = new URL(path, 'http://shard')
      const kind = pathname.split('/')[2]
      if (method === 'POST' && (kind === 'entries' || kind === 'references')) {
        if (this.isOld) throw new HoldfastError('METHOD_NOT_ALLOWED', 'no such route')
        return (kind === 'entries' ? this.#someEntries(shard, body as EntriesRequest) : this.#someRecords(shard, body as ReferencesRequest)) as Answer // prettier-ignore
      }
      if (kind === 'entries') return this.#entries(shard, searchParams) as Answer
      if (kind === 'references') return this.#read(shard, searchParams) as Answer
      if (kind === 'drop') return this.#drop(shard, body as DropRequest) as Answer
      if (kind === 'transfer') return this.#transfer(body as TransferRequest) as Answer
      throw new Error(`nobody asks for ${path}`)
    }
    return { requestJson }
  }

  #someEntries(shard: ShardId, { lists, limit }: EntriesRequest): EntriesAnswer {
    return { lists: lists.map(({ of }) => this.#entries(shard, new URLSearchParams({ of, limit: String(limit) }))) }
  }

  #someRecords(shard: ShardId, { references }: ReferencesRequest): ReferencesAnswer {
    const find = (key: string): ReferenceRecord | null => {
      const record = this.damaged.has(key) ? undefined : this.referencesOf(shard).get(key)
      if (record !== undefined) this.counts.singles += 1
      return record ?? null
    }
    return { references: references.map(({ key }) => find(key)) }
  }

  #entries(shard: ShardId, query: URLSearchParams): EntryListing {
    const isBlobs = query.get('of') === 'blobs'
    const all = isBlobs ? [...this.blobsOf(shard).keys()] : [...this.referencesOf(shard).keys()]
    const { page, next } = pageOf(all, query)
    this.counts.entries += 1
    this.counts.names += page.length
    const entries = page.map(key =>
      isBlobs
        ? { key, bytes: this.blobsOf(shard).get(key) ?? 0, time: 0, heldMs: this.heldMs.get(shard) ?? 0 }
        : { key, version: this.referencesOf(shard).get(key)?.version ?? 0 },
    )
    return { entries, ...next }
  }

  #read(shard: ShardId, query: URLSearchParams): ReferenceListing | ReferenceRecord {
    const own = this.referencesOf(shard)
    const key = query.get('key')
    if (key === null) {
      this.counts.pages += 1
      const { page, next } = pageOf([...own.keys()], query)
      const records = page.filter(one => !this.damaged.has(one)).map(one => own.get(one)!)
      return { references: records, ...next }
    }
    this.counts.singles += 1
    const record = own.get(key)
    if (record === undefined) throw new HoldfastError('REFERENCE_NOT_FOUND', 'none')
    if (this.damaged.has(key)) throw new HoldfastError('RECORD_DAMAGED', 'damaged')
    return record
  }

  judge<One extends Copy>(copies: readonly One[]): { unnamed: One[]; purging: One[] } {
    this.counts.judged += copies.length
    const isIn =
      (set: ReadonlySet<string>) =>
      ({ digest, generation }: One): boolean =>
        set.has(`${digest}.${generation}`)
    return { unnamed: copies.filter(isIn(this.unnamed)), purging: copies.filter(isIn(this.purging)) }
  }

  #drop(shard: ShardId, { reason, blobs }: DropRequest): DropAnswer {
    if (reason !== 'deleted') throw new Error(reason)
    return { results: blobs.map(({ digest, generation }) => (this.blobsOf(shard).delete(`${digest}.${generation}`) ? 'dropped' : 'missing')) } // prettier-ignore
  }

  #transfer(request: TransferRequest): TransferAnswer {
    this.onTransfer(request)
    this.counts.pulled += request.blobs.length
    const answer: TransferAnswer = { results: request.blobs.map(() => 'copied') }
    if (this.forgottenTransfers-- > 0) return answer
    for (const { digest, generation, bytes } of request.blobs) this.blobsOf(request.shard).set(`${digest}.${generation}`, bytes) // prettier-ignore
    return answer
  }
}

function pageOf(keys: string[], query: URLSearchParams): { page: string[]; next: { next?: string } } {
  const after = query.get('after')
  const limit = Number(query.get('limit'))
  const behind = after === null ? keys : keys.filter(key => inKeyOrder(key, after) > 0)
  const page = behind.sort(inKeyOrder).slice(0, limit)
  return { page, next: page.length < limit ? {} : { next: page.at(-1)! } }
}

const map = buildClusterMap(topologyOf(evenSpec(4, 3)))
const { next } = planChanges(map, [{ op: 'weight', shard: map.shards[0]!.id, weight: 0 }])

/** A partition of which one of three owners changes. */
function moving() {
  const view = new PlacementView(next)
  const { partition } = movesOf(next)[0]!
  const from = view.previousOwners(partition)!
  const to = view.owners(partition)
  const shards = new MemoryShards()
  const turns: number[] = []
  let references = 0
  const onCopied: MoveDeps['onCopied'] = async copied => Promise.resolve(void (references += copied.references))
  const callsDeps: MoveCallsDeps = {
    clients: shards as unknown as MoveCallsDeps['clients'],
    references: {
      appendTo: async (record, targets) => {
        await Promise.resolve()
        for (const shard of targets) shards.append(shard, record)
        return new Set(targets)
      },
    },
    fence: 'primary:1',
    calm: unhindered,
    term: { signal },
    unwanted: async copies => Promise.resolve(shards.judge(copies)),
    turn: async (_shard, bytes) => Promise.resolve(void turns.push(bytes)),
    onCopied,
  }
  const deps: MoveDeps = { calls: new MoveCalls(callsDeps), view: () => view, onCopied }
  const summaries = () => new Map(view.allOwners(partition).map(shard => [shard, shards.summaryOf(shard, partition)]))
  const moveAfter = (said: ReadonlyMap<ShardId, ShardSummary>) => movePartition(deps, partition, said)
  const move = () => moveAfter(summaries())
  return { shards, deps, callsDeps, partition, from, to, added: to.find(shard => !from.includes(shard))!, turns, copiedReferences: () => references, summaries, move, moveAfter } // prettier-ignore
}

const blobKeyAt = (index: number): string =>
  `${index.toString(16).padStart(8, '0').repeat(8) as Digest}.${'0'.repeat(26) as Generation}`

function recordAt(partition: number, path: string, version: number, op: 'put' | 'delete' = 'put'): ReferenceRecord {
  return { kind: 'reference', partition, repository: 'raw', path, version, op, incarnation: 'one', time: 1, user: 'u' }
}

t.test('names compare as a listing orders them', async t => {
  const text = fc.string({ unit: 'binary', maxLength: 4 })
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(text, text, (a, b) => Math.sign(inKeyOrder(a, b)) === Math.sign(byBytes(a, b))),
      { seed, numRuns: 5_000 },
    ),
  )
  t.ok(inKeyOrder('\u{10000}', '\uffff') > 0, 'strings of JavaScript compare the other way')
})

t.test('every name of every shard is in exactly one stretch, with those of the other shards beside it', async t => {
  // The last two stand the other way round in the order of JavaScript.
  const unit = fc.constantFrom('a', 'b', '\u{e9}', '\uffff', '\u{10000}')
  const names = fc.uniqueArray(fc.string({ unit, minLength: 1, maxLength: 3 }), { maxLength: 40 })
  await t.resolves(fc.assert(
    fc.asyncProperty(fc.array(names, { minLength: 1, maxLength: 4 }), fc.integer({ min: 1, max: 7 }), async (sets, limit) => {
      const shards = new MemoryShards()
      const ids = sets.map((_, index) => `s-${index}` as ShardId)
      for (const [index, set] of sets.entries()) for (const key of set) shards.referencesOf(ids[index]!).set(key, recordAt(1, key, 1)) // prettier-ignore
      const seen = new Map<string, number>()
      const found = ids.map(() => new Set<string>())
      let stretches = 0
      const namesOf = (shard: ShardId, page: NamesPage) => entriesPage({ clients: shards }, shard, page)
      for await (const { held } of namesInStep(namesOf, ids, { partition: 1, of: 'references', limit })) {
        for (const [index, id] of ids.entries()) {
          if (held.get(id)!.size > limit) return false
          for (const key of held.get(id)!.keys()) {
            if ((seen.get(key) ?? stretches) !== stretches) return false
            seen.set(key, stretches)
            found[index]!.add(key)
          }
        }
        stretches += 1
      }
      return sets.every((set, index) => set.length === found[index]!.size)
    }),
    { seed, numRuns: 300 },
  )) // prettier-ignore
})

t.test('blobs are copied page by page: the first ones before the rest was even listed', async t => {
  const { shards, from, added, turns, move } = moving()
  const count = 12_000
  for (let index = 0; index < count; index += 1) for (const shard of from) shards.blobsOf(shard).set(blobKeyAt(index), 1_000) // prettier-ignore
  // A new owner that has some of them already, and another that lost one.
  for (let index = 0; index < count; index += 3) shards.blobsOf(added).set(blobKeyAt(index), 1_000)
  let listed = 0
  shards.onTransfer = () => (listed ||= shards.counts.names)
  t.equal(await move(), undefined)
  t.equal(shards.blobsOf(added).size, count)
  t.equal(shards.counts.pulled, count - count / 3, 'what was there is not copied again')
  t.ok(listed > 0 && listed <= 4 * 1_000, `${listed} names in memory`)
  t.equal(turns.reduce((sum, bytes) => sum + bytes, 0), shards.counts.pulled * 1_000) // prettier-ignore
})

t.test('I36: what nothing names is dropped where it is seen, and what is being purged is left where it is', async t => {
  const { shards, from, to, added, move } = moving()
  const [kept, leftover, dying, everywhere] = [0, 1, 2, 3].map(blobKeyAt) as [string, string, string, string]
  for (const shard of from) shards.blobsOf(shard).set(kept, 10)
  // One owner still has it: the others, and those to come, would get it from there.
  shards.blobsOf(from[0]!).set(leftover, 10).set(dying, 10)
  for (const shard of [...from, added]) shards.blobsOf(shard).set(everywhere, 10)
  shards.unnamed.add(leftover).add(everywhere)
  shards.purging.add(dying)
  t.equal(await move(), undefined)
  for (const shard of to) t.ok(shards.blobsOf(shard).has(kept))
  t.same([...from, added].filter(shard => shards.blobsOf(shard).has(leftover)), [], 'gone') // prettier-ignore
  t.same(
    [...from, added].filter(shard => shards.blobsOf(shard).has(dying)),
    [from[0]],
    'for the collector to drop',
  )
  t.equal(shards.counts.judged, 3 + 1, 'PostgreSQL is not asked for what need not be copied')
})

t.test('I29: how old a copy is says the shard that has had it longest, new owners among them', async t => {
  const { shards, deps, callsDeps, partition, from, to, added } = moving()
  const lacking = to.find(shard => shard !== added)!
  for (const shard of [...from, added]) if (shard !== lacking) shards.blobsOf(shard).set(blobKeyAt(0), 10)
  for (const [index, shard] of [...from, added].entries()) shards.heldMs.set(shard, 5 + index)
  const told: (number | undefined)[] = []
  const unwanted: MoveCallsDeps['unwanted'] = async copies => {
    told.push(...copies.map(({ heldMs }) => heldMs))
    return Promise.resolve(shards.judge(copies))
  }
  const summaries = new Map([...from, added].map(shard => [shard, shards.summaryOf(shard, partition)]))
  t.equal(
    await movePartition({ ...deps, calls: new MoveCalls({ ...callsDeps, unwanted }) }, partition, summaries),
    undefined,
  )
  t.same(told, [5 + from.length])
  t.ok(shards.blobsOf(lacking).has(blobKeyAt(0)))
})

t.test('I20: references come in pages, deletes among them, each in its newest version', async t => {
  const { shards, partition, from, to, added, copiedReferences, move } = moving()
  const count = 5_000
  for (let index = 0; index < count; index += 1) {
    const path = `p/${index}`
    const record = recordAt(partition, path, 10, index % 5 === 0 ? 'delete' : 'put')
    for (const shard of from) shards.append(shard, record)
  }
  // One old owner alone has newer words; the new one has newer ones than all.
  shards.append(from[2]!, recordAt(partition, 'p/7', 11, 'delete'))
  shards.append(added, recordAt(partition, 'p/8', 12))
  t.equal(await move(), undefined)
  for (const shard of to) {
    const own = shards.referencesOf(shard)
    t.equal(own.size, count)
    t.match(own.get('raw/p/7'), { version: 11, op: 'delete' })
    if (shard === added) t.match(own.get('raw/p/8'), { version: 12 })
    t.equal([...own.values()].filter(({ op }) => op === 'delete').length, count / 5 + 1)
  }
  t.ok(shards.counts.pages <= 8, `${shards.counts.pages} pages`)
  t.ok(shards.counts.singles <= 2, `${shards.counts.singles} by themselves`)
  t.ok(copiedReferences() >= count - 1)

  const { pages } = shards.counts
  for (const shard of from) shards.append(shard, recordAt(partition, 'p/50-late', 20))
  t.equal(await move(), undefined)
  t.equal(shards.counts.pages, pages, 'a few are not worth a page')
  t.match(shards.referencesOf(added).get('raw/p/50-late'), { version: 20 })
})

t.test('I20: whatever the old owners hold, the new ones end with no older version of anything', async t => {
  const version = fc.integer({ min: 0, max: 4 })
  const versions = fc.tuple(version, version, version, version)
  await t.resolves(
    fc.assert(
      fc.asyncProperty(fc.array(versions, { maxLength: 30 }), async rows => {
        const { shards, partition, from, to, added, move } = moving()
        const all = [...from, added]
        for (const [index, row] of rows.entries()) {
          for (const [at, shard] of all.entries()) {
            const own = row[at] ?? 0
            if (own > 0) shards.append(shard, recordAt(partition, `p/${index}`, own, own % 2 === 0 ? 'delete' : 'put'))
          }
        }
        if ((await move()) !== undefined) return false
        return rows.every((row, index) => {
          const newest = Math.max(row[0], row[1], row[2])
          return to.every(shard => {
            const had = row[all.indexOf(shard)] ?? 0
            const found = shards.referencesOf(shard).get(`raw/p/${index}`)
            return (found?.version ?? 0) === Math.max(newest, had) && (found === undefined || (found.op === 'delete') === (found.version % 2 === 0)) // prettier-ignore
          })
        })
      }),
      { seed, numRuns: 200 },
    ),
  )
})

t.test('I20: of blobs, too, the new owners end with all that the old ones hold, in whatever they differ', async t => {
  const has = fc.boolean()
  const rows = fc.oneof(
    fc.array(fc.tuple(has, has, has, has), { maxLength: 30 }),
    // Mostly they do not differ.
    fc.array(has.map(added => [true, true, true, added] as const), { maxLength: 30 }), // prettier-ignore
  )
  await t.resolves(
    fc.assert(
      fc.asyncProperty(rows, async held => {
        const { shards, from, to, added, move } = moving()
        for (const [index, row] of held.entries()) {
          for (const [at, shard] of [...from, added].entries()) {
            if (row[at] === true) shards.blobsOf(shard).set(blobKeyAt(index), 10)
          }
        }
        if ((await move()) !== undefined) return false
        const wanted = held.flatMap((row, index) => (row[0] || row[1] || row[2] ? [blobKeyAt(index)] : []))
        return to.every(shard => wanted.every(key => shards.blobsOf(shard).has(key)))
      }),
      { seed, numRuns: 200 },
    ),
  )
})

t.test('I34: where the old owners hold the same, one speaks for all, unless it has lost something since', async t => {
  const { shards, partition, from, to, added, copiedReferences, summaries, move, moveAfter } = moving()
  for (const shard of from) {
    shards.blobsOf(shard).set(blobKeyAt(0), 10)
    shards.append(shard, recordAt(partition, 'p/0', 1))
  }
  t.equal(await move(), undefined)
  t.equal(shards.counts.entries, 6, 'of both kinds: it, and then it and the new owner')
  t.ok(shards.blobsOf(added).has(blobKeyAt(0)))
  t.equal(copiedReferences(), 1)

  for (const shard of from) {
    shards.blobsOf(shard).set(blobKeyAt(1), 10)
    shards.append(shard, recordAt(partition, 'p/1', 1))
  }
  const said = summaries()
  shards.blobsOf(from[0]!).clear()
  shards.referencesOf(from[0]!).clear()
  t.equal(await moveAfter(said), undefined)
  for (const shard of to) {
    t.ok(shards.blobsOf(shard).has(blobKeyAt(1)))
    t.ok(shards.referencesOf(shard).has('raw/p/1'))
  }
})

t.test('I34: what several partitions ask goes together, and of a node of the release before one by one', async t => {
  for (const isOld of [false, true]) {
    const { shards, deps, partition, from, added, summaries } = moving()
    shards.isOld = isOld
    for (let index = 0; index < 5; index += 1) {
      for (const shard of from) {
        shards.blobsOf(shard).set(blobKeyAt(index), 10)
        shards.append(shard, recordAt(partition, `p/${index}`, 1))
      }
    }
    // The same partition over and over does as well as many: each of these asks what it would if it were alone.
    const said = summaries()
    await Promise.all(Array.from({ length: 20 }, () => movePartition(deps, partition, said)))
    t.equal(shards.blobsOf(added).size, 5)
    t.equal(shards.referencesOf(added).size, 5)
    t.ok(isOld ? shards.requests > 200 : shards.requests < 100, `${shards.requests} requests for 20 partitions`)
  }
})

t.test('I20: what a new owner said it took, and has not, is found by the comparison and brought again', async t => {
  const { shards, callsDeps, partition, from, added, turns, move } = moving()
  for (const shard of from) {
    for (let index = 0; index < 50; index += 1) {
      shards.append(shard, recordAt(partition, `p/${index}`, 1))
      shards.blobsOf(shard).set(blobKeyAt(index), 10)
    }
  }
  const { appendTo } = callsDeps.references
  let sent = 0
  Object.assign(callsDeps.references, {
    appendTo: async (record: ReferenceRecord, targets: readonly ShardId[]) =>
      ++sent <= 20 ? Promise.resolve(new Set(targets)) : appendTo(record, targets),
  })
  shards.forgottenTransfers = 1
  t.equal(await move(), undefined)
  t.equal(shards.referencesOf(added).size, 50)
  t.equal(shards.blobsOf(added).size, 50)
  t.equal(turns.length, 2)
})

t.test('a damaged record keeps none of the others from coming, and its partition is not settled', async t => {
  const { shards, partition, from, added, move } = moving()
  for (let index = 0; index < 300; index += 1) for (const shard of from) shards.append(shard, recordAt(partition, `p/${index}`, 1)) // prettier-ignore
  shards.damaged.add('raw/p/5')
  await t.rejects(move(), { code: 'RECORD_DAMAGED' })
  t.equal(shards.referencesOf(added).size, 299)
  // Its shard has forgotten it; the other owners have it.
  shards.damaged.clear()
  t.equal(await move(), undefined)
  t.equal(shards.referencesOf(added).size, 300)
})

t.test('a target that takes no references is not sent the rest of them', async t => {
  const { shards, callsDeps, partition, from, added, move } = moving()
  for (let index = 0; index < 4_000; index += 1) for (const shard of from) shards.append(shard, recordAt(partition, `p/${index}`, 1)) // prettier-ignore
  let sent = 0
  const refusing = async () => Promise.resolve((sent++, new Set<ShardId>()))
  Object.assign(callsDeps.references, { appendTo: refusing })
  t.same(await move(), { reason: 'new owners did not take references', shards: [added] })
  t.ok(sent > 0 && sent <= 1_000, `${sent} sent`)
})

t.test('no lane takes more than its share, and none that is full keeps another one waiting', async t => {
  const lanes = fc.uniqueArray(fc.constantFrom('a', 'b', 'c', 'd'), { maxLength: 2 })
  await t.resolves(
    fc.assert(
      fc.asyncProperty(
        fc.array(lanes, { maxLength: 60 }),
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 3 }),
        async (items, atOnce, perLane) => {
          const busy: (readonly string[])[] = []
          const done: (readonly string[])[] = []
          let isFair = true
          await inLanes({ atOnce, perLane }, items, one => one, async one => {
          busy.push(one)
          const of = (lane: string): number => busy.filter(other => other.includes(lane)).length
          isFair &&= busy.length <= atOnce && one.every(lane => of(lane) <= perLane)
          for (let ticks = done.length % 3; ticks >= 0; ticks -= 1) await Promise.resolve()
          busy.splice(busy.indexOf(one), 1)
          done.push(one)
        }) // prettier-ignore
          return isFair && done.length === items.length && new Set(done).size === items.length
        },
      ),
      { seed, numRuns: 300 },
    ),
  )
  let release = (): void => {}
  const stuck = new Promise<void>(resolve => (release = resolve))
  const done: string[] = []
  const all = inLanes({ atOnce: 4, perLane: 2 }, ['a1', 'a2', 'a3', 'a4', 'b1', 'b2', 'b3', 'b4'], name => [name.slice(0, 1)], async name => {
    if (name.startsWith('a')) await stuck
    done.push(name)
    if (done.length === 4) release()
  }) // prettier-ignore
  await all
  t.same(done.slice(0, 4), ['b1', 'b2', 'b3', 'b4'])
  t.same(done.slice(4), ['a1', 'a2', 'a3', 'a4'])
})

t.test('after a failure nothing more is begun, and what is under way is waited for', async t => {
  const begun: number[] = []
  let ended = 0
  const work = async (item: number): Promise<void> => {
    begun.push(item)
    if (item === 2) throw new Error('two')
    for (let ticks = 0; ticks < 10; ticks += 1) await Promise.resolve()
    ended += 1
  }
  await t.rejects(
    inLanes({ atOnce: 3, perLane: 3 }, [1, 2, 3, 4, 5, 6], () => ['x'], work),
    { message: 'two' },
  )
  t.same(begun, [1, 2, 3])
  t.equal(ended, 2)
})

t.test('each shard has a rate of its own', async t => {
  let now = 0
  const pace = new LanePace(1_000, () => now)
  t.equal(pace.charge('a', 500), 0, 'whoever comes first does not wait')
  t.equal(pace.charge('a', 1_000), 500)
  t.equal(pace.charge('a', 100), 1_500)
  t.equal(pace.charge('b', 9_000), 0)
  now = 10_000
  t.equal(pace.charge('a', 100), 0, 'time that nobody used is not saved up')
  t.equal(pace.charge('a', 100), 100)
})
