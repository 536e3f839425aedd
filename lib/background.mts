// A command in the background that is to be interrupted: its own pid, its output in files, how it ended.
import { spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { sleep } from 'zx'
import { end, type Process, signal, startTime } from './process.mts'
import { scope, seconds } from './sh.mts'
import { Blocked, Interrupted } from './verdict.mts'

/** How a background command ended. */
export interface Ended {
  /** Exit code, 128 + signal number where a signal ended it. */
  rc: number
  /** The signal that ended it or made it end: TERM, KILL, or none. */
  by: string
  /** Seconds from the first signal to its end; 0 where it ended by itself. */
  seconds: number
}

/** A running command. */
export interface Background {
  process: Process
  /** Whether it still runs. */
  running: () => boolean
  /**
   * Sends a signal to the command itself, and KILL when it still lives after the grace time.
   * @param grace seconds
   */
  interrupt: (name: 'TERM' | 'KILL', grace: number) => Promise<Ended>
}

const signalNumbers: Record<string, number> = { SIGTERM: 15, SIGKILL: 9, SIGINT: 2, SIGHUP: 1, SIGSEGV: 11, SIGABRT: 6 }

/**
 * Starts a program in the row's directory, stdout and stderr to `<out>` there. It is ended when the row is, and after
 * `limit` at the latest.
 * @param limit in zx's notation, scaled by --time-scale
 */
export function background(argv: string[], out: string, limit = '3600s'): Background {
  const s = scope()
  const aborted = s.interrupted()
  if (aborted) throw new Interrupted(aborted)
  const file = openSync(join(s.dir, out), 'w')
  const child = spawn(argv[0]!, argv.slice(1), {
    cwd: s.dir,
    env: { ...s.env, VYKAR_E2E_RUN: s.runId },
    stdio: ['ignore', file, file],
    detached: true,
  })
  closeSync(file)
  const started = performance.now()
  const record = { command: argv.join(' '), code: 0, at: Date.now(), seconds: 0 }
  s.step.commands.push(record)
  const ended = new Promise<number>((resolve) => {
    child.once('error', () => resolve(127))
    child.once('exit', (code, name) => {
      record.code = code ?? 128 + (signalNumbers[name ?? ''] ?? 0)
      record.seconds = (performance.now() - started) / 1000
      resolve(record.code)
    })
  })
  const process: Process = { pid: child.pid ?? -1, start: startTime(child.pid ?? -1) ?? '', command: record.command }
  const running = () => startTime(process.pid) === process.start
  const clock = setTimeout(() => signal(process, 'SIGKILL'), seconds(limit) * s.timeScale * 1000)
  clock.unref()
  void ended.then(() => clearTimeout(clock))

  const interrupt = async (name: 'TERM' | 'KILL', grace: number): Promise<Ended> => {
    const from = performance.now()
    const alive = running()
    let by = alive ? name : 'none'
    if (alive) signal(process, `SIG${name}`)
    const deadline = sleep(grace * 1000).then(() => 'late' as const)
    if (alive && name === 'TERM' && (await Promise.race([ended, deadline])) === 'late') {
      by = 'KILL'
      await end(() => (running() ? [process] : []), 0)
    }
    const rc = await ended
    return { rc, by, seconds: alive ? (performance.now() - from) / 1000 : 0 }
  }
  return { process, running, interrupt }
}

/**
 * Waits for a condition, asked every 10 ms.
 * @param deadline in zx's notation, scaled by --time-scale
 * @throws Blocked naming what was waited for and the last answer, Interrupted after a signal
 */
export async function until(
  what: string,
  condition: () => boolean,
  deadline = '120s',
  answer = () => '',
): Promise<void> {
  const s = scope()
  const limit = Date.now() + seconds(deadline) * s.timeScale * 1000
  while (!condition()) {
    const aborted = s.interrupted()
    if (aborted) throw new Interrupted(aborted)
    if (Date.now() > limit)
      throw new Blocked(`${s.step.name}: waited ${deadline} for ${what}; last seen: ${answer() || 'nothing'}`)
    await sleep(10)
  }
}
