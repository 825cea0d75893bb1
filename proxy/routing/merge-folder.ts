/** What several shards say of a folder, put together: the newest reference of each artifact, and of each folder what speaks for it. Pure. */
import type { ShardId } from '../../shared/ids.ts'
import { behind, childOf, inKeyOrder } from '../../shared/key-order.ts'
import type { FolderAnswer, FolderReference } from '../../shared/wire.ts'

/** A path in a folder that some shard holds for live: the highest version that was told, and who told which. */
export interface Witness {
  readonly key: string
  readonly version: number
  readonly words: ReadonlyMap<ShardId, number>
}

export type FolderChild =
  | { readonly kind: 'artifact'; readonly key: string; readonly newest: FolderReference }
  /** `key` ends in '/'. Without witnesses nothing in it may be live. */
  | { readonly kind: 'folder'; readonly key: string; readonly witnesses: readonly Witness[] }

type Known =
  | { readonly kind: 'artifact'; newest: FolderReference }
  | {
      readonly kind: 'folder'
      readonly witnesses: Map<string, { version: number; readonly words: Map<ShardId, number> }>
    }

/** A folder without trustworthy witness is looked into, so more of them would only take memory. */
const witnessesMax = 4

export class FolderMerge {
  readonly #folder: string
  readonly #deep: boolean
  readonly #keep: number
  readonly #children = new Map<string, Known>()
  #next: string | undefined

  /** `keep`: children that are kept at least, if there are so many. */
  constructor(folder: string, keep: number, deep = false) {
    this.#folder = folder
    this.#keep = keep
    this.#deep = deep
  }

  add(shard: ShardId, { references, undecided, next }: FolderAnswer): void {
    if (next !== undefined) this.#endAt(next)
    for (const reference of references) {
      const child = this.#deep ? reference.key : childOf(this.#folder, reference.key)
      if (child === reference.key) this.#addArtifact(child, reference)
      else this.#addWitness(child, shard, reference)
    }
    for (const child of undecided) this.#folderAt(child)
    if (this.#children.size > 2 * this.#keep) this.#cut()
  }

  /** Children before this key are all there is, if the shards that answered are enough; undefined: all of the folder's. */
  get next(): string | undefined {
    return this.#next
  }

  /** In the order of their keys, deleted artifacts among them. */
  children(): FolderChild[] {
    return this.#keys().map((key): FolderChild => {
      const known = this.#children.get(key) as Known
      if (known.kind === 'artifact') return { kind: 'artifact', key, newest: known.newest }
      // Nobody can know better than the shard that told the highest version, and the one whom most agree with is looked at first.
      const witnesses = [...known.witnesses].map(([path, { version, words }]) => ({ key: path, version, words }))
      return { kind: 'folder', key, witnesses: witnesses.sort((a, b) => b.words.size - a.words.size) }
    })
  }

  #addArtifact(child: string, reference: FolderReference): void {
    const known = this.#children.get(child)
    if (known?.kind !== 'artifact') this.#children.set(child, { kind: 'artifact', newest: reference })
    else if (reference.version > known.newest.version) known.newest = reference
  }

  #addWitness(child: string, shard: ShardId, { key, version }: FolderReference): void {
    const witnesses = this.#folderAt(child)
    const witness = witnesses.get(key)
    if (witness !== undefined) {
      witness.version = Math.max(witness.version, version)
      witness.words.set(shard, version)
    } else if (witnesses.size < witnessesMax) witnesses.set(key, { version, words: new Map([[shard, version]]) })
  }

  #folderAt(child: string): Map<string, { version: number; readonly words: Map<ShardId, number> }> {
    const known = this.#children.get(child)
    if (known?.kind === 'folder') return known.witnesses
    const witnesses = new Map<string, { version: number; readonly words: Map<ShardId, number> }>()
    this.#children.set(child, { kind: 'folder', witnesses })
    return witnesses
  }

  #endAt(key: string): void {
    if (this.#next === undefined || inKeyOrder(key, this.#next) < 0) this.#next = key
  }

  #keys(): string[] {
    const end = this.#next
    const keys = [...this.#children.keys()]
    return (end === undefined ? keys : keys.filter(key => inKeyOrder(key, end) < 0)).sort(inKeyOrder)
  }

  /** What is too much belongs to a later page. */
  #cut(): void {
    const keys = this.#keys()
    const last = keys[this.#keep - 1]
    if (last !== undefined && keys.length > this.#keep) this.#endAt(behind(last))
    const end = this.#next
    if (end === undefined) return
    for (const key of this.#children.keys()) if (inKeyOrder(key, end) >= 0) this.#children.delete(key)
  }
}
