import { HoldfastError } from '../shared/errors.ts'

/** One server of a connection string that may name several. */
export interface ServerAddress {
  /** Without user and password: for logs. */
  readonly label: string
  /** For pg; contains the password. */
  readonly connectionString: string
}

const postgresUrl = /^(postgres(?:ql)?:\/\/)(?:([^@/?]*)@)?([^/?]*)(\/[^?]*)?(?:\?(.*))?$/

/**
 * The servers of `postgres://user:password@a:5432,b:5432/name?…` or `postgres://user@/name?host=/a,/b`, in order. Pure.
 * Throws CONFIG_INVALID (without the text, which holds a password).
 */
export function parseServers(url: string): readonly ServerAddress[] {
  const match = postgresUrl.exec(url)
  if (match === null) {
    throw new HoldfastError('CONFIG_INVALID', 'the database URL must begin with postgres://, postgresql:// or pglite:')
  }
  const [, scheme = '', user, authority = '', database = '', query = ''] = match
  const parameters = new URLSearchParams(query)
  const named = split(parameters.get('host') ?? '')
  const hosts = named.length > 0 ? named : split(authority)
  const login = user === undefined ? '' : `${user}@`
  if (hosts.length === 0) return [{ label: 'default', connectionString: url }]
  return hosts.map(host => {
    const own = new URLSearchParams(parameters)
    own.delete('host')
    // A folder of sockets cannot stand in a URL's authority.
    if (host.startsWith('/')) own.set('host', host)
    const text = own.toString().replaceAll('%2F', '/')
    const at = host.startsWith('/') ? '' : host
    return { label: host, connectionString: `${scheme}${login}${at}${database || '/'}${text && `?${text}`}` }
  })
}

function split(list: string): readonly string[] {
  return list
    .split(',')
    .map(item => item.trim())
    .filter(item => item !== '')
}
