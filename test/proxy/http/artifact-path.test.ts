import t from 'tap'
import fc from 'fast-check'
import {
  artifactTarget,
  checkArtifactPath,
  encodeArtifactPath,
  originForm,
  parseArtifactTarget,
  type ArtifactTarget,
} from '../../../proxy/http/artifact-path.ts'
import { HoldfastError } from '../../../shared/errors.ts'

const target = (path: string): string => '/repository/r/' + path

t.test('plain targets are split as they are', async t => {
  t.same(parseArtifactTarget('/repository/maven-releases/org/x/1.0/x-1.0.jar'), {
    repository: 'maven-releases',
    path: 'org/x/1.0/x-1.0.jar',
    query: '',
  })
  t.same(parseArtifactTarget(target('a/b/?x=1&y=%2F?')), { repository: 'r', path: 'a/b/', query: 'x=1&y=%2F?' })
  t.same(parseArtifactTarget('/repository/r'), { repository: 'r', path: '', query: '' })
  t.same(parseArtifactTarget('/repository/r/'), { repository: 'r', path: '', query: '' })
  t.equal(parseArtifactTarget(target('.hidden/..x/x../...')).path, '.hidden/..x/x../...')
  t.equal(parseArtifactTarget('/repository/%72/x').repository, 'r')
})

t.test('each segment is decoded exactly once', async t => {
  t.equal(parseArtifactTarget(target('a%20b+c%2Bd')).path, 'a b+c+d')
  t.equal(parseArtifactTarget(target('%252e%252e')).path, '%2e%2e')
  t.equal(parseArtifactTarget(target('%E2%82%AC')).path, '€')
  t.equal(
    parseArtifactTarget(target(Buffer.from('€').toString('latin1'))).path,
    '€',
    'raw UTF-8 bytes, as curl sends them',
  )
  t.equal(parseArtifactTarget(target('%EF%BB%BFx')).path, '\ufeffx', 'a byte order mark is kept, not folded away')
  t.not(parseArtifactTarget(target('%C3%A9')).path, parseArtifactTarget(target('e%CC%81')).path, 'look-alikes differ')
})

t.test('I40: what could reach elsewhere is refused with its reason', async t => {
  const refused: Record<string, string> = {
    '..': 'dot-segment',
    'a/../b': 'dot-segment',
    '%2e%2E/b': 'dot-segment',
    '.%2e': 'dot-segment',
    'a/./b': 'dot-segment',
    'a/.': 'dot-segment',
    './': 'dot-segment',
    'a//b': 'empty-segment',
    '/a': 'empty-segment',
    'a//': 'empty-segment',
    '/': 'empty-segment',
    'a%2Fb': 'encoded-slash',
    '%2f': 'encoded-slash',
    '..%2f..': 'encoded-slash',
    'a\\b': 'backslash',
    'a%5cb': 'backslash',
    'a%00b': 'control-character',
    'a%0Ab': 'control-character',
    'a%7f': 'control-character',
    'a%C2%85': 'control-character',
    'a%E2%80%A8': 'control-character',
    'a%E2%80%AEb': 'control-character',
    'a%E2%81%A6b': 'control-character',
    'a%': 'percent-encoding',
    'a%4': 'percent-encoding',
    'a%zz': 'percent-encoding',
    'a%+1': 'percent-encoding',
    '%ff': 'utf-8',
    '%c0%ae%c0%ae': 'utf-8',
    '%ed%a0%80': 'utf-8',
    'a\u20ac': 'encoding',
    'a\ud800': 'encoding',
    ['x'.repeat(256)]: 'segment-too-long',
    ['%C3%A9'.repeat(128)]: 'segment-too-long',
    'a#b': 'fragment',
  }
  for (const [path, reason] of Object.entries(refused)) {
    t.throws(() => parseArtifactTarget(target(path)), { code: 'PATH_INVALID', data: { reason } }, JSON.stringify(path))
  }
  for (const name of ['', 'R', '-r', '.r', '..', 'a b', 'x'.repeat(65), 'r%2f', '%2e%2e', 'r\u0000']) {
    t.throws(() => parseArtifactTarget(`/repository/${name}/x`), { code: 'PATH_INVALID' }, `repository ${name}`)
  }
  for (const raw of ['*', 'host:443', 'ftp://host/repository/r/x', '', 'repository/r/x', '//repository/r/x', '/x']) {
    t.throws(() => parseArtifactTarget(raw), { code: 'PATH_INVALID' }, `target ${raw}`)
  }
})

t.test('limits hold exactly at the limit', async t => {
  t.equal(parseArtifactTarget(target('x'.repeat(255))).path.length, 255)
  const path = 'x'.repeat(199) + ('/' + 'y'.repeat(199)).repeat(9)
  t.equal(parseArtifactTarget(target(path + 'z')).path.length, 2000)
  t.throws(() => parseArtifactTarget(target(path + 'zz')), { code: 'URI_TOO_LONG' })
  t.throws(() => parseArtifactTarget(target('x?' + 'q'.repeat(8192))), { code: 'URI_TOO_LONG' })
})

t.test('an absolute target is the same as its path', async t => {
  t.same(parseArtifactTarget('http://example.org:8080/repository/r/a?b'), { repository: 'r', path: 'a', query: 'b' })
  t.equal(originForm('HTTPS://h'), '/')
  t.equal(originForm('https://h?x=1'), '/?x=1')
})

t.test('I40: whatever comes in is refused, or is a normal path that encodes and decodes to itself', async t => {
  const bit = fc.oneof(
    fc.constantFrom(
      '/',
      '//',
      '.',
      '..',
      '%2e',
      '%2F',
      '%5c',
      '\\',
      '%00',
      '%',
      '%25',
      '+',
      '@',
      '~',
      ' ',
      '?',
      '#',
      ':',
    ),
    fc.string({ unit: 'binary', maxLength: 4 }),
    fc.integer({ min: 0, max: 255 }).map(byte => String.fromCharCode(byte)),
    fc.integer({ min: 0, max: 255 }).map(byte => '%' + byte.toString(16).padStart(2, '0')),
    fc.string({ unit: 'grapheme', maxLength: 3 }).map(text => encodeURIComponent(text)),
    fc.string({ minLength: 120, maxLength: 140 }),
  )
  const parameters = { numRuns: 8_000, seed: Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 2 ** 31) }
  t.comment(`seed ${parameters.seed}`)
  let accepted = 0
  fc.assert(
    fc.property(fc.array(bit, { maxLength: 8 }), bits => {
      const parsed = parsedOrRefused(target(bits.join('')))
      if (parsed === undefined) return
      accepted++
      const { path } = parsed
      for (const segment of path.replace(/\/$/, '').split('/')) {
        if (path === '') break
        if (['', '.', '..'].includes(segment)) throw new Error('not normal')
      }
      if (/[\u0000-\u001f\u007f-\u009f\\]/.test(path)) throw new Error('control characters')
      if (Buffer.byteLength(path) > 2000) throw new Error('too long')
      const again = parseArtifactTarget(artifactTarget('r', path))
      if (again.path !== path || checkArtifactPath(path) !== path) throw new Error('not stable')
      if (!/^[A-Za-z0-9/_.~!'()*@%-]*$/.test(encodeArtifactPath(path))) throw new Error('encoded badly')
    }),
    parameters,
  )
  t.ok(accepted > 500, `${accepted} were accepted`)
})

t.test('the fast path and the slow path agree', async t => {
  const text = fc.string({ unit: fc.constantFrom('a', '.', '/', '~', '-', '@', '+', 'Z', '0'), maxLength: 12 })
  fc.assert(
    fc.property(text, path => {
      // 'r' encoded forces the slow path
      const [fast, slow] = [`/repository/r/${path}`, `/repository/%72/${path}`].map(parsedOrRefused)
      return JSON.stringify(fast) === JSON.stringify(slow)
    }),
    { numRuns: 5_000 },
  )
  t.pass('5,000 paths')
})

t.test('an ordinary target costs about a microsecond at most', async t => {
  const raw = '/repository/maven-releases/org/example/library/1.2.3/library-1.2.3.jar'
  for (let i = 0; i < 100_000; i++) parseArtifactTarget(raw)
  const start = process.hrtime.bigint()
  for (let i = 0; i < 200_000; i++) parseArtifactTarget(raw)
  const ns = Number(process.hrtime.bigint() - start) / 200_000
  t.comment(`${ns.toFixed(0)} ns`)
  t.ok(ns < 5_000)
})

function parsedOrRefused(raw: string): ArtifactTarget | undefined {
  try {
    return parseArtifactTarget(raw)
  } catch (error) {
    if (error instanceof HoldfastError && ['PATH_INVALID', 'URI_TOO_LONG'].includes(error.code)) return undefined
    throw error
  }
}
