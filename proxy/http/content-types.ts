/** Content types of artifacts: what the client said when it is sensible, else by extension. Pure. */

const byExtension: Readonly<Record<string, string>> = {
  '7z': 'application/x-7z-compressed',
  bz2: 'application/x-bzip2',
  css: 'text/css; charset=utf-8',
  csv: 'text/csv; charset=utf-8',
  deb: 'application/vnd.debian.binary-package',
  exe: 'application/vnd.microsoft.portable-executable',
  gif: 'image/gif',
  gz: 'application/gzip',
  htm: 'text/html; charset=utf-8',
  html: 'text/html; charset=utf-8',
  jar: 'application/java-archive',
  jpeg: 'image/jpeg',
  jpg: 'image/jpeg',
  js: 'text/javascript; charset=utf-8',
  json: 'application/json',
  md: 'text/markdown; charset=utf-8',
  mjs: 'text/javascript; charset=utf-8',
  pdf: 'application/pdf',
  png: 'image/png',
  rpm: 'application/x-rpm',
  svg: 'image/svg+xml',
  tar: 'application/x-tar',
  tgz: 'application/gzip',
  toml: 'application/toml',
  txt: 'text/plain; charset=utf-8',
  war: 'application/java-archive',
  wasm: 'application/wasm',
  whl: 'application/zip',
  xml: 'application/xml',
  xz: 'application/x-xz',
  yaml: 'application/yaml',
  yml: 'application/yaml',
  zip: 'application/zip',
  zst: 'application/zstd',
}

/** What upload tools send when they do not know: no better than nothing. */
const meaningless = new Set(['application/octet-stream', 'application/x-www-form-urlencoded', 'binary/octet-stream'])

/** `type/subtype` with parameters; no control characters, so that it can stand in a header again. */
const wellFormed =
  /^[\w!#$&^.+-]{1,127}\/[\w!#$&^.+-]{1,127}(?:\s*;\s*[\w-]{1,64}=(?:[\w.+-]{1,128}|"[ !#-[\]-~]{0,128}"))*$/

/** The type to store with an upload; null if nothing sensible was declared. */
export function declaredContentType(header: string | undefined): string | null {
  if (header === undefined) return null
  const type = header.trim()
  if (!wellFormed.test(type) || meaningless.has((type.split(';')[0] ?? '').trim().toLowerCase())) return null
  return type
}

export function contentTypeOf(path: string, stored: string | null): string {
  if (stored !== null) return stored
  const name = path.slice(path.lastIndexOf('/') + 1)
  const dot = name.lastIndexOf('.')
  const known = dot < 0 ? undefined : byExtension[name.slice(dot + 1).toLowerCase()]
  return known ?? 'application/octet-stream'
}

/**
 * Types that a browser would run in our origin: they are served as downloads, in a sandbox. Any XML may hold XHTML with scripts, and a
 * multipart any of these.
 */
export function isActiveContent(contentType: string): boolean {
  return /^(?:text\/(?:html|xml|xsl)\b|application\/xml\b|multipart\/|message\/|[^;]*\+xml\s*(?:;|$))/i.test(
    contentType,
  )
}
