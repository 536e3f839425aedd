// From samples to figures: per backend, operation and tool, with spread, and the ratio to vykar.
import { pairedRatio, type Ratio, type Summary, summary } from '#scripts/benchmarks/stats.mts'
import type { Sample } from './measure.mts'
import { type Compression, type Operation, operations, tools } from './tools.mts'

/** The figures of one tool at one operation. */
export interface Figures {
  repo: string
  operation: Operation
  tool: string
  /** Rounds that failed; they enter no figure. */
  failed: string[]
  seconds: Summary
  /** Source bytes per second. */
  throughput: Summary
  cpuSeconds?: Summary
  peakBytes?: Summary
  repositoryBytes?: Summary
  readBytes?: Summary
  writtenBytes?: Summary
  /** Time of this tool ÷ time of vykar, over the rounds in which both succeeded; undefined for vykar itself. */
  toVykar?: Ratio
}

/** The ceilings that are measured beside the tools. */
export const ceilingNames = ['copying the source (cp, sync)', 'reading the source (cat)'] as const

/** summary.json: all that `report.mts compare` needs. The version goes up when a field changes its meaning. */
export interface Benchmark {
  schema: 'vykar-e2e/benchmark/1'
  started: string
  seed: number
  runs: number
  cache: string
  compression: Compression
  sourceBytes: number
  versions: Record<string, string>
  host: Record<string, string>
  /** What the disk and the file system can do, measured in the same rounds. */
  ceilings: { what: string; seconds: Summary; throughput: number }[]
  /** Tools that were asked for and could not be run, and why. */
  missing: Record<string, string>
  figures: Figures[]
  samples: Sample[]
}

const defined = (values: (number | undefined)[]) => {
  const known = values.filter((value) => value !== undefined)
  return known.length ? summary(known) : undefined
}

/**
 * Summarises the samples of the measured rounds.
 * @param sourceBytes of the source, for the throughput
 */
export function figuresOf(samples: Sample[], sourceBytes: number, seed: number): Figures[] {
  const measured = samples.filter((sample) => sample.round > 0)
  const found: Figures[] = []
  for (const repo of new Set(measured.map((sample) => sample.repo)))
    for (const operation of operations)
      for (const tool of Object.keys(tools).filter((name) =>
        measured.some((s) => s.repo === repo && s.tool === name),
      )) {
        const of = (name: string) =>
          measured.filter((s) => s.repo === repo && s.operation === operation && s.tool === name)
        const good = of(tool).filter((s) => s.reason === undefined)
        const failed = of(tool).flatMap((s) => (s.reason === undefined ? [] : [`round ${s.round}: ${s.reason}`]))
        if (!good.length && !failed.length) continue
        const peers = of('vykar').filter((s) => s.reason === undefined)
        const both = good.flatMap((s) =>
          peers.filter((p) => p.round === s.round).map((p) => [s.seconds, p.seconds] as const),
        )
        const cpu = good.map((s) => (s.userSeconds === undefined ? undefined : s.userSeconds + s.systemSeconds!))
        const seconds = summary(good.map((s) => s.seconds))
        found.push({
          repo,
          operation,
          tool,
          failed,
          seconds,
          throughput: summary(good.map((s) => sourceBytes / s.seconds)),
          cpuSeconds: defined(cpu),
          peakBytes: defined(good.map((s) => (s.peakKiB === undefined ? undefined : s.peakKiB * 1024))),
          repositoryBytes: defined(good.map((s) => s.repositoryBytes)),
          readBytes: defined(good.map((s) => s.readBytes)),
          writtenBytes: defined(good.map((s) => s.writtenBytes)),
          toVykar:
            tool === 'vykar' || both.length < 2
              ? undefined
              : pairedRatio(
                  both.map(([mine]) => mine),
                  both.map(([, its]) => its),
                  seed,
                ),
        })
      }
  return found
}

/** A ratio in words: `1.32 (1.20 to 1.51)`, with what an interval around 1 means. */
export const ratioText = ({ ratio, low, high, shown }: Ratio) =>
  `${ratio.toFixed(2)} (${low.toFixed(2)} to ${high.toFixed(2)})${shown ? '' : ', no difference shown'}`
