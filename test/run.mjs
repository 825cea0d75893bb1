/**
 * `npm test [-- <file> ...]`: runs the built test files (or those named; `npm run test:long`: those of test/long), each in a process
 * of its own, and closes with one line: `N passed, N failed[, N skipped]`. A run that ends badly never claims 0 failed.
 *
 * The files are tap's and print TAP; they are run here by plain node, because tap's own runner makes every file load its
 * instruments, four CPU-seconds a file: half of all that the suite did.
 *
 * Many tests kill, freeze and starve real processes; beside another such test on a small machine one may run into its own time
 * limit. A file that failed is therefore run once more, alone. If it passes then, it is named as unsteady; if not, it has failed.
 *
 * HOLDFAST_TEST_RUN_FOLDER is what the files of one run share; it is gone afterwards.
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join, relative, resolve } from 'node:path'

const root = join(import.meta.dirname, '..')
const soak = 'test/cluster/soak.test.ts'
const shownMax = 40_000
const closing = /^# \{ (total: .*) \}$/gm

const running = new Set()
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => {
    for (const child of running) killGroup(child, 'SIGTERM')
    process.exit(1)
  })
}
const args = process.argv.slice(2)
const isLong = args[0] === '--long'
const files = args.length > 0 && !isLong ? args.map(named) : testFiles(isLong)
const msMaxOf = file => (file.startsWith('test/long/') || file === soak ? 900_000 : 300_000)
/** A cluster of five processes is a test of its own; more side by side would starve each other. */
const jobs = Math.max(2, Math.min(8, Math.floor(availableParallelism() / 2)))
/** These wait more than they work. The longest first. */
const patient = [
  'test/proxy/coordination/faults.test.ts',
  'test/proxy/http/hostile-clients.test.ts',
  'test/storage-node/compact.test.ts',
  'test/proxy/routing/write-upload.test.ts',
  'test/cluster/hostile.test.ts',
  'test/cli/embedded-postgres.test.ts',
  'test/proxy/coordination/coordinator.test.ts',
  'test/proxy/tasks/collect-garbage.test.ts',
  'test/proxy/tasks/cleanup.test.ts',
  'test/proxy/routing/write-small.test.ts',
  'test/proxy/routing/read.test.ts',
  'test/proxy/metadata/outage.test.ts',
  'test/proxy/metadata/metadata.test.ts',
  'test/proxy/metadata/trash.test.ts',
]
const runFolder = mkdtempSync(join(tmpdir(), 'hf-run-'))
process.once('exit', () => rmSync(runFolder, { recursive: true, force: true }))
process.exitCode = await main(files)

async function main(files) {
  const first = await runAll(files.length, sideBySide(files))
  const failed = first.filter(({ ok }) => !ok).map(({ file }) => file)
  if (failed.length > 0) console.log(`\nonce more, alone: ${failed.join(' ')}`)
  const waiting = [...failed]
  const again = await runAll(failed.length, [() => waiting.shift()])
  const results = [...first.filter(({ ok }) => ok), ...again]
  const unsteady = again.filter(({ ok }) => ok).map(({ file }) => file)
  if (unsteady.length > 0) console.log(`\nunsteady (failed beside others, passed alone): ${unsteady.join(' ')}`)
  const sum = key => results.reduce((total, { counts }) => total + counts[key], 0)
  const bad = results.filter(({ ok }) => !ok)
  for (const { file } of bad) console.log(`failed: ${file}`)
  const skip = sum('skip')
  console.log(
    `${sum('pass')} passed, ${Math.max(sum('fail'), bad.length)} failed${skip > 0 ? `, ${skip} skipped` : ''}`,
  )
  return bad.length === 0 && sum('pass') > 0 ? 0 : 1
}

/**
 * What each worker takes next. One takes from the front, where the heavy files are, the others from the back: so heavy ones run beside
 * light ones instead of beside each other. What takes longest stands at the two ends, so that no worker begins it last. One more worker
 * has the patient files, and then helps from the back.
 */
function sideBySide(files) {
  const patientOnes = patient.filter(file => files.includes(file))
  const others = files.filter(file => !patient.includes(file))
  const fromBack = () => others.pop()
  const takers = [() => others.shift(), ...Array.from({ length: jobs - 1 }, () => fromBack)]
  return patientOnes.length === 0 ? takers : [...takers, () => patientOnes.shift() ?? fromBack()]
}

async function runAll(count, takers) {
  const results = []
  const work = async next => {
    for (let file = next(); file !== undefined; file = next()) {
      const result = await runFile(file)
      results.push(result)
      console.log(line(result, results.length, count))
    }
  }
  await Promise.all(takers.map(work))
  return results
}

function line({ file, ok, counts, seconds, output, ended }, at, of) {
  const text = `${ok ? 'ok' : 'NOT OK'} ${at}/${of} ${file}: ${counts.pass} passed, ${seconds.toFixed(1)} s`
  return ok ? text : `${text}, ${ended}\n${output.length > shownMax ? '...\n' : ''}${output.slice(-shownMax)}`
}

async function runFile(file) {
  const begun = performance.now()
  const fileMsMax = msMaxOf(file)
  const built = join(root, 'dist', file.replace(/\.ts$/, '.js'))
  const child = spawn(process.execPath, ['--enable-source-maps', built], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { TAP_TIMEOUT: String(fileMsMax / 1_000), HOLDFAST_TEST_RUN_FOLDER: runFolder, ...process.env },
    detached: true,
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', text => (output = (output + text).slice(-4 * shownMax)))
  }
  running.add(child)
  const limit = setTimeout(() => killGroup(child, 'SIGKILL'), fileMsMax + 20_000)
  const ended = await new Promise(done => {
    child.once('error', error => done(error.message))
    child.once('exit', (code, signal) => {
      const how = signal ?? `exit code ${code}`
      child.once('close', () => done(how))
      setTimeout(() => done(`${how}, but left a process behind that holds its output`), 10_000).unref()
    })
  })
  clearTimeout(limit)
  killGroup(child, 'SIGKILL')
  running.delete(child)
  const counts = countsOf(output)
  const ok = ended === 'exit code 0' && counts.fail === 0 && counts.pass + counts.skip > 0
  return { file, ok, counts, output, ended, seconds: (performance.now() - begun) / 1_000 }
}

/** A test and what it starts are a group of their own: none outlives it. */
function killGroup(child, signal) {
  try {
    process.kill(-child.pid, signal)
  } catch {
    // already gone
  }
}

function countsOf(output) {
  const counts = { pass: 0, fail: 0, skip: 0 }
  const text = [...output.matchAll(closing)].at(-1)?.[1] ?? ''
  for (const [, key, value] of text.matchAll(/(\w+): (\d+)/g)) if (key in counts) counts[key] = Number(value)
  return counts
}

/** What takes minutes each is a run of its own. */
function testFiles(long) {
  const names = readdirSync(import.meta.dirname, { recursive: true }).map(name => name.replaceAll('\\', '/'))
  return names
    .filter(name => name.endsWith('.test.ts') && name.startsWith('long/') === long)
    .map(name => `test/${name}`)
    .sort((a, b) => placeOf(a) - placeOf(b) || (a < b ? -1 : 1))
}

function placeOf(file) {
  if (file === soak) return -1
  if (/^test\/(cluster|clients)\//.test(file)) return 0
  return file.startsWith('test/proxy/coordination/') ? 2 : 1
}

function named(argument) {
  const file = relative(root, resolve(argument)).replaceAll('\\', '/')
  if (file.startsWith('test/') && file.endsWith('.test.ts') && existsSync(join(root, file))) return file
  console.error(`${argument}: not a test file of this tree; they are named test/<folder>/<name>.test.ts`)
  process.exit(2)
}
