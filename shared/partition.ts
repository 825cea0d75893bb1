import { hash } from 'node:crypto'

/** Fixed for the life of a cluster: 4,096 partitions keep 120 shards within 1 % of their weight and the table at 24 KiB. */
export const partitionBits = 12
export const partitionCount = 4096

const namePattern = /^[0-9a-f]{3}$/

/**
 * The partition of an artifact's path: the first 12 bits of sha256(`repository/path`). The path is the normalised
 * one; two spellings of a path would be two partitions.
 */
export function partitionOf(repository: string, path: string): number {
  return Number.parseInt(hash('sha256', `${repository}/${path}`).slice(0, 3), 16)
}

/** The partition's name in folders, URLs and logs: three hex digits, `0a3`. */
export function partitionName(partition: number): string {
  return partition.toString(16).padStart(3, '0')
}

/** The partition that `partitionName` named so, or undefined when the text names none. */
export function parsePartition(text: string): number | undefined {
  return namePattern.test(text) ? Number.parseInt(text, 16) : undefined
}
