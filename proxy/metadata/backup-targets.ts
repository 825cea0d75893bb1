import type { Database } from './database.ts'
import { statement } from './statement.ts'
import type { BackupTargetStore } from './types.ts'

const prefix = 'backup_target:'
const known = statement('backup-target-known', 'SELECT FROM settings WHERE key = $1')
const remember = statement(
  'backup-target-remember',
  `INSERT INTO settings (key, value) VALUES ($1, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')) ON CONFLICT (key) DO NOTHING`,
)

export class BackupTargets implements BackupTargetStore {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  async isKnown(label: string): Promise<boolean> {
    return (await this.#database.query(known, [prefix + label])).length > 0
  }

  async remember(label: string): Promise<void> {
    await this.#database.query(remember, [prefix + label])
  }
}
