import t from 'tap'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { verify } from '../../cli/copies.ts'
import { node, shard, topology } from '../../cli/topology.ts'

/** What the command prints and sends to a server that answers everything with `answer`. */
async function run(command: typeof topology, answer: object, ...args: string[]) {
  const sent: unknown[] = []
  const server = createServer((request, response) => {
    void text(request).then(body => {
      sent.push(body === '' ? request.url : JSON.parse(body))
      response.setHeader('content-type', 'application/json')
      response.end(JSON.stringify(answer))
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  let [out, err] = ['', '']
  const write = { out: (part: string) => void (out += part), err: (part: string) => void (err += part) }
  const code = await command({ args, env: { HOLDFAST_URL: url, HOLDFAST_PASSWORD: 'password' } }, write)
  server.closeAllConnections()
  server.close()
  return { code, out, err, sent }
}

t.test('--rate is bytes, with a unit or without', async t => {
  const rateOf = async (rate: string) => run(topology, { id: 1, job: 'rebalance' }, 'resume', '--rate', rate)
  t.match(await rateOf('5000000'), { code: 0, sent: [{ bytesPerSecond: 5_000_000 }] })
  t.match(await rateOf('32MiB'), { code: 0, sent: [{ bytesPerSecond: 32 * 1024 ** 2 }] })
  t.match(await rateOf('2gib'), { code: 0, sent: [{ bytesPerSecond: 2 * 1024 ** 3 }] })
  for (const wrong of ['999', '1MB', '-1KiB', 'fast'])
    t.match(await rateOf(wrong), { code: 2, err: /--rate is .*32MiB/ })
})

t.test('a number that cannot be is refused with its bounds, and asks nobody', async t => {
  const replicas = await run(topology, {}, 'apply', '--replicas', 'x')
  t.match(replicas, { code: 2, err: "--replicas is 'x', but must be a number from 1 to 16", sent: [] })
  const weight = await run(shard, {}, 'reweight', 'a-1', '--weight', '-1')
  t.match(weight, { code: 2, err: "--weight is '-1', but must be a number from 0 to 1000000000", sent: [] })
})

t.test('an address that is none is refused in words, and asks nobody', async t => {
  for (const args of [
    ['add', 'foo'],
    ['replace', 'n1', 'n2:8090'],
  ]) {
    t.match(await run(node, {}, ...args), {
      code: 2,
      err: /the address of a storage node is http:\/\/host:port, not '/,
      sent: [],
    })
  }
})

t.test('a change whose run has no progress yet is shown without a hole', async t => {
  const run1 = { id: 1, job: 'rebalance', state: 'running', progress: null }
  const change = { since: 2, unsettled: 7, partitions: 4096, state: 'running' }
  const view = { epoch: 2, replicas: 3, copies: 3, change, run: run1, shards: [], unassigned: [] }
  t.match((await run(topology, view, 'show')).out, /running, 7 partitions left\n/)
})

t.test('verify does not promise a repair from copies that nobody has', async t => {
  const copyOf = (state: string, index: number) => ({ role: 'owner', zone: 'z', node: 'n', shard: `s${index}`, state })
  const told = async (...states: string[]) => {
    const blob = { digest: 'd', generation: 'g', bytes: 1, partition: 0 }
    const copies = states.map(copyOf)
    const answer = { repository: 'raw', path: 'a', version: 1, partition: 0, blob, copiesWanted: 3, copies, references: [], healthy: false } // prettier-ignore
    return run(verify, answer, 'raw/a')
  }
  t.match(await told('good', 'missing', 'corrupt'), {
    code: 1,
    out: /1 good copies of 3; what is missing is being repaired/,
  })
  t.match(await told('missing', 'unreachable', 'corrupt'), {
    code: 1,
    out: /0 good copies of 3; a copy may be where nobody answers/,
  })
  t.match(await told('missing', 'missing', 'corrupt'), {
    code: 1,
    out: /0 good copies of 3; nothing can be repaired from/,
  })
})
