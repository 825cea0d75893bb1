import { hash } from 'node:crypto'
import { pino } from 'pino'
import type { Artifact, Blob, Repository } from '../../../proxy/metadata/types.ts'
import type { ReferenceRecord } from '../../../shared/record.ts'
import { HoldfastError } from '../../../shared/errors.ts'
import { newGeneration, type Digest } from '../../../shared/ids.ts'

export const silent = pino({ level: 'silent' })
export const away = (): HoldfastError => new HoldfastError('METADATA_UNAVAILABLE', 'away')

export const repository: Repository = {
  id: 1, name: 'raw', format: 'raw', type: 'hosted',
  upstream: null, redeploy: 'allow', artifactBytesMax: null, anonymousRead: true, trashDays: 7,
} // prettier-ignore

export function blobOf(text: string | Buffer): Blob {
  return {
    digest: hash('sha256', text) as Digest,
    generation: newGeneration(),
    partition: 7,
    bytes: text.length,
    md5: hash('md5', text),
    sha1: hash('sha1', text),
  }
}

export function artifactOf(path: string, version = 1, blob = blobOf(path)): Artifact {
  return {
    repositoryId: 1, path, version, blob, contentType: null, attributes: {}, createdBy: 'ann', createdAt: 1, updatedAt: 2,
  } // prettier-ignore
}

export function recordOf(path: string, version: number, op: 'put' | 'delete' = 'put'): ReferenceRecord {
  const common = { kind: 'reference', partition: 7, repository: 'raw', path, version, incarnation: 'i', time: 2, user: 'ann' } as const // prettier-ignore
  return op === 'delete' ? { ...common, op } : { ...common, op, blob: blobOf(path) }
}

/** A promise and its end, for whoever wants to say when. */
export function gate<Value = void>(): {
  promise: Promise<Value>
  open: (value: Value) => void
  fail: (error: unknown) => void
} {
  let open!: (value: Value) => void
  let fail!: (error: unknown) => void
  const promise = new Promise<Value>((resolve, reject) => {
    open = resolve
    fail = reject
  })
  return { promise, open, fail }
}
