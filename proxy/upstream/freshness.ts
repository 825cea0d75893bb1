/** Which paths of an upstream never change. Pure. */

/** Words for "whatever is the newest", in a part of a path between separators. */
const moving = /(?:^|[-_.+])(?:latest|snapshot|nightly|current|stable|master|main|head|dev)(?:$|[-_.+])/i
/** `1.2`, `v1.2.3-rc.1`, `app-2.0.tar.gz`; also a date, a digest or the id of a commit. */
const version =
  /(?:^|[^0-9A-Za-z])v?\d+\.\d+|(?:^|[-_.])\d{4}-?\d{2}-?\d{2}(?:$|[-_.T])|(?:^|[^0-9a-f])[0-9a-f]{40,128}(?:$|[^0-9a-f])/

/** Names of what grows beside the versions. */
const index = /^(?:index|metadata|maven-metadata|repomd|packages|release|inrelease|sources|contents|apkindex)\b/i

/**
 * A file with a version in its name, or in that of its folder, is one thing for ever: fetched once, never asked for again. Unless a word in
 * its path says that it moves, or it is an index. A version further up says nothing (`8.5/os/repodata/`): what lies deep below may change.
 */
export function isImmutable(path: string): boolean {
  const segments = path.split('/')
  if (segments.some(segment => moving.test(segment)) || index.test(segments.at(-1) ?? '')) return false
  return segments.slice(-2).some(segment => version.test(segment))
}
