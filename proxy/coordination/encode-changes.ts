import { encodeMessage, type Changes, type MessageLimits } from './lease-store.ts'

/**
 * Messages that tell the changes in order; only the last one asks for an acknowledgement. Undefined if they are more than
 * the limits allow. Pure.
 */
export function encodeChanges(
  writer: string,
  batch: number,
  { changing, changed }: Changes,
  { bytesMax, messagesMax }: MessageLimits,
): string[] | undefined {
  const room = bytesMax - Buffer.byteLength(encodeMessage(['changing', writer, batch, 0, []]))
  const parts: { readonly kind: 'changing' | 'changed'; readonly keys: string[] }[] = []
  for (const [kind, keys] of [['changing', changing] as const, ['changed', changed] as const]) {
    let left = -1
    for (const key of keys) {
      const bytes = Buffer.byteLength(JSON.stringify(key)) + 1
      if (bytes > room) return undefined
      if (bytes > left) {
        if (parts.length === messagesMax) return undefined
        parts.push({ kind, keys: [] })
        left = room
      }
      left -= bytes
      parts.at(-1)?.keys.push(key)
    }
  }
  return parts.map(({ kind, keys }, at) => encodeMessage([kind, writer, batch, at === parts.length - 1 ? 1 : 0, keys]))
}
