/**
 * Copies that were found corrupt, on their way out: a record of the drop, then the bad bytes go to quarantine. From the moment one is
 * found it is never served, also while nothing can be written (I5).
 */
import { type BlobLocation, blobKey, decodeBlobLocation } from './index.ts'
import { parseBlobName } from './blob-name.ts'
import { newRecord } from './log.ts'
import type { Shard } from './shard.ts'
import { readFully } from './store-fs.ts'

export interface Finding {
  /** Of the copy that was read; the name may have another one by now. */
  readonly location: BlobLocation
  readonly why: string
}

export class CorruptCopies {
  readonly #shard: Shard
  /** Name -> what is wrong with it. Gone from here when the drop is in the log, or a good copy is. */
  readonly #found = new Map<string, Finding>()
  readonly #moving = new Map<string, Promise<void>>()

  constructor(shard: Shard) {
    this.#shard = shard
  }

  has(name: string): boolean {
    return this.#found.size > 0 && this.#found.has(name)
  }

  /** The index says what is true of this copy. */
  forget(name: string): void {
    this.#found.delete(name)
  }

  /** Resolves when the copy has moved, or cannot for now; whoever calls while it moves waits for the same. Never rejects. */
  quarantine(name: string, finding: Finding): Promise<void> {
    const moving = this.#moving.get(name)
    if (moving !== undefined) return moving
    const { log } = this.#shard
    if (!this.#found.has(name)) {
      this.#shard.damagedCount += 1
      log.error({ blob: name, why: finding.why }, 'blob found corrupt')
    }
    this.#found.set(name, finding)
    const move = this.#shard
      .exclusively(name, () => this.#move(name, finding))
      .catch((error: unknown) => {
        log.warn({ err: error, blob: name }, 'quarantine is not durable yet; the copy is kept back in memory')
      })
      .finally(() => this.#moving.delete(name))
    this.#moving.set(name, move)
    return move
  }

  /** Tries again what could not be written then. */
  async retry(): Promise<void> {
    for (const [name, finding] of this.#found) await this.quarantine(name, finding)
  }

  /** Resolves when this copy is not being moved. */
  async settled(name: string): Promise<void> {
    if (this.#moving.size > 0) await this.#moving.get(name)
  }

  async allSettled(): Promise<void> {
    await Promise.all(this.#moving.values())
  }

  async #move(name: string, { location, why }: Finding): Promise<void> {
    const shard = this.#shard
    const time = shard.clock.now()
    const value = await shard.lookUp(index => index.get(blobKey(name)))
    const present = value === undefined ? undefined : decodeBlobLocation(value)
    if (present !== undefined && !isSameCopy(present, location)) {
      shard.log.info({ blob: name }, 'another copy has come in the place of the corrupt one')
      this.#found.delete(name)
      return
    }
    // Not there: dropped meanwhile, or by an attempt that was cut off behind its record. Nobody lost it, then.
    if (value !== undefined) {
      await this.#keepEvidence(name, value, new Date(time))
      await shard.append(newRecord({ kind: 'drop', ...parseBlobName(name), reason: 'corrupt', time, why }))
    }
    shard.openFiles.forget(shard.files.blob(name))
    await shard.files.quarantine(name, new Date(time))
    this.#found.delete(name)
  }

  /** What a corrupt small blob looks like is saved from the log, which will be compacted. */
  async #keepEvidence(name: string, value: Buffer, time: Date): Promise<void> {
    const { openFiles, files, log } = this.#shard
    const location = decodeBlobLocation(value)
    if (location?.kind !== 'inline') return
    try {
      const open = await openFiles.open(this.#shard.segmentPath(location.segment))
      try {
        const bytes = Buffer.alloc(location.bytes)
        await readFully(open.file, bytes, location.offset)
        await files.keepInQuarantine(name, bytes, time)
      } finally {
        openFiles.release(open)
      }
    } catch (error) {
      log.warn({ err: error, blob: name }, 'the bytes of a corrupt blob could not be kept')
    }
  }
}

/** A copy that only moved within the log, by compaction, is the same one. */
function isSameCopy(one: BlobLocation, other: BlobLocation): boolean {
  return one.kind === other.kind && one.time === other.time && one.crc === other.crc
}
