// Finding and ending the processes of a run: names and process groups miss orphans, the environment does not.
import { readdirSync, readFileSync } from 'node:fs'
import { sleep } from 'zx'

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

/**
 * The live processes that carry `VYKAR_E2E_RUN=<runId>` in their environment, services (VYKAR_E2E_SERVICE) left out
 * unless asked for. As a plain user only one's own processes can be seen, which are the only ones a run starts.
 */
export function processesOf(runId: string, withServices = false): Process[] {
  const found: Process[] = []
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue
    const environ = read(`/proc/${name}/environ`).split('\0')
    if (!environ.includes(`VYKAR_E2E_RUN=${runId}`)) continue
    const service = environ.some((entry) => entry.startsWith('VYKAR_E2E_SERVICE='))
    if (service && !withServices) continue
    const start = startTime(Number(name))
    if (start === undefined) continue
    const command = read(`/proc/${name}/cmdline`).replaceAll('\0', ' ').trim()
    found.push({ pid: Number(name), start, command, service })
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
