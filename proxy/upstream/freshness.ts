/** Which paths of an upstream never change. Pure. */

/** Words for "whatever is the newest", in a part of a path between separators. */
const moving = /(?:^|[-_.+])(?:latest|snapshot|nightly|current|stable|master|main|head|dev)(?:$|[-_.+])/i
/** `1.2`, `v1.2.3-rc.1`, `app-2.0.tar.gz`; also a date, a digest or the id of a commit. */
const version =
  /(?:^|[^0-9A-Za-z])v?\d+\.\d+|(?:^|[-_.])\d{4}-?\d{2}-?\d{2}(?:$|[-_.T])|(?:^|[^0-9a-f])[0-9a-f]{40,128}(?:$|[^0-9a-f])/

/**
 * A path with a version in it names one thing for ever: fetched once, never asked for again. Unless a word in it says that it moves, or it
 * is an index that grows beside the versions.
 */
export function isImmutable(path: string): boolean {
  const segments = path.split('/')
  const name = segments.at(-1) ?? ''
  if (segments.some(segment => moving.test(segment)) || /^(?:index|metadata|maven-metadata)\b/i.test(name)) return false
  return segments.some(segment => version.test(segment))
}
