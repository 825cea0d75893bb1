/**
 * Clients that move too few bytes to be honest. nginx (60 s), HAProxy (`timeout client`) and Envoy (300 s) only bound the pause between
 * two bytes, which one byte a minute satisfies; Apache (500 bytes/s after 20 s) and Kestrel (240 bytes/s after 5 s) demand a rate too.
 *
 * Here each client has patience in milliseconds: waiting for it uses it up, each byte it moves gives some back, never more than at the
 * start. So an outage is forgiven as long as the start allows, and over any longer time the rate is kept. Only looked at every few
 * seconds: nothing is counted per request or chunk.
 */
import type { Socket } from 'node:net'

export interface PaceLimits {
  /** How long a client may move nothing, in ms. */
  readonly clientGraceMs: number
  /** 0: never too slow. */
  readonly clientBytesPerSecondMin: number
}

export type Direction = 'upload' | 'download'

/** What is left of the patience after a wait that brought `bytes`; below 0 it is used up. Pure. */
export function patienceAfter(patienceMs: number, waitedMs: number, bytes: number, limits: PaceLimits): number {
  const earnedMs = (bytes * 1_000) / limits.clientBytesPerSecondMin
  return Math.min(limits.clientGraceMs, patienceMs - waitedMs + earnedMs)
}

interface Pace {
  readonly direction: Direction
  bytes: number
  patienceMs: number
}

export class SlowClients {
  readonly #limits: PaceLimits
  readonly #paces = new Map<Socket, Pace>()

  constructor(limits: PaceLimits) {
    this.#limits = limits
  }

  /** How often to look, in ms. */
  get everyMs(): number {
    return Math.min(5_000, Math.ceil(this.#limits.clientGraceMs / 8))
  }

  /** Clients looked after at this moment; no more than are waited for. */
  get size(): number {
    return this.#paces.size
  }

  /**
   * Looks at all clients that are waited for at this moment, `everyMs` after the last time (a process that was away does not take its
   * absence for theirs). Gives those whose patience is used up.
   */
  look(waitedFor: Iterable<readonly [Socket, Direction]>): readonly (readonly [Socket, Direction])[] {
    const slow: (readonly [Socket, Direction])[] = []
    if (this.#limits.clientBytesPerSecondMin === 0) return slow
    const before = new Map(this.#paces)
    this.#paces.clear()
    for (const [socket, direction] of waitedFor) {
      const bytes = direction === 'upload' ? socket.bytesRead : takenBytes(socket)
      const pace = before.get(socket)
      if (pace?.direction !== direction) {
        this.#paces.set(socket, { direction, bytes, patienceMs: this.#limits.clientGraceMs })
        continue
      }
      pace.patienceMs = patienceAfter(pace.patienceMs, this.everyMs, bytes - pace.bytes, this.#limits)
      pace.bytes = bytes
      if (pace.patienceMs < 0) slow.push([socket, direction])
      else this.#paces.set(socket, pace)
    }
    return slow
  }
}

/**
 * Bytes that the kernel has taken for the client. A stream counts a chunk only when all of it has gone, and a chunk may be 1 MiB; the
 * handle knows better, as net's own timeout asks it. Without a handle the connection has ended.
 */
function takenBytes(socket: Socket): number {
  const { _handle: handle } = socket as unknown as {
    _handle?: { readonly bytesWritten?: number; readonly writeQueueSize?: number } | null
  }
  return (handle?.bytesWritten ?? socket.bytesWritten) - (handle?.writeQueueSize ?? 0)
}
