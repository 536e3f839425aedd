// The frame of every script: scenario → rows → steps, cleanup, verdict, report, exit code.
import { spawnSync } from 'node:child_process'
import { mkdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { Cleanup, capKept, clearDeadRuns, removeBelow, StateFile } from './cleanup.mts'
import { localDir, scenarioUrl } from './config.mts'
import { describeHost } from './host.mts'
import { lock } from './lock.mts'
import type { OptionSpecs, Values } from './options.mts'
import { type commonOptions, type Plan, prepare, root, type ScenarioSpec, scenarioName } from './prepare.mts'
import { end, processesOf, startTime } from './process.mts'
import { ownSeconds, pointTo, type RunReport, writeReport } from './report.mts'
import { type Row, type RowSpec, runRow } from './row.mts'
import type { Service } from './services/service.mts'
import { type Scope, within } from './sh.mts'
import { runStep } from './step.mts'
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

/** A run id that sorts by time. */
export function newRunId(now = new Date()): string {
  const stamp = now.toISOString().replace(/[-:]|\.\d+/g, '')
  return `${stamp}-${Math.random().toString(36).slice(2, 6).padEnd(4, '0')}`
}

/** A password in a URI is nobody's business. */
const withoutPassword = (text: string) => text.replace(/(:\/\/[^:@/]*):[^@/]*@/, '$1:***@')

function emptyReport(plan: Plan<OptionSpecs>, id: string, dry: boolean, transcript: string): RunReport {
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
    argv: process.argv.slice(2).map(withoutPassword),
    options: Object.fromEntries(
      Object.entries(plan.options)
        .filter(([, value]) => value && String(value))
        .map(([name, value]) => [name, typeof value === 'string' ? withoutPassword(value) : value]),
    ),
    versions: { vykar: plan.vykar.version, 'vykar path': plan.vykar.path, ...plan.versions },
    host: dry ? {} : describeHost(plan.runtime),
    steps: [],
    rows: [],
    notes: [...plan.notes],
    charts: [],
    leftBehind: [],
    transcript,
    harness: { seconds: 0, peakKiB: 0 },
  }
}

/** One run of one script. */
export class Run {
  readonly id = newRunId()
  readonly common: Values<typeof commonOptions>
  readonly repos: string[]
  readonly runtime: string
  readonly dry: boolean
  readonly cleanup = new Cleanup()
  readonly dirs: { logs: string; work: string }
  readonly report: RunReport
  readonly transcript: Transcript
  readonly terminal: Terminal
  /** Servers by repository label, and why there is none. */
  readonly services = new Map<string, Service>()
  readonly unavailable = new Map<string, Error>()
  /** Environment of every command. */
  readonly env: NodeJS.ProcessEnv
  state: StateFile | undefined
  interrupted: NodeJS.Signals | undefined
  /** Rejects when the user interrupts the run. */
  readonly aborted: Promise<never>
  private abort: (error: Error) => void = () => {}
  private tidying = false
  private readonly secrets: string[] = []

  constructor(
    readonly plan: Plan<OptionSpecs>,
    readonly spec: ScenarioSpec<OptionSpecs>,
  ) {
    this.common = plan.common
    this.repos = plan.repos
    this.runtime = plan.runtime
    this.dry = this.common['dry-run']
    this.dirs = { logs: join(plan.runtime, 'logs', plan.name, this.id), work: join(plan.runtime, 'work', this.id) }
    this.terminal = new Terminal(this.common.quiet ? 'quiet' : this.common.verbose ? 'verbose' : 'normal')
    this.env = { ...process.env, NO_COLOR: '1', LC_ALL: 'C.UTF-8' }
    // The caller's settings for vykar and for cloud clients would bend what the run's own config says.
    for (const name of Object.keys(this.env))
      if (/^(VYKAR_(?!E2E_|STANDIN_)|AWS_|RCLONE_)/.test(name)) delete this.env[name]
    if (spec.passphrase !== false) this.env.VYKAR_PASSPHRASE = process.env.VYKAR_PASSPHRASE || '123'
    this.env.PATH = `${join(this.dirs.work, 'bin')}:${this.env.PATH}:/usr/local/sbin:/usr/sbin:/sbin`
    try {
      const dirs = this.dry ? [] : [this.dirs.logs, join(this.dirs.work, 'bin')]
      for (const dir of dirs) mkdirSync(dir, { recursive: true })
    } catch (error) {
      throw new UsageError(
        `runtime directory ${plan.runtime} cannot be written (${messageOf(error)}): name another with --runtime`,
      )
    }
    const passphrase =
      spec.passphrase === false
        ? 'unset VYKAR_PASSPHRASE'
        : ': "${VYKAR_PASSPHRASE:?export it first}"; export VYKAR_PASSPHRASE'
    const file = join(this.dirs.logs, 'commands.sh')
    const head = transcriptHeader(plan.scenario, this.id, [passphrase, 'export NO_COLOR=1 LC_ALL=C.UTF-8'])
    this.transcript = new Transcript(this.dry ? undefined : file, head, this.dirs.work)
    this.report = emptyReport(plan, this.id, this.dry, file)
    this.aborted = new Promise((_, reject) => {
      this.abort = reject
    })
    this.aborted.catch(() => {})
  }

  /** A step before, between or after the rows. */
  step<T>(name: string, fn: () => Promise<T>): Promise<T> {
    const scope = this.scope('run', this.dirs.work)
    return runStep(scope, this.report.steps, this.terminal, this.aborted, name, fn)
  }

  /** One repository × variant. A failure ends the row, not the run. */
  row(spec: RowSpec, fn: (row: Row) => Promise<void>): Promise<void> {
    return runRow(this, spec, fn)
  }

  /** What commands run in: `where` names the log files, `dir` is their working directory. */
  scope(where: string, dir: string): Scope {
    return {
      runId: this.id,
      where,
      dir,
      logDir: this.dirs.logs,
      env: this.env,
      transcript: this.transcript,
      dry: this.dry,
      timeScale: this.common['time-scale'],
      step: { name: where, log: join(this.dirs.logs, `${where}.log`), seconds: 0, commands: [] },
      // What tidies up after an interruption has to run.
      interrupted: () => (this.tidying ? undefined : this.interrupted),
    }
  }

  /** Where a label's repository of this scenario is: at a managed server, or where the sample says. */
  endpoint(label: string): { url: string; files?: string; set?: Record<string, unknown> } {
    const service = this.services.get(label)
    if (service) return { url: service.url, files: service.files, set: service.set }
    const url = scenarioUrl(this.plan.sample.repository(label).url, this.plan.name)
    return { url, files: localDir(url) }
  }

  /** A secret of this run: into the environment of its commands, never into logs, reports or the transcript. */
  secret(name: string, value: string): string {
    this.env[name] = value
    this.secrets.push(value)
    this.transcript.secret(name)
    return value
  }

  /** Sets rclone up by its environment; the transcript gets the lines without the secrets' values. */
  rclone(settings: Record<string, string>): void {
    Object.assign(this.env, settings, { RCLONE_CONFIG: '/dev/null' })
    this.transcript.line('export RCLONE_CONFIG=/dev/null')
    const names = Object.entries(this.env).filter(([, value]) => value && this.secrets.includes(value))
    for (const [key, value] of Object.entries(settings)) {
      const secret = names.find(([name, known]) => known === value && name !== key)?.[0]
      const hidden = /SECRET|ACCESS_KEY/.test(key)
      this.transcript.line(
        `export ${key}=${secret ? `"$${secret}"` : hidden ? `"\${${key}:?}"` : this.transcript.quote(value)}`,
      )
    }
  }

  /** After a failure: whether the server of this repository answers, and what it logged last. */
  async blame(label: string): Promise<string[]> {
    return (await this.services.get(label)?.blame()) ?? []
  }

  /** Runs the undoing of things, which goes on also after an interruption. */
  async tidy<T>(scope: Scope, fn: () => Promise<T>): Promise<T> {
    this.tidying = true
    try {
      return await within(scope, fn)
    } finally {
      this.tidying = false
    }
  }

  /** With --keep a thing is left where it is and named. */
  keep(what: string): boolean {
    const kept = this.common.keep && !this.interrupted
    if (kept) this.report.notes.push(`kept: ${what}`)
    return kept
  }

  /** Makes `vykar` on the commands' PATH the one under test, or the saboteur around it. */
  private placeVykar(): void {
    const lie = this.common.sabotage
    const target = lie ? join(root, 'test/saboteur/vykar') : this.plan.vykar.path
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
  async execute(body: () => Promise<void>): Promise<number> {
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
      this.placeVykar()
      await body()
    } catch (error) {
      ended = error
    }
    const verdict = await this.conclude(ended)
    this.transcript.end()
    this.report.seconds = (performance.now() - start) / 1000
    const peakKiB = process.resourceUsage().maxRSS
    this.report.harness = { seconds: ownSeconds(this.report, this.report.seconds), peakKiB }
    const page = writeReport(this.runtime, this.report, true)
    pointTo(join(this.dirs.logs, '..', 'latest'), this.id)
    this.state.done()
    await release()
    this.printEnd(verdict, page)
    if (this.interrupted) return { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[this.interrupted as 'SIGINT']
    const untouched = this.report.rows.every((row) => row.verdict === 'FAIL')
    return ended instanceof UsageError || (ended instanceof Refused && untouched) ? 2 : exitCodes[verdict]
  }

  private printEnd(verdict: Verdict, page: string): void {
    for (const note of this.report.notes) this.terminal.line(`note: ${note}`)
    for (const row of this.report.rows) {
      for (const note of row.notes) this.terminal.line(`note: ${row.repo}: ${note}`)
      for (const kept of row.kept) this.terminal.line(`kept: ${kept}`)
    }
    console.log(`by hand ${this.report.transcript}`)
    console.log(`report ${page}`)
    console.log(`${verdict} ${this.plan.scenario} ${this.report.reason}`.trim())
  }

  private async conclude(ended: unknown): Promise<Verdict> {
    const { report } = this
    const verdicts = report.rows.map((row) => row.verdict)
    if (ended) verdicts.push(verdictOf(ended))
    const good = this.interrupted !== undefined || !verdicts.some((word) => word === 'FAIL' || word === 'BLOCKED')
    const { kept, failures } = await this.tidy(this.scope('run', this.dirs.work), () => this.cleanup.unwind(!good))
    report.notes.push(...kept.map((what) => `kept: ${what}`))
    const left = await end(() => processesOf(this.id, true))
    for (const process of left) failures.push(`process ${process.pid} ${process.command}`)
    const keepsWork = kept.length > 0 || report.rows.some((row) => row.kept.length) || this.common.keep
    try {
      if (!keepsWork || this.interrupted) removeBelow(this.runtime, this.dirs.work)
    } catch (error) {
      failures.push(messageOf(error))
    }
    for (const file of this.leaks()) failures.push(`a secret in ${file}`)
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

  /** Files of the run's logs that hold one of its secrets. */
  private leaks(): string[] {
    if (!this.secrets.length) return []
    const input = `${this.secrets.join('\n')}\n`
    const found = spawnSync('grep', ['-rlF', '-f', '-', this.dirs.logs], { input, encoding: 'utf8' })
    return found.stdout.split('\n').filter(Boolean)
  }

  private async rehearse(body: () => Promise<void>): Promise<number> {
    console.log(`${this.plan.scenario}: dry run, nothing is run or made\nneeds: ${this.spec.needs.join(', ')}`)
    console.log(`vykar: ${this.plan.vykar.path} ${this.plan.vykar.version}\nwork=${this.dirs.work}`)
    this.placeVykar()
    await body()
    return 0
  }
}

/** A run as the script sees it, with its own options typed. */
export type ScenarioRun<O extends OptionSpecs> = Run & { options: Values<typeof commonOptions & O> }

/**
 * Runs a script's procedure as a scenario and ends the process with the verdict's exit code.
 * @param meta the script's `import.meta`
 * @param spec what it needs and which options it takes
 * @param body the procedure
 */
export async function scenario<const O extends OptionSpecs = Record<never, never>>(
  meta: ImportMeta,
  spec: ScenarioSpec<O>,
  body: (run: ScenarioRun<O>) => Promise<void>,
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
    if (plan) {
      const run = Object.assign(new Run(plan, spec), { options: plan.options }) as ScenarioRun<O>
      process.exitCode = await run.execute(() => body(run))
    } else process.exitCode = 0
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
