import t from 'tap'
import { startTestPostgres } from '../../support/postgres.ts'
import { startTestRedis } from '../../support/redis.ts'
import { memoryCluster, opener, postgresCluster, redisCluster } from './cluster.ts'
import { coordinatorContract } from './contract.ts'

const postgres = await startTestPostgres(t)
const redis = await startTestRedis(t)

t.test('memory', async t => coordinatorContract(t, opener(memoryCluster)))
t.test('postgres', async t =>
  coordinatorContract(
    t,
    opener(() => postgresCluster(postgres)),
  ),
)
t.test('redis', async t =>
  coordinatorContract(
    t,
    opener(() => redisCluster(postgres, redis)),
  ),
)
