// `background`: a line that runs while the next ones do, as `&` in bash.
import { spawn } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { sleep } from 'zx'
import { lastLine } from './ask.mts'
import { end, type Process, signal, startTime } from './process.mts'
import { type CommandRecord, scope } from './scope.mts'
import { alive, CommandFailed, notFull, noWarning, read, scaled, seconds, slurp, step, tag, warningsIn } from './sh.mts'
import { Blocked } from './verdict.mts'

/** A line that runs meanwhile: its pid in NAME.pid, what it prints in NAME.out. */
export interface Background {
  running: () => boolean
  /**
   * Ends it by a signal, and by KILL when it still lives after the grace time; `by` is what ended it, `none` where it had
   * ended by itself, `code` its exit code (128 + number of the signal).
   */
  end: (name: 'TERM' | 'INT' | 'KILL', grace?: string) => Promise<Ended>
  /** Waits for its own end. Throws CommandFailed on an unexpected exit code, Mismatch where what had to work warns of other than `warns`. */
  done: (expect?: number[], warns?: RegExp) => Promise<Ended>
}
/** How a background line ended. */
export interface Ended {
  code: number
  by: string
  seconds: number
}

/**
 * Starts a line in the background; it is one command (or loop), so that `$!` is its pid. What still runs when the row (or run)
 * ends is ended; a service may also leave processes of its own until then. Throws Interrupted after a signal.
 */
export const background = (name: string, options: { limit?: string; service?: boolean } = {}) =>
  tag(async (line: string): Promise<Background> => {
    const s = scope()
    const { run } = s
    alive(s)
    const text = `${line} > ${name}.out 2>&1 & echo $! > ${name}.pid`
    run.transcript.add(s.place, text)
    const killed = (signal: string, grace = '60s') => `kill -${signal} $(<${name}.pid) || true; timeout ${grace} tail -f --pid=$(<${name}.pid) /dev/null || kill -KILL $(<${name}.pid) 2> /dev/null || true; rc=0; wait $(<${name}.pid) || rc=$?` // biome-ignore format: one line
    const waited = (expect: number[]) => `rc=0; wait $(<${name}.pid) || rc=$?; [[ $rc =~ ^(${expect.join('|')})$ ]]`
    const add = (line: string) => run.transcript.add(s.place, line)
    const none = { code: 0, by: 'none', seconds: 0 }
    if (s.dry) {
      const handle: Background = {
        running: () => false,
        end: async (by, grace) => add(killed(by, grace)) ?? { ...none, by },
        done: async (expect = [0]) => add(waited(expect)) ?? none,
      }
      if (options.service) s.running.push(handle)
      return handle
    }
    const started = performance.now()
    rmSync(join(s.dir, `${name}.pid`), { force: true })
    const service = options.service ? { VYKAR_E2E_SERVICE: name } : {}
    const child = spawn('bash', ['-c', `set -euo pipefail\n${text}\nwait $!`], {
      cwd: s.dir,
      env: { ...run.env, ...s.env, ...service, VYKAR_E2E_RUN: run.id },
      stdio: 'ignore',
      detached: true,
    })
    const record: CommandRecord = { command: `${line} &`, code: 0, at: Date.now(), seconds: 0 }
    const current = s.steps.at(-1) ?? step('begin')
    // What runs until the end of the run is no part of a step's time.
    if (!options.service) current.commands.push(record)
    const ended = new Promise<number>((settle) => {
      child.once('exit', (code) => {
        record.code = code ?? 128
        record.seconds = (performance.now() - started) / 1000
        settle(record.code)
      })
    })
    while (!slurp(join(s.dir, `${name}.pid`)).endsWith('\n') && child.exitCode === null) await sleep(5)
    const pid = Number(read(`${name}.pid`))
    const target: Process = { pid, start: startTime(pid) ?? '', command: line }
    const running = () => target.start !== '' && startTime(pid) === target.start
    const limit = scaled(options.limit ?? '1h', run.common['time-scale']) * 1000
    const clock = options.service ? undefined : setTimeout(() => signal(target, 'SIGKILL'), limit)
    clock?.unref()
    child.unref()
    void ended.then(() => clearTimeout(clock))
    const handle: Background = {
      running,
      end: async (name, grace = '60s') => {
        add(killed(name, grace))
        child.ref()
        const from = performance.now()
        let by: string = running() ? name : 'none'
        signal(target, `SIG${name}`)
        if ((await Promise.race([ended, sleep(seconds(grace) * 1000).then(() => 'late')])) === 'late') {
          by = 'KILL'
          await end(() => (running() ? [target] : []), 0)
        }
        return { code: await ended, by, seconds: (performance.now() - from) / 1000 }
      },
      done: async (expect = [0], warns?) => {
        add(waited(expect))
        child.ref()
        const code = await ended
        alive(s)
        if (performance.now() - started >= limit) throw new Blocked(`${current.name}: out of time: ${line}`)
        const said = slurp(join(s.dir, `${name}.out`))
        if (expect.join() === '0' && code === 0) noWarning(line, warningsIn(join(s.dir, `${name}.out`)), current, warns)
        if (expect.includes(code)) return { code, by: 'none', seconds: record.seconds }
        notFull(run.runtime)
        throw new CommandFailed(`${current.name}: exit ${code} instead of ${expect.join(' or ')}: ${line.split('\n')[0]}: ${lastLine(said)}`) // biome-ignore format: one line
      },
    }
    s.running.push(handle)
    return handle
  }, undefined)
