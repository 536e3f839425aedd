// Two benchmarks beside each other: what became slower, what faster, and where that cannot be told.
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { type Ratio, ratioOf } from '#scripts/benchmarks/stats.mts'
import type { Benchmark, Figures } from './summary.mts'

/** Reads a benchmark's directory, or its summary.json. Throws UsageError where it is none. */
export function readBenchmark(path: string): Benchmark {
  const file = existsSync(path) && statSync(path).isDirectory() ? join(path, 'reports/summary.json') : path
  let read: Benchmark
  try {
    read = JSON.parse(readFileSync(file, 'utf8'))
  } catch (error) {
    throw new UsageError(`${path}: no benchmark: ${messageOf(error)}`)
  }
  if (read.schema !== 'vykar-e2e/benchmark/1') throw new UsageError(`${file}: not a benchmark of this version`)
  return read
}

/** One figure in both benchmarks: time of the second ÷ time of the first. */
export interface Change {
  repo: string
  operation: string
  tool: string
  ratio: Ratio
  /** Slower by more than the threshold, as far as the interval can tell. */
  regression: boolean
}

const times = ({ samples }: Benchmark, { repo, operation, tool }: Figures) =>
  samples
    .filter((s) => s.round > 0 && s.reason === undefined)
    .filter((s) => s.repo === repo && s.operation === operation && s.tool === tool)
    .map((s) => s.seconds)

/**
 * Compares what both have measured at least twice.
 * @param threshold share by which a time may grow, 0.1 for a tenth: a regression's whole interval lies above it
 * @throws UsageError where they have nothing in common, or measured other sources
 */
export function compare(first: Benchmark, second: Benchmark, threshold: number): Change[] {
  const close = Math.abs(first.sourceBytes - second.sourceBytes) <= first.sourceBytes / 100
  if (!close) throw new UsageError(`the sources differ: ${first.sourceBytes} and ${second.sourceBytes} bytes`)
  const changes = first.figures.flatMap((figures) => {
    const [before, after] = [times(first, figures), times(second, figures)]
    if (before.length < 2 || after.length < 2) return []
    const ratio = ratioOf(after, before, first.seed)
    const { repo, operation, tool } = figures
    return [{ repo, operation, tool, ratio, regression: ratio.low > 1 + threshold }]
  })
  if (!changes.length) throw new UsageError('the two have no operation in common that both measured at least twice')
  return changes
}
