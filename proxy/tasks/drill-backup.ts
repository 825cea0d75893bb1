/** The task `drill-backup`: has `holdfast backup drill` restore the newest backup into a cluster of its own, and keeps what it measured. */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { HoldfastError } from '../../shared/errors.ts'
import { noTarget } from '../backup/backups.ts'
import type { Job, JobContext, JobParams } from './job.ts'

const linesMax = 200

export interface DrillBackupDeps {
  /** Undefined: none is configured. */
  readonly target: string | undefined
  /** Where the keys of the target are, if not in the environment. */
  readonly credentialsFile: string | undefined
  /** The program that serves `holdfast`, as Node.js is told to run it. */
  readonly program: string
}

/** A drill that is taken over begins again: its cluster ended with the process that had started it. */
export function drillBackup(deps: DrillBackupDeps): Job<never> {
  return {
    name: 'drill-backup',
    title: 'Restore the newest backup into a scratch cluster and read it back',
    defaultSchedule: null,
    checkParams: params => void percentOf(params),
    checkStart: async () => {
      if (deps.target === undefined) throw noTarget()
    },
    run: context => run(deps, context),
  }
}

async function run({ target, credentialsFile, program }: DrillBackupDeps, context: JobContext<never>): Promise<void> {
  if (target === undefined) throw noTarget()
  const { signal } = context.term
  signal.throwIfAborted()
  const args = ['backup', 'drill', '--backup-target', target, '--percent', String(percentOf(context.params))]
  if (credentialsFile !== undefined) args.push('--backup-credentials-file', credentialsFile)
  // The passphrase, keys and all else it needs stands in the environment; over the channel it hears of our end.
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe', 'ipc'] })
  const stop = (): void => void child.kill('SIGTERM')
  signal.addEventListener('abort', stop, { once: true })
  let said = 0
  for (const output of [child.stdout, child.stderr]) {
    if (output === null) continue
    createInterface({ input: output }).on('line', line => {
      if (said++ < linesMax) context.log(line)
    })
  }
  try {
    const code = await new Promise<number | null>((done, failed) => {
      child.once('error', failed)
      child.once('close', done)
    })
    signal.throwIfAborted()
    if (code !== 0)
      throw new HoldfastError('BACKUP_DAMAGED', `the drill failed (${code ?? 'killed'}): its log says why`)
  } finally {
    signal.removeEventListener('abort', stop)
  }
}

function percentOf({ percent = 100, ...unknown }: JobParams): number {
  const good = typeof percent === 'number' && Number.isInteger(percent) && percent >= 1 && percent <= 100
  if (!good || Object.keys(unknown).length > 0) {
    throw new HoldfastError(
      'BAD_REQUEST',
      'the only parameter is percent: how many of a hundred artifacts are read back',
    )
  }
  return percent
}
