/** What may be said of an upstream, and what holds where nothing is said. Pure. */
import { HoldfastError } from '../../shared/errors.ts'
import type { Upstream } from '../metadata/types.ts'

export const upstreamDefaults = { maxAgeSeconds: 600, absentMaxAgeSeconds: 300 } as const

/** BAD_REQUEST for an address that no artifact can be fetched from. */
export function upstreamOf(given: Pick<Upstream, 'url'> & Partial<Upstream>): Upstream {
  const refused = (why: string): HoldfastError =>
    new HoldfastError('BAD_REQUEST', `the upstream '${given.url.slice(0, 200)}' ${why}; such as https://host/folder/`)
  if (!URL.canParse(given.url)) throw refused('is no URL')
  const url = new URL(given.url)
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw refused('begins with neither http:// nor https://')
  // Not repeated in the message: a password may stand there.
  if (url.username !== '' || url.password !== '') {
    throw new HoldfastError('BAD_REQUEST', 'an upstream with a name or password in its address is not supported')
  }
  if (url.search !== '' || url.hash !== '') throw refused('has a query or a fragment')
  if (!url.pathname.endsWith('/')) url.pathname += '/'
  return { ...upstreamDefaults, ...given, url: url.href }
}
