import { HoldfastError } from '../../shared/errors.ts'

/** Deleting more than both of these at once is more often a slip than a wish. */
export interface BrakeLimits {
  /** Share of the artifacts of the repository, from 0 to 1. */
  readonly share: number
  readonly artifacts: number
}

/**
 * How far the artifacts of the repository have to be counted, to know whether `doomed` is more than the share: what comes beyond changes
 * nothing. Pure, as is `checkBrake`.
 */
export function countNeeded(doomed: number, { share }: BrakeLimits): number {
  return share <= 0 ? doomed : Math.ceil(doomed / share)
}

/** `confirmed`: as many may go. Throws CONFLICT with the number to confirm. */
export function checkBrake(doomed: number, all: number, limits: BrakeLimits, confirmed = 0): void {
  if (doomed <= limits.artifacts || doomed <= confirmed || doomed <= all * limits.share) return
  throw new HoldfastError(
    'CONFLICT',
    `this would delete ${doomed} of the ${all} artifacts of the repository: to do so, say it again with that number (confirm=${doomed}, on the command line --confirm ${doomed})`,
    { artifacts: doomed, of: all, confirm: doomed },
  )
}
