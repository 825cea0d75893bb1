/** What the storage nodes of `holdfast up` get of its environment. */
import { envName } from '../shared/config.ts'
import { storageNodeOptions } from '../storage-node/options.ts'

const ours = new Set(Object.keys(storageNodeOptions).map(envName))
/** Of the rest: what Node.js, its libraries and the places for files go by. */
const general = /^(?:PATH|HOME|TMPDIR|TZ|LANG|LC_[A-Z]+|NODE_[A-Z_]+|UV_[A-Z_]+|(?:LD|DYLD)_[A-Z_]+)$/

/**
 * The settings that a storage node has, and what any program needs. Whatever else is there stays out of their reach, known or not:
 * the backup's passphrase and keys, the database's address, the administrator's password. Pure.
 */
export function nodeEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => ours.has(name) || general.test(name)))
}
