/**
 * Pulls blobs from other nodes onto a shard of this one, under the same rules as an upload: nothing is held before it is durable, and
 * nothing is accepted that does not hash to its digest. Small blobs come in bundles, larger ones by themselves, several at a time; slots and
 * rate are those of the node, whoever asks.
 */
import { atMost } from '../shared/at-most.ts'
import { bundleBytesMax, bundleCountMax } from '../shared/bundle.ts'
import { HoldfastError, toHoldfastError } from '../shared/errors.ts'
import { inlineBlobBytesMax } from '../shared/record.ts'
import type { TransferAnswer } from '../shared/wire.ts'
import { blobName } from './blob-name.ts'
import { toWireError } from './http-answer.ts'
import { isOfSource, pullBlob, type PullDeps, type Source, sourceError, type WantedBlob } from './pull-blob.ts'
import { pullBundle } from './pull-bundle.ts'
import type { TransferLimit } from './transfer-limit.ts'

export interface TransferDeps extends PullDeps {
  /** Of one request. */
  readonly concurrency: number
  /** Of all transfers of this node. */
  readonly limit: TransferLimit
}

interface Pull {
  readonly blob: WantedBlob
  outcome: 'copied' | 'held' | HoldfastError | undefined
}

/** Pulls what is missing; results in the order of the request. Never rejects. */
export async function transferBlobs(deps: TransferDeps, blobs: readonly WantedBlob[]): Promise<TransferAnswer> {
  const pulls = new Map<string, Pull>(blobs.map(blob => [blobName(blob), { blob, outcome: undefined }]))
  try {
    await noteHeld(deps, pulls)
    const missing = [...pulls.values()].filter(({ outcome }) => outcome === undefined)
    const isSmall = ({ blob }: Pull): boolean => blob.bytes <= inlineBlobBytesMax
    await Promise.all([
      pullSmall(deps, missing.filter(isSmall)),
      atMost(
        deps.concurrency,
        missing.filter(pull => !isSmall(pull)),
        pull => pullLarge(deps, pull),
      ),
    ])
  } catch (thrown) {
    const error = toHoldfastError(thrown)
    for (const pull of pulls.values()) pull.outcome ??= error
  }
  await undoDeleted(deps, pulls)
  const results = blobs.map(blob => {
    const outcome = pulls.get(blobName(blob))?.outcome
    return typeof outcome === 'string' ? outcome : toWireError(outcome ?? unnamed())
  })
  return { results }
}

async function noteHeld({ shard }: TransferDeps, pulls: ReadonlyMap<string, Pull>): Promise<void> {
  const locations = await shard.locateMany([...pulls.keys()])
  for (const [index, pull] of [...pulls.values()].entries()) if (locations[index] !== undefined) pull.outcome = 'held'
}

/** What was deleted while it came stays deleted: the collector has told this shard, and does not tell it again. Never rejects. */
async function undoDeleted({ shard }: TransferDeps, pulls: ReadonlyMap<string, Pull>): Promise<void> {
  const late = [...pulls].filter(([name, { outcome }]) => outcome === 'copied' && shard.deleted.has(name))
  await Promise.all(
    late.map(async ([, pull]) => {
      try {
        await shard.drop(pull.blob, 'deleted')
        pull.outcome = new HoldfastError('REPLICAS_UNREACHABLE', 'it was deleted while it came')
      } catch (thrown) {
        pull.outcome = toHoldfastError(thrown)
      }
    }),
  )
}

/** From the first source of each, then, what did not come, from the second, and so on. */
async function pullSmall(deps: TransferDeps, pulls: readonly Pull[]): Promise<void> {
  let open = pulls
  for (let turn = 0; open.length > 0; turn += 1) {
    for (const pull of open) if (pull.blob.sources[turn] === undefined) pull.outcome ??= unnamed()
    const bundles = bundlesOf(open, turn)
    await atMost(deps.concurrency, bundles, ({ source, items }) => pullTogether(deps, source, items))
    open = open.filter(({ blob, outcome }) => {
      return outcome instanceof HoldfastError && isOfSource(outcome) && blob.sources[turn + 1] !== undefined
    })
  }
}

/** Those that a source is asked for with one request. */
function bundlesOf(pulls: readonly Pull[], turn: number): readonly { source: Source; items: Pull[] }[] {
  const bundles: { source: Source; items: Pull[] }[] = []
  const latest = new Map<string, { source: Source; items: Pull[]; bytes: number }>()
  for (const pull of pulls) {
    const source = pull.blob.sources[turn]
    if (source === undefined) continue
    const key = `${source.shard} ${source.url}`
    let bundle = latest.get(key)
    const isFull = (found: NonNullable<typeof bundle>): boolean =>
      found.items.length >= bundleCountMax || found.bytes + pull.blob.bytes > bundleBytesMax
    if (bundle === undefined || isFull(bundle)) {
      bundle = { source, items: [], bytes: 0 }
      latest.set(key, bundle)
      bundles.push(bundle)
    }
    bundle.items.push(pull)
    bundle.bytes += pull.blob.bytes
  }
  return bundles
}

async function pullTogether(deps: TransferDeps, source: Source, pulls: readonly Pull[]): Promise<void> {
  const blobs = pulls.map(({ blob }) => blob)
  const outcomes = await within(deps, blobs, () => pullBundle(deps, blobs, source))
  const singles: Pull[] = []
  for (const [index, pull] of pulls.entries()) {
    const outcome = outcomes[index]
    if (outcome === 'single') singles.push(pull)
    else pull.outcome = outcome
  }
  await atMost(deps.concurrency, singles, async pull => {
    pull.outcome = await pullAlone(deps, pull.blob, source)
  })
}

async function pullLarge(deps: TransferDeps, pull: Pull): Promise<void> {
  for (const source of pull.blob.sources) {
    pull.outcome = await pullAlone(deps, pull.blob, source)
    if (pull.outcome === 'copied' || !isOfSource(pull.outcome)) return
  }
}

/** Never rejects but when the node shuts down. */
function pullAlone(deps: TransferDeps, blob: WantedBlob, source: Source): Promise<'copied' | HoldfastError> {
  return within(deps, [blob], async () => {
    try {
      await pullBlob(deps, blob, source)
      return 'copied'
    } catch (thrown) {
      return sourceError(thrown, source)
    }
  })
}

/** Rejects when the node shuts down. */
function within<Result>(
  deps: TransferDeps,
  blobs: readonly WantedBlob[],
  work: () => Promise<Result>,
): Promise<Result> {
  const bytes = blobs.reduce((sum, blob) => sum + blob.bytes, 0)
  return deps.limit.run(bytes, deps, work)
}

function unnamed(): HoldfastError {
  return new HoldfastError('REPLICAS_UNREACHABLE', 'no source was named')
}
