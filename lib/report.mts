// The report of one run: report.json, report.md, junit.xml, and a line per row in summary.csv.
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs'
import { arch, cpus, release, totalmem } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import { maskUri } from './address.mts'
import { ask } from './ask.mts'
import { type Attribute, attributes, neverCompared } from './environment.mts'
import { readJson, writeWhole } from './files.mts'
import type { OptionSpecs } from './options.mts'
import type { Plan } from './prepare.mts'
import type { CommandRecord, StepRecord } from './sh.mts'
import { bytes, duration } from './terminal.mts'
import type { Verdict } from './verdict.mts'

/** A known gap as it showed in a row: `seen` with how many differences it explains, or `fixed`. */
export interface GapSeen {
  id: string
  state: 'seen' | 'fixed'
  count: number
  why: string
}

/** A fault of vykar that is listed in configs/known-findings.yaml and showed in a row. */
export interface FindingSeen {
  id: string
  /** What was seen, in one sentence. */
  seen: string
}

/** What became of one repository × variant. */
export interface RowReport {
  repo: string
  variant: string
  verdict: Verdict
  reason: string
  seconds: number
  steps: StepRecord[]
  gaps: GapSeen[]
  findings: FindingSeen[]
  /** What breaks a rule although the row went on: its verdict is FAIL, whatever ends it. */
  violated?: string
  notes: string[]
  facts: Record<string, string | number>
  kept: string[]
}

/** report.json. The version in `schema` goes up when a field changes its meaning or goes away. */
export interface RunReport {
  schema: 'vykar-e2e/report/1'
  scenario: string
  runId: string
  started: string
  seconds: number
  verdict: Verdict
  reason: string
  standin: boolean
  seed: number
  /** The command line, passwords in URIs masked. */
  argv: string[]
  options: Record<string, unknown>
  versions: Record<string, string>
  host: Record<string, string>
  steps: StepRecord[]
  rows: RowReport[]
  notes: string[]
  /** Pictures beside the report, by their title. */
  charts: { title: string; file: string }[]
  leftBehind: string[]
  /** Attributes that the file systems at hand cannot hold, or this user may not set: they were not compared. */
  notCompared: Attribute[]
  transcript: string
  /** What the suite itself cost: seconds in which no command ran, and its own peak memory in KiB. */
  harness: { seconds: number; peakKiB: number }
}

/** What the report says about the machine. */
function describeHost(): Record<string, string> {
  const osRelease = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : ''
  return {
    system: /^PRETTY_NAME="?([^"\n]*)/m.exec(osRelease)?.[1] ?? 'unknown',
    kernel: `${release()} ${arch()}`,
    cpu: `${cpus().length} × ${cpus()[0]?.model.trim() ?? 'unknown'}`,
    memory: `${(totalmem() / 2 ** 30).toFixed(1)} GiB`,
    node: process.version,
    user: process.getuid?.() === 0 ? 'root' : `uid ${process.getuid?.()}`,
  }
}

/** The report of a run that has not come to its end: a FAIL. */
export function emptyReport(plan: Plan<OptionSpecs>, id: string, dry: boolean, transcript: string): RunReport {
  return {
    schema: 'vykar-e2e/report/1',
    scenario: plan.scenario,
    runId: id,
    started: new Date().toISOString(),
    seconds: 0,
    verdict: 'FAIL',
    reason: 'the run did not come to its end',
    standin: plan.vykar.standin,
    seed: plan.common.seed,
    argv: process.argv.slice(2).map(maskUri),
    options: Object.fromEntries(
      Object.entries(plan.options)
        .filter(([, value]) => value && String(value))
        .map(([name, value]) => [name, typeof value === 'string' ? maskUri(value) : value]),
    ),
    versions: { vykar: plan.vykar.version, 'vykar path': plan.vykar.path, ...plan.versions },
    host: dry ? {} : describeHost(),
    steps: [],
    rows: [],
    notes: [...plan.notes],
    charts: [],
    leftBehind: [],
    notCompared: [],
    transcript,
    harness: { seconds: 0, peakKiB: 0 },
  }
}

/** The report with every secret of at least six characters masked, wherever it stands. */
export function withoutSecrets(report: RunReport, secrets: ReadonlySet<string>): RunReport {
  let text = JSON.stringify(report)
  for (const secret of secrets)
    if (secret.length >= 6) text = text.replaceAll(JSON.stringify(secret).slice(1, -1), '***')
  return JSON.parse(text) as RunReport
}

/** Text as XML and HTML have it, in an attribute too. */
export const xml = (text: string): string =>
  text
    .replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]!)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: XML 1.0 has no way to write them
    .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f]/g, '?')

/** JUnit XML: FAIL is a failure, BLOCKED an error, SKIPPED skipped; case names are repository and variant only. */
export function junit(report: RunReport): string {
  const rows = casesOf(report)
  const count = (verdict: Verdict) => rows.filter((row) => row.verdict === verdict).length
  const cases = rows.map((row) => {
    const name = row.variant ? `${row.repo} ${row.variant}` : row.repo
    const tag = { FAIL: 'failure', BLOCKED: 'error', SKIPPED: 'skipped', PASS: '', DEMO: '' }[row.verdict]
    const body = tag ? `<${tag} message="${xml(row.reason)}"/>` : ''
    return `  <testcase classname="${xml(report.scenario)}" name="${xml(name)}" time="${row.seconds.toFixed(3)}">${body}</testcase>`
  })
  return `<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="${xml(report.scenario)}" tests="${rows.length}" failures="${count('FAIL')}" errors="${count('BLOCKED')}" skipped="${count('SKIPPED')}" time="${report.seconds.toFixed(3)}" timestamp="${report.started}">
${cases.join('\n')}
</testsuite>
`
}

/** The rows, or one that stands for the run where it ended before any row, so that no run is without a line. */
function casesOf(report: RunReport): Pick<RowReport, 'repo' | 'variant' | 'verdict' | 'reason' | 'seconds'>[] {
  if (report.rows.length && report.rows.some((row) => row.verdict === report.verdict)) return report.rows
  const { verdict, reason, seconds } = report
  return [...report.rows, { repo: 'run', variant: '', verdict, reason, seconds }]
}

const cell = (text: unknown) => String(text).replaceAll('|', '\\|').replaceAll('\n', ' ')
/** A Markdown table. */
export const table = (head: string[], rows: unknown[][]): string =>
  [head, head.map(() => '---'), ...rows].map((row) => `| ${row.map(cell).join(' | ')} |`).join('\n')

function stepRows(steps: StepRecord[]): unknown[][] {
  return steps.flatMap((step) => [
    [`**${step.name}**`, step.verdict ?? '', duration(step.seconds), '', '', basename(step.log)],
    ...step.commands.map((c) => [
      `\`${c.command.length > 300 ? `${c.command.slice(0, 297)}…` : c.command}\``,
      `exit ${c.code}`,
      duration(c.seconds),
      c.cpuSeconds === undefined ? 'not measured' : `${c.cpuSeconds.toFixed(2)} s`,
      c.peakKiB === undefined ? 'not measured' : bytes(c.peakKiB * 1024),
      '',
    ]),
  ])
}

/** Seconds in which at least one of the commands ran; those that ran side by side count once. */
export function busySeconds(commands: readonly CommandRecord[]): number {
  const spans = commands.map((c) => [c.at / 1000, c.at / 1000 + c.seconds] as const)
  let [busy, until] = [0, 0]
  for (const [from, to] of spans.sort((a, b) => a[0] - b[0])) {
    busy += Math.max(0, to - Math.max(from, until))
    until = Math.max(until, to)
  }
  return busy
}

/**
 * Seconds of a run in which none of its commands ran: what the suite itself takes.
 * @param seconds wall time of the whole run
 */
export function ownSeconds(report: Pick<RunReport, 'steps' | 'rows'>, seconds: number): number {
  const steps = [...report.steps, ...report.rows.flatMap((row) => row.steps)]
  const unlisted = steps.reduce((sum, step) => sum + (step.busySeconds ?? 0), 0)
  return Math.max(0, seconds - unlisted - busySeconds(steps.flatMap((step) => step.commands)))
}

/** report.md: the verdict first, then rows, what was noticed, the environment, and every step with its commands. */
export function markdown(report: RunReport): string {
  const demo = report.standin ? ' (stand-in: this says nothing about vykar)' : ''
  const head = ['step and commands', 'result', 'wall', 'CPU', 'peak memory', 'log']
  const list = (items: string[]) => items.map((item) => `- ${item}`).join('\n') || 'none'
  const gaps = report.rows.flatMap((row) =>
    row.gaps.map((gap) => [row.repo, row.variant, gap.id, gap.state, gap.count, gap.why]),
  )
  const findings = report.rows.flatMap((row) => row.findings.map(({ id, seen }) => [row.repo, row.variant, id, seen]))
  const facts = report.rows.flatMap((row) =>
    Object.entries(row.facts).map(([name, value]) => [row.repo, row.variant, name, value]),
  )
  return [
    `# ${report.verdict} ${report.scenario}${demo}`,
    report.reason || 'Everything held.',
    table(
      ['repository', 'variant', 'verdict', 'reason', 'time'],
      report.rows.map((row) => [row.repo, row.variant, row.verdict, row.reason, duration(row.seconds)]),
    ),
    `## Known gaps seen\n\n${gaps.length ? table(['repository', 'variant', 'gap', 'state', 'differences', 'why'], gaps) : 'none'}`,
    findings.length ? `## Known findings seen\n\n${table(['repository', 'variant', 'finding', 'seen'], findings)}` : '',
    facts.length ? `## Figures\n\n${table(['repository', 'variant', 'what', 'value'], facts)}` : '',
    ...report.charts.map(({ title, file }) => `## ${title}\n\n![${title}](${file})`),
    `## Notes\n\n${list([...report.notes, ...report.rows.flatMap((row) => row.notes.map((note) => `${row.repo} ${row.variant}: ${note}`))])}`,
    `## Left behind or kept\n\n${list([...report.leftBehind, ...report.rows.flatMap((row) => row.kept)])}`,
    `## What was compared\n\n${table(
      ['attributes', 'which'],
      [
        ['compared', attributes.filter((name) => !report.notCompared?.includes(name)).join(', ')],
        ['not compared: the file system or this user cannot hold them', report.notCompared?.join(', ') || 'none'],
        ['compared by nobody', neverCompared.join(', ')],
      ],
    )}`,
    `## Run\n\n${table(
      ['what', 'value'],
      [
        ['run', report.runId],
        ['started', report.started],
        ['took', duration(report.seconds)],
        ['of that the suite itself', `${duration(report.harness.seconds)}, ${bytes(report.harness.peakKiB * 1024)}`],
        ['seed', report.seed],
        ...Object.entries(report.versions),
        ...Object.entries(report.host),
        ['options', JSON.stringify(report.options)],
        ['by hand', report.transcript],
      ],
    )}`,
    report.steps.length ? `## Steps before the rows\n\n${table(head, stepRows(report.steps))}` : '',
    ...report.rows.map(
      (row) => `## Steps: ${row.repo}${row.variant && ` ${row.variant}`}\n\n${table(head, stepRows(row.steps))}`,
    ),
  ]
    .filter(Boolean)
    .join('\n\n')
    .concat('\n')
}

/** Puts a symlink in place, over an earlier one, in one step. */
export function pointTo(link: string, target: string): void {
  const fresh = `${link}.${process.pid}`
  rmSync(fresh, { force: true })
  symlinkSync(target, fresh)
  renameSync(fresh, link)
}

/** Columns of summary.csv. */
export const summaryColumns = 'run_id scenario repo variant status reason seconds vykar_version report_path'.split(' ')

/**
 * Writes the report's files below `<runtime>/reports/<name>/<run id>/`.
 * @param final also append to summary.csv and move `latest`; false for the FAIL that stands there until the run ends
 * @returns the path of report.md
 */
export function writeReport(runtime: string, report: RunReport, final: boolean): string {
  const dir = join(runtime, 'reports', basename(report.scenario), report.runId)
  mkdirSync(dir, { recursive: true })
  const page = join(dir, 'report.md')
  writeWhole(join(dir, 'report.json'), `${JSON.stringify(report, null, 2)}\n`)
  writeWhole(page, markdown(report))
  writeWhole(join(dir, 'junit.xml'), junit(report))
  if (!final) return page
  pointTo(join(dirname(dir), 'latest'), report.runId)
  pointTo(join(dirname(report.transcript), '..', 'latest'), report.runId)
  const summary = join(runtime, 'reports', 'summary.csv')
  const { runId, scenario, versions } = report
  const lines = casesOf(report).map(({ repo, variant, verdict, reason, seconds }) =>
    [runId, scenario, repo, variant, verdict, reason, seconds.toFixed(1), versions.vykar ?? '', page].map(
      (cell) => cell ?? '',
    ),
  )
  if (!existsSync(summary)) writeWhole(summary, stringify([summaryColumns]))
  // One write: O_APPEND keeps the lines of two scripts apart.
  appendFileSync(summary, stringify(lines))
  return page
}

/** Files of a run's logs that hold one of its secrets, and the report itself. Those of fewer than six characters could be any word. */
export async function leakedSecrets(report: RunReport, logs: string, secrets: ReadonlySet<string>): Promise<string[]> {
  const sought = [...secrets].filter((secret) => secret.length >= 6)
  if (!sought.length) return []
  const found = await ask(['grep', '-rlF', '-f', '-', logs], { input: `${sought.join('\n')}\n`, seconds: 3600 })
  const masked = JSON.stringify(report) === JSON.stringify(withoutSecrets(report, new Set(sought))) ? '' : 'the report'
  const unread = found.code > 1 ? `what grep cannot search (exit ${found.code})` : ''
  return [...found.stdout.split('\n'), masked, unread].filter(Boolean)
}

/** The report of the run before, if it had the same options; undefined where there is none. */
export function reportBefore(report: RunReport, reports: string): RunReport | undefined {
  const before = readJson<RunReport>(join(reports, 'latest/report.json'))
  return `${before?.argv}` === `${report.argv}` ? before : undefined
}

/**
 * How long a step takes yet if it takes as long as in the run before, of the same options: `, about 40 s left as the last time`;
 * empty where that is not known, or over.
 * @param where the row's name in its log files
 * @param elapsed seconds
 */
export function leftAsBefore(before: RunReport | undefined, where: string, step: string, elapsed: number): string {
  const row = before?.rows.find(({ repo, variant }) => where === (variant ? `${repo}-${variant}` : repo))
  const steps = where === 'run' ? before?.steps : row?.steps
  const left = (steps?.find(({ name }) => name === step)?.seconds ?? 0) - elapsed
  return left < 1 ? '' : `, about ${duration(left)} left as the last time`
}
