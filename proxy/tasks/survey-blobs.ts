/**
 * The look at all blobs: how many there are, which the brake goes by, and whatever is unused without having lost a name that was noted.
 * Each is read once. At a pace: for as long as a page took nothing is asked, so half a core of PostgreSQL is the most it takes.
 */
import type { Digest } from '../../shared/ids.ts'
import type { CollectionAges, CollectionStore } from '../metadata/collection-types.ts'
import { counting, type Found } from './garbage-amounts.ts'

/** The first page too, so that a survey that was cut off by slow disks is not begun with a page that is cut off again. */
export const surveyPageMin = 250
const pageMax = 5_000
/** A page that takes longer is followed by smaller ones: where rows come from slow disks the time limit of a statement is not far. */
const pageMsMax = 400
/** Progress is durable this often, or a survey of small pages would mostly write. */
const saveMs = 1_000

export interface SurveyDeps {
  readonly collection: Pick<CollectionStore, 'judge' | 'addLosers'>
  readonly ages: CollectionAges
  readonly token: number
  /** Only count. */
  readonly plan: boolean
  readonly pause: (ms: number) => Promise<void>
  /** What has been counted, up to and with this digest. */
  readonly step: (found: Found, after: Digest) => Promise<void>
}

/** Resolves with what there is, from `after` on added to `found`. What may be unused is among the losers of names then. */
export async function surveyBlobs(deps: SurveyDeps, begin: { found: Found; after: Digest | '' }): Promise<Found> {
  let { found, after } = begin
  let limit = surveyPageMin
  for (let savedAt = performance.now(); ;) {
    const startedAt = performance.now()
    const page = await deps.collection.judge(after, limit, deps.ages)
    const last = page.at(-1)
    if (last === undefined) return found
    const unnamed = page.filter(({ verdict }) => verdict !== 'referenced' && verdict !== 'trash')
    if (!deps.plan && unnamed.length > 0) {
      const digests = unnamed.map(({ digest }) => digest)
      await deps.collection.addLosers(digests, deps.token)
    }
    found = counting(found, page)
    after = last.digest
    const tookMs = performance.now() - startedAt
    limit = tookMs > pageMsMax ? Math.max(surveyPageMin, limit / 2) : Math.min(pageMax, limit * 2)
    if (performance.now() - savedAt >= saveMs) {
      await deps.step(found, after)
      savedAt = performance.now()
    }
    await deps.pause(tookMs)
  }
}
