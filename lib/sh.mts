// `$`, `undo`, `check`, `when`, `step`: what a script consists of, beside `background`. Each line runs in the row's directory, bounded by coreutils
// timeout, logged, measured by GNU time, and stands in commands.sh as it ran; in a dry run it is printed and not run.
import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync, statfsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { $ as zx } from 'zx'
import { lastLine } from './ask.mts'
import { unexplainedWarnings } from './gaps.mts'
import { moved } from './process.mts'
import { leftAsBefore } from './report.mts'
import { type CommandRecord, rowScope, type Scope, type StepRecord, scope, within } from './scope.mts'
import { quote } from './transcript.mts'
import { Blocked, Interrupted, Mismatch, messageOf, Refused, UsageError, verdictOf } from './verdict.mts'

export { type CommandRecord, rowScope, type Scope, type StepRecord, scope, within } from './scope.mts'

/**
 * `limit` in zx's notation (`90s`, `5m`, `2h`), 10m unless told; `expect` the exit codes that are right, or `any`, with 124 or 137
 * where the time was up;
 * `otherwise` the verdict of others, where that is not FAIL: Blocked, Skipped, UsageError; `warns` what vykar may warn of here.
 */
export interface CommandOptions {
  limit?: string
  expect?: number[] | 'any'
  otherwise?: new (message: string) => Error
  warns?: RegExp
}
/** What is put into a line: a word or words, quoted; `{ raw }` is bash that stands as it is. */
type Arg = string | number | readonly string[] | { raw: string }

/** A command failed: its exit code is not among the expected ones. The verdict is FAIL. */
export class CommandFailed extends Mismatch {}

/** Seconds of a duration such as `90s`. Throws UsageError on anything else. */
export function seconds(duration: string): number {
  const [, count, unit] = /^(\d+)(ms|s|m|h)$/.exec(duration) ?? []
  if (!unit) throw new UsageError(`${duration}: not a duration such as 90s, 5m or 2h`)
  return Number(count) * { ms: 0.001, s: 1, m: 60, h: 3600 }[unit as 'ms']!
}
/** A limit in seconds as --time-scale makes it: not below 5 s, which a busy machine takes for anything. */
export const scaled = (limit: string, by: number) => Math.max(seconds(limit) * by, Math.min(seconds(limit), 5))

/** A finished command. In a dry run nothing was printed, with exit 0. */
export interface Output {
  code: number
  seconds: number
  stdout: string
  stderr: string
  cost: CommandRecord
}

const gnuTime = existsSync('/usr/bin/time')
/** More output than this stays in its file. */
const large = 1 << 20
/** A file's text; empty where it is missing or large. */
export const slurp = (file: string) =>
  existsSync(file) && statSync(file).size <= large ? readFileSync(file, 'utf8') : ''

/** What may be a warning in a file: its text, or of a large one the lines that have such a word. */
export const warningsIn = (file: string) =>
  (statSync(file, { throwIfNoEntry: false })?.size ?? 0) > large ? zx.sync({ nothrow: true, quiet: true })`grep -aE 'WARN|ERROR|Error|Warning|panicked' ${file}`.stdout : slurp(file) // biome-ignore format: one line
/** The line as bash: words that are put in are quoted, lists word by word, everything else stands as it is typed. */
function render(pieces: TemplateStringsArray, args: Arg[]): string {
  const word = (arg: Arg) => {
    if (typeof arg !== 'object') return quote(String(arg))
    return 'raw' in arg ? arg.raw : arg.map((w) => quote(String(w))).join(' ')
  }
  return pieces.raw.map((piece, i) => piece + (i < args.length ? word(args[i]!) : '')).join('').trim() // biome-ignore format: one line
}

/** How commands.sh writes what exit codes are right. */
function byHand(line: string, expect: CommandOptions['expect']): string {
  // A bracket right after a here-document or a comment would belong to it, and two at the beginning are arithmetic.
  const heredoc = line.includes('\n') || / # /.test(line)
  if (!expect || (expect !== 'any' && expect.join() === '0'))
    // What fails before the last && ends a line of its own, and no script.
    return line.includes('&&') && !line.startsWith('#') ? `( ${line}${heredoc ? '\n' : ''})` : line
  const whole = heredoc || /[;&]/.test(line.replace(/\d?>&\d|&>/g, '')) ? `( ${line}${heredoc ? '\n' : ''})` : line
  if (expect === 'any') return `${whole} || true`
  return `rc=0; ${whole} || rc=$?; [[ $rc =~ ^(${expect.join('|')})$ ]]`
}

/** Throws Interrupted where nothing more is to be run. */
export function alive(s: Scope): void {
  if (s.over || (s.run.interrupted && !s.run.tidying)) throw new Interrupted(s.run.interrupted ?? 'SIGTERM')
}

function measured(file: string): Partial<CommandRecord> {
  const [user, system, peakKiB, read, written] = lastLine(slurp(file)).split(' ').map(Number)
  rmSync(file, { force: true })
  if (user === undefined || system === undefined || !Number.isFinite(user + system)) return {}
  // getrusage(2) counts blocks of 512 bytes.
  const disk = { readBytes: read! * 512, writtenBytes: written! * 512 }
  return { cpuSeconds: user + system, systemSeconds: system, peakKiB, ...disk }
}

/** Less than this free means that a disk has run full, though what failed has given back what it had: 32 MiB, or ten inodes. */
const full = { bytes: 32 << 20, inodes: 10 }
/** Throws Blocked where the runtime directory has run full: what failed says nothing about vykar then. */
export function notFull(runtime: string): void {
  if (!existsSync(runtime)) return
  const { bavail, bsize, ffree, files } = statfsSync(runtime)
  if (bavail * bsize < full.bytes || (files > 0 && ffree < full.inodes))
    throw new Blocked(`the disk of ${runtime} has run full: free some, or name another directory with --runtime`)
}

/** Appends to a log; a disk that has run full is said by the line that meets it. */
function log(file: string, text: string): void {
  try {
    appendFileSync(file, text)
  } catch (error) {
    throw new Blocked(`${file} cannot be written: ${messageOf(error)}`)
  }
}
let serial = 0
/** Runs a line of bash. `listed` says whether it stands in commands.sh: a look of lib's own does not. */
export async function execute(line: string, options: CommandOptions = {}, listed = true): Promise<Output> {
  const s = scope()
  const { run } = s
  alive(s)
  if (/--yes-delete-this-repo|\brclone delete\b/.test(line) && !s.mayDelete)
    throw new Refused(`refused: ${line}: no \`mayDelete\` has looked at the repository before`)
  if (listed) run.transcript.add(s.place, byHand(line, options.expect))
  const record: CommandRecord = { command: line, code: 0, at: Date.now(), seconds: 0 }
  if (s.dry) return { code: 0, seconds: 0, stdout: '', stderr: '', cost: record }
  const current = s.steps.at(-1) ?? step('begin')
  current.commands.push(record)
  const base = `${current.log.replace(/\.log$/, '')}.${++serial}`
  const limit = scaled(options.limit ?? '10m', run.common['time-scale'])
  const time = gnuTime ? ['/usr/bin/time', '-q', '-f', '%U %S %M %I %O', '-o', `${base}.time`] : []
  const start = performance.now()
  // detached: the command gets a session of its own, so that Ctrl-C reaches this program alone and it decides.
  const begin = () =>
    zx({
      cwd: s.dir,
      env: { ...run.env, ...s.env, VYKAR_E2E_RUN: run.id },
      detached: true,
      nothrow: true,
      quiet: true,
      stdio: ['ignore', 'ignore', 'ignore'],
    })`${time} timeout -k 30s ${limit.toFixed(3)}s bash -c ${`set -euo pipefail\n${line}`} >${base}.out 2>${base}.err`
  let child = await begin()
  // A signal to the whole process group just before the session is its own ends a command that has not begun.
  if (!existsSync(`${base}.out`)) {
    alive(s)
    child = await begin()
  }
  record.seconds = (performance.now() - start) / 1000
  record.code = child.exitCode ?? 128
  Object.assign(record, measured(`${base}.time`))
  const [stdout, stderr] = [slurp(`${base}.out`), slurp(`${base}.err`)]
  const cost = `(exit ${record.code}, ${record.seconds.toFixed(2)} s)`
  log(current.log, `$ ${line}\n${stderr}${stdout}${cost}\n\n`)
  for (const [kind, text] of Object.entries({ out: stdout, err: stderr }))
    if (text || (statSync(`${base}.${kind}`, { throwIfNoEntry: false })?.size ?? 0) === 0)
      rmSync(`${base}.${kind}`, { force: true })
    else log(current.log, `(more output in ${base}.${kind})\n`)
  alive(s)
  // timeout exits 124 when TERM was enough and 137 when it had to kill; a 137 before the limit is somebody else's kill.
  if ((record.code === 124 || record.code === 137) && record.seconds >= limit * 0.99 && options.expect !== 'any')
    throw new Blocked(`${current.name}: out of time after ${Math.round(limit)} s: ${line} (log: ${current.log})`)
  const expected = options.expect ?? [0]
  if (expected !== 'any' && !expected.includes(record.code)) {
    notFull(run.runtime)
    // What failed may have given its space back since.
    const enospc = /^.*No space left on device.*$/im.exec(stderr + stdout + said(line, s.dir))?.[0]
    if (enospc) throw new Blocked(`${current.name}: ${enospc.trim()} (log: ${current.log})`)
    const why = lastLine(stderr) || lastLine(stdout) || lastLine(said(line, s.dir)) || 'no message'
    const exit = `exit ${record.code}${expected[0] === 0 ? '' : ` instead of ${expected.join(' or ')}`}`
    const text = `${current.name}: ${exit}: ${line.split('\n')[0]}: ${why} (log: ${current.log})`
    throw new (options.otherwise ?? CommandFailed)(options.otherwise === UsageError ? why : text)
  }
  if (expected !== 'any' && record.code === 0)
    noWarning(line, [stdout, stderr, warningsIn(`${base}.out`), warningsIn(`${base}.err`), said(line, s.dir)].join('\n'), current, options.warns) // biome-ignore format: one line
  return { code: record.code, seconds: record.seconds, stdout, stderr, cost: record }
}

/** Throws Mismatch where a vykar that exited 0 has warned of what neither its config nor `warns` explains. */
export function noWarning(line: string, text: string, { name, log }: StepRecord, warns?: RegExp): void {
  const { dir, run } = scope()
  const config = /\bvykar --config (\S+) /.exec(line)?.[1]
  if (!config) return
  const explained = slurp(join(dir, config)) || slurp(join(dir, 'config.yaml'))
  const first = unexplainedWarnings(text, run.plan.vykar.version, explained).find((one) => !warns?.test(one))
  if (first) throw new Mismatch(`${name}: vykar exited 0 but warned: ${first} (log: ${log})`)
}

/** What a line has written to the files that it was redirected to; what comes before `||` is looked at by what comes after it. */
const said = (line: string, dir: string) =>
  [...line.replace(/^.*\|\|/s, '').matchAll(/>>? ?(\w[\w./-]*)/g)].map(([, name]) => join(dir, name!)).filter((file) => statSync(file, { throwIfNoEntry: false })?.isFile()).map(warningsIn).join('\n') // biome-ignore format: one line

/** A tag that takes options first or none. */
type Tag<O, T> = {
  (pieces: TemplateStringsArray, ...args: Arg[]): T
  (options: O): (pieces: TemplateStringsArray, ...args: Arg[]) => T
}
/** A tag of this file's kind out of what it does with the rendered line. */
export const tag = <O, T>(act: (line: string, options: O) => T, none: O) =>
  ((first: TemplateStringsArray | O, ...args: Arg[]) =>
    Array.isArray(first)
      ? act(render(first as unknown as TemplateStringsArray, args), none)
      : (pieces: TemplateStringsArray, ...rest: Arg[]) => act(render(pieces, rest), first as O)) as Tag<O, T>

/**
 * Runs a line of bash (`set -euo pipefail`), as zx does: words put in with `${…}` are quoted, `$(…)` and `$NAME` are bash's.
 * Throws CommandFailed on an unexpected exit code, Blocked when it ran out of time, Interrupted after a signal.
 */
export const $ = tag((line, options: CommandOptions) => execute(line, options), {})

/** A look of lib's own that nobody would type: not in commands.sh, and not run in a dry run. */
export const look = tag((line, options: CommandOptions) => execute(line, options, false), {})

/**
 * Registers a line that undoes what the next ones make; run last in first out when the row (or the run) ends, also after
 * Ctrl-C, and by the next run after `kill -9`. So it must do no harm where there is nothing to undo, or where somebody
 * else's has taken its place meanwhile; `later: false` where that cannot be told, and the next run is to leave it alone.
 * `keep` names what is left for inspection, and with --keep, when the row or run does not pass; `there` is bash that says
 * whether it exists at all.
 */
export const undo = tag((line, options: CommandOptions & { keep?: string; later?: boolean; there?: string }) => {
  const { keep, later = true, there, ...rest } = options
  const { undo, run, place } = scope()
  // In commands.sh what is kept for inspection goes at the end only, the rest also when the script fails.
  if (keep === undefined) run.transcript.add(place, `undo ${quote(line)}`)
  const exists =
    there === undefined ? undefined : async () => (await execute(there, { expect: 'any' }, false)).code === 0
  undo.add(keep ?? line, () => execute(line, rest, keep !== undefined), {
    keep: keep !== undefined,
    line: later ? line : '',
    exists,
  })
}, {})

/**
 * A check of lib's own, which reads files and throws; `hand` is the bash (or comment) that stands for it in commands.sh.
 * Not made in a dry run.
 */
export async function check(hand: string, fn: () => void | Promise<void>): Promise<void> {
  const s = scope()
  alive(s)
  s.run.transcript.add(s.place, byHand(hand, undefined))
  if (!s.dry) await fn()
}

/**
 * What follows depends on the exit code of the line before, which `expect` allowed. All cases stand in commands.sh; the one that
 * came about is run, the others are only written down.
 */
export async function when(tried: Output, cases: Record<number, () => Promise<void>>): Promise<void> {
  const s = scope()
  s.run.transcript.add(s.place, 'case $rc in')
  for (const [code, fn] of Object.entries(cases)) {
    s.run.transcript.add(s.place, `${code})`)
    await within({ ...s, dry: s.dry || tried.code !== Number(code) }, fn)
    s.run.transcript.add(s.place, ';;')
  }
  s.run.transcript.add(s.place, 'esac')
}

/** Runs `fn` with its lines in a directory below the row's own, which is made. */
export function inside<T>(name: string, fn: () => Promise<T>): Promise<T> {
  const s = scope()
  const dir = join(s.dir, name)
  if (!s.dry) mkdirSync(dir, { recursive: true })
  return within({ ...s, place: join(s.place, name), dir }, fn)
}

/** What a file of the row says, without the last newline; empty in a dry run. */
export const read = (name: string): string => {
  const { dry, dir } = scope()
  return dry ? '' : readFileSync(join(dir, name), 'utf8').trimEnd()
}

/** A remark for the report; of the row, where one is under way. */
export const note = (text: string): void => {
  const { dry, report, run } = scope()
  const notes = (report ?? run.report).notes
  if (!dry && !notes.includes(text)) notes.push(text)
}

/** A figure for the report. */
export const fact = (name: string, value: string | number): void => {
  if (!scope().dry) rowScope().report.facts[name] = value
}

/** From here on what is run belongs to this part of the procedure: a log and a line of progress. */
export function step(name: string): StepRecord {
  const s = scope()
  alive(s)
  endStep(s)
  const { transcript, dirs, dry, terminal } = s.run
  const file = `${s.where}.${String(s.steps.length + 1).padStart(2, '0')}-${name.replace(/[^\w.-]+/g, '-')}.log`
  const record: StepRecord = { name, log: join(dirs.logs, file), seconds: 0, commands: [] }
  Object.defineProperty(record, 'begun', { value: performance.now() })
  transcript.head(`${s.where}: ${name}`)
  s.steps.push(record)
  if (dry) return record
  appendFileSync(record.log, '')
  const begun = Date.now()
  const left = () => leftAsBefore(s.run.reportBefore, s.where, name, (Date.now() - begun) / 1000)
  if (!s.quiet) terminal.begin(s.where, name, () => moved(s.run.id) + left())
  return record
}

/** The part that is under way has ended, well or by an error. */
export function endStep(s: Scope, error?: unknown): void {
  const record = s.steps.at(-1) as (StepRecord & { begun: number }) | undefined
  if (!record || record.verdict || s.run.dry) return
  record.seconds = (performance.now() - record.begun) / 1000
  record.verdict = error ? verdictOf(error) : 'PASS'
  if (error) record.reason = messageOf(error)
  const lines = record.commands.map((c) => c.command)
  if (s.quiet) return
  s.run.terminal.end(error ? record.verdict : 'ok', record.seconds, record.reason ?? '', lines)
}
