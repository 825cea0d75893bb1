/** Whose disk this is, and whether it has all that it should: what the marker file says, and the rules for changing it. */
import { randomBytes } from 'node:crypto'
import { HoldfastError } from '../shared/errors.ts'
import { KeyLock } from './key-lock.ts'
import { markerProblem, readMarker, type ShardFormat, type ShardMarker, writeMarker } from './shard-marker.ts'
import { makeFolders, type StoreFs } from './store-fs.ts'

/** What an empty disk, or one on which setting up was cut off at its first step, may contain. */
const emptyDiskEntries = ['lost+found', 'holdfast.json.new']

export class ShardIdentity {
  readonly #fs: StoreFs
  readonly #folder: string
  /** The marker is read, changed and written by one at a time. */
  readonly #changes = new KeyLock()
  #expected: ShardMarker | undefined
  #disk: string | undefined
  #recovering: string | undefined

  constructor(fs: StoreFs, folder: string) {
    this.#fs = fs
    this.#folder = folder
  }

  /** Which disk this is: a new one in the place of a broken one has another. */
  get disk(): string | undefined {
    return this.#disk
  }

  /**
   * The disk was set up empty, or has lost a reference, and nobody has found yet that it has all that its partitions should have. Another
   * one for each time that this began.
   */
  get recovering(): string | undefined {
    return this.#recovering
  }

  get expected(): ShardMarker | undefined {
    return this.#expected
  }

  /** Makes sure that the folder is this shard's; `mayCreate` lets an empty one become it. SHARD_FAILED. */
  async claim(expected: ShardMarker, mayCreate: boolean): Promise<void> {
    this.#expected = expected
    const [fs, folder] = [this.#fs, this.#folder]
    if (mayCreate) await makeFolders(fs, folder)
    const found = await readMarker(fs, folder)
    const entries = found === undefined ? (await fs.list(folder)).filter(name => !emptyDiskEntries.includes(name)) : []
    if (found === undefined && mayCreate && entries.length === 0) {
      this.#recovering = randomName()
      this.#disk = await this.#name({ ...expected, recovering: this.#recovering })
      return
    }
    const problem = markerProblem(found, expected)
    if (problem !== undefined) throw new HoldfastError('SHARD_FAILED', problem, { folder })
    this.#recovering = found?.recovering
    // Markers of the first release name no disk, and one that cannot be written to stays without.
    this.#disk = found?.disk ?? (await this.#name(found ?? expected).catch(() => undefined))
  }

  /** What is wrong with the marker on disk now. */
  async problem(): Promise<string | undefined> {
    if (this.#expected === undefined) return undefined
    try {
      return markerProblem(await readMarker(this.#fs, this.#folder), this.#expected)
    } catch (error) {
      return error instanceof Error ? error.message : 'marker is unreadable'
    }
  }

  /** Notes durably that releases that do not know `format` must refuse the shard. Rejects with SHARD_FAILED, or the disk's error. */
  raiseFormat(format: ShardFormat): Promise<void> {
    return this.#change(found => (found.format >= format ? found : { ...found, format }))
  }

  /** From this call on something may be missing; resolves when that is noted durably. Rejects as `raiseFormat`. */
  lostSomething(): Promise<void> {
    const recovering = (this.#recovering = randomName())
    return this.#change(found => ({ ...found, recovering }))
  }

  /** Notes durably that nothing is missing any more. CONFLICT: something was lost since. Rejects as `raiseFormat`. */
  async recovered(recovering: string): Promise<void> {
    if (recovering !== this.#recovering) throw new HoldfastError('CONFLICT', 'something was lost since')
    await this.#change(({ recovering: _, ...found }) => found)
    if (recovering === this.#recovering) this.#recovering = undefined
  }

  #change(change: (found: ShardMarker) => ShardMarker): Promise<void> {
    return this.#changes.run('', async () => {
      const found = await readMarker(this.#fs, this.#folder)
      if (found === undefined)
        throw new HoldfastError('SHARD_FAILED', 'marker file is missing', { folder: this.#folder })
      const changed = change(found)
      if (changed !== found) await writeMarker(this.#fs, this.#folder, changed)
    })
  }

  async #name(marker: ShardMarker): Promise<string> {
    const disk = randomName()
    await writeMarker(this.#fs, this.#folder, { ...marker, disk })
    return disk
  }
}

function randomName(): string {
  return randomBytes(8).toString('hex')
}
