import t from 'tap'
import type { Coordinator } from '../../proxy/coordination/types.ts'
import { readiness } from '../../proxy/readiness.ts'

type Parts = Parameters<typeof readiness>[0]

t.test('/readyz, which anybody may ask, says what is down and not why', async t => {
  const reason = 'connect ECONNREFUSED redis://user:password@10.1.2.3:6379'
  const parts = {
    resolver: { metadataAvailable: true },
    coordinator: { state: (): ReturnType<Coordinator['state']> => ({ up: false, reason, since: 1, counters: {} as never }) },
    health: { nodes: () => [{ node: 'node-a', state: 'up' }, { node: 'node-b', state: 'down' }] },
    identity: { ageMs: 0, outdated: false },
    gate: { problem: undefined },
  } as unknown as Parts // prettier-ignore
  const { ready, problems } = readiness(parts)
  t.equal(ready, true)
  t.same(problems, ['coordination is away: tasks pause, caches are bypassed', 'storage node node-b is down'])
})

t.test('/readyz names broken disks, and is not ready while no shard can be read', async t => {
  const told = (...nodes: { clusterId?: string; state?: string; shards: string[] }[]) =>
    readiness({
      resolver: { metadataAvailable: true },
      coordinator: { state: () => ({ up: true }) },
      health: {
        nodes: () =>
          nodes.map(({ clusterId = 'c', state = 'up', shards }, index) => ({
            node: `n${index}`,
            state,
            status: { clusterId, shards: shards.map((state, shard) => ({ id: `n${index}-${shard}`, state })) },
          })),
      },
      identity: { ageMs: 0, outdated: false },
      gate: { problem: undefined },
    } as unknown as Parts)
  t.same(told({ shards: ['ok', 'full', 'failed', 'read-only'] }), {
    ready: true,
    problems: ['shard n0-2 is failed', 'shard n0-3 is read-only'],
  })
  t.same(told({ state: 'down', shards: ['ok'] }, { shards: ['failed'] }), {
    ready: false,
    problems: ['storage node n0 is down', 'shard n1-0 is failed', 'no shard can be read'],
  })
  t.same(told({ clusterId: '', shards: ['failed', 'failed'] }), {
    ready: false,
    problems: ['storage node n0 waits for its first cluster map', 'no shard can be read'],
  })
})
