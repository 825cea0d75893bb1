/** Runs an action again and again with a pause in between, never twice at once. */
export class Every {
  readonly #action: () => Promise<void>
  readonly #pauseMs: number
  #timer: NodeJS.Timeout | undefined
  #running: Promise<void> = Promise.resolve()
  #stopped = false

  /** `action` handles its own errors: what it rejects with is a bug and ends the process. */
  constructor(pauseMs: number, action: () => Promise<void>) {
    this.#pauseMs = pauseMs
    this.#action = action
    this.#arm()
  }

  /** Resolves when the action is not running and never will be again. */
  async stop(): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#timer)
    await this.#running
  }

  #arm(): void {
    if (this.#stopped) return
    this.#timer = setTimeout(() => {
      this.#running = this.#action()
      void this.#running.then(() => this.#arm())
    }, this.#pauseMs)
    this.#timer.unref()
  }
}
