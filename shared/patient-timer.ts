/**
 * A timer that fires only after the I/O that was already waiting has been handled. A process that was starved of CPU, or
 * stopped, would otherwise take its own absence for that of its peers: timers run before the answers that came meanwhile.
 */
export class PatientTimer {
  #timer: NodeJS.Timeout | undefined
  #immediate: NodeJS.Immediate | undefined

  /** Calls `fire` once after `ms`; replaces what was set before. */
  set(ms: number, fire: () => void): void {
    this.clear()
    this.#timer = setTimeout(() => {
      this.#immediate = setImmediate(fire)
    }, ms)
  }

  clear(): void {
    clearTimeout(this.#timer)
    clearImmediate(this.#immediate)
  }
}
