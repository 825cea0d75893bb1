/**
 * `holdfast doctor`: is this machine fit for a cluster, and does the one that runs here answer? Looks, changes nothing that stays.
 * Exit code 0 when nothing is wrong, 1 otherwise.
 */
import { execFileSync } from 'node:child_process'
import { mkdtemp, open, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { readConfig, type ConfigSource, type Options } from '../shared/config.ts'
import { bytesFree, tryPort } from './cluster-folder.ts'
import { findBinaries } from './embedded-postgres/binaries.ts'
import { humanBytes } from './text-table.ts'

export const doctorOptions = {
  data: { kind: 'string', default: './data', doc: 'Data folder of `holdfast up`; need not exist yet.' },
  port: { kind: 'int', min: 1, max: 65_535, default: 8080, doc: 'Public port.' },
  json: { kind: 'bool', default: false, doc: 'Print JSON instead of text.' },
} as const satisfies Options

export interface Finding {
  readonly subject: string
  readonly verdict: 'good' | 'poor' | 'bad'
  readonly detail: string
}

const bytesFreeWanted = 5 * 2 ** 30
const fsyncMsPoor = 20
const filesWanted = 4_096

/** Resolves with the exit code. */
export async function doctor(
  source: ConfigSource,
  write: (text: string) => void = text => process.stdout.write(text),
): Promise<number> {
  const { data, port, json } = readConfig(doctorOptions, source)
  const folder = resolve(data)
  const findings = [nodeVersion(process.versions.node), openFiles()]
  findings.push(
    await database(source.env['PATH'] ?? ''),
    ...(await disk(await existing(folder))),
    await portOrCluster(port),
  )
  if (json) write(JSON.stringify({ findings }, null, 2) + '\n')
  else
    for (const { subject, verdict, detail } of findings) write(`${verdict.padEnd(5)} ${subject.padEnd(12)} ${detail}\n`)
  return findings.some(({ verdict }) => verdict === 'bad') ? 1 : 0
}

/** Pure. */
export function nodeVersion(version: string): Finding {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  const fits = (major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22
  const detail = fits ? `Node.js ${version}` : `Node.js ${version}: 20.19 or newer, or 22.12 or newer is needed`
  return { subject: 'node', verdict: fits ? 'good' : 'bad', detail }
}

function openFiles(): Finding {
  let limit: number
  try {
    const text = execFileSync('sh', ['-c', 'ulimit -n'], { encoding: 'utf8' }).trim()
    limit = text === 'unlimited' ? Infinity : Number(text)
  } catch (error) {
    return { subject: 'open files', verdict: 'poor', detail: `the limit cannot be read: ${messageOf(error)}` }
  }
  const enough = limit >= filesWanted
  const detail = `${limit} a process${enough ? '' : `: raise it to ${filesWanted} or more (ulimit -n), each client takes one`}`
  return { subject: 'open files', verdict: enough ? 'good' : 'poor', detail }
}

async function database(searchPath: string): Promise<Finding> {
  const linksFolder = await mkdtemp(join(tmpdir(), 'holdfast-doctor-'))
  try {
    const { found, refused } = await findBinaries({ dataMajor: undefined, linksFolder, searchPath })
    if (found !== undefined) {
      const origin = found.kind === 'npm' ? 'embedded' : 'of this system'
      return { subject: 'PostgreSQL', verdict: 'good', detail: `${found.version} (${origin})` }
    }
    const detail = `no server programs: only a try-out database that is not safe against power loss. ${refused.join('; ')}`
    return { subject: 'PostgreSQL', verdict: 'poor', detail }
  } finally {
    await rm(linksFolder, { recursive: true, force: true })
  }
}

async function disk(folder: string): Promise<Finding[]> {
  const free = await bytesFree(folder)
  const room: Finding = {
    subject: 'disk',
    verdict: free > bytesFreeWanted ? 'good' : 'poor',
    detail: `${humanBytes(free)} free at ${folder}`,
  }
  try {
    const ms = await fsyncMs(folder)
    const detail = `${ms.toFixed(1)} ms for a synced write${ms > fsyncMsPoor ? ': writes will be slow' : ''}`
    return [room, { subject: 'fsync', verdict: ms > fsyncMsPoor ? 'poor' : 'good', detail }]
  } catch (error) {
    return [room, { subject: 'fsync', verdict: 'bad', detail: `${folder} cannot be written: ${messageOf(error)}` }]
  }
}

/** The median of a few small synced writes. */
async function fsyncMs(folder: string): Promise<number> {
  const scratch = await mkdtemp(join(folder, '.holdfast-doctor-'))
  try {
    const file = await open(join(scratch, 'probe'), 'w')
    const times: number[] = []
    try {
      for (let round = 0; round < 9; round++) {
        const startedAt = performance.now()
        await file.write(Buffer.alloc(4096, round))
        await file.datasync()
        times.push(performance.now() - startedAt)
      }
    } finally {
      await file.close()
    }
    return times.sort((a, b) => a - b)[4] ?? 0
  } finally {
    await rm(scratch, { recursive: true, force: true })
  }
}

async function portOrCluster(port: number): Promise<Finding> {
  const subject = `port ${port}`
  try {
    const answer = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(3_000) })
    const { ready, problems } = (await answer.json()) as { ready?: unknown; problems?: readonly string[] }
    if (ready === true) {
      const told = problems?.length ? `, but: ${problems.join('; ')}` : ''
      return { subject, verdict: told === '' ? 'good' : 'poor', detail: `a cluster answers and is ready${told}` }
    }
    return {
      subject,
      verdict: 'bad',
      detail: `a cluster answers and is not ready: ${problems?.join('; ') ?? 'no reason given'}`,
    }
  } catch {
    // Nobody there, or something else: the port itself tells which.
  }
  const free = (await tryPort(port, '0.0.0.0')) !== undefined
  const detail = free ? 'free' : 'in use by something that is no Holdfast: stop it, or choose another with --port'
  return { subject, verdict: free ? 'good' : 'bad', detail }
}

/** The folder, or the nearest above it that exists. */
async function existing(folder: string): Promise<string> {
  const there = await stat(folder).then(
    found => found.isDirectory(),
    () => false, // not made yet
  )
  return there || dirname(folder) === folder ? folder : existing(dirname(folder))
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
