/** What `holdfast up` keeps in its data folder besides the data itself: who the cluster is, its secret, the ports of its nodes. */
import { randomBytes, randomUUID } from 'node:crypto'
import { chmod, mkdir, open, readFile, rename, rm, stat, statfs } from 'node:fs/promises'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { HoldfastError } from '../shared/errors.ts'

export interface LocalNode {
  readonly id: string
  readonly zone: string
  readonly port: number
  readonly shards: readonly { readonly id: string; readonly folder: string }[]
}

export interface ClusterFolder {
  readonly clusterId: string
  readonly secret: string
  readonly nodes: readonly LocalNode[]
  readonly adminPassword: string
  /** The password was made just now: show it. */
  readonly passwordIsNew: boolean
}

const zones = ['a', 'b', 'c'] as const
const shardsPerNode = 2

/**
 * Reads the folder, or sets it up at the first start. Ports that are taken by now are replaced: the cluster map learns the new
 * addresses from the nodes themselves. CONFIG_INVALID if the state cannot be read.
 */
export async function openClusterFolder(folder: string, givenPassword: string | undefined): Promise<ClusterFolder> {
  await mkdir(join(folder, 'log'), { recursive: true, mode: 0o700 })
  const file = join(folder, 'cluster.json')
  const kept = await readState(file)
  const state = kept ?? { clusterId: randomUUID(), secret: randomBytes(32).toString('hex'), ports: [] }
  const ports: number[] = []
  for (let index = 0; index < zones.length; index++) ports.push(await usablePort(state.ports[index], ports))
  if (kept === undefined || ports.some((port, index) => port !== kept.ports[index])) {
    await writePrivate(file, JSON.stringify({ format: 1, ...state, ports }, null, 2) + '\n')
  }
  const nodes = localNodes(folder, ports)
  return { clusterId: state.clusterId, secret: state.secret, nodes, ...(await adminPassword(folder, givenPassword)) }
}

/** The storage nodes of a cluster in this folder, one in each zone. Pure. */
export function localNodes(folder: string, ports: readonly number[]): readonly LocalNode[] {
  return zones.map((zone, index) => localNode(folder, zone, ports[index] as number))
}

/** Makes the folder, with the one for what runs. CONFIG_INVALID if it cannot be made. */
export async function makeDataFolder(folder: string): Promise<void> {
  try {
    await mkdir(join(folder, 'run'), { recursive: true, mode: 0o700 })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const why = code === 'ENOTDIR' || code === 'EEXIST' ? 'it, or what it should lie in, is no folder' : String(code)
    const message = `the data folder ${folder} cannot be made (${why}): name another one with --data`
    throw new HoldfastError('CONFIG_INVALID', message, { folder }, { cause: error })
  }
}

/** Which of the shards named in `--replaced-shard` this node has. CONFIG_INVALID if one of them nobody has. Pure. */
export function replacedShardsOf(node: LocalNode, nodes: readonly LocalNode[], named: readonly string[]): string[] {
  const shards = nodes.flatMap(one => one.shards.map(({ id }) => id))
  const unknown = named.filter(id => !shards.includes(id))
  if (unknown.length > 0) {
    throw new HoldfastError(
      'CONFIG_INVALID',
      `--replaced-shard '${unknown.join(', ')}' is no shard here: there are ${shards.join(', ')}`,
    )
  }
  return named.filter(id => node.shards.some(shard => shard.id === id))
}

function localNode(folder: string, zone: string, port: number): LocalNode {
  const id = `node-${zone}`
  const shards = Array.from({ length: shardsPerNode }, (_, index) => ({
    id: `${id}-${index + 1}`,
    folder: join(folder, 'shards', `${id}-${index + 1}`),
  }))
  return { id, zone, port, shards }
}

interface State {
  readonly clusterId: string
  readonly secret: string
  readonly ports: readonly number[]
}

async function readState(file: string): Promise<State | undefined> {
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  try {
    const { format, clusterId, secret, ports } = JSON.parse(text) as Record<string, unknown>
    if (format !== 1 || typeof clusterId !== 'string' || typeof secret !== 'string' || !Array.isArray(ports))
      throw new Error()
    return { clusterId, secret, ports: ports.filter(port => Number.isInteger(port)) as number[] }
  } catch (error) {
    throw new HoldfastError(
      'CONFIG_INVALID',
      `${file} is damaged: restore it, or start with another data folder`,
      { file },
      { cause: error },
    )
  }
}

/** The password given, or kept, or a new one; kept in `<data>/admin.password`, readable by its owner only. */
async function adminPassword(
  folder: string,
  given: string | undefined,
): Promise<Pick<ClusterFolder, 'adminPassword' | 'passwordIsNew'>> {
  if (given !== undefined) return { adminPassword: given, passwordIsNew: false }
  const file = join(folder, 'admin.password')
  try {
    return { adminPassword: (await readFile(file, 'utf8')).trim(), passwordIsNew: false }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
  const made = randomBytes(15).toString('base64url')
  await writePrivate(file, made + '\n')
  return { adminPassword: made, passwordIsNew: true }
}

async function writePrivate(file: string, text: string): Promise<void> {
  const temporary = `${file}.${process.pid}`
  const handle = await open(temporary, 'w', 0o600)
  try {
    await handle.writeFile(text)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await chmod(temporary, 0o600)
  await rename(temporary, file)
  const parent = await open(dirname(file), 'r')
  await parent.sync().finally(() => parent.close())
}

async function usablePort(wanted: number | undefined, taken: readonly number[]): Promise<number> {
  if (wanted !== undefined && (await tryPort(wanted)) !== undefined) return wanted
  for (let tries = 0; tries < 20; tries++) {
    const port = await tryPort(0)
    if (port !== undefined && !taken.includes(port)) return port
  }
  throw new HoldfastError('CONFIG_INVALID', 'no free port on 127.0.0.1 for a storage node')
}

/** The port if it can be had right now; another process may still be quicker, then the node says so. */
export async function tryPort(port: number, host = '127.0.0.1'): Promise<number | undefined> {
  const server = createServer()
  return new Promise(resolve => {
    server.once('error', () => resolve(undefined))
    server.listen({ port, host, exclusive: true }, () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : undefined))
    })
  })
}

/** Bytes free where the data folder is; for `doctor`. */
export async function bytesFree(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder)
  return bavail * bsize
}

/** Removes a log that has grown beyond `bytesMax` at start, keeping one predecessor. */
export async function rotateLog(file: string, bytesMax: number): Promise<void> {
  const size = await stat(file).then(
    found => found.size,
    () => 0, // no log yet
  )
  if (size <= bytesMax) return
  await rm(`${file}.1`, { force: true })
  await rename(file, `${file}.1`)
}
