/**
 * One worker process of the history test: reads through a real path cache and writes, at random, a table of versions
 * that stands for the metadata, and tells its parent what it saw and when. Started from dist/, spoken to over IPC.
 */
import pg from 'pg'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CachedPath } from '../../../proxy/artifacts/path-cache.ts'
import { PathCache } from '../../../proxy/artifacts/path-cache.ts'
import { openCoordinator, type CoordinatorOptions } from '../../../proxy/coordination/open-coordinator.ts'
import type { Artifact } from '../../../proxy/metadata/types.ts'
import { silentLog } from './contract.ts'

export interface WorkerSetup extends Pick<CoordinatorOptions, 'redisUrl' | 'postgresUrl' | 'clusterId' | 'member'> {
  readonly timings: NonNullable<CoordinatorOptions['timings']>
  readonly seed: number
  readonly keys: number
  /** Mean pause between two writes. */
  readonly writePauseMs: number
  /** Without it, only acknowledged writes are promised to be seen. */
  readonly prepare: boolean
  /** Role it tries to hold; undefined: none. */
  readonly role?: string
}

/** Times are of the monotonic clock that all processes of a machine share, in ms. */
export type WorkerEvent =
  | { readonly kind: 'ready' }
  | {
      readonly kind: 'read'
      readonly key: number
      readonly version: number
      readonly from: number
      readonly to: number
      readonly cached: boolean
    }
  | {
      readonly kind: 'write'
      readonly key: number
      readonly version: number
      readonly from: number
      readonly to: number
      readonly waitedMs: number
    }
  | { readonly kind: 'failed'; readonly what: 'read' | 'write' | 'invalidate'; readonly reason: string }
  | { readonly kind: 'term'; readonly token: number; readonly from: number; readonly to: number }

const clock = (): number => Number(process.hrtime.bigint() / 1_000n) / 1_000

/** Small, fast, seedable (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

async function run(setup: WorkerSetup): Promise<void> {
  const random = randomOf(setup.seed)
  const cache = new PathCache({ entriesMax: 1_000 })
  const pool = new pg.Pool({
    connectionString: setup.postgresUrl,
    max: 4,
    connectionTimeoutMillis: 1_000,
    query_timeout: 5_000, // longer than a worker is frozen,
  })
  pool.on('error', () => undefined) // the next query opens another connection
  let tokens = 0
  const coordinator = await openCoordinator({ ...setup, log: silentLog, issueToken: async () => ++tokens })
  coordinator.cache.onInvalidate(keys => cache.invalidate(keys))
  const report = (event: WorkerEvent): void => void process.send?.(event)
  let stopping = false

  const read = async (key: number): Promise<void> => {
    const from = clock()
    const entry: CachedPath | undefined = coordinator.cache.usable(`k${key}`) ? cache.get(`k${key}`) : undefined
    const artifact = entry?.artifact
    if (artifact) return report({ kind: 'read', key, version: artifact.version, from, to: clock(), cached: true })
    const ticket = cache.ticket(`k${key}`)
    try {
      const { rows } = await pool.query<{ version: number }>('select version from model where key = $1', [key])
      const version = rows[0]?.version ?? 0
      if (random() < 0.3) await sleep(random() * 20) // a slow fill, for invalidations to overtake
      cache.store(ticket, { version } as unknown as Artifact)
      report({ kind: 'read', key, version, from, to: clock(), cached: false })
    } catch (error) {
      cache.release(ticket)
      report({ kind: 'failed', what: 'read', reason: String(error) })
    }
  }
  const write = async (key: number): Promise<void> => {
    const from = clock()
    let version: number | undefined
    if (setup.prepare) await coordinator.cache.prepare([`k${key}`])
    try {
      const { rows } = await pool.query<{ version: number }>(
        'update model set version = version + 1 where key = $1 returning version',
        [key],
      )
      version = rows[0]?.version
    } catch (error) {
      report({ kind: 'failed', what: 'write', reason: String(error) })
    }
    cache.invalidate([`k${key}`]) // also when nobody knows whether it was committed
    if (version === undefined) return void coordinator.cache.invalidate([`k${key}`]).catch(() => undefined)
    const committedAt = clock()
    try {
      await coordinator.cache.invalidate([`k${key}`])
      const to = clock()
      report({ kind: 'write', key, version, from, to, waitedMs: to - committedAt })
    } catch (error) {
      report({ kind: 'failed', what: 'invalidate', reason: String(error) })
    }
  }
  const pick = (): number => Math.floor(random() * setup.keys)
  const readers = [1, 2].map(async () => {
    while (!stopping) {
      await read(pick())
      await sleep(random() < 0.3 ? 0 : random() * 8)
    }
  })
  const writers = [1, 2].map(async () => {
    while (!stopping) {
      await write(pick())
      await sleep(random() * 2 * setup.writePauseMs)
    }
  })
  const candidate = async (): Promise<void> => {
    while (!stopping) {
      const term = setup.role === undefined ? undefined : await coordinator.acquire(setup.role)
      if (term === undefined) {
        await sleep(50)
        continue
      }
      const from = clock()
      let to = from
      // What a primary does: a step, then another look at the signal.
      while (!stopping && !term.signal.aborted && to - from < 3_000) {
        to = clock()
        await sleep(2)
      }
      report({ kind: 'term', token: term.token, from, to })
      await term.release()
    }
  }
  await coordinator.start()
  report({ kind: 'ready' })
  const working = Promise.all([...readers, ...writers, candidate()])
  process.on('message', () => {
    stopping = true
    void working
      .then(() => coordinator.close())
      .then(() => pool.end())
      .then(() => process.disconnect())
  })
}

if (process.send !== undefined) process.once('message', (setup: WorkerSetup) => void run(setup))
