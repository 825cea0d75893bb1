import { readFileSync } from 'node:fs'

/** The version of this build. package.json lies two folders above, in the tree and in dist. */
export const version = (JSON.parse(readFileSync(packageFile(), 'utf8')) as { version: string }).version

function packageFile(): URL {
  const inDist = import.meta.url.includes('/dist/shared/')
  return new URL(inDist ? '../../package.json' : '../package.json', import.meta.url)
}
