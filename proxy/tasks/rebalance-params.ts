/** What the task `rebalance` is told to do, and how a change is called in its log. */
import { HoldfastError } from '../../shared/errors.ts'
import { partitionCount } from '../../shared/partition.ts'
import type { TopologyChange } from '../../shared/placement/changes.ts'
import { swapsMax } from '../../shared/placement/swaps.ts'
import type { JobParams } from './job.ts'

/** That each shard gets: half of what a hard disk takes. */
export const bytesPerSecondDefault = 64 * 1024 * 1024

export interface RebalanceParams {
  readonly changes: readonly TopologyChange[]
  /** The epoch for which the changes were planned. */
  readonly epoch: number
  readonly abort: boolean
  readonly force: boolean
  readonly bytesPerSecond: number
}

export function textOf(change: TopologyChange): string {
  switch (change.op) {
    case 'add-node':
      return `node ${change.node} added in zone ${change.zone}`
    case 'remove-node':
      return `node ${change.node} removed`
    case 'add-shard':
      return `shard ${change.shard} added with weight ${change.weight}`
    case 'weight':
      return `shard ${change.shard} ${change.weight === 0 ? 'drained' : `has weight ${change.weight}`}`
    case 'remove-shard':
      return `shard ${change.shard} removed`
    case 'replicas':
      return `${change.replicas} copies of everything`
    case 'out':
      return `shard ${change.shard} is out`
    case 'in':
      return `shard ${change.shard} is in again`
    case 'swap':
      return `${change.swaps.length} swaps of partitions for the sake of bytes`
  }
}

/** Throws BAD_REQUEST. */
export function paramsOf({
  changes = [],
  epoch = 0,
  abort = false,
  force = false,
  bytesPerSecond = bytesPerSecondDefault,
  ...unknown
}: JobParams): RebalanceParams {
  const wrong =
    Object.keys(unknown).length > 0 ||
    !Array.isArray(changes) ||
    !changes.every(isChange) ||
    !Number.isSafeInteger(epoch) ||
    typeof abort !== 'boolean' ||
    typeof force !== 'boolean' ||
    !(typeof bytesPerSecond === 'number' && bytesPerSecond >= 1_000)
  if (wrong) {
    throw new HoldfastError(
      'BAD_REQUEST',
      'the parameters are changes with the epoch they were planned for, abort, force, bytesPerSecond (1000 or more); none goes on with the change under way',
    )
  }
  return { changes: changes, epoch: epoch as number, abort, force, bytesPerSecond }
}

const fieldsOf: Readonly<Record<TopologyChange['op'], readonly string[]>> = {
  'add-node': ['node', 'zone', 'url'],
  'remove-node': ['node'],
  'add-shard': ['shard', 'node', 'weight'],
  weight: ['shard', 'weight'],
  'remove-shard': ['shard'],
  replicas: ['replicas'],
  out: ['shard', 'since', 'auto'],
  in: ['shard'],
  swap: ['swaps'],
}
/** Of fields that are no texts. */
const typeOf: Readonly<Record<string, string>> = {
  weight: 'number',
  replicas: 'number',
  since: 'number',
  auto: 'boolean',
  swaps: 'object',
}

function isChange(value: unknown): value is TopologyChange {
  if (typeof value !== 'object' || value === null) return false
  const { op, ...rest } = value as Record<string, unknown>
  const fields =
    typeof op === 'string' && Object.hasOwn(fieldsOf, op) ? fieldsOf[op as TopologyChange['op']] : undefined
  if (fields === undefined || Object.keys(rest).length !== fields.length) return false
  return (
    fields.every(name => typeof rest[name] === (typeOf[name] ?? 'string')) && (op !== 'swap' || areSwaps(rest['swaps']))
  )
}

function areSwaps(value: unknown): boolean {
  if (!Array.isArray(value) || value.length > swapsMax) return false
  return value.every((swap: unknown) => {
    if (typeof swap !== 'object' || swap === null || Object.keys(swap).length !== 4) return false
    const { partition, from, other, to } = swap as Record<string, unknown>
    return [partition, from, other, to].every(number => isNatural(number)) && Math.max(Number(partition), Number(other)) < partitionCount // prettier-ignore
  })
}

const isNatural = (value: unknown): boolean => Number.isSafeInteger(value) && Number(value) >= 0
