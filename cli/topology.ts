/** `holdfast topology …`, `holdfast shard …`, `holdfast node …`: who owns what, and changes of that while the cluster serves. */
import type { JobRun } from '../proxy/metadata/job-types.ts'
import type { PlanView, TopologyView, WantedChange } from '../proxy/topology/topology-control.ts'
import { givenWeightMax, givenWeightMin, isGivenWeight, replicasMax } from '../shared/cluster-map.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError, isHoldfastError } from '../shared/errors.ts'
import { runWordCommand, type ClientCommand, type Writer } from './client.ts'
import { awaitRun, progressText, runText, shortTime } from './task.ts'
import { humanBytes, textTable } from './text-table.ts'

export const topologyUsage = `holdfast topology show [--by-bytes]   (by bytes: how full each shard is for its weight)
holdfast topology plan <change>...    (what would move; changes nothing)
holdfast topology apply <change>...   (one at a time; several changes in one go move less)
holdfast topology plan | apply --replicas <number>   (copies of everything; with other changes or alone)
holdfast topology plan | apply --by-bytes   (where counts are even and bytes are not: swaps within a zone, 5 % of all bytes at most)
holdfast topology pause | resume | abort   (abort, when it is paused: unsettled partitions go back to their old owners, a number of copies to the old one; weights stay)
holdfast shard add <shard> [--weight <number>]   (a folder its node was given with --shard)
holdfast shard drain | remove | out | in <shard>
holdfast shard reweight <shard> --weight <number>
holdfast node add <http://host:port>
holdfast node drain | remove | out | in <node>   (out: away for some time; in: it is back)
holdfast node replace <node> <http://host:port>   (adds the new one and drains the old one, dead or alive; with --wait removes it too, a dead one only with --force)
A <change> is one of the last six in quotes, with the weight as its last word: 'shard add a-3 2'
`

export const topologyOptions = {
  weight: { kind: 'string', doc: `Share of the shard, relative to the others: ${givenWeightMin} to ${givenWeightMax}.` }, // prettier-ignore
  replicas: {
    kind: 'string',
    pattern: [/^([1-9]|1[0-6])$/, `must be 1 to ${replicasMax}`],
    doc: `Copies of everything from now on, 1 to ${replicasMax}.`,
  },
  byBytes: { kind: 'bool', default: false, doc: 'Look at bytes; with plan and apply: swap partitions to spread them better.' }, // prettier-ignore
  plan: { kind: 'bool', default: false, doc: 'Only say what would move.' },
  wait: { kind: 'bool', default: false, doc: 'Wait until all is settled; exit code 1 unless it is.' },
  force: { kind: 'bool', default: false, doc: 'Also with fewer copies or zones, without room for the copies, or with what is left on a shard that is removed.' }, // prettier-ignore
  rate: { kind: 'string', pattern: [/^(?:\d{4,15}|\d{1,9}[KMG]iB)$/i, 'must be bytes, 1000 or more, such as 5000000 or 32MiB'], doc: 'Bytes a second that each shard gets (64MiB).' }, // prettier-ignore
} as const satisfies Options

type Command = ClientCommand<typeof topologyOptions>

/** Resolves with the exit code. */
export function topology(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    topologyOptions,
    source,
    (command, [verb = '', ...more]) => {
      const { replicas } = command.config
      const isPlanned = verb === 'plan' || verb === 'apply'
      if (replicas !== undefined && !isPlanned) throw unknown(`topology ${verb} --replicas`)
      if (command.config.byBytes && !isPlanned && verb !== 'show') throw unknown(`topology ${verb} --by-bytes`)
      const changes = (): WantedChange[] => [
        ...more.flatMap(changesOfText),
        ...(replicas === undefined ? [] : [{ op: 'replicas' as const, replicas: Number(replicas) }]),
      ]
      if (isPlanned) return verb === 'plan' ? showPlan(command, changes()) : applyChanges(command, changes())
      if (more.length > 0) throw unknown(`topology ${[verb, ...more].join(' ')}`)
      if (verb === 'show') return show(command)
      if (verb === 'pause' || verb === 'resume' || verb === 'abort') return steer(command, verb)
      throw unknown(`topology ${verb}`)
    },
    write,
  )
}

/** Resolves with the exit code. */
export function shard(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    topologyOptions,
    source,
    (command, words) => applyChanges(command, changesOf(['shard', ...words], command.config.weight)),
    write,
  )
}

/** Resolves with the exit code. */
export function node(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    topologyOptions,
    source,
    (command, words) => {
      const changes = changesOf(['node', ...words], undefined)
      const { wait, plan } = command.config
      return words[0] === 'replace' && wait && !plan ? replaceNode(command, changes) : applyChanges(command, changes)
    },
    write,
  )
}

function changesOfText(text: string): WantedChange[] {
  const words = text.trim().split(/\s+/)
  const hasWeight = words[0] === 'shard' && words.length === 4
  return hasWeight ? changesOf(words.slice(0, 3), words[3]) : changesOf(words, undefined)
}

/** A change in words, `shard drain a-1`, or both halves of one, `node replace a http://b:8090`. Throws CONFIG_INVALID. */
export function changesOf(words: readonly string[], weightText: string | undefined): WantedChange[] {
  const [kind, verb, name = '', url, ...more] = words
  if (kind !== 'node' || verb !== 'replace') return [changeOf(words, weightText)]
  if (url === undefined || more.length > 0) throw unknown(words.join(' '))
  return [
    { op: 'add-node', url: urlOf(url) },
    { op: 'drain-node', node: name },
  ]
}

function changeOf(words: readonly string[], weightText: string | undefined): WantedChange {
  const [kind, verb, name, ...more] = words
  const takesWeight = kind === 'shard' && (verb === 'add' || verb === 'reweight')
  if (name === undefined)
    throw verb !== undefined && isVerb(kind, verb) ? unnamed(kind, verb) : unknown(words.join(' '))
  if (more.length > 0 || (weightText !== undefined && !takesWeight)) throw unknown(words.join(' '))
  const weight = weightText === undefined ? undefined : weightOf(weightText, name)
  if (kind === 'shard') {
    if (verb === 'add') return { op: 'add-shard', shard: name, ...(weight === undefined ? {} : { weight }) }
    if (verb === 'reweight') {
      if (weight === undefined) throw wrong(`which weight? Try: holdfast shard reweight ${name} --weight <number>`)
      return { op: 'reweight-shard', shard: name, weight }
    }
    if (verb === 'drain') return { op: 'drain-shard', shard: name }
    if (verb === 'remove') return { op: 'remove-shard', shard: name }
    if (verb === 'out' || verb === 'in') return { op: `${verb}-shard`, shard: name }
  }
  if (kind === 'node') {
    if (verb === 'add') return { op: 'add-node', url: urlOf(name) }
    if (verb === 'drain') return { op: 'drain-node', node: name }
    if (verb === 'remove') return { op: 'remove-node', node: name }
    if (verb === 'out' || verb === 'in') return { op: `${verb}-node`, node: name }
  }
  throw unknown(words.join(' '))
}

const verbs = ['add', 'drain', 'remove', 'out', 'in']

function isVerb(kind: string | undefined, verb: string): kind is 'shard' | 'node' {
  return (kind === 'shard' && [...verbs, 'reweight'].includes(verb)) || (kind === 'node' && verbs.includes(verb))
}

function unnamed(kind: 'shard' | 'node', verb: string): HoldfastError {
  const name = kind === 'node' && verb === 'add' ? '<http://host:port>' : `<${kind}>`
  const weight = verb === 'reweight' ? ' --weight <number>' : ''
  return wrong(`which ${kind}? Try: holdfast ${kind} ${verb} ${name}${weight}`)
}

function weightOf(text: string, shard: string): number {
  const weight = /^\d{1,10}(\.\d{1,3})?$/.test(text) ? Number(text) : NaN
  if (weight === 0) throw wrong(`weight 0 would drain shard ${shard}: if that is meant, use 'shard drain ${shard}'`)
  if (isGivenWeight(weight)) return weight
  throw wrong(`a weight must be ${givenWeightMin} to ${givenWeightMax}, with three decimals at most, not '${text}'`)
}

function urlOf(text: string): string {
  if (/^https?:\/\/[^/?#@\s]{1,255}$/.test(text)) return text
  throw wrong(`the address of a storage node is http://host:port, not '${text}'`)
}

const wrong = (text: string): HoldfastError => new HoldfastError('CONFIG_INVALID', text)

const unknown = (words: string): HoldfastError => wrong(`what does '${words}' mean? Try:\n${topologyUsage}`)

async function show({ client, config, print }: Command): Promise<number> {
  const view = (await client.call('GET', `/topology${config.byBytes ? '?bytes=true' : ''}`)) as TopologyView
  print(topologyText(view), view)
  return 0
}

async function showPlan({ client, config, print }: Command, changes: readonly WantedChange[]): Promise<number> {
  const plan = (await client.call('POST', '/topology/plan', { changes, ...optionsOf(config) })) as PlanView
  print(planText(plan), plan)
  return plan.problems.length === 0 ? 0 : 1
}

async function applyChanges(command: Command, changes: readonly WantedChange[]): Promise<number> {
  const { client, config } = command
  if (config.plan) return showPlan(command, changes)
  const body = { changes, force: config.force, ...optionsOf(config) }
  return begun(command, (await client.call('POST', '/topology/changes', body)) as JobRun)
}

/** To the end: what was drained is removed as well. */
async function replaceNode(command: Command, changes: readonly WantedChange[]): Promise<number> {
  const drained = changes.flatMap(change => (change.op === 'drain-node' ? [change.node] : []))
  const runs = [await awaitChanges(command, changes)]
  if (runs[0]?.state === 'succeeded') {
    try {
      runs.push(await awaitChanges(command, drained.map(node => ({ op: 'remove-node', node })))) // prettier-ignore
    } catch (error) {
      if (!isHoldfastError(error, 'TOPOLOGY_INVALID')) throw error
      const text = `everything is copied, and only the removal of node ${drained.join()} is left to do: 'holdfast node remove ${drained.join()} --force' if it is gone for good; it was refused because ${error.message}`
      throw new HoldfastError(error.code, text, {}, { cause: error })
    }
  }
  command.print(runs.map(runText).join('\n'), runs)
  return runs.every(({ state }) => state === 'succeeded') ? 0 : 1
}

async function awaitChanges({ client, config }: Command, changes: readonly WantedChange[]): Promise<JobRun> {
  const body = { changes, force: config.force, ...rateOf(config) }
  const { id } = (await client.call('POST', '/topology/changes', body)) as JobRun
  return awaitRun(client, '/tasks/rebalance', id)
}

/** Of an abort: which weights it leaves. */
type SteeredRun = JobRun & { readonly warnings?: readonly string[] }

async function steer(command: Command, verb: 'pause' | 'resume' | 'abort'): Promise<number> {
  const run = (await command.client.call('POST', `/topology/${verb}`, rateOf(command.config))) as SteeredRun
  if (verb !== 'pause') return begun(command, run, run.warnings)
  command.print('it stops after the step in hand; reads and writes go on, `topology resume` goes on copying', run)
  return 0
}

async function begun(
  { client, config, print }: Command,
  run: JobRun,
  warnings: readonly string[] = [],
): Promise<number> {
  const warned = warnings.map(warning => `\n! ${warning}`).join('')
  if (!config.wait) {
    print(`run ${run.id} of ${run.job} is queued: see 'topology show'${warned}`, run)
    return 0
  }
  const ended = await awaitRun(client, '/tasks/rebalance', run.id)
  print(runText(ended) + warned, warnings.length === 0 ? ended : { ...ended, warnings })
  return ended.state === 'succeeded' ? 0 : 1
}

const rateOf = ({ rate }: Command['config']): { bytesPerSecond?: number } =>
  rate === undefined ? {} : { bytesPerSecond: bytesOf(rate) }

function bytesOf(text: string): number {
  const power = ['', 'kib', 'mib', 'gib'].indexOf(text.replace(/^\d+/, '').toLowerCase())
  return Number.parseInt(text, 10) * 1024 ** power
}

const optionsOf = (config: Command['config']): { bytesPerSecond?: number; byBytes?: boolean } => ({
  ...rateOf(config),
  ...(config.byBytes ? { byBytes: true } : {}),
})

function topologyText(view: TopologyView): string {
  const { epoch, replicas, copies, change, run, shards, spread, warnings = [], unassigned } = view
  const rows = shards.map(one => [
    one.zone,
    one.node,
    one.shard,
    String(one.weight),
    String(one.partitions),
    ...(spread === undefined ? [] : [humanBytes(one.bytes ?? 0)]),
    one.leaving === 0 ? '-' : String(one.leaving),
    one.since === undefined ? one.state : `${one.state} since ${shortTime(one.since)}`,
  ])
  const far = run ? progressText(run) : ''
  const progress = far === '' ? '' : `, ${far}`
  return [
    `epoch ${epoch}, ${copies} of ${replicas} copies`,
    ...(run === undefined ? ['! PostgreSQL is away: this is what is known without it, and a change waits for it'] : []), // prettier-ignore
    change === null
      ? `all partitions are settled${run ? afterText(run) : ''}`
      : `change of epoch ${change.since}: ${change.state}, ${change.unsettled} partitions left${progress}`,
    '',
    textTable(['ZONE', 'NODE', 'SHARD', 'WEIGHT', 'PARTITIONS', ...(spread === undefined ? [] : ['BYTES']), 'LEAVING', 'STATE'], rows), // prettier-ignore
    ...(spread?.zones ?? []).map(one => `zone ${one.zone}: ${humanBytes(one.bytes)}, fullest shard ${one.shard ?? 'none'} has ${one.max.toFixed(3)} of its share`), // prettier-ignore
    ...(spread === undefined || spread.unknownPartitions === 0 ? [] : [`! of ${spread.unknownPartitions} partitions no owner says how many bytes they have: they are not counted`]), // prettier-ignore
    ...warnings.map(warning => `! ${warning}`),
    ...unassigned.map(one => `! shard ${one.shard} of node ${one.node} is in no cluster map: 'shard add ${one.shard}'`),
  ].join('\n')
}

/** A run has said nothing of its progress before it has begun its change; after that it is there for old copies. */
function afterText(run: JobRun): string {
  if (run.state !== 'queued' && run.progress !== null) return ', the last old copies go'
  return `, and a change is about to begin: run ${run.id} is ${run.state}`
}

function planText(plan: PlanView): string {
  const { partitions, copies, copiesMin, replicas, zones, balance, shards, estimate, problems, byBytes } = plan
  const rows = shards.map(one => [
    one.zone,
    one.node,
    one.shard,
    String(one.weight),
    `${one.before} -> ${one.after}`,
    `+${one.gains} -${one.losses}`,
  ])
  const { blobs, references, bytes, bytesFreed, seconds, slowest, unknownPartitions } = estimate
  const longest = slowest === undefined ? '' : `; most takes ${slowest.node}, ${humanBytes(slowest.bytes)}`
  return [
    ...(replicas.before === replicas.after
      ? []
      : [`${replicas.after} copies of everything instead of ${replicas.before}`]),
    `${partitions} partitions get other owners: ${copies} copies move, ${copiesMin} is the least`,
    ...(byBytes === undefined ? [] : [swapsText(byBytes)]),
    `about ${humanBytes(bytes)} in ${blobs} blobs, ${references} references: about ${humanSeconds(seconds)}${longest}`,
    ...(bytesFreed === 0 ? [] : [`about ${humanBytes(bytesFreed)} of old copies go to the trash`]),
    ...(unknownPartitions === 0 ? [] : [`! no owner of ${unknownPartitions} partitions answers: they are not counted`]),
    `each partition in at least ${zones.after} zones (${zones.before} now); fullest shard ${balance.max.toFixed(3)} of its share, emptiest ${balance.min.toFixed(3)}`,
    '',
    textTable(['ZONE', 'NODE', 'SHARD', 'WEIGHT', 'PARTITIONS', 'MOVES'], rows),
    ...problems.map(problem => `! ${problem}`),
    ...(problems.length === 0 ? [] : ['! this is refused; --force does it nevertheless']),
  ].join('\n')
}

function swapsText({ swaps, bytes, spread }: NonNullable<PlanView['byBytes']>): string {
  const zones = spread.map(one => `zone ${one.zone} ${one.before.toFixed(3)} -> ${one.after.toFixed(3)}`).join(', ')
  const text = swaps === 0 ? 'no swap would spread the bytes better' : `${swaps} swaps, ${humanBytes(bytes)}`
  return `${text}; bytes of the fullest shard of its share: ${zones}`
}

function humanSeconds(seconds: number): string {
  if (seconds < 120) return `${seconds} s`
  return seconds < 7_200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 360) / 10} h`
}
