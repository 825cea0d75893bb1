/**
 * The order in which shards and PostgreSQL list paths: that of their bytes in UTF-8, with which a folder can be walked child by
 * child. Pure.
 */

/** Negative: `a` stands before `b` in a listing, which is in the order of the bytes of UTF-8 (strings compare by those of UTF-16). */
export function inKeyOrder(a: string, b: string): number {
  const length = Math.min(a.length, b.length)
  for (let at = 0; at < length; at += 1) {
    const [one, other] = [a.charCodeAt(at), b.charCodeAt(at)]
    if (one !== other) return rankOf(one) - rankOf(other)
  }
  return a.length - b.length
}

/** Surrogates, which stand for what is beyond all other units, come last. */
const rankOf = (unit: number): number => (unit < 0xd800 ? unit : unit < 0xe000 ? unit + 0x2000 : unit - 0x800)

/** The child of `folder` (which ends in '/') that `key` is or lies in: the key itself, or that of a folder, which ends in '/'. */
export function childOf(folder: string, key: string): string {
  const slash = key.indexOf('/', folder.length)
  return slash < 0 ? key : key.slice(0, slash + 1)
}

/** The first key that can stand behind a child: behind everything in a folder ('0' follows '/'), or right behind an artifact. */
export function behind(child: string): string {
  return child.endsWith('/') ? `${child.slice(0, -1)}0` : `${child}\0`
}
