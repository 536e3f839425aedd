// Locks between runs: flock(1) on a file, held while this process lives and free after kill -9.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accessSync, constants } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Blocked } from './verdict.mts'

function lockDir(): string {
  for (const dir of ['/run/lock', process.env.XDG_RUNTIME_DIR ?? ''])
    try {
      if (!dir) continue
      accessSync(dir, constants.W_OK)
      return dir
    } catch {
      // not writable: the next one
    }
  return tmpdir()
}

/**
 * Takes the lock on `key` (a repository's URL, a run id).
 * @param what names the thing in the message when another run holds it
 * @returns the function that releases it and waits until the holder is gone
 * @throws Blocked when another process holds it, Error when flock(1) is missing or the file cannot be opened
 */
export async function lock(key: string, what: string): Promise<() => Promise<void>> {
  const file = join(lockDir(), `vykar-e2e-${createHash('sha256').update(key).digest('hex').slice(0, 16)}.lock`)
  // cat lives until our end of its stdin closes, which the kernel does for us whatever way this process ends.
  const holder = spawn('flock', ['-n', '-E', '75', file, 'sh', '-c', 'echo held; exec cat >/dev/null'], {
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
  })
  let complaint = ''
  holder.stderr.on('data', (text) => {
    complaint += text
  })
  const code = await new Promise<number>((resolve, reject) => {
    holder.once('error', () => reject(new Error('flock is missing: apt-get install util-linux')))
    holder.stdout.once('data', () => resolve(0))
    holder.once('exit', (status) => resolve(status ?? 1))
  })
  if (code === 75) throw new Blocked(`${what} is in use by another run (lock ${file}): try again when it has ended`)
  if (code !== 0) throw new Error(`cannot lock ${file}: ${complaint.trim()}`)
  holder.unref()
  for (const stream of [holder.stdin, holder.stdout, holder.stderr]) (stream as { unref?: () => void }).unref?.()
  return async () => {
    holder.ref()
    const gone = new Promise((resolve) => holder.once('exit', resolve))
    holder.stdin.end()
    if (holder.exitCode === null && holder.signalCode === null) await gone
  }
}

/** Whether nobody holds the lock on `key`. */
export async function isFree(key: string): Promise<boolean> {
  try {
    const release = await lock(key, key)
    await release()
    return true
  } catch (error) {
    if (error instanceof Blocked) return false
    throw error
  }
}
