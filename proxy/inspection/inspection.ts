/** The reports on copies that the API gives out, over the parts of one worker. */
import type { Repository } from '../metadata/types.ts'
import { dispersion, type Dispersion } from './dispersion.ts'
import { fsckPage, type FsckPage } from './fsck.ts'
import type { InspectionDeps } from './types.ts'
import { verifyArtifact, type Verification } from './verify-artifact.ts'

export interface Inspection {
  /** ARTIFACT_NOT_FOUND */
  verify(repository: Repository, path: string): Promise<Verification>
  /** One page behind `after`, or a sample without it. */
  dispersion(after: string | undefined): Promise<Dispersion>
  /** One page from `mark` on ('' is the beginning); queues what can be repaired if told to. BAD_REQUEST for a mark that is none. */
  fsck(mark: string, repair: boolean): Promise<FsckPage>
}

export function inspectionOf(deps: InspectionDeps): Inspection {
  return {
    verify: (repository, path) => verifyArtifact(deps, repository, path),
    dispersion: after => dispersion(deps, after),
    fsck: (mark, repair) => fsckPage(deps, mark, repair),
  }
}
