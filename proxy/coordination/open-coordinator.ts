import { LeaseCoordinator } from './lease-coordinator.ts'
import type { CoordinationLog } from './lease-store.ts'
import { MemoryCoordinator, MemoryHub } from './memory-coordinator.ts'
import { PostgresStore } from './postgres-store.ts'
import { RedisStore } from './redis-store.ts'
import { defaultTimings, type Timings } from './timings.ts'
import type { Coordinator, Member } from './types.ts'

export interface CoordinatorOptions {
  /** redis:// or rediss://, with user and password if need be. */
  readonly redisUrl?: string | undefined
  /** 'pglite:' means that this process is the whole cluster. */
  readonly postgresUrl: string
  readonly clusterId: string
  readonly member: Member
  readonly issueToken: (role: string, holder: string) => Promise<number>
  readonly log: CoordinationLog
  /** For tests; all proxies of a cluster must agree on them. */
  readonly timings?: Partial<Timings>
  /** Shared by coordinators of one process when PGlite is used. */
  readonly hub?: MemoryHub
}

/**
 * Redis if configured, else PostgreSQL, else (PGlite) this process alone. Opens no connection yet: `start()` does, and it
 * resolves also when no server answers, because a proxy must be able to start without them.
 */
export async function openCoordinator(options: CoordinatorOptions): Promise<Coordinator> {
  const { redisUrl, postgresUrl, clusterId, member, issueToken, log } = options
  const timings = { ...defaultTimings, ...options.timings }
  const common = { postgresUrl, member, timings, log }
  if (redisUrl !== undefined && redisUrl !== '') {
    return new LeaseCoordinator({
      store: new RedisStore({ ...common, redisUrl, clusterId }),
      member,
      issueToken,
      timings,
      log,
    })
  }
  if (postgresUrl.startsWith('pglite:')) {
    return new MemoryCoordinator({ hub: options.hub ?? new MemoryHub(), member, issueToken })
  }
  return new LeaseCoordinator({ store: new PostgresStore(common), member, issueToken, timings, log })
}
