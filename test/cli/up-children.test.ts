import t from 'tap'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { checkChildren } from '../../cli/up-children.ts'
import { readUpConfig } from '../../cli/up-config.ts'
import { mainFile } from '../support/process.ts'

/** `holdfast up` that is refused: its exit code, and what it says. */
async function up(data: string, env: Readonly<Record<string, string>> = {}) {
  const child = spawn(process.execPath, [mainFile, 'up', '--data', data], {
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const said = text(child.stderr)
  const [code] = (await once(child, 'exit')) as [number | null]
  return { code, said: await said }
}

t.test('settings that proxy or storage nodes would refuse are named before anything starts', async t => {
  const data = join(t.testdir(), 'data')
  const wrong = { HOLDFAST_GC_HOLD_MS: 'abc', HOLDFAST_TRANSFER_CONCURRENCY: '0', HOLDFAST_DRAIN_MS: 'x' }
  const { code, said } = await up(data, wrong)
  t.equal(code, 2)
  for (const name of Object.keys(wrong)) t.equal(said.split(name).length, 2, `${name} is named once`)
  t.match(
    said,
    /^holdfast: the configuration is wrong: .*HOLDFAST_GC_HOLD_MS is 'abc', but must be .* \[CONFIG_INVALID\]\n$/,
  )
  t.notOk(existsSync(data))
})

t.test('a data folder that cannot be made is named without a stack', async t => {
  const folder = t.testdir({ file: '' })
  for (const data of [join(folder, 'file'), join(folder, 'file', 'below')]) {
    const { code, said } = await up(data)
    t.equal(code, 2)
    t.equal(
      said,
      `holdfast: the data folder ${data} cannot be made (it, or what it should lie in, is no folder): name another one with --data [CONFIG_INVALID]\n`,
    )
  }
})

t.test('what the parts take is let through', async t => {
  const check = (env: Readonly<Record<string, string>>, args: readonly string[] = []): void =>
    checkChildren({ folder: '/data', config: readUpConfig({ args, env }), env })
  t.doesNotThrow(() => check({}))
  t.doesNotThrow(() => check({ HOLDFAST_SHARD: 'x', HOLDFAST_STATE_FOLDER: '', HOLDFAST_LOG_LEVEL: 'warn' }))
  t.doesNotThrow(() => check({ HOLDFAST_REDIS_URL: 'redis://x' }, ['--replaced-shard', 'node-b-2']))
  t.throws(() => check({ HOLDFAST_REDIS_URL: 'http://x' }), { message: /HOLDFAST_REDIS_URL/ })
  t.throws(() => check({}, ['--replaced-shard', 'node-d-1']), { code: 'CONFIG_INVALID', message: /node-a-1/ })
})
