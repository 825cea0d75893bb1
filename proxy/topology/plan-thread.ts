/** The thread of plan-apart.ts: one task, one answer. */
import assert from 'node:assert/strict'
import { parentPort, workerData } from 'node:worker_threads'
import { isHoldfastError } from '../../shared/errors.ts'
import { planChanges } from '../../shared/placement/changes.ts'
import { proposeSwaps } from '../../shared/placement/swaps.ts'
import { abortTransition } from '../../shared/placement/transition.ts'
import type { PlanningAnswer, PlanningTask } from './plan-apart.ts'

assert(parentPort !== null, 'this runs as a thread')
parentPort.postMessage(answerTo(workerData as PlanningTask))

function answerTo(task: PlanningTask): PlanningAnswer {
  const { map } = task
  try {
    if (task.changes === undefined) return { aborted: abortTransition(map) }
    const { changes, bytes } = task
    const plan = planChanges(map, changes)
    if (bytes === undefined) return { plan }
    return { swaps: proposeSwaps(plan.next, bytes, new Set(plan.moves.map(({ partition }) => partition))) }
  } catch (error) {
    if (!isHoldfastError(error)) throw error
    const { code, message, data } = error
    return { refused: { code, message, data } }
  }
}
