// What a run of several scripts comes to: a page, JUnit XML of all its cases, the verdict.
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { readJson, writeWhole } from '#lib/files.mts'
import { junit, type RowReport, type RunReport, table } from '#lib/report.mts'
import { duration } from '#lib/terminal.mts'
import { fold, type Verdict } from '#lib/verdict.mts'
import type { SuiteRun, Task } from './runner.mts'
import { callOf } from './scenarios.mts'

/** The line that repeats a task by hand. */
export const byHand = ({ scenario, args }: Pick<Task, 'scenario' | 'args'>): string => `./e2e ${callOf(scenario, args)}`

/** The report that a task has written; undefined where it wrote none. */
export function reportOf({ result }: Task): RunReport | undefined {
  return result?.report ? readJson(result.report.replace(/\.md$/, '.json')) : undefined
}

/** The verdict of the whole: a task without a result is a FAIL, as is a run without tasks, or of two builds. */
export function verdictOfAll(run: SuiteRun): Verdict {
  if (run.replaced) return 'FAIL'
  return fold(run.tasks.map((task) => task.result?.verdict ?? 'FAIL'))
}

/** Rows that were SKIPPED within scenarios that were not: what a PASS of the whole says nothing about. */
export const skippedRows = (run: SuiteRun): string[] =>
  run.tasks.flatMap((task) => {
    if (task.result?.verdict === 'SKIPPED') return []
    const rows = reportOf(task)?.rows.filter(({ verdict }) => verdict === 'SKIPPED') ?? []
    return rows.map(({ repo, variant }) => [task.scenario, repo, variant].filter(Boolean).join(' '))
  })

/** JUnit of all cases: the suites of the reports, and one case for a task that has none. */
export function junitOfAll(run: SuiteRun): string {
  const suites = run.tasks.map((task) => {
    const { verdict, reason, seconds } = task.result ?? { verdict: 'FAIL' as const, reason: 'did not end', seconds: 0 }
    const report = reportOf(task)
    const bare = { scenario: task.scenario, rows: [], verdict, reason, seconds, started: task.begun ?? run.started }
    // A limit that was exceeded is not in the script's own report.
    const whole = report && report.verdict === verdict ? report : { ...(report ?? {}), ...bare }
    return junit(whole as RunReport)
      .split('\n')
      .slice(1)
      .join('\n')
  })
  return `<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="vykar-e2e">\n${suites.join('')}</testsuites>\n`
}

/** Rows of the families of faults: what was tried, what fired, the verdict, and the findings that showed. */
export const faultsOf = (rows: readonly (RowReport & { scenario: string })[]): string[][] =>
  rows
    .filter(({ facts }) => 'faults fired' in facts)
    .map(({ scenario, repo, variant, verdict, facts, findings }) => [
      scenario,
      [repo, variant].filter(Boolean).join(' '),
      String(facts.rounds),
      String(facts['faults fired']),
      verdict,
      findings.map(({ id }) => id).join(', '),
    ])

/** What saw the damage, of each kind of object that was damaged. */
export const sightsOf = (rows: readonly (RowReport & { scenario: string })[]): string[][] =>
  rows.flatMap(({ scenario, variant, facts }) =>
    Object.entries(facts)
      .filter(([name]) => name.endsWith(': seen by'))
      .map(([name, seen]) => [scenario, variant, name.replace(/: seen by$/, ''), String(seen)]),
  )

/** report.md: the verdict first, then every scenario with what repeats it, and what was not run. */
export function pageOfAll(run: SuiteRun): string {
  const rows = run.tasks.map((task) => [
    task.scenario,
    task.result?.verdict ?? 'not ended',
    task.result ? duration(task.result.seconds) : '',
    task.result?.reason ?? '',
    `\`${byHand(task)}\``,
    task.result?.report ?? '',
  ])
  const seen = run.tasks.flatMap((task) =>
    (reportOf(task)?.rows ?? []).map((row) => ({ ...row, scenario: task.scenario })),
  )
  const [faults, sights] = [faultsOf(seen), sightsOf(seen)]
  const left = run.left.map(({ scenario, why }) => `- ${scenario}: ${why}`)
  return [
    `# ${verdictOfAll(run)} ${run.profile || 'selection'} of ${run.started}`,
    table(['scenario', 'verdict', 'time', 'reason', 'by hand', 'report'], rows),
    ...(faults.length
      ? ['## Faults', table(['scenario', 'row', 'rounds', 'fired', 'verdict', 'known findings'], faults)]
      : []),
    ...(sights.length ? ['## What saw the damage', table(['scenario', 'row', 'object', 'seen by'], sights)] : []),
    `## Not run\n\n${left.join('\n') || 'Everything was.'}`,
  ]
    .join('\n\n')
    .concat('\n')
}

/** Writes report.md and junit.xml beside run.json. Returns the page's path. */
export function writeResults(dir: string, run: SuiteRun): string {
  writeWhole(join(dir, 'report.md'), pageOfAll(run))
  writeWhole(join(dir, 'junit.xml'), junitOfAll(run))
  return join(dir, 'report.md')
}

/**
 * How long calls took when `all` ran them the last time.
 * @param all the directory of its runs
 * @returns seconds by call, as `callOf` writes it
 */
export function lastTimes(all: string): Map<string, number> {
  const times = new Map<string, number>()
  for (const entry of existsSync(all) ? readdirSync(all).sort() : []) {
    if (entry === 'latest') continue
    const run = readJson<SuiteRun>(join(all, entry, 'run.json'))
    for (const { scenario, args, result } of run?.tasks ?? [])
      if (result) times.set(callOf(scenario, args), result.seconds)
  }
  return times
}

/**
 * How long the rest of a run takes, if each call takes as long as the last time: `, about 12 min left`; empty where that is known of none.
 * @param elapsed seconds that the n-th call has been under way, 0 for one that is not
 * @param jobs so many are run at the same time
 */
export function timeLeft(
  tasks: readonly Task[],
  times: ReadonlyMap<string, number>,
  elapsed: (n: number) => number,
  jobs: number,
): string {
  const rest = tasks.flatMap((task, n) => {
    if (task.result) return []
    const seconds = times.get(callOf(task.scenario, task.args))
    return [seconds === undefined ? undefined : Math.max(0, seconds - elapsed(n))]
  })
  const known = rest.filter((seconds) => seconds !== undefined)
  if (!known.length) return ''
  // However they are dealt out, the longest is not shared.
  const left = Math.max(known.reduce((sum, seconds) => sum + seconds, 0) / jobs, ...known)
  return `, ${known.length < rest.length ? 'more than' : 'about'} ${duration(left)} left`
}
