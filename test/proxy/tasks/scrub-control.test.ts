import t from 'tap'
import { ClusterView } from '../../../proxy/routing/cluster-view.ts'
import { ScrubControl } from '../../../proxy/tasks/scrub-control.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import type { ShardId } from '../../../shared/ids.ts'
import { buildClusterMap } from '../../../shared/placement.ts'
import type { ShardStatus } from '../../../shared/wire.ts'
import { evenSpec, topologyOf } from '../../shared/topologies.ts'

t.test(
  'a shard whose disk is lost has failed, though its node answers for it; one that does not answer is unknown',
  async t => {
    const map = buildClusterMap(topologyOf(evenSpec(3, 3)))
    const control = new ScrubControl({
      view: new ClusterView(map),
      health: {
        shardStatus: shard =>
          shard === 'n1-s0' ? ({ state: 'failed', reason: 'marker file is missing' } as ShardStatus) : undefined,
      },
      clients: {
        ofShard: shard => ({
          requestJson: async <Answer>(method: string): Promise<Answer> => {
            await Promise.resolve()
            if (shard === 'n2-s0') throw new HoldfastError('NODE_UNREACHABLE', 'away')
            if (method === 'POST' && shard === 'n1-s0') throw new HoldfastError('SHARD_FAILED', 'it has failed')
            const one = { shard, state: 'waiting', losses: 0 }
            return (method === 'POST' ? one : { shards: [one] }) as Answer
          },
        }),
      },
    })
    const bare = (shards: readonly { shard: ShardId; state: string; reason?: string }[]) =>
      shards.map(({ shard, state, reason }) => [shard, state, reason])
    t.same(bare(await control.status()), [
      ['n0-s0', 'waiting', undefined],
      ['n1-s0', 'failed', 'marker file is missing'],
      ['n2-s0', 'unknown', 'NODE_UNREACHABLE'],
    ])
    t.same(bare(await control.command('start', {})), [
      ['n0-s0', 'waiting', undefined],
      ['n1-s0', 'failed', 'SHARD_FAILED'],
      ['n2-s0', 'unknown', 'NODE_UNREACHABLE'],
    ])
  },
)
