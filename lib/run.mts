// The frame of every script: scenario → rows → steps, cleanup, verdict, report, exit code.
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Cleanup, capKept, clearDeadRuns, removeBelow, StateFile } from './cleanup.mts'
import { expand, fill, localDir, masked, type Repository, scenarioUrl } from './config.mts'
import { describeHost } from './host.mts'
import { lock } from './lock.mts'
import type { OptionSpecs, Values } from './options.mts'
import { type commonOptions, type Plan, prepare, root, type ScenarioSpec, scenarioName } from './prepare.mts'
import { end, processesOf, startTime } from './process.mts'
import { ownSeconds, pointTo, type RowReport, type RunReport, writeReport } from './report.mts'
import { $, DryEnd, type Scope, type Shell, type StepRecord, within } from './sh.mts'
import { Terminal } from './terminal.mts'
import { Transcript, transcriptHeader } from './transcript.mts'
import {
  Blocked,
  exitCodes,
  fold,
  Interrupted,
  Mismatch,
  messageOf,
  Refused,
  Skipped,
  UsageError,
  type Verdict,
  verdictOf,
} from './verdict.mts'

/** Disk that the leftovers of failed runs may take together; the oldest go first. */
const keptCap = 20 * 2 ** 30

/** Which repository and variant a row is, and what its config is made of. */
export interface RowSpec {
  repo: string
  variant?: string
  /** Name of the fragment below configs/, the script's own unless told. */
  fragment?: string
  /** Values for the fragment's `${NAME}`. */
  values?: Record<string, string>
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
  report: RowReport
  cleanup: Cleanup
}

/** A scope that knows the row it belongs to, for the helpers in lib. */
export interface RowScope extends Scope {
  row: Row
  run: Run<OptionSpecs>
}

/** A run id that sorts by time. */
export function newRunId(now = new Date()): string {
  const stamp = now.toISOString().replace(/[-:]|\.\d+/g, '')
  return `${stamp}-${Math.random().toString(36).slice(2, 6).padEnd(4, '0')}`
}

/** A value that a dry run does not know: prints as `‹step›` wherever it is used. */
function placeholder<T>(name: string): T {
  const text = `‹${name}›`
  const proxy: unknown = new Proxy(() => proxy, {
    get: (_, key) => {
      if (key === 'then' || key === Symbol.iterator) return undefined
      if (key === Symbol.toPrimitive || key === 'toString') return () => text
      return proxy
    },
  })
  return proxy as T
}

/** One run of one script. */
export class Run<O extends OptionSpecs> {
  readonly id = newRunId()
  readonly options: Values<typeof commonOptions & O>
  readonly repos: string[]
  readonly runtime: string
  readonly dry: boolean
  readonly cleanup = new Cleanup()
  readonly dirs: { logs: string; work: string }
  readonly report: RunReport
  readonly transcript: Transcript
  readonly terminal: Terminal
  state: StateFile | undefined
  interrupted: NodeJS.Signals | undefined
  /** Environment of every command. */
  readonly env: NodeJS.ProcessEnv
  private readonly aborted: Promise<never>
  private abort: (error: Error) => void = () => {}
  private tidying = false

  constructor(
    readonly plan: Plan<O>,
    readonly spec: ScenarioSpec<O>,
  ) {
    this.options = plan.options
    const common = plan.options as Values<typeof commonOptions>
    this.repos = plan.repos
    this.runtime = plan.runtime
    this.dry = common['dry-run']
    this.dirs = { logs: join(plan.runtime, 'logs', plan.name, this.id), work: join(plan.runtime, 'work', this.id) }
    this.terminal = new Terminal(common.quiet ? 'quiet' : common.verbose ? 'verbose' : 'normal')
    this.env = { ...process.env, NO_COLOR: '1', LC_ALL: 'C.UTF-8' }
    delete this.env.VYKAR_CONFIG
    delete this.env.VYKAR_PASSPHRASE
    if (spec.passphrase !== false) this.env.VYKAR_PASSPHRASE = process.env.VYKAR_PASSPHRASE || '123'
    this.env.PATH = `${join(this.dirs.work, 'bin')}:${this.env.PATH}:/usr/local/sbin:/usr/sbin:/sbin`
    try {
      for (const dir of this.dry ? [] : [this.dirs.logs, join(this.dirs.work, 'bin')])
        mkdirSync(dir, { recursive: true })
    } catch (error) {
      throw new UsageError(
        `runtime directory ${plan.runtime} cannot be written (${messageOf(error)}): name another with --runtime`,
      )
    }
    const passphrase =
      spec.passphrase === false
        ? 'unset VYKAR_PASSPHRASE'
        : ': "${VYKAR_PASSPHRASE:?export it first}"; export VYKAR_PASSPHRASE'
    this.transcript = new Transcript(
      this.dry ? undefined : join(this.dirs.logs, 'commands.sh'),
      transcriptHeader(plan.scenario, this.id, [passphrase, 'export NO_COLOR=1 LC_ALL=C.UTF-8']),
      this.dirs.work,
    )
    this.report = {
      schema: 'vykar-e2e/report/1',
      scenario: plan.scenario,
      runId: this.id,
      started: new Date().toISOString(),
      seconds: 0,
      verdict: 'FAIL',
      reason: 'the run did not come to its end',
      standin: plan.vykar.standin,
      seed: common.seed,
      options: Object.fromEntries(Object.entries(plan.options).filter(([, value]) => value && String(value))),
      versions: { vykar: plan.vykar.version, 'vykar path': plan.vykar.path, ...plan.versions },
      host: this.dry ? {} : describeHost(plan.runtime),
      steps: [],
      rows: [],
      notes: [...plan.notes],
      leftBehind: [],
      transcript: join(this.dirs.logs, 'commands.sh'),
      harness: { seconds: 0, peakKiB: 0 },
    }
    this.aborted = new Promise((_, reject) => {
      this.abort = reject
    })
    this.aborted.catch(() => {})
  }

  /** A step before, between or after the rows. */
  step<T>(name: string, fn: () => Promise<T>): Promise<T> {
    return this.inStep(this.scope('run', this.dirs.work), this.report.steps, name, fn)
  }

  scope(where: string, dir: string): Scope {
    return {
      runId: this.id,
      where,
      dir,
      logDir: this.dirs.logs,
      env: this.env,
      transcript: this.transcript,
      dry: this.dry,
      timeScale: (this.options as Values<typeof commonOptions>)['time-scale'],
      step: { name: where, log: join(this.dirs.logs, `${where}.log`), seconds: 0, commands: [] },
      // What tidies up after an interruption has to run.
      interrupted: () => (this.tidying ? undefined : this.interrupted),
    }
  }

  private async inStep<T>(scope: Scope, steps: StepRecord[], name: string, fn: () => Promise<T>): Promise<T> {
    if (this.interrupted) throw new Interrupted(this.interrupted)
    const file = `${scope.where}.${String(steps.length + 1).padStart(2, '0')}-${name.replace(/[^\w.-]+/g, '-')}.log`
    const record: StepRecord = { name, log: join(scope.logDir, file), seconds: 0, commands: [] }
    this.transcript.step(scope.where, name)
    if (this.dry) {
      return within({ ...scope, step: record }, fn).catch((error) => {
        if (error instanceof DryEnd) return placeholder<T>(name)
        throw error
      })
    }
    steps.push(record)
    writeFileSync(record.log, '')
    this.terminal.begin(scope.where, name)
    const start = performance.now()
    try {
      const value = await Promise.race([within({ ...scope, step: record }, fn), this.aborted])
      record.verdict = 'PASS'
      return value
    } catch (error) {
      record.verdict = verdictOf(error)
      record.reason = messageOf(error)
      throw error
    } finally {
      record.seconds = (performance.now() - start) / 1000
      this.terminal.end(
        record.verdict === 'PASS' ? 'ok' : (record.verdict ?? ''),
        record.seconds,
        record.reason ?? '',
        record.commands.map((c) => c.command),
      )
    }
  }

  /** One repository × variant: its own directory, config, verdict and cleanup. A failure ends the row, not the run. */
  async row(spec: RowSpec, fn: (row: Row) => Promise<void>): Promise<void> {
    if (this.interrupted) throw new Interrupted(this.interrupted)
    const where = spec.variant ? `${spec.repo}-${spec.variant}` : spec.repo
    const dir = join(this.dirs.work, where)
    const report: RowReport = { repo: spec.repo, variant: spec.variant ?? '', verdict: 'FAIL', reason: 'the row did not end', seconds: 0, steps: [], gaps: [], notes: [], facts: {}, kept: [] } // biome-ignore format: one record
    this.report.rows.push(report)
    const cleanup = new Cleanup()
    const sampleUrl = this.plan.sample.repository(spec.repo).url
    const repository = { label: spec.repo, url: scenarioUrl(sampleUrl, this.plan.name) }
    const row: Row = { $, config: join(dir, 'config.yaml'), dir, repository, report, cleanup, step: (name, body) => this.inStep(scope, report.steps, name, body) } // biome-ignore format: one record
    const scope: RowScope = Object.assign(this.scope(where, dir), { row, run: this as unknown as Run<OptionSpecs> })
    const start = performance.now()
    try {
      if (!this.dry) {
        const release = await lock(repository.url, `repository ${repository.url}`)
        cleanup.add('lock', release)
        mkdirSync(dir, { recursive: true })
        cleanup.add(dir, () => this.keep(dir) || removeBelow(this.dirs.work, dir), true)
      }
      this.transcript.beginRow(where, dir)
      const own = localDir(repository.url)
      if (own) this.transcript.relocate(own, `repository-${spec.repo}`)
      this.writeConfig(row, spec)
      await within(scope, () => fn(row))
      report.verdict = this.plan.vykar.standin ? 'DEMO' : 'PASS'
      report.reason = ''
    } catch (error) {
      report.verdict = verdictOf(error)
      report.reason = messageOf(error)
      if (this.dry || error instanceof Refused || error instanceof Interrupted) throw error
    } finally {
      await this.endRow(scope, report, cleanup)
      report.seconds = (performance.now() - start) / 1000
      if (report.reason && report.reason !== report.steps.at(-1)?.reason)
        this.terminal.line(`  ${where.padEnd(14)} ${report.verdict}: ${report.reason}`)
    }
  }

  /** What is still alive is ended and, unless the row was out of time anyway, a FAIL; then everything is undone. */
  private async endRow(scope: Scope, report: RowReport, cleanup: Cleanup): Promise<void> {
    const fail = (reason: string) => {
      report.verdict = 'FAIL'
      report.reason ||= reason
      this.report.leftBehind.push(`${scope.where}: ${reason}`)
    }
    const left = this.dry ? [] : await end(() => processesOf(this.id))
    const names = left.map((p) => `${p.pid} ${p.command.slice(0, 120)}`).join('; ')
    if (left.length && report.verdict === 'BLOCKED') report.notes.push(`ended what the step had left: ${names}`)
    else if (left.length && !this.interrupted) fail(`processes were left behind: ${names}`)
    this.tidying = true
    const good = report.verdict === 'PASS' || report.verdict === 'DEMO' || this.interrupted !== undefined
    const { kept, failures } = await within(scope, () => cleanup.unwind(!good))
    this.tidying = false
    report.kept.push(...kept)
    for (const failure of failures) fail(`left behind: ${failure}`)
  }

  /** With --keep a thing is left where it is and named. */
  keep(what: string): boolean {
    const kept = (this.options as Values<typeof commonOptions>).keep && !this.interrupted
    if (kept) this.report.notes.push(`kept: ${what}`)
    return kept
  }

  private writeConfig(row: Row, spec: RowSpec): void {
    const file = join(root, 'configs', `${spec.fragment ?? this.plan.name}.yaml`)
    const fragment = fill(readFileSync(file, 'utf8'), spec.values ?? {})
    const others = this.repos.map((label) => {
      const { url } = this.plan.sample.repository(label)
      return { label, url: expand(scenarioUrl(url, this.plan.name), process.env, file) }
    })
    const text = this.plan.sample.compose(others, fragment, file, join(row.dir, 'cache'))
    this.transcript.write(row.config, masked(text))
    if (this.dry) return
    writeFileSync(row.config, text, { mode: 0o600 })
    const published = join(this.runtime, 'configs', `config.${this.plan.name}.yaml`)
    mkdirSync(join(this.runtime, 'configs'), { recursive: true })
    writeFileSync(published, text, { mode: 0o600 })
  }

  /** Makes `vykar` on the commands' PATH the one under test, or the saboteur around it. */
  private async placeVykar(): Promise<void> {
    const lie = (this.options as Values<typeof commonOptions>).sabotage
    const saboteur = join(root, 'test/saboteur/vykar')
    const target = lie ? saboteur : this.plan.vykar.path
    if (!this.dry) symlinkSync(target, join(this.dirs.work, 'bin/vykar'))
    this.transcript.line(`mkdir -p "$work/bin" && ln -s ${target} "$work/bin/vykar" && export PATH="$work/bin:$PATH"`)
    if (!lie) return
    this.env.SABOTEUR_VYKAR = this.plan.vykar.path
    this.env.SABOTEUR_LIE = lie
    this.env.SABOTEUR_TOLD = join(this.dirs.logs, 'sabotage.told')
    this.report.notes.push(`sabotaged: vykar tells the lie ${lie}`)
  }

  private onSignal(signal: NodeJS.Signals): void {
    if (this.interrupted) return
    this.interrupted = signal
    this.terminal.line(`${signal}: ending what runs, cleaning up`)
    // Those that run now, and not what the cleanup starts meanwhile.
    const running = processesOf(this.id)
    const alive = () => running.filter((p) => startTime(p.pid) === p.start)
    void end(alive, 2000).finally(() => this.abort(new Interrupted(signal)))
  }

  /** Runs the procedure and everything around it. Returns the exit code. */
  async execute(body: (run: Run<O>) => Promise<void>): Promise<number> {
    if (this.dry) return this.rehearse(body)
    const release = await lock(this.id, `run ${this.id}`)
    this.state = new StateFile(this.runtime, this.id, this.plan.scenario)
    this.state.add({ kind: 'dir', path: this.dirs.work })
    writeReport(this.runtime, this.report, false)
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => this.onSignal(name))
    const start = performance.now()
    let ended: unknown
    try {
      const { notes } = this.report
      notes.push(...(await clearDeadRuns(this.runtime)))
      notes.push(...(await capKept(this.runtime, keptCap)).map((dir) => `removed to stay under the cap: ${dir}`))
      await this.placeVykar()
      await body(this)
    } catch (error) {
      ended = error
    }
    const verdict = await this.conclude(ended)
    this.transcript.end()
    this.report.seconds = (performance.now() - start) / 1000
    this.report.harness = {
      seconds: ownSeconds(this.report, this.report.seconds),
      peakKiB: process.resourceUsage().maxRSS,
    }
    const page = writeReport(this.runtime, this.report, true)
    pointTo(join(this.dirs.logs, '..', 'latest'), this.id)
    this.state.done()
    await release()
    for (const note of this.report.notes) this.terminal.line(`note: ${note}`)
    for (const row of this.report.rows) for (const kept of row.kept) this.terminal.line(`kept: ${kept}`)
    console.log(`by hand ${this.report.transcript}`)
    console.log(`report ${page}`)
    console.log(`${verdict} ${this.plan.scenario} ${this.report.reason}`.trim())
    if (this.interrupted) return { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[this.interrupted as 'SIGINT']
    const untouched = !this.report.rows.some((row) => row.verdict !== 'FAIL')
    return ended instanceof UsageError || (ended instanceof Refused && untouched) ? 2 : exitCodes[verdict]
  }

  private async conclude(ended: unknown): Promise<Verdict> {
    const { report } = this
    const verdicts = report.rows.map((row) => row.verdict)
    if (ended) verdicts.push(verdictOf(ended))
    this.tidying = true
    const good = ended === undefined || ended instanceof Interrupted
    const { kept, failures } = await within(this.scope('run', this.dirs.work), () => this.cleanup.unwind(!good))
    report.notes.push(...kept.map((what) => `kept: ${what}`))
    const left = await end(() => processesOf(this.id, true))
    for (const process of left) failures.push(`process ${process.pid} ${process.command}`)
    const keepsWork = report.rows.some((row) => row.kept.length) || (this.options as Values<typeof commonOptions>).keep
    try {
      if (!keepsWork || this.interrupted) removeBelow(this.runtime, this.dirs.work)
    } catch (error) {
      failures.push(messageOf(error))
    }
    report.leftBehind.push(...failures)
    if (failures.length) verdicts.push('FAIL')
    report.verdict = this.interrupted ? 'FAIL' : fold(verdicts)
    const worst = report.rows.filter((row) => row.verdict === report.verdict && row.reason)
    report.reason = ended
      ? messageOf(ended)
      : failures[0]
        ? `left behind: ${failures[0]}`
        : worst.map((row) => `${row.repo}${row.variant && ` ${row.variant}`}: ${row.reason}`).join('; ')
    return report.verdict
  }

  private async rehearse(body: (run: Run<O>) => Promise<void>): Promise<number> {
    console.log(`${this.plan.scenario}: dry run, nothing is run or made\nneeds: ${this.spec.needs.join(', ')}`)
    console.log(`vykar: ${this.plan.vykar.path} ${this.plan.vykar.version}\nwork=${this.dirs.work}`)
    await this.placeVykar()
    await body(this)
    return 0
  }
}

/**
 * Runs a script's procedure as a scenario and ends the process with the verdict's exit code.
 * @param meta the script's `import.meta`
 * @param spec what it needs and which options it takes
 * @param body the procedure
 */
export async function scenario<const O extends OptionSpecs = Record<never, never>>(
  meta: ImportMeta,
  spec: ScenarioSpec<O>,
  body: (run: Run<O>) => Promise<void>,
): Promise<void> {
  const name = scenarioName(meta.filename)
  let ended = false
  // Failure is the initial state: a run that ends without its verdict (a promise that never settles, a crash) failed.
  process.exitCode = 1
  process.once('exit', () => {
    if (!ended) console.log(`FAIL ${name} ended without a verdict`)
  })
  try {
    const plan = prepare(meta.filename, process.argv.slice(2), spec)
    process.exitCode = plan ? await new Run(plan, spec).execute(body) : 0
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`${name}: ${error.message}`)
      process.exitCode = 2
    } else {
      const verdict = verdictOf(error)
      if (!(error instanceof Skipped || error instanceof Blocked || error instanceof Mismatch)) console.error(error)
      console.log(`${verdict} ${name} ${messageOf(error)}`)
      process.exitCode = exitCodes[verdict]
    }
  }
  ended = true
  // A socket or timer somebody forgot must not keep a finished run alive.
  process.exit()
}
