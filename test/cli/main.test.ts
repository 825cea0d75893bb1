import t, { type Test } from 'tap'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, openSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { mainFile } from '../support/process.ts'

/** More than any pipe holds. */
const policies = Array.from({ length: 40_000 }, (_, index) => ({
  name: `policy-${index}`,
  enabled: true,
  repositories: null,
  conditions: { path: 'x'.repeat(40) },
}))

/** `holdfast cleanup list --json`, of a server with many of them that keeps its connections. */
async function listing(t: Test, stdout: 'pipe' | number) {
  const server = createServer((_, response) => response.end(JSON.stringify({ policies }))).listen(0, '127.0.0.1')
  await once(server, 'listening')
  server.keepAliveTimeout = 600_000
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return spawn(process.execPath, [mainFile, 'cleanup', 'list', '--json', '--url', url], {
    env: { HOLDFAST_PASSWORD: 'x' },
    stdio: ['ignore', stdout, 'pipe'],
  })
}

t.test('output into a pipe is complete, and the command ends although its connection is kept', async t => {
  const child = await listing(t, 'pipe')
  const ended = once(child, 'exit')
  t.same(JSON.parse(await text(child.stdout!)), policies)
  t.same(await ended, [0, null])
})

t.test('output into a file is complete', async t => {
  const file = join(t.testdir(), 'out')
  const child = await listing(t, openSync(file, 'w'))
  t.same(await once(child, 'exit'), [0, null])
  t.same(JSON.parse(await readFile(file, 'utf8')), policies)
})

t.test('a reader that has seen enough ends the command quietly', async t => {
  const child = await listing(t, 'pipe')
  const said = text(child.stderr!)
  const ended = once(child, 'exit')
  await once(child.stdout!, 'data')
  child.stdout!.destroy()
  t.same(await ended, [0, null])
  t.equal(await said, '')
})

t.test('output that a full disk has not kept is a failure', { skip: !existsSync('/dev/full') }, async t => {
  const child = await listing(t, openSync('/dev/full', 'w'))
  const said = text(child.stderr!)
  t.same(await once(child, 'exit'), [1, null])
  t.match(await said, /^holdfast: the output is not complete: ENOSPC.*\n$/)
})
