// What all managed servers share: a free port, a process that is found again, a health check with a deadline, a log.
import { spawn } from 'node:child_process'
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { sleep } from 'zx'
import { end, type Process, startTime } from '../process.mts'
import type { Run } from '../run.mts'
import { Blocked } from '../verdict.mts'

/** A server that holds repositories. */
export interface Service {
  /** The repository's URL for this run. */
  url: string
  /** More keys for the repository in the config. */
  set?: Record<string, unknown>
  /** Directory in which the repository's files can be seen. */
  files?: string
  /** Started by this run. */
  managed: boolean
  /** After a failure: whether the server answers a plain client, and the last lines of its log. */
  blame: () => Promise<string[]>
  /** The server's process, where this run started it. */
  process?: Process
  /** The repository as an rclone path, for what vykar leaves there. */
  rclone?: string
}

/** Time a server has to answer after its start, in ms, unless its own is given. */
const startDeadline = 30_000

/** The wanted port on loopback, or one that the kernel gives where that is taken. */
export function freePort(wanted: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', () => (wanted === 0 ? reject(new Error('no free port')) : freePort(0).then(resolve, reject)))
    server.listen(wanted, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address ? address.port : wanted))
    })
  })
}

/** Whether a host name means this machine's loopback. */
export const isLoopback = (host: string) => /^(127(\.\d+){3}|localhost|\[?::1\]?)$/.test(host)

/** The last lines of a log, colours removed. */
export function lastLines(file: string, count = 5): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: ANSI colours
  const text = readFileSync(file, 'utf8').replace(/\x1b\[[0-9;]*m/g, '')
  return text.trim().split('\n').slice(-count).join(' | ') || 'nothing'
}

/** A process and all that descend from it. */
function family(leader: Process): Process[] {
  const parents = new Map<number, number>()
  for (const name of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'latin1')
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]))
    } catch {
      // it ended in between
    }
  }
  const found = startTime(leader.pid) === leader.start ? [leader] : []
  for (const member of found)
    for (const [pid, parent] of parents) {
      const start = parent === member.pid ? startTime(pid) : undefined
      if (start) found.push({ pid, start, command: '' })
    }
  return found
}

/**
 * Starts a server in the background, logged to `<logs>/server-<name>.log`, and waits until it is healthy. It is ended on
 * every way out of the run, and by the next run after kill -9.
 * @param healthy asked again until it says yes
 * @param deadlineMs time it has to say so, in ms
 * @throws Blocked with the last lines of its log when it ends or does not answer in time
 */
export async function serve(
  run: Run,
  name: string,
  argv: string[],
  env: NodeJS.ProcessEnv,
  healthy: () => Promise<boolean>,
  deadlineMs = startDeadline,
): Promise<{ process: Process; log: string }> {
  const log = join(run.dirs.logs, `server-${name}.log`)
  const out = openSync(log, 'a')
  const [program, ...args] = argv
  const child = spawn(program!, args, {
    env: { ...run.env, VYKAR_PASSPHRASE: undefined, ...env, VYKAR_E2E_RUN: run.id, VYKAR_E2E_SERVICE: name },
    stdio: ['ignore', out, out],
    cwd: run.dirs.work,
    detached: true,
  })
  closeSync(out)
  let failure = ''
  child.once('error', (error) => {
    failure = error.message
  })
  child.once('exit', (code, signal) => {
    failure ||= `it ended with ${signal ?? `exit ${code}`}`
  })
  const process: Process = { pid: child.pid ?? -1, start: startTime(child.pid ?? -1) ?? '', command: argv.join(' ') }
  run.state?.add({ kind: 'process', ...process })
  run.cleanup.add(`server ${name}`, async () => {
    const members = family(process)
    await end(() => members.filter((member) => startTime(member.pid) === member.start))
    run.state?.remove(process.pid)
  })
  // Whether it still runs is asked first: another server may answer at an address that this one could not have.
  for (const deadline = Date.now() + deadlineMs; failure || !(await healthy()); await sleep(50))
    if (failure || Date.now() > deadline)
      throw new Blocked(`server ${name} did not come up: ${failure || 'no answer'}; its log: ${lastLines(log)}`)
  child.unref()
  return { process, log }
}
