import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { ErrorCode } from '../../shared/errors.ts'
import { RefusalBudget } from '../access/refusal-budget.ts'
import type { ApiDeps } from './types.ts'

/** Entries being written at once; a flood of refusals must not become a flood of rows. */
const writingMax = 64

declare module 'fastify' {
  interface FastifyRequest {
    /** Why the request was refused, for the audit log. */
    refusal: ErrorCode | undefined
    /** What a change was about, where the URL does not say. */
    auditSubject: string | undefined
  }
}

/**
 * Writes down every change and every refusal; not plain reads without credentials, and of what strangers try no more than shows it
 * (`RefusalBudget`). An entry that cannot be written fails no request: it goes to the log instead.
 */
export function installAudit(
  app: FastifyInstance,
  { metadata, addressOf, log }: Pick<ApiDeps, 'metadata' | 'addressOf' | 'log'>,
): void {
  let writing = 0
  const refusals = new RefusalBudget(log, () => performance.now())
  app.decorateRequest('refusal')
  app.decorateRequest('auditSubject')
  app.addHook('onSend', async (request, reply) => {
    if (!worthAnEntry(request)) return
    if (request.refusal !== undefined && request.principal.anonymous && !refusals.take()) return
    const entry = { ...entryOf(request, reply), address: addressOf(request.raw) }
    if (writing >= writingMax) {
      log.warn({ audit: entry }, 'audit entry not written: too many at once')
      return
    }
    writing++
    try {
      await metadata.audit(entry)
    } catch (error) {
      log.error({ err: error, audit: entry }, 'audit entry not written')
    } finally {
      writing--
    }
  })
}

function worthAnEntry({ routeOptions, refusal, headers, is404 }: FastifyRequest): boolean {
  if (is404) return false
  if (routeOptions.config.audit !== undefined) return true
  return refusal === 'FORBIDDEN' || (refusal === 'UNAUTHORIZED' && headers.authorization !== undefined)
}

type AuditEntry = Parameters<ApiDeps['metadata']['audit']>[0]

function entryOf(request: FastifyRequest, reply: FastifyReply): Omit<AuditEntry, 'address'> {
  return {
    user: request.principal.name,
    action: request.routeOptions.config.audit ?? 'api.read',
    subject: request.auditSubject ?? request.url.split('?', 1)[0]?.slice(0, 500) ?? '',
    outcome: request.refusal ?? (reply.statusCode < 400 ? 'done' : String(reply.statusCode)),
  }
}
