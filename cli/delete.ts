/** `holdfast delete <repository>/<path or folder/>` */
import type { ConfigSource, Options } from '../shared/config.ts'
import { HoldfastError } from '../shared/errors.ts'
import { runWordCommand, type Writer } from './client.ts'
import { isFolder, placeOf } from './place.ts'

export const deleteUsage = `holdfast delete <repository>/<path>     (an artifact)
holdfast delete <repository>/<folder>/  (everything below; '<repository>/' is all of it)
                [--confirm <count>]     (where so many would go that their number has to be confirmed)
What is deleted can be restored for some days: holdfast trash
`

export const deleteOptions = {
  confirm: { kind: 'int', min: 0, max: 1_000_000_000, default: 0, doc: 'So many artifacts may be deleted.' },
} as const satisfies Options

/** Resolves with the exit code. */
export function deleteArtifacts(source: ConfigSource, write?: Writer): Promise<number> {
  return runWordCommand(
    deleteOptions,
    source,
    async ({ client, config, print }, [what, ...more]) => {
      if (what?.includes('/') !== true || more.length > 0) {
        throw new HoldfastError('CONFIG_INVALID', `what shall be deleted? Try:\n${deleteUsage}`)
      }
      const from = placeOf(what)
      const { confirm } = config
      const answer = (await client.call('POST', '/artifacts/delete', {
        from,
        ...(isFolder(from) ? { recursive: true } : {}),
        ...(confirm === 0 ? {} : { confirm }),
      })) as { artifacts: number }
      print(`${answer.artifacts} ${answer.artifacts === 1 ? 'artifact' : 'artifacts'} deleted`, answer)
      return 0
    },
    write,
  )
}
