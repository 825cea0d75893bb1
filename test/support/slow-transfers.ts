import { setTimeout as sleep } from 'node:timers/promises'
import type { Client } from './client.ts'
import type { Random } from './random.ts'

const slowBytes = 6_000_000
/** Longer than a restart takes, so that each meets the beginning or the end of one. */
const slowMs = 6_000

/** Two uploads and two downloads that are always under way; failures are kept in words. */
export class SlowTransfers {
  readonly failures: string[] = []
  done = 0
  readonly paths: string[] = []
  #stopping = false
  readonly #workers: Promise<void>[]

  constructor(client: Client, random: Random) {
    this.#workers = [0, 1].flatMap(index => [
      this.#upload(client, random, index),
      this.#download(client, random, index),
    ])
  }

  async stop(): Promise<void> {
    this.#stopping = true
    await Promise.all(this.#workers)
  }

  async #upload(client: Client, random: Random, index: number): Promise<void> {
    for (let turn = 0; !this.#stopping; turn++) {
      const path = `raw/slow/up-${index}-${turn}`
      await this.#attempt(`PUT ${path}`, async () => {
        const status = await client.upload(path, random.bytes(slowBytes), pause(slowBytes, 65_536))
        if (status !== 201) throw new Error(String(status))
        this.paths.push(path)
      })
    }
  }

  async #download(client: Client, random: Random, index: number): Promise<void> {
    const path = `raw/slow/down-${index}`
    await this.#attempt(`PUT ${path}`, async () => void (await client.put(path, random.bytes(slowBytes))))
    while (!this.#stopping) {
      // Beyond what the buffers on the way hold, the server waits for the reader.
      await this.#attempt(`GET ${path}`, async () => void (await client.download(path, pause(slowBytes, 65_536))))
    }
  }

  async #attempt(what: string, act: () => Promise<void>): Promise<void> {
    try {
      await act()
      this.done++
    } catch (error) {
      const { message, cause } = error as Error
      this.failures.push(`${what}: ${message} ${cause instanceof Error ? cause.message : ''}`)
      await sleep(100)
    }
  }
}

function pause(total: number, step: number): () => Promise<void> {
  return () => sleep((slowMs * step) / total)
}
