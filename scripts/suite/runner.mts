// Runs scripts one after the other, so that a run which was killed can be taken up again: what a script prints goes to
// a file, and its pid and start time are on record before it is waited for.

import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, existsSync, openSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { sleep } from 'zx'
import { ask } from '#lib/ask.mts'
import { readJson, writeWhole } from '#lib/files.mts'
import { tsxWords } from '#lib/prepare.mts'
import { signal, startTime } from '#lib/process.mts'
import type { RunReport } from '#lib/report.mts'
import { exitCodes, UsageError, type Verdict } from '#lib/verdict.mts'
import type { Choice, Entry } from './scenarios.mts'

/** What became of one entry. */
export interface Result {
  verdict: Verdict
  reason: string
  seconds: number
  /** Path of the report; empty where there is none. */
  report: string
}

/** An entry with what is known of it. */
export interface Task extends Entry {
  /** File that its output goes to. */
  output: string
  /** While it runs, and after a kill: which process it is or was, and when it was begun (ISO 8601). */
  process?: { pid: number; start: string }
  begun?: string
  result?: Result
}

/** A run of several scripts: run.json. */
export interface SuiteRun {
  schema: 'vykar-e2e/all/1'
  runId: string
  profile: string
  started: string
  /** The program under test when it began: a run is not taken up with another. */
  vykar?: { path: string; sha256: string } | undefined
  /** Another one lay in its place when it ended. */
  replaced?: boolean
  tasks: Task[]
  left: Choice['left']
}

/** The checksum of a program: two of the same are the same build. */
const checksum = (file: string): string => createHash('sha256').update(readFileSync(file)).digest('hex')
/** The sha256 of a vykar, and of the vykar-server beside it, where there is one: both are what is tested. */
export const checksums = (path: string): string =>
  [path, join(dirname(path), 'vykar-server')]
    .filter((file) => existsSync(file))
    .map(checksum)
    .join(' ')

/** Writes run.json in one step: a reader, and a run that is taken up again, see it whole. */
export const save = (dir: string, run: SuiteRun): void =>
  writeWhole(join(dir, 'run.json'), `${JSON.stringify(run, null, 2)}\n`)

/**
 * Asks a call what it says of its options, before a run of many is begun: a file that is not there, a bad number, a runtime directory that
 * cannot be written are one line, and no report.
 * @throws UsageError with what it says
 */
export async function refuseFirst({ scenario, args }: Entry): Promise<void> {
  const [node, ...words] = tsxWords(`scripts/${scenario}`)
  const { code, stderr } = await ask([node!, ...words, ...args, '--dry-run'], { cwd: process.cwd() })
  if (code === 2) throw new UsageError(stderr.trim().replace(`${scenario}: `, ''))
}

/** Seconds that a script has to clean up when its time is over. */
const grace = 180

const lastLine = /^(PASS|FAIL|BLOCKED|SKIPPED|DEMO) (\S+) ?(.*)$/

/**
 * What a script's output and exit code say. A verdict counts only where the last line, the exit code and the report
 * agree.
 * @param code undefined where nobody saw it end
 */
export function resultOf({ scenario, output, begun }: Task, code: number | undefined): Result {
  const text = existsSync(output) ? readFileSync(output, 'utf8') : ''
  const lines = text.trimEnd().split('\n')
  const seconds = begun === undefined ? 0 : (statSync(output).mtimeMs - Date.parse(begun)) / 1000
  const report = /^report (.*)$/m.exec(text)?.[1] ?? ''
  const [, word, name, reason = ''] = lastLine.exec(lines.at(-1) ?? '') ?? []
  const fail = (why: string): Result => ({ verdict: 'FAIL', reason: why, seconds, report })
  if (!word || name !== scenario)
    return fail(`ended without a verdict${code === undefined ? '' : ` (exit ${code})`}: ${lines.at(-1) || 'no output'}`)
  const verdict = word as Verdict
  // A run that the user interrupted says FAIL with the signal's exit code.
  if (code !== undefined && code !== exitCodes[verdict] && !(verdict === 'FAIL' && code !== 0))
    return fail(`its last line says ${verdict}, its exit code is ${code}`)
  if (report) {
    const written = readJson<RunReport>(report.replace(/\.md$/, '.json'))
    if (!written) return fail('its report is missing or torn')
    if (written.verdict !== verdict) return fail(`its last line says ${verdict}, its report ${written.verdict}`)
  } else if (verdict === 'PASS') return fail('it says PASS, but names no report')
  return { verdict, reason, seconds, report }
}

/**
 * Runs a task, or waits for the one that a killed run has left behind.
 * @param stop asked twice a second; true ends the task with TERM
 * @param stored called when the task's process is known
 * @returns undefined when it was stopped
 */
export async function runTask(task: Task, stop: () => boolean, stored: () => void): Promise<Result | undefined> {
  let code: number | undefined
  const known = task.process && startTime(task.process.pid) === task.process.start
  // One that a killed run has left behind may have come to its end meanwhile.
  if (task.process && !known && lastLine.test(readFileSync(task.output, 'utf8').trimEnd().split('\n').at(-1)!))
    return resultOf(task, undefined)
  if (!known) {
    const out = openSync(task.output, 'w')
    const [node, ...words] = tsxWords(`scripts/${task.scenario}`)
    // A session of its own: neither Ctrl-C nor the end of this program reaches it.
    const child = spawn(node!, [...words, ...task.args], { stdio: ['ignore', out, out], detached: true })
    closeSync(out)
    child.on('exit', (status, name) => {
      code = status ?? (name === 'SIGKILL' ? 137 : 143)
    })
    task.process = { pid: child.pid ?? -1, start: startTime(child.pid ?? -1) ?? '' }
    task.begun = new Date().toISOString()
    stored()
  }
  const target = { ...task.process!, command: task.scenario }
  const alive = () => startTime(target.pid) === target.start
  const deadline = Date.parse(task.begun!) + task.limit * 1000
  let asked: number | undefined
  let late = false
  while (alive()) {
    if (asked === undefined && (stop() || Date.now() > deadline)) {
      late = !stop()
      asked = Date.now()
      signal(target, 'SIGTERM')
    } else if (asked !== undefined && Date.now() > asked + grace * 1000) signal(target, 'SIGKILL')
    await sleep(200)
  }
  // The exit event may come a little after the process has gone.
  for (let i = 0; i < 20 && !known && code === undefined; i++) await sleep(50)
  if (asked !== undefined && !late) return undefined
  const result = resultOf(task, code)
  if (!late) return result
  const over = `exceeded its limit of ${task.limit / 60} min`
  const failed = readJson<RunReport>(result.report.replace(/\.md$/, '.json'))?.rows.find(
    ({ verdict, reason }) => verdict === 'FAIL' && !reason.startsWith('interrupted'),
  )
  if (failed)
    return { ...result, verdict: 'FAIL', reason: `${failed.repo} ${failed.variant}: ${failed.reason}; ${over}` }
  return { ...result, verdict: 'BLOCKED', reason: over }
}
