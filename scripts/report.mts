#!/usr/bin/env -S npx tsx
// Looks at results of earlier runs.
//   report.mts compare A B [--threshold 0.1]   what became slower or faster between two benchmark directories
// Exits 1 when something is slower by more than the threshold, as far as its 95 % interval can tell.
import { compare, readBenchmark } from '#lib/benchmarks/compare.mts'
import { ratioText } from '#lib/benchmarks/summary.mts'
import { nearest, optionHelp, parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'

const specs = {
  help: { kind: 'flag', help: 'this text' },
  threshold: { kind: 'number', help: 'share by which a time may grow', default: 0.1 },
} as const

/** Prints a line for each operation that both have, the worst first. Returns the exit code. */
function printComparison(a: string, b: string, threshold: number): number {
  const changes = compare(readBenchmark(a), readBenchmark(b), threshold)
  for (const { repo, operation, tool, ratio, regression } of changes.sort((x, y) => y.ratio.ratio - x.ratio.ratio)) {
    const word = regression ? 'SLOWER' : !ratio.shown ? 'same' : ratio.ratio > 1 ? 'slower' : 'faster'
    console.log(`${word.padEnd(7)} ${repo} ${tool.padEnd(8)} ${operation.padEnd(17)} ${ratioText(ratio)}`)
  }
  const worse = changes.filter((change) => change.regression).length
  console.log(
    worse
      ? `FAIL ${worse} of ${changes.length} are slower by more than ${threshold * 100} %`
      : `PASS none of ${changes.length} is slower by more than ${threshold * 100} %`,
  )
  return worse ? 1 : 0
}

try {
  const options = parseOptions(process.argv.slice(2), specs, true)
  const [command, ...paths] = options._
  if (options.help) console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  else if (command !== 'compare')
    throw new UsageError(
      command ? `no command ${command}; did you mean ${nearest(command, ['compare'])}?` : 'compare A B is needed',
    )
  else if (paths.length !== 2) throw new UsageError('compare needs two benchmark directories')
  else process.exitCode = printComparison(paths[0]!, paths[1]!, options.threshold)
} catch (error) {
  console.error(`report: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
