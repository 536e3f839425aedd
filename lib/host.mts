// What a script needs on this host: why, which package brings it, and whether it is there.
import { accessSync, constants, existsSync, readdirSync } from 'node:fs'
import { delimiter, isAbsolute, join, resolve } from 'node:path'
import { ask, lastLine } from './ask.mts'
import { UsageError } from './verdict.mts'

/** A program a script needs. `apt` is the Debian/Ubuntu package; `install` the command where there is no package. */
export interface Tool {
  program: string
  /** Another program that serves as well. */
  or?: string
  why: string
  apt?: string
  install?: string
  /** Arguments that print a version. */
  version?: string[]
}

/** Where vykar comes from: the installer its documentation names. */
export const vykarInstall = 'curl -fsSL https://vykar.borgbase.com/install.sh | sh'

/** MongoDB and its tools are in no Debian release. */
const mongoTools = 'the package mongodb-database-tools from https://www.mongodb.com/try/download/database-tools'

/** Every program that scripts name in their `needs`. */
export const tools = {
  vykar: { program: 'vykar', why: 'the program under test', install: vykarInstall, version: ['--version'] },
  diff: { program: 'diff', why: 'compares content', apt: 'diffutils', version: ['--version'] },
  rsync: { program: 'rsync', why: 'compares metadata', apt: 'rsync', version: ['--version'] },
  timeout: { program: 'timeout', why: 'bounds every command', apt: 'coreutils', version: ['--version'] },
  time: { program: 'time', why: 'measures CPU time and peak memory', apt: 'time', version: ['--version'] },
  flock: { program: 'flock', why: 'keeps two runs off one repository', apt: 'util-linux', version: ['--version'] },
  setfattr: { program: 'setfattr', why: 'sets attributes in the corpus', apt: 'attr', version: ['--version'] },
  setfacl: { program: 'setfacl', why: 'makes ACLs in the corpus', apt: 'acl', version: ['--version'] },
  setcap: { program: 'setcap', why: 'makes file capabilities in the corpus', apt: 'libcap2-bin' },
  curl: { program: 'curl', why: 'makes the S3 bucket', apt: 'curl', version: ['--version'] },
  'ssh-keygen': { program: 'ssh-keygen', why: 'makes keys for SFTP', apt: 'openssh-client' },
  sshd: { program: 'sshd', why: 'the SFTP server', apt: 'openssh-server', version: ['-V'] },
  sftp: { program: 'sftp', why: 'tells whose fault a failure is', apt: 'openssh-client' },
  openssl: { program: 'openssl', why: 'makes certificates', apt: 'openssl', version: ['version'] },
  rclone: { program: 'rclone', why: 'clears what is left on S3 and SFTP', apt: 'rclone', version: ['version'] },
  docker: { program: 'docker', why: 'runs containers', apt: 'docker.io', version: ['--version'] },
  dockerd: { program: 'dockerd', why: "docker's daemon, where it runs on this host", apt: 'docker.io' },
  podman: { program: 'podman', why: 'runs containers', apt: 'podman', version: ['--version'] },
  psql: { program: 'psql', why: 'PostgreSQL client for --uri', apt: 'postgresql-client', version: ['--version'] },
  pg_dump: { program: 'pg_dump', why: 'PostgreSQL dumps for --uri', apt: 'postgresql-client', version: ['--version'] },
  mariadb: { program: 'mariadb', why: 'MariaDB client for --uri', apt: 'mariadb-client', version: ['--version'] },
  'mariadb-dump': { program: 'mariadb-dump', why: 'dumps for --uri', apt: 'mariadb-client', version: ['--version'] },
  mongodump: { program: 'mongodump', why: 'MongoDB dumps for --uri', install: mongoTools, version: ['--version'] },
  mongorestore: { program: 'mongorestore', why: 'loads MongoDB dumps for --uri', install: mongoTools },
  initdb: { program: 'initdb', why: 'a PostgreSQL server for the tests', apt: 'postgresql', version: ['--version'] },
  mariadbd: { program: 'mariadbd', why: 'a server for the tests', apt: 'mariadb-server', version: ['--version'] },
  'mkfs.btrfs': { program: 'mkfs.btrfs', why: 'makes btrfs', apt: 'btrfs-progs', version: ['--version'] },
  'mkfs.vfat': { program: 'mkfs.vfat', why: 'makes a file system without owners and links', apt: 'dosfstools' },
  'mkfs.xfs': { program: 'mkfs.xfs', why: 'makes xfs', apt: 'xfsprogs', version: ['-V'] },
  git: { program: 'git', why: 'ignores by the same patterns', apt: 'git', version: ['--version'] },
  strace: { program: 'strace', why: 'makes system calls fail', apt: 'strace', version: ['-V'] },
  python3: { program: 'python3', why: 'writes files through a mapping', apt: 'python3', version: ['--version'] },
  zpool: { program: 'zpool', why: 'makes the ZFS pool', install: '--guest runs it in a guest that has ZFS; or apt-get install -y zfsutils-linux zfs-dkms, of contrib', version: ['--version'] }, // biome-ignore format: one line
  guestmount: { program: 'guestmount', why: 'mounts VM images', apt: 'libguestfs-tools', version: ['--version'] },
  'qemu-img': { program: 'qemu-img', why: 'converts VM images', apt: 'qemu-utils', version: ['--version'] },
  qemu: { program: 'qemu-system-x86_64', why: 'boots VM images', apt: 'qemu-system-x86', version: ['--version'] },
  socat: { program: 'socat', why: 'talks to the guest agent', apt: 'socat', version: ['-V'] },
  borg: { program: 'borg', why: 'compared in the benchmarks', apt: 'borgbackup', version: ['--version'] },
  restic: { program: 'restic', why: 'compared in the benchmarks', apt: 'restic', version: ['version'] },
  faketime: { program: 'faketime', why: 'a client whose clock is off', apt: 'faketime', version: ['--version'] },
  debootstrap: { program: 'debootstrap', why: 'builds images from Debian packages', apt: 'debootstrap' },
  'vykar-server': { program: 'vykar-server', why: 'the REST server', install: 'it comes with vykar', version: ['-V'] },
  // biome-ignore format: one line
  's3-server': { program: 'minio', or: 'versitygw', why: 'the S3 server: minio or versitygw', install: 'npx tsx scripts/setup.mts backends', version: ['--version'] },
} satisfies Record<string, Tool>
export type ToolName = keyof typeof tools

/** Where Debian keeps PostgreSQL's server programs, the newest version first. */
function postgresDirs(): string[] {
  const base = '/usr/lib/postgresql'
  const versions = existsSync(base) ? readdirSync(base) : []
  return versions.sort((a, b) => Number(b) - Number(a)).map((version) => join(base, version, 'bin'))
}

/**
 * The path of an executable, searched along PATH, and in sbin and PostgreSQL's directories, which a plain user's PATH lacks;
 * undefined when there is none.
 */
export function which(program: string, path = process.env.PATH ?? ''): string | undefined {
  const candidates = isAbsolute(program)
    ? [program]
    : [...path.split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin', ...postgresDirs()].map((dir) =>
        join(dir, program),
      )
  return candidates.find((file) => {
    try {
      accessSync(file, constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

/** A tool as found on this host; `remedy` is the command that installs it when it is missing. */
export interface Found {
  name: string
  why: string
  path?: string
  version?: string
  remedy: string
}

/** Looks a tool up and asks it for its version: one that does not answer is not there. */
export async function find(name: ToolName): Promise<Found> {
  const tool: Tool = tools[name]
  const path = which(tool.program) ?? (tool.or ? which(tool.or) : undefined)
  const remedy = tool.apt ? `apt-get install -y ${tool.apt}` : (tool.install ?? '')
  const found = { name, why: tool.why, remedy }
  if (!path || !tool.version) return path ? { ...found, path } : found
  const asked = await ask([path, ...tool.version], { seconds: 10 })
  const version = /\d+(\.\d+)+\S*/.exec(asked.stdout.trim().split('\n')[0] || asked.stderr)?.[0]
  // sshd and some others have no option that prints a version and exits 0, but they print one; Debian's time exits 0 without.
  if (asked.code === 0 || (version && (asked.code === 1 || asked.code === 255)))
    return { ...found, path, ...(version ? { version } : {}) }
  return { ...found, why: `${tool.why}; ${path} does not work: exit ${asked.code} ${lastLine(asked.stderr)}`.trim() }
}

/** The one command that installs all the packages of missing tools; empty when none of them is a package. */
export function aptLine(missing: Found[]): string {
  const packages = [...new Set(missing.map((f) => (tools[f.name as ToolName] as Tool).apt).filter(Boolean))]
  // From Debian 13 on docker's client is a package of its own, which docker.io recommends.
  const bare = packages.includes('docker.io') ? '' : '--no-install-recommends '
  return packages.length ? `apt-get install -y ${bare}${packages.join(' ')}` : ''
}

/** Whether this user may use sudo without being asked. */
export const canSudo = async (): Promise<boolean> => (await ask(['sudo', '-n', 'true'])).code === 0

/**
 * Installs Debian packages, as root or through sudo -n.
 * @returns what apt-get said
 * @throws Error with its last line when apt-get fails, or there is no way to become root
 */
export async function aptInstall(packages: string[]): Promise<string> {
  const sudo = process.getuid?.() === 0 ? [] : (await canSudo()) ? ['sudo', '-n'] : undefined
  if (!sudo) throw new Error(`not root and no passwordless sudo: run apt-get install ${packages.join(' ')} as root`)
  const apt = [...sudo, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q']
  let said = ''
  for (const words of [['update'], ['install', '-y', '--no-remove', '--no-install-recommends', ...packages]]) {
    if (words.includes('docker.io') && (await ask(['apt-cache', 'show', 'docker-cli'])).code === 0)
      words.push('docker-cli')
    const done = await ask([...apt, ...words], { seconds: 3600 })
    said += done.stdout + done.stderr
    if (done.code !== 0) throw new Error(`apt-get ${words[0]}: ${lastLine(done.stderr) || lastLine(done.stdout)}`)
  }
  return said
}

/** Which vykar a run tests. */
export interface VykarBinary {
  path: string
  version: string
  /** It is the tests' stand-in and says nothing about vykar. */
  standin: boolean
}

/**
 * Finds out what a `vykar` is by asking it.
 * @param path the executable; looked up on PATH when it is only a name
 * @throws UsageError when it cannot be run or does not answer as vykar does
 */
export async function identifyVykar(path: string): Promise<VykarBinary> {
  const file = which(path.includes('/') ? resolve(path) : path)
  if (!file) throw new UsageError(`--vykar ${path}: no such executable; name the vykar program itself`)
  const asked = await ask([file, '--version'], { seconds: 30 })
  const version = asked.code === 0 ? /^vykar (\d+\.\d+\.\d+\S*)/m.exec(asked.stdout)?.[1] : undefined
  if (!version)
    throw new UsageError(
      `--vykar ${path}: not vykar: \`${file} --version\` printed ${asked.stdout.split('\n')[0] || 'nothing'}${asked.code ? `, exit ${asked.code}` : ''}`,
    )
  return { path: file, version, standin: /stand-in/.test(asked.stdout) }
}
