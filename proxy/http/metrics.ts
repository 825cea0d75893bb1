/** Prometheus metrics. Hot paths only touch children bound in advance; everything else is read at scrape time. */
import { Counter, Gauge, Registry } from 'prom-client'
import { LatencyHistogram } from './latency-histogram.ts'

export const routes = ['get', 'head', 'put', 'delete', 'list', 'api', 'other'] as const
export type Route = (typeof routes)[number]
export const outcomes = ['ok', 'not-modified', 'client-error', 'server-error', 'aborted'] as const
export type Outcome = (typeof outcomes)[number]

export function outcomeOf(status: number): Outcome {
  if (status === 304) return 'not-modified'
  if (status < 400) return 'ok'
  return status < 500 ? 'client-error' : 'server-error'
}

/** A value that some part of the proxy counts by itself, read when Prometheus asks. */
export interface Reading {
  readonly name: string
  readonly help: string
  readonly type: 'counter' | 'gauge'
  readonly labels?: readonly string[]
  /** How several workers become one value; 'sum' unless said otherwise. */
  readonly aggregator?: 'sum' | 'min' | 'max'
  /** One value, or one per label combination. */
  readonly read: () => number | readonly { readonly labels: Readonly<Record<string, string>>; readonly value: number }[]
}

export class Metrics {
  readonly registry = new Registry()
  readonly #seconds = new Map<string, (seconds: number) => void>()
  /** Artifact bytes from and to clients. */
  receivedBytes = 0
  sentBytes = 0
  /** Clients given up for moving too little or nothing, by what they were waited for. */
  readonly slowClients = { upload: 0, download: 0 }

  constructor() {
    const seconds = new LatencyHistogram({
      name: 'holdfast_request_seconds',
      help: 'Time from request head to the end of the answer',
      bounds: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60],
      registry: this.registry,
    })
    for (const route of routes) {
      for (const outcome of outcomes) this.#seconds.set(route + outcome, seconds.series({ route, outcome }))
    }
    this.add([
      {
        name: 'holdfast_received_bytes_total',
        help: 'Artifact bytes received from clients',
        type: 'counter',
        read: () => this.receivedBytes,
      },
      {
        name: 'holdfast_sent_bytes_total',
        help: 'Bytes of answers sent to clients',
        type: 'counter',
        read: () => this.sentBytes,
      },
      {
        name: 'holdfast_slow_clients_total',
        help: 'Clients given up because they sent or took too few bytes',
        type: 'counter',
        labels: ['direction'],
        read: () =>
          (['upload', 'download'] as const).map(direction => ({
            labels: { direction },
            value: this.slowClients[direction],
          })),
      },
    ])
  }

  observe(route: Route, outcome: Outcome, seconds: number): void {
    this.#seconds.get(route + outcome)?.(seconds)
  }

  /** Adds values that are read at scrape time. */
  add(readings: readonly Reading[]): void {
    for (const { name, help, type, labels = [], aggregator = 'sum', read } of readings) {
      const common = { name, help, labelNames: [...labels], aggregator, registers: [this.registry] }
      const valuesNow = (): readonly {
        readonly labels: Readonly<Record<string, string>>
        readonly value: number
      }[] => {
        const values = read()
        return typeof values === 'number' ? [{ labels: {}, value: values }] : values
      }
      if (type === 'gauge') {
        const gauge = new Gauge<string>({
          ...common,
          collect: () => {
            gauge.reset()
            for (const one of valuesNow()) gauge.set(one.labels, one.value)
          },
        })
      } else {
        const counter = new Counter<string>({
          ...common,
          collect: () => {
            counter.reset()
            for (const one of valuesNow()) counter.inc(one.labels, one.value)
          },
        })
      }
    }
  }
}
