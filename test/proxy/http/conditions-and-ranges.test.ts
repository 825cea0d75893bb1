import t from 'tap'
import fc from 'fast-check'
import type { IncomingHttpHeaders } from 'node:http'
import {
  evaluateConditions,
  formatHttpDate,
  ifRangeHolds,
  parseEntityTags,
  parseHttpDate,
  type ConditionHeaders,
} from '../../../proxy/http/conditions.ts'
import {
  contentRange,
  multipartRanges,
  parseRanges,
  rangeBytes,
  rangeCountMax,
  unsatisfiedContentRange,
} from '../../../proxy/http/byte-ranges.ts'

const seed = Number(process.env['HOLDFAST_TEST_SEED'] ?? Date.now() % 2 ** 31)
t.comment(`seed ${seed}`)

const lastModifiedMs = Date.UTC(2024, 1, 29, 12, 0, 0, 700)
const current = { etag: '"abc"', lastModifiedMs }
const before = formatHttpDate(lastModifiedMs - 1000)
const same = formatHttpDate(lastModifiedMs)

t.test('dates are read in all three formats, and only in those', async t => {
  const ms = Date.UTC(1994, 10, 6, 8, 49, 37)
  t.equal(parseHttpDate('Sun, 06 Nov 1994 08:49:37 GMT'), ms)
  t.equal(parseHttpDate('Sunday, 06-Nov-94 08:49:37 GMT'), ms)
  t.equal(parseHttpDate('Sun Nov  6 08:49:37 1994'), ms)
  t.equal(parseHttpDate('Thu, 29 Feb 2024 23:59:60 GMT'), Date.UTC(2024, 2, 1))
  t.equal(parseHttpDate('Sunday, 06-Nov-25 08:49:37 GMT'), Date.UTC(2025, 10, 6, 8, 49, 37))
  for (const text of [
    '',
    '0',
    'Sun, 6 Nov 1994 08:49:37 GMT',
    'Sun, 06 Nov 1994 08:49:37 +0000',
    'Sun, 06 nov 1994 08:49:37 GMT',
    'Sun, 31 Feb 1994 08:49:37 GMT',
    'Sun, 00 Nov 1994 08:49:37 GMT',
    'Sun, 06 Nov 1994 24:00:00 GMT',
    'Sun, 06 Nov 1994 08:49:61 GMT',
    '1994-11-06T08:49:37Z',
    'Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT',
  ]) {
    t.equal(parseHttpDate(text), undefined, text)
  }
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 4e9 }), s => parseHttpDate(formatHttpDate(s * 1000)) === s * 1000),
    { seed },
  )
})

t.test('lists of entity tags are read; a syntax error ends the list', async t => {
  t.equal(parseEntityTags(' * '), '*')
  t.same(parseEntityTags('"a", W/"b",,"c,d"'), [
    { weak: false, tag: '"a"' },
    { weak: true, tag: '"b"' },
    { weak: false, tag: '"c,d"' },
  ])
  t.same(parseEntityTags('"a", b, "c"'), [{ weak: false, tag: '"a"' }])
  t.same(parseEntityTags('w/"a"'), [])
  t.same(parseEntityTags('"a""b"'), [])
  t.same(parseEntityTags(''), [])
  t.same(parseEntityTags(','.repeat(100_000)), [])
})

t.test('conditions follow the precedence of RFC 9110 13.2.2', async t => {
  const cases: [string, ConditionHeaders, string][] = [
    ['GET', {}, 'proceed'],
    ['GET', { 'if-none-match': '"abc"' }, 'not-modified'],
    ['HEAD', { 'if-none-match': 'W/"abc"' }, 'not-modified'],
    ['GET', { 'if-none-match': '"x", "abc"' }, 'not-modified'],
    ['GET', { 'if-none-match': '*' }, 'not-modified'],
    ['GET', { 'if-none-match': 'abc' }, 'proceed'],
    ['PUT', { 'if-none-match': '*' }, 'failed'],
    ['PUT', { 'if-none-match': '"abc"' }, 'failed'],
    ['DELETE', { 'if-none-match': '"x"' }, 'proceed'],
    ['PUT', { 'if-match': '"abc"' }, 'proceed'],
    ['PUT', { 'if-match': 'W/"abc"' }, 'failed'],
    ['PUT', { 'if-match': '*' }, 'proceed'],
    ['GET', { 'if-match': '"x"' }, 'failed'],
    ['GET', { 'if-match': '' }, 'failed'],
    ['GET', { 'if-match': '"abc"', 'if-none-match': '"abc"' }, 'not-modified'],
    ['GET', { 'if-match': '"x"', 'if-none-match': '"abc"' }, 'failed'],
    ['GET', { 'if-match': '"abc"', 'if-unmodified-since': before }, 'proceed'],
    ['GET', { 'if-unmodified-since': before }, 'failed'],
    ['PUT', { 'if-unmodified-since': same }, 'proceed'],
    ['PUT', { 'if-unmodified-since': 'yesterday' }, 'proceed'],
    ['GET', { 'if-modified-since': same }, 'not-modified'],
    ['GET', { 'if-modified-since': before }, 'proceed'],
    ['GET', { 'if-modified-since': 'yesterday' }, 'proceed'],
    ['PUT', { 'if-modified-since': same }, 'proceed'],
    ['GET', { 'if-none-match': '"x"', 'if-modified-since': same }, 'proceed'],
    ['GET', { 'if-none-match': '"abc"', 'if-modified-since': before }, 'not-modified'],
  ]
  for (const [method, headers, expected] of cases) {
    t.equal(evaluateConditions(method, headers, current), expected, `${method} ${JSON.stringify(headers)}`)
  }
  const incoming: IncomingHttpHeaders = { 'if-match': '*' }
  t.equal(evaluateConditions('PUT', incoming, undefined), 'failed', 'If-Match: * of nothing')
  t.equal(evaluateConditions('PUT', { 'if-none-match': '*' }, undefined), 'proceed')
  t.equal(evaluateConditions('PUT', { 'if-unmodified-since': before }, undefined), 'proceed')
})

t.test('conditions agree with a naive reading of the RFC', async () => {
  const tag = fc.constantFrom('"abc"', 'W/"abc"', '"x"', 'W/"x"', 'rubbish')
  const list = fc.oneof(
    fc.constant('*'),
    fc.array(tag, { minLength: 1, maxLength: 3 }).map(tags => tags.join(', ')),
  )
  const date = fc.constantFrom(before, same, formatHttpDate(lastModifiedMs + 5000), 'rubbish')
  const headers = fc.record(
    { 'if-match': list, 'if-none-match': list, 'if-modified-since': date, 'if-unmodified-since': date },
    { requiredKeys: [] },
  )
  fc.assert(
    fc.property(fc.constantFrom('GET', 'HEAD', 'PUT', 'DELETE'), headers, fc.boolean(), (method, given, exists) => {
      const now = exists ? current : undefined
      return evaluateConditions(method, given, now) === naiveConditions(method, given, exists)
    }),
    { numRuns: 5_000, seed },
  )
})

/** Written from the text of 13.2.2, step by step, knowing only the values that the generator makes. */
function naiveConditions(method: string, headers: ConditionHeaders, exists: boolean): string {
  const reading = method === 'GET' || method === 'HEAD'
  const tags = (header: string): string[] =>
    header.split(', ').slice(0, (header + ', rubbish').split(', ').indexOf('rubbish'))
  const late = (header: string): number => (header === 'rubbish' ? NaN : Date.parse(header) - Date.parse(same))
  const { 'if-match': im, 'if-none-match': inm, 'if-modified-since': ims, 'if-unmodified-since': ius } = headers
  if (im !== undefined && !(exists && (im === '*' || tags(im).includes('"abc"')))) return 'failed'
  if (im === undefined && ius !== undefined && exists && late(ius) < 0) return 'failed'
  if (inm !== undefined) {
    const hit = exists && (inm === '*' || tags(inm).includes('"abc"') || tags(inm).includes('W/"abc"'))
    if (hit) return reading ? 'not-modified' : 'failed'
  } else if (ims !== undefined && reading && exists && late(ims) >= 0) return 'not-modified'
  return 'proceed'
}

t.test('If-Range holds for the exact strong tag or the exact date', async t => {
  t.ok(ifRangeHolds(undefined, current))
  t.ok(ifRangeHolds('"abc"', current))
  t.ok(ifRangeHolds(same, current))
  for (const value of ['W/"abc"', '"x"', 'abc', '', '*', before, formatHttpDate(lastModifiedMs + 1000)]) {
    t.notOk(ifRangeHolds(value, current), value)
  }
})

t.test('ranges: what curl, browsers and download managers ask', async t => {
  const ranges = (header: string, size = 100): unknown => {
    const result = parseRanges(header, size)
    return result.kind === 'ranges' ? result.ranges.map(({ first, last }) => [first, last]) : result.kind
  }
  t.equal(parseRanges(undefined, 100).kind, 'none')
  t.same(ranges('bytes=0-0'), [[0, 0]])
  t.same(ranges('BYTES=10-'), [[10, 99]])
  t.same(ranges('bytes=-1'), [[99, 99]])
  t.same(ranges('bytes=-1000'), [[0, 99]])
  t.same(ranges('bytes=90-99999999999999999999999999'), [[90, 99]])
  t.same(ranges('bytes= 0-1 ,, 5-6 ,'), [[0, 1], [5, 6]]) // prettier-ignore
  t.same(ranges('bytes=50-59,0-9'), [[50, 59], [0, 9]]) // prettier-ignore
  t.same(ranges('bytes=50-59,0-9,5-20'), [[0, 20], [50, 59]]) // prettier-ignore
  t.same(ranges('bytes=0-4,5-9'), [[0, 9]])
  t.same(ranges('bytes=200-,0-1'), [[0, 1]])
  for (const header of ['bytes=100-', 'bytes=-0', 'bytes=100-200,300-', 'bytes=99999999999999999999999-']) {
    t.equal(ranges(header), 'unsatisfiable', header)
  }
  for (const header of [
    'bytes=5-4',
    'bytes=-',
    'bytes=',
    'bytes=a-b',
    'bytes=1',
    'bytes=0-1;2-3',
    'items=0-1',
    'bytes 0-1',
    'bytes=--1',
    'bytes=0x1-2',
    'bytes=1e1-20',
    'bytes=+1-2',
    'bytes=0-1,5-4',
    'bytes=' + '1-2,'.repeat(100_000),
    '',
    'none',
  ]) {
    // prettier-ignore
    t.equal(ranges(header), 'none', header.slice(0, 40))
  }
  t.equal(ranges('bytes=0-', 0), 'unsatisfiable')
  t.equal(ranges('bytes=-5', 0), 'none')
  const many = (count: number): string =>
    'bytes=' + Array.from({ length: count }, (_, i) => `${i * 3}-${i * 3}`).join(',')
  t.equal((ranges(many(rangeCountMax)) as unknown[]).length, 16)
  t.equal(ranges(many(rangeCountMax + 1)), 'none')
  t.equal(contentRange({ first: 1, last: 2 }, 10), 'bytes 1-2/10')
  t.equal(unsatisfiedContentRange(10), 'bytes */10')
})

t.test('ranges cover exactly the bytes that a naive reader finds, and never overlap', async () => {
  const position = fc.oneof(fc.integer({ min: 0, max: 30 }).map(String), fc.constant(''))
  const spec = fc.tuple(position, position).map(([from, to]) => `${from}-${to}`)
  fc.assert(
    fc.property(fc.array(spec, { minLength: 1, maxLength: 18 }), fc.integer({ min: 0, max: 25 }), (specs, size) => {
      const result = parseRanges('bytes=' + specs.join(','), size)
      const invalid = specs.some(text => {
        const [from = '', to = ''] = text.split('-')
        return text === '-' || (from !== '' && to !== '' && Number(from) > Number(to))
      })
      if (invalid || specs.length > rangeCountMax) return result.kind === 'none'
      const wanted = Array.from({ length: size }, (_, at) => at).filter(at => specs.some(text => naive(text, at, size)))
      if (wanted.length === 0) return result.kind === 'unsatisfiable' || (size === 0 && result.kind === 'none')
      if (result.kind !== 'ranges') return false
      const got = result.ranges.flatMap(r => Array.from({ length: rangeBytes(r) }, (_, i) => r.first + i))
      return got.length === wanted.length && got.toSorted((a, b) => a - b).every((at, i) => at === wanted[i])
    }),
    { numRuns: 5_000, seed },
  )
  function naive(text: string, at: number, size: number): boolean {
    const [from = '', to = ''] = text.split('-')
    if (from === '') return at >= size - Number(to)
    return at >= Number(from) && (to === '' || at <= Number(to))
  }
})

t.test('ranges: no header makes the parser throw or answer beyond the size', async () => {
  const piece = fc.oneof(
    fc.constantFrom('bytes=', ',', '-', ' ', '0', '9', '\t', '*', '=', 'e'),
    fc.string({ maxLength: 3 }),
  )
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 30 }), fc.nat(), (pieces, size) => {
      const result = parseRanges('bytes=' + pieces.join(''), size)
      if (result.kind !== 'ranges') return true
      return result.ranges.every(({ first, last }) => 0 <= first && first <= last && last < size)
    }),
    { numRuns: 5_000, seed },
  )
})

t.test('a multipart body has exactly the announced length and can be taken apart', async t => {
  const data = Buffer.from('0123456789abcdefghij')
  const parsed = parseRanges('bytes=0-2,10-,5-5', data.length)
  if (parsed.kind !== 'ranges') throw new Error('no ranges')
  const plan = multipartRanges(parsed.ranges, data.length, 'text/plain')
  const body = Buffer.concat([
    ...plan.parts.flatMap(({ head, range }) => [head, data.subarray(range.first, range.last + 1)]),
    plan.tail,
  ])
  t.equal(body.length, plan.contentLength)
  const boundary = /boundary=(\S+)$/.exec(plan.contentType)?.[1] ?? ''
  t.same(
    body
      .toString()
      .split(`--${boundary}`)
      .slice(1, -1)
      .map(part => part.split('\r\n\r\n')[1]?.replace(/\r\n$/, '')),
    ['012', 'abcdefghij', '5'],
  )
  t.match(body.toString(), 'Content-Type: text/plain\r\nContent-Range: bytes 10-19/20\r\n')
  t.ok(body.toString().endsWith(`--${boundary}--\r\n`))
})
