/** One timed case against one server: what is asked, and what it cost. */
import { createHash, randomBytes } from 'node:crypto'
import autocannon, { type Request, type Result } from 'autocannon'
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
    | { readonly kind: 'put' | 'mixed'; readonly bytes: number }
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
let runs = 0

/** Rejects if anything but the expected answers came. */
export async function runCase(
  one: Case,
  seconds: number,
  pids: readonly number[],
  proxyPid: number | undefined,
): Promise<Figures> {
  const requests = await prepare(one)
  let proxyRssBytes = 0
  const sampler = setInterval(() => {
    if (proxyPid !== undefined) proxyRssBytes = Math.max(proxyRssBytes, rssBytesMax([proxyPid]))
  }, 500)
  try {
    // Warm up: connections, caches, the optimiser.
    await autocannon({ url: one.url, connections: one.connections, duration: 1, timeout: 60, requests })
    const before = cpuSeconds(pids)
    const result = await autocannon({
      url: one.url,
      connections: one.connections,
      duration: seconds,
      timeout: 60,
      requests,
    })
    const cpu = cpuSeconds(pids) - before
    return figures(one, result, cpu, proxyRssBytes)
  } finally {
    clearInterval(sampler)
  }
}

function figures(one: Case, result: Result, cpu: number, proxyRssBytes: number): Figures {
  const expected = one.kind === 'get' && one.conditional ? 0 : result.non2xx
  if (result.errors + result.timeouts + expected > 0) {
    throw new Error(
      `${one.kind} ${one.url}: wrong answers: ${JSON.stringify({ errors: result.errors, codes: result.statusCodeStats })}`,
    )
  }
  const total = result.requests.total
  const bytes = one.kind === 'get' ? (one.conditional ? 0 : one.target.body.length) : one.bytes
  return {
    perSecond: total / result.duration,
    megabytesPerSecond: (total * bytes) / result.duration / 1e6,
    p50Ms: result.latency.p50,
    p99Ms: result.latency.p99,
    cpuSecondsPer1000: (cpu / Math.max(1, total)) * 1000,
    proxyRssBytes,
  }
}

async function prepare(one: Case): Promise<Request[]> {
  const headers = { ...one.headers }
  if (one.kind === 'get') {
    const answer = await fetch(one.url + one.target.path, { headers })
    const body = Buffer.from(await answer.arrayBuffer())
    if (sha256(body) !== sha256(one.target.body)) throw new Error(`${one.url}${one.target.path}: wrong bytes`)
    const etag = answer.headers.get('etag')
    return [
      {
        method: 'GET',
        path: one.target.path,
        headers: one.conditional && etag !== null ? { ...headers, 'if-none-match': etag } : headers,
      },
    ]
  }
  const prefix = `/repository/raw/bench/${one.kind}-${one.bytes}-${++runs}-${randomBytes(4).toString('hex')}`
  const body = randomBytes(one.bytes)
  let count = 0
  // Every body is another one: the first bytes are the counter. Nothing is deduplicated.
  const put: Request = {
    method: 'PUT',
    headers,
    setupRequest: request => {
      const unique = Buffer.from(body)
      unique.writeUInt32LE(++count, 0)
      unique.writeUInt32LE(runs, 4)
      return { ...request, path: `${prefix}/${one.kind === 'mixed' ? count % mixedPaths : count}`, body: unique }
    },
  }
  if (one.kind === 'put') return [put]
  for (let index = 0; index < mixedPaths; index++) {
    const answer = await fetch(`${one.url}${prefix}/${index}`, { method: 'PUT', headers, body: randomBytes(one.bytes) })
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
