/**
 * Plans of topology changes, made in a thread of their own: each takes a tenth of a second of CPU and more, and on the event loop of a busy
 * machine that is seconds in which a proxy answers nobody and takes its own silence for that of others.
 */
import { extname } from 'node:path'
import { Worker } from 'node:worker_threads'
import type { ClusterMap } from '../../shared/cluster-map.ts'
import { type ErrorCode, HoldfastError } from '../../shared/errors.ts'
import type { TopologyChange, TopologyPlan } from '../../shared/placement/changes.ts'
import type { Swap } from '../../shared/placement/swaps.ts'

export type PlanningTask =
  | {
      readonly map: ClusterMap
      readonly changes: readonly TopologyChange[]
      /** Of one copy of each partition: swaps are wanted that spread these best, on top of the changes. */
      readonly bytes?: Float64Array
    }
  /** The change under way is to be aborted. */
  | { readonly map: ClusterMap; readonly changes?: undefined }

export type PlanningAnswer =
  | { readonly plan: TopologyPlan }
  | { readonly aborted: ClusterMap }
  | { readonly swaps: readonly Swap[] }
  | { readonly refused: { readonly code: ErrorCode; readonly message: string; readonly data: Record<string, unknown> } }

/** `planChanges`, with the same errors. */
export async function planApart(map: ClusterMap, changes: readonly TopologyChange[]): Promise<TopologyPlan> {
  const answer = await ask({ map, changes })
  if (!('plan' in answer)) throw new HoldfastError('INTERNAL', 'no plan came of planning')
  return answer.plan
}

/** `abortTransition`, with the same errors. */
export async function abortApart(map: ClusterMap): Promise<ClusterMap> {
  const answer = await ask({ map })
  if (!('aborted' in answer)) throw new HoldfastError('INTERNAL', 'no map came of planning')
  return answer.aborted
}

/** `proposeSwaps` for the map that comes of the changes, leaving partitions alone that move anyway. Rejects like `planApart`. */
export async function swapsApart(
  map: ClusterMap,
  changes: readonly TopologyChange[],
  bytes: Float64Array,
): Promise<readonly Swap[]> {
  const answer = await ask({ map, changes, bytes })
  if (!('swaps' in answer)) throw new HoldfastError('INTERNAL', 'no swaps came of planning')
  return answer.swaps
}

/** One thread at a time, however many ask: each has a copy of the map, and a processor. */
let planning: Promise<unknown> = Promise.resolve()

function ask(task: PlanningTask): Promise<PlanningAnswer> {
  const answer = planning.then(() => runThread(task))
  planning = answer.catch(() => undefined) // whoever asked hears of it
  return answer
}

async function runThread(task: PlanningTask): Promise<PlanningAnswer> {
  const program = new URL(`plan-thread${extname(import.meta.url)}`, import.meta.url)
  const answer = await new Promise<PlanningAnswer>((resolve, reject) => {
    const thread = new Worker(program, { workerData: task })
    thread.once('message', resolve)
    thread.once('error', reject)
    // Behind its message, if there was one.
    thread.once('exit', code => reject(new HoldfastError('INTERNAL', 'planning ended without a plan', { code })))
  })
  if (!('refused' in answer)) return answer
  const { code, message, data } = answer.refused
  throw new HoldfastError(code, message, data)
}
