/**
 * The check of everything against everything (I36), in pages that each take a moment, so that it can be stopped, resumed and watched:
 * first each path of the database against the shards (are its reference and its bytes where they should be?), then each blob on each
 * shard against the database (does anything name it?). `mark` says where a page begins: `r/<repository id>/<path>`, `b/<shard>/<ppp>/<after>`.
 */
import { HoldfastError, isHoldfastError } from '../../shared/errors.ts'
import { parseDigest, type ShardId } from '../../shared/ids.ts'
import { parsePartition, partitionCount, partitionName, partitionOf } from '../../shared/partition.ts'
import type { InspectedArtifact, RepairEntry } from '../metadata/types.ts'
import { entriesPage, summariesOf } from '../tasks/shard-contents.ts'
import { type Census, countCopies, countReferences } from './census.ts'
import type { InspectionDeps } from './types.ts'

const pathsPerPage = 500
const blobsPerPage = 500
/** Empty partitions are passed over without a question each. */
const partitionsAtOnce = 256
/** What is younger may still be on its way. */
const settledMs = 10_000

export type Problem =
  /** A living path whose bytes no owner has, or whose blob has no row. */
  | 'reference-without-bytes'
  | 'too-few-copies'
  /** The newest reference, or tombstone, of a path is missing on an owner. */
  | 'too-few-references'
  /** Bytes that no path, no deletion that can be undone and no upload names. */
  | 'bytes-without-reference'
  /** Another generation of a blob than the database knows. */
  | 'other-generation'

export interface Finding {
  readonly problem: Problem
  readonly partition: number
  /** `repository/path`, or `<digest>.<generation>`. */
  readonly name: string
  /** Where it is missing, or where it is too much. */
  readonly shards: string[]
}

export interface FsckPage {
  readonly paths: number
  readonly blobs: number
  readonly findings: Finding[]
  /** Shards that could not be asked: nothing is known of what they hold. */
  readonly unreachable: string[]
  /** Repairs that were queued. */
  readonly queued: number
  /** Partitions that are not settled, while a change of topology is under way: there the copies of old owners count as well. */
  readonly unsettled: number
  readonly next?: string
}

type NewRepair = Omit<RepairEntry, 'id' | 'attempts'>

/** Rejects with BAD_REQUEST for a mark that is none, METADATA_UNAVAILABLE. */
export async function fsckPage(deps: InspectionDeps, mark: string, repair: boolean): Promise<FsckPage> {
  const unsettled = deps.view.current().unsettled().length
  return { ...(await checkPage(deps, mark, repair)), unsettled }
}

type Page = Omit<FsckPage, 'unsettled'>

async function checkPage(deps: InspectionDeps, mark: string, repair: boolean): Promise<Page> {
  const path = /^r\/(\d{1,10})\/(.*)$/s.exec(mark)
  if (mark === '' || path !== null) {
    return checkPaths(deps, { repositoryId: Number(path?.[1] ?? 0), path: path?.[2] ?? '' }, repair)
  }
  const blob = /^b\/([^/]+)\/([0-9a-f]{3})\/([0-9a-z.]*)$/.exec(mark)
  const { shards } = deps.view.current().map
  const index = shards.findIndex(({ id }) => id === blob?.[1])
  const partition = parsePartition(blob?.[2] ?? '')
  if (index < 0 || partition === undefined) throw new HoldfastError('BAD_REQUEST', 'not a mark of this check')
  return checkShard(deps, index, partition, blob?.[3] ?? '')
}

async function checkPaths(
  deps: InspectionDeps,
  after: { repositoryId: number; path: string },
  repair: boolean,
): Promise<Page> {
  const rows = await deps.metadata.pageOfReferences(after, pathsPerPage)
  const settled = rows.filter(({ ageMs }) => ageMs >= settledMs)
  const unreachable = new Set<string>()
  const checks = [
    ...(await checkReferences(deps, settled, unreachable)),
    ...(await checkBytes(deps, settled, unreachable)),
  ]
  const repairs = checks.flatMap(({ repair: one }) => one ?? [])
  if (repair && repairs.length > 0) await deps.metadata.addRepairs(repairs)
  const last = rows.at(-1)
  const next =
    last === undefined || rows.length < pathsPerPage ? firstShard(deps) : `r/${last.repositoryId}/${last.path}`
  return {
    paths: rows.length,
    blobs: 0,
    findings: checks.map(({ finding }) => finding),
    unreachable: [...unreachable],
    queued: repair ? repairs.length : 0,
    ...(next === undefined ? {} : { next }),
  }
}

interface Check {
  readonly finding: Finding
  readonly repair?: NewRepair
}

async function checkReferences(
  deps: InspectionDeps,
  rows: readonly InspectedArtifact[],
  unreachable: Set<string>,
): Promise<readonly Check[]> {
  const asked = rows.map(({ repository, path, version }) => ({
    partition: partitionOf(repository, path),
    key: `${repository}/${path}`,
    version,
  }))
  const found = await countReferences(deps, asked)
  return rows.flatMap(({ version }, index): readonly Check[] => {
    const { partition, key } = asked[index] as (typeof asked)[number] // as many as rows
    const { missing: lacking, unknown, tooFew } = found[index] as Census // likewise
    for (const shard of unknown) unreachable.add(shard)
    if (!tooFew) return []
    const missing: string[] = [...lacking]
    return [
      {
        finding: { problem: 'too-few-references', partition, name: key, shards: missing },
        repair: { kind: 'reference', partition, key, version, missing, handoffs: [] },
      },
    ]
  })
}

async function checkBytes(
  deps: InspectionDeps,
  rows: readonly InspectedArtifact[],
  unreachable: Set<string>,
): Promise<readonly Check[]> {
  const living = rows.filter(({ live }) => live)
  const withRow = living.flatMap(row =>
    row.blob === undefined || row.blob.state === 'purging' ? [] : [{ row, blob: row.blob }],
  )
  const without = living.filter(row => row.blob === undefined || row.blob.state === 'purging')
  const found = await countCopies(deps, withRow.map(({ blob }) => blob)) // prettier-ignore
  const nameOf = ({ repository, path }: InspectedArtifact): string => `${repository}/${path}`
  const checks: Check[] = without.map(row => ({
    finding: {
      problem: 'reference-without-bytes',
      partition: partitionOf(row.repository, row.path),
      name: nameOf(row),
      shards: [],
    },
  }))
  for (const [index, { row, blob }] of withRow.entries()) {
    const { held, missing: lacking, unknown, tooFew } = found[index] as Census // as many as were asked about
    for (const shard of unknown) unreachable.add(shard)
    if (!tooFew) continue
    const missing: string[] = [...lacking]
    const problem = held.length === 0 && unknown.length === 0 ? 'reference-without-bytes' : 'too-few-copies'
    const { partition } = blob
    checks.push({
      finding: { problem, partition, name: nameOf(row), shards: missing },
      repair: { kind: 'blob', partition, blob, missing, handoffs: [] },
    })
  }
  return checks
}

/** Up to a page of blobs of one partition of a shard, and where to go on. */
async function checkShard(deps: InspectionDeps, index: number, partition: number, after: string): Promise<Page> {
  const shard = deps.view.current().map.shards[index]?.id as ShardId // the index was found there
  const done = { paths: 0, queued: 0 }
  const signal = new AbortController().signal
  try {
    const filled = await nextFilled(deps, shard, partition, after, signal)
    if (filled === undefined || filled > partition) {
      const next = filled === undefined ? shardBehind(deps, index) : `b/${shard}/${partitionName(filled)}/`
      return { ...done, blobs: 0, findings: [], unreachable: [], ...(next === undefined ? {} : { next }) }
    }
    const page = { partition, of: 'blobs', limit: blobsPerPage, ...(after === '' ? {} : { after }) } as const
    const { entries, next: more } = await entriesPage(deps, shard, page)
    const settled = entries.filter(({ time = 0 }) => Date.now() - time >= deps.abandonedMs)
    const findings = await checkNames(deps, shard, partition, settled.map(({ key }) => key)) // prettier-ignore
    const behind =
      partition + 1 < partitionCount ? `b/${shard}/${partitionName(partition + 1)}/` : shardBehind(deps, index)
    const next = more === undefined ? behind : `b/${shard}/${partitionName(partition)}/${more}`
    return { ...done, blobs: entries.length, findings, unreachable: [], ...(next === undefined ? {} : { next }) }
  } catch (error) {
    if (!isHoldfastError(error) || isHoldfastError(error, 'METADATA_UNAVAILABLE')) throw error
    const next = shardBehind(deps, index)
    return { ...done, blobs: 0, findings: [], unreachable: [shard], ...(next === undefined ? {} : { next }) }
  }
}

/** The first partition from this one on that has blobs on the shard; its own while in the middle of it. */
async function nextFilled(
  deps: InspectionDeps,
  shard: ShardId,
  partition: number,
  after: string,
  signal: AbortSignal,
): Promise<number | undefined> {
  if (after !== '') return partition
  for (let from = partition; from < partitionCount; from += partitionsAtOnce) {
    const found = await summariesOf(deps, shard, { from, count: partitionsAtOnce }, signal)
    const filled = [...found.values()].find(({ blobs }) => blobs.count > 0)
    if (filled !== undefined) return filled.partition
  }
  return undefined
}

async function checkNames(
  deps: InspectionDeps,
  shard: ShardId,
  partition: number,
  names: readonly string[],
): Promise<Finding[]> {
  const digests = [...new Set(names.flatMap(name => parseDigest(name.slice(0, 64)) ?? []))]
  const rows = new Map((await deps.metadata.inspectBlobs(digests)).map(row => [row.digest as string, row]))
  return names.flatMap((name): readonly Finding[] => {
    const row = rows.get(name.slice(0, 64))
    const finding = { partition, name, shards: [shard] }
    if (row === undefined) return [{ ...finding, problem: 'bytes-without-reference' }]
    if (row.generation !== name.slice(65)) return [{ ...finding, problem: 'other-generation' }]
    // Condemned and purging ones are on their way out, and known to be.
    return row.named || row.state !== 'live' ? [] : [{ ...finding, problem: 'bytes-without-reference' }]
  })
}

const firstShard = (deps: InspectionDeps): string | undefined => shardBehind(deps, -1)

function shardBehind({ view }: Pick<InspectionDeps, 'view'>, index: number): string | undefined {
  const shard = view.current().map.shards[index + 1]
  return shard === undefined ? undefined : `b/${shard.id}/000/`
}
