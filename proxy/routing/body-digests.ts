import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { Digest } from '../../shared/ids.ts'
import { BlockCrcs } from '../../shared/record.ts'

/** What is known of a body that has been read whole. */
export interface BodyFacts {
  readonly digest: Digest
  readonly bytes: number
  readonly md5: string
  readonly sha1: string
  /** The block CRC table, for the shards to compare with theirs. */
  readonly blockCrcs: Buffer
  /** CRC-32 of the table. */
  readonly crc: number
}

/** Everything that is computed over a body on its way to the shards, once for all replicas and over the same buffers. */
export class BodyDigests {
  readonly #sha256 = createHash('sha256')
  readonly #sha1 = createHash('sha1')
  readonly #md5 = createHash('md5')
  readonly #crcs = new BlockCrcs()
  bytes = 0

  update(chunk: Buffer): void {
    this.bytes += chunk.length
    this.#sha256.update(chunk)
    this.#sha1.update(chunk)
    this.#md5.update(chunk)
    this.#crcs.update(chunk)
  }

  /** Call once, at the end. */
  finish(): BodyFacts {
    const blockCrcs = this.#crcs.finish()
    return {
      digest: this.#sha256.digest('hex') as Digest,
      bytes: this.bytes,
      md5: this.#md5.digest('hex'),
      sha1: this.#sha1.digest('hex'),
      blockCrcs,
      crc: crc32(blockCrcs),
    }
  }
}
