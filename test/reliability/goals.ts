/** Which test measures what for which row of the table in docs/reliability.md. */

export interface Goal {
  /** First column of the table. */
  readonly row: string
  /** A test file, and what is set for it. */
  readonly run: string
  /** Figures of that file, and what is said of each; `$` is the value or its range. None: that it passed is all there is to say. */
  readonly figures: Readonly<Record<string, string>>
}

const downloads = 'test/long/downloads.test.ts'
const nodeFaults = 'test/cluster/node-faults.test.ts'
const losses = 'test/cluster/losses.test.ts'
const disks = 'test/cluster/disks.test.ts'
const recovery = 'test/long/recovery.test.ts'
const coordination = 'test/cluster/coordination.test.ts'
const topology = 'test/long/topology.test.ts'
const soak = 'test/cluster/soak.test.ts'

export const goals: readonly Goal[] = [
  { row: '1', run: downloads, figures: { 'download.gap': 'longest gap $', 'download.resumes': '$ resumes' } },
  {
    row: '2',
    run: losses,
    figures: { 'upload-kill.end': 'six ended $ after it', 'upload-kill.copies-back': 'copies $ after the return' },
  },
  {
    row: '3',
    run: nodeFaults,
    figures: { 'node-stopped.read': 'reads + $', 'node-stopped.write': 'writes + $' },
  },
  { row: '4', run: nodeFaults, figures: { 'zone-killed.read': 'slowest read $', 'zone-killed.write': 'write $' } },
  {
    row: '5',
    run: losses,
    figures: {
      'zones-down.read': 'reads $',
      'zones-down.refused': '503 after $',
      'zones-down.back': 'writes back after $',
    },
  },
  { row: '6', run: 'test/long/repair.test.ts', figures: { 'disk-lost.full-again': '120 paths full again after $' } },
  { row: '7', run: disks, figures: { 'damage.healed': 'healed $ after the read' } },
  { row: '8', run: disks, figures: {} },
  { row: '9', run: 'test/cluster/upstream.test.ts', figures: { 'upstream.healed': 'read and healed in $' } },
  { row: '10', run: 'test/storage-node/power-loss.test.ts', figures: { 'power-loss.states': '$ states after a cut, nothing lost' } }, // prettier-ignore
  { row: '11', run: disks, figures: {} },
  { row: '12', run: disks, figures: {} },
  {
    row: '13',
    run: 'test/long/slow-disk.test.ts',
    figures: {
      'slow-disk.read-p50-before': 'median of reads $ before',
      'slow-disk.read-p50-during': '$ then',
      'slow-disk.read-p99-before': 'p99 $ before',
      'slow-disk.read-p99-during': '$ then',
      'slow-disk.hedges': '$ hedges',
    },
  },
  {
    row: '14',
    run: nodeFaults,
    figures: { 'node-partitioned.read': 'reads + $', 'node-partitioned.write': 'writes + $' },
  },
  {
    row: '15',
    run: 'test/long/flapping.test.ts',
    figures: {
      'flapping.failed': '$ failed',
      'flapping.read': 'slowest read $',
      'flapping.write': 'write $',
      'flapping.repaired': '$ repaired',
      'flapping.missed': 'of $ missed',
    },
  },
  {
    row: '16',
    run: topology,
    figures: {
      'topology.read-p99-before': 'p99 of reads $ before',
      'topology.read-p99-restarting': '$ beside the restart of a node',
      'topology.read-p99-adding': '$ adding',
      'topology.read-p99-draining': '$ draining',
      'topology.write-p99-before': 'of writes $ before',
      'topology.write-p99-restarting': '$ beside the restart',
      'topology.write-p99-adding': '$ adding',
      'topology.write-p99-draining': '$ draining',
    },
  },
  {
    row: '17',
    run: 'test/long/sleeping-proxy.test.ts',
    figures: {
      'sleeping-proxy.read': 'slowest read when it wakes $',
      'sleeping-proxy.write': 'write $',
      'sleeping-proxy.knows': 'has the newest map after $',
    },
  },
  {
    row: '18',
    run: 'test/long/postgres-writes.test.ts',
    figures: { 'postgres.refused': '503 after $ at the latest', 'postgres.back': 'back after $' },
  },
  {
    row: '19',
    run: recovery,
    figures: { 'database-lost.paths': '$ paths', 'database-lost.back': 'written to again $ after the command' },
  },
  { row: '19b', run: recovery, figures: { 'database-old.back': 'written to again $ after the command' } },
  { row: '20', run: coordination, figures: { 'redis.read': 'slowest read $', 'redis.write': 'write $' } },
  {
    row: '21',
    run: coordination,
    figures: { 'primary-paused.new-term': 'next term after $', 'primary-paused.write': 'slowest write meanwhile $' },
  },
  { row: '21b', run: 'test/cluster/tasks.test.ts', figures: { 'primary-killed.task-done': 'its task done $ after it was killed' } }, // prettier-ignore
  {
    row: '22',
    run: 'test/long/collection.test.ts',
    figures: { 'collection.write': 'slowest write $', 'collection.purged': '$ blobs purged' },
  },
  { row: '23', run: 'test/long/trash.test.ts', figures: { 'trash.restored': '12 paths restored in $' } },
  { row: '24', run: `${soak} HOLDFAST_TEST_SOAK_ONLY=clock HOLDFAST_TEST_SOAK_MINUTES=1`, figures: { 'soak.operations': '$ operations', 'soak.faults': '$ jumps' } }, // prettier-ignore
  {
    row: '25',
    run: losses,
    figures: {
      'proxy-killed.upload': 'slowest upload with its second try $',
      'proxy-killed.repeated': '$ repeated',
      'proxy-killed.refused': '$ told to come again',
    },
  },
  {
    row: '26',
    run: 'test/long/rolling.test.ts',
    figures: { 'rolling.read': 'slowest read $', 'rolling.write': 'write $', 'rolling.operations': '$ operations' },
  },
  {
    row: '26b',
    run: 'test/long/upgrade.test.ts',
    figures: { 'upgrade.read': 'slowest read $', 'upgrade.write': 'write $' },
  },
  { row: '28', run: 'test/cluster/map-files.test.ts', figures: { 'map-files.mended': 'the true one again after $' } },
  { row: '29', run: soak, figures: { 'soak.operations': '$ operations', 'soak.faults': '$ faults' } },
  {
    row: '32',
    run: 'test/cluster/cold-start.test.ts',
    figures: {
      'cold-start.serving': 'serves after $',
      'cold-start.writes-back': 'writes $ after the database is back',
    },
  },
]

/** Those of a row alone, or all; each once. */
export function runsOf(rows?: readonly string[]): string[] {
  return [...new Set(goals.filter(({ row }) => rows === undefined || rows.includes(row)).map(({ run }) => run))]
}
