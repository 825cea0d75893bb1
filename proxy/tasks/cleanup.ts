/** Cleanup policies: artifacts that meet all conditions of one go into the trash, daily. */
import { announced } from '../artifacts/announced.ts'
import type { Publisher } from '../artifacts/publisher.ts'
import { tombstoneOf } from '../artifacts/reference.ts'
import { isInternal } from '../artifacts/repositories.ts'
import type { CleanupCandidate, CleanupPolicy, CleanupStore, Download } from '../metadata/cleanup-types.ts'
import type { Metadata, Repository } from '../metadata/types.ts'
import { HoldfastError } from '../../shared/errors.ts'
import { CleanupSelection } from './cleanup-selection.ts'
import type { Job, JobContext, JobParams } from './job.ts'

const readPage = 1_000
/** Deleted in one transaction, and announced together. */
const deletedPage = 200
/** Records of downloads looked at in one step: some tens of milliseconds. */
const recordsPage = 5_000
const artifactsMaxDefault = 100_000
/** Names in a preview. */
export const previewedNames = 20
/** Artifacts that a preview answered at once looks at. */
const previewedMax = 200_000

export interface CleanupDeps {
  readonly metadata: Pick<Metadata, 'listRepositories' | 'incarnation'> & { readonly cleanup: CleanupStore }
  readonly publisher: Pick<Publisher, 'prepare' | 'publish' | 'withdraw'>
}

export interface CleanupPreview {
  readonly artifacts: number
  readonly bytes: number
  /** Some of them, as `repository/path`. */
  readonly first: readonly string[]
  /** How many artifacts were looked at. */
  readonly examined: number
  /** False: there are more artifacts than were looked at. */
  readonly complete: boolean
}

interface Checkpoint {
  /** Policies that were carried out by this run. */
  readonly done: readonly string[]
  readonly artifacts: number
  readonly bytes: number
}
interface Params {
  readonly policy: string | undefined
  readonly artifactsMax: number
}

export function cleanup(deps: CleanupDeps): Job<Checkpoint> {
  return {
    name: 'cleanup',
    title: 'Delete, into the trash, what the cleanup policies say',
    defaultSchedule: '7 1 * * *',
    checkParams: params => void paramsOf(params),
    checkStart: async params => checkPolicy(await deps.metadata.cleanup.listPolicies(), paramsOf(params).policy),
    run: context => runCleanup(deps, context),
  }
}

/** What the policy would delete now, switched on or not. Changes nothing. */
export async function previewCleanup(
  deps: Pick<CleanupDeps, 'metadata'>,
  policy: CleanupPolicy,
): Promise<CleanupPreview> {
  let [artifacts, bytes, examined] = [0, 0, 0]
  const first: string[] = []
  for (const repository of await repositoriesOf(deps, policy)) {
    for await (const page of select(deps, policy, repository)) {
      examined += page.examined
      for (const one of page.doomed) {
        artifacts++
        bytes += one.bytes
        if (first.length < previewedNames) first.push(`${repository.name}/${one.path}`)
      }
      if (examined >= previewedMax) return { artifacts, bytes, first, examined, complete: false }
    }
  }
  return { artifacts, bytes, first, examined, complete: true }
}

/** A run that is resumed begins the policy in hand again: what it deleted is not there any more, what it kept it keeps. */
async function runCleanup(deps: CleanupDeps, context: JobContext<Checkpoint>): Promise<void> {
  const { term, log, save, progress, pause } = context
  const { policy: only, artifactsMax } = paramsOf(context.params)
  let state: Checkpoint = context.checkpoint ?? { done: [], artifacts: 0, bytes: 0 }
  const all = await deps.metadata.cleanup.listPolicies()
  checkPolicy(all, only)
  const policies = all.filter(({ name }) => only === undefined || name === only)
  for (const policy of policies) {
    if (!policy.enabled || state.done.includes(policy.name)) continue
    let [artifacts, bytes] = [0, 0]
    for (const repository of await repositoriesOf(deps, policy)) {
      for await (const { doomed } of select(deps, policy, repository)) {
        for (let start = 0; start < doomed.length && state.artifacts < artifactsMax; start += deletedPage) {
          term.signal.throwIfAborted()
          const page = doomed.slice(start, start + Math.min(deletedPage, artifactsMax - state.artifacts))
          const gone = await remove(deps, repository, page, `cleanup:${policy.name}`, term.token)
          artifacts += gone.length
          const goneBytes = gone.reduce((sum, one) => sum + one.bytes, 0)
          bytes += goneBytes
          state = { ...state, artifacts: state.artifacts + gone.length, bytes: state.bytes + goneBytes }
          progress({ done: state.artifacts, unit: 'artifacts', note: `${policy.name}: ${repository.name}` })
          await save(state)
        }
        if (state.artifacts >= artifactsMax) break
        await pause(0)
      }
    }
    log(`${policy.name}: ${artifacts} artifacts with ${bytes} bytes deleted, into the trash`)
    if (state.artifacts >= artifactsMax) {
      log(`stopped at ${artifactsMax} artifacts: the rest is left to the next run`)
      break
    }
    state = { ...state, done: [...state.done, policy.name] }
    await save(state)
  }
  await forgetDownloads(deps, context)
}

/** NOT_FOUND or CONFLICT if only a policy shall be carried out that is not there, or is switched off. */
function checkPolicy(policies: readonly CleanupPolicy[], only: string | undefined): void {
  if (only === undefined) return
  const policy = policies.find(({ name }) => name === only)
  if (policy === undefined) {
    throw new HoldfastError('NOT_FOUND', `no cleanup policy '${only}': holdfast cleanup list`, { name: only })
  }
  if (policy.enabled) return
  const how = `holdfast cleanup set ${only} --enabled on`
  throw new HoldfastError('CONFLICT', `cleanup policy '${only}' is switched off: ${how}`, { name: only })
}

async function forgetDownloads({ metadata }: CleanupDeps, { term, pause }: JobContext<Checkpoint>): Promise<void> {
  for (let after: Download | undefined = { repositoryId: 0, path: '' }; after !== undefined;) {
    term.signal.throwIfAborted()
    after = await metadata.cleanup.forgetDownloads(after, recordsPage, term.token)
    await pause(after === undefined ? 0 : 100)
  }
}

/** Page by page of what is there, what of it goes. */
async function* select(
  { metadata }: Pick<CleanupDeps, 'metadata'>,
  policy: CleanupPolicy,
  { id }: Repository,
): AsyncGenerator<{ readonly examined: number; readonly doomed: readonly CleanupCandidate[] }> {
  const { cleanup: store } = metadata
  const selection = new CleanupSelection(policy.conditions, await store.facts())
  for (let after = ''; ;) {
    const page = await store.candidates(id, after, readPage)
    const last = page.at(-1)
    const doomed = page.flatMap(candidate => selection.add(candidate))
    if (last === undefined || page.length < readPage) {
      yield { examined: page.length, doomed: [...doomed, ...selection.end()] }
      return
    }
    yield { examined: page.length, doomed }
    after = last.path
  }
}

async function repositoriesOf(
  { metadata }: Pick<CleanupDeps, 'metadata'>,
  { repositories }: CleanupPolicy,
): Promise<readonly Repository[]> {
  const all = (await metadata.listRepositories()).filter(repository => !isInternal(repository))
  return repositories === null ? all : all.filter(({ name }) => repositories.includes(name))
}

async function remove(
  { metadata, publisher }: CleanupDeps,
  repository: Repository,
  doomed: readonly CleanupCandidate[],
  user: string,
  token: number,
): Promise<readonly CleanupCandidate[]> {
  const gone = new Set<string>()
  const keys = doomed.map(({ path }) => `${repository.name}/${path}`)
  await announced(publisher, keys, async () => {
    const deleted = await metadata.cleanup.remove(repository, doomed, user, token)
    for (const { path } of deleted) gone.add(path)
    const facts = { incarnation: metadata.incarnation, user, time: Date.now() }
    return deleted.map(one => ({ record: tombstoneOf(repository.name, one, facts), outboxSeq: one.outboxSeq }))
  })
  return doomed.filter(({ path }) => gone.has(path))
}

function paramsOf({ policy, artifactsMax = artifactsMaxDefault, ...unknown }: JobParams): Params {
  if (Object.keys(unknown).length > 0 || (policy !== undefined && typeof policy !== 'string')) {
    throw new HoldfastError('BAD_REQUEST', 'the parameters are policy, a name, and artifactsMax, a number')
  }
  if (typeof artifactsMax !== 'number' || !Number.isInteger(artifactsMax) || artifactsMax < 1) {
    throw new HoldfastError('BAD_REQUEST', 'artifactsMax: a whole number from 1')
  }
  return { policy, artifactsMax }
}
