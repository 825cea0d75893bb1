import t from 'tap'
import fc from 'fast-check'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { compareChecksums, parseDeclaredChecksums } from '../../../proxy/http/checksums.ts'
import { errorBody, errorHeaders, httpStatus } from '../../../proxy/http/http-errors.ts'
import { errorCodes, HoldfastError, isHoldfastError } from '../../../shared/errors.ts'
import { projectFolder } from '../../support/paths.ts'

const digest = (algorithm: string, encoding: 'hex' | 'base64'): string =>
  createHash(algorithm).update('holdfast').digest(encoding)
const hex = {
  md5: digest('md5', 'hex'),
  sha1: digest('sha1', 'hex'),
  sha256: digest('sha256', 'hex'),
  sha512: digest('sha512', 'hex'),
}

t.test('checksums are read from every header that clients use', async t => {
  t.same(parseDeclaredChecksums({ 'content-type': 'text/plain' }), {})
  t.same(
    parseDeclaredChecksums({
      'x-checksum-md5': hex.md5.toUpperCase(),
      'x-checksum-sha1': ' ' + hex.sha1,
      'x-checksum-sha256': hex.sha256,
      'x-checksum-sha512': hex.sha512,
    }),
    hex,
  )
  t.same(parseDeclaredChecksums({ 'content-md5': digest('md5', 'base64') }), { md5: hex.md5 })
  t.same(
    parseDeclaredChecksums({
      digest: `SHA-256=${digest('sha256', 'base64')}, MD5=${digest('md5', 'base64')},sha=${digest('sha1', 'base64')}`,
    }),
    { sha256: hex.sha256, md5: hex.md5, sha1: hex.sha1 },
  )
  for (const header of ['content-digest', 'repr-digest']) {
    t.same(
      parseDeclaredChecksums({ [header]: `sha-512=:${digest('sha512', 'base64')}:;q=1, crc32c=:AAAAAA==:` }),
      { sha512: hex.sha512 },
      header,
    )
  }
  t.same(parseDeclaredChecksums({ digest: 'unixsum=30637' }), {}, 'what we do not compute is passed over')
  t.same(
    parseDeclaredChecksums({ 'x-checksum-md5': hex.md5, 'content-md5': digest('md5', 'base64') }),
    { md5: hex.md5 },
    'twice the same is once',
  )
})

t.test('a checksum that cannot be one is a BAD_REQUEST, before any byte is read', async t => {
  const b64 = digest('sha256', 'base64')
  for (const headers of [
    { 'x-checksum-md5': '' },
    { 'x-checksum-md5': hex.sha1 },
    { 'x-checksum-sha256': 'z'.repeat(64) },
    { 'content-md5': 'AAAA' },
    { 'content-md5': hex.md5 },
    { digest: 'sha-256' },
    { digest: 'sha-256=' },
    { digest: `sha-256=${b64.slice(1)}` },
    { digest: `sha-256=!${b64}` },
    { digest: `sha-256=:${b64}:` },
    { 'content-digest': `sha-256=${b64}` },
    { 'content-digest': 'sha-256=:' },
    { 'content-digest': 'sha-256=' + '='.repeat(10_000) },
    { 'x-checksum-md5': hex.md5, 'content-md5': createHash('md5').digest('base64') },
  ]) {
    t.throws(() => parseDeclaredChecksums(headers), { code: 'BAD_REQUEST' }, JSON.stringify(headers).slice(0, 60))
  }
  const name = fc.constantFrom('x-checksum-sha1', 'content-md5', 'digest', 'content-digest', 'repr-digest')
  const text = fc.string({ unit: fc.constantFrom('sha-256', '=', ':', ',', ';', 'A', '"', ' ', 'md5'), maxLength: 12 })
  fc.assert(
    fc.property(name, text, (header, value) => {
      try {
        return Object.keys(parseDeclaredChecksums({ [header]: value })).length === 0
      } catch (error) {
        return isHoldfastError(error, 'BAD_REQUEST')
      }
    }),
  )
})

t.test('a mismatch names both values', async t => {
  compareChecksums({}, {})
  compareChecksums({ sha1: hex.sha1 }, hex)
  const expected = '0'.repeat(40)
  t.throws(() => compareChecksums({ md5: hex.md5, sha1: expected }, hex), {
    code: 'CHECKSUM_MISMATCH',
    message: new RegExp(`${expected}.*${hex.sha1}`),
    data: { algorithm: 'sha1', expected, found: hex.sha1 },
  })
  t.throws(() => compareChecksums({ sha512: hex.sha512 }, { md5: hex.md5 }), /declared but not computed/)
})

t.test('every error code has a status, and 404 is said only of what clients ask for', async t => {
  t.same(Object.keys(httpStatus).toSorted(), [...errorCodes].toSorted())
  t.same(
    errorCodes.filter(code => httpStatus[code] === 404),
    ['NOT_FOUND', 'REPOSITORY_NOT_FOUND', 'ARTIFACT_NOT_FOUND'],
  )
  const source = readFileSync(join(projectFolder, 'shared/errors.ts'), 'utf8')
  const wire = source.slice(source.indexOf('// between proxy and storage node'), source.indexOf('// start-up'))
  for (const [, code = ''] of wire.matchAll(/'([A-Z_]+)'/g)) t.ok(httpStatus[code as 'INTERNAL'] >= 500, code)
})

t.test('error answers show facts about the request, never about the inside', async t => {
  const mismatch = new HoldfastError('CHECKSUM_MISMATCH', 'differs', { found: 'x', code: 'fake', requestId: 'fake' })
  t.same(errorBody(mismatch, 'r1'), { found: 'x', code: 'CHECKSUM_MISMATCH', message: 'differs', requestId: 'r1' })
  const inside = new HoldfastError('REPLICAS_UNREACHABLE', 'no replica answers', { url: 'http://10.0.0.1' })
  t.same(errorBody(inside, 'r2'), { code: 'REPLICAS_UNREACHABLE', message: 'no replica answers', requestId: 'r2' })
  const bug = new HoldfastError('INTERNAL', 'select * from secrets', { row: 1 }, { cause: new Error('x') })
  t.same(errorBody(bug, 'r3'), { code: 'INTERNAL', message: 'internal error', requestId: 'r3' })
})

t.test('error answers carry the headers that their status asks for', async t => {
  const of = (code: (typeof errorCodes)[number], data = {}): unknown => errorHeaders(new HoldfastError(code, '', data))
  t.same(of('UNAUTHORIZED'), { 'www-authenticate': 'Basic realm="Holdfast", charset="UTF-8"' })
  t.same(of('TOO_MANY_REQUESTS', { retryAfterSeconds: 4.2 }), { 'retry-after': '5' })
  t.same(of('TOO_MANY_REQUESTS'), { 'retry-after': '60' })
  t.same(of('OVERLOADED'), { 'retry-after': '2' })
  t.same(of('METHOD_NOT_ALLOWED', { allow: ['GET', 'HEAD'] }), { allow: 'GET, HEAD' })
  t.same(of('RANGE_NOT_SATISFIABLE', { size: 7 }), { 'content-range': 'bytes */7' })
  t.same(of('ARTIFACT_NOT_FOUND'), {})
})
