// Two benchmarks beside each other: what became slower, what faster, and where that cannot be told.
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { leastRounds, type Ratio, ratioOf } from '#scripts/benchmarks/stats.mts'
import type { Benchmark, Figures } from './summary.mts'

/** Reads a benchmark's directory, or its summary.json. Throws UsageError where it is none. */
export function readBenchmark(path: string): Benchmark {
  if (!existsSync(path)) throw new UsageError(`${path}: no such file or directory: name two reports or two benchmarks`)
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

/** What one of two benchmarks lacks, or failed at, and the other did. */
export interface Lack {
  repo: string
  operation: string
  tool: string
  why: string
  /** It is the second that lacks it. */
  worse: boolean
}

const times = ({ samples }: Benchmark, { repo, operation, tool }: Figures) =>
  samples
    .filter((s) => s.round > 0 && s.reason === undefined)
    .filter((s) => s.repo === repo && s.operation === operation && s.tool === tool)
    .map((s) => s.seconds)

/** Operations that one of the two has not done in every round: a figure that is not there is no proof that nothing became slower. */
export function lacking(first: Benchmark, second: Benchmark): Lack[] {
  const keyOf = ({ repo, operation, tool }: Figures) => `${repo}\0${operation}\0${tool}`
  const all = new Map([...first.figures, ...second.figures].map((figures) => [keyOf(figures), figures]))
  return [...all].flatMap(([key, { repo, operation, tool }]) => {
    const [x, y] = [first, second].map(({ figures }) => figures.find((one) => keyOf(one) === key))
    const unable = second.lacks?.[tool]?.[operation]
    const why = (one: Figures | undefined) =>
      !one ? 'not measured' : one.failed.length ? `failed in ${one.failed.join(', ')}` : ''
    const [before, after] = [why(x), why(y)]
    if (before === after) return []
    const text = `${before || 'measured'} → ${unable ?? (after || 'measured')}`
    const more = (y?.failed.length ?? 0) > (x?.failed.length ?? 0)
    return [{ repo, operation, tool, why: text, worse: !unable && after !== '' && (before === '' || !y || more) }]
  })
}

/**
 * Compares what both have measured in as many rounds as show a difference.
 * @param threshold share by which a time may grow, 0.1 for a tenth: a regression's whole interval lies above it
 * @throws UsageError where they have nothing in common, or measured other sources
 */
export function compare(first: Benchmark, second: Benchmark, threshold: number): Change[] {
  const close = Math.abs(first.sourceBytes - second.sourceBytes) <= first.sourceBytes / 100
  if (!close) throw new UsageError(`the sources differ: ${first.sourceBytes} and ${second.sourceBytes} bytes`)
  for (const how of ['cache', 'compression'] as const)
    if (first[how] && second[how] && first[how] !== second[how])
      throw new UsageError(`${how} differs: ${first[how]} and ${second[how]}`)
  const changes = first.figures.flatMap((figures) => {
    const [before, after] = [times(first, figures), times(second, figures)]
    if (before.length < leastRounds || after.length < leastRounds) return []
    const ratio = ratioOf(after, before, first.seed)
    const { repo, operation, tool } = figures
    return [{ repo, operation, tool, ratio, regression: ratio.shown && ratio.low > 1 + threshold }]
  })
  if (!changes.length)
    throw new UsageError(
      `the two have no operation in common that both measured ${leastRounds} times: take --runs ${leastRounds} or more`,
    )
  return changes
}
