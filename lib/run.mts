// One run of one script: its directories and environment, its rows, what is undone, its verdict and report.
import { existsSync, mkdirSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { type Endpoint, variableOf } from './address.mts'
import { capKept, clearDeadRuns, StateFile, Undo } from './cleanup.mts'
import { localDir, published, scenarioUrl } from './config.mts'
import { type Attribute, leftOutside, notHeld, statedEnvironment, strewn } from './environment.mts'
import { lock } from './lock.mts'
import type { OptionSpecs, Values } from './options.mts'
import { markOurs, newRunId, removeOurs } from './ours.mts'
import { type commonOptions, type Plan, root, type ScenarioSpec } from './prepare.mts'
import { end, enterGroup, processesOf, startTime } from './process.mts'
import {
  emptyReport,
  leakedSecrets,
  ownSeconds,
  type RowReport,
  type RunReport,
  reportBefore,
  withoutSecrets,
  writeReport,
} from './report.mts'
import { runRow } from './row.mts'
import { endStep, notFull, type Scope, step, within } from './sh.mts'
import { Terminal } from './terminal.mts'
import { quote, Transcript, transcriptHead } from './transcript.mts'
import { Blocked, fold, Interrupted, messageOf, UsageError, type Verdict, verdictOf } from './verdict.mts'

/** Disk that the leftovers of failed runs may take together; the oldest go first. */
const keptCap = 20 * 2 ** 30

/** One run of one script. */
export class Run {
  readonly id = newRunId()
  readonly common: Values<typeof commonOptions>
  readonly repos: string[]
  readonly runtime: string
  readonly dry: boolean
  readonly dirs: { logs: string; work: string; reports: string }
  readonly report: RunReport
  /** What the run before said, if it had the same options: how long each step may take. */
  readonly reportBefore: RunReport | undefined
  readonly terminal: Terminal
  /** Environment of every command; commands.sh exports the same. */
  readonly env: NodeJS.ProcessEnv
  /** What runs outside of rows. */
  readonly top: Scope
  transcript!: Transcript
  /** Repositories on servers by label, and why there is none. */
  readonly served = new Map<string, Endpoint>()
  readonly unavailable = new Map<string, Error>()
  /** Sources that must not change while they are tested: the user's own, or the suite's. */
  readonly watched: { path: string; named: boolean }[] = []
  /** What the file system of the run's directories cannot hold. */
  lacking: Attribute[] = []
  interrupted: NodeJS.Signals | undefined
  /** What undoes things runs also after an interruption. */
  tidying = false
  readonly secrets: Set<string>
  private state: StateFile | undefined
  /** Rejects when the user interrupts the run. */
  readonly aborted: Promise<never>
  private abort: (error: Error) => void = () => {}
  private readonly running: Promise<void>[] = []
  private readonly before = strewn()

  constructor(
    readonly plan: Plan<OptionSpecs>,
    readonly spec: ScenarioSpec<OptionSpecs>,
  ) {
    const { name, runtime, common } = plan
    this.common = common
    this.repos = plan.repos
    this.runtime = runtime
    this.dry = common['dry-run']
    const below = (kind: string, ...more: string[]) => join(runtime, kind, ...more, this.id)
    this.dirs = { logs: below('logs', name), work: below('work'), reports: below('reports', name) }
    this.terminal = new Terminal(common.quiet ? 'quiet' : common.verbose ? 'verbose' : 'normal')
    this.secrets = new Set(plan.sample.secrets)
    this.env = statedEnvironment()
    const own = process.env.VYKAR_PASSPHRASE
    if (spec.passphrase !== false) this.env.VYKAR_PASSPHRASE = own || '123'
    if (own && !published.has(own)) this.secrets.add(own)
    this.env.PATH = `${this.dirs.work}/bin:${root}:${this.env.PATH}:/usr/local/sbin:/usr/sbin:/sbin`
    // What is in TMPDIR at the end was left behind.
    Object.assign(this.env, { VYKAR_E2E_RUNTIME: runtime, VYKAR_E2E_RUN: this.id, TMPDIR: join(this.dirs.work, 'tmp') })
    this.report = emptyReport(plan, this.id, this.dry, join(this.dirs.logs, 'commands.sh'))
    this.reportBefore = reportBefore(this.report, join(runtime, 'reports', name))
    this.top = this.scope('run', '', this.report.steps)
    this.aborted = new Promise((_, reject) => {
      this.abort = reject
    })
    this.aborted.catch(() => {})
  }

  /** The lines of commands.sh that set its environment. */
  private exports(): string[] {
    const { NO_COLOR, LC_ALL, TZ, no_proxy } = this.env
    const lines = [`export NO_COLOR=${NO_COLOR} LC_ALL=${LC_ALL} TZ=${TZ} no_proxy=${no_proxy} NO_PROXY=${no_proxy}`]
    if (this.spec.passphrase !== false) lines.push('export VYKAR_PASSPHRASE=$passphrase')
    lines.push('export VYKAR_E2E_RUN=$(date -u +%Y%m%dT%H%M%SZ)-hand TMPDIR=$PWD/tmp && mkdir tmp')
    lines.push(`export PATH=$PWD/bin:${quote(root)}:$PATH:/usr/local/sbin:/usr/sbin:/sbin`)
    for (const label of this.repos) {
      const { files, url } = this.endpoint(label)
      this.env[variableOf(label)] = url
      // A local repository is made anew beside the rows; a server's address is said where the server is.
      if (files) lines.push(`export ${variableOf(label)}=\${${variableOf(label)}:-$PWD/repository-${label}}`)
    }
    return lines
  }

  /** Makes the run's directories, marks them as the suite's, and begins commands.sh. Throws UsageError where it cannot. */
  private async begin(): Promise<void> {
    const { logs, work, reports } = this.dirs
    try {
      for (const dir of [logs, join(work, 'bin'), join(work, 'tmp'), reports]) mkdirSync(dir, { recursive: true })
      markOurs(this.runtime, [logs, work, reports])
      this.report.notCompared = this.lacking = await notHeld(work)
    } catch (error) {
      if (error instanceof UsageError) throw error
      const why = `cannot be written (${messageOf(error)}): name another with --runtime`
      throw new UsageError(`runtime directory ${this.runtime} ${why}`)
    }
  }

  /** Where lines run: `where` names the logs, `place` is the directory below the run's own. */
  scope(where: string, place: string, steps: Scope['steps']): Scope {
    const dir = join(this.dirs.work, place)
    const undo = new Undo(dir, () => this.state, () => this.common.keep && !this.interrupted) // biome-ignore format: one line
    return { run: this, where, place, dir, dry: this.dry, steps, undo, running: [] }
  }

  /** One repository × variant, in a directory of its own. A failure ends the row and not the run. */
  row = (spec: string | { repo: string; variant?: string }, fn: () => Promise<void>): Promise<void> => {
    const row = runRow(this, spec, fn)
    // An interruption ends the script's procedure at once, but not what its rows still have to undo.
    this.running.push(row.catch(() => {}))
    return row
  }

  /** Undoes what a scope has registered. Returns what could not be undone. */
  async unwind(scope: Scope, good: boolean, kept: string[]): Promise<string[]> {
    return this.tidy(scope, async () => {
      if (scope.undo.size) step('undo')
      const done = await scope.undo.unwind(!good)
      endStep(scope)
      kept.push(...done.kept)
      return done.failures
    })
  }

  /** Removes something of the run's own; the time counts as a command's. */
  async remove(path: string): Promise<void> {
    const record = { command: `rm -rf ${path}`, code: 0, at: Date.now(), seconds: 0 }
    this.top.steps.at(-1)?.commands.push(record)
    await removeOurs(this.runtime, path)
    record.seconds = (Date.now() - record.at) / 1000
  }

  /** Where a label's repository of this scenario is. */
  endpoint(label: string): Endpoint {
    if (this.served.has(label)) return this.served.get(label)!
    const url = scenarioUrl(this.plan.sample.repository(label).url, this.plan.name)
    const files = localDir(url)
    return files ? { url, files, seen: variableOf(label) } : { url }
  }

  /** A server has this label's repository: vykar and commands.sh are told where. */
  serve(label: string, endpoint: Endpoint): void {
    this.served.set(label, endpoint)
    // What lies in the run's directory lies in the replay's, too.
    const byHand = (text: string) =>
      text.includes(this.dirs.work) ? `"${text.replace(this.dirs.work, '$top')}"` : quote(text)
    this.setEnv(variableOf(label), endpoint.url, byHand(endpoint.url))
    if (endpoint.files && endpoint.seen) this.setEnv(endpoint.seen, endpoint.files, byHand(endpoint.files))
  }

  /** A variable of the environment of all commands from here on. */
  setEnv(name: string, value: string, byHand = quote(value)): void {
    this.env[name] = value
    this.transcript.add('', `export ${name}=${byHand}`)
  }

  /** A secret, in the environment of all commands and in no file; commands.sh asks for it, or makes up one that the run made up. */
  secret(name: string, value: string, made = false): void {
    if (!published.has(value)) this.secrets.add(value)
    this.setEnv(name, value, made ? `\${${name}:-$(openssl rand -hex 16)}` : `"\${${name}:?export it first}"`)
  }

  /** Runs the undoing of things, which goes on also after an interruption. */
  async tidy<T>(scope: Scope, fn: () => Promise<T>): Promise<T> {
    this.tidying = true
    return within(scope, fn).finally(() => {
      this.tidying = false
    })
  }

  /** What is `vykar` on the commands' PATH: the one under test, or the saboteur around it. */
  private vykar(): string {
    const lie = this.common.sabotage
    const target = lie ? join(root, 'scripts/sabotage/vykar') : this.plan.vykar.path
    // The server of the same build, where it lies beside the program.
    const server = join(dirname(this.plan.vykar.path), 'vykar-server')
    if (!this.dry && existsSync(server)) symlinkSync(server, join(this.dirs.work, 'bin/vykar-server'))
    if (!this.dry) symlinkSync(target, join(this.dirs.work, 'bin/vykar'))
    if (lie) {
      this.env.SABOTEUR_VYKAR = this.plan.vykar.path
      this.env.SABOTEUR_LIE = lie
      this.env.SABOTEUR_TOLD = join(this.dirs.logs, 'sabotage.told')
      this.report.notes.push(`sabotaged: vykar tells the lie ${lie}`)
    }
    return target
  }

  /** Ends what runs, then the procedure; the run goes on to its report. */
  onSignal(signal: NodeJS.Signals): void {
    if (this.interrupted) return
    this.interrupted = signal
    this.terminal.line(`${signal}: ending what runs, cleaning up`)
    // Those that run now, unless they undo something, and not what the cleanup starts meanwhile; servers end with the run.
    const running = this.tidying ? [] : processesOf(this.id)
    const alive = () => running.filter((p) => startTime(p.pid) === p.start)
    void end(alive, 2000).finally(() => this.abort(new Interrupted(signal)))
  }

  /** A dry run prints what commands.sh would hold, and runs nothing. */
  async rehearse(body: () => Promise<void>): Promise<void> {
    this.transcript = new Transcript(undefined, this.head())
    await within(this.top, body)
    await within(this.top, () => Promise.all(this.top.running.map((one) => one.end('TERM', '5s'))))
    await this.unwind({ ...this.top }, true, [])
  }

  private head(): string {
    const { spec, plan } = this
    const asked = process.env.VYKAR_PASSPHRASE ? ':?export it first' : ':-123'
    const first = spec.passphrase === false ? [] : [`passphrase=\${VYKAR_PASSPHRASE${asked}}`]
    return transcriptHead(plan.scenario, this.id, this.vykar(), first, this.exports())
  }

  /**
   * The run from its directories to its report.
   * @returns the verdict, and what ended the procedure early
   * @throws UsageError where the procedure refused what it was asked for before its first row: nothing is left of the run
   */
  async execute(body: () => Promise<void>): Promise<{ verdict: Verdict; page: string; ended: unknown }> {
    const release = await lock(this.id, `run ${this.id}`, join(this.runtime, 'state'))
    await this.begin().catch((error) => release().then(() => Promise.reject(error)))
    const leaveGroup = enterGroup(this.id)
    const start = performance.now()
    let ended: unknown
    try {
      this.transcript = new Transcript(this.report.transcript, this.head())
      const { id: runId, plan: { scenario }, dirs: { work } } = this // biome-ignore format: one line
      this.state = new StateFile(this.runtime, { runId, scenario, work, path: this.env.PATH ?? '', lines: [] })
      writeReport(this.runtime, this.report, false)
      const { notes } = this.report
      notes.push(...(await clearDeadRuns(this.runtime)))
      notes.push(...(await capKept(this.runtime, keptCap)).map((dir) => `removed to stay under the cap: ${dir}`))
      await Promise.race([within(this.top, body), this.aborted])
      const told = this.env.SABOTEUR_TOLD
      if (told && !existsSync(told) && !this.report.rows.some(({ verdict }) => /^(FAIL|BLOCKED)$/.test(verdict)))
        throw new Blocked(`the lie ${this.common.sabotage} was never told: nothing is proven`)
      endStep(this.top)
    } catch (error) {
      const full = (error as NodeJS.ErrnoException)?.code === 'ENOSPC'
      ended = full ? new Blocked(`no space is left: ${messageOf(error)}`) : error
      endStep(this.top, ended)
    }
    await Promise.all(this.running)
    const verdict = await this.conclude(ended).finally(leaveGroup)
    this.report.seconds = (performance.now() - start) / 1000
    const peakKiB = process.resourceUsage().maxRSS
    this.report.harness = { seconds: ownSeconds(this.report, this.report.seconds), peakKiB }
    this.state?.done()
    await release()
    if (ended instanceof UsageError && ![...this.report.rows, ...this.report.leftBehind].length && !this.common.keep) {
      for (const dir of [this.dirs.logs, this.dirs.reports]) await removeOurs(this.runtime, dir)
      throw ended
    }
    const page = writeReport(this.runtime, withoutSecrets(this.report, this.secrets), true)
    return { verdict, page, ended }
  }

  private async conclude(ended: unknown): Promise<Verdict> {
    const { report } = this
    const verdicts = report.rows.map((row) => row.verdict)
    if (ended && !(ended instanceof UsageError && !report.rows.length)) verdicts.push(verdictOf(ended))
    const good = this.interrupted !== undefined || !verdicts.some((word) => word === 'FAIL' || word === 'BLOCKED')
    this.top.over = true
    const kept: string[] = []
    const scope = { ...this.top, over: false }
    await this.tidy(scope, () => Promise.all(this.top.running.map((one) => one.end('TERM', '5s'))))
    const failures = await this.unwind(scope, good, kept)
    report.notes.push(...kept.map((what) => `kept: ${what}`))
    const left = await end(() => processesOf(this.id, true))
    for (const process of left.filter((p) => !p.service)) failures.push(`process ${process.pid} ${process.command}`)
    const { left: strays, fresh } = leftOutside(this.before, this.dirs.work, this.runtime)
    failures.push(...strays)
    report.notes.push(...fresh.map((path) => `new outside of the run's directories: ${path}`))
    const full = await Promise.resolve().then(() => notFull(this.runtime)).catch(messageOf) // biome-ignore format: one line
    const keepsWork = kept.length > 0 || report.rows.some((row) => row.kept.length) || this.common.keep
    try {
      // A disk that has run full gets back what this run took: the report needs room.
      if (!keepsWork || this.interrupted || full) await removeOurs(this.runtime, this.dirs.work)
    } catch (error) {
      failures.push(messageOf(error))
    }
    if (full && keepsWork) report.notes.push(`${full}: what was to be kept was removed`)
    for (const file of await leakedSecrets(report, this.dirs.logs, this.secrets)) failures.push(`a secret in ${file}`)
    report.leftBehind.push(...failures)
    if (failures.length) verdicts.push('FAIL')
    report.verdict = this.interrupted ? 'FAIL' : fold(verdicts)
    const named = (row: RowReport) => `${row.repo}${row.variant && ` ${row.variant}`}`
    const worst = report.rows.filter((row) => row.verdict === report.verdict && row.reason)
    const skipped = report.rows.filter((row) => row.verdict === 'SKIPPED' && report.verdict !== 'SKIPPED')
    const said = ended
      ? messageOf(ended)
      : failures[0]
        ? `left behind: ${failures[0]}`
        : worst.map((row) => `${named(row)}: ${row.reason}`).join('; ')
    const findings = [...new Set(report.rows.flatMap((row) => row.findings.map(({ id }) => id)))]
    report.reason = [
      said,
      findings.length && `${findings.length} known finding${findings.length > 1 ? 's' : ''}: ${findings.join(', ')}`,
      skipped.length &&
        `${skipped.length} SKIPPED: ${skipped.map((row) => `${named(row)} (${row.reason})`).join(', ')}`,
      this.lacking.length && `not compared here: ${this.lacking.join(', ')}`,
    ]
      .filter(Boolean)
      .join('; ')
    return report.verdict
  }
}
