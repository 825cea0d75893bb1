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

/** Resolves with the exit code. */
async function exitCode(args: readonly string[]): Promise<number> {
  try {
    return await main(args)
  } catch (error) {
    const known = isHoldfastError(error)
    process.stderr.write(
      known
        ? `holdfast: ${error.message} [${error.code}]\n`
        : `holdfast: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    )
    return known && error.code === 'CONFIG_INVALID' ? 2 : 1
  }
}

/** Resolves when the reader of a pipe has taken all that was written, or has gone. */
function written(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise(resolve => stream.write('', () => resolve()))
}

let lost = false
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    // A reader that has seen enough (`| head`) is none of our failures; a full disk is.
    if (error.code === 'EPIPE' || lost) return
    lost = true
    process.stderr.write(`holdfast: the output is not complete: ${error.message}\n`)
  })
}
const code = await exitCode(process.argv.slice(2))
await Promise.all([written(process.stdout), written(process.stderr)])
// Kept connections and timers would keep the process for some seconds.
process.exit(lost ? 1 : code)
