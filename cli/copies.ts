/** `holdfast verify`, `holdfast dispersion` and `holdfast fsck`: what is really on the shards. */
import type { DispersionReport, FsckReport, VerificationView } from '../proxy/api/schemas.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { partitionName } from '../shared/partition.ts'
import { runClientCommand, runWordCommand, type ApiClient, type Writer } from './client.ts'
import { humanBytes, textTable } from './text-table.ts'

export const verifyUsage = 'holdfast verify <repository>/<path>   (exit code 0 only if every copy is good)\n'

/** Reads every copy of one artifact. Resolves with 0 only if all are good. */
export function verify(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    {},
    source,
    async ({ client, print }, [target = '', ...more]) => {
      const match = /^([a-z0-9][a-z0-9._-]*)\/(.+)$/s.exec(target)
      if (match === null || more.length > 0)
        throw new HoldfastError('CONFIG_INVALID', `which artifact? Try: ${verifyUsage.trim()}`)
      const [, name = '', path = ''] = match
      const query = `/repositories/${encodeURIComponent(name)}/verify?path=${encodeURIComponent(path)}`
      const found = (await client.call('GET', query)) as VerificationView
      print(verificationText(found), found)
      return found.healthy ? 0 : 1
    },
    write,
  )
}

/** Nobody can repair what nobody has. */
function remedy(copies: VerificationView['copies']): string {
  if (copies.some(({ state }) => state === 'good')) return 'what is missing is being repaired'
  if (copies.some(({ state }) => state === 'unreachable')) return 'a copy may be where nobody answers now'
  return "nothing can be repaired from: look into 'quarantine' of these shards, or upload it again"
}

function verificationText({
  repository,
  path,
  version,
  partition,
  blob,
  copiesWanted,
  copies,
  references,
  healthy,
}: VerificationView): string {
  // prettier-ignore
  const good = copies.filter(({ role, state }) => role === 'owner' && state === 'good').length
  return [
    `${repository}/${path}, version ${version}, ${humanBytes(blob.bytes)}, partition ${partitionName(partition)}`,
    `sha256 ${blob.digest}, generation ${blob.generation}, born in partition ${partitionName(blob.partition)}`,
    '',
    textTable(
      ['COPY', 'ZONE', 'NODE', 'SHARD', 'STATE', 'WHY'],
      copies.map(({ role, zone, node, shard, state, reason = '' }) => [role, zone, node, shard, state, reason]),
    ),
    '',
    textTable(
      ['REFERENCE', 'ZONE', 'NODE', 'SHARD', 'STATE', 'WHY'],
      references.map(one => [String(one.version ?? '-'), one.zone, one.node, one.shard, one.state, one.reason ?? '']),
    ),
    '',
    healthy
      ? `All is well: ${good} good copies of ${copiesWanted}.`
      : `! ${good} good copies of ${copiesWanted}; ${remedy(copies)}`,
  ].join('\n')
}

export const dispersionOptions = {
  full: { kind: 'bool', default: false, doc: 'Look at every blob, not at about a thousand at random.' },
} as const satisfies Options

export const dispersionUsage = 'holdfast dispersion [report] [--full]\n'

/** Resolves with 0 if every blob that was looked at has all its copies in as many zones as there can be. */
export function dispersion(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    dispersionOptions,
    source,
    async ({ client, config, print }, words) => {
      if (words.length > 1 || (words[0] ?? 'report') !== 'report') {
        throw new HoldfastError('CONFIG_INVALID', `what does '${words.join(' ')}' mean? Try: ${dispersionUsage.trim()}`)
      }
      const found = await dispersionOf(client, config.full)
      print(dispersionText(found, config.full), found)
      return found.whole === found.blobs && found.spread === found.blobs ? 0 : 1
    },
    write,
  )
}

async function dispersionOf(client: ApiClient, full: boolean): Promise<DispersionReport> {
  let total: DispersionReport | undefined
  for (let after = full ? '' : undefined, more = true; more;) {
    const query = after === undefined ? '' : `?after=${after}`
    const page = (await client.call('GET', `/dispersion${query}`)) as DispersionReport
    total = total === undefined ? page : addUp(total, page)
    after = page.next
    more = after !== undefined
  }
  // The loop has run once at least.
  return total as DispersionReport
}

function addUp(a: DispersionReport, b: DispersionReport): DispersionReport {
  const sum = (one: readonly number[], other: readonly number[]): number[] =>
    Array.from({ length: Math.max(one.length, other.length) }, (_, at) => (one[at] ?? 0) + (other[at] ?? 0))
  return {
    replicas: b.replicas,
    blobs: a.blobs + b.blobs,
    byCopies: sum(a.byCopies, b.byCopies),
    byZones: sum(a.byZones, b.byZones),
    unknown: a.unknown + b.unknown,
    spread: a.spread + b.spread,
    whole: a.whole + b.whole,
    unsettled: Math.max(a.unsettled, b.unsettled),
  }
}

function dispersionText(
  { replicas, blobs, byCopies, byZones, unknown, spread, unsettled }: DispersionReport,
  full: boolean,
): string {
  // prettier-ignore
  const share = (count: number): string => (blobs === 0 ? '-' : `${((100 * count) / blobs).toFixed(3)} %`)
  const rows = byCopies.map((count, copies) => [String(copies), String(count), share(count), String(byZones[copies] ?? 0)]) // prettier-ignore
  return [
    `${full ? 'all' : 'a sample of'} ${blobs} blobs, ${replicas} copies wanted`,
    ...changeText(unsettled),
    '',
    textTable(['COPIES OR ZONES', 'BLOBS WITH SO MANY COPIES', 'SHARE', 'BLOBS IN SO MANY ZONES'], rows),
    '',
    `in as many zones as can be: ${share(spread)}`,
    ...(unknown === 0 ? [] : [`! of ${unknown} blobs an owner could not be asked`]),
  ].join('\n')
}

/** What is not settled may have its copies where it comes from as well as where it goes. */
const changeText = (unsettled: number): readonly string[] =>
  unsettled === 0
    ? []
    : [`a change of topology is under way, ${unsettled} partitions are not settled: there the copies of old owners count as well`] // prettier-ignore

export const fsckOptions = {
  repair: { kind: 'bool', default: false, doc: 'Queue what can be repaired.' },
  names: { kind: 'int', min: 0, max: 100_000, default: 20, doc: 'Names to show of each kind of problem.' },
} as const satisfies Options

interface Problem {
  count: number
  readonly partitions: Set<number>
  readonly names: { readonly name: string; readonly partition: number; readonly shards: readonly string[] }[]
}
interface Found {
  paths: number
  blobs: number
  queued: number
  /** While it was checked, at most. */
  unsettled: number
  readonly unreachable: Set<string>
  readonly problems: Map<string, Problem>
}

/** Checks everything against everything, page by page. Resolves with 0 only if nothing was found and everybody could be asked. */
export function fsck(source: ConfigSource, write?: Writer): Promise<number> {
  return runClientCommand(
    fsckOptions,
    source,
    async ({ client, config, print }) => {
      const found: Found = { paths: 0, blobs: 0, queued: 0, unsettled: 0, unreachable: new Set(), problems: new Map() }
      for (let mark: string | undefined = ''; mark !== undefined;) {
        const page: FsckReport = await fsckPage(client, mark, config.repair)
        collect(found, page, config.names)
        mark = page.next
      }
      print(fsckText(found), fsckDocument(found))
      return found.problems.size === 0 && found.unreachable.size === 0 ? 0 : 1
    },
    write,
  )
}

async function fsckPage(client: ApiClient, mark: string, repair: boolean): Promise<FsckReport> {
  const page = repair
    ? await client.call('POST', '/fsck', { mark })
    : await client.call('GET', `/fsck?mark=${encodeURIComponent(mark)}`)
  return page as FsckReport
}

function collect(found: Found, page: FsckReport, namesMax: number): void {
  found.paths += page.paths
  found.blobs += page.blobs
  found.queued += page.queued
  found.unsettled = Math.max(found.unsettled, page.unsettled)
  for (const shard of page.unreachable) found.unreachable.add(shard)
  for (const { problem, partition, name, shards } of page.findings) {
    const known = found.problems.get(problem) ?? { count: 0, partitions: new Set(), names: [] }
    known.count += 1
    known.partitions.add(partition)
    if (known.names.length < namesMax) known.names.push({ name, partition, shards })
    found.problems.set(problem, known)
  }
}

function fsckDocument({ unreachable, problems, ...counts }: Found): Record<string, unknown> {
  return {
    ...counts,
    unreachable: [...unreachable],
    problems: [...problems].map(([problem, { count, partitions, names }]) => ({
      problem,
      count,
      partitions: [...partitions].sort((a, b) => a - b),
      names,
    })),
  }
}

function fsckText({ paths, blobs, queued, unsettled, unreachable, problems }: Found): string {
  const lines = [`${paths} paths and ${blobs} copies on shards checked`, ...changeText(unsettled)]
  for (const [problem, { count, partitions, names }] of problems) {
    lines.push('', `! ${problem}: ${count}, in ${partitions.size} partitions`)
    for (const { name, partition, shards } of names) {
      lines.push(`  ${partitionName(partition)} ${name}${shards.length === 0 ? '' : ` (${shards.join(', ')})`}`)
    }
    if (names.length < count) lines.push(`  … and ${count - names.length} more`)
  }
  if (unreachable.size > 0) lines.push('', `! could not be asked: ${[...unreachable].join(', ')}`)
  if (queued > 0) lines.push('', `${queued} repairs queued`)
  if (problems.size === 0 && unreachable.size === 0) lines.push('All is well.')
  return lines.join('\n')
}
