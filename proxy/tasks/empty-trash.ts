import type { TrashStore } from '../metadata/trash-types.ts'
import type { Job } from './job.ts'

/** Rows of one step: well below a second also on a slow disk. */
const stepRows = 1_000

/** What was deleted long enough ago is forgotten; garbage collection, later in the night, frees the bytes. Twice is harmless. */
export function emptyTrash({ trash }: { readonly trash: Pick<TrashStore, 'expire'> }): Job<never> {
  return {
    name: 'empty-trash',
    title: 'Forget deleted artifacts whose time in the trash is over',
    defaultSchedule: '7 2 * * *',
    async run({ term, progress, log, pause }) {
      let [done, bytes] = [0, 0]
      for (let last = stepRows; last === stepRows;) {
        term.signal.throwIfAborted()
        const step = await trash.expire(stepRows, term.token)
        last = step.entries
        done += last
        bytes += step.bytes
        progress({ done, unit: 'artifacts' })
        await pause(last === stepRows ? 100 : 0)
      }
      log(`${done} deleted artifacts forgotten, which named ${bytes} bytes`)
      progress({ done, total: done, unit: 'artifacts' })
    },
  }
}
