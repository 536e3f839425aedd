// The release gate's judgement: what a new build does worse than the baseline.

import type { RunReport } from '#lib/report.mts'
import { type Ratio, ratioOf } from '#scripts/benchmarks/stats.mts'
import { type Benchmark, ratioText } from '#scripts/benchmarks/summary.mts'
import { chanceFindings } from '#scripts/findings.mts'
import { difference, rowName } from './collect.mts'
import type { Result } from './runner.mts'

/** One scenario, run with both builds. */
export interface Pair {
  scenario: string
  baseline: Result
  fresh: Result
  /** Their reports, where they wrote one. */
  reports: [baseline: RunReport | undefined, fresh: RunReport | undefined]
}

/** What was found: any objection means that the build does not ship. */
export interface Judgement {
  objections: string[]
  notes: string[]
}

/**
 * Where and how a run failed, without what differs from run to run (ids, times, process numbers, paths of logs): each row that did not
 * pass and each step that did not end well, with its reason, and what was left behind. Exit codes and counts stay.
 */
const failureOf = ({ reason }: Result, report: RunReport | undefined): string => {
  const bad = ({ verdict }: { verdict?: string | undefined }) => verdict && verdict !== 'PASS'
  const rows = (report?.rows ?? [])
    .filter(bad)
    .flatMap((row) => [
      `${rowName(row)} ${row.verdict}: ${row.reason}`,
      ...row.steps.filter(bad).map((step) => `${rowName(row)} ${step.name}: ${step.reason}`),
    ])
  const run = (report?.steps ?? []).filter(bad).map((step) => `${step.name}: ${step.reason}`)
  const all = [...rows, ...run, ...(report?.leftBehind ?? []).map((what) => `left behind: ${what}`)]
  const passing =
    /\(log: [^)]*\)|\b\d{8}T\d{6}Z-\w+|\b[0-9a-f]{8,}\b(?! (?:bytes|files|chunks)\b)|\b\d+(\.\d+)? (ms|s|min|h)\b|\d+:\d+|(?<=process |left behind: (?:[^;]*; )*)\d+/g
  return (all.length ? all.join('; ') : reason).replace(passing, '')
}

/** Bytes read beyond which a new build reads more than the baseline: half as much again, and 4 MiB of caches and index. */
const readMost = (before: number) => before * 1.5 + 4 * 2 ** 20

/** What a backup of an unchanged tree has read, of which rows that measure it have a fact; more than the baseline is an objection. */
function judgeReads(scenario: string, before: RunReport, after: RunReport, found: Judgement): void {
  for (const row of after.rows) {
    const old = before.rows.find((one) => rowName(one) === rowName(row))
    for (const [name, now] of Object.entries(row.facts)) {
      const was = old?.facts[name]
      if (!name.endsWith(': read (bytes)') || typeof now !== 'number' || typeof was !== 'number') continue
      const text = `${scenario} ${rowName(row)}: ${name} ${now} with the new build, ${was} with the baseline`
      if (now > readMost(was)) found.objections.push(text)
    }
  }
}

/**
 * Compares the verdicts, rows and known gaps of every scenario. A FAIL is an objection unless the baseline fails in the same step for
 * the same reason; so is what the baseline passed and the new build did not, a row without a verdict in either build, a known gap or
 * finding that vanished or appeared.
 */
export function judgeScenarios(pairs: readonly Pair[]): Judgement {
  const found: Judgement = { objections: [], notes: [] }
  const chance = chanceFindings()
  for (const { scenario, baseline, fresh, reports } of pairs) {
    const [before, after] = reports
    const text = `${scenario}: ${baseline.verdict} with the baseline, ${fresh.verdict} with the new build${fresh.reason && `: ${fresh.reason}`}`
    if (fresh.verdict === 'FAIL' && baseline.verdict === 'FAIL' && !(before?.rows.length && after?.rows.length))
      found.objections.push(`${text}; no row of it was run: nothing is known of it with either build`)
    else if (fresh.verdict === 'FAIL' && baseline.verdict === 'FAIL') {
      if (failureOf(baseline, before) === failureOf(fresh, after))
        found.notes.push(`${text} (not new: the same step and reason)`)
      else found.objections.push(`${text}; the baseline failed otherwise: ${baseline.reason}`)
    } else if (fresh.verdict === 'FAIL' || (fresh.verdict !== baseline.verdict && fresh.verdict !== 'PASS'))
      found.objections.push(text)
    else if (fresh.verdict === 'BLOCKED') found.objections.push(`${text}; nothing is known of it with either build`)
    else if (fresh.verdict !== 'PASS') found.notes.push(text)
    else if (baseline.verdict !== 'PASS') found.notes.push(`${text}: better`)
    if (!before || !after) continue
    const { gaps, verdicts } = difference(before, after, 1)
    for (const { row, gap, change } of gaps)
      found.objections.push(`${scenario} ${row}: the known gap ${gap} is ${change}`)
    for (const { row, from, to } of verdicts)
      if (row !== 'run' && ((from === 'PASS' && to !== 'PASS') || [from, to].includes('not run') || from === 'BLOCKED'))
        found.objections.push(`${scenario} ${row}: ${from} with the baseline, ${to} with the new build`)
    for (const row of after.rows)
      if (
        row.verdict === 'BLOCKED' &&
        before.rows.some((old) => rowName(old) === rowName(row) && old.verdict === 'BLOCKED')
      )
        found.objections.push(
          `${scenario} ${rowName(row)}: BLOCKED with both builds, nothing is known of it: ${row.reason}`,
        )
      else if (row.verdict === 'SKIPPED') found.notes.push(`${scenario} ${rowName(row)}: SKIPPED: ${row.reason}`)
    judgeReads(scenario, before, after, found)
    // By scenario: which of its rows shows what a moment decides is chance.
    const findings = (report: RunReport) => [...new Set(report.rows.flatMap((row) => row.findings.map(({ id }) => id)))]
    const [had, has] = [findings(before), findings(after)]
    for (const [these, those, how] of [[has, had, 'appeared'], [had, has, 'vanished']] as const) // biome-ignore format: one line
      for (const id of these.filter((one) => !those.includes(one)))
        (chance.includes(id) ? found.notes : found.objections).push(`${scenario}: the known finding ${id} ${how}`)
  }
  if (!pairs.some(({ fresh }) => fresh.verdict === 'PASS'))
    found.objections.push('no scenario passed with the new build')
  return found
}

/** Turns a ratio over. */
const inverse = ({ ratio, low, high, shown }: Ratio): Ratio => ({
  ratio: 1 / ratio,
  low: 1 / high,
  high: 1 / low,
  shown,
})

/** What is judged beside times, and what it is called. */
const sizes = { repositoryBytes: 'repository size', peakBytes: 'peak memory' } as const

/**
 * Compares the times, repository sizes and peak memory of both builds, measured in the same rounds. What only one of them could do is
 * an objection.
 * @param threshold share by which a figure may grow: an objection's whole interval lies above it, or above 1 with a median of 1.5
 */
export function judgeTimes(benchmark: Benchmark, threshold: number): Judgement {
  const found: Judgement = { objections: [], notes: [] }
  for (const { repo, operation, tool, failed, toVykar } of benchmark.figures) {
    for (const why of failed) found.objections.push(`${operation} on ${repo} failed with ${tool}: ${why}`)
    // What takes a moment is not judged by its time.
    if (tool !== 'baseline' || !toVykar || operation === 'init') continue
    const slower = inverse(toVykar)
    const text = `${operation} on ${repo}: time of the new build ÷ baseline ${ratioText(slower)}`
    // With five rounds the interval begins at the luckiest of them: half as slow again in the middle is no luck.
    const slow = slower.low > 1 + threshold || (slower.low > 1 && slower.ratio > 1.5)
    if (slower.shown && slow) found.objections.push(text)
    else found.notes.push(text)
  }
  const both = (name: string) => benchmark.figures.filter(({ tool }) => tool === name)
  for (const old of both('baseline')) {
    const fresh = both('vykar').find(({ repo, operation }) => repo === old.repo && operation === old.operation)
    const where = `${old.operation} on ${old.repo}`
    if (!fresh?.seconds.n && old.seconds.n) found.objections.push(`${where}: only the baseline could do it`)
    if (!fresh) continue
    for (const [key, name] of Object.entries(sizes) as [keyof typeof sizes, string][]) {
      const figuresOf = (tool: string) =>
        benchmark.samples
          .filter(
            (s) => s.round > 0 && !s.reason && s.tool === tool && s.repo === old.repo && s.operation === old.operation,
          )
          .flatMap((s) => (key === 'peakBytes' ? (s.peakKiB ?? []) : (s.repositoryBytes ?? [])))
      const [mine, its] = [figuresOf('vykar'), figuresOf('baseline')]
      if (mine.length < 2 || its.length < 2) continue
      const ratio = ratioOf(mine, its, benchmark.seed)
      // What a build stores and takes is no matter of luck, as its times are: two rounds show it.
      const larger = ratio.low > 1 + threshold
      const text = `${where}: ${name} of the new build ÷ baseline ${ratioText({ ...ratio, shown: ratio.shown || larger })}`
      if (larger) found.objections.push(text)
      else if (ratio.shown) found.notes.push(text)
    }
  }
  if (!found.objections.length && !found.notes.length)
    found.objections.push('no operation was measured with both builds')
  return found
}
