import t from 'tap'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { dispersion, fsck, verify } from '../../cli/copies.ts'
import { scrub } from '../../cli/scrub.ts'
import { node, shard, topology } from '../../cli/topology.ts'

type Answer =
  | Readonly<Record<string, unknown>>
  | ((method: string, path: string, body: unknown) => Readonly<Record<string, unknown>>)

/** What the command prints and sends to a server that answers everything with `answer`, or as it says. */
async function run(command: typeof topology, answer: Answer, ...args: string[]) {
  const sent: unknown[] = []
  const server = createServer((request, response) => {
    void text(request).then(body => {
      const parsed: unknown = body === '' ? undefined : JSON.parse(body)
      sent.push(parsed ?? request.url)
      const { method = '', url: path = '' } = request
      const found = typeof answer === 'function' ? answer(method, path, parsed) : answer
      const { status = 200, ...document } = found
      response.writeHead(Number(status), { 'content-type': 'application/json' })
      response.end(JSON.stringify(document))
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

t.test('a run that has not begun is told from one that cleans up behind its change', async t => {
  const shown = async (state: string, progress: unknown) => {
    const view = { epoch: 2, replicas: 3, copies: 3, change: null, shards: [], warnings: [], unassigned: [] }
    return (await run(topology, { ...view, run: { id: 7, job: 'rebalance', state, progress } }, 'show')).out
  }
  t.match(await shown('queued', null), /all partitions are settled, and a change is about to begin: run 7 is queued\n/)
  t.match(await shown('running', null), /settled, and a change is about to begin: run 7 is running\n/)
  const progress = { done: 5, total: 5, unit: 'partitions' }
  t.match(await shown('running', progress), /all partitions are settled, the last old copies go\n/)
})

t.test('weights that an abort leaves are told with it, and by whoever looks', async t => {
  const warnings = ['a1-1 has weight 0 and 1366 partitions: the next change moves them']
  t.match(
    (await run(topology, { id: 1, job: 'rebalance', warnings }, 'abort')).out,
    /is queued: .*\n! a1-1 has weight 0 and/,
  )
  const ended = (_method: string, path: string) => ({
    ...{ id: 1, job: 'rebalance', state: 'succeeded', error: null, progress: null },
    ...(path.endsWith('/abort') ? { warnings } : {}),
  })
  t.match((await run(topology, ended, 'abort', '--wait')).out, /succeeded\n! a1-1 has weight 0/)
  const view = { epoch: 2, replicas: 3, copies: 3, change: null, run: null, shards: [], warnings, unassigned: [] }
  t.match((await run(topology, view, 'show')).out, /\n! a1-1 has weight 0/)
})

t.test('a dead node that was replaced is told from a change that failed', async t => {
  const answer = (force: boolean) => (_method: string, _path: string, body: unknown) => {
    const { changes = [] } = (body ?? {}) as { changes?: { op: string }[] }
    const run1 = { id: 1, job: 'rebalance', state: 'succeeded', error: null, progress: null }
    const refused = { status: 409, code: 'TOPOLOGY_INVALID', message: 'shard c2-1 cannot be asked' }
    return changes[0]?.op === 'remove-node' && !force ? refused : run1
  }
  const words = ['replace', 'c2', 'http://127.0.0.1:8090', '--wait']
  t.match(await run(node, answer(false), ...words), {
    code: 1,
    err: /everything is copied, .*'holdfast node remove c2 --force' .*shard c2-1 cannot be asked/,
  })
  const forced = await run(node, answer(true), ...words, '--force')
  t.equal(forced.code, 0)
  t.match(forced.sent.filter(one => typeof one === 'object'), [{ force: true }, { changes: [{ op: 'remove-node', node: 'c2' }], force: true }]) // prettier-ignore
})

t.test('what is missing or out of bounds is said in a line, and asks nobody', async t => {
  const told = async (command: typeof topology, text: RegExp, ...args: string[]) => {
    const { code, err, sent } = await run(command, {}, ...args)
    t.match({ code, err, sent }, { code: 2, err: text, sent: [] })
    t.equal(err.split('\n').length, 2, 'one line')
  }
  await told(shard, /which weight\? Try: holdfast shard reweight a1-1 --weight/, 'reweight', 'a1-1')
  await told(shard, /which shard\? Try: holdfast shard add <shard>/, 'add')
  await told(node, /which node\? Try: holdfast node add <http/, 'add')
  await told(node, /which node\? Try: holdfast node drain <node>/, 'drain')
  await told(shard, /use 'shard drain a1-1'/, 'reweight', 'a1-1', '--weight', '0')
  await told(topology, /use 'shard drain a1-1'/, 'apply', 'shard reweight a1-1 0')
  for (const weight of ['-5', '99999999999', '1000001', '1e3', '0.0001']) {
    await told(shard, /a weight must be 0\.001 to 1000000, .* not '/, 'reweight', 'a1-1', '--weight', weight)
  }
  for (const replicas of ['-1', '0', '17']) await told(topology, /--replicas is '.*', but must be 1 to 16/, 'apply', '--replicas', replicas) // prettier-ignore
  const { sent } = await run(shard, { id: 1 }, 'reweight', 'a1-1', '--weight', '0.5')
  t.match(sent, [{ changes: [{ op: 'reweight-shard', shard: 'a1-1', weight: 0.5 }] }])
})

t.test('a plan that would be refused says what overrides that', async t => {
  const plan = {
    ...{
      epoch: 1,
      partitions: 1,
      copies: 1,
      copiesMin: 1,
      shards: [],
      problems: ['a single copy of everything would be left'],
    },
    ...{ replicas: { before: 3, after: 1 }, zones: { before: 3, after: 1 }, balance: { max: 1, min: 1 } },
    estimate: { blobs: 0, references: 0, bytes: 0, bytesFreed: 0, seconds: 0, unknownPartitions: 0 },
  }
  t.match(await run(topology, plan, 'plan', '--replicas', '1'), { code: 1, out: /would be left\n! .*--force/ })
})

t.test('scrub status is no success where a shard has failed', async t => {
  const one = { node: 'a1', shard: 'a1-1', state: 'waiting', losses: 0 }
  t.equal((await run(scrub, { shards: [one] }, 'status')).code, 0)
  for (const state of ['failed', 'unknown']) {
    const { code, out } = await run(
      scrub,
      { shards: [one, { ...one, state, reason: 'marker file is missing' }] },
      'status',
    )
    t.equal(code, 1)
    t.match(out, new RegExp(`${state} \\(marker file is missing\\)`))
  }
})

t.test('fsck and dispersion say that a change is under way, and count what they are told', async t => {
  const page = { paths: 1, blobs: 1, findings: [], unreachable: [], queued: 0, unsettled: 446 }
  t.match(await run(fsck, page), { code: 0, out: /a change of topology is under way, 446 partitions/ })
  t.notMatch((await run(fsck, { ...page, unsettled: 0 })).out, /under way/)
  const spread = { replicas: 3, blobs: 2, byCopies: [0, 0, 2, 0], byZones: [0, 0, 2, 0], unknown: 0, spread: 2, whole: 2, unsettled: 446 } // prettier-ignore
  t.match(await run(dispersion, spread), { code: 0, out: /a change of topology is under way, 446 partitions/ })
  t.equal((await run(dispersion, { ...spread, whole: 1 })).code, 1)
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
