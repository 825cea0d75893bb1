/** What tests measure and do not judge: times, rates and counts as a client sees them. */
import { appendFileSync } from 'node:fs'
import type { Test } from 'tap'

/** 'count' is any number of things, told without a unit. */
export type Unit = 'ms' | '%' | 'count'

export interface Figure {
  /** What is measured, under one name wherever it is: 'postgres.back'. */
  readonly name: string
  readonly value: number
  readonly unit: Unit
  /** Of the process that measured it: a file that is run a second time counts alone. */
  readonly pid: number
}

/** A comment of the test; `npm run reliability` gathers it, too (HOLDFAST_TEST_FIGURES names the file). Told several times, it becomes a range. */
export function figure(t: Pick<Test, 'comment'>, name: string, value: number, unit: Unit): void {
  t.comment(`${name}: ${value.toFixed(unit === '%' ? 3 : 0)}${unit === 'count' ? '' : ` ${unit}`}`)
  const file = process.env['HOLDFAST_TEST_FIGURES']
  if (file === undefined) return
  const measured: Figure = { name, value: Number(value.toPrecision(4)), unit, pid: process.pid }
  appendFileSync(file, JSON.stringify(measured) + '\n')
}

/** The smallest value that `percent` of all are not above; 0 of none. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)] ?? 0
}
