/**
 * Configuration from one table per process: types, validation and `--help` come from the same lines. Flags win over environment
 * variables, those over defaults. Pure: the caller passes `process.argv` and `process.env`.
 *
 * An option `hotCacheBytes` is `--hot-cache-bytes` and `HOLDFAST_HOT_CACHE_BYTES`. Bytes may be written 64MiB, times 30s.
 */
import { inspect } from 'node:util'
import { HoldfastError } from './errors.ts'

interface Common {
  /** One sentence. */
  readonly doc: string
  /** Flag without the dashes, where it is not the name itself. */
  readonly flag?: string
}
export interface IntOption extends Common {
  readonly kind: 'int'
  /** 'bytes' also takes KiB, MiB, GiB, TiB; 'ms' also takes s, m, h. */
  readonly unit?: 'bytes' | 'ms'
  readonly min: number
  readonly max: number
  readonly default: number
}
export interface StringOption extends Common {
  readonly kind: 'string'
  readonly default?: string
  readonly required?: true
  /** What the value must look like, and how to say so: 'must be …'. */
  readonly pattern?: readonly [pattern: RegExp, description: string]
}
export interface BoolOption extends Common {
  readonly kind: 'bool'
  readonly default: boolean
}
/** Comma-separated; as a flag it may also be repeated. */
export interface ListOption extends Common {
  readonly kind: 'list'
  readonly default: readonly string[]
  readonly required?: true
  readonly countMax: number
}
/** Only ever from the environment: arguments can be read by every user of the machine. */
export interface SecretOption extends Common {
  readonly kind: 'secret'
  readonly required?: true
  readonly charsMin?: number
}
export type Option = IntOption | StringOption | BoolOption | ListOption | SecretOption
export type Options = Readonly<Record<string, Option>>

type ValueOf<O> = O extends { readonly kind: 'int' }
  ? number
  : O extends { readonly kind: 'bool' }
    ? boolean
    : O extends { readonly kind: 'list' }
      ? readonly string[]
      : O extends { readonly required: true } | { readonly default: string }
        ? string
        : string | undefined

export type ConfigOf<Table> = { readonly [Name in keyof Table]: ValueOf<Table[Name]> }

export interface ConfigSource {
  /** Arguments behind the command's name. */
  readonly args: readonly string[]
  readonly env: Readonly<Record<string, string | undefined>>
}

type Value = number | string | boolean | readonly string[] | undefined

/**
 * Reads and checks every option. `check` looks at relations between values (called only when each alone is good) and returns
 * what is wrong. Throws CONFIG_INVALID with all problems at once, in the message and as `data.problems`. The result is frozen; printed
 * or turned to JSON it shows no secret.
 */
export function readConfig<const Table extends Options>(
  options: Table,
  source: ConfigSource,
  check: (config: ConfigOf<Table>) => readonly string[] = () => [],
): ConfigOf<Table> {
  const problems: string[] = []
  const flags = readFlags(options, source.args, problems)
  const values: Record<string, Value> = {}
  for (const [name, option] of Object.entries(options)) {
    const fromFlags = flags.get(name)
    const fromEnv = source.env[envName(name)]
    // An empty variable is how compose files say "not set".
    const given = fromFlags ?? (fromEnv === undefined || fromEnv === '' ? undefined : [fromEnv])
    const origin = fromFlags === undefined ? envName(name) : '--' + flagName(name, option)
    values[name] = readValue(option, given, message => problems.push(`${origin} ${message}`))
  }
  // The loop above made exactly the table's properties, each by its kind.
  const config = values as ConfigOf<Table>
  if (problems.length === 0) problems.push(...check(config))
  if (problems.length > 0) {
    throw new HoldfastError('CONFIG_INVALID', `the configuration is wrong: ${problems.join('; ')}`, { problems })
  }
  return freeze(options, config)
}

/** `HOLDFAST_HOT_CACHE_BYTES` */
export function envName(name: string): string {
  return 'HOLDFAST_' + name.replace(/[A-Z]/g, '_$&').toUpperCase()
}

/** `hot-cache-bytes` */
export function flagName(name: string, option: Option): string {
  return option.flag ?? name.replace(/[A-Z]/g, '-$&').toLowerCase()
}

/** Does somebody ask for `--help`? Look before `readConfig`, which would complain about what is missing. */
export function asksForHelp(args: readonly string[]): boolean {
  return args.includes('--help') || args.includes('-h')
}

/** The options as text: flag, variable, sentence, bounds, default. */
export function configHelp(options: Options): string {
  return Object.entries(options)
    .map(([name, option]) => {
      const flag = option.kind === 'secret' ? '' : `--${flagName(name, option)}${placeholder(option)}  `
      return `  ${flag}${envName(name)}\n      ${option.doc}${facts(option)}\n`
    })
    .join('')
}

function placeholder(option: Option): string {
  if (option.kind === 'bool') return ''
  return option.kind === 'int' ? ` <${option.unit ?? 'number'}>` : ' <text>'
}

function facts(option: Option): string {
  const words: string[] = []
  if (option.kind === 'int') {
    words.push(`${human(option.min, option)} to ${human(option.max, option)}, default ${human(option.default, option)}`)
  }
  if (option.kind === 'string' && option.default !== undefined) words.push(`default ${option.default}`)
  if (option.kind === 'bool') words.push(`default ${option.default ? 'on' : 'off'}`)
  if ('required' in option) words.push('required')
  return words.length === 0 ? '' : ` (${words.join(', ')})`
}

const byteUnits: readonly (readonly [string, number])[] = [
  ['TiB', 2 ** 40],
  ['GiB', 2 ** 30],
  ['MiB', 2 ** 20],
  ['KiB', 2 ** 10],
]
const timeUnits: readonly (readonly [string, number])[] = [
  ['h', 3_600_000],
  ['m', 60_000],
  ['s', 1_000],
  ['ms', 1],
]

function human(value: number, { unit }: IntOption): string {
  const units = unit === 'bytes' ? byteUnits : unit === 'ms' ? timeUnits : []
  const best = units.find(([, size]) => value >= size && value % size === 0)
  return best === undefined ? String(value) : `${value / best[1]}${best[0]}`
}

/** The values of each flag that was given, by option name. */
function readFlags(options: Options, args: readonly string[], problems: string[]): Map<string, string[]> {
  const names = new Map(Object.entries(options).map(([name, option]) => ['--' + flagName(name, option), name]))
  const found = new Map<string, string[]>()
  for (let at = 0; at < args.length; at++) {
    const arg = args[at] ?? ''
    const equals = arg.indexOf('=')
    const flag = equals < 0 ? arg : arg.slice(0, equals)
    const name = names.get(flag)
    const option = name === undefined ? undefined : options[name]
    if (name === undefined || option === undefined) {
      problems.push(flag.startsWith('-') ? `${flag} is no option (--help shows them)` : `what does '${arg}' mean?`)
      // Its value, if it has one, is not a second mistake.
      if (flag.startsWith('-') && equals < 0 && args[at + 1]?.startsWith('-') === false) at++
      continue
    }
    let value = equals < 0 ? undefined : arg.slice(equals + 1)
    if (value === undefined && option.kind === 'bool') value = 'true'
    value ??= args[++at]
    if (option.kind === 'secret') {
      problems.push(`${flag} would show a secret to everybody on this machine: set ${envName(name)}`)
    } else if (value === undefined) {
      problems.push(`${flag} needs a value`)
    } else {
      found.set(name, [...(found.get(name) ?? []), value])
    }
  }
  return found
}

function readValue(option: Option, given: readonly string[] | undefined, report: (message: string) => void): Value {
  if (given === undefined) {
    if ('required' in option) report('is required')
    return option.kind === 'secret' ? undefined : option.default
  }
  const text = (given.at(-1) ?? '').trim()
  switch (option.kind) {
    case 'int':
      return readInt(option, text, report)
    case 'bool':
      return readBool(text, report)
    case 'list': {
      const items = given.flatMap(value => value.split(',').map(item => item.trim())).filter(item => item !== '')
      if (items.length > option.countMax) report(`has ${items.length} values, at most ${option.countMax} are possible`)
      if (items.length === 0 && 'required' in option) report('is empty')
      return items
    }
    case 'string': {
      const [pattern, description] = option.pattern ?? [/^/, '']
      if (!pattern.test(text)) report(`is '${text}', but ${description}`)
      return text
    }
    case 'secret':
      if (text.length < (option.charsMin ?? 1)) report(`must have at least ${option.charsMin ?? 1} characters`)
      return text
  }
}

function readBool(text: string, report: (message: string) => void): boolean {
  const word = text.toLowerCase()
  if (['true', 'on', 'yes', '1'].includes(word)) return true
  if (!['false', 'off', 'no', '0'].includes(word)) report(`is '${text}', but must be on or off`)
  return false
}

function readInt(option: IntOption, text: string, report: (message: string) => void): number {
  const match = /^(\d{1,16})([A-Za-z]*)$/.exec(text)
  const units = option.unit === 'bytes' ? byteUnits : option.unit === 'ms' ? timeUnits : []
  const suffix = match?.[2] ?? ''
  const factor = suffix === '' ? 1 : units.find(([name]) => name.toLowerCase() === suffix.toLowerCase())?.[1]
  const value = match === null || factor === undefined ? NaN : Number(match[1]) * factor
  if (!(value >= option.min && value <= option.max)) {
    const unit = option.unit === undefined ? '' : ` ${option.unit}`
    report(
      `is '${text}', but must be a number${unit} from ${human(option.min, option)} to ${human(option.max, option)}`,
    )
  }
  return value
}

function freeze<Table extends Options>(options: Table, config: ConfigOf<Table>): ConfigOf<Table> {
  const shown = (): Record<string, unknown> =>
    Object.fromEntries(
      Object.entries<unknown>(config).map(([name, value]) => [
        name,
        options[name]?.kind === 'secret' && value !== undefined ? '[secret]' : value,
      ]),
    )
  Object.defineProperty(config, 'toJSON', { value: shown })
  Object.defineProperty(config, inspect.custom, { value: shown })
  return Object.freeze(config)
}
