/**
 * A Prometheus histogram whose `observe` costs nanoseconds: counters in flat arrays, turned into samples when scraped. (prom-client's
 * own validates and hashes its labels on every call: 3 % of an answer from memory.)
 */
import type { Metric, MetricObjectWithValues, MetricValueWithName, Registry } from 'prom-client'

interface Series {
  readonly labels: Readonly<Record<string, string>>
  /** Observations per bucket; the last one is above all bounds. */
  readonly counts: Float64Array
  sum: number
}

export class LatencyHistogram {
  readonly name: string
  readonly help: string
  readonly #bounds: readonly number[]
  readonly #series: Series[] = []

  /** `bounds`: upper bounds of the buckets in seconds, ascending. */
  constructor(options: { name: string; help: string; bounds: readonly number[]; registry: Registry }) {
    this.name = options.name
    this.help = options.help
    this.#bounds = options.bounds
    // A registry asks its metrics for nothing but name, get and reset; the type lists only prom-client's own classes.
    options.registry.registerMetric(this as unknown as Metric)
  }

  /** A label combination; the returned function counts one observation, in seconds. */
  series(labels: Readonly<Record<string, string>>): (seconds: number) => void {
    const bounds = this.#bounds
    const series: Series = { labels, counts: new Float64Array(bounds.length + 1), sum: 0 }
    this.#series.push(series)
    return seconds => {
      let bucket = 0
      while (bucket < bounds.length && seconds > (bounds[bucket] as number)) bucket++
      series.counts[bucket] = (series.counts[bucket] as number) + 1
      series.sum += seconds
    }
  }

  /** What a registry reads when it is scraped; series without observations are left out. */
  get(): Promise<Omit<MetricObjectWithValues<MetricValueWithName<string>>, 'collect'>> {
    const values = this.#series.flatMap(series => this.#samples(series))
    const { name, help } = this
    // prom-client's registries know types by these words.
    const type = 'histogram' as unknown as MetricObjectWithValues<MetricValueWithName<string>>['type']
    return Promise.resolve({ name, help, type, aggregator: 'sum', values })
  }

  reset(): void {
    for (const series of this.#series) {
      series.counts.fill(0)
      series.sum = 0
    }
  }

  #samples({ labels, counts, sum }: Series): MetricValueWithName<string>[] {
    let total = 0
    const samples = [...counts].map((count, index): MetricValueWithName<string> => {
      total += count
      const le = this.#bounds[index] ?? '+Inf'
      return { metricName: `${this.name}_bucket`, labels: { le, ...labels }, value: total }
    })
    if (total === 0) return []
    samples.push({ metricName: `${this.name}_sum`, labels, value: sum })
    samples.push({ metricName: `${this.name}_count`, labels, value: total })
    return samples
  }
}
