/** Backups in a bucket of S3, or of whatever speaks like it. */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ErrorCode, HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { BucketClient, type BucketAnswer, type BucketDeps } from './bucket-client.ts'
import { silenceOf } from './bucket-errors.ts'
import type { BucketPlace } from './bucket-url.ts'
import { completionXml, elementsOf, textOf } from './bucket-xml.ts'
import { inChunksOf } from './chunks.ts'
import { type BackupTarget, isObjectName, objectNamePattern, type PutOptions } from './types.ts'

const MiB = 2 ** 20
/** S3 takes 10,000 parts; some are left for what encryption adds and for a size that was a guess. */
const partsMax = 10_000
const partsPlanned = 9_000
const partBytesDefault = 8 * MiB
/** Memory of one put. Objects above 9,000 times this (1.1 TiB) are refused. */
const partBytesMax = 128 * MiB
/** S3 puts the parts of large objects together before it answers. */
const completionMs = 600_000
const readTriesMax = 6
/** So much was read since the last time that the reading broke off: the tries begin anew. */
const readProgressBytes = 8 * MiB
/** Ours: tells a put that is tried again that it was itself who took the name. */
const ticketHeader = 'x-amz-meta-holdfast-ticket'

interface Writing {
  readonly key: string
  readonly what: string
  readonly ticket: string
  readonly signal: AbortSignal | undefined
}

export class BucketTarget implements BackupTarget {
  readonly label: string
  readonly #place: BucketPlace
  readonly #deps: BucketDeps
  readonly #client: BucketClient
  /** Some that speak like S3 refuse conditional writes (501): then the name is looked up before. */
  #conditional = true

  constructor(place: BucketPlace, deps: BucketDeps) {
    this.label = place.label
    this.#place = place
    this.#deps = deps
    this.#client = new BucketClient(place, deps)
  }

  /** Memory: twice a part of 8 MiB (more above 70 GiB), or twice the body where that is smaller. */
  async put(name: string, body: AsyncIterable<Buffer>, { bytes = 0, signal }: PutOptions = {}): Promise<boolean> {
    const key = this.#keyOf(name)
    const writing = { key, what: `${name} cannot be written`, ticket: randomBytes(12).toString('hex'), signal }
    const partBytes = partBytesOf(bytes, this.#deps.partBytesMin)
    const parts = inChunksOf(partBytes, body)
    try {
      const first = await parts.next()
      const whole = first.done === true ? Buffer.alloc(0) : first.value
      if (!this.#conditional && (await this.#ticketAt(writing)) !== undefined) return false
      if (whole.length < partBytes) return await this.#putWhole(writing, whole)
      return await this.#putParts(writing, whole, parts)
    } finally {
      await parts.return(undefined)
    }
  }

  async *get(name: string): AsyncIterable<Buffer> {
    const key = this.#keyOf(name)
    const what = `${name} cannot be read`
    let at = 0
    let etag: string | undefined
    let tries = 1
    for (let since = 0; ;) {
      const headers = etag === undefined || at === 0 ? {} : { range: `bytes=${at}-`, 'if-match': etag }
      const body = await this.#client.open({ method: 'GET', key, headers, what })
      const { statusCode, headers: answer } = body
      body.on('error', () => {}) // the loop below meets it; destroying a body that nobody takes is one, too
      try {
        if (at > 0 && statusCode !== 206) throw this.#wrong(what, 'it gives no ranges')
        for await (const chunk of body as AsyncIterable<Buffer>) {
          at += chunk.length
          since += chunk.length
          yield chunk
        }
        return
      } catch (error) {
        if (isHoldfastError(error)) throw error
        if (since >= readProgressBytes) tries = 1
        etag ??= typeof answer['etag'] === 'string' ? answer['etag'] : undefined
        if (tries++ >= readTriesMax || (at > 0 && etag === undefined)) throw silenceOf(this.#place, what, error)
        since = 0
        await sleep(this.#deps.pauseMs * tries)
      } finally {
        body.destroy()
      }
    }
  }

  async list(folder: string): Promise<readonly string[]> {
    const prefix = `${this.#place.prefix}${folder}/`
    const query = [['list-type', '2'], ['prefix', prefix], ['delimiter', '/']] as const // prettier-ignore
    const names: string[] = []
    const markers = [['continuation-token', 'NextContinuationToken']] as const
    for await (const page of this.#pages(query, `${folder} cannot be listed`, markers)) {
      for (const entry of elementsOf(page, 'Contents')) {
        const last = (textOf(entry, 'Key') ?? '').slice(prefix.length)
        if (isObjectName(folder, last)) names.push(last)
      }
    }
    return names
  }

  async remove(name: string): Promise<void> {
    const what = `${name} cannot be removed`
    const answer = await this.#client.ask({ method: 'DELETE', key: this.#keyOf(name), what }, [404])
    if (answer.code === 'NoSuchBucket') throw this.#client.refused(what, answer)
  }

  async tidy(olderThanMs: number): Promise<number> {
    const { prefix } = this.#place
    const what = 'what was left of broken uploads cannot be removed'
    const left: { readonly key: string; readonly upload: string }[] = []
    const query = [['uploads', ''], ['prefix', prefix]] as const // prettier-ignore
    const markers = [['key-marker', 'NextKeyMarker'], ['upload-id-marker', 'NextUploadIdMarker']] as const // prettier-ignore
    for await (const page of this.#pages(query, what, markers)) {
      for (const entry of elementsOf(page, 'Upload')) {
        const key = textOf(entry, 'Key') ?? ''
        const upload = textOf(entry, 'UploadId')
        const begun = Date.parse(textOf(entry, 'Initiated') ?? '')
        const ours = key.startsWith(prefix) && objectNamePattern.test(key.slice(prefix.length))
        if (ours && upload !== undefined && begun < this.#deps.now() - olderThanMs) left.push({ key, upload })
      }
    }
    for (const { key, upload } of left) await this.#abandon(key, upload, what)
    return left.length
  }

  async #putWhole(writing: Writing, body: Buffer): Promise<boolean> {
    const { key, what, ticket, signal } = writing
    const headers = { [ticketHeader]: ticket, 'content-type': 'application/octet-stream', ...this.#once() }
    const answer = await this.#client.ask({ method: 'PUT', key, headers, body, what, signal }, [412, 501])
    return this.#taken(writing, answer, () => this.#putWhole(writing, body))
  }

  async #putParts(writing: Writing, first: Buffer, rest: AsyncIterable<Buffer>): Promise<boolean> {
    const { key, what, ticket, signal } = writing
    const headers = { [ticketHeader]: ticket, 'content-type': 'application/octet-stream' }
    const begun = await this.#client.ask({ method: 'POST', key, query: [['uploads', '']], headers, what, signal })
    const upload = textOf(begun.text, 'UploadId')
    if (upload === undefined || upload === '') throw this.#client.refused(what, begun)
    try {
      const etags = [await this.#putPart(writing, upload, 1, first)]
      for await (const part of rest) {
        if (etags.length === partsMax) throw this.#wrong(what, 'it is too large', 'TOO_LARGE')
        etags.push(await this.#putPart(writing, upload, etags.length + 1, part))
      }
      const written = await this.#complete(writing, upload, etags)
      if (!written) await this.#abandon(key, upload, what).catch(() => {}) // somebody else's is there; `tidy` finds ours
      return written
    } catch (error) {
      await this.#abandon(key, upload, what).catch(() => {}) // the first error is the one to tell; `tidy` finds what is left
      throw error
    }
  }

  async #putPart({ key, what, signal }: Writing, upload: string, number: number, body: Buffer): Promise<string> {
    const query = [['partNumber', String(number)], ['uploadId', upload]] as const // prettier-ignore
    const answer = await this.#client.ask({ method: 'PUT', key, query, body, what, signal })
    const { etag } = answer.headers
    if (typeof etag !== 'string') throw this.#client.refused(what, answer)
    return etag
  }

  async #complete(writing: Writing, upload: string, etags: readonly string[]): Promise<boolean> {
    const { key, what, signal } = writing
    const headers = { 'content-type': 'application/xml', ...this.#once() }
    const body = Buffer.from(completionXml(etags))
    const request = { method: 'POST', key, query: [['uploadId', upload]], headers, body, what, signal, patienceMs: completionMs } as const // prettier-ignore
    const answer = await this.#client.ask(request, [404, 412, 501])
    return this.#taken(writing, answer, () => this.#complete(writing, upload, etags))
  }

  /** Is the name given now, and by us? `again`: without a condition. */
  async #taken(writing: Writing, answer: BucketAnswer, again: () => Promise<boolean>): Promise<boolean> {
    const { status, code, unsure } = answer
    if (status < 300) return true
    if (status === 501 && this.#conditional) {
      this.#conditional = false
      return (await this.#ticketAt(writing)) === undefined ? again() : false
    }
    // A try whose answer was lost may have taken the name, and ended the upload.
    const lost = unsure && (status === 412 || code === 'NoSuchUpload')
    if (lost && (await this.#ticketAt(writing)) === writing.ticket) return true
    if (status === 412) return false
    throw this.#client.refused(writing.what, answer)
  }

  /** Undefined: nothing has the name. */
  async #ticketAt({ key, what, signal }: Writing): Promise<string | undefined> {
    const { status, headers } = await this.#client.ask({ method: 'HEAD', key, what, signal }, [404])
    if (status === 404) return undefined
    return String(headers[ticketHeader] ?? '')
  }

  async #abandon(key: string, upload: string, what: string): Promise<void> {
    await this.#client.ask({ method: 'DELETE', key, query: [['uploadId', upload]], what }, [404])
  }

  #once(): Record<string, string> {
    return this.#conditional ? { 'if-none-match': '*' } : {}
  }

  async *#pages(
    query: readonly (readonly [string, string])[],
    what: string,
    markers: readonly (readonly [parameter: string, element: string])[],
  ): AsyncGenerator<string> {
    for (let more: [string, string][] = []; ;) {
      const { text } = await this.#client.ask({ method: 'GET', key: '', query: [...query, ...more], what })
      yield text
      if (textOf(text, 'IsTruncated') !== 'true') return
      const next = markers.map(([name, element]): [string, string] => [name, textOf(text, element) ?? ''])
      if (next[0]?.[1] === '' || JSON.stringify(next) === JSON.stringify(more)) {
        throw this.#wrong(what, 'its list has no end')
      }
      more = next
    }
  }

  #wrong(what: string, why: string, code: ErrorCode = 'CONFLICT'): HoldfastError {
    return new HoldfastError(code, `backup target ${this.label}: ${what}: ${why}`)
  }

  #keyOf(name: string): string {
    if (!objectNamePattern.test(name)) throw new HoldfastError('PATH_INVALID', `'${name}' names no object of a backup`)
    return this.#place.prefix + name
  }
}

/** All but the last have this size, which some servers insist on. TOO_LARGE if none is enough. */
export function partBytesOf(bytes: number, partBytesMin: number = partBytesDefault): number {
  const needed = Math.ceil(bytes / partsPlanned / MiB) * MiB
  if (needed > partBytesMax) {
    throw new HoldfastError('TOO_LARGE', `${bytes} bytes are too many for one object of a bucket`, { bytes })
  }
  return Math.max(partBytesMin, needed)
}
