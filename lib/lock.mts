// Locks between runs: flock(1) on a file, held while this process lives and free after kill -9.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accessSync, constants, mkdirSync } from 'node:fs'
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
 * The holder. It opens a file that is there for reading only: fs.protected_regular=2 refuses O_CREAT on another user's file
 * in a sticky directory. It goes with its lock; whoever had it open meanwhile sees that the name means another file and
 * begins again. cat lives until our end of its stdin closes, which the kernel does whatever way this process ends.
 */
const holder = `command -v flock > /dev/null || exit 127
for try in $(seq 100); do
  [ -e "$1" ] || (umask 022; : > "$1") 2>/dev/null
  { exec 9< "$1"; } 2>/dev/null || { [ -e "$1" ] && exit 76; continue; }
  flock -n 9 || exit 75
  [ "$1" -ef /proc/self/fd/9 ] && { echo held; cat > /dev/null; rm -f "$1" 2>/dev/null; exit 0; }
  exec 9<&-
done; exit 76`

/**
 * Takes the lock on `key` (a repository's URL, a run id).
 * @param what names the thing in the message when another run holds it
 * @param dir where the lock lies, the host's directory for locks unless told: a run's is beside its state, which several hosts may share
 * @returns the function that releases it and waits until the holder is gone
 * @throws Blocked when another process holds it, Error when flock(1) is missing or the file cannot be opened
 */
export async function lock(key: string, what: string, dir = lockDir()): Promise<() => Promise<void>> {
  mkdirSync(dir, { recursive: true })
  const file = join(dir, `vykar-e2e-${createHash('sha256').update(key).digest('hex').slice(0, 16)}.lock`)
  const child = spawn('bash', ['-c', holder, 'lock', file], {
    env: { PATH: process.env.PATH },
    cwd: '/',
    stdio: ['pipe', 'pipe', 'ignore'],
    detached: true,
  })
  const code = await new Promise<number>((settle, reject) => {
    child.once('error', () => reject(new Error('bash is missing: apt-get install bash')))
    child.stdout.once('data', () => settle(0))
    child.once('exit', (status) => settle(status ?? 1))
  })
  if (code === 75) throw new Blocked(`${what} is in use by another run (lock ${file}): try again when it has ended`)
  if (code === 127) throw new Error('flock is missing: apt-get install util-linux')
  if (code !== 0) throw new Error(`cannot lock ${file}: it cannot be made or opened; remove it if nobody runs`)
  child.unref()
  for (const stream of [child.stdin, child.stdout]) (stream as { unref?: () => void }).unref?.()
  return async () => {
    child.ref()
    const gone = new Promise((settle) => child.once('exit', settle))
    child.stdin.end()
    if (child.exitCode === null && child.signalCode === null) await gone
  }
}

/** Whether nobody holds the lock on `key`. */
export async function isFree(key: string, dir?: string): Promise<boolean> {
  try {
    const release = await lock(key, key, dir)
    await release()
    return true
  } catch (error) {
    if (error instanceof Blocked) return false
    throw error
  }
}
