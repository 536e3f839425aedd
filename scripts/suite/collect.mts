// The reports below a runtime directory, and how one run of a scenario differs from another.
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { readJson } from '#lib/files.mts'
import { isRunId, markOurs, removeOurs } from '#lib/ours.mts'
import type { RowReport, RunReport } from '#lib/report.mts'
import type { StepRecord } from '#lib/sh.mts'
import { fold, UsageError } from '#lib/verdict.mts'
import { callOf } from './scenarios.mts'

/** A report and the directory that it lies in. */
export interface Stored {
  dir: string
  report: RunReport
}

const directories = (dir: string) =>
  existsSync(dir)
    ? readdirSync(dir, { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map((entry) => entry.name)
    : []

/** Reads the report of a run's directory, or a report.json. Throws UsageError where it is none. */
export function readReport(path: string): Stored {
  const file =
    existsSync(path) && statSync(path).isDirectory() ? join(path, 'report.json') : path.replace(/\.md$/, '.json')
  const report = readJson<RunReport>(file)
  if (!report) throw new UsageError(`${path}: no report, or a torn one`)
  if (report.schema !== 'vykar-e2e/report/1') throw new UsageError(`${file}: not a report of this version`)
  // Reports of the first versions do not have the command line.
  return { dir: dirname(file), report: { ...report, argv: report.argv ?? [], rows: report.rows ?? [] } }
}

/**
 * All reports of a runtime directory, the newest first. One that is missing, empty or torn is left out, with a note on stderr.
 * @param torn takes the directories of those
 */
export function collect(runtime: string, torn: string[] = []): Stored[] {
  const reports = join(runtime, 'reports')
  return directories(reports)
    .filter((name) => name !== 'all' && name !== 'gate')
    .flatMap((name) =>
      directories(join(reports, name))
        .filter(isRunId)
        .map((run) => join(reports, name, run)),
    )
    .flatMap((dir) => {
      try {
        return [readReport(dir)]
      } catch (error) {
        console.error(`note: left out: ${(error as Error).message}`)
        torn.push(dir)
        return []
      }
    })
    .sort((a, b) => (a.report.runId < b.report.runId ? 1 : -1))
}

/** Options that say where and how a call was run, and not what it proves. */
const namesOfHost = 'runtime|sample|vykar|keep|quiet|verbose|install'
const ofHost = new RegExp(`^--(${namesOfHost})(=|$)`)
/** Of these the ones that stand alone. */
const alone = /^--(keep|quiet|verbose|install|strict-gaps)$/

/** A call by which results of several hosts are told apart: scenario and options, but for those of one host alone. */
export function keyOf({ scenario, argv }: Pick<RunReport, 'scenario' | 'argv'>, left: RegExp = ofHost): string {
  const words: string[] = []
  for (let i = 0; i < argv.length; i++) {
    if (!left.test(argv[i]!)) words.push(argv[i]!)
    else if (!argv[i]!.includes('=') && !alone.test(argv[i]!)) i++
  }
  return callOf(scenario, words)
}

/** Options in which two calls may differ that look at the same thing; which repositories they look at is seen from their rows. */
const namesOfRun = 'repo|seed|services|time-scale|require|wipe-repo|strict-gaps|rest-data-dir'
const ofRun = new RegExp(`^--(${namesOfHost}|${namesOfRun})(=|$)`)

/** What a run has looked at, by which a later run of the same stands for it. */
export const lookedAt = (report: RunReport): string => keyOf(report, ofRun)

/** The file in a report which says that the build was another one's measure, as the gate runs it: it says nothing of the build under test. */
export const measureOnly = 'baseline'

/** Runs that say something of vykar: not those with one that lies, nor with the build that a gate compares with. */
export const honest = (stored: readonly Stored[]): Stored[] =>
  stored.filter(
    ({ dir, report }) =>
      !report.argv.some((word) => /^--sabotage(=|$)/.test(word)) && !existsSync(join(dir, measureOnly)),
  )

/** The file in a report that was taken over which says from which runtime directory: no run of another host stands for one of this. */
const mergedFrom = 'merged-from'
const fromOf = (dir: string) => {
  const file = join(dir, mergedFrom)
  return existsSync(file) ? readFileSync(file, 'utf8').trim() : ''
}

/**
 * What stands, by call and host: its newest run, and of older ones the rows that no later run has looked at. A PASS of one repository takes
 * nothing back that was seen of another, nor one with another seed, or without --strict-gaps, a FAIL. The stand-in's say nothing where there
 * is another.
 * @param stored the newest first
 */
export function standing(stored: readonly Stored[]): Map<string, Stored[]> {
  const found = new Map<string, Stored[]>()
  const all = honest(stored)
  const whose = ({ dir, report }: Stored) => `${lookedAt(report)}\n${fromOf(dir)}`
  for (const call of new Set(all.map(whose))) {
    const runs = all.filter((one) => whose(one) === call)
    const real = runs.filter(({ report }) => !report.standin)
    const seen = new Set<string>()
    const blocked = new Set<string>()
    for (const { dir, report } of real.length ? real : runs) {
      const had = found.get(call)
      const strict = report.argv.includes('--strict-gaps')
      const same = (row: RowReport, how = strict) => `${rowName(row)}, seed ${report.seed}${how ? ', strict' : ''}`
      // A row that was SKIPPED has looked at nothing, and says nothing more where it is there already; one that was BLOCKED takes no FAIL back.
      const rows = report.rows.filter(
        (row) =>
          !seen.has(row.verdict === 'FAIL' ? same(row) : rowName(row)) &&
          !(had && row.verdict === 'SKIPPED') &&
          !(blocked.has(rowName(row)) && row.verdict !== 'FAIL'),
      )
      for (const row of report.rows)
        if (row.verdict === 'BLOCKED') blocked.add(rowName(row))
        else if (row.verdict !== 'SKIPPED')
          for (const name of [rowName(row), same(row), same(row, false)]) seen.add(name)
      const tried = had?.some((one) => one.report.verdict !== 'SKIPPED')
      // Of its own a run fails that left something behind, or came to its end with an error after its rows.
      const failed = report.verdict === 'FAIL' && !report.rows.some(({ verdict }) => verdict === 'FAIL')
      const own = report.leftBehind?.length || failed ? (['FAIL'] as const) : []
      if (!had) found.set(call, [{ dir, report }])
      else if (!report.rows.length && report.verdict === 'FAIL' && !tried) had.push({ dir, report })
      else if (rows.length) {
        const verdict = fold([...rows.map((row) => row.verdict), ...own])
        had.push({ dir, report: { ...report, rows, verdict } })
      }
    }
  }
  return found
}

/** A word without the quotes that `quote` has put around it. */
const unquote = (word: string) =>
  word.replace(/\$?'((?:[^'\\]|\\.)*)'/g, (whole, inner) =>
    whole.startsWith('$') ? inner.replace(/\\(.)/g, '$1') : inner,
  )

/** The same of a line that `all.mts --list` has printed. Words are split as a shell would split what `callOf` writes. */
export function keyOfLine(line: string): string {
  const [scenario = '', ...argv] = [...line.matchAll(/(?:\$?'(?:[^'\\]|\\.)*'|[^\s'])+/g)].map(([word]) =>
    unquote(word),
  )
  return keyOf({ scenario, argv })
}

/** The newest run of each scenario, or of what else `by` tells apart, and the one before it. */
export function newest(
  stored: readonly Stored[],
  by: (report: RunReport) => string = ({ scenario }) => scenario,
): Map<string, { now: Stored; before: Stored | undefined }> {
  const found = new Map<string, { now: Stored; before: Stored | undefined }>()
  for (const one of stored) {
    const had = found.get(by(one.report))
    if (!had) found.set(by(one.report), { now: one, before: undefined })
    else had.before ??= one
  }
  return found
}

/** A row's name within its scenario; it never changes, so that runs can be compared by it. */
export const rowName = ({ repo, variant }: Pick<RowReport, 'repo' | 'variant'>): string =>
  variant ? `${repo} ${variant}` : repo

/** How a run differs from another one of the same scenario. */
export interface RunDifference {
  verdicts: { row: string; from: string; to: string }[]
  /** Known gaps that show in only one of the two. */
  gaps: { row: string; gap: string; change: 'new' | 'gone' }[]
  /** The same of known findings. */
  findings: { row: string; finding: string; change: 'new' | 'gone' }[]
  /** Steps that took longer or shorter: seconds in both. One run each says nothing sure about times. */
  steps: { row: string; step: string; from: number; to: number }[]
}

/** Shorter steps are not compared. */
const leastSeconds = 1

/**
 * Compares two runs of a scenario.
 * @param threshold share by which a step's time may differ, 0.25 for a quarter
 */
export function difference(a: RunReport, b: RunReport, threshold: number): RunDifference {
  const found: RunDifference = { verdicts: [], gaps: [], findings: [], steps: [] }
  const rowsOf = (report: RunReport) => new Map(report.rows.map((row) => [rowName(row), row]))
  const [first, second] = [rowsOf(a), rowsOf(b)]
  if (a.verdict !== b.verdict) found.verdicts.push({ row: 'run', from: a.verdict, to: b.verdict })
  for (const row of new Set([...first.keys(), ...second.keys()])) {
    const [x, y] = [first.get(row), second.get(row)]
    if (x?.verdict !== y?.verdict)
      found.verdicts.push({ row, from: x?.verdict ?? 'not run', to: y?.verdict ?? 'not run' })
    if (!x || !y) continue
    const gaps = (r: RowReport) => new Set(r.gaps.filter((gap) => gap.state === 'seen').map((gap) => gap.id))
    for (const gap of gaps(y)) if (!gaps(x).has(gap)) found.gaps.push({ row, gap, change: 'new' })
    for (const gap of gaps(x)) if (!gaps(y).has(gap)) found.gaps.push({ row, gap, change: 'gone' })
    const [had, has] = [x, y].map((r) => new Set(r.findings.map(({ id }) => id))) as [Set<string>, Set<string>]
    for (const finding of has) if (!had.has(finding)) found.findings.push({ row, finding, change: 'new' })
    for (const finding of had) if (!has.has(finding)) found.findings.push({ row, finding, change: 'gone' })
    const times = (steps: StepRecord[]) => new Map(steps.map((step) => [step.name, step.seconds]))
    for (const [step, from] of times(x.steps)) {
      const to = times(y.steps).get(step)
      if (to === undefined || Math.max(from, to) < leastSeconds) continue
      if (Math.max(from, to) / Math.min(from, to) > 1 + threshold) found.steps.push({ row, step, from, to })
    }
  }
  return found
}

/**
 * Copies the reports of other runtime directories into one; a run that is there already stays.
 * @returns what was copied
 * @throws UsageError where a directory holds no reports
 */
export function merge(runtimes: readonly string[], into: string): Stored[] {
  const copied: Stored[] = []
  for (const runtime of runtimes) {
    if (!existsSync(join(runtime, 'reports')))
      throw new UsageError(`${runtime} is no runtime directory: it has no reports/`)
    for (const { dir } of collect(runtime)) {
      const target = join(into, 'reports', basename(dirname(dir)), basename(dir))
      if (existsSync(target)) continue
      // Beside, and renamed: a copy that was cut short is not there.
      const beside = `${target}.copying`
      mkdirSync(dirname(target), { recursive: true })
      cpSync(dir, beside, { recursive: true })
      if (!existsSync(join(beside, mergedFrom))) writeFileSync(join(beside, mergedFrom), `${resolve(runtime)}\n`)
      renameSync(beside, target)
      // Taken over, it is this runtime directory's.
      markOurs(into, [target])
      copied.push(readReport(target))
    }
  }
  return copied
}

/**
 * Removes the reports and logs of runs that began before a moment, except what stands: of each call the newest, and what no later run has
 * looked at. Only what this suite has made there goes.
 * @param before ISO 8601
 * @returns the run ids, and why some were left
 */
export async function pruneRuns(runtime: string, before: string): Promise<{ gone: string[]; left: string[] }> {
  const torn: string[] = []
  const all = collect(runtime, torn)
  const stay = new Set([...newest(all).values()].map(({ now }) => now.dir))
  for (const { dir } of [...standing(all).values()].flat()) stay.add(dir)
  const old = all.filter(({ dir, report }) => !stay.has(dir) && report.started < before)
  const done: { gone: string[]; left: string[] } = { gone: [], left: [] }
  // A torn report tells no time; the run's id does.
  const gone = torn.filter((dir) => basename(dir) < before.replace(/[-:]|\.\d+/g, ''))
  for (const dir of [...old.map((one) => one.dir), ...gone]) {
    const [scenario, run] = [basename(dirname(dir)), basename(dir)]
    try {
      await removeOurs(runtime, dir)
      await removeOurs(runtime, join(runtime, 'logs', scenario, run))
      done.gone.push(run)
    } catch (error) {
      done.left.push((error as Error).message)
    }
  }
  return done
}
