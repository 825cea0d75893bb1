/** What processes cost: CPU time and memory of a process and all its descendants, from /proc (Linux). */
import { readdirSync, readFileSync } from 'node:fs'

/** CPU seconds used so far by `root` and everything below it. */
export function cpuSeconds(roots: readonly number[]): number {
  let ticks = 0
  for (const pid of family(roots)) {
    const fields = statFields(pid)
    // utime, stime, and those of children that have ended (fields 14 to 17 of proc(5)).
    for (let index = 11; index <= 14; index++) ticks += Number(fields[index] ?? 0)
  }
  return ticks / 100
}

/** Proportional set size in bytes: shared pages count once over all processes that share them. */
export function pssBytes(roots: readonly number[]): number {
  let bytes = 0
  for (const pid of family(roots)) {
    try {
      const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')
      bytes += Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1024
    } catch {
      // Ended between the listing and the look.
    }
  }
  return bytes
}

/** Resident set size in bytes, the largest of the processes. */
export function rssBytesMax(roots: readonly number[]): number {
  const sizes = family(roots).map(pid => {
    try {
      return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024
    } catch {
      return 0 // ended
    }
  })
  return Math.max(0, ...sizes)
}

/** The processes and all their descendants. */
export function family(roots: readonly number[]): readonly number[] {
  const children = new Map<number, number[]>()
  for (const name of readdirSync('/proc')) {
    const pid = Number(name)
    if (!Number.isInteger(pid)) continue
    const parent = Number(statFields(pid)[1] ?? 0)
    children.set(parent, [...(children.get(parent) ?? []), pid])
  }
  const found: number[] = []
  const queue = [...roots]
  for (let pid = queue.shift(); pid !== undefined; pid = queue.shift()) {
    found.push(pid)
    queue.push(...(children.get(pid) ?? []))
  }
  return found
}

function statFields(pid: number): readonly string[] {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  } catch {
    return [] // ended
  }
}
