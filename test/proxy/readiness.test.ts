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
