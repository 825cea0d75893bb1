/** Every command of `holdfast`, and the module that does it; loaded only when asked for. */
import { configHelp, type ConfigSource, type Options } from '../shared/config.ts'

export interface Command {
  readonly summary: string
  /** Resolves with the exit code: 0 done, 1 failed, 2 asked wrongly. */
  readonly run: (source: ConfigSource) => Promise<number>
  /** Its options, as text. */
  readonly help: () => Promise<string>
}

export const commands: Readonly<Record<string, Command>> = {
  up: {
    summary: 'Run a complete small cluster on this machine',
    run: async source => (await import('./serve-up.ts')).serveUp(source),
    help: async () => configHelp((await import('./up-config.ts')).upOptions),
  },
  proxy: {
    summary: 'Run an edge proxy',
    run: async source => (await import('./serve-proxy.ts')).serveProxy(source),
    help: async () => configHelp((await import('../proxy/config.ts')).proxyOptions),
  },
  'storage-node': {
    summary: 'Run a storage node',
    run: async source => (await import('./serve-storage-node.ts')).serveStorageNode(source),
    help: async () => configHelp((await import('../storage-node/options.ts')).storageNodeOptions),
  },
  status: {
    summary: 'Show nodes, shards, proxies and what is wrong (exit code 1 if anything is)',
    run: async source => (await import('./status.ts')).status(source),
    help: () => clientHelp(),
  },
  doctor: {
    summary: 'Is this machine fit for a cluster, and does the one here answer?',
    run: async source => (await import('./doctor.ts')).doctor(source),
    help: async () => configHelp((await import('./doctor.ts')).doctorOptions),
  },
  task: {
    summary: 'List, run, stop and schedule the tasks of the cluster',
    run: async source => (await import('./task.ts')).task(source),
    help: async () => {
      const { taskOptions, taskUsage } = await import('./task.ts')
      return clientHelp(taskOptions, taskUsage)
    },
  },
  gc: {
    summary: 'Garbage collection: plan, run, disarm, why a blob is kept',
    run: async source => (await import('./gc.ts')).gc(source),
    help: async () => {
      const { gcOptions, gcUsage } = await import('./gc.ts')
      return clientHelp(gcOptions, gcUsage)
    },
  },
  backup: {
    summary: 'Back up the cluster, list, verify, prune and remove backups',
    run: async source => (await import('./backup.ts')).backup(source),
    help: async () => {
      const [{ backupOptions, backupUsage }, { drillOptions }] = [
        await import('./backup.ts'),
        await import('./drill.ts'),
      ]
      return `${await clientHelp(backupOptions, backupUsage)}\nOptions of drill:\n${configHelp(drillOptions)}`
    },
  },
  restore: {
    summary: 'Restore a backup into an empty cluster',
    run: async source => (await import('./restore.ts')).restore(source),
    help: async () => {
      const { restoreOptions, restoreUsage } = await import('./restore.ts')
      return clientHelp(restoreOptions, restoreUsage)
    },
  },
  verify: {
    summary: 'Read every copy of an artifact (exit code 1 if any is not good)',
    run: async source => (await import('./copies.ts')).verify(source),
    help: async () => {
      const { verifyUsage } = await import('./copies.ts')
      return clientHelp({}, verifyUsage)
    },
  },
  dispersion: {
    summary: 'Show how many copies blobs have, in how many zones',
    run: async source => (await import('./copies.ts')).dispersion(source),
    help: async () => {
      const { dispersionOptions, dispersionUsage } = await import('./copies.ts')
      return clientHelp(dispersionOptions, dispersionUsage)
    },
  },
  fsck: {
    summary: 'Check the database against all shards, and queue repairs with --repair',
    run: async source => (await import('./copies.ts')).fsck(source),
    help: async () => {
      const { fsckOptions } = await import('./copies.ts')
      return clientHelp(fsckOptions)
    },
  },
  delete: {
    summary: 'Delete an artifact or a folder, into the trash',
    run: async source => (await import('./delete.ts')).deleteArtifacts(source),
    help: async () => {
      const { deleteOptions, deleteUsage } = await import('./delete.ts')
      return clientHelp(deleteOptions, deleteUsage)
    },
  },
  cleanup: {
    summary: 'Policies that delete what nobody needs any more: list, preview, run …',
    run: async source => (await import('./cleanup.ts')).cleanup(source),
    help: async () => {
      const { cleanupOptions, cleanupUsage } = await import('./cleanup.ts')
      return clientHelp(cleanupOptions, cleanupUsage)
    },
  },
  trash: {
    summary: 'What was deleted: list, restore, purge',
    run: async source => (await import('./trash.ts')).trash(source),
    help: async () => {
      const { trashOptions, trashUsage } = await import('./trash.ts')
      return clientHelp(trashOptions, trashUsage)
    },
  },
  topology: {
    summary: 'Who owns what; plan, apply, pause, resume and abort changes of it',
    run: async source => (await import('./topology.ts')).topology(source),
    help: topologyHelp,
  },
  shard: {
    summary: 'Add, drain, reweight, take out and remove disks of a running cluster',
    run: async source => (await import('./topology.ts')).shard(source),
    help: topologyHelp,
  },
  node: {
    summary: 'Add, drain, take out and remove storage nodes of a running cluster',
    run: async source => (await import('./topology.ts')).node(source),
    help: topologyHelp,
  },
  repair: {
    summary: 'What the cluster lacks, how fast it is made good; try again now',
    run: async source => (await import('./repair.ts')).repair(source),
    help: async () => clientHelp({}, (await import('./repair.ts')).repairUsage),
  },
  scrub: {
    summary: 'How far the shards are with reading everything they hold; start and pause it',
    run: async source => (await import('./scrub.ts')).scrub(source),
    help: async () => {
      const { scrubOptions, scrubUsage } = await import('./scrub.ts')
      return clientHelp(scrubOptions, scrubUsage)
    },
  },
  audit: {
    summary: 'Who changed what through the API, and who was refused',
    run: async source => (await import('./audit.ts')).audit(source),
    help: async () => {
      const { auditOptions, auditUsage } = await import('./audit.ts')
      return clientHelp(auditOptions, auditUsage)
    },
  },
  metadata: {
    summary: 'Bring a restored database up to date, or rebuild a lost one, from the shards',
    run: async source => (await import('./metadata.ts')).metadata(source),
    help: async () => {
      const { metadataOptions, metadataUsage } = await import('./metadata.ts')
      return `${metadataUsage}\n${configHelp(metadataOptions)}`
    },
  },
  repo: {
    summary: 'List, create, change and delete repositories',
    run: async source => (await import('./repo.ts')).repo(source),
    help: async () => {
      const { repoOptions, repoUsage } = await import('./repo.ts')
      return clientHelp(repoOptions, repoUsage)
    },
  },
}

/** The command of this name; undefined for a name that is none. */
export function commandOf(name: string | undefined): Command | undefined {
  return name !== undefined && Object.hasOwn(commands, name) ? commands[name] : undefined
}

async function topologyHelp(): Promise<string> {
  const { topologyOptions, topologyUsage } = await import('./topology.ts')
  return clientHelp(topologyOptions, topologyUsage)
}

/** Of a command that asks a running cluster. */
async function clientHelp(options: Options = {}, usage?: string): Promise<string> {
  const { clientOptions } = await import('./client.ts')
  return `${usage === undefined ? '' : `${usage}\n`}${configHelp({ ...options, ...clientOptions })}`
}
