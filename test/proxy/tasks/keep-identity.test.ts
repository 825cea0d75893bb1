/** The copy of users and repositories that the primary keeps on the shards. */
import t from 'tap'
import type { ArtifactWriter, Put } from '../../../proxy/artifacts/artifact-writer.ts'
import { fingerprintOf, openIdentity } from '../../../proxy/identity/sealed-identity.ts'
import type { IdentityTables } from '../../../proxy/metadata/identity-tables.ts'
import type { Artifact, Repository } from '../../../proxy/metadata/types.ts'
import { identityPath, internalRepository, keepIdentity } from '../../../proxy/tasks/keep-identity.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { blob } from '../metadata/fixtures.ts'

const secret = 'a secret of sixteen characters'
const tablesOf = (...users: string[]): IdentityTables => ({ repositories: [], users: users.map(name => ({ name })) })

/** A cluster of which the task sees one artifact. */
class World {
  tables = tablesOf('ann')
  kept: Artifact | undefined
  body: Buffer | undefined
  puts = 0
  readonly #repositories: Repository[] = []
  /** Called when a primary has looked at the tables, before it goes on. */
  afterExport: () => Promise<void> = async () => {}

  primary(signal = new AbortController().signal): () => Promise<unknown> {
    const task = keepIdentity({ metadata: this.#metadata(), writer: { put: one => this.#put(one) }, secret })
    return () => task.step({ token: 1, signal })
  }

  users(): unknown {
    return openIdentity(secret, this.body!).tables.users.map(({ name }) => name)
  }

  #metadata() {
    return {
      clusterId: 'c',
      incarnation: 'i',
      listRepositories: async () => this.#repositories,
      createRepository: async ({ name }: { name: string }) => {
        const made = { id: 1, name } as Repository
        this.#repositories.push(made)
        return made
      },
      findArtifact: async () => this.kept,
      exportIdentity: async () => {
        const { tables } = this
        const wait = this.afterExport
        this.afterExport = async () => {}
        await wait()
        return tables
      },
    }
  }

  async #put({ repository, path, conditions, attributes, body }: Put): ReturnType<ArtifactWriter['put']> {
    t.same([repository.name, path], [internalRepository, identityPath])
    const { match, absent } = conditions
    const fits = match === undefined || (this.kept !== undefined && match.includes(this.kept.blob.digest))
    if (!fits || (absent === true && this.kept !== undefined)) throw new HoldfastError('PRECONDITION_FAILED', 'no')
    const chunks = []
    for await (const chunk of body) chunks.push(chunk)
    this.body = Buffer.concat(chunks)
    this.kept = { path, blob: blob(this.body.toString('hex')), attributes } as Artifact
    this.puts++
    return { outcome: 'created', artifact: this.kept }
  }
}

t.test('the copy follows the tables, and comes back when something took it away', async t => {
  const world = new World()
  const step = world.primary()
  await step()
  await step()
  t.equal(world.puts, 1)
  t.equal(world.kept?.attributes['fingerprint'], fingerprintOf(secret, world.tables))
  world.tables = tablesOf('ann', 'bob')
  await step()
  t.same(world.users(), ['ann', 'bob'])
  world.kept = undefined
  await step()
  t.equal(world.puts, 3)
})

t.test('I27: a primary that was paused does not bring back users that are gone', async t => {
  const world = new World()
  const [paused, next] = [world.primary(), world.primary()]
  for (const found of ['no copy', 'an older copy']) {
    world.tables = tablesOf('ann', `gone, ${found}`)
    world.afterExport = async () => {
      world.tables = tablesOf('ann', found)
      await next()
    }
    await t.rejects(paused(), { code: 'PRECONDITION_FAILED' })
    t.same(world.users(), ['ann', found])
  }
  const ended = new AbortController()
  world.tables = tablesOf('ann', 'late')
  world.afterExport = async () => ended.abort()
  await t.rejects(world.primary(ended.signal)(), { name: 'AbortError' })
  await next()
  t.same(world.users(), ['ann', 'late'])
})
