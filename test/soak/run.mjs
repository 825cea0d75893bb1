/**
 * `npm run soak -- [--seed S] [--minutes M] [--only kind,…]`: the soak of test/soak/soak.ts. The seed is printed, and repeats the choice of
 * faults; `--only` tries kinds of them alone: node, proxy, server, copy, topology, disk, clock,
 * partition.
 */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

const { values } = parseArgs({
  options: { seed: { type: 'string' }, minutes: { type: 'string', default: '30' }, only: { type: 'string' } },
})
const whole = /^\d+$/
if (!/^\d+(\.\d+)?$/.test(values.minutes) || (values.seed !== undefined && !whole.test(values.seed))) {
  console.error('npm run soak -- [--seed <number>] [--minutes <number>] [--only <kind>,…]')
  process.exit(2)
}
const root = join(import.meta.dirname, '..', '..')
const child = spawn(process.execPath, ['--enable-source-maps', join(root, 'dist/test/cluster/soak.test.js')], {
  cwd: root,
  stdio: 'inherit',
  env: {
    ...process.env,
    TAP_TIMEOUT: '0',
    HOLDFAST_TEST_SOAK_MINUTES: values.minutes,
    ...(values.seed === undefined ? {} : { HOLDFAST_TEST_SEED: values.seed }),
    ...(values.only === undefined ? {} : { HOLDFAST_TEST_SOAK_ONLY: values.only }),
  },
})
child.once('exit', code => process.exit(code ?? 1))
