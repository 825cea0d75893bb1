/** How a blob is called within its shard, in file names, URLs and keys: `<ppp>/<digest>.<generation>` (I40). */
import type { Digest, Generation } from '../shared/ids.ts'
import { partitionName } from '../shared/partition.ts'
import type { BlobKey } from '../shared/wire.ts'

const fileNamePattern = /^[0-9a-f]{64}\.[0-9a-z]{12}$/
const namePattern = /^[0-9a-f]{3}\/[0-9a-f]{64}\.[0-9a-z]{12}$/

/** Of every blob name. */
export const blobNameBytes = 3 + 1 + 64 + 1 + 12

export function blobName({ partition, digest, generation }: BlobKey): string {
  return `${partitionName(partition)}/${digest}.${generation}`
}

export function isBlobName(text: string): boolean {
  return namePattern.test(text)
}

/** Could this file, in the folder of a partition, be a blob's? */
export function isBlobFileName(text: string): boolean {
  return fileNamePattern.test(text)
}

/** Takes a name apart that was checked before. */
export function parseBlobName(name: string): BlobKey {
  return {
    partition: Number.parseInt(name.slice(0, 3), 16),
    digest: name.slice(4, 68) as Digest,
    generation: name.slice(69) as Generation,
  }
}
