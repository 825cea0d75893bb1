import { HoldfastError } from '../shared/errors.ts'

export interface Place {
  readonly repository: string
  readonly path: string
}

/** `<repository>/<path>`; without a path the whole repository. */
export function placeOf(text: string): Place {
  const slash = text.indexOf('/')
  const [repository, path] = slash < 0 ? [text, ''] : [text.slice(0, slash), text.slice(slash + 1)]
  if (repository === '') throw new HoldfastError('CONFIG_INVALID', 'say which: <repository>/<path>')
  return { repository, path }
}

export const isFolder = ({ path }: Place): boolean => path === '' || path.endsWith('/')
