import { tables } from './0001-tables.ts'
import { coordination } from './0002-coordination.ts'
import { commitFunction } from './0003-commit-function.ts'
import { jobs } from './0004-jobs.ts'
import { collection } from './0006-collection.ts'
import { trash } from './0007-trash.ts'
import { cleanup } from './0009-cleanup.ts'
import { versionsWithinSequence } from './0010-versions-within-sequence.ts'
import { backupHold } from './0011-backup-hold.ts'
import { owedDrops } from './0012-owed-drops.ts'
import { lostNames } from './0013-lost-names.ts'
import { upstreams } from './0014-upstreams.ts'
import { restored } from './0015-restored.ts'
import { urgentRepairs } from './0016-urgent-repairs.ts'
import type { Migration } from './migration.ts'

/** Every step of the schema, by number. A new one is a file of its own and a line here. */
export const migrations: readonly Migration[] = [
  tables,
  coordination,
  commitFunction,
  jobs,
  collection,
  trash,
  cleanup,
  versionsWithinSequence,
  backupHold,
  owedDrops,
  lostNames,
  upstreams,
  restored,
  urgentRepairs,
]
