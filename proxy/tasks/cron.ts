/**
 * Schedules in five fields, UTC: minute, hour, day of month, month, day of week (0 or 7 is Sunday). Each is `*`, a number, a range
 * `a-b`, either of them with a step `/n`, or a list of those. As in cron, a day has to match either of the day fields if both are
 * restricted. Pure: nobody looks at a clock here.
 */
import { HoldfastError } from '../../shared/errors.ts'

export interface Cron {
  readonly minutes: ReadonlySet<number>
  readonly hours: ReadonlySet<number>
  readonly days: ReadonlySet<number>
  readonly months: ReadonlySet<number>
  readonly weekdays: ReadonlySet<number>
  /** Which days count: those of both fields, or of either. */
  readonly dayRule: 'both' | 'either'
}

const fields = [
  { name: 'minute', min: 0, max: 59 },
  { name: 'hour', min: 0, max: 23 },
  { name: 'day of month', min: 1, max: 31 },
  { name: 'month', min: 1, max: 12 },
  { name: 'day of week', min: 0, max: 7, note: '; 0 and 7 are Sunday' },
] as const satisfies readonly Field[]

interface Field {
  readonly name: string
  readonly min: number
  readonly max: number
  readonly note?: string
}

export const cronCharsMax = 200
const minuteMs = 60_000
const dayMs = 24 * 60 * minuteMs
/** 29 February on a given weekday comes every 28 years, 40 around a century without a leap day. */
const searchDays = 41 * 366

/** Throws BAD_REQUEST, with what is wrong with it, also for a schedule that never comes (30 February). */
export function parseCron(text: string): Cron {
  const parts = text.trim().split(/\s+/)
  if (parts.length !== fields.length || text.length > cronCharsMax) {
    throw bad(text, 'it has five fields: minute, hour, day of month, month, day of week')
  }
  const [minutes, hours, days, months, weekdays] = fields.map((field, index) => parseField(parts[index]!, field, text))
  const cron: Cron = {
    minutes: minutes!,
    hours: hours!,
    days: days!,
    months: months!,
    weekdays: new Set([...weekdays!].map(day => day % 7)),
    dayRule: parts[2]!.startsWith('*') || parts[4]!.startsWith('*') ? 'both' : 'either',
  }
  if (nextTime(cron, Date.UTC(2000, 0, 1)) === undefined) throw bad(text, 'there is no such day')
  return cron
}

/** The first whole minute of the schedule after `afterMs` (ms since 1970). undefined: none within 41 years. */
export function nextTime(cron: Cron, afterMs: number): number | undefined {
  const first = (Math.floor(afterMs / minuteMs) + 1) * minuteMs
  let dayStart = Math.floor(first / dayMs) * dayMs
  for (let day = 0; day < searchDays; day++, dayStart += dayMs) {
    if (!matchesDay(cron, new Date(dayStart))) continue
    const time = firstTimeOfDay(cron, dayStart, first)
    if (time !== undefined) return time
  }
  return undefined
}

function matchesDay({ days, months, weekdays, dayRule }: Cron, date: Date): boolean {
  if (!months.has(date.getUTCMonth() + 1)) return false
  const [day, weekday] = [days.has(date.getUTCDate()), weekdays.has(date.getUTCDay())]
  return dayRule === 'both' ? day && weekday : day || weekday
}

function firstTimeOfDay({ hours, minutes }: Cron, dayStart: number, notBefore: number): number | undefined {
  const from = Math.max(0, notBefore - dayStart) / minuteMs
  for (let hour = Math.floor(from / 60); hour < 24; hour++) {
    if (!hours.has(hour)) continue
    for (let minute = Math.max(0, from - hour * 60); minute < 60; minute++) {
      if (minutes.has(minute)) return dayStart + (hour * 60 + minute) * minuteMs
    }
  }
  return undefined
}

function parseField(text: string, field: Field, whole: string): Set<number> {
  const values = new Set<number>()
  for (const item of text.split(',')) {
    const match = /^(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:\/(\d{1,2}))?$/.exec(item)
    if (match === null) throw bad(whole, `'${item}' is no ${fieldText(field)}`)
    const [, from, to, step] = match
    const first = from === undefined ? field.min : Number(from)
    // `5/10` means from 5 on, as in most crons.
    const last = to !== undefined ? Number(to) : from === undefined || step !== undefined ? field.max : first
    const by = step === undefined ? 1 : Number(step)
    if (first < field.min || last > field.max || first > last || by < 1) {
      throw bad(whole, `'${item}' is no ${fieldText(field)}`)
    }
    for (let value = first; value <= last; value += by) values.add(value)
  }
  return values
}

/** `minute (0 to 59)` */
const fieldText = ({ name, min, max, note = '' }: Field): string => `${name} (${min} to ${max}${note})`

function bad(text: string, why: string): HoldfastError {
  return new HoldfastError('BAD_REQUEST', `'${text.slice(0, cronCharsMax)}' is no schedule: ${why}`)
}
