/** Servers and workers for the tests of coordination: one cluster per test. */
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import type { Test } from 'tap'
import { MemoryHub } from '../../../proxy/coordination/memory-coordinator.ts'
import { openCoordinator, type CoordinatorOptions } from '../../../proxy/coordination/open-coordinator.ts'
import { coordination } from '../../../proxy/metadata/migrations/0002-coordination.ts'
import type { TestPostgres } from '../../support/postgres.ts'
import type { TestRedis } from '../../support/redis.ts'
import { fastTimings, member, silentLog, type OpenWorker } from './contract.ts'

export type Cluster = Pick<CoordinatorOptions, 'redisUrl' | 'postgresUrl' | 'clusterId'> & { readonly hub?: MemoryHub }

export async function postgresCluster(postgres: TestPostgres): Promise<Cluster> {
  const postgresUrl = await postgres.createDatabase()
  await execute(postgresUrl, coordination.sql)
  return { postgresUrl, clusterId: randomUUID() }
}

export async function redisCluster(postgres: TestPostgres, redis: TestRedis): Promise<Cluster> {
  return { ...(await postgresCluster(postgres)), redisUrl: redis.url }
}

export const memoryCluster = async (): Promise<Cluster> => ({
  postgresUrl: 'pglite:',
  clusterId: randomUUID(),
  hub: new MemoryHub(),
})

/** Workers of one cluster per test, whatever the driver. */
export function opener(makeCluster: () => Promise<Cluster>): OpenWorker {
  const clusters = new WeakMap<Test, Promise<Cluster>>()
  return async (t, id, options = {}) => {
    const cluster = clusters.get(t) ?? makeCluster()
    clusters.set(t, cluster)
    const coordinator = await openCoordinator({
      ...(await cluster),
      member: member(id),
      issueToken: options.issueToken ?? (async () => 1),
      log: silentLog,
      timings: options.timings ?? fastTimings,
    })
    t.teardown(() => coordinator.close())
    await coordinator.start()
    return coordinator
  }
}

export async function execute(connectionString: string, sql: string, values: unknown[] = []): Promise<pg.QueryResult> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    return values.length === 0 ? await client.query(sql) : await client.query(sql, values)
  } finally {
    await client.end()
  }
}
