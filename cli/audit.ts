/** `holdfast audit` */
import type { AuditLine } from '../proxy/metadata/types.ts'
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type Writer } from './client.ts'
import { shortTime } from './task.ts'
import { textTable } from './text-table.ts'

export const auditUsage = `holdfast audit [--limit <n>] [--before <id>]   (changes through the API and what was refused, newest first)
`

export const auditOptions = {
  limit: { kind: 'int', min: 1, max: 1_000, default: 50, doc: 'How many entries.' },
  before: { kind: 'string', pattern: [/^\d{1,15}$/, 'must be the id of an entry'], doc: 'Only those before this one.' },
} as const satisfies Options

/** Resolves with the exit code. */
export function audit(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    auditOptions,
    source,
    async ({ client, config: { limit, before }, print }, words) => {
      if (words.length > 0) {
        throw new HoldfastError('CONFIG_INVALID', `what does 'audit ${words.join(' ')}' mean? Try:\n${auditUsage}`)
      }
      const query = new URLSearchParams({ limit: String(limit), ...(before === undefined ? {} : { before }) })
      const { entries } = (await client.call('GET', `/audit?${query.toString()}`)) as { entries: readonly AuditLine[] }
      print(textTable(['ID', 'TIME (UTC)', 'USER', 'FROM', 'ACTION', 'OUTCOME', 'WHAT'], entries.map(row)), entries)
      return 0
    },
    write,
  )
}

function row({ id, at, user, address, action, outcome, subject }: AuditLine): string[] {
  return [String(id), shortTime(at), user, address, action, outcome, subject].map(printable)
}

/** Names and paths are what anybody may have sent: nothing in them commands the terminal. */
const printable = (text: string): string => text.replace(/\p{Cc}/gu, '?')
