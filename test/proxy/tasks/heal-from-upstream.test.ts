import t from 'tap'
import type { Artifact } from '../../../proxy/metadata/types.ts'
import { HealFromUpstream } from '../../../proxy/tasks/heal-from-upstream.ts'
import type { Term } from '../../../proxy/tasks/primary.ts'
import type { Healed } from '../../../proxy/upstream/upstream-cache.ts'
import type { Digest } from '../../../shared/ids.ts'
import { repositoryOf } from '../http/fake-edge.ts'

const lost = 'a'.repeat(64) as Digest
const upstream = { url: 'https://host/', maxAgeSeconds: 600, absentMaxAgeSeconds: 300 }
const term = { signal: new AbortController().signal } as Term
const artifactOf = (path: string, digest: Digest): Artifact => ({ path, repositoryId: 9, blob: { digest } }) as Artifact

function start(heal: (artifact: Artifact) => Healed): {
  task: HealFromUpstream
  asked: string[]
  wait: (ms: number) => void
} {
  const asked: string[] = []
  let now = 0
  const task = new HealFromUpstream({
    losses: { hopeless: () => [lost] },
    metadata: {
      upstreamNames: async () => [artifactOf('latest/a', lost), artifactOf('1.0/a', lost), artifactOf('1.0/b', lost)],
    },
    repositories: { all: async () => new Map([['mirror', repositoryOf('mirror', 9, { type: 'proxy', upstream })]]) },
    upstreams: {
      heal: async (_, artifact) => {
        asked.push(artifact.path)
        return heal(artifact)
      },
    },
    now: () => now,
  })
  return { task, asked, wait: ms => void (now += ms) }
}

t.test('what one name does not bring back the next one does; other bytes there bring nothing back', async t => {
  const { task, asked } = start(artifact =>
    artifact.path === 'latest/a' ? artifactOf(artifact.path, 'b'.repeat(64) as Digest) : artifact,
  )
  await task.step(term)
  t.strictSame(asked, ['latest/a', '1.0/a'])
})

t.test('what no name brings back is tried again, less and less often', async t => {
  const { task, asked, wait } = start(() => 'gone')
  for (let count = 0; count < 2; count += 1) await task.step(term)
  t.equal(asked.length, 3)
  wait(60_000)
  await task.step(term)
  wait(60_000)
  await task.step(term)
  t.equal(asked.length, 6)
  await task.ended()
  await task.step(term)
  t.equal(asked.length, 9)
})
