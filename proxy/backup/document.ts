/** Small JSON documents of a target, a claim or a summary, with a checksum, which those of earlier releases do not have. Pure. */
import { hash } from 'node:crypto'
import { HoldfastError } from '../../shared/errors.ts'

export function encodeDocument(document: { readonly format: 1 }): Buffer {
  return Buffer.from(JSON.stringify({ ...document, sha256: hash('sha256', JSON.stringify(document)) }) + '\n')
}

/** BACKUP_DAMAGED. What it has is not looked at but for the format. `checked`: its checksum is right, not just missing. */
export function parseDocument<Document extends { readonly format: 1 }>(
  bytes: Buffer,
  name: string,
): { readonly document: Document; readonly checked: boolean } {
  let found: unknown
  try {
    found = JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    throw new HoldfastError('BACKUP_DAMAGED', `${name} is damaged`, {}, { cause: error })
  }
  const { sha256, ...document } = (found ?? {}) as { readonly sha256?: unknown; readonly format?: unknown }
  if (sha256 !== undefined && sha256 !== hash('sha256', JSON.stringify(document))) {
    throw new HoldfastError('BACKUP_DAMAGED', `${name} is damaged (checksum)`)
  }
  if (document.format !== 1) throw new HoldfastError('BACKUP_DAMAGED', `${name} is damaged, or of a later release`)
  return { document: document as Document, checked: sha256 !== undefined }
}
