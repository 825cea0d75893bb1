/** How busy the processors are: what work in the background goes by besides the disk (I34). */
import { open } from 'node:fs/promises'

const sampleMs = 250
/** The first line of it: jiffies since the start, of all processors together. */
const statFile = '/proc/stat'
const lineBytesMax = 256

/** Jiffies since the start of the machine. */
interface Jiffies {
  readonly all: number
  readonly idle: number
}

/**
 * The event loop of this process, or all processors of the machine, whichever is busier: other processes of the cluster may share them, and none
 * of these need be busy for all of them to be. Where there is no `/proc/stat`, the event loop alone.
 */
export class ProcessorLoad {
  #loop = performance.eventLoopUtilization()
  #jiffies: Jiffies | undefined
  #at = -Infinity
  #load = 0

  /** 0 to 1, over a quarter of a second or more; asking costs nothing in between. */
  readonly load = (): number => {
    if (performance.now() - this.#at >= sampleMs) {
      this.#at = performance.now()
      void this.#sample()
    }
    return this.#load
  }

  async #sample(): Promise<void> {
    const jiffies = await readJiffies()
    const loop = performance.eventLoopUtilization()
    const ofLoop = performance.eventLoopUtilization(loop, this.#loop).utilization
    this.#load = Math.max(ofLoop, busyPart(this.#jiffies, jiffies))
    this.#loop = loop
    this.#jiffies = jiffies
  }
}

/** Undefined where the system does not tell. */
async function readJiffies(): Promise<Jiffies | undefined> {
  try {
    const file = await open(statFile)
    try {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(lineBytesMax), 0, lineBytesMax, 0)
      return parseStat(buffer.toString('latin1', 0, bytesRead))
    } finally {
      await file.close()
    }
  } catch {
    return undefined
  }
}

/** `cpu  user nice system idle iowait irq softirq steal ...` (proc_stat(5)). Who waits for a disk keeps no processor busy; guests are counted in user. */
export function parseStat(text: string): Jiffies | undefined {
  const [line = ''] = text.split('\n')
  const fields = line.split(/ +/)
  const [user = NaN, nice = NaN, system = NaN, idle = NaN, ioWait = 0, irq = 0, softIrq = 0, steal = 0] = fields.slice(1).map(Number) // prettier-ignore
  const free = idle + ioWait
  const all = user + nice + system + free + irq + softIrq + steal
  return fields[0] === 'cpu' && Number.isFinite(all) ? { all, idle: free } : undefined
}

/** 0 to 1; 0 where nothing is known. */
export function busyPart(before: Jiffies | undefined, after: Jiffies | undefined): number {
  if (before === undefined || after === undefined || after.all <= before.all) return 0
  return Math.min(1, Math.max(0, 1 - (after.idle - before.idle) / (after.all - before.all)))
}
