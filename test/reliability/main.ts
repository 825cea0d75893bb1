/**
 * `npm run reliability [-- --rows 3,18] [--dry]`: runs the tests of goals.ts one after another, gathers what they measure, and writes the column
 * `measured` of docs/reliability.md, and docs/reliability-figures.json. `--rows`: only these, the others stay as they were. `--dry` writes
 * nothing. Exit code 1: a test failed.
 */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { format } from 'prettier'
import { runsOf, goals } from './goals.ts'
import { fillTable, measuredTexts, parseFigures, type FileResult } from './table.ts'

const root = join(import.meta.dirname, '..', '..', '..')
const table = join(root, 'docs', 'reliability.md')
const kept = join(root, 'docs', 'reliability-figures.json')

const { values } = parseArgs({ options: { rows: { type: 'string' }, dry: { type: 'boolean', default: false } } })
const rows = values.rows?.split(',')
const unknown = rows?.filter(row => !goals.some(goal => goal.row === row)) ?? []
if (unknown.length > 0) {
  console.error(`nothing measures row ${unknown.join(', ')}; there are ${[...new Set(goals.map(({ row }) => row))].join(', ')}`) // prettier-ignore
  process.exit(2)
}
process.exitCode = await main()

async function main(): Promise<number> {
  const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root }).toString().trim()
  const machine = `${availableParallelism()} cores, node ${process.version}, load ${loadavg()[0]!.toFixed(1)} at the beginning` // prettier-ignore
  const results: FileResult[] = []
  for (const run of runsOf(rows)) results.push(await measure(run, commit, machine))
  const stays = (one: FileResult): boolean => runsOf().includes(one.run) && !results.some(({ run }) => run === one.run)
  const all = [...before().filter(stays), ...results].sort((a, b) => (a.run < b.run ? -1 : 1))
  const texts = measuredTexts(goals, all)
  for (const [row, text] of texts) console.log(`${row.padEnd(4)} ${text}`)
  const failed = results.filter(({ ok }) => !ok)
  for (const { run } of failed) console.log(`failed: ${run}`)
  if (!values.dry) {
    const markdown = fillTable(readFileSync(table, 'utf8'), texts, all)
    writeFileSync(table, await format(markdown, { parser: 'markdown', printWidth: 120 }))
    writeFileSync(kept, await format(JSON.stringify({ files: all }), { parser: 'json', printWidth: 120 }))
  }
  return failed.length === 0 ? 0 : 1
}

function before(): readonly FileResult[] {
  return existsSync(kept) ? (JSON.parse(readFileSync(kept, 'utf8')) as { files: FileResult[] }).files : []
}

async function measure(run: string, commit: string, machine: string): Promise<FileResult> {
  const [file = '', ...settings] = run.split(' ')
  const folder = mkdtempSync(join(tmpdir(), 'hf-figures-'))
  const figuresFile = join(folder, 'figures')
  writeFileSync(figuresFile, '')
  const begun = performance.now()
  try {
    const set = Object.fromEntries(
      settings.map((text): [string, string] => [text.split('=')[0] ?? '', text.split('=')[1] ?? '']),
    )
    const env: NodeJS.ProcessEnv = { ...process.env, ...set, HOLDFAST_TEST_FIGURES: figuresFile } // prettier-ignore
    const child = spawn(process.execPath, [join(root, 'test', 'run.mjs'), file], { cwd: root, stdio: 'inherit', env })
    const [code] = (await once(child, 'exit')) as [number | null]
    const figures = parseFigures(readFileSync(figuresFile, 'utf8'))
    const seconds = Math.round((performance.now() - begun) / 1_000)
    return { run, ok: code === 0, seconds, date: new Date().toISOString(), commit, machine, figures }
  } finally {
    rmSync(folder, { recursive: true })
  }
}
