/** The table of a benchmark run. Pure. */
import type { Figures } from './cases.ts'

export interface Row {
  readonly label: string
  readonly holdfast: Figures
  readonly nginx: Figures | undefined
}

export function markdown(
  rows: readonly Row[],
  memory: Readonly<Record<string, number>>,
  machine: { cpu: string; cores: number; memoryBytes: number; system: string },
  versions: Readonly<Record<string, string>>,
): string {
  const head = [
    'case',
    'requests/s',
    'MB/s',
    'p50 ms',
    'p99 ms',
    'CPU s / 1,000',
    'nginx requests/s',
    'nginx CPU s / 1,000',
    'rate : nginx',
    'CPU : nginx',
  ]
  const lines = rows.map(({ label, holdfast, nginx }) =>
    [
      label,
      Math.round(holdfast.perSecond).toLocaleString('en'),
      holdfast.megabytesPerSecond.toFixed(holdfast.megabytesPerSecond < 10 ? 1 : 0),
      holdfast.p50Ms,
      holdfast.p99Ms,
      holdfast.cpuSecondsPer1000.toFixed(3),
      nginx === undefined ? '' : Math.round(nginx.perSecond).toLocaleString('en'),
      nginx === undefined ? '' : nginx.cpuSecondsPer1000.toFixed(3),
      nginx === undefined ? '' : (holdfast.perSecond / nginx.perSecond).toFixed(2),
      nginx === undefined ? '' : (holdfast.cpuSecondsPer1000 / nginx.cpuSecondsPer1000).toFixed(2),
    ].join(' | '),
  )
  const megabytes = Object.entries(memory).map(([name, bytes]) => `${name} ${(bytes / 1e6).toFixed(0)} MB`)
  return [
    `| ${head.join(' | ')} |`,
    `|${head.map(() => '---').join('|')}|`,
    ...lines.map(line => `| ${line} |`),
    '',
    `Memory: ${megabytes.join(', ')}.`,
    `Machine: ${machine.cpu}, ${machine.cores} cores, ${(machine.memoryBytes / 2 ** 30).toFixed(0)} GiB, Linux ${machine.system}; ${Object.entries(
      versions,
    )
      .map(([name, version]) => `${name} ${version}`)
      .join(
        ', ',
      )}. The load comes from the same cores: autocannon for bodies up to 64 KiB and the mix, for larger bodies and PUTs a client of our own.`,
    '',
  ].join('\n')
}
