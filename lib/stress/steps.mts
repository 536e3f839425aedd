// A walk has thousands of steps: each has a log of its own, and only the last ones stay.
import { readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { busySeconds } from '../report.mts'
import { rowScope } from '../row.mts'
import { type CommandRecord, type StepRecord, within } from '../sh.mts'

/** Steps that went well and of which the logs stay. */
const keptLogs = 50

/** What the steps of a walk took together, in seconds. */
export interface Spent {
  wall: number
  /** Some command ran, of vykar or another. */
  busy: number
  /** vykar ran. */
  vykar: number
}

const isVykar = ({ command }: CommandRecord) => command.startsWith('vykar ')

/**
 * Runs one step of a walk with a log of its own. The step under way is told of the time only; of a step that fails it
 * gets the commands too.
 * @param n from 1
 * @returns what `fn` gives, the commands and the seconds
 */
export async function walkStep<T>(
  n: number,
  spent: Spent,
  fn: () => Promise<T>,
): Promise<{ value: T; commands: CommandRecord[]; seconds: number }> {
  const outer = rowScope()
  const name = (step: number) => `${outer.where}.walk-${String(step).padStart(6, '0')}`
  const record: StepRecord = { name: `step ${n}`, log: join(outer.logDir, `${name(n)}.log`), seconds: 0, commands: [] }
  writeFileSync(record.log, '')
  const start = performance.now()
  try {
    const value = await within({ ...outer, step: record }, fn)
    outer.step.busySeconds = (outer.step.busySeconds ?? 0) + busySeconds(record.commands)
    if (n > keptLogs) removeLogs(outer.logDir, name(n - keptLogs))
    return { value, commands: record.commands, seconds: (performance.now() - start) / 1000 }
  } catch (error) {
    outer.step.commands.push(...record.commands)
    throw error
  } finally {
    spent.wall += (performance.now() - start) / 1000
    spent.busy += busySeconds(record.commands)
    spent.vykar += busySeconds(record.commands.filter(isVykar))
  }
}

function removeLogs(dir: string, prefix: string): void {
  for (const file of readdirSync(dir)) if (file.startsWith(`${prefix}.`)) rmSync(join(dir, file))
}
