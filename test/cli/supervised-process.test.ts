import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pino } from 'pino'
import t, { type Test } from 'tap'
import { SupervisedProcess } from '../../cli/supervised-process.ts'
import { eventually } from '../support/eventually.ts'

function supervise(t: Test, script: string, readyMs = 10_000) {
  const folder = t.testdir({ 'child.mjs': script })
  const file = (name: string): string => join(folder, name)
  const child = new SupervisedProcess({
    name: 'child',
    args: [file('child.mjs'), folder],
    env: { PATH: process.env['PATH'] ?? '' },
    pidFile: file('child.pid'),
    logFile: file('child.log'),
    readyMs,
    log: pino({ level: 'silent' }),
  })
  t.teardown(() => child.close(1_000))
  const pid = (): number => Number(readFileSync(file('child.pid'), 'utf8'))
  return { child, file, pid }
}

const alive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

/** Says when it is ready, and ends when it is told to or its supervisor is gone. */
const good = `
import { appendFileSync } from 'node:fs'
appendFileSync(process.argv[2] + '/starts', 'x')
process.on('disconnect', () => process.exit(0))
process.send({ holdfast: 'ready' })
setInterval(() => {}, 1000)`

t.test('a child is ready when it says so, comes back when it dies, and ends with its supervisor', async t => {
  const { child, file, pid } = supervise(t, good)
  await child.start()
  const first = pid()
  t.ok(alive(first))
  process.kill(first, 'SIGKILL')
  const second = await eventually('another one', () => pid() !== first && pid() > 0 && pid())
  await eventually('it has started', () => readFileSync(file('starts'), 'utf8') === 'xx')
  await child.close(5_000)
  t.notOk(alive(second))
  t.notOk(existsSync(file('child.pid')))
  await child.close(5_000)
})

t.test('a child that says nothing in time, or ends before, is a failed start and leaves nothing', async t => {
  const silent = supervise(t, 'setInterval(() => {}, 1000)', 300)
  await t.rejects(silent.child.start(), { code: 'INTERNAL', message: /not ready within 300 ms/ })
  await silent.child.close(1_000)
  const broken = supervise(t, `console.error('it broke'); process.exit(3)`)
  await t.rejects(broken.child.start(), { message: /exit code 3/ })
  t.match(readFileSync(broken.file('child.log'), 'utf8'), /it broke/)
})

t.test('one that ignores SIGTERM is killed after its grace', async t => {
  const { child, pid } = supervise(t, `process.on('SIGTERM', () => {})\n${good}`)
  await child.start()
  const stubborn = pid()
  await child.close(200)
  t.notOk(alive(stubborn))
})

t.test('one that is retired may end, and does not come back; nor does one that is closed start', async t => {
  const { child, file, pid } = supervise(t, good)
  await child.start()
  child.retire()
  const first = pid()
  process.kill(first, 'SIGKILL')
  await eventually('it is gone', () => !alive(first))
  await child.close(1_000)
  t.equal(readFileSync(file('starts'), 'utf8'), 'x')
  await t.rejects(child.start(), { code: 'SHUTTING_DOWN' })
  t.equal(readFileSync(file('starts'), 'utf8'), 'x')
})

t.test('closing while it comes back after a crash leaves nothing running', async t => {
  const { child, file, pid } = supervise(t, good)
  await child.start()
  const first = pid()
  writeFileSync(file('starts'), '')
  process.kill(first, 'SIGKILL')
  await eventually('it comes back', () => readFileSync(file('starts'), 'utf8') !== '')
  const second = pid()
  await child.close(5_000)
  t.notOk(alive(second))
  t.notOk(existsSync(file('child.pid')))
})

t.test('one that cannot come back is tried again and again', async t => {
  const { child, file, pid } = supervise(
    t,
    `import { existsSync } from 'node:fs'\nif (existsSync(process.argv[2] + '/broken')) process.exit(1)\n${good}`,
  )
  await child.start()
  writeFileSync(file('broken'), '')
  const first = pid()
  process.kill(first, 'SIGKILL')
  await eventually('it was tried', () => pid() !== first && pid() > 0)
  rmSync(file('broken'))
  await eventually('it runs again', () => readFileSync(file('starts'), 'utf8') === 'xx')
})
