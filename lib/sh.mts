// `$`: a command as one would type it, bounded by coreutils timeout, logged to files, measured by GNU time.
import { AsyncLocalStorage } from 'node:async_hooks'
import { appendFileSync, closeSync, existsSync, openSync, readFileSync, readSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { $ as zx } from 'zx'
import { quote, type Transcript } from './transcript.mts'
import { Blocked, Interrupted, Mismatch, UsageError } from './verdict.mts'

/** What was run and what it cost; times in seconds, memory in KiB, undefined where GNU time is missing. */
export interface CommandRecord {
  command: string
  code: number
  /** When it was started, in milliseconds since the epoch. */
  at: number
  seconds: number
  cpuSeconds?: number
  /** What of the CPU time was spent in the kernel. */
  systemSeconds?: number
  peakKiB?: number
  /** Bytes that really came from, or went to, a disk. */
  readBytes?: number
  writtenBytes?: number
}

/** One step of the procedure: its log and the commands it ran. */
export interface StepRecord {
  name: string
  log: string
  seconds: number
  verdict?: string
  reason?: string
  commands: CommandRecord[]
  /** Time in which commands ran that are too many to be on record one by one. */
  busySeconds?: number
}

/** Where commands run: the row (or run) that is under way. */
export interface Scope {
  runId: string
  /** Label of the row in its log file names, `run` outside of rows. */
  where: string
  logDir: string
  /** Working directory of commands, and where `out` files go. */
  dir: string
  env: NodeJS.ProcessEnv
  transcript: Transcript
  dry: boolean
  timeScale: number
  step: StepRecord
  interrupted: () => NodeJS.Signals | undefined
}

const scopes = new AsyncLocalStorage<Scope>()

/** The scope that is under way. Throws outside of a scenario. */
export function scope(): Scope {
  const current = scopes.getStore()
  if (!current) throw new Error('commands can only be run inside a scenario')
  return current
}

/** Runs `fn` so that `$` and the helpers see `inner` as their scope. */
export function within<T>(inner: Scope, fn: () => Promise<T>): Promise<T> {
  return scopes.run(inner, fn)
}

/** `limit` in zx's notation (`90s`, `5m`, `2h`); `expect` the exit codes that are right, or `any`. */
export interface CommandOptions {
  limit?: string
  expect?: number[] | 'any'
  /** Keep stdout at this name in the row's directory, so that the transcript can use it too. */
  out?: string
  /** Left out of the transcript: a look of the harness's own, which nobody would type. */
  unlisted?: boolean
  env?: NodeJS.ProcessEnv
  cwd?: string
}
type Arg = string | number | readonly string[]

/** Thrown in a dry run where a value would come out of a command; the step then gives a placeholder. */
export class DryEnd extends Error {}

/** A command failed: its exit code is not among the expected ones. The verdict is FAIL. */
export class CommandFailed extends Mismatch {}

const limitPattern = /^(\d+)(ms|s|m|h)$/
const unit: Record<string, number> = { ms: 0.001, s: 1, m: 60, h: 3600 }
/** Seconds of a duration such as `90s`. Throws UsageError on anything else. */
export function seconds(duration: string): number {
  const match = limitPattern.exec(duration)
  if (!match) throw new UsageError(`${duration}: not a duration such as 90s, 5m or 2h`)
  return Number(match[1]) * unit[match[2]!]!
}

/** More stdout than this stays in its file and is not read into memory. */
const largeBytes = 1 << 20

/** A finished command: exit code, the two outputs and what it cost. */
export class Output {
  constructor(
    readonly record: CommandRecord,
    readonly file: string,
    readonly stderr: string,
    private readonly scope: Scope,
    private readonly kept: boolean,
  ) {}
  get code(): number {
    return this.record.code
  }
  /** stdout as text. Throws DryEnd in a dry run, and an error where it is too large to be read at once. */
  get stdout(): string {
    if (this.scope.dry) throw new DryEnd()
    if (statSync(this.file).size > largeBytes) throw new Error(`stdout is too large to read at once: ${this.file}`)
    return readFileSync(this.file, 'utf8')
  }
  /**
   * Requires a match in stdout and returns it; the transcript asks the same of a kept output with grep -P.
   * Throws Mismatch with `complaint` and the last line printed.
   */
  must(pattern: RegExp, complaint: string): string[] {
    const { transcript, dry } = this.scope
    if (this.kept) transcript.line(`grep -qP ${quote(pattern.source)} ${transcript.quote(this.file)}`)
    if (dry) return []
    const match = pattern.exec(this.stdout)
    if (!match)
      throw new Mismatch(`${complaint}; ${this.record.command} printed: ${lastLine(this.stdout) || 'nothing'}`)
    return [...match]
  }
  /** Requires a match in stderr: the message of an expected failure. */
  complained(pattern: RegExp): this {
    if (!this.scope.dry && !pattern.test(this.stderr))
      throw new Mismatch(
        `${this.record.command} failed with exit ${this.code} as expected, but said ${lastLine(this.stderr)} and not ${pattern}`,
      )
    return this
  }
}

const lastLine = (text: string) => text.trim().split('\n').at(-1)?.trim() ?? ''
const gnuTime = existsSync('/usr/bin/time')

function render(pieces: readonly string[], args: Arg[], how: (word: string) => string): string {
  const one = (arg: Arg) =>
    typeof arg === 'object' ? arg.map((word) => how(String(word))).join(' ') : how(String(arg))
  return pieces.map((piece, i) => piece + (i < args.length ? one(args[i]!) : '')).join('')
}

/** Appends `from` to the step's log, or only says where it is when it is long. */
function append(log: string, from: string): string {
  const size = statSync(from).size
  if (size > 64 * 1024) appendFileSync(log, `(${size} bytes of output in ${from})\n`)
  else appendFileSync(log, readFileSync(from))
  const tail = Buffer.alloc(Math.min(size, 64 * 1024))
  const fd = openSync(from, 'r')
  readSync(fd, tail, 0, tail.length, size - tail.length)
  closeSync(fd)
  return tail.toString('utf8')
}

/** Blocks in which getrusage(2) counts what was read and written. */
const blockBytes = 512

function measured(file: string): Partial<CommandRecord> {
  const last = existsSync(file) ? lastLine(readFileSync(file, 'utf8')) : ''
  rmSync(file, { force: true })
  const [user, system, peakKiB, read, written] = last.split(' ').map(Number)
  if (user === undefined || system === undefined || !Number.isFinite(user + system)) return {}
  const disk = { readBytes: read! * blockBytes, writtenBytes: written! * blockBytes }
  return { cpuSeconds: user + system, systemSeconds: system, peakKiB, ...disk }
}

let serial = 0

async function execute(options: CommandOptions, pieces: readonly string[], args: Arg[]): Promise<Output> {
  const s = scope()
  const signal = s.interrupted()
  if (signal) throw new Interrupted(signal)
  const command = render(pieces, args, quote).trim()
  if (!options.unlisted) s.transcript.command(render(pieces, args, (word) => s.transcript.quote(word)).trim(), options)
  const record: CommandRecord = { command, code: 0, at: Date.now(), seconds: 0 }
  const kept = options.out !== undefined && !options.unlisted
  if (s.dry) return new Output(record, join(s.dir, options.out ?? ''), '', s, kept)

  s.step.commands.push(record)
  const base = `${s.step.log.replace(/\.log$/, '')}.${++serial}`
  const out = options.out ? join(s.dir, options.out) : `${base}.out`
  const limit = seconds(options.limit ?? '10m') * s.timeScale
  const time = gnuTime ? ['/usr/bin/time', '-q', '-f', '%U %S %M %I %O', '-o', `${base}.time`] : []
  const start = process.hrtime.bigint()
  // detached: the command gets a session of its own, so that Ctrl-C reaches this program alone and it decides.
  const child = await zx({
    cwd: options.cwd ?? s.dir,
    env: { ...s.env, ...options.env, VYKAR_E2E_RUN: s.runId },
    detached: true,
    nothrow: true,
    quiet: true,
    stdio: ['ignore', 'ignore', 'ignore'],
  })`${time} timeout -k 30s ${limit.toFixed(3)}s bash -c ${`set -euo pipefail; ${command}`} >${out} 2>${base}.err`
  record.seconds = Number(process.hrtime.bigint() - start) / 1e9
  record.code = child.exitCode ?? 128
  Object.assign(record, measured(`${base}.time`))

  appendFileSync(s.step.log, `$ ${command}\n`)
  const stderr = append(s.step.log, `${base}.err`)
  const stdout = append(s.step.log, out)
  appendFileSync(s.step.log, `(exit ${record.code}, ${record.seconds.toFixed(2)} s)\n\n`)
  rmSync(`${base}.err`)

  const late = s.interrupted()
  if (late) throw new Interrupted(late)
  // timeout exits 124 when TERM was enough and 137 when it had to kill; a 137 before the limit is somebody else's kill.
  if ((record.code === 124 || record.code === 137) && record.seconds >= limit * 0.99)
    throw new Blocked(`${s.step.name}: out of time after ${Math.round(limit)} s: ${command} (log: ${s.step.log})`)
  const expected = options.expect ?? [0]
  if (expected !== 'any' && !expected.includes(record.code))
    throw new CommandFailed(
      `${s.step.name}: exit ${record.code}${expected[0] === 0 ? '' : ` instead of ${expected.join(' or ')}`}: ${command}: ${lastLine(stderr) || lastLine(stdout) || 'no message'} (log: ${s.step.log})`,
    )
  return new Output(record, out, stderr, s, kept)
}

export interface Shell {
  (pieces: TemplateStringsArray, ...args: Arg[]): Promise<Output>
  (options: CommandOptions): (pieces: TemplateStringsArray, ...args: Arg[]) => Promise<Output>
}

/**
 * Runs a bash command line (`set -euo pipefail`) in the current row, bounded by `limit` (10 minutes unless told).
 * Throws CommandFailed on an unexpected exit code, Blocked when it ran out of time, Interrupted after a signal.
 */
export const $ = ((first: TemplateStringsArray | CommandOptions, ...args: Arg[]) =>
  'raw' in first
    ? execute({}, (first as TemplateStringsArray).raw, args)
    : (pieces: TemplateStringsArray, ...rest: Arg[]) => execute(first as CommandOptions, pieces.raw, rest)) as Shell

/** Runs a line of bash that was put together elsewhere, quoted already; else as `$`. */
export const bash = (options: CommandOptions, line: string): Promise<Output> => execute(options, [line], [])
