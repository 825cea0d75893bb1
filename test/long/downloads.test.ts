import t from 'tap'
import { startCluster, type NodeHandle } from '../support/cluster.ts'
import { waitForFullCopies } from '../support/copies.ts'
import { eventually } from '../support/eventually.ts'
import { figure } from '../support/figures.ts'
import { seededRandom } from '../support/random.ts'

const downloads = 20
const bytes = 200_000_000

/** Readers that may each take so much; who is at the limit waits. */
class Gate {
  allowed = 0
  readonly reached = new Array<number>(downloads).fill(0)
  /** The longest time that one waited for bytes it was allowed to take. */
  gapMsMax = 0
  readonly #since = new Array<number>(downloads).fill(Infinity)
  #open: (() => void)[] = []

  pause(reader: number, total: number): Promise<void> | undefined {
    this.reached[reader] = total
    const now = performance.now()
    this.gapMsMax = Math.max(this.gapMsMax, now - this.#since[reader]!)
    this.#since[reader] = now
    if (total < this.allowed) return undefined
    this.#since[reader] = Infinity
    return new Promise(resolve => {
      this.#open.push(() => {
        this.#since[reader] = performance.now()
        resolve()
      })
    })
  }

  raise(allowed: number): void {
    this.allowed = allowed
    for (const resolve of this.#open.splice(0)) resolve()
  }

  /** All readers have got so far, or have ended. */
  async passed(ended: () => number): Promise<void> {
    await eventually(
      `all readers at ${this.allowed}`,
      () => this.reached.filter(total => total >= this.allowed).length + ended() >= downloads,
      { withinMs: 60_000 },
    )
  }
}

t.test(
  'I6: of 20 slow downloads of 200 MB all complete, whichever node that serves them is killed or hangs',
  async t => {
    const random = seededRandom(t)
    const cluster = await startCluster(t)
    const client = cluster.client({ connections: downloads, timeoutMs: 60_000 })
    const { status } = await client.put('raw/big', random.bytes(bytes))
    t.equal(status, 201)
    await waitForFullCopies(cluster, ['raw/big'])

    const gate = new Gate()
    let ended = 0
    const all = Array.from({ length: downloads }, (_, reader) =>
      client
        .download('raw/big', total => gate.pause(reader, total))
        .then(
          () => 'complete',
          (error: Error) => `${error.message} after ${gate.reached[reader]} bytes`,
        ),
    )
    for (const one of all) void one.then(() => ended++)
    const metrics = cluster.client()
    const [first, second, third] = random.shuffled(cluster.nodes) as [NodeHandle, NodeHandle, NodeHandle]
    gate.raise(20_000_000)
    await gate.passed(() => ended)
    // The bytes flow while the node dies; then it returns, so that two copies are always there.
    for (const [node, next] of [
      [first, 70_000_000],
      [second, 120_000_000],
    ] as const) {
      gate.raise(next)
      await node.process.kill()
      await gate.passed(() => ended)
      await node.process.start()
      await cluster.allNodesUp()
      t.comment(`${node.id} killed: ${await metrics.metric('holdfast_resumes_total')} resumes so far`)
    }
    gate.raise(160_000_000)
    third.process.stop()
    await gate.passed(() => ended)
    gate.raise(Infinity)
    t.strictSame(new Set(await Promise.all(all)), new Set(['complete']))
    third.process.cont()
    const resumes = await metrics.metric('holdfast_resumes_total')
    t.comment(`${resumes} resumes, ${await metrics.metric('holdfast_hedges_total')} hedges`)
    figure(t, 'download.gap', gate.gapMsMax, 'ms')
    figure(t, 'download.resumes', resumes, 'count')
    t.ok(resumes > 0, 'nodes were lost in the middle of bodies')
    t.equal(await metrics.metric('holdfast_cut_streams_total'), 0)
    t.strictSame(cluster.crashes(), [])
  },
)
