// A row: one repository × variant with its own directory, lock, verdict and undoing.
import { copyFileSync, existsSync, mkdirSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { lock } from './lock.mts'
import { end, processesOf } from './process.mts'
import type { RowReport } from './report.mts'
import type { Run } from './run.mts'
import { endStep, execute, type Scope, within } from './sh.mts'
import { quote } from './transcript.mts'
import { Blocked, Interrupted, Mismatch, messageOf, Refused, Skipped, verdictOf } from './verdict.mts'

/** One repository × variant. A failure ends the row and not the run, except a refusal and an interruption. */
export async function runRow(
  run: Run,
  spec: string | { repo: string; variant?: string },
  fn: () => Promise<void>,
): Promise<void> {
  const { repo, variant = '' } = typeof spec === 'string' ? { repo: spec } : spec
  if (run.interrupted) throw new Interrupted(run.interrupted)
  endStep(run.top)
  const report: RowReport = {
    ...{ repo, variant, verdict: 'FAIL', reason: 'the row did not come to its end' },
    ...{ seconds: 0, steps: [], gaps: [], findings: [], notes: [], facts: {}, kept: [] },
  }
  run.report.rows.push(report)
  const where = variant ? `${repo}-${variant}` : repo
  const scope = Object.assign(run.scope(where, where, report.steps), { report, repo })
  const start = performance.now()
  try {
    const unavailable = run.unavailable.get(repo)
    if (unavailable) throw unavailable
    if (!run.dry) {
      const { url } = run.endpoint(repo)
      scope.undo.add('lock', await lock(url, `repository ${url}`))
      mkdirSync(scope.dir)
      const gone = () => within(scope, () => run.remove(scope.dir))
      scope.undo.add(scope.dir, gone, { keep: true })
    }
    await Promise.race([within(scope, fn), run.aborted])
    endStep(scope)
    report.verdict = run.plan.vykar.standin ? 'DEMO' : 'PASS'
    report.reason = ''
  } catch (caught) {
    const lacks = caught instanceof Skipped && run.common.require.includes('all')
    const error = lacks
      ? new Mismatch(`required, but skipped: ${messageOf(caught)}`)
      : await reasonOf(run, caught, scope)
    endStep(scope, error)
    report.verdict = verdictOf(error)
    report.reason = messageOf(error)
    if (run.dry || error instanceof Refused || error instanceof Interrupted) throw error
  } finally {
    if (report.violated && !report.reason.includes(report.violated)) {
      report.reason = `${report.violated}${report.reason && `; then ${report.verdict}: ${report.reason}`}`
      report.verdict = 'FAIL'
    }
    scope.over = true
    await endRow(run, { ...scope, over: false }, report)
    report.seconds = (performance.now() - start) / 1000
    if (report.reason && report.reason !== report.steps.at(-1)?.reason)
      run.terminal.line(`  ${where.padEnd(14)} ${report.verdict}: ${report.reason}`)
  }
}

/** Why a row failed: what it says itself, unless its disk ran full or its source changed meanwhile, which is no fault of vykar. */
async function reasonOf(run: Run, error: unknown, scope: Scope): Promise<unknown> {
  if (run.dry || run.interrupted || error instanceof Refused) return error
  if ((error as NodeJS.ErrnoException).code === 'ENOSPC') return new Blocked(`no space is left: ${messageOf(error)}`)
  if (!(error instanceof Mismatch || error instanceof Blocked)) return error
  const alive = { ...scope, over: false }
  const blame = run.endpoint(scope.repo!).blame
  if (blame) scope.report!.notes.push(...(await within(alive, blame).catch((failed) => [messageOf(failed)])))
  if (!(error instanceof Mismatch)) return error
  const changed = await within(alive, () => sourceChanged(run)).catch(() => undefined)
  return changed?.named ? new Blocked(`${changed.text}; seen: ${messageOf(error)}`) : error
}

/** The first entry of a watched source that is not what it was; undefined where all are. */
export async function sourceChanged(run: Run): Promise<{ text: string; named: boolean } | undefined> {
  for (const [n, { path, named }] of run.watched.entries()) {
    const [was, is] = [`source-${n}`, `after-${n}`].map((name) => quote(join(run.dirs.work, name)))
    // What cannot be read any more has changed at its top.
    const line = `find ${quote(path)} ${witnessFormat} | LC_ALL=C sort -z > ${is} || { printf '/. /d '; exit; }
LC_ALL=C comm -z3 ${was} ${is} | head -z -n 1 | tr -d '\\t\\0'`
    const { stdout } = await execute(line, { limit: '30m', expect: 'any' }, false)
    const entry = /^\/(.*) \/[a-z] /s.exec(stdout)?.[1]
    if (entry !== undefined) return { named, text: `the source changed while it was tested: ${join(path, entry)}` }
  }
  return undefined
}

/** What is still alive is ended and, unless it was the row's own, a FAIL; then everything is undone. */
async function endRow(run: Run, scope: Scope, report: RowReport): Promise<void> {
  const fail = (reason: string) => {
    report.verdict = 'FAIL'
    report.reason ||= reason
    run.report.leftBehind.push(`${scope.where}: ${reason}`)
  }
  const own = scope.running.filter((one) => one.running())
  await run.tidy(scope, () => Promise.all(own.map((one) => one.end('TERM', '3s'))))
  const left = run.dry ? [] : await end(() => processesOf(run.id))
  const names = left.map((p) => `${p.pid} ${p.command.slice(0, 120)}`).join('; ')
  if (left.length && report.verdict === 'BLOCKED') report.notes.push(`ended what the step had left: ${names}`)
  else if (left.length && !run.interrupted) fail(`processes were left behind: ${names}`)
  saveFiles(run, scope)
  const good = ['PASS', 'DEMO', 'SKIPPED'].includes(report.verdict) || run.interrupted !== undefined
  for (const failure of await run.unwind(scope, good, report.kept)) fail(`left behind: ${failure}`)
}

/** What commands have written down in the row's directory, beside its logs. */
function saveFiles(run: Run, { dir, where }: Scope): void {
  if (run.dry || !existsSync(dir)) return
  try {
    const files = readdirSync(dir, { withFileTypes: true }).filter(
      (f) => f.isFile() && /\.(out|list|id|sh|sql|yaml|diff)$/.test(f.name),
    )
    mkdirSync(join(run.dirs.logs, where), { recursive: true })
    for (const { name } of files)
      if (statSync(join(dir, name)).size <= 1 << 20) copyFileSync(join(dir, name), join(run.dirs.logs, where, name))
  } catch (error) {
    run.report.notes.push(`${where}: not all of its files are beside the logs: ${messageOf(error)}`)
  }
}

/** What find(1) prints of every entry of a source: any change of content, name or metadata shows in one of them. */
export const witnessFormat = `-printf '/%P /%y %m %U:%G %s %T@ %C@ %l\\0'`
