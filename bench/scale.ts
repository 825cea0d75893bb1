/**
 * `npm run bench:scale [-- --rows 1000000 --only shard]`: a cluster of 3,000 shards and 10^9 artifacts, as far as one machine can tell.
 * The table, its plans and what one process holds are computed or filled for real; what is multiplied up says so. Each part runs in a
 * process of its own, so that none is weighed with the memory of another. Prints a table, writes bench/results/scale-<time>.json.
 */
import { fork } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { arch, cpus, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { comparisonPart } from './scale/comparison-part.ts'
import { databasePart } from './scale/database-part.ts'
import { type Figure, valueText } from './scale/measure.ts'
import { placementPart } from './scale/placement-part.ts'
import { shardPart } from './scale/shard-part.ts'

const { values: args } = parseArgs({
  options: {
    rows: { type: 'string', default: '1000000' },
    only: { type: 'string' },
    part: { type: 'string' },
  },
})
const rows = Number(args.rows)
const parts: Readonly<Record<string, () => Promise<Figure[]>>> = {
  placement: placementPart,
  comparison: comparisonPart,
  shard: () => shardPart(rows),
  database: () => databasePart(rows),
}

if (args.part === undefined) await all()
else process.send?.(await parts[args.part]?.())

async function all(): Promise<void> {
  const results: Record<string, readonly Figure[]> = {}
  for (const name of Object.keys(parts).filter(part => args.only === undefined || part === args.only)) {
    const figures = await inProcess(name)
    results[name] = figures
    process.stdout.write(`\n### ${name}\n\n| what | value | how |\n|---|---|---|\n`)
    for (const one of figures) process.stdout.write(`| ${one.name} | ${valueText(one)} | ${one.note ?? ''} |\n`)
  }
  const machine = {
    cpu: cpus()[0]?.model ?? '',
    cores: cpus().length,
    memoryBytes: totalmem(),
    system: `${release()} ${arch()}`,
    node: process.version,
  }
  const folder = join(import.meta.dirname, '..', '..', 'bench', 'results')
  await mkdir(folder, { recursive: true })
  const file = join(folder, `scale-${new Date().toISOString().replaceAll(':', '-')}.json`)
  await writeFile(file, JSON.stringify({ machine, settings: args, results }, null, 2) + '\n')
  process.stdout.write(`\nwritten: ${file}\n`)
}

async function inProcess(part: string): Promise<readonly Figure[]> {
  const child = fork(join(import.meta.dirname, 'scale.js'), ['--part', part, '--rows', String(rows)])
  return new Promise<readonly Figure[]>((resolve, reject) => {
    let figures: readonly Figure[] | undefined
    child.once('message', message => {
      figures = message as readonly Figure[]
      child.disconnect()
    })
    child.once('error', reject)
    child.once('exit', code => {
      if (figures !== undefined && code === 0) resolve(figures)
      else reject(new Error(`the part '${part}' ended with ${code}`))
    })
  })
}
