/**
 * `npm test`: runs tap over all test files (or those named), and closes with one line: `N passed, N failed[, N skipped]`.
 * A run that ends badly never claims 0 failed.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const folder = mkdtempSync(join(tmpdir(), 'holdfast-tests-'))
const output = join(folder, 'tap.txt')
const tap = join(import.meta.dirname, '..', 'node_modules', '.bin', 'tap')
const args = ['run', '--disable-coverage', '--reporter=terse', `--output-file=${output}`, ...process.argv.slice(2)]

const exitCode = await new Promise(resolve => {
  const child = spawn(tap, args, { stdio: 'inherit' })
  child.once('error', error => {
    console.error(error.message)
    resolve(1)
  })
  child.once('exit', (code, signal) => resolve(signal === null ? (code ?? 1) : 1))
})

const counts = { pass: 0, fail: 0, skip: 0 }
try {
  const closing = [...readFileSync(output, 'utf8').matchAll(/^# \{ (total: .*) \}$/gm)].at(-1)?.[1] ?? ''
  for (const [, key, value] of closing.matchAll(/(\w+): (\d+)/g)) if (key in counts) counts[key] = Number(value)
} catch {
  // tap died before it wrote anything: its exit code says so
}
rmSync(folder, { recursive: true, force: true })
const failed = exitCode === 0 ? counts.fail : Math.max(counts.fail, 1)
console.log(`${counts.pass} passed, ${failed} failed${counts.skip > 0 ? `, ${counts.skip} skipped` : ''}`)
process.exitCode = exitCode === 0 && counts.pass > 0 ? 0 : 1
