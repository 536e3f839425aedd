// Finding and ending the processes of a run: names and process groups miss orphans, a control group and the environment do not.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sleep } from 'zx'
import { bytes } from './terminal.mts'

/** A process by pid and start time (clock ticks since boot), which together are never reused. */
export interface Process {
  pid: number
  start: string
  command: string
  /** It carries VYKAR_E2E_SERVICE: it may live until the end of the run. */
  service?: boolean
}

function read(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}

/** Start time of a live process in clock ticks since boot; undefined when it is gone or a zombie. proc(5), fields 3 and 22. */
export function startTime(pid: number): string | undefined {
  const stat = read(`/proc/${pid}/stat`)
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return stat && fields[0] !== 'Z' && fields[0] !== 'X' ? fields[19] : undefined
}

/** The root of control groups of version 2; with those of version 1 beside it, it is mounted one level lower. cgroups(7) */
const groups = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'].find((dir) => existsSync(join(dir, 'cgroup.controllers')))
/** Where a run's control group is. */
const groupOf = (runId: string) => join(groups ?? '/nowhere', `vykar-e2e-run-${runId}`)
const members = (runId: string) => read(join(groupOf(runId), 'cgroup.procs')).split('\n').filter(Boolean).map(Number) // biome-ignore format: one line

/**
 * Puts this process, and with it all that it starts, into a control group of the run's own, where one may be made: what
 * has cleared its environment is found there.
 * @returns takes it out again, and the group away
 */
export function enterGroup(runId: string): () => void {
  const was = /^0::(.*)$/m.exec(read('/proc/self/cgroup'))?.[1]
  if (!groups || was === undefined) return () => {}
  try {
    mkdirSync(groupOf(runId))
    writeFileSync(join(groupOf(runId), 'cgroup.procs'), `${process.pid}`)
  } catch {
    // As a plain user, or in a container: then there is only the environment.
    return () => dropGroup(runId)
  }
  return () => {
    writeFileSync(join(groups, was, 'cgroup.procs'), `${process.pid}`)
    dropGroup(runId)
  }
}

/** Removes the control group of a run that has ended, if there is one. */
export function dropGroup(runId: string): void {
  try {
    rmdirSync(groupOf(runId))
  } catch {
    // there is none, or somebody lives in it, which was said
  }
}

/** Parent of a process; 0 where it is gone. proc(5), field 4 */
const parentOf = (pid: number) => Number(read(`/proc/${pid}/stat`).split(') ').at(-1)!.split(' ')[1] ?? 0)

/**
 * The live processes of a run, services (VYKAR_E2E_SERVICE, and what they have started) left out unless asked for: those
 * that carry `VYKAR_E2E_RUN=<runId>` in their environment, and those in its control group but for this program's helpers,
 * such as what holds its locks. As a plain user only one's own processes can be seen, which are the only ones a run starts.
 */
export function processesOf(runId: string, withServices = false): Process[] {
  const kinds = new Map<number, 'own' | 'service' | undefined>()
  /** What a process is by its environment, or else by that of who started it. */
  const kindOf = (pid: number, grouped: boolean): 'own' | 'service' | undefined => {
    if (pid === process.pid) return undefined
    const environ = read(`/proc/${pid}/environ`).split('\0')
    if (environ.includes(`VYKAR_E2E_RUN=${runId}`))
      return environ.some((entry) => entry.startsWith('VYKAR_E2E_SERVICE=')) ? 'service' : 'own'
    // What watches a container of podman's, and what runs in it, is undone with the container.
    if (!grouped || read(`/proc/${pid}/comm`) === 'conmon\n') return undefined
    return pid > 1 ? kindOf(parentOf(pid), true) : 'own'
  }
  for (const name of readdirSync('/proc')) if (/^\d+$/.test(name)) kinds.set(Number(name), kindOf(Number(name), false))
  for (const pid of members(runId)) kinds.set(pid, kindOf(pid, true))
  const found: Process[] = []
  for (const [pid, kind] of kinds) {
    const start = kind && (kind === 'own' || withServices) ? startTime(pid) : undefined
    if (start === undefined) continue
    const command = read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim()
    found.push({ pid, start, command, service: kind === 'service' })
  }
  return found
}

/** Sends a signal if the process is still the one that was meant. */
export function signal(target: Process, name: NodeJS.Signals): void {
  if (startTime(target.pid) !== target.start) return
  try {
    process.kill(target.pid, name)
  } catch {
    // it ended in between
  }
}

/**
 * Ends processes: TERM, then KILL for what is left after `graceMs`.
 * @param list gives the processes that still live, asked again until there are none
 * @returns what was found at first
 * @throws Error when something survives KILL for 10 s
 */
export async function end(list: () => Process[], graceMs = 3000): Promise<Process[]> {
  const first = list()
  const begun = Date.now()
  for (let left = first; left.length > 0; left = list()) {
    const age = Date.now() - begun
    if (age > graceMs + 10_000)
      throw new Error(`still alive after KILL: ${left.map((p) => `${p.pid} ${p.command}`).join(', ')}`)
    for (const target of left) signal(target, age >= graceMs ? 'SIGKILL' : 'SIGTERM')
    await sleep(age < 500 ? 20 : 200)
  }
  return first
}

/**
 * What the program of a run that moves most has read and written so far: `, restic: 1.2 GiB read, 400 MiB written`; empty where none runs.
 * Source, repository, cache and target are all in it; shells, which inherit what their children moved, and servers are not. proc(5), io
 */
export function moved(runId: string): string {
  const sums = new Map<string, [read: number, written: number]>()
  const group = members(runId).filter((pid) => pid !== process.pid)
  for (const pid of group.length ? group : processesOf(runId).map((one) => one.pid)) {
    const [name, io] = [read(`/proc/${pid}/comm`).trim(), read(`/proc/${pid}/io`)]
    if (/^(bash|sh|time|timeout|strace|)$/.test(name) || /\0VYKAR_E2E_SERVICE=/.test(read(`/proc/${pid}/environ`)))
      continue
    const [[r, w], [, more = 0, written = 0]] = [sums.get(name) ?? [0, 0], /^rchar: (\d+)\nwchar: (\d+)/.exec(io) ?? []]
    sums.set(name, [r + Number(more), w + Number(written)])
  }
  const [most] = [...sums].sort(([, a], [, b]) => b[0] + b[1] - a[0] - a[1])
  return most ? `, ${most[0]}: ${bytes(most[1][0])} read, ${bytes(most[1][1])} written` : ''
}
