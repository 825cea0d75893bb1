/** The part of autocannon's API that the benchmark uses (it ships no types). */
declare module 'autocannon' {
  export interface Request {
    method?: string
    path?: string
    headers?: Record<string, string>
    body?: Buffer | string
    setupRequest?: (request: Request) => Request
  }
  export interface Options {
    url: string
    connections: number
    duration?: number
    amount?: number
    timeout?: number
    requests?: Request[]
  }
  export interface Result {
    requests: { total: number; average: number }
    latency: { p50: number; p99: number }
    throughput: { total: number }
    duration: number
    errors: number
    timeouts: number
    non2xx: number
    statusCodeStats: Record<string, { count: number }>
  }
  function autocannon(options: Options): Promise<Result>
  export default autocannon
}
