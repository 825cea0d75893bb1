/** For a person who asks why something is left at the end of a soak: what PostgreSQL knows of it. */
import pg from 'pg'
import { fsck } from '../../cli/copies.ts'
import { run, type World } from './world.ts'

interface Problems {
  readonly problems: readonly {
    readonly names: readonly { readonly name: string; readonly shards: readonly string[] }[]
  }[]
}

const explained = 6

/** What `fsck` found, each of the first ones with its rows; one line each. */
export async function explainLeftovers({ cluster }: Pick<World, 'cluster'>): Promise<string> {
  const { text } = await run(cluster, fsck, '--json')
  const names = (JSON.parse(text) as Problems).problems.flatMap(problem => problem.names)
  const client = new pg.Client({ connectionString: cluster.postgres.url })
  await client.connect()
  try {
    const lines: string[] = []
    for (const { name, shards } of names.slice(0, explained)) {
      const rows = []
      for (const table of ['blobs', 'lost_names', 'owed_drops', 'blob_fences', 'repairs']) {
        const where = table === 'repairs' ? `t::text LIKE '%' || $1 || '%'` : `digest = decode($1, 'hex')`
        const found = await client.query(`SELECT row_to_json(t) AS row FROM ${table} t WHERE ${where}`, [
          name.slice(0, 64),
        ])
        rows.push(...found.rows.map(({ row }: { row: unknown }) => `${table} ${JSON.stringify(row)}`))
      }
      lines.push(`${name} on ${shards.join(', ')}: ${rows.join('; ') || 'no rows'}`)
    }
    return lines.join('\n')
  } finally {
    await client.end()
  }
}
