import { hash, randomBytes } from 'node:crypto'
import pg from 'pg'
import { pino } from 'pino'
import type { Test } from 'tap'
import { newGeneration, type Digest } from '../../../shared/ids.ts'
import { openMetadata, type MetadataOptions } from '../../../proxy/metadata/open-metadata.ts'
import type { Blob, CommitArtifact, CommitResult, Metadata, Repository } from '../../../proxy/metadata/types.ts'

export const silent = pino({ level: 'silent' })

/** Metadata that is closed with the test. */
export async function open(
  t: Pick<Test, 'teardown'>,
  url: string,
  more: Partial<MetadataOptions> = {},
): Promise<Metadata> {
  const metadata = await openMetadata({ url, log: silent, ...more })
  t.teardown(() => metadata.close())
  return metadata
}

/** A plain connection, to look behind the interface. */
export async function connect(t: Pick<Test, 'teardown'>, url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  t.teardown(() => client.end().catch(() => {}))
  return client
}

export function digestOf(text: string): Digest {
  return hash('sha256', text) as Digest
}

export function blob(text: string = randomBytes(8).toString('hex'), change: Partial<Blob> = {}): Blob {
  return {
    digest: digestOf(text),
    generation: newGeneration(),
    partition: 7,
    bytes: text.length,
    md5: hash('md5', text),
    sha1: hash('sha1', text),
    ...change,
  }
}

export function commit(repository: Repository, path: string, change: Partial<CommitArtifact> = {}): CommitArtifact {
  return {
    repositoryId: repository.id,
    repository: repository.name,
    path,
    contentType: null,
    attributes: {},
    user: 'alice',
    conditions: { redeploy: 'allow' },
    blob: blob(),
    blobIs: 'new',
    missing: [],
    handoffs: [],
    ...change,
  }
}

export type Done = Extract<CommitResult, { outcome: 'created' | 'replaced' | 'unchanged' }>

/** The result of a commit that must succeed. */
export function done(result: CommitResult): Done {
  if ('artifact' in result) return result
  throw new Error(`commit ended as ${JSON.stringify(result)}`)
}

/** As the artifact service does it: a digest that is there already is committed as it is. */
export async function put(metadata: Metadata, one: CommitArtifact): Promise<Done> {
  const result = await metadata.commitArtifact(one)
  if (result.outcome !== 'blob-exists') return done(result)
  return done(await metadata.commitArtifact({ ...one, blob: result.blob, blobIs: 'existing' }))
}
