/** `npm run soak -- [--seed S] [--minutes M]`: the soak of test/soak/soak.ts. The seed is printed, and repeats the choice of faults. */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

const { values } = parseArgs({ options: { seed: { type: 'string' }, minutes: { type: 'string', default: '30' } } })
const whole = /^\d+$/
if (!/^\d+(\.\d+)?$/.test(values.minutes) || (values.seed !== undefined && !whole.test(values.seed))) {
  console.error('npm run soak -- [--seed <number>] [--minutes <number>]')
  process.exit(2)
}
const root = join(import.meta.dirname, '..', '..')
const tap = join(root, 'node_modules', '.bin', 'tap')
const child = spawn(tap, ['run', '--disable-coverage', '--timeout=0', 'test/long/soak.test.ts'], {
  cwd: root,
  stdio: 'inherit',
  env: {
    ...process.env,
    HOLDFAST_TEST_SOAK_MINUTES: values.minutes,
    ...(values.seed === undefined ? {} : { HOLDFAST_TEST_SEED: values.seed }),
  },
})
child.once('exit', code => process.exit(code ?? 1))
