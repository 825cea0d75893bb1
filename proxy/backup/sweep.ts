/** Which blobs of a target no backup names any more, prefix by prefix: memory for one 256th of the digests. */
import type { Digest } from '../../shared/ids.ts'
import type { ManifestBlob, ManifestEntry } from './manifest.ts'
import { type BackupStore, prefixes } from './store.ts'

/** The blobs of a manifest, which stand in the order of their digests, in steps. */
class BlobLines {
  readonly #entries: AsyncGenerator<ManifestEntry, void>
  #next: ManifestBlob | undefined
  #over = false

  constructor(entries: AsyncGenerator<ManifestEntry, void>) {
    this.#entries = entries
  }

  /** Adds all that begin with the prefix; prefixes in their order. */
  async take(prefix: string, into: Set<Digest>): Promise<void> {
    for (;;) {
      const blob = this.#next ?? (await this.#read())
      if (blob === undefined) return
      this.#next = blob
      if (blob.digest.slice(0, 2) > prefix) return
      into.add(blob.digest)
      this.#next = undefined
    }
  }

  close(): Promise<unknown> {
    return this.#entries.return(undefined)
  }

  async #read(): Promise<ManifestBlob | undefined> {
    while (!this.#over) {
      const next = await this.#entries.next()
      if (next.done !== true && next.value.kind === 'blob') return next.value
      this.#over = next.done === true || next.value.kind === 'artifact'
    }
    return undefined
  }
}

/**
 * Yields, for each prefix, the digests that are on the target and in none of the manifests, and how many are there in all. Every manifest
 * is read to its end first: BACKUP_DAMAGED before anything is yielded.
 */
export async function* unnamedBlobs(
  store: BackupStore,
  ids: readonly string[],
): AsyncGenerator<{ readonly prefix: string; readonly unnamed: readonly Digest[]; readonly found: number }> {
  for (const id of ids) await store.checkManifest(id)
  const all = ids.map(id => new BlobLines(store.readManifest(id)))
  try {
    for (const prefix of prefixes) {
      const named = new Set<Digest>()
      for (const lines of all) await lines.take(prefix, named)
      const found = await store.blobs(prefix)
      yield { prefix, unnamed: [...found].filter(digest => !named.has(digest)), found: found.size }
    }
  } finally {
    await Promise.all(all.map(lines => lines.close()))
  }
}
