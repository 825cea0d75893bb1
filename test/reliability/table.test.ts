/** The table of docs/reliability.md: every promise has a test that is there, and what is measured finds its row. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { goals } from './goals.ts'
import { fillTable, measuredTexts, parseFigures, rangeText, rowsOf, type FileResult } from './table.ts'

const root = join(import.meta.dirname, '..', '..', '..')
const markdown = readFileSync(join(root, 'docs', 'reliability.md'), 'utf8')
const rows = rowsOf(markdown)

t.test('every row names a test that exists, or the soak', async t => {
  for (let row = 1; row <= 37; row++) t.ok(rows.has(String(row)), `row ${row}`)
  for (const [row, [, , , shownBy = '']] of rows) {
    const names = [...shownBy.matchAll(/`([^`]+)`/g)].map(([, name]) => name!)
    t.ok(names.length > 0 || /\bsoak\b/.test(shownBy), `row ${row}: ${shownBy}`)
    for (const name of names) t.ok(existsSync(join(root, fileOf(name))), `row ${row}: ${name}`)
  }
})

/** Those without a folder are in test/cluster. */
function fileOf(name: string): string {
  return name.includes('/') ? name : `test/cluster/${name}`
}

t.test('what is measured has a row that names the test', async t => {
  for (const { row, run } of goals) {
    const name = run.split(' ')[0]!.split('/').at(-1)!
    const [, , , shownBy = ''] = rows.get(row) ?? []
    t.ok(shownBy.includes(name) || (name === 'soak.test.ts' && /\bsoak\b/.test(shownBy)), `row ${row}: ${name}`)
  }
})

t.test('figures become one text a row', async t => {
  const text = [
    { name: 'a.b', value: 9, unit: 'ms', pid: 1 },
    { name: 'a.b', value: 130.4, unit: 'ms', pid: 2 },
    { name: 'a.b', value: 1999, unit: 'ms', pid: 2 },
    { name: 'c', value: 0, unit: '%', pid: 2 },
  ].map(line => JSON.stringify(line)).join('\n') // prettier-ignore
  const figures = parseFigures(text + '\n')
  t.equal(figures.length, 3, 'of the last process only')
  t.same(parseFigures(''), [])
  const result: FileResult = { run: 'x', ok: true, seconds: 60, date: '2026-01-02T03:04:05Z', commit: 'abc', machine: '2 cores', figures } // prettier-ignore
  const wanted = [
    { row: '18', run: 'x', figures: { 'a.b': 'back after $', c: '$ failed' } },
    { row: '8', run: 'x', figures: {} },
    { row: '9', run: 'not run', figures: {} },
  ]
  const texts = measuredTexts(wanted, [result])
  t.same([...texts], [['18', 'back after 0.1 to 2.0 s, 0 % failed'], ['8', 'passed']]) // prettier-ignore
  t.equal(measuredTexts(wanted, [{ ...result, ok: false }]).get('18'), 'FAILED')

  const filled = fillTable(markdown, texts, [result])
  t.equal(rowsOf(filled).get('18')?.at(-1), 'back after 0.1 to 2.0 s, 0 % failed')
  t.same(rowsOf(filled).get('17'), rows.get('17'), 'other rows stay')
  t.match(filled, /Measured 2026-01-02 at commit abc \(2 cores\), 1 test files in 1 minutes/)
  t.equal(fillTable(filled, texts, [result]), filled, 'the same again')
  t.throws(() => fillTable(markdown, new Map([['99', 'x']]), []), /no rows 99/)
})

t.test('ranges', async t => {
  t.equal(rangeText([12.4, 12.1], 'ms'), '12 ms')
  t.equal(rangeText([-40, 120], 'ms'), '0 to 120 ms')
  t.equal(rangeText([1234567], 'count'), '1,234,567')
  t.equal(rangeText([0.0312], '%'), '0.031 %')
})
