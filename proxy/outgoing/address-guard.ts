/**
 * Addresses that no request to a server that is not ours may go to unless the operator allows it: this machine's own, those of its link,
 * and others where the services of a cloud hand out keys; also in the dress of IPv6. Private networks are allowed: that is where many
 * upstreams are. Looked at after the name was resolved, for the very address that is connected to.
 */
import { lookup as dnsLookup, type LookupAddress } from 'node:dns'
import { BlockList, isIP, type LookupFunction } from 'node:net'
import { HoldfastError } from '../../shared/errors.ts'
import { addNetwork } from '../networks.ts'

const own = ['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/4', '::/96', 'fe80::/10', 'ff00::/8']
const translated = ['64:ff9b::/96', '64:ff9b:1::/48', '2002::/16']
const keyServices = ['100.100.100.200', 'fd00:ec2::/32']

export class AddressGuard {
  readonly #forbidden = new BlockList()
  readonly #allowed = new BlockList()

  /** `allowed`: addresses and networks; throws RangeError for anything else. */
  constructor(allowed: readonly string[]) {
    for (const text of [...own, ...translated, ...keyServices]) addNetwork(this.#forbidden, text)
    for (const text of allowed) addNetwork(this.#allowed, text)
  }

  /** IPv4 in IPv6 clothes counts as IPv4. */
  allows(address: string): boolean {
    const kind = isIP(address) === 4 ? 'ipv4' : 'ipv6'
    return !this.#forbidden.check(address, kind) || this.#allowed.check(address, kind)
  }

  /** UPSTREAM_FAILED for a URL that names a forbidden address itself; names are looked at by `lookup`. */
  check(url: URL): void {
    const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
    if (isIP(host) !== 0 && !this.allows(host)) throw refused()
  }

  /** For node:net, in place of DNS alone: forbidden addresses are left out, and it fails when there are no others. */
  readonly lookup: LookupFunction = (hostname, options, callback) => {
    dnsLookup(hostname, { ...options, all: true }, (error: Error | null, found: LookupAddress[]) => {
      if (error !== null) return callback(error, '', 0)
      const good = found.filter(({ address }) => this.allows(address))
      const [first] = good
      if (first === undefined) return callback(refused(), '', 0)
      if (options.all === true) callback(null, good)
      else callback(null, first.address, first.family)
    })
  }
}

function refused(): HoldfastError {
  const message = "the upstream's address is of this machine or its link; HOLDFAST_UPSTREAM_ALLOW can allow it"
  return new HoldfastError('UPSTREAM_FAILED', message)
}
