/**
 * Named instants at which a test lets the whole process die by SIGKILL, as a power cut or the OOM killer would. Inert
 * unless armed at start.
 */
export const crashPoints = [
  'append.afterWrite',
  'append.afterSync',
  'append.afterIndex',
  'segment.afterCreate',
  'upload.afterSync',
  'commit.afterRename',
  'commit.afterDirSync',
  'commit.afterRecord',
  'drop.afterRecord',
  'drop.afterRename',
  'fence.afterRename',
  'compact.afterCopy',
  'compact.afterCheckpoint',
  'compact.afterUnlink',
] as const
export type CrashPoint = (typeof crashPoints)[number]

let armed: string | undefined

/** Names the point at which this process shall die; undefined: nowhere. Main files call it, once. */
export function armCrashPoint(name: string | undefined): void {
  armed = name
}

export function crashPoint(name: CrashPoint): void {
  if (name === armed) process.kill(process.pid, 'SIGKILL')
}
