import t from 'tap'
import { shardA, startNode, testBlob, testReference } from './fixtures.ts'
import { wirePath } from '../../shared/wire.ts'

t.test('smoke', async t => {
  const { client } = await startNode(t)
  const status = await client.call('GET', wirePath.status)
  t.equal(status.status, 200)
  console.log(status.json)
  const small = testBlob(1000)
  t.equal(await client.appendBlob(shardA, small), 'ok')
  const got = await client.get(shardA, small)
  t.equal(got.status, 200)
  t.same(got.body, small.body)
  console.log(got.headers)
  const big = testBlob(3_500_000)
  const c = await client.put(shardA, big)
  t.equal(c.status, 200, c.body.toString())
  const g = await client.get(shardA, big)
  t.same(g.body.equals(big.body), true)
  t.equal(await client.appendReference(shardA, testReference('x/y', 1, big)), 'ok')
  const r = testReference('x/y', 1, big)
  const ref = await client.call(
    'GET',
    wirePath.references(shardA, r.partition) + '?key=' + encodeURIComponent('raw/x/y'),
  )
  t.same(ref.json, r)
})
