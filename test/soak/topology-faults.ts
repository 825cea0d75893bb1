/** Changes of who owns what, while the load goes on; some are aborted half-way. */
import { shard, topology } from '../../cli/topology.ts'
import type { TopologyView } from '../../proxy/topology/topology-control.ts'
import { eventually } from '../support/eventually.ts'
import type { Random } from '../support/random.ts'
import { run, type Fault, type World } from './world.ts'

/** After half an hour most partitions have something, and some thousand of them move while everything else goes on. */
const settledMs = 900_000

/** One change at a time, carried out by the primary; `end` resolves when every partition is where it belongs. */
export function topologyFault(world: World): Fault {
  const { cluster, random } = world
  const abort = random.next() < 0.3
  const dice = random.next()
  const rate = String(random.pick([2_000_000, 20_000_000]))
  let before = 0
  return {
    name: `topology: a change${abort ? ', aborted' : ''}`,
    mayRefuse: 'nothing',
    begin: () =>
      eventually(
        'a change of topology begins',
        async () => {
          const seen = await look(world)
          if (before > 0 && seen.epoch > before) return true // begun, although the answer said something else
          if (seen.change !== null || seen.run !== null) return false
          before = seen.epoch
          const [verb, ...rest] = choose(seen, dice, random)
          const { code, text } = await run(
            cluster,
            shard,
            verb,
            ...rest,
            ...(verb === 'remove' ? [] : ['--rate', rate]),
          )
          if (code !== 0) throw new Error(text)
          return true
        },
        { withinMs: 90_000, everyMs: 500 },
      ),
    end: async () => {
      if (abort) await abortChange(world)
      await settled(world)
    },
  }
}

/** Never leaves a zone without an owner: there are two shards in each. */
function choose({ shards, unassigned }: TopologyView, dice: number, random: Random): [string, ...string[]] {
  const [fresh] = unassigned
  if (fresh !== undefined) return ['add', fresh.shard, '--weight', String(random.pick([1, 2]))]
  const empty = shards.find(one => one.partitions === 0 && one.leaving === 0)
  if (empty !== undefined) return dice < 0.5 ? ['remove', empty.shard] : ['reweight', empty.shard, '--weight', '1']
  const one = random.pick(shards)
  const isDrained = shards.some(({ weight }) => weight === 0)
  if (dice < 0.5 && !isDrained) return ['drain', one.shard]
  return ['reweight', one.shard, '--weight', String(one.weight === 1 ? random.pick([2, 0.5]) : 1)]
}

export async function look(world: World): Promise<TopologyView> {
  const { code, text } = await run(world.cluster, topology, 'show', '--json')
  if (code !== 0) throw new Error(text)
  return JSON.parse(text) as TopologyView
}

export function settled(world: World): Promise<TopologyView> {
  return eventually(
    'the change of topology is settled',
    async () => {
      const seen = await look(world)
      if (seen.change === null && seen.run === null) return seen
      if (seen.change?.state === 'paused') await run(world.cluster, topology, 'resume')
      throw new Error(JSON.stringify({ change: seen.change, run: seen.run?.progress }))
    },
    { withinMs: settledMs, everyMs: 500 },
  )
}

/** Unless it is over already. */
async function abortChange(world: World): Promise<void> {
  await eventually(
    'the change of topology is aborted',
    async () => {
      const { change, run: current } = await look(world)
      if (change === null) return true
      if (current !== null) {
        await run(world.cluster, topology, 'pause')
        return false
      }
      return (await run(world.cluster, topology, 'abort')).code === 0
    },
    { withinMs: 90_000, everyMs: 300 },
  )
}
