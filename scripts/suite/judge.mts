// The release gate's judgement: what a new build does worse than the baseline.

import type { RunReport } from '#lib/report.mts'
import type { Ratio } from '#scripts/benchmarks/stats.mts'
import { type Benchmark, ratioText } from '#scripts/benchmarks/summary.mts'
import { difference } from './collect.mts'
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
 * Compares the verdicts and known gaps of every scenario. A new FAIL, a scenario that the baseline passed and the new
 * build did not, and a known gap that vanished or appeared are objections.
 */
export function judgeScenarios(pairs: readonly Pair[]): Judgement {
  const found: Judgement = { objections: [], notes: [] }
  for (const { scenario, baseline, fresh, reports } of pairs) {
    const text = `${scenario}: ${baseline.verdict} with the baseline, ${fresh.verdict} with the new build${fresh.reason && `: ${fresh.reason}`}`
    if (fresh.verdict === 'FAIL' && baseline.verdict === 'FAIL') found.notes.push(`${text} (not new)`)
    else if (fresh.verdict === 'FAIL' || (fresh.verdict !== baseline.verdict && fresh.verdict !== 'PASS'))
      found.objections.push(text)
    else if (fresh.verdict !== 'PASS') found.notes.push(text)
    else if (baseline.verdict !== 'PASS') found.notes.push(`${text}: better`)
    const [before, after] = reports
    if (!before || !after) continue
    const { gaps, verdicts } = difference(before, after, 1)
    for (const { row, gap, change } of gaps)
      found.objections.push(`${scenario} ${row}: the known gap ${gap} is ${change}`)
    for (const { row, from, to } of verdicts)
      if (row !== 'run' && from === 'PASS' && to !== 'PASS' && fresh.verdict === 'FAIL' && baseline.verdict === 'FAIL')
        found.objections.push(`${scenario} ${row}: ${from} with the baseline, ${to} with the new build`)
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

/**
 * Compares the times of both builds, measured in the same rounds.
 * @param threshold share by which a time may grow: an objection's whole interval lies above it
 */
export function judgeTimes(benchmark: Benchmark, threshold: number): Judgement {
  const found: Judgement = { objections: [], notes: [] }
  for (const { repo, operation, tool, failed, toVykar } of benchmark.figures) {
    for (const why of failed) found.objections.push(`${operation} on ${repo} failed with ${tool}: ${why}`)
    if (tool !== 'baseline' || !toVykar) continue
    const slower = inverse(toVykar)
    const text = `${operation} on ${repo}: time of the new build ÷ baseline ${ratioText(slower)}`
    if (slower.low > 1 + threshold) found.objections.push(text)
    else found.notes.push(text)
  }
  if (!found.objections.length && !found.notes.length)
    found.objections.push('no operation was measured with both builds')
  return found
}
