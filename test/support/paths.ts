import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** The project's folder: tests run from `test/` and, built, from `dist/test/`. */
export const projectFolder = folderWith('package.json', import.meta.dirname)

/** What tests start as a process of its own: the built file of a module of this tree, e.g. 'cli/main.ts'. */
export function builtFile(module: string): string {
  return join(projectFolder, 'dist', module.replace(/\.ts$/, '.js'))
}

function folderWith(name: string, from: string): string {
  return existsSync(join(from, name)) ? from : folderWith(name, dirname(from))
}
