/** A real storage node process, killed: at every crash point, and at random under load. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { wirePath } from '../../shared/wire.ts'
import { type CrashPoint, crashPoints } from '../../storage-node/crash-point.ts'
import {
  type Answer,
  clusterId,
  NodeClient,
  secret,
  shardA,
  shardB,
  type TestBlob,
  testBlob,
  testReference,
  uploadId,
} from './fixtures.ts'
import { builtFile } from '../support/paths.ts'

// Tap may run this file in place or from its own build folder; the built program is found from the working directory.
const program = builtFile('cli/main.ts')

interface Child {
  readonly process: ChildProcess
  readonly client: NodeClient
  readonly exited: Promise<unknown>
}

async function startChild(t: Test, folder: string, env: Record<string, string> = {}): Promise<Child> {
  const flags = ['--node', 'a', '--zone', 'zone-a', '--host', '127.0.0.1', '--port', '0', '--cluster-id', clusterId]
  const shards = [shardA, shardB].flatMap(id => ['--shard', `${id}=${join(folder, id)}`])
  // Small segments, compacted all the time.
  const limits = [
    '--reserve-bytes',
    '0',
    '--segment-bytes-max',
    '65536',
    '--compact-pause-ms',
    '100',
    '--compact-hold-ms',
    '0',
  ]
  const child = spawn(
    process.execPath,
    [program, 'storage-node', ...flags, '--state-folder', join(folder, 'state'), ...shards, ...limits],
    { env: { ...process.env, NODE_OPTIONS: '', HOLDFAST_SECRET: secret, ...env }, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  const exited = once(child, 'exit')
  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    await exited
  })
  let complaints = ''
  child.stderr.on('data', (text: Buffer) => (complaints += text.toString()))
  for await (const line of createInterface({ input: child.stdout })) {
    const { url } = JSON.parse(line) as { url?: string }
    if (url === undefined) continue
    child.stdout.resume()
    const client = new NodeClient(url)
    t.teardown(() => client.close())
    return { process: child, client, exited }
  }
  throw new Error(`the node did not start: ${complaints}`)
}

/** What must survive. */
class Promises {
  readonly blobs: TestBlob[] = []
  readonly dropped: TestBlob[] = []
  readonly references = new Map<string, number>()
  /** Everything ever sent, for what was not acknowledged may be there too, but only whole. */
  readonly sent: TestBlob[] = []

  async problems(client: NodeClient): Promise<string[]> {
    const problems: string[] = []
    for (const blob of this.sent) {
      const answer = await client.get(shardA, blob)
      const expected = this.blobs.includes(blob)
      if (answer.status === 200 && !answer.body.equals(blob.body)) problems.push(`wrong bytes (${blob.bytes})`)
      if (answer.status !== 200 && (expected || answer.status !== 404))
        problems.push(`lost (${blob.bytes}) ${answer.status}`)
      if (answer.status === 200 && this.dropped.includes(blob)) problems.push(`dropped blob came back (${blob.bytes})`)
    }
    for (const [path, version] of this.references) {
      const { partition } = testReference(path, 1)
      const answer = await client.call('GET', `${wirePath.references(shardA, partition)}?key=raw%2F${path}`)
      const found = answer.status === 200 ? Number(answer.json['version']) : 0
      if (found < version) problems.push(`reference ${path} went back from ${version} to ${found}`)
    }
    return problems
  }
}

/** Writes until the node dies; each acknowledgement becomes a promise. */
async function work(client: NodeClient, promises: Promises, name: string, roundsMax: number): Promise<void> {
  try {
    for (let round = 1; round <= roundsMax; round += 1) {
      const blob = testBlob(round % 5 === 0 ? 70_000 + round * 50_000 : round * 300, round)
      promises.sent.push(blob)
      if (blob.bytes > 65_536) await ok(client.put(shardA, blob))
      else if ((await client.appendBlob(shardA, blob)) !== 'ok') throw new Error('refused')
      promises.blobs.push(blob)
      if ((await client.appendReference(shardA, testReference(name, round, blob))) !== 'ok') throw new Error('refused')
      promises.references.set(name, round)
      if (round % 4 === 0) await dropOne(client, promises, blob)
    }
  } catch {
    // The node died, which is what is wanted; what was not acknowledged is not promised.
  }
}

async function dropOne(client: NodeClient, promises: Promises, blob: TestBlob): Promise<void> {
  promises.blobs.splice(promises.blobs.indexOf(blob), 1)
  const order = { shard: shardA, reason: 'deleted', blobs: [{ ...blob, body: undefined }] }
  await ok(client.post(wirePath.drop, order, { 'holdfast-fence': 'primary:1' }))
  promises.dropped.push(blob)
}

/** Writes and drops until a compaction of the other shard meets the point at which the node dies. */
async function overwriteUntilDead({ client, process: child }: Child): Promise<void> {
  try {
    for (let round = 0; round < 200 && child.signalCode === null; round += 1) {
      const blob = testBlob(9_000)
      await client.appendBlob(shardB, blob)
      const order = { shard: shardB, reason: 'deleted', blobs: [{ ...blob, body: undefined }] }
      await ok(client.post(wirePath.drop, order, { 'holdfast-fence': 'primary:1' }))
      if (round % 20 === 19) await new Promise(done => setTimeout(done, 150))
    }
  } catch {
    // It died.
  }
}

async function ok(answer: Promise<Answer>): Promise<void> {
  const { status, body } = await answer
  if (status !== 200) throw new Error(`${status} ${body.toString()}`)
}

for (const point of crashPoints satisfies readonly CrashPoint[]) {
  t.test(`I4: a crash at ${point} loses nothing acknowledged`, async t => {
    const folder = t.testdir()
    const promises = new Promises()
    const first = await startChild(t, folder)
    await work(first.client, promises, 'before', 6)
    first.process.kill('SIGKILL')
    await first.exited
    const second = await startChild(t, folder, { HF_CRASH_AT: point })
    // Whatever they do, one of these meets the point.
    const id = uploadId()
    await second.client.upload(shardB, id, Buffer.alloc(10)).catch(() => undefined)
    await second.client
      .post(wirePath.drop, { shard: shardB, reason: 'moved', blobs: [] }, { 'holdfast-fence': 'x:1' })
      .catch(() => undefined)
    await Promise.all([work(second.client, promises, 'one', 20), work(second.client, promises, 'two', 20)])
    if (point.startsWith('compact.')) await overwriteUntilDead(second)
    if (second.process.signalCode === null && point === 'segment.afterCreate') {
      // The first segment of a shard is made by its first record.
      await second.client.appendBlob(shardB, testBlob(1)).catch(() => undefined)
    }
    if (second.process.signalCode === null) await second.client.appendBlob(shardB, testBlob(1)).catch(() => undefined)
    await second.exited
    t.equal(second.process.signalCode, 'SIGKILL')
    const third = await startChild(t, folder)
    t.same(await promises.problems(third.client), [])
    t.same(await readdir(join(folder, shardA, 'tmp')), [], 'no uploads left')
    await work(third.client, promises, 'after', 5)
    t.ok(promises.references.get('after'), 'takes writes')
    third.process.kill('SIGTERM')
    const [code] = (await third.exited) as [number]
    t.equal(code, 0, 'ends cleanly')
  })
}

t.test('I4: kill -9 at random instants under load, again and again', async t => {
  const folder = t.testdir()
  const promises = new Promises()
  const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`HOLDFAST_TEST_SEED=${seed}`)
  let random = seed
  for (let round = 0; round < 8; round += 1) {
    const child = await startChild(t, folder)
    t.same(await promises.problems(child.client), [], `round ${round}`)
    random = (random * 48_271 + 11) % 2_147_483_647
    const timer = setTimeout(() => child.process.kill('SIGKILL'), 30 + (random % 300))
    const names = ['a', 'b', 'c', 'd'].map(name => `${name}-${round}`)
    await Promise.all(names.map(name => work(child.client, promises, name, 1000)))
    clearTimeout(timer)
    await child.exited
  }
  const last = await startChild(t, folder)
  t.same(await promises.problems(last.client), [])
  t.comment(`${promises.blobs.length} blobs, ${promises.references.size} paths`)
})
