/**
 * Small blobs on their way to another node, as one stream (shared/bundle.ts). Read in the order in which they stand in the log, each
 * checked (I5); one that fails is quarantined and refused, and the others go on. The next group is read while the last one drains.
 */
import type { ServerResponse } from 'node:http'
import { crc32 } from 'node:zlib'
import { atMost } from '../shared/at-most.ts'
import { type BundleRefusal, bundledBlob, bundledRefusal, bundleEnd } from '../shared/bundle.ts'
import { toHoldfastError } from '../shared/errors.ts'
import { inlineBlobBytesMax } from '../shared/record.ts'
import { type BlobKey, wireHeader } from '../shared/wire.ts'
import type { Urgency } from './background.ts'
import { blobName } from './blob-name.ts'
import type { BlobLocation } from './index.ts'
import { openSegmentOf, readError, ResponseWriter } from './read-blob.ts'
import type { Shard } from './shard.ts'
import { readFully } from './store-fs.ts'

const groupBytes = 1024 * 1024
/** The threads that read are four. */
const readsAtOnce = 8
/** Where clients use the disk: short turns, so that they wait for little. */
const sharedGroup = { bytes: 256 * 1024, count: 32 }

interface Wanted {
  readonly index: number
  readonly blob: BlobKey
  readonly name: string
  readonly location: BlobLocation | undefined
}

/** Resolves when all is sent, or when nobody is there any more. Rejects before the first byte with SHARD_FAILED. */
export async function sendBundle(
  shard: Shard,
  blobs: readonly BlobKey[],
  response: ServerResponse,
  { epoch, urgency }: { readonly epoch: number; readonly urgency: Urgency },
): Promise<void> {
  const wanted = await locateAll(shard, blobs)
  response.writeHead(200, ['Content-Type', 'application/octet-stream', wireHeader.epoch, String(epoch)])
  const writer = new ResponseWriter(response, shard.limits.stallMs)
  let flushed = Promise.resolve(true)
  // The node that waits for the bytes does not know how long the first turn may take.
  response.flushHeaders()
  for (const group of groupsOf(wanted, () => shard.background.share(urgency) < 1)) {
    const bytes = group.reduce((sum, { location }) => sum + (location?.bytes ?? 0), 0)
    const done = await shard.background.begin(urgency)
    let items: readonly (readonly Buffer[])[]
    try {
      items = await atMost(shard.background.share(urgency) < 1 ? 1 : readsAtOnce, group, one => itemFor(shard, one))
    } finally {
      done(bytes)
    }
    if (!(await flushed)) return
    flushed = writer.write(Buffer.concat(items.flat()))
  }
  if (await flushed) await writer.end(bundleEnd)
}

async function locateAll(shard: Shard, blobs: readonly BlobKey[]): Promise<readonly Wanted[]> {
  const names = blobs.map(blobName)
  const locations = await shard.locateMany(names)
  const wanted = blobs.map((blob, index) => ({ index, blob, name: names[index] as string, location: locations[index] }))
  const place = ({ location }: Wanted): [number, number] => [location?.segment ?? 0, location?.offset ?? 0]
  return wanted.sort((a, b) => place(a)[0] - place(b)[0] || place(a)[1] - place(b)[1])
}

function* groupsOf(wanted: readonly Wanted[], isShared: () => boolean): Generator<readonly Wanted[]> {
  let group: Wanted[] = []
  let bytes = 0
  for (const one of wanted) {
    group.push(one)
    bytes += one.location?.bytes ?? 0
    const isFull = isShared() ? bytes >= sharedGroup.bytes || group.length >= sharedGroup.count : bytes >= groupBytes
    if (!isFull) continue
    yield group
    group = []
    bytes = 0
  }
  if (group.length > 0) yield group
}

/** Never rejects: what cannot be sent is refused. */
async function itemFor(shard: Shard, { index, blob, name, location }: Wanted): Promise<readonly Buffer[]> {
  const refused = (code: BundleRefusal['code']) => bundledRefusal({ index, code })
  if (location === undefined) return refused(shard.isCorrupt(name) ? 'BLOB_CORRUPT' : 'BLOB_NOT_FOUND')
  if (location.kind !== 'inline' || location.bytes > inlineBlobBytesMax) return refused('TOO_LARGE')
  try {
    const payload = await readInline(shard, name, location)
    if (payload === undefined) return refused('BLOB_CORRUPT')
    const { partition, digest, generation } = blob
    const { bytes, crc } = location
    const facts = { bytes, crc, time: shard.clock.now(), confirmed: true } as const
    return bundledBlob({ kind: 'blob', partition, digest, generation, ...facts }, payload)
  } catch (thrown) {
    return refused(toHoldfastError(thrown).code)
  }
}

/** Undefined: the copy is corrupt, and in quarantine. */
async function readInline(shard: Shard, name: string, location: BlobLocation): Promise<Buffer | undefined> {
  const open = await openSegmentOf({ shard, name }, location)
  try {
    const payload = Buffer.allocUnsafe(location.bytes)
    const read = await readFully(open.file, payload, location.offset).catch((error: unknown) => {
      throw readError(shard, error)
    })
    if (read === payload.length && crc32(payload) === location.crc) return payload
    void shard.quarantine(name, location, 'checksum of the blob')
    return undefined
  } finally {
    shard.openFiles.release(open)
  }
}
