// Whose a thing is. What this suite made carries a random id, which the runtime directory knows too: a name that fits
// proves nothing. Everything that deletes asks `removeOurs`.
import { randomUUID } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ask, lastLine } from './ask.mts'
import { readJson, writeWhole } from './files.mts'

/** The file in a directory that says whose it is. */
const markFile = '.vykar-e2e'
const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** A run id, which sorts by time: `20261123T230900Z-x7k2`. */
export const isRunId = (name: string): boolean => /^\d{8}T\d{6}Z-[0-9a-z]{4}$/.test(name)

/** A run id that sorts by time. */
export function newRunId(now = new Date()): string {
  const stamp = now.toISOString().replace(/[-:]|\.\d+/g, '')
  const id = `${stamp}-${Math.random().toString(36).slice(2, 6).padEnd(4, '0')}`
  return isRunId(id) ? id : newRunId(now)
}

const recordOf = (runtime: string, id: string) => join(runtime, 'state/marks', `${id}.json`)

/**
 * Marks directories that were just made as the suite's, under one id.
 * @param runtime the runtime directory, which keeps the record
 */
export function markOurs(runtime: string, dirs: readonly string[]): void {
  const id = randomUUID()
  const marks = join(runtime, 'state/marks')
  mkdirSync(marks, { recursive: true })
  // Records of what is gone are of no use.
  for (const name of readdirSync(marks)) {
    const known = readJson<{ dirs: string[] }>(join(marks, name))
    if (known && !known.dirs.some(existsSync)) rmSync(join(marks, name), { force: true })
  }
  writeWhole(recordOf(runtime, id), JSON.stringify({ dirs: dirs.map((dir) => realpathSync(dir)) }))
  for (const dir of dirs) writeFileSync(join(dir, markFile), `${id}\n`)
}

/** The id by which the runtime directory knows this very directory as the suite's; undefined where it does not. */
function idOf(runtime: string, dir: string): string | undefined {
  const file = join(dir, markFile)
  const id = existsSync(file) ? readFileSync(file, 'utf8').trim() : ''
  if (!uuid.test(id)) return undefined
  return readJson<{ dirs: string[] }>(recordOf(runtime, id))?.dirs.includes(realpathSync(dir)) ? id : undefined
}

/** Whether the suite made this directory. */
export const isOurs = (runtime: string, dir: string): boolean => existsSync(dir) && idOf(runtime, dir) !== undefined

/** The directory itself or the nearest one above it that the suite made; undefined where there is none. */
function ours(runtime: string, dir: string): string | undefined {
  if (idOf(runtime, dir)) return dir
  return dirname(dir) === dir ? undefined : ours(runtime, dirname(dir))
}

/**
 * Removes a file or directory tree, if it is a directory that the suite made or lies in one, symlinks resolved, and nothing is
 * mounted in it.
 * @throws Error when not: nothing is removed then
 */
export async function removeOurs(runtime: string, path: string): Promise<void> {
  if (!existsSync(path)) return
  const target = realpathSync(path)
  const owner = ours(runtime, target)
  if (!owner) throw new Error(`${path} carries no mark of this suite: not removed`)
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n')
  const at = mounts.map((line) => (line.split(' ')[1] ?? '').replaceAll('\\040', ' '))
  const mounted = at.find((point) => `${point}/`.startsWith(`${target}/`))
  if (mounted) throw new Error(`${mounted} is still mounted: ${path} is not removed`)
  const id = owner === target ? idOf(runtime, target) : undefined
  // A restored tree may hold directories without write permission, which only root removes as they are.
  if (process.getuid?.() !== 0) await ask(['chmod', '-R', 'u+rwX', target], { seconds: 3600 })
  const gone = await ask(['rm', '-rf', '--one-file-system', target], { seconds: 3600 })
  if (gone.code !== 0) throw new Error(`${path} cannot be removed: ${lastLine(gone.stderr)}`)
  const record = id && recordOf(runtime, id)
  if (record && !readJson<{ dirs: string[] }>(record)?.dirs.some(existsSync)) rmSync(record, { force: true })
}

/** Directories below `dir` whose name is a run id and that the suite made, oldest first. */
export function ourRuns(runtime: string, dir: string): string[] {
  const names = existsSync(dir) ? readdirSync(dir).filter(isRunId).sort() : []
  return names.map((name) => join(dir, name)).filter((path) => isOurs(runtime, path))
}
