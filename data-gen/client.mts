// How a database server is reached: through its container's own client programs, or by a URI and the host's.
import { serverUri } from '#lib/address.mts'
import { lastLine, ask as run } from '#lib/ask.mts'
import { statedEnvironment } from '#lib/environment.mts'
import { which } from '#lib/host.mts'
import type { OptionSpecs } from '#lib/options.mts'
import { Skipped, UsageError } from '#lib/verdict.mts'

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
export async function containerEnvironment(engine: string, name: string): Promise<Record<string, string>> {
  const format = '{{.State.Running}} {{json .Config.Env}}'
  const inspect = (by: string) => run([by, 'container', 'inspect', '-f', format, name], { env: statedEnvironment() })
  const asked = await inspect(engine)
  if (asked.code !== 0) {
    const other = engine === 'docker' ? 'podman' : 'docker'
    const there = which(other) && (await inspect(other)).code === 0
    throw new UsageError(
      `--container ${name}: ${engine} has no such container${there ? `; ${other} has: --engine ${other}` : ''}`,
    )
  }
  const [running, list = '[]'] = asked.stdout.trim().split(/ (.*)/s)
  if (running !== 'true') throw new UsageError(`--container ${name} is not running: ${engine} start ${name}`)
  return Object.fromEntries(((JSON.parse(list) ?? []) as string[]).map((entry) => entry.split(/=(.*)/s).slice(0, 2)))
}

/**
 * The host's client programs for a URI; its password goes through the environment, from where it is taken too where the URI
 * has none. Throws UsageError on a bad URI.
 */
export function uriClient(kind: Kind, uri: string): Client {
  if (kind === 'postgres') {
    const { host, port, user, password } = serverUri(uri, ['postgresql', 'postgres'], '5432')
    const env = { PGHOST: host, PGPORT: port, PGUSER: user || 'postgres' }
    const secret = password || process.env.PGPASSWORD
    return { exec: [], args: [], env: secret ? { ...env, PGPASSWORD: secret } : env }
  }
  const { host, port, user, password } = serverUri(uri, ['mariadb', 'mysql'], '3306')
  const args = ['--protocol=tcp', `--host=${host}`, `--port=${port}`, `--user=${user || 'root'}`]
  const secret = password || process.env.MYSQL_PWD
  return { exec: [], args, env: secret ? { MYSQL_PWD: secret } : {} }
}

/** Throws UsageError where the options name two servers. */
export function oneServer({ container, uri }: ServerChoice): void {
  if (container && uri) throw new UsageError('--container and --uri name two servers: give one')
}

/**
 * The client for a server that is already there.
 * @throws UsageError when the choice is unclear, the container does not run or the URI is malformed
 */
export async function clientOf(kind: Kind, choice: ServerChoice): Promise<Client> {
  const { container, uri, engine } = choice
  oneServer(choice)
  if (uri) return uriClient(kind, uri)
  if (!container) throw new UsageError('--container NAME or --uri URI is needed: the server to fill')
  if (!which(engine))
    throw new Skipped(`${engine} is missing: apt-get install -y ${engine === 'docker' ? 'docker.io' : engine}`)
  return containerClient(kind, engine, container, await containerEnvironment(engine, container))
}

/**
 * Runs a client program to its end and returns its stdout without the last newline.
 * @param seconds time limit: an index or a checkpoint of many GiB takes its time
 * @throws Error with the program's last line
 */
export async function ask(
  client: Client,
  program: string,
  args: string[],
  input = '',
  seconds = 7200,
): Promise<string> {
  const words = [...client.exec, program, ...client.args, ...args]
  const done = await run(words, { env: { ...statedEnvironment(), ...client.env }, input, seconds })
  if (done.code === 127 && !which(words[0]!)) throw new Skipped(`${words[0]} is missing`)
  if (done.code !== 0) throw new Error(lastLine(done.stderr) || `${program}: exit ${done.code}`)
  return done.stdout.trimEnd()
}
