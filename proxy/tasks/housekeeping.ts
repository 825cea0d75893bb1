import { HoldfastError } from '../../shared/errors.ts'
import type { JobStore, SweepKind } from '../metadata/job-types.ts'
import type { Job, JobParams } from './job.ts'

/** Rows of one step: well below a second also on a slow disk. */
const stepRows = 1_000
const auditDaysDefault = 400
const kinds: readonly SweepKind[] = ['runs', 'log', 'pins', 'fences', 'audit']
const words: Readonly<Record<SweepKind, string>> = {
  runs: 'old runs of tasks',
  log: 'log lines of forgotten runs',
  pins: 'expired pins',
  fences: 'fences against commits of long ago',
  audit: 'old audit entries',
}

/** Bookkeeping that would grow without bound. Deleting twice is harmless, so there is nothing to resume from. */
export function housekeeping({ jobs }: { readonly jobs: Pick<JobStore, 'sweep'> }): Job<never> {
  return {
    name: 'housekeeping',
    title: 'Forget old task runs, expired pins, old audit entries',
    defaultSchedule: '17 3 * * *',
    checkParams: params => void auditDaysOf(params),
    async run({ term, params, progress, log, pause }) {
      const auditDays = auditDaysOf(params)
      let done = 0
      for (const kind of kinds) {
        let rows = 0
        for (let last = stepRows; last === stepRows;) {
          term.signal.throwIfAborted()
          last = await jobs.sweep(kind, stepRows, term.token, auditDays)
          rows += last
          progress({ done: done + rows, unit: 'rows', note: words[kind] })
          await pause(last === stepRows ? 100 : 0)
        }
        done += rows
        if (rows > 0) log(`${rows} ${words[kind]} deleted`)
      }
      progress({ done, total: done, unit: 'rows' })
    },
  }
}

function auditDaysOf({ auditDays = auditDaysDefault, ...unknown }: JobParams): number {
  if (Object.keys(unknown).length > 0) throw new HoldfastError('BAD_REQUEST', 'the only parameter is auditDays')
  if (typeof auditDays !== 'number' || !Number.isInteger(auditDays) || auditDays < 1 || auditDays > 36_500) {
    throw new HoldfastError('BAD_REQUEST', 'auditDays: a whole number from 1 to 36500')
  }
  return auditDays
}
