import { AggregatorRegistry } from 'prom-client'
import t from 'tap'
import { Metrics } from '../../../proxy/http/metrics.ts'

/** What the parent of several workers makes of their metrics. */
async function together(...workers: readonly Metrics[]): Promise<string> {
  const parts = await Promise.all(workers.map(({ registry }) => registry.getMetricsAsJSON()))
  return AggregatorRegistry.aggregate(parts).metrics()
}

const value = (text: string, line: string): number =>
  Number(new RegExp(`^${line.replaceAll(/[{}]/g, '\\$&')} (.*)$`, 'm').exec(text)?.[1] ?? NaN)

t.test('workers add up what can be added, and agree on the worst of what cannot', async t => {
  const [one, two] = [new Metrics(), new Metrics()]
  for (const [index, metrics] of [one, two].entries()) {
    metrics.add([
      { name: 'hits_total', help: 'h', type: 'counter', read: () => 10 + index },
      { name: 'entries', help: 'h', type: 'gauge', read: () => 3 },
      { name: 'epoch', help: 'h', type: 'gauge', aggregator: 'min', read: () => 7 + index },
      { name: 'primary', help: 'h', type: 'gauge', aggregator: 'max', read: () => index },
      {
        name: 'node_up',
        help: 'h',
        type: 'gauge',
        labels: ['node'],
        aggregator: 'min',
        read: () => [
          { labels: { node: 'a' }, value: 1 },
          { labels: { node: 'b' }, value: index },
        ],
      },
    ])
    metrics.observe('get', 'ok', 0.002)
    metrics.receivedBytes += 5
  }
  const text = await together(one, two)
  t.equal(value(text, 'hits_total'), 21)
  t.equal(value(text, 'entries'), 6)
  t.equal(value(text, 'epoch'), 7)
  t.equal(value(text, 'primary'), 1)
  t.equal(value(text, 'node_up{node="a"}'), 1)
  t.equal(value(text, 'node_up{node="b"}'), 0)
  t.equal(value(text, 'holdfast_received_bytes_total'), 10)
  t.equal(value(text, 'holdfast_request_seconds_count{route="get",outcome="ok"}'), 2)
  t.equal(value(text, 'holdfast_request_seconds_bucket{le="0.003",route="get",outcome="ok"}'), 2)
  t.equal(value(await together(one, two), 'hits_total'), 21, 'the same at the next question')
})
