/**
 * Memory for the bodies of requests, of the whole node: each may have some MiB, and there may be thousands of connections. Uploads are
 * not counted, they go to disk as they come.
 */
import { HoldfastError } from '../shared/errors.ts'

/** What one request holds. */
export interface BodyClaim {
  /** Takes so much more. Throws OVERLOADED when the node has no more to give. */
  readonly take: (bytes: number) => void
  /** Gives all of it back; nothing can be taken any more. To be called when nobody needs the body, however the request ended. */
  readonly release: () => void
}

export class BodyBudget {
  readonly #bytesMax: number
  #bytes = 0

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  /** Held by requests now. */
  get bytes(): number {
    return this.#bytes
  }

  claim(): BodyClaim {
    let held = 0
    let isReleased = false
    return {
      take: bytes => {
        if (isReleased || this.#bytes + bytes > this.#bytesMax) {
          throw new HoldfastError('OVERLOADED', 'too much waits to be received', { bytesMax: this.#bytesMax })
        }
        held += bytes
        this.#bytes += bytes
      },
      release: () => {
        this.#bytes -= held
        held = 0
        isReleased = true
      },
    }
  }
}
