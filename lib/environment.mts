// The surroundings of a run: what its commands inherit, what this process must have, what a file system can hold.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, join } from 'node:path'
import { ask, lastLine } from './ask.mts'
import { UsageError } from './verdict.mts'

/**
 * Variables that bend what a command does: settings of vykar, of cloud and database clients, of backup tools and container
 * engines' contexts, and what bash, GNU's tools and rsync read.
 */
const bending = new RegExp(
  `^(${[
    'VYKAR_(?!E2E_|STANDIN_).*|RUST_LOG',
    '(AWS|RCLONE|AZURE|GOOGLE|B2|MC|MINIO)_.*',
    '(RESTIC|RUSTIC|BORG|KOPIA)_.*',
    'PG[A-Z]+|(MYSQL|MARIADB|MONGO|MONGODB)_.*',
    '(DOCKER|CONTAINER|PODMAN)_.*',
    'BASH_.*|BASHOPTS|SHELLOPTS|ENV|CDPATH|GLOBIGNORE|IFS|PS4|POSIXLY_CORRECT',
    'GREP_.*|TAR_OPTIONS|RSYNC_.*|QUOTING_STYLE|TIME_STYLE|TIME|(DU_|DF_|LS_)?BLOCK_?SIZE|GZIP|XZ_.*',
    'LANG|LANGUAGE|LC_.*',
  ].join('|')})$`,
)

/** bash for commands.sh: the same variables go. */
export const unsetBending = `for name in $(compgen -e); do
  case $name in VYKAR_E2E_*|VYKAR_STANDIN_*) ;; VYKAR_*|RUST_LOG|AWS_*|RCLONE_*|RESTIC_*|BORG_*|KOPIA_*|PG*|MYSQL_*|MARIADB_*|MONGO*|DOCKER_*|CONTAINER_*|CDPATH|GREP_*|TAR_OPTIONS|RSYNC_*|LC_*) unset "$name" ;; esac
done`

/** Loopback is reached without a proxy. */
const direct = '127.0.0.1,localhost,::1'

/** The environment in which commands run; the run adds to it what it wants to be set. */
export function statedEnvironment(): NodeJS.ProcessEnv {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !bending.test(name)))
  const without = [env.no_proxy || env.NO_PROXY, direct].filter(Boolean).join(',')
  return { ...env, NO_COLOR: '1', LC_ALL: 'C.UTF-8', TZ: 'UTC', no_proxy: without, NO_PROXY: without }
}

/** Files that a run has open at once, many times over: sockets of servers, logs, pipes of commands. */
const leastFiles = 256

/**
 * What this process needs from whoever started it; the umask is made 022.
 * @throws UsageError in one line where the working directory is gone or too few files may be open
 */
export function needProcess(): void {
  process.umask(0o022)
  try {
    process.cwd()
  } catch {
    throw new UsageError('the working directory has been removed: cd to another one')
  }
  const limit = /^Max open files\s+\S+\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1]
  if (limit && Number(limit) < leastFiles)
    throw new UsageError(`only ${limit} files may be open (ulimit -n): ${leastFiles} are needed, ulimit -n 1024`)
}

/**
 * Whether a hangup is to be ignored, as nohup(1) and `trap '' HUP` ask: Node forgets that at its start, so it is looked for in
 * the first process above that is not Node, and in what bash leaves in `_`.
 */
export function hangupIgnored(): boolean {
  if (process.env.VYKAR_E2E_NOHUP) return process.env.VYKAR_E2E_NOHUP === '1'
  if (/(^|\/)nohup$/.test(process.env._ ?? '')) return true
  for (let pid = process.ppid, i = 0; pid > 1 && i < 8; i++) {
    const file = `/proc/${pid}/status`
    const status = existsSync(file) ? readFileSync(file, 'utf8') : ''
    const field = (name: string) => new RegExp(`^${name}:\\s*(\\S+)`, 'm').exec(status)?.[1] ?? ''
    if (!/^(node|npm|npx|tsx|sh|MainThread)/.test(field('Name')))
      return (BigInt(`0x${field('SigIgn') || 0}`) & 1n) === 1n
    pid = Number(field('PPid'))
  }
  return false
}

/** Names that vykar gives, and this suite does not. */
const vykars = /(vykar(?!-repos|-e2e)|\.(cache|local\/(share|state))\/vykar\/)[^/]*$/
/** What lies in a directory; nothing where this user could leave or see none. */
function inside(dir: string): string[] {
  try {
    return readdirSync(dir).map((name) => join(dir, name))
  } catch {
    return []
  }
}

/**
 * Names in the places where programs leave things unasked: the home, its directories for caches, settings and state, and the
 * caller's directory. Compared before and after a run, they show what it left outside of its own directories.
 */
export function strewn(): Set<string> {
  const own = ['', '.cache', '.config', '.local/share', '.local/state', '.cache/vykar', '.local/share/vykar', '.local/state/vykar'] // biome-ignore format: one line
  const places = [...own.map((name) => join(homedir(), name)), process.cwd()]
  // Where everybody leaves things, what is vykar's by its name.
  const shared = ['/tmp', '/var/tmp', '/dev/shm', '/run'].flatMap(inside).filter((path) => vykars.test(path))
  return new Set([...places.flatMap(inside), ...shared])
}

/**
 * What a run's commands left in their TMPDIR, and in the home or the caller's directory, where it is vykar's by its name.
 * @param before what `strewn` found when the run began
 * @returns `left`, which should not be there, and all that is new
 */
export function leftOutside(before: ReadonlySet<string>, work: string, runtime: string) {
  const tmp = join(work, 'tmp')
  const fresh = [...strewn()].filter((path) => !before.has(path) && !path.startsWith(runtime))
  // The suite's own generators leave their compiled form.
  const left = inside(tmp).map((path) => basename(path)).filter((name) => !/^(tsx|node)-/.test(name)).map((name) => `temporary file ${name}`) // biome-ignore format: one line
  return { left: [...left, ...fresh.filter((path) => vykars.test(path))], fresh }
}

/** Attributes of files that are compared where the file system can hold them. */
export const attributes = [
  'content', 'type', 'mode', 'owner', 'mtime', 'nanoseconds', 'dates after 2038', 'symlink target', 'hard links', 'xattrs', 'ACLs', 'capabilities',
  'allocated blocks', 'inode flags',
] as const // biome-ignore format: a list
export type Attribute = (typeof attributes)[number]

/** What no tool here compares, since no restore can be expected to bring it back. */
export const neverCompared = ['atime', 'ctime', 'birth time', 'inode number', 'project quota']

// What a directory hands down would be on all that is made in it, and on what is restored: setgid, a default ACL, flags.
const probe = `cd "$1" && chmod g-s . && { setfacl -bk . 2> /dev/null; mkdir probe; } && cd probe && : > f || exit 1
touch -d @1600000000.123456789 f; [[ $(stat -c %.9Y f) == *.123456789 ]] || echo nanoseconds
touch -d @4000000000 f 2> /dev/null; [[ $(stat -c %Y f) == 4000000000 ]] || echo 'dates after 2038'
chmod 640 f; [[ $(stat -c %a f) == 640 ]] || echo mode
ln f g 2> /dev/null || echo 'hard links'
ln -s f l 2> /dev/null || echo 'symlink target'
setfattr -n user.probe -v x f 2> /dev/null || echo xattrs
setfacl -m u:12345:r f 2> /dev/null || echo ACLs
if ((EUID == 0)); then chown 12345:12345 f 2> /dev/null || echo owner
  setcap cap_net_raw=ep f 2> /dev/null || echo capabilities; fi
[[ $(lsattr -d f 2> /dev/null) =~ ^[-eIN]+' ' ]] || echo 'inode flags'
cd .. && rm -r probe`

/**
 * What the file system of a directory cannot hold. Owners are a matter of root, too.
 * @throws UsageError where there are no symlinks or modes: no tree can be restored there
 */
export async function notHeld(dir: string): Promise<Attribute[]> {
  const asked = await ask(['bash', '-c', probe, 'probe', dir], { env: statedEnvironment() })
  if (asked.code !== 0) throw new UsageError(`${dir} cannot be written: ${lastLine(asked.stderr)}`)
  const found = asked.stdout.split('\n').filter(Boolean) as Attribute[]
  const fatal = found.filter((name) => name === 'mode' || name === 'symlink target')
  if (fatal.length)
    throw new UsageError(`the file system of ${dir} holds no ${fatal.join(' and no ')}: name another with --runtime`)
  return process.getuid?.() === 0 ? found : [...found, 'owner']
}
