/** `holdfast status`: exit code 0 when all is well, 1 when something is not, or nobody answers. */
import type { ClusterStatus } from '../proxy/api/schemas.ts'
import type { ConfigSource } from '../shared/config.ts'
import { runClientCommand, type Writer } from './client.ts'
import { rateText } from './repair.ts'
import { shortTime } from './task.ts'
import { humanBytes, textTable } from './text-table.ts'

/** Resolves with the exit code. */
export function status(source: ConfigSource, write?: Writer): Promise<number> {
  return runClientCommand(
    {},
    source,
    async ({ client, print }) => {
      const found = (await client.call('GET', '/status')) as ClusterStatus
      const problems = problemsOf(found)
      print(statusText(found, problems), { ...found, problems })
      return problems.length === 0 ? 0 : 1
    },
    write,
  )
}

/** What is not as it should be, a line each. Pure. */
export function problemsOf(status: ClusterStatus): string[] {
  const { nodes, postgres, coordination, pendingRepairs, epoch, primary, tasks = [], refusedOuts = [] } = status
  const problems: string[] = []
  if (epoch === null) problems.push('there is no cluster map yet')
  if (!postgres.up) problems.push(because('PostgreSQL is away', postgres.reason))
  if (!coordination.up) problems.push(because(`coordination by ${coordination.driver} pauses`, coordination.reason))
  if (coordination.up && primary === null) problems.push('no proxy is primary: tasks of the cluster wait')
  for (const node of nodes) {
    const since = node.since === undefined ? '' : ` since ${shortTime(node.since)}`
    if (node.state !== 'up') problems.push(`node ${node.id} in zone ${node.zone} is ${node.state}${since}`)
    // What the shards of a node that is away are like, nobody knows.
    if (node.state === 'down' || node.state === 'out') continue
    for (const shard of node.shards) {
      if (shard.out !== undefined) problems.push(`shard ${shard.id} is out since ${shortTime(shard.out.since)}`)
      if (shard.state !== 'ok') problems.push(because(`shard ${shard.id} is ${shard.state}`, shard.reason))
    }
  }
  problems.push(...refusedOuts)
  for (const { name, lastState, lastError } of tasks) {
    if (lastState === 'failed') problems.push(because(`the last run of task ${name} failed`, lastError ?? undefined))
  }
  const { lostBlobs = 0 } = status.repairs ?? {}
  if (lostBlobs > 0) problems.push(`${lostBlobs} blobs have no good copy: see 'holdfast repair status'`)
  if (pendingRepairs !== null && pendingRepairs > 0) {
    const rate = status.repairs === undefined ? '' : ` (${rateText({ ...status.repairs, remainingMs: null })})`
    problems.push(`${pendingRepairs} repairs are pending${rate}; see 'holdfast repair status'`)
  }
  return problems
}

function statusText(status: ClusterStatus, problems: readonly string[]): string {
  const shards = status.nodes.flatMap(node =>
    node.shards.map(({ id, weight, state, recovering, bytesFree, bytesTotal }) => {
      const room =
        bytesFree === undefined || bytesTotal === undefined
          ? '-'
          : `${humanBytes(bytesFree)} of ${humanBytes(bytesTotal)}`
      return [
        node.zone,
        node.id,
        node.state,
        id,
        String(weight),
        recovering === true ? `${state}, recovering` : state,
        room,
      ]
    }),
  )
  const { clusterId, version, epoch, replicas, members, primary, coordination, pendingRepairs } = status
  return [
    `cluster ${clusterId}, Holdfast ${version}, epoch ${epoch ?? '-'}, ${replicas} replicas`,
    `proxies ${members.length}, primary ${primary ?? '-'}, coordination by ${coordination.driver}, pending repairs ${pendingRepairs ?? '-'}`,
    '',
    textTable(['ZONE', 'NODE', 'STATE', 'SHARD', 'WEIGHT', 'STATE', 'FREE'], shards),
    '',
    ...(problems.length === 0 ? ['All is well.'] : problems.map(problem => `! ${problem}`)),
  ].join('\n')
}

const because = (what: string, reason: string | undefined): string =>
  reason === undefined ? what : `${what}: ${reason}`
