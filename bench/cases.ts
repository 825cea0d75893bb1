/** One timed case against one server: what is asked, and what it cost. */
import { createHash, randomBytes } from 'node:crypto'
import autocannon, { type Request } from 'autocannon'
import { type LeanRequest, type LeanResult, runLean } from './lean-client.ts'
import { cpuSeconds, rssBytesMax } from './processes.ts'

interface Common {
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
  readonly connections: number
}
export type Case = Common &
  (
    | {
        readonly kind: 'get'
        readonly target: { readonly path: string; readonly body: Buffer }
        readonly conditional: boolean
      }
    | { readonly kind: 'put'; readonly bytes: number }
    | { readonly kind: 'mixed'; readonly bytes: number }
  )

export interface Figures {
  readonly perSecond: number
  readonly megabytesPerSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  /** CPU seconds of all server processes for 1,000 requests. */
  readonly cpuSecondsPer1000: number
  /** Largest resident set of a proxy process seen during the run. */
  readonly proxyRssBytes: number
}

const mixedPaths = 500
/** From here on autocannon is the limit, not the server. */
const leanBytesMin = 256 * 1024
const uniqueBytes = 16
const warmUpSeconds = 4
let runs = 0

/** Rejects if anything but the expected answers came. */
export async function runCase(
  one: Case,
  seconds: number,
  pids: readonly number[],
  proxyPid: number | undefined,
): Promise<Figures> {
  const run = await prepare(one)
  let proxyRssBytes = 0
  const sampler = setInterval(() => {
    if (proxyPid !== undefined) proxyRssBytes = Math.max(proxyRssBytes, rssBytesMax([proxyPid]))
  }, 500)
  try {
    // Warm up: connections, caches, and the optimiser, which takes seconds: a cold read path has a quarter of the speed of a warm one.
    await run(warmUpSeconds)
    const before = cpuSeconds(pids)
    const result = await run(seconds)
    const cpu = cpuSeconds(pids) - before
    return figures(one, result, cpu, proxyRssBytes)
  } finally {
    clearInterval(sampler)
  }
}

function figures(one: Case, result: LeanResult, cpu: number, proxyRssBytes: number): Figures {
  const { total, seconds, p50Ms, p99Ms } = result
  const bytes = one.kind === 'get' ? (one.conditional ? 0 : one.target.body.length) : one.bytes
  return {
    perSecond: total / seconds,
    megabytesPerSecond: (total * bytes) / seconds / 1e6,
    p50Ms,
    p99Ms,
    cpuSecondsPer1000: (cpu / Math.max(1, total)) * 1000,
    proxyRssBytes,
  }
}

/** Checks that the server answers as it should; resolves with what puts it under load for so many seconds. */
async function prepare(one: Case): Promise<(seconds: number) => Promise<LeanResult>> {
  if (one.kind === 'put') return seconds => runLean({ ...one, seconds, next: uniquePuts(one.bytes) })
  if (one.kind === 'mixed') {
    const requests = await prepareMix(one)
    return seconds => runAutocannon(one, requests, seconds)
  }
  const requests = await prepareGet(one)
  if (one.conditional || one.target.body.length < leanBytesMin) {
    return seconds => runAutocannon(one, requests, seconds)
  }
  const get: LeanRequest = { method: 'GET', path: one.target.path, body: [] }
  return seconds => runLean({ ...one, seconds, next: () => get })
}

async function runAutocannon(one: Case, requests: Request[], seconds: number): Promise<LeanResult> {
  const { url, connections } = one
  const result = await autocannon({ url, connections, duration: seconds, timeout: 60, requests })
  const expected = one.kind === 'get' && one.conditional ? 0 : result.non2xx
  if (result.errors + result.timeouts + expected > 0) {
    const found = { errors: result.errors, codes: result.statusCodeStats }
    throw new Error(`${one.kind} ${url}: wrong answers: ${JSON.stringify(found)}`)
  }
  const { latency, requests: counted, duration } = result
  return { total: counted.total, seconds: duration, p50Ms: latency.p50, p99Ms: latency.p99 }
}

/** Every path and every body is another one: nothing is deduplicated, nothing replaced. */
function uniquePuts(bytes: number): () => LeanRequest {
  const prefix = newPrefix('put', bytes)
  const rest = randomBytes(bytes - uniqueBytes)
  let count = 0
  return () => ({ method: 'PUT', path: `${prefix}/${++count}`, body: [randomBytes(uniqueBytes), rest] })
}

function newPrefix(kind: string, bytes: number): string {
  return `/repository/raw/bench/${kind}-${bytes}-${++runs}-${randomBytes(4).toString('hex')}`
}

async function prepareGet({ url, headers, target, conditional }: Extract<Case, { kind: 'get' }>): Promise<Request[]> {
  const answer = await fetch(url + target.path, { headers })
  const body = Buffer.from(await answer.arrayBuffer())
  if (sha256(body) !== sha256(target.body)) throw new Error(`${url}${target.path}: wrong bytes`)
  const etag = answer.headers.get('etag')
  const sent = conditional && etag !== null ? { ...headers, 'if-none-match': etag } : { ...headers }
  return [{ method: 'GET', path: target.path, headers: sent }]
}

async function prepareMix({ url, headers: sent, bytes }: Common & { bytes: number }): Promise<Request[]> {
  const headers = { ...sent }
  const prefix = newPrefix('mixed', bytes)
  const body = randomBytes(bytes)
  let count = 0
  const put: Request = {
    method: 'PUT',
    headers,
    setupRequest: request => {
      const unique = Buffer.from(body)
      unique.writeUInt32LE(++count, 0)
      unique.writeUInt32LE(runs, 4)
      return { ...request, path: `${prefix}/${count % mixedPaths}`, body: unique }
    },
  }
  for (let index = 0; index < mixedPaths; index++) {
    const answer = await fetch(`${url}${prefix}/${index}`, { method: 'PUT', headers, body: randomBytes(bytes) })
    if (!answer.ok) throw new Error(`mixed: ${answer.status}`)
  }
  const get: Request = {
    method: 'GET',
    headers,
    setupRequest: request => ({ ...request, path: `${prefix}/${Math.floor(Math.random() * mixedPaths)}` }),
  }
  return [put, ...Array.from({ length: 9 }, () => get)]
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}
