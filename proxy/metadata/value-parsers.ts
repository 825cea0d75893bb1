import assert from 'node:assert/strict'
import pg from 'pg'

const { builtins } = pg.types
const parseTimestamp = pg.types.getTypeParser(builtins.TIMESTAMPTZ, 'text') as (text: string) => Date | null

/**
 * How values of columns arrive: bigint as number (versions and sizes stay below 2^53, anything else is a bug), bytea as
 * lower-case hex, timestamptz as milliseconds since 1970, the rest as pg has it.
 */
export const valueParsers: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: 'text' | 'binary'): unknown => {
    if (oid === (builtins.INT8 as number)) return parseBigint
    if (oid === (builtins.BYTEA as number)) return parseBytea
    if (oid === (builtins.TIMESTAMPTZ as number)) return parseTime
    return pg.types.getTypeParser(oid, format)
  }) as pg.CustomTypesConfig['getTypeParser'],
}

/** A hex digest as bytea goes over the wire. */
export function bytea(hex: string): string {
  return `\\x${hex}`
}

function parseBigint(text: string): number {
  const number = Number(text)
  assert(Number.isSafeInteger(number), 'bigint beyond 2^53')
  return number
}

function parseBytea(text: string): string {
  return text.slice(2)
}

function parseTime(text: string): number {
  return parseTimestamp(text)?.getTime() ?? Number.NaN
}
