/**
 * Whose request is it? Behind a balancer every connection comes from the balancer; what it says in X-Forwarded-For is believed only
 * when the connection comes from an address the operator named. Each hop appends the address it saw, so the list is read from its
 * right end: the first address that is no trusted hop is the client; all that stands left of it was written by that client. Pure.
 */
import { BlockList, isIP } from 'node:net'
import { addNetwork } from '../networks.ts'

/** What is asked of a request; node:http's IncomingMessage fits. */
export interface Addressed {
  readonly socket: { readonly remoteAddress?: string | undefined }
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
}

/** More hops than this are no proxies of ours, but somebody who lets us count. */
const hopsMax = 32

export class ClientAddresses {
  readonly #trusted = new BlockList()
  readonly #none: boolean

  /** Addresses and networks (`10.0.0.0/8`, `fd00::/8`); throws RangeError for anything else (see networks.ts). */
  constructor(trusted: readonly string[]) {
    this.#none = trusted.length === 0
    for (const text of trusted) addNetwork(this.#trusted, text)
  }

  /** The client's address; '' when the connection is gone. */
  readonly of = ({ socket, headers }: Addressed): string => {
    const peer = plain(socket.remoteAddress ?? '')
    const header = headers['x-forwarded-for']
    if (this.#none || header === undefined || !this.#isTrusted(peer)) return peer
    const hops = String(header).split(',').slice(-hopsMax)
    let address = peer
    for (let hop = hops.pop(); hop !== undefined; hop = hops.pop()) {
      const next = addressOfHop(hop)
      // What cannot be read is no address: the last hop that we know counts.
      if (next === undefined) return address
      address = next
      if (!this.#isTrusted(address)) return address
    }
    return address
  }

  #isTrusted(address: string): boolean {
    const kind = isIP(address)
    return kind !== 0 && this.#trusted.check(address, kind === 4 ? 'ipv4' : 'ipv6')
  }
}

/** `1.2.3.4`, `1.2.3.4:567`, `2001:db8::1`, `[2001:db8::1]:567` */
function addressOfHop(hop: string): string | undefined {
  const text = hop.trim()
  const match = /^\[([^\]]+)\](?::\d{1,5})?$/.exec(text) ?? /^(\d+\.\d+\.\d+\.\d+)(?::\d{1,5})?$/.exec(text)
  const address = plain(match?.[1] ?? text)
  return isIP(address) === 0 ? undefined : address
}

/** Without the zone of a link-local address, and IPv4 in IPv6 clothes (a socket that listens on '::') as IPv4. */
function plain(address: string): string {
  const zone = address.indexOf('%')
  const bare = zone < 0 ? address : address.slice(0, zone)
  return /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(bare)?.[1] ?? bare
}
