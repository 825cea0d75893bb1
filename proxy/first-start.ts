import type { Logger } from 'pino'
import { isHoldfastError } from '../shared/errors.ts'
import type { Passwords } from './access/passwords.ts'
import type { Metadata } from './metadata/types.ts'

export const adminName = 'admin'
/** The repository every new cluster has. */
export const firstRepository = 'raw'

/** Makes what a new cluster needs to be used: the administrator, and one repository. Safe to run on every start and by many at once. */
export async function prepareFirstStart(
  deps: { metadata: Metadata; passwords: Pick<Passwords, 'hash'>; log: Logger },
  adminPassword: string | undefined,
): Promise<void> {
  const { metadata, passwords, log } = deps
  if ((await metadata.findUser(adminName)) !== undefined) return
  if (adminPassword === undefined) {
    log.warn('there is no administrator yet: set HOLDFAST_ADMIN_PASSWORD once, nobody can log in before')
    return
  }
  try {
    await metadata.createRepository({ name: firstRepository })
  } catch (error) {
    if (!isHoldfastError(error, 'CONFLICT')) throw error // another proxy was quicker
  }
  await metadata.putUser({ name: adminName, passwordHash: await passwords.hash(adminPassword), admin: true })
  log.info({ user: adminName, repository: firstRepository }, 'administrator and first repository made')
}
