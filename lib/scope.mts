// Where lines run: the row that is under way, its steps and what they cost. The functions of a script find it by themselves.
import { AsyncLocalStorage } from 'node:async_hooks'
import type { Background } from './background.mts'
import type { Undo } from './cleanup.mts'
import type { RowReport } from './report.mts'
import type { Run } from './run.mts'

/** What was run and what it cost; times in seconds, memory in KiB, undefined where GNU time is missing. */
export interface CommandRecord {
  command: string
  code: number
  /** When it was started, in milliseconds since the epoch. */
  at: number
  seconds: number
  cpuSeconds?: number
  systemSeconds?: number
  peakKiB?: number
  /** Bytes that really came from, or went to, a disk. */
  readBytes?: number
  writtenBytes?: number
}

/** A named part of the procedure: its log and the commands it ran. */
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

/** Where lines run: the row that is under way, or what the run does around its rows. */
export interface Scope {
  run: Run
  /** Label of the row in its log file names, `run` outside of rows. */
  where: string
  /** Its directory below the run's own. */
  place: string
  dir: string
  /** Lines are written down and not run. */
  dry: boolean
  steps: StepRecord[]
  undo: Undo
  running: Background[]
  /** Where a row is under way. */
  report?: RowReport
  repo?: string
  /** The text of the row's config.yaml. */
  config?: string
  /** The guard has let the row's repository go. */
  mayDelete?: boolean
  /** Environment of the lines that run here, beside the run's. */
  env?: NodeJS.ProcessEnv
  /** Its parts are too many to be shown one by one. */
  quiet?: boolean
  /** The procedure has ended: what it may still try to run is not run any more. */
  over?: boolean
}

const scopes = new AsyncLocalStorage<Scope>()
/** The scope that is under way. Throws outside of a scenario. */
export function scope(): Scope {
  const current = scopes.getStore()
  if (!current) throw new Error('commands can only be run inside a scenario')
  return current
}
/** Runs `fn` so that `$` and the checks see `inner` as their scope. */
export const within = <T,>(inner: Scope, fn: () => Promise<T>): Promise<T> => scopes.run(inner, fn)
/** The row that is under way. Throws outside of a row. */
export function rowScope(): Scope & { report: RowReport; repo: string } {
  const current = scope()
  if (!current.report || !current.repo) throw new Error('this can only be used inside a row')
  return current as Scope & { report: RowReport; repo: string }
}
