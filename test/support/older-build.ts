/** Another commit of this repository, built in a folder of its own with the modules of this tree. */
import { execFile } from 'node:child_process'
import { mkdtemp, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Test } from 'tap'
import { projectFolder as root } from './paths.ts'

const run = promisify(execFile)

/** The main file of that commit, gone with the test; undefined: there is no history here, or it does not reach back so far. */
export async function buildOlder(t: Test, commit: string): Promise<string | undefined> {
  try {
    await run('git', ['cat-file', '-e', `${commit}^{commit}`], { cwd: root })
  } catch {
    // No git, no repository, a shallow clone: all the same to the caller.
    return undefined
  }
  const folder = await mkdtemp(join(tmpdir(), 'hf-older-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const archive = join(folder, 'tree.tar')
  await run('git', ['archive', '--output', archive, commit], { cwd: root })
  await run('tar', ['-xf', archive, '-C', folder])
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'))
  await run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-b', folder])
  return join(folder, 'dist/cli/main.js')
}
