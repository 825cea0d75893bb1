/** What the parts of `bench/scale.ts` share: CPU time, memory after a collection, and rows of the table they print. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

export type Unit = 'count' | 'bytes' | 'ms' | 's' | 'ratio' | 'bytes/s'

export interface Figure {
  readonly name: string
  readonly value: number
  readonly unit: Unit
  /** How it came about, when that is not plain. */
  readonly note?: string
}

export const figure = (name: string, value: number, unit: Unit, note?: string): Figure => ({
  name,
  value,
  unit,
  ...(note === undefined ? {} : { note }),
})

export interface Timed<Result> {
  readonly result: Result
  /** CPU time of this process, all its threads: other work on the machine does not count. */
  readonly cpuMs: number
  readonly wallMs: number
}

export async function timed<Result>(action: () => Result | Promise<Result>): Promise<Timed<Result>> {
  const cpu = process.cpuUsage()
  const start = performance.now()
  const result = await action()
  const { user, system } = process.cpuUsage(cpu)
  return { result, cpuMs: (user + system) / 1_000, wallMs: performance.now() - start }
}

let collect: (() => void) | undefined

/** Bytes of objects and buffers that are alive now. */
export function heldBytes(): number {
  if (collect === undefined) {
    setFlagsFromString('--expose-gc')
    collect = runInNewContext('gc') as () => void
  }
  // Twice: what has a finalizer goes with the second.
  collect()
  collect()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}

/** What `make` returns and how much memory that holds. */
export async function weighed<Result>(
  make: () => Result | Promise<Result>,
): Promise<{ readonly result: Result; readonly bytes: number }> {
  const before = heldBytes()
  const result = await make()
  return { result, bytes: heldBytes() - before }
}

const binary = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']

export function bytesText(bytes: number): string {
  let [value, unit] = [bytes, 0]
  while (value >= 1024 && unit < binary.length - 1) [value, unit] = [value / 1024, unit + 1]
  return `${significant(value)} ${binary[unit]}`
}

export function secondsText(seconds: number): string {
  if (seconds < 1) return `${significant(seconds * 1_000)} ms`
  if (seconds < 120) return `${significant(seconds)} s`
  if (seconds < 2 * 3_600) return `${significant(seconds / 60)} min`
  if (seconds < 3 * 86_400) return `${significant(seconds / 3_600)} h`
  return `${significant(seconds / 86_400)} d`
}

const significant = (value: number): string =>
  value >= 100 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(3)))

export function valueText({ value, unit }: Figure): string {
  switch (unit) {
    case 'count':
      return significant(value)
    case 'ratio':
      return value.toFixed(3)
    case 'bytes':
      return bytesText(value)
    case 'bytes/s':
      return `${bytesText(value)}/s`
    case 'ms':
      return secondsText(value / 1_000)
    case 's':
      return secondsText(value)
  }
}
