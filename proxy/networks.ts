/** Addresses and networks (`10.0.0.0/8`, `fd00::/8`) as they stand in a configuration. Pure. */
import { BlockList, isIP } from 'node:net'

/** Those that are neither an address nor a network. */
export function badNetworks(networks: readonly string[]): readonly string[] {
  return networks.filter(text => {
    try {
      addNetwork(new BlockList(), text)
      return false
    } catch {
      return true // that is what was asked
    }
  })
}

/** Throws RangeError for anything that is neither. */
export function addNetwork(list: BlockList, text: string): void {
  const slash = text.indexOf('/')
  const address = slash < 0 ? text : text.slice(0, slash)
  const kind = isIP(address)
  const bitsMax = kind === 4 ? 32 : 128
  const bits = slash < 0 ? bitsMax : Number(/^\d{1,3}$/.exec(text.slice(slash + 1))?.[0] ?? NaN)
  if (kind === 0 || address.includes('%') || !(bits <= bitsMax))
    throw new RangeError(`${text} is no address or network`)
  list.addSubnet(address, bits, kind === 4 ? 'ipv4' : 'ipv6')
}
