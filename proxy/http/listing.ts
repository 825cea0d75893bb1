/** Folder listings: JSON for programs, one plain page for people. Pure. */
import type { FolderPage } from '../metadata/types.ts'
import { encodeArtifactPath } from './artifact-path.ts'

export interface Listing {
  readonly repository: string
  /** With its trailing '/', or '' for the whole repository. */
  readonly folder: string
  readonly page: FolderPage
}

export function listingJson({ repository, folder, page }: Listing): unknown {
  return {
    repository,
    path: folder,
    entries: page.entries.map(entry => ({
      name: entry.name,
      kind: entry.kind,
      ...(entry.kind === 'artifact'
        ? {
            bytes: entry.bytes,
            sha256: entry.digest,
            ...(entry.updatedAt === undefined ? {} : { updatedAt: new Date(entry.updatedAt).toISOString() }),
          }
        : {}),
    })),
    ...(page.next === undefined ? {} : { next: page.next }),
  }
}

export function listingHtml({ repository, folder, page }: Listing): string {
  const title = escapeHtml(`${repository}/${folder}`)
  const rows = page.entries.map(entry => {
    const isFolder = entry.kind === 'folder'
    const name = entry.name + (isFolder ? '/' : '')
    const changed =
      entry.updatedAt === undefined ? '' : new Date(entry.updatedAt).toISOString().slice(0, 19).replace('T', ' ')
    const bytes = entry.bytes === undefined ? '' : entry.bytes.toLocaleString('en')
    return `<tr><td><a href="./${encodeArtifactPath(name)}">${escapeHtml(name)}</a></td><td class="n">${bytes}</td><td>${changed}</td></tr>`
  })
  const parent = folder === '' ? '' : '<tr><td><a href="../">../</a></td><td></td><td></td></tr>'
  const more = page.next === undefined ? '' : `<p><a href="?after=${encodeURIComponent(page.next)}">next page</a></p>`
  const empty = page.entries.length === 0 ? '<p>Nothing here yet.</p>' : ''
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${title}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.15rem;font-weight:600;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #e4e7eb}td:first-child{overflow-wrap:anywhere}
th.n,td.n{text-align:right}a{color:#0b5cad}
@media(prefers-color-scheme:dark){body{color:#e6e8eb;background:#15181c}th,td{border-color:#2c3138}a{color:#7db7f5}}</style></head>
<body><h1>${title}</h1>
<table><thead><tr><th scope="col">Name</th><th scope="col" class="n">Bytes</th><th scope="col">Changed (UTC)</th></tr></thead>
<tbody>${parent}
${rows.join('\n')}
</tbody></table>${empty}${more}</body></html>
`
}

function escapeHtml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&#39;')
}
