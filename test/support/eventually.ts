import { setTimeout as sleep } from 'node:timers/promises'

/**
 * Asks `look` again and again until it gives something else than undefined or false; what it throws counts as "not yet". Rejects
 * after `withinMs` with the last reason. A bound for the test, not a measurement.
 */
export async function eventually<Result>(
  what: string,
  look: () => Promise<Result | undefined | false> | Result | undefined | false,
  { withinMs = 20_000, everyMs = 50 }: { withinMs?: number; everyMs?: number } = {},
): Promise<Result> {
  const end = performance.now() + withinMs
  for (let last: unknown; ;) {
    try {
      const result = await look()
      if (result !== undefined && result !== false) return result
      last = undefined
    } catch (error) {
      last = error
    }
    if (performance.now() > end) {
      throw new Error(`not within ${withinMs} ms: ${what}`, last === undefined ? {} : { cause: last })
    }
    await sleep(everyMs)
  }
}
