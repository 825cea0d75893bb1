/** Every route of the wire but the reading of blobs. Each answers, or throws what the server answers with. */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Dispatcher } from 'undici'
import { HoldfastError, toHoldfastError } from '../shared/errors.ts'
import { parsePartition, partitionCount } from '../shared/partition.ts'
import {
  type AppendAnswer,
  type DropAnswer,
  type EntriesAnswer,
  type ReferencesAnswer,
  type ScrubAnswer,
  type SummaryAnswer,
  type TouchAnswer,
  uploadIdPattern,
  type VersionsAnswer,
  wireHeader,
} from '../shared/wire.ts'
import { type AppendItem, parseAppend, pathKeyBytesMax } from './append.ts'
import type { Urgency } from './background.ts'
import { blobName, isBlobName } from './blob-name.ts'
import type { BodyClaim } from './body-budget.ts'
import {
  type BodyLimits,
  backgroundOf,
  headerOf,
  readBody,
  readJson,
  sendBytes,
  sendJson,
  toWireError,
} from './http-answer.ts'
import {
  findReference,
  findReferences,
  listBlobs,
  listLosses,
  listReferences,
  listUnconfirmed,
  type Page,
} from './lists.ts'
import type { ServedShard, StorageNode } from './node.ts'
import {
  parseBundle,
  parseCommit,
  parseDrop,
  parseEntries,
  parseFolder,
  parseReferences,
  parseTouch,
  parseTransfer,
  parseVersions,
} from './requests.ts'
import { sendBundle } from './send-bundle.ts'
import { serveUpload } from './serve-upload.ts'
import type { SourceReader } from './source-reader.ts'
import { listNames, listSome, versionsOf } from './summaries.ts'
import { touchBlob } from './touch.ts'
import { transferBlobs } from './transfer.ts'
import { verifyBlob } from './verify-blob.ts'
import { walkFolder } from './walk-folder.ts'

export interface RouteContext {
  readonly node: StorageNode
  readonly authorization: string
  readonly reader: SourceReader
  readonly dispatcher: Dispatcher
  /** Aborts when the node shuts down. */
  readonly signal: AbortSignal
}

interface Call extends RouteContext {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  /** Of the path, behind `/v1/<name>`. */
  readonly parts: readonly string[]
  readonly query: URLSearchParams
  /** Of memory for the body: held until the request is answered. */
  readonly claim: BodyClaim
}

type Handler = (call: Call) => Promise<void>

/** Their records share a flush of the log, and they one turn of the disk. */
const dropsAtOnce = 64
const jsonBytesMax = 4 * 1024 * 1024
const mapBytesMax = 64 * 1024 * 1024
const commitBytesMax = 8 * 1024 * 1024
const pageDefault = 1000
const pageMax = 10_000

/** `<method> <name> <number of parts behind it>` */
const routes: Readonly<Record<string, Handler>> = {
  'GET status 0': async call => answer(call, call.node.status),
  'POST append 0': append,
  'POST touch 0': touch,
  'POST transfer 0': transfer,
  'POST bundle 1': bundle,
  'POST drop 0': drop,
  'GET cluster-map 0': getClusterMap,
  'PUT cluster-map 0': putClusterMap,
  'GET blobs 2': blobs,
  'GET references 1': async call =>
    answer(call, await listReferences(shardNamed(call.node, call.parts[0]).shard, 'all', pageOf(call))),
  'POST references 1': someReferences,
  'GET references 2': references,
  'PUT uploads 2': putUpload,
  'GET uploads 2': getUpload,
  'DELETE uploads 2': deleteUpload,
  'POST uploads 3': commitUpload,
  'GET unconfirmed 1': unconfirmed,
  'GET verify 3': verify,
  'GET summaries 1': summaries,
  'POST entries 1': entriesOfSome,
  'GET entries 2': entries,
  'POST versions 0': versions,
  'POST folder 1': folder,
  'GET losses 1': losses,
  'POST recovered 1': recovered,
  'GET scrub 0': async call => answer(call, { shards: scrubs(call) } satisfies ScrubAnswer),
  'POST scrub 1': scrub,
}

/** Rejects with the error to answer with. */
export async function handleRoute(
  context: RouteContext,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const [path = '', search = ''] = (request.url ?? '').split('?', 2)
  const [, version, name = '', ...parts] = path.split('/')
  if (version !== 'v1') throw new HoldfastError('NOT_FOUND', 'no such route')
  const handler = routes[`${request.method} ${name} ${parts.length}`]
  if (handler === undefined) {
    const known = Object.keys(routes).some(route => route.split(' ')[1] === name)
    throw new HoldfastError(known ? 'METHOD_NOT_ALLOWED' : 'NOT_FOUND', 'no such route')
  }
  const claim = context.node.bodies.claim()
  try {
    await handler({ ...context, request, response, parts, query: new URLSearchParams(search), claim })
  } finally {
    claim.release()
  }
}

function bodyOf({ node, claim }: Call, bytesMax: number): BodyLimits {
  return { bytesMax, timeoutMs: node.limits.stallMs, claim }
}

/** Whoever asked and left wants no gigabytes read; whoever is shutting down neither. */
function whileAwaited({ response, signal }: Call): AbortSignal {
  const left = new AbortController()
  response.once('close', () => left.abort(new HoldfastError('REQUEST_TIMEOUT', 'nobody waits for the answer')))
  return AbortSignal.any([left.signal, signal])
}

function answer({ node, response }: Call, value: unknown): void {
  sendJson(response, 200, value, [wireHeader.epoch, String(node.state.epoch)])
}

async function append(call: Call): Promise<void> {
  const { node, request } = call
  const items = parseAppend(await readBody(request, bodyOf(call, node.limits.appendBytesMax)))
  const epoch = epochOf(call)
  const urgency = backgroundOf(request)
  const results: AppendAnswer['results'] = await Promise.all(items.map(item => appendItem(node, item, epoch, urgency)))
  answer(call, { results } satisfies AppendAnswer)
}

async function appendItem(
  node: StorageNode,
  item: AppendItem,
  epoch: number | undefined,
  urgency: Urgency | undefined,
): Promise<AppendAnswer['results'][number]> {
  try {
    if (item.problem !== undefined) throw item.problem
    const { shard } = shardNamed(node, item.shard)
    // Records of the primary's copying hold nothing back: not even itself, where nobody else is there.
    const append = () => shard.append(item)
    await node.gate.pass(epoch, () => (urgency === undefined ? shard.clients.during(append) : append()))
    return 'ok'
  } catch (thrown) {
    return toWireError(toHoldfastError(thrown))
  }
}

async function touch(call: Call): Promise<void> {
  const { node, request } = call
  const { items } = parseTouch(await readJson(request, bodyOf(call, jsonBytesMax)))
  const results: TouchAnswer['results'][number][] = []
  for (const item of items) {
    const served = node.shards.get(item.shard)
    results.push(served === undefined ? 'unavailable' : await touchOne(served, blobName(item), backgroundOf(request)))
  }
  answer(call, { results } satisfies TouchAnswer)
}

function touchOne({ shard }: ServedShard, name: string, urgency?: Urgency): Promise<TouchAnswer['results'][number]> {
  const look = () => touchBlob(shard, name)
  return urgency === undefined ? shard.clients.during(look) : look()
}

async function transfer(call: Call): Promise<void> {
  const { node, request, authorization, reader, dispatcher, signal } = call
  const { shard: id, blobs } = parseTransfer(await readJson(request, bodyOf(call, jsonBytesMax)))
  await node.state.acceptFence(headerOf(request, wireHeader.fence))
  const { shard, uploads } = shardNamed(node, id)
  const { limits, transfers: limit } = node
  const urgency = backgroundOf(request) ?? 'usual'
  const deps = { shard, uploads, reader, dispatcher, authorization, signal, limit, concurrency: limits.transferConcurrency, urgency } // prettier-ignore
  answer(call, await transferBlobs(deps, blobs))
}

async function bundle(call: Call): Promise<void> {
  const { node, request, response } = call
  const { blobs } = parseBundle(await readJson(request, bodyOf(call, jsonBytesMax)))
  const options = { epoch: node.state.epoch, urgency: backgroundOf(request) ?? 'usual' }
  await sendBundle(shardNamed(node, call.parts[0]).shard, blobs, response, options)
}

async function drop(call: Call): Promise<void> {
  const { node, request } = call
  const { shard: id, reason, blobs } = parseDrop(await readJson(request, bodyOf(call, jsonBytesMax)))
  const fence = headerOf(request, wireHeader.fence)
  await node.state.acceptFence(fence)
  const { shard } = shardNamed(node, id)
  const signal = whileAwaited(call)
  const results: DropAnswer['results'][number][] = []
  for (let at = 0; at < blobs.length; at += dropsAtOnce) {
    const group = blobs.slice(at, at + dropsAtOnce)
    const dropAll = async () => {
      // Since it came there may be another primary, which has decided otherwise.
      await node.state.acceptFence(fence)
      return Promise.all(group.map(blob => shard.drop(blob, reason)))
    }
    results.push(...(await shard.background.run(0, { signal }, dropAll)))
  }
  answer(call, { results } satisfies DropAnswer)
}

async function getClusterMap({ node, response }: Call): Promise<void> {
  const map = node.state.clusterMap
  if (map === undefined) throw new HoldfastError('NOT_FOUND', 'no cluster map yet')
  sendBytes(response, 200, 'application/json', map, [wireHeader.epoch, String(node.state.epoch)])
}

async function putClusterMap(call: Call): Promise<void> {
  const { node, request } = call
  // From here on nothing of a primary before counts: it may be about to drop what this map gives to a shard of this node.
  const fence = headerOf(request, wireHeader.fence)
  if (fence !== undefined) await node.state.acceptFence(fence)
  await node.storeClusterMap(await readBody(request, bodyOf(call, mapBytesMax)))
  answer(call, { epoch: node.state.epoch })
}

async function blobs(call: Call): Promise<void> {
  const { shard, partition } = shardAndPartition(call)
  answer(call, await listBlobs(shard, partition, pageOf(call)))
}

async function references(call: Call): Promise<void> {
  const { shard, partition } = shardAndPartition(call)
  const key = call.query.get('key')
  if (key === null) return answer(call, await listReferences(shard, partition, pageOf(call)))
  if (Buffer.byteLength(key) > pathKeyBytesMax) throw new HoldfastError('BAD_REQUEST', 'the key is too long')
  const find = () => findReference(shard, partition, key)
  answer(call, backgroundOf(call.request) === undefined ? await shard.clients.during(find) : await find())
}

async function unconfirmed(call: Call): Promise<void> {
  const { shard } = shardNamed(call.node, call.parts[0])
  answer(call, await listUnconfirmed(shard, wholeNumber(call, 'olderThanMs', 0), pageOf(call)))
}

async function verify(call: Call): Promise<void> {
  const [id, partition, file] = call.parts
  const name = `${partition}/${file}`
  if (!isBlobName(name)) throw new HoldfastError('BAD_REQUEST', 'not a blob')
  answer(call, await verifyBlob(shardNamed(call.node, id).shard, name, whileAwaited(call)))
}

async function summaries(call: Call): Promise<void> {
  const { shard } = shardNamed(call.node, call.parts[0])
  const count = Math.max(1, wholeNumber(call, 'count', partitionCount))
  const partitions = await shard.summaries.list(shard, wholeNumber(call, 'from', 0), count)
  answer(call, { partitions } satisfies SummaryAnswer)
}

async function entries(call: Call): Promise<void> {
  const { shard, partition } = shardAndPartition(call)
  const of = call.query.get('of')
  if (of !== 'blobs' && of !== 'references') throw new HoldfastError('BAD_REQUEST', 'of must be blobs or references')
  answer(call, await listNames(shard, of, partition, pageOf(call)))
}

async function entriesOfSome(call: Call): Promise<void> {
  const { node, request } = call
  const { lists, limit } = parseEntries(await readJson(request, bodyOf(call, jsonBytesMax)))
  const { shard } = shardNamed(node, call.parts[0])
  answer(call, { lists: await listSome(shard, lists, Math.min(limit, pageMax)) } satisfies EntriesAnswer)
}

async function someReferences(call: Call): Promise<void> {
  const { node, request } = call
  const { references: items } = parseReferences(await readJson(request, bodyOf(call, jsonBytesMax)))
  const { shard } = shardNamed(node, call.parts[0])
  answer(call, { references: await findReferences(shard, items) } satisfies ReferencesAnswer)
}

async function versions(call: Call): Promise<void> {
  const { node, request } = call
  const { shard: id, references: items } = parseVersions(await readJson(request, bodyOf(call, jsonBytesMax)))
  answer(call, { versions: await versionsOf(shardNamed(node, id).shard, items) } satisfies VersionsAnswer)
}

async function folder(call: Call): Promise<void> {
  const { node, request } = call
  const question = parseFolder(await readJson(request, bodyOf(call, jsonBytesMax)))
  const { shard } = shardNamed(node, call.parts[0])
  answer(call, await shard.clients.during(() => walkFolder(shard, question, whileAwaited(call))))
}

async function losses(call: Call): Promise<void> {
  answer(call, await listLosses(shardNamed(call.node, call.parts[0]).shard, pageOf(call)))
}

async function recovered(call: Call): Promise<void> {
  const { node, request } = call
  const { recovering } = await readJson(request, bodyOf(call, jsonBytesMax))
  if (typeof recovering !== 'string') throw new HoldfastError('BAD_REQUEST', 'recovering must say what has ended')
  await node.state.acceptFence(headerOf(request, wireHeader.fence))
  await shardNamed(node, call.parts[0]).shard.recovered(recovering)
  answer(call, {})
}

const scrubs = ({ node }: Call) => [...node.shards.values()].map(served => served.scrub.status)

async function scrub(call: Call): Promise<void> {
  const { node, request } = call
  const { action } = await readJson(request, bodyOf(call, jsonBytesMax))
  if (action !== 'start' && action !== 'pause') throw new HoldfastError('BAD_REQUEST', 'action must be start or pause')
  const served = shardNamed(node, call.parts[0])
  await served.scrub.command(action)
  answer(call, served.scrub.status)
}

async function putUpload(call: Call): Promise<void> {
  const { node, request } = call
  const { uploads } = shardNamed(node, call.parts[0])
  if (!node.takesUploads) throw new HoldfastError('SHUTTING_DOWN', 'the node is shutting down')
  if (node.uploadCount >= node.limits.uploadCountMax) throw new HoldfastError('OVERLOADED', 'too many uploads')
  const header = headerOf(request, wireHeader.expectedBytes) ?? headerOf(request, 'content-length')
  if (header !== undefined && !/^\d{1,15}$/.test(header)) throw new HoldfastError('BAD_REQUEST', 'not a length')
  const expectedBytes = header === undefined ? undefined : Number(header)
  answer(call, await uploads.receive(uploadId(call), request, expectedBytes))
}

async function getUpload(call: Call): Promise<void> {
  const { shard, uploads } = shardNamed(call.node, call.parts[0])
  const { request, response } = call
  await serveUpload(shard, uploads.written(uploadId(call)), headerOf(request, 'range'), response)
}

async function deleteUpload(call: Call): Promise<void> {
  const { uploads } = shardNamed(call.node, call.parts[0])
  await uploads.abort(uploadId(call))
  answer(call, {})
}

async function commitUpload(call: Call): Promise<void> {
  const { node, request } = call
  if (call.parts[2] !== 'commit') throw new HoldfastError('NOT_FOUND', 'no such route')
  const { shard, uploads } = shardNamed(node, call.parts[0])
  const id = uploadId(call)
  const order = parseCommit(await readJson(request, bodyOf(call, commitBytesMax)))
  await node.gate.pass(epochOf(call), () => shard.clients.during(() => uploads.commit(id, order)))
  answer(call, {})
}

function shardNamed(node: StorageNode, id: string | undefined): ServedShard {
  const served = node.shards.get(id ?? '')
  if (served === undefined) throw new HoldfastError('SHARD_UNKNOWN', 'no such shard on this node')
  return served
}

function shardAndPartition({ node, parts }: Call) {
  const partition = parsePartition(parts[1] ?? '')
  if (partition === undefined) throw new HoldfastError('BAD_REQUEST', 'not a partition')
  return { shard: shardNamed(node, parts[0]).shard, partition }
}

/** Of the sender's cluster map. */
function epochOf({ request }: Call): number | undefined {
  const text = headerOf(request, wireHeader.epoch)
  return text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : undefined
}

/** Becomes a file name: nothing else passes (I40). */
function uploadId({ parts }: Call): string {
  const id = parts[1] ?? ''
  if (!uploadIdPattern.test(id)) throw new HoldfastError('BAD_REQUEST', 'not an upload id')
  return id
}

function pageOf(call: Call): Page {
  const limit = Math.min(Math.max(1, wholeNumber(call, 'limit', pageDefault)), pageMax)
  return { after: call.query.get('after') ?? undefined, limit }
}

function wholeNumber({ query }: Call, name: string, fallback: number): number {
  const text = query.get(name)
  if (text === null) return fallback
  if (!/^\d{1,15}$/.test(text)) throw new HoldfastError('BAD_REQUEST', `${name} must be a whole number`)
  return Number(text)
}
