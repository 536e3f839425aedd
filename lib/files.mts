// Files of the suite's own that somebody else may read at any moment: whole or not at all.
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'

/** Writes a file beside its place and renames it: a reader, or a crash, sees the old text or the new one. */
export function writeWhole(file: string, text: string, mode = 0o644): void {
  const fresh = `${file}.${process.pid}.new`
  try {
    writeFileSync(fresh, text, { mode })
    renameSync(fresh, file)
  } catch (error) {
    rmSync(fresh, { force: true })
    throw error
  }
}

/** What a JSON file holds; undefined where it is missing, empty or torn (a crash, a full disk). */
export function readJson<T>(file: string): T | undefined {
  try {
    return (JSON.parse(readFileSync(file, 'utf8')) as T) ?? undefined
  } catch {
    return undefined
  }
}
