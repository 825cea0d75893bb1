/** From figures to the column 'measured' of docs/reliability.md. Pure. */
import type { Figure, Unit } from '../support/figures.ts'
import type { Goal } from './goals.ts'

/** One test file that was run. */
export interface FileResult {
  /** With what was set for it: 'test/long/soak.test.ts HOLDFAST_TEST_SOAK_ONLY=clock'. */
  readonly run: string
  readonly ok: boolean
  readonly seconds: number
  /** ISO 8601. */
  readonly date: string
  readonly commit: string
  /** '2 cores, node v22.0.0, load 0.3 at the beginning' */
  readonly machine: string
  readonly figures: readonly Omit<Figure, 'pid'>[]
}

const begin = '<!-- measured: begin -->'
const end = '<!-- measured: end -->'
const headBegin = '<!-- measured by: begin -->'
const headEnd = '<!-- measured by: end -->'

/** The figures of the last process in the text that `figure` writes. */
export function parseFigures(text: string): Omit<Figure, 'pid'>[] {
  const all = text.split('\n').filter(line => line !== '').map(line => JSON.parse(line) as Figure) // prettier-ignore
  const last = all.at(-1)?.pid
  return all.filter(({ pid }) => pid === last).map(({ name, value, unit }) => ({ name, value, unit }))
}

/** Row number -> what to say about it, of the rows whose tests were run. */
export function measuredTexts(goals: readonly Goal[], results: readonly FileResult[]): Map<string, string> {
  const texts = new Map<string, string>()
  for (const { row, run, figures } of goals) {
    const result = results.find(one => one.run === run)
    if (result === undefined) continue
    const told = texts.get(row)
    const text = result.ok ? textOf(figures, result.figures) : 'FAILED'
    texts.set(row, told === undefined || told === text ? text : `${told}; ${text}`)
  }
  return texts
}

function textOf(wanted: Goal['figures'], found: FileResult['figures']): string {
  const parts = Object.entries(wanted).flatMap(([name, label]) => {
    const values = found.filter(one => one.name === name)
    return values.length === 0 ? [] : [label.replace('$', rangeText(values.map(one => one.value), values[0]!.unit))] // prettier-ignore
  })
  if (parts.length > 0) return parts.join(', ')
  return Object.keys(wanted).length === 0 ? 'passed' : 'passed, not measured here'
}

/** Milliseconds below 0 are differences that are none. */
export function rangeText(values: readonly number[], unit: Unit): string {
  const low = Math.max(0, Math.min(...values))
  const high = Math.max(0, Math.max(...values))
  const inSeconds = unit === 'ms' && high >= 1_000
  const name = unit === 'count' ? '' : inSeconds ? ' s' : ` ${unit}`
  const one = (value: number): string => {
    if (inSeconds) return (value / 1_000).toFixed(1)
    if (unit === '%') return value === 0 ? '0' : value.toPrecision(2)
    return Math.round(value).toLocaleString('en-US')
  }
  return one(low) === one(high) ? one(high) + name : `${one(low)} to ${one(high)}${name}`
}

/** Changes the last column of the rows of `texts`, and the line that says where and when. Everything else stays as it is. */
export function fillTable(
  markdown: string,
  texts: ReadonlyMap<string, string>,
  results: readonly FileResult[],
): string {
  const left = new Set(texts.keys())
  const rows = between(markdown, begin, end)
    .split('\n')
    .map(line => {
      const cells = cellsOf(line)
      const text = texts.get(cells?.[0] ?? '')
      if (cells === undefined || text === undefined) return line
      left.delete(cells[0] ?? '')
      return `| ${[...cells.slice(0, -1), text].join(' | ')} |`
    })
  if (left.size > 0) throw new Error(`the table has no rows ${[...left].join(', ')}`)
  const filled = replaceBetween(markdown, begin, end, rows.join('\n'))
  return replaceBetween(filled, headBegin, headEnd, `\n\n${measuredBy(results)}\n\n`)
}

/** Row number -> its cells. */
export function rowsOf(markdown: string): Map<string, readonly string[]> {
  return new Map(
    between(markdown, begin, end)
      .split('\n')
      .flatMap(line => {
        const cells = cellsOf(line)
        return cells === undefined || !/^\d/.test(cells[0] ?? '') ? [] : [[cells[0] ?? '', cells] as const]
      }),
  )
}

/** What is the same for all is said once; figures of another day or commit are counted. */
function measuredBy(results: readonly FileResult[]): string {
  const newest = [...results].sort((a, b) => (a.date < b.date ? 1 : -1))[0]
  if (newest === undefined) return 'Not measured yet.'
  const older = results.filter(({ commit }) => commit !== newest.commit)
  const minutes = results.reduce((sum, { seconds }) => sum + seconds, 0) / 60
  const rest = older.length === 0 ? '' : ` ${older.length} of the files ran at other commits: reliability-figures.json says which.` // prettier-ignore
  return `Measured ${newest.date.slice(0, 10)} at commit ${newest.commit} (${newest.machine}), ${results.length} test files in ${minutes.toFixed(0)} minutes.${rest}`
}

function cellsOf(line: string): string[] | undefined {
  if (!line.startsWith('|')) return undefined
  return line.slice(1, line.lastIndexOf('|')).split(/(?<!\\)\|/).map(cell => cell.trim()) // prettier-ignore
}

function between(text: string, from: string, to: string): string {
  const start = text.indexOf(from)
  const stop = text.indexOf(to)
  if (start < 0 || stop < start) throw new Error(`there is no ${from} … ${to}`)
  return text.slice(start + from.length, stop)
}

function replaceBetween(text: string, from: string, to: string, replacement: string): string {
  const old = between(text, from, to)
  const start = text.indexOf(from) + from.length
  return text.slice(0, start) + replacement + text.slice(start + old.length)
}
