// A row: one repository × variant with its own directory, config, lock, verdict and cleanup.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Cleanup, removeBelow } from './cleanup.mts'
import { fill, masked, type Repository } from './config.mts'
import { lock } from './lock.mts'
import { root } from './prepare.mts'
import { end, processesOf } from './process.mts'
import type { RowReport } from './report.mts'
import type { Run } from './run.mts'
import { $, scope as currentScope, type Scope, type Shell, within } from './sh.mts'
import { runStep } from './step.mts'
import { Interrupted, messageOf, Refused, verdictOf } from './verdict.mts'

/** Which repository and variant a row is, and what its config is made of. */
export interface RowSpec {
  repo: string
  variant?: string
  /** Name of the fragment below configs/, the script's own unless told. */
  fragment?: string
  /** Values for the fragment's `${NAME}`. */
  values?: Record<string, string>
  /** More keys for the repositories of the config. */
  repository?: Record<string, unknown>
}

/** What a row's procedure gets. */
export interface Row {
  $: Shell
  /** Runs a named part of the procedure: one log, one line of progress. */
  step: <T>(name: string, fn: () => Promise<T>) => Promise<T>
  /** The row's config file. */
  config: string
  /** The row's own directory, where its commands run. */
  dir: string
  repository: Repository
  /** The directory in which the repository's files can be seen; undefined for a server that is not ours. */
  files: string | undefined
  report: RowReport
  cleanup: Cleanup
}

/** A scope that knows its row, for the helpers in lib. */
export interface RowScope extends Scope {
  row: Row
  run: Run
}

/** The row that is under way. Throws outside of a row. */
export function rowScope(): RowScope {
  const current = currentScope() as Partial<RowScope> & Scope
  if (!current.row || !current.run) throw new Error('this can only be used inside a row')
  return current as RowScope
}

/** Runs `fn` as a row. A failure ends the row and not the run, except a refusal and an interruption. */
export async function runRow(run: Run, spec: RowSpec, fn: (row: Row) => Promise<void>): Promise<void> {
  if (run.interrupted) throw new Interrupted(run.interrupted)
  const where = spec.variant ? `${spec.repo}-${spec.variant}` : spec.repo
  const dir = join(run.dirs.work, where)
  const report: RowReport = {
    repo: spec.repo,
    variant: spec.variant ?? '',
    verdict: 'FAIL',
    reason: 'the row did not come to its end',
    seconds: 0,
    steps: [],
    gaps: [],
    notes: [],
    facts: {},
    kept: [],
  }
  run.report.rows.push(report)
  const { url, files } = run.endpoint(spec.repo)
  const cleanup = new Cleanup()
  const row: Row = {
    $,
    config: join(dir, 'config.yaml'),
    dir,
    repository: { label: spec.repo, url },
    files,
    report,
    cleanup,
    step: (name, body) => runStep(scope, report.steps, run.terminal, run.aborted, name, body),
  }
  const scope: RowScope = Object.assign(run.scope(where, dir), { row, run })
  const start = performance.now()
  try {
    const unavailable = run.unavailable.get(spec.repo)
    if (unavailable) throw unavailable
    if (!run.dry) {
      cleanup.add('lock', await lock(url, `repository ${url}`))
      mkdirSync(dir, { recursive: true })
      cleanup.add(dir, () => run.keep(dir) || removeBelow(run.dirs.work, dir), true)
    }
    run.transcript.beginRow(where, dir)
    if (files) run.transcript.relocate(files, `repository-${spec.repo}`)
    writeConfig(run, row, spec)
    await within(scope, () => fn(row))
    report.verdict = run.plan.vykar.standin ? 'DEMO' : 'PASS'
    report.reason = ''
  } catch (error) {
    report.verdict = verdictOf(error)
    report.reason = messageOf(error)
    if (run.dry || error instanceof Refused || error instanceof Interrupted) throw error
    report.notes.push(...(await run.blame(spec.repo)))
  } finally {
    await endRow(run, scope, report, cleanup)
    report.seconds = (performance.now() - start) / 1000
    if (report.reason && report.reason !== report.steps.at(-1)?.reason)
      run.terminal.line(`  ${where.padEnd(14)} ${report.verdict}: ${report.reason}`)
  }
}

/** What is still alive is ended and, unless the row was out of time anyway, a FAIL; then everything is undone. */
async function endRow(run: Run, scope: Scope, report: RowReport, cleanup: Cleanup): Promise<void> {
  const fail = (reason: string) => {
    report.verdict = 'FAIL'
    report.reason ||= reason
    run.report.leftBehind.push(`${scope.where}: ${reason}`)
  }
  const left = run.dry ? [] : await end(() => processesOf(run.id))
  const names = left.map((p) => `${p.pid} ${p.command.slice(0, 120)}`).join('; ')
  if (left.length && report.verdict === 'BLOCKED') report.notes.push(`ended what the step had left: ${names}`)
  else if (left.length && !run.interrupted) fail(`processes were left behind: ${names}`)
  const good = report.verdict === 'PASS' || report.verdict === 'DEMO' || run.interrupted !== undefined
  const { kept, failures } = await run.tidy(scope, () => cleanup.unwind(!good))
  report.kept.push(...kept)
  for (const failure of failures) fail(`left behind: ${failure}`)
}

/** Writes the row's config, with every repository of the run, and publishes it below `configs/`. */
function writeConfig(run: Run, row: Row, spec: RowSpec): void {
  const file = join(root, 'configs', `${spec.fragment ?? run.plan.name}.yaml`)
  const fragment = fill(readFileSync(file, 'utf8'), spec.values ?? {})
  const repositories = run.repos.map((label) => {
    const endpoint = run.endpoint(label)
    return { label, ...endpoint, set: { ...endpoint.set, ...spec.repository } }
  })
  const text = run.plan.sample.compose(repositories, fragment, file, join(row.dir, 'cache'))
  run.transcript.write(row.config, masked(text))
  if (run.dry) return
  writeFileSync(row.config, text, { mode: 0o600 })
  mkdirSync(join(run.runtime, 'configs'), { recursive: true })
  writeFileSync(join(run.runtime, 'configs', `config.${run.plan.name}.yaml`), text, { mode: 0o600 })
}
