import t from 'tap'
import type { CleanupPolicy } from '../../../proxy/metadata/cleanup-types.ts'
import { backup, type BackupJobDeps } from '../../../proxy/tasks/backup.ts'
import { cleanup, type CleanupDeps } from '../../../proxy/tasks/cleanup.ts'
import { drillBackup } from '../../../proxy/tasks/drill-backup.ts'
import { JobControl } from '../../../proxy/tasks/job-control.ts'
import { verifyBackup, type VerifyBackupDeps } from '../../../proxy/tasks/verify-backup.ts'
import { MemoryJobStore } from './memory-job-store.ts'

const policy: CleanupPolicy = { name: 'on', repositories: null, conditions: { unchangedDays: 1 }, enabled: true }
const known = '20260301t000000z-1'

/** The tasks that look before they begin, as far as they are asked here. */
function setUp(hasTarget: boolean): { control: JobControl; store: MemoryJobStore } {
  const store = new MemoryJobStore()
  const listPolicies = async () => [policy, { ...policy, name: 'off', enabled: false }]
  const backups = { hasTarget, openStore: async () => ({ ids: async () => [known] }) }
  const control = new JobControl(store, [
    cleanup({ metadata: { cleanup: { listPolicies } } } as unknown as CleanupDeps),
    backup(backups as unknown as BackupJobDeps),
    verifyBackup(backups as unknown as VerifyBackupDeps),
    drillBackup({ target: hasTarget ? 'file:///x' : undefined, credentialsFile: undefined, program: '' }),
  ])
  return { control, store }
}

t.test('a run that could only fail is refused, and none begins', async t => {
  const without = setUp(false)
  const noTarget = { code: 'CONFLICT', message: /HOLDFAST_BACKUP_TARGET/ }
  for (const task of ['backup', 'verify-backup', 'drill-backup']) {
    await t.rejects(without.control.run(task, 'ann'), noTarget, task)
  }
  const { control, store } = setUp(true)
  const absent = { code: 'NOT_FOUND', message: /'nosuch': holdfast cleanup list/ }
  await t.rejects(control.run('cleanup', 'ann', { policy: 'nosuch' }), absent)
  const off = { code: 'CONFLICT', message: /switched off: holdfast cleanup set off --enabled on/ }
  await t.rejects(control.run('cleanup', 'ann', { policy: 'off' }), off)
  const other = { backup: '20260301t000000z-2' }
  await t.rejects(control.run('verify-backup', 'ann', other), { code: 'NOT_FOUND', message: /holdfast backup list/ })
  await t.rejects(control.run('cleanup', 'ann', { policy: 1 }), { code: 'BAD_REQUEST' })
  t.same([...without.store.runs, ...store.runs], [])
})

t.test('all others begin', async t => {
  const first = setUp(true)
  t.match(await first.control.run('cleanup', 'ann', { policy: 'on' }), { state: 'queued' })
  t.match(await first.control.run('verify-backup', 'ann', { backup: known }), { state: 'queued' })
  t.match(await first.control.run('backup', 'ann'), { state: 'queued' })
  t.match(await first.control.run('drill-backup', 'ann'), { state: 'queued' })
  const second = setUp(true)
  t.match(await second.control.run('cleanup', 'ann'), { state: 'queued' }, 'all policies')
  t.match(await second.control.run('verify-backup', 'ann'), { state: 'queued' }, 'the newest')
})
