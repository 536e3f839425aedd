// What a run makes it takes away again: a LIFO stack, and a state file from which the next run clears after kill -9.
import { execFileSync, spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { isFree } from './lock.mts'
import { end, type Process, processesOf, startTime } from './process.mts'
import { messageOf } from './verdict.mts'

/** Something outside this process that must go: what the state file remembers. */
export type Resource =
  | { kind: 'dir' | 'mount'; path: string }
  /** The image file behind the loop device. */
  | { kind: 'loop'; path: string }
  /** A ZFS pool of the run's own, or a dataset in somebody's pool. */
  | { kind: 'zfs'; path: string }
  /** `<engine>/<id>` */
  | { kind: 'container'; path: string }
  /** `<engine>/<name>/<run id>`; the run's id is its label. */
  | { kind: 'volume'; path: string }
  | { kind: 'process'; pid: number; start: string; command: string }

interface Entry {
  what: string
  undo: () => Promise<unknown> | unknown
  keepOnFailure: boolean
}

/** A stack of things to undo, last in first out. */
export class Cleanup {
  private entries: Entry[] = []

  /**
   * Registers the undoing of something, on the line after it was made.
   * @param keepOnFailure leave it, and name it in the report, when the row or run does not pass
   */
  add(what: string, undo: Entry['undo'], keepOnFailure = false): void {
    this.entries.push({ what, undo, keepOnFailure })
  }

  /** Undoes everything. Returns what was kept, and what could not be undone and why. */
  async unwind(failed: boolean): Promise<{ kept: string[]; failures: string[] }> {
    const kept: string[] = []
    const failures: string[] = []
    for (let entry = this.entries.pop(); entry; entry = this.entries.pop()) {
      if (failed && entry.keepOnFailure) {
        kept.push(entry.what)
        continue
      }
      try {
        await entry.undo()
      } catch (error) {
        failures.push(`${entry.what}: ${messageOf(error)}`)
      }
    }
    return { kept, failures }
  }
}

/**
 * Removes a directory tree, only if it really lies below `root` once symlinks are resolved.
 * @throws Error when it does not
 */
export function removeBelow(root: string, dir: string): void {
  if (!existsSync(dir)) return
  const [base, target] = [realpathSync(root), realpathSync(dir)]
  if (!target.startsWith(`${base}/`)) throw new Error(`${dir} is not below ${root}: not removed`)
  // A restored tree may hold directories without write permission, which only root removes as they are.
  if (process.getuid?.() !== 0) execFileSync('chmod', ['-R', 'u+rwX', target], { stdio: 'ignore' })
  rmSync(target, { recursive: true, force: true })
}

/** The file in which a run writes down what it has made; written at once at every change. */
export class StateFile {
  private resources: Resource[] = []
  private readonly file: string
  constructor(
    runtime: string,
    private readonly runId: string,
    private readonly scenario: string,
  ) {
    mkdirSync(join(runtime, 'state'), { recursive: true })
    this.file = join(runtime, 'state', `${runId}.json`)
    this.save()
  }
  private save(): void {
    const { runId, scenario, resources } = this
    writeFileSync(this.file, JSON.stringify({ runId, scenario, pid: process.pid, resources }, null, 1))
  }
  add(resource: Resource): void {
    this.resources.push(resource)
    this.save()
  }
  remove(path: string | number): void {
    this.resources = this.resources.filter((r) => (r.kind === 'process' ? r.pid : r.path) !== path)
    this.save()
  }
  /** The run has cleared or deliberately kept everything. */
  done(): void {
    rmSync(this.file, { force: true })
  }
}

function mounted(path: string): boolean {
  return readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[1] === path)
}

async function clear(runtime: string, runId: string, resources: Resource[]): Promise<void> {
  await end(() => processesOf(runId, true))
  for (const resource of resources.reverse()) {
    if (resource.kind === 'process') {
      const target: Process = resource
      await end(() => (startTime(target.pid) === target.start ? [target] : []))
    } else if (resource.kind === 'mount') {
      while (mounted(resource.path)) execFileSync('umount', [resource.path])
    } else if (resource.kind === 'loop') {
      const list = ['--noheadings', '--output', 'NAME', '--associated', resource.path]
      const devices = spawnSync('losetup', list, { encoding: 'utf8' }).stdout.split('\n').filter(Boolean)
      for (const device of devices) execFileSync('losetup', ['--detach', device.trim()])
    } else if (resource.kind === 'zfs') {
      const [program, ...destroy] = resource.path.includes('/') ? ['zfs', 'destroy', '-r'] : ['zpool', 'destroy', '-f']
      if (spawnSync(program!, ['list', resource.path], { stdio: 'ignore' }).status === 0)
        execFileSync(program!, [...destroy, resource.path])
    } else if (resource.kind === 'container') {
      const [engine, id] = resource.path.split('/') as [string, string]
      const there = spawnSync(engine, ['container', 'inspect', id], { stdio: 'ignore' }).status === 0
      if (there) execFileSync(engine, ['rm', '-f', '-v', id], { stdio: 'ignore' })
    } else if (resource.kind === 'volume') {
      const [engine, name, label] = resource.path.split('/') as [string, string, string]
      const listed = spawnSync(engine, ['volume', 'ls', '-q', '--filter', `label=vykar-e2e=${label}`], {
        encoding: 'utf8',
      })
      if (listed.stdout.split('\n').includes(name)) execFileSync(engine, ['volume', 'rm', name], { stdio: 'ignore' })
    } else removeBelow(runtime, resource.path)
  }
}

/**
 * Clears what dead runs have left: runs whose state file is there and whose lock is free.
 * @returns one line per run cleared
 */
export async function clearDeadRuns(runtime: string): Promise<string[]> {
  const cleared: string[] = []
  const dir = join(runtime, 'state')
  for (const name of existsSync(dir) ? readdirSync(dir) : []) {
    const runId = name.replace(/\.json$/, '')
    if (!(await isFree(runId))) continue
    try {
      const state = JSON.parse(readFileSync(join(dir, name), 'utf8')) as { scenario: string; resources: Resource[] }
      await clear(runtime, runId, state.resources)
      cleared.push(`cleared what ${state.scenario} ${runId} had left`)
    } catch (error) {
      cleared.push(`could not clear what run ${runId} had left: ${messageOf(error)}`)
      continue
    }
    rmSync(join(dir, name), { force: true })
  }
  return cleared
}

/** Bytes allocated below `dir`, as du(1) counts them. */
export function diskUsage(dir: string): number {
  return existsSync(dir) ? Number(execFileSync('du', ['-s', '-B1', dir], { encoding: 'utf8' }).split('\t')[0]) : 0
}

/**
 * Keeps what failed runs left for inspection under a cap, oldest first out; run directories sort by time.
 * @param capBytes most that the kept directories may take together
 * @returns the directories removed
 */
export async function capKept(runtime: string, capBytes: number): Promise<string[]> {
  const work = join(runtime, 'work')
  const runs = (existsSync(work) ? readdirSync(work) : []).sort()
  const removed: string[] = []
  let total = diskUsage(work)
  for (const runId of runs) {
    if (total <= capBytes) break
    const dir = join(work, runId)
    if (!statSync(dir).isDirectory() || !(await isFree(runId))) continue
    total -= diskUsage(dir)
    removeBelow(work, dir)
    removed.push(dir)
  }
  return removed
}
