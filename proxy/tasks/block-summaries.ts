/** What shards hold of the partitions that are to be moved, asked when the first of a block has its turn. */
import { atMost } from '../../shared/at-most.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import type { ShardId } from '../../shared/ids.ts'
import type { ClusterView } from '../routing/cluster-view.ts'
import type { Calm } from './calm.ts'
import type { ShardSummary } from './compare-sets.ts'
import type { Term } from './primary.ts'
import { summariesOf, type ContentsDeps } from './shard-contents.ts'

/** Partitions asked for with one question to each shard, none so far from the first of them: for a shard computes the whole range. */
const blockSize = 128
const spanMax = 512
/** Who answered so long ago may be away by now, and the other way round. */
const ageMsMax = 10_000
const shardsAtOnce = 8

export interface BlockSummariesDeps extends ContentsDeps {
  readonly calm: Pick<Calm, 'step'>
  readonly view: Pick<ClusterView, 'current'>
  /** Monotonic, ms. */
  readonly now: () => number
}

type Answers = ReadonlyMap<ShardId, ShardSummary>

export class BlockSummaries {
  readonly #deps: BlockSummariesDeps
  readonly #term: Pick<Term, 'signal'>
  readonly #blocks = new Map<
    number,
    { readonly partitions: readonly number[]; answers?: Promise<Answers>; at: number }
  >()

  /** `partitions`: all that will be asked for, in their order. */
  constructor(deps: BlockSummariesDeps, partitions: readonly number[], term: Pick<Term, 'signal'>) {
    this.#deps = deps
    this.#term = term
    for (const asked of blocksOf(partitions)) {
      const block = { partitions: asked, at: 0 }
      for (const partition of asked) this.#blocks.set(partition, block)
    }
  }

  /** Of this partition, of those that own it or owned it; who does not answer is left out. Rejects when the run has ended. */
  of(partition: number): Promise<Answers> {
    const block = this.#blocks.get(partition)
    const partitions = block?.partitions ?? [partition]
    if (block === undefined) return this.#ask([partition])
    // All of the block again: where clients slow the moving down, most of it may still be to come.
    if (block.answers === undefined || this.#deps.now() - block.at > ageMsMax) {
      const answers = this.#ask(partitions)
      block.at = this.#deps.now()
      // It counts from when it was told, however long that took.
      answers.then(() => (block.at = this.#deps.now())).catch(() => {}) // told to those who wait
      block.answers = answers
    }
    return block.answers
  }

  async #ask(partitions: readonly number[]): Promise<Answers> {
    const view = this.#deps.view.current()
    const shards = [...new Set(partitions.flatMap(partition => view.allOwners(partition)))]
    const from = partitions[0] ?? 0
    const count = (partitions.at(-1) ?? from) - from + 1
    const found = new Map<ShardId, ShardSummary>()
    await atMost(shardsAtOnce, shards, async shard => {
      try {
        const ask = () => summariesOf(this.#deps, shard, { from, count }, this.#term.signal)
        found.set(shard, await this.#deps.calm.step([shard], this.#term.signal, ask))
      } catch (error) {
        this.#term.signal.throwIfAborted()
        if (!isHoldfastError(error)) throw error
      }
    })
    return found
  }
}

/** In their order, each in one block. */
export function blocksOf(partitions: readonly number[]): readonly (readonly number[])[] {
  const blocks: number[][] = []
  for (const partition of partitions) {
    const block = blocks.at(-1)
    const first = block?.[0] ?? 0
    if (block === undefined || block.length >= blockSize || partition - first >= spanMax) blocks.push([partition])
    else block.push(partition)
  }
  return blocks
}
