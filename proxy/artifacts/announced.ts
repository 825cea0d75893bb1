import type { Publication, Publisher } from './publisher.ts'

/**
 * Announces the keys, commits, publishes; whatever comes of it, the announcement ends. Resolves with the number of changes, when every proxy
 * shows them and the shards know them.
 */
export async function announced(
  publisher: Pick<Publisher, 'prepare' | 'publish' | 'withdraw'>,
  keys: readonly string[],
  commit: () => Promise<readonly Publication[]>,
): Promise<number> {
  await publisher.prepare(keys)
  const publications = await commit().catch((error: unknown) => {
    publisher.withdraw(keys, error)
    throw error
  })
  await publisher.publish(publications, keys)
  return publications.length
}
