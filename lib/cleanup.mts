// What a run makes it takes away again: a LIFO stack of lines, and a state file from which the next run plays it after kill -9.
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ask, lastLine } from './ask.mts'
import { statedEnvironment } from './environment.mts'
import { readJson, writeWhole } from './files.mts'
import { isFree } from './lock.mts'
import { isOurs, isRunId, ourRuns, removeOurs } from './ours.mts'
import { dropGroup, end, processesOf } from './process.mts'
import { messageOf } from './verdict.mts'

/** Lines of bash that a dead run would have run, each with its directory; the last goes first. */
interface State {
  runId: string
  scenario: string
  work: string
  path: string
  lines: { dir: string; line: string }[]
}

/** The file in which a run writes down how to undo what it makes, before it makes it. */
export class StateFile {
  private readonly file: string
  constructor(
    runtime: string,
    private readonly state: State,
  ) {
    mkdirSync(join(runtime, 'state'), { recursive: true })
    this.file = join(runtime, 'state', `${state.runId}.json`)
    this.save()
  }
  private save = () => writeWhole(this.file, JSON.stringify(this.state, null, 1))
  /** Adds a line. Returns the function that takes it out again. */
  add(dir: string, line: string): () => void {
    const entry = { dir, line }
    this.state.lines.push(entry)
    this.save()
    return () => {
      this.state.lines = this.state.lines.filter((other) => other !== entry)
      this.save()
    }
  }
  /** The run has cleared or deliberately kept everything. */
  done = () => rmSync(this.file, { force: true })
}

interface Entry {
  what: string
  fn: () => Promise<unknown> | unknown
  keep: boolean
  exists: (() => Promise<boolean>) | undefined
  forget: () => void
}

/** A stack of things to undo, last in first out. */
export class Undo {
  private entries: Entry[] = []
  constructor(
    private readonly dir: string,
    private readonly state: () => StateFile | undefined,
    /** Whether --keep was given: it is left, and named. */
    private readonly kept: () => boolean,
  ) {}

  /**
   * Registers the undoing of something.
   * @param keep leave it, and name it in the report, when the row or run does not pass
   * @param line the bash that does the same after kill -9; a repository is never deleted without the guard
   * @param exists whether there is anything to be named
   */
  add(
    what: string,
    fn: Entry['fn'],
    { keep = false, line = '', exists }: { keep?: boolean; line?: string; exists?: Entry['exists'] } = {},
  ): void {
    const later = line && !line.includes('--yes-delete-this-repo')
    this.entries.push({ what, fn, keep, exists, forget: (later && this.state()?.add(this.dir, line)) || (() => {}) })
  }
  get size(): number {
    return this.entries.length
  }
  /** Undoes everything. Returns what was kept, and what could not be undone and why. */
  async unwind(failed: boolean): Promise<{ kept: string[]; failures: string[] }> {
    const kept: string[] = []
    const failures: string[] = []
    for (let entry = this.entries.pop(); entry; entry = this.entries.pop()) {
      if (entry.keep && (failed || this.kept())) {
        if ((await entry.exists?.()) !== false) kept.push(entry.what)
      } else
        try {
          await entry.fn()
        } catch (error) {
          failures.push(`${entry.what}: ${messageOf(error)}`)
          continue
        }
      entry.forget()
    }
    return { kept, failures }
  }
}

/**
 * Clears what dead runs have left: runs whose state file is there and whose lock is free. A state file that is torn is left
 * where it is, with a note.
 * @returns one line per run cleared
 */
export async function clearDeadRuns(runtime: string): Promise<string[]> {
  const cleared: string[] = []
  const dir = join(runtime, 'state')
  for (const name of existsSync(dir) ? readdirSync(dir) : []) {
    const runId = name.replace(/\.json$/, '')
    if (!name.endsWith('.json') || !isRunId(runId) || !(await isFree(runId, dir))) continue
    const state = readJson<State>(join(dir, name))
    if (!state?.lines || !state.work) {
      cleared.push(
        `${join(dir, name)} is torn: what run ${runId} had left is not cleared; look into work/${runId}, then remove both`,
      )
      continue
    }
    const { scenario, work, path, lines } = state
    const problems: string[] = []
    await end(() => processesOf(runId, true))
    dropGroup(runId)
    for (const { dir: cwd, line } of existsSync(work) && isOurs(runtime, work) ? lines.reverse() : []) {
      if (!existsSync(cwd)) continue
      const env = { ...statedEnvironment(), PATH: path, VYKAR_E2E_RUN: runId }
      const undone = await ask(['bash', '-c', `set -euo pipefail\n${line}`], { cwd, env, seconds: 120 })
      if (undone.code !== 0) problems.push(`${line}: ${lastLine(undone.stderr)}`)
    }
    try {
      await removeOurs(runtime, work)
    } catch (error) {
      problems.push(messageOf(error))
    }
    if (problems.length) cleared.push(`could not clear what run ${runId} had left: ${problems.join('; ')}`)
    else {
      cleared.push(`cleared what ${scenario} ${runId} had left`)
      rmSync(join(dir, name), { force: true })
    }
  }
  return cleared
}

/** Bytes allocated below `dir`, as du(1) counts them; or as large as the files say, holes included. */
export async function diskUsage(dir: string, apparent = false): Promise<number> {
  if (!existsSync(dir)) return 0
  const words = ['du', '-s', '-B1', ...(apparent ? ['--apparent-size'] : []), dir]
  return Number((await ask(words, { seconds: 3600 })).stdout.split('\t')[0])
}

/**
 * Keeps what failed runs left for inspection under a cap, oldest first out. Only what this suite made counts and goes.
 * @param capBytes most that the kept directories may take together
 * @returns the directories removed
 */
export async function capKept(runtime: string, capBytes: number): Promise<string[]> {
  const removed: string[] = []
  const kept: { dir: string; size: number }[] = []
  for (const dir of ourRuns(runtime, join(runtime, 'work'))) kept.push({ dir, size: await diskUsage(dir) })
  let total = kept.reduce((sum, { size }) => sum + size, 0)
  for (const { dir, size } of kept) {
    if (total <= capBytes) break
    if (!(await isFree(dir.slice(dirname(dir).length + 1), join(runtime, 'state')))) continue
    total -= size
    await removeOurs(runtime, dir)
    removed.push(dir)
  }
  return removed
}
