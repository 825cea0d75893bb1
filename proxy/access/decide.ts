import type { Principal } from './principal.ts'

/** 'admin': everything that is no artifact: repositories, users, topology, status. */
export type Action = 'read' | 'write' | 'delete' | 'admin'

/** 'unauthorized' (401): credentials might help. 'forbidden' (403): these credentials do not. */
export type Verdict = 'allow' | 'unauthorized' | 'forbidden'

/**
 * May they? Denied unless a line here allows it. `repository` undefined: the action concerns none, or one that does not
 * exist; only those who may do everything learn which. Pure.
 */
export function decide(
  principal: Principal,
  action: Action,
  repository?: { readonly anonymousRead: boolean },
): Verdict {
  if (principal.admin) return 'allow'
  if (action === 'read' && repository?.anonymousRead === true) return 'allow'
  return principal.anonymous ? 'unauthorized' : 'forbidden'
}
