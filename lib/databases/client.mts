// How a database server is reached: through its container's own client programs, or by a URI and the host's.
import { execFileSync, spawnSync } from 'node:child_process'
import { which } from '../host.mts'
import type { OptionSpecs } from '../options.mts'
import { Skipped, UsageError } from '../verdict.mts'

/** Options that say which server is meant. */
export const serverOptions = {
  container: { kind: 'string', help: 'a running container with the server' },
  uri: { kind: 'string', help: 'a server that is already running, instead of a container' },
  engine: { kind: 'string', help: 'what runs the container', choices: ['docker', 'podman'], default: 'docker' },
} as const satisfies OptionSpecs

/** What these options come to. */
export interface ServerChoice {
  container?: string
  uri?: string
  engine: string
}
export type Kind = 'postgres' | 'mariadb'

/** A way to run client programs: `exec` before the program's name, `args` after it, `env` around it. */
export interface Client {
  exec: string[]
  args: string[]
  env: Record<string, string>
}

/** The names under which the official images take their administrator's name and password. */
const account = {
  postgres: { user: 'POSTGRES_USER', password: 'POSTGRES_PASSWORD', fallback: 'postgres' },
  mariadb: { user: '', password: 'MARIADB_ROOT_PASSWORD', fallback: 'root' },
} as const

/**
 * The client programs of a container, run inside it as its administrator.
 * @param environment the container's own, as `inspect` shows it
 */
export function containerClient(kind: Kind, engine: string, name: string, environment: Record<string, string>): Client {
  const { user, password, fallback } = account[kind]
  const secret = environment[password]
  const secretName = kind === 'postgres' ? 'PGPASSWORD' : 'MYSQL_PWD'
  const exec = [engine, 'exec', '-i', ...(secret ? ['-e', secretName] : [])]
  if (kind === 'postgres') exec.push('-e', `PGUSER=${environment[user] || fallback}`)
  return { exec: [...exec, name], args: [], env: secret ? { [secretName]: secret } : {} }
}

/** The environment of a container. Throws UsageError where it is not there or not running. */
export function containerEnvironment(engine: string, name: string): Record<string, string> {
  const inspect = (by: string) =>
    spawnSync(by, ['container', 'inspect', '-f', '{{.State.Running}} {{json .Config.Env}}', name], { encoding: 'utf8' })
  const asked = inspect(engine)
  if (asked.status !== 0) {
    const other = engine === 'docker' ? 'podman' : 'docker'
    const there = which(other) && inspect(other).status === 0
    throw new UsageError(
      `--container ${name}: ${engine} has no such container${there ? `; ${other} has: --engine ${other}` : ''}`,
    )
  }
  const [running, list = '[]'] = asked.stdout.trim().split(/ (.*)/s)
  if (running !== 'true') throw new UsageError(`--container ${name} is not running: ${engine} start ${name}`)
  return Object.fromEntries(((JSON.parse(list) ?? []) as string[]).map((entry) => entry.split(/=(.*)/s).slice(0, 2)))
}

/** The host's client programs for a URI; its password goes through the environment. Throws UsageError on a bad URI. */
export function uriClient(kind: Kind, uri: string): Client {
  const schemes = kind === 'postgres' ? ['postgres:', 'postgresql:'] : ['mariadb:', 'mysql:']
  const url = URL.canParse(uri) ? new URL(uri) : undefined
  if (!url || !schemes.includes(url.protocol) || !url.hostname)
    throw new UsageError(`--uri: ${schemes.at(0)}//USER:PASSWORD@HOST:PORT is needed`)
  const [user, password] = [url.username, url.password].map(decodeURIComponent) as [string, string]
  if (kind === 'postgres') {
    const env = { PGHOST: url.hostname, PGPORT: url.port || '5432', PGUSER: user || 'postgres' }
    return { exec: [], args: [], env: password ? { ...env, PGPASSWORD: password } : env }
  }
  const args = ['--protocol=tcp', `--host=${url.hostname}`, `--port=${url.port || '3306'}`, `--user=${user || 'root'}`]
  return { exec: [], args, env: password ? { MYSQL_PWD: password } : {} }
}

/** Throws UsageError where the options name two servers. */
export function oneServer({ container, uri }: ServerChoice): void {
  if (container && uri) throw new UsageError('--container and --uri name two servers: give one')
}

/**
 * The client for a server that is already there.
 * @throws UsageError when the choice is unclear, the container does not run or the URI is malformed
 */
export function clientOf(kind: Kind, choice: ServerChoice): Client {
  const { container, uri, engine } = choice
  oneServer(choice)
  if (uri) return uriClient(kind, uri)
  if (!container) throw new UsageError('--container NAME or --uri URI is needed: the server to fill')
  if (!which(engine))
    throw new Skipped(`${engine} is missing: apt-get install -y ${engine === 'docker' ? 'docker.io' : engine}`)
  return containerClient(kind, engine, container, containerEnvironment(engine, container))
}

/**
 * Runs a client program to its end and returns its stdout without the last newline.
 * @throws Error with the program's last line
 */
export function ask(client: Client, program: string, args: string[], input = ''): string {
  const [first, ...rest] = [...client.exec, program, ...client.args, ...args]
  try {
    const env = { ...process.env, ...client.env }
    return execFileSync(first!, rest, { encoding: 'utf8', env, input, stdio: ['pipe', 'pipe', 'pipe'] }).trimEnd()
  } catch (error) {
    const { stderr, code } = error as { stderr?: string; code?: string }
    if (code === 'ENOENT') throw new Skipped(`${first} is missing`)
    throw new Error(stderr?.trim().split('\n').at(-1) || String(error))
  }
}
