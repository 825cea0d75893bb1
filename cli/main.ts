#!/usr/bin/env node
/** `holdfast <command> [options]` */
import { asksForHelp } from '../shared/config.ts'
import { isHoldfastError } from '../shared/errors.ts'
import { version } from '../shared/version.ts'
import { commandOf, commands } from './commands.ts'

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args
  if (name === '--version') {
    process.stdout.write(`${version}\n`)
    return 0
  }
  const command = commandOf(name)
  if (command === undefined) {
    const asked = name === undefined || name === '--help' || name === '-h' || name === 'help'
    if (!asked) process.stderr.write(`holdfast: no command '${name}'\n`)
    process[asked ? 'stdout' : 'stderr'].write(usage())
    return asked && name !== undefined ? 0 : 2
  }
  if (asksForHelp(rest)) {
    process.stdout.write(`holdfast ${name}: ${command.summary}\n\n${await command.help()}`)
    return 0
  }
  return command.run({ args: rest, env: process.env })
}

function usage(): string {
  const lines = Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(14)} ${summary}`)
  return `Usage: holdfast <command> [options]\n\n${lines.join('\n')}\n\nholdfast <command> --help shows the options of a command.\n`
}

try {
  process.exit(await main(process.argv.slice(2)))
} catch (error) {
  const known = isHoldfastError(error)
  process.stderr.write(
    known
      ? `holdfast: ${error.message} [${error.code}]\n`
      : `holdfast: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  )
  process.exit(known && error.code === 'CONFIG_INVALID' ? 2 : 1)
}
