// From samples to figures: per backend, operation and tool, with spread, and the ratio to vykar.
import { pairedRatio, type Ratio, type Summary, summary } from '#scripts/benchmarks/stats.mts'
import type { Sample } from './measure.mts'
import { type Compression, type Lacks, type Operation, operations, tools } from './tools.mts'

/** The figures of one tool at one operation. */
export interface Figures {
  repo: string
  operation: Operation
  tool: string
  /** Rounds that failed; they enter no figure. */
  failed: string[]
  seconds: Summary
  /** Source bytes per second; init has no source. */
  throughput?: Summary
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
  /** What each tool says of its repository at the end, by backend and tool. */
  says?: Record<string, string>
  /** Tools that were asked for and could not be run, and why. */
  missing: Record<string, string>
  /** Operations that a version of a tool cannot do, and why, by tool. */
  lacks?: Record<string, Lacks>
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
          throughput: operation === 'init' ? undefined : summary(good.map((s) => sourceBytes / s.seconds)),
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

const times = (n: number) => `${n >= 10 ? n.toFixed(0) : n.toFixed(1)} times`

/** The result in sentences, one for each backend and tool: at what vykar is faster, slower, and where no difference is shown. */
export function resultOf(b: Benchmark): string[] {
  const pairs = new Set(b.figures.filter((f) => f.tool !== 'vykar').map(({ repo, tool }) => `${repo}\0${tool}`))
  return [...pairs].map((pair) => {
    const [repo, tool] = pair.split('\0') as [string, string]
    const mine = b.figures.filter((f) => f.repo === repo && f.tool === tool && f.toVykar)
    if (!mine.length) return `On ${repo} nothing can be said of vykar and ${tool}: it takes two rounds at least.`
    const named = (of: Figures[], ratio: (r: Ratio) => number) =>
      of.map((f) => `${f.operation} (${times(ratio(f.toVykar!))})`).join(', ')
    const faster = mine.filter(({ toVykar }) => toVykar!.shown && toVykar!.ratio > 1)
    const slower = mine.filter(({ toVykar }) => toVykar!.shown && toVykar!.ratio < 1)
    const open = mine.filter(({ toVykar }) => !toVykar!.shown)
    const parts = [
      ...(faster.length ? [`vykar is faster than ${tool} at ${named(faster, (r) => r.ratio)}`] : []),
      ...(slower.length ? [`slower than ${tool} at ${named(slower, (r) => 1 / r.ratio)}`] : []),
      ...(open.length ? [`no difference to ${tool} is shown for ${open.map((f) => f.operation).join(', ')}`] : []),
    ]
    const said = parts.join('; ').replace(/^slower/, 'vykar is slower')
    return `On ${repo} ${said}.`
  })
}
