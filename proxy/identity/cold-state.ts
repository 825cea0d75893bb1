/** What a proxy keeps on its own disk, so that it can start and serve reads while neither PostgreSQL nor Redis answers. */
import { open, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import type { Logger } from 'pino'
import { decodeClusterMap, type ClusterMap } from '../../shared/cluster-map.ts'
import { isHoldfastError } from '../../shared/errors.ts'
import { openIdentity, type IdentitySnapshot } from './sealed-identity.ts'

export interface ColdState {
  readonly map: ClusterMap
  readonly identity: IdentitySnapshot
}

const identityFile = (stateFolder: string): string => join(stateFolder, 'identity.sealed')

/** Undefined unless both parts are there, whole, and of the same cluster (`clusterId`, if that is given). */
export async function readColdState(
  options: { stateFolder: string; secret: string; clusterId: string | undefined },
  log: Logger,
): Promise<ColdState | undefined> {
  const [mapText, sealed] = await Promise.all([
    readIfThere(join(options.stateFolder, 'cluster-map.json')),
    readIfThere(identityFile(options.stateFolder)),
  ])
  if (mapText === undefined || sealed === undefined) return undefined
  try {
    const map = decodeClusterMap(mapText.toString('utf8'))
    const identity = openIdentity(options.secret, sealed)
    const ids = new Set([map.clusterId, identity.clusterId, options.clusterId ?? map.clusterId])
    if (ids.size === 1) return { map, identity }
    log.warn('the state folder is of another cluster: it is not used')
  } catch (error) {
    if (!isHoldfastError(error)) throw error
    log.warn({ err: error }, 'the state folder cannot be used')
  }
  return undefined
}

/** Replaces the file as a whole; readable by its owner only. */
export async function writeIdentity(stateFolder: string, sealed: Buffer): Promise<void> {
  const file = identityFile(stateFolder)
  const temporary = `${file}.${process.pid}`
  const handle = await open(temporary, 'w', 0o600)
  try {
    await handle.writeFile(sealed)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(temporary, file)
}

async function readIfThere(file: string): Promise<Buffer | undefined> {
  try {
    return await readFile(file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
