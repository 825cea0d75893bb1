/** Every command of `holdfast`, and the module that does it; loaded only when asked for. */
import type { ConfigSource } from '../shared/config.ts'

export interface Command {
  readonly summary: string
  /** Resolves with the exit code: 0 done, 1 failed, 2 asked wrongly. */
  readonly run: (source: ConfigSource) => Promise<number>
}

export const commands: Readonly<Record<string, Command>> = {
  up: {
    summary: 'Run a complete small cluster on this machine',
    run: async source => (await import('./serve-up.ts')).serveUp(source),
  },
  proxy: {
    summary: 'Run an edge proxy',
    run: async source => (await import('./serve-proxy.ts')).serveProxy(source),
  },
  'storage-node': {
    summary: 'Run a storage node',
    run: async source => (await import('./serve-storage-node.ts')).serveStorageNode(source),
  },
}
