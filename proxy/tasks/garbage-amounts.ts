/** What garbage collection counts, and the brake that goes by it. Pure. */
import { HoldfastError } from '../../shared/errors.ts'
import type { BlobVerdict, JudgedLoser } from '../metadata/collection-types.ts'

/** More than this share of all blobs or bytes at once is more often an accident than garbage. */
export const brakeShare = 0.05
/** Nobody minds this little, whatever share it is. */
const brakeBlobsMin = 1_000
const brakeBytesMin = 50 * 1024 ** 3

export interface Amount {
  readonly blobs: number
  readonly bytes: number
}
export const nothing: Amount = { blobs: 0, bytes: 0 }

export type Found = Readonly<Partial<Record<BlobVerdict, Amount>>>

export function plus(amount: Amount | undefined, bytes: number): Amount {
  return { blobs: (amount?.blobs ?? 0) + 1, bytes: (amount?.bytes ?? 0) + bytes }
}

/** `found` and this page; what is gone is no blob. */
export function counting(found: Found, page: readonly Pick<JudgedLoser, 'verdict' | 'bytes'>[]): Found {
  const sum: Partial<Record<BlobVerdict, Amount>> = { ...found }
  for (const { verdict, bytes } of page) if (verdict !== 'gone') sum[verdict] = plus(sum[verdict], bytes)
  return sum
}

export function total(found: Found): Amount {
  const amounts = Object.values(found)
  return {
    blobs: amounts.reduce((sum, { blobs }) => sum + blobs, 0),
    bytes: amounts.reduce((sum, { bytes }) => sum + bytes, 0),
  }
}

export function isMuch(unused: Amount, all: Amount): boolean {
  const isAbove = (part: number, whole: number, least: number): boolean => part > Math.max(least, whole * brakeShare)
  return isAbove(unused.blobs, all.blobs, brakeBlobsMin) || isAbove(unused.bytes, all.bytes, brakeBytesMin)
}

export function tooMuch(unused: Amount, all: Amount): HoldfastError {
  return new HoldfastError(
    'CONFLICT',
    `${unused.blobs} of ${all.blobs} blobs (${unused.bytes} of ${all.bytes} bytes) are unused, more than ${brakeShare * 100} %: ` +
      'look at the plan, then run it with force',
    { unused, all },
  )
}
