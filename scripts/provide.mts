// Which repositories need a server, whose it is, and what is done where none answers (--services auto|managed|external). The
// command lines that start servers are in scripts/servers.mts.
import { createServer } from 'node:net'
import type { Endpoint } from '#lib/address.mts'
import { ask } from '#lib/ask.mts'
import { scenarioUrl } from '#lib/config.mts'
import { statedEnvironment } from '#lib/environment.mts'
import { isFree, lock } from '#lib/lock.mts'
import type { Run } from '#lib/run.mts'
import { scope } from '#lib/sh.mts'
import { Blocked, Mismatch, messageOf, Skipped } from '#lib/verdict.mts'

export type Kind = 'rest' | 's3' | 'sftp'

/** What kind of server a repository URL needs; undefined for a local path. */
export function kindOf(url: string): Kind | undefined {
  if (/^https?:/.test(url)) return 'rest'
  if (/^s3(\+http)?:/.test(url)) return 's3'
  return url.startsWith('sftp:') ? 'sftp' : undefined
}

/** Host and port of a repository URL; ports are those of http, https and ssh where it names none. */
export function addressOf(url: string): { host: string; port: number } {
  const { hostname, port, protocol } = new URL(url.replace(/^(s3\+http|sftp):/, 'http:').replace(/^s3:/, 'https:'))
  const fallback = url.startsWith('sftp:') ? 22 : protocol === 'https:' ? 443 : 80
  return { host: hostname, port: port ? Number(port) : fallback }
}

/** Endpoint, bucket and prefix of `s3://…` or `s3+http://host:port/bucket/prefix`. */
export function parseS3(url: string): { endpoint: string; bucket: string; prefix: string } {
  const parts = new URL(url.replace(/^s3(\+http)?:/, (_, plain) => (plain ? 'http:' : 'https:')))
  const [bucket = '', ...prefix] = parts.pathname.split('/').filter(Boolean)
  return { endpoint: parts.origin, bucket, prefix: prefix.join('/') }
}

/** Bash that succeeds when a server of this kind answers at the URL: it greets, or answers a request with anything but 5xx. */
export function answering(kind: Kind, url: string): string {
  const { host, port } = addressOf(url)
  if (kind === 'sftp')
    return `timeout 2 bash -c 'read -r hello < /dev/tcp/${host}/${port} && [[ $hello == SSH-* ]]' 2> /dev/null`
  if (kind === 'rest') return `curl -fs -m 2 -o /dev/null ${new URL('/health', url)}`
  return `[[ $(curl -s -m 2 -o /dev/null -w '%{http_code}' ${parseS3(url).endpoint}) =~ ^[234] ]]`
}

const answers = async (kind: Kind, url: string): Promise<boolean> =>
  (await ask(['bash', '-c', answering(kind, url)], { seconds: 5, env: statedEnvironment() })).code === 0

/** Whether a host name means this machine's loopback. */
const isLoopback = (host: string) => /^(127(\.\d+){3}|localhost|\[?::1\]?)$/.test(host)

/** The wanted port on loopback, or one that the kernel gives where that is taken. */
export function freePort(wanted: number): Promise<number> {
  return new Promise((settle, reject) => {
    const server = createServer()
    server.once('error', () => (wanted === 0 ? reject(new Error('no free port')) : freePort(0).then(settle, reject)))
    server.listen(wanted, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => settle(typeof address === 'object' && address ? address.port : wanted))
    })
  })
}

/**
 * A free port on loopback whose lock this run holds while its server lives: how two runs that start at the same moment
 * take different ones, and how another run knows that the server there is not somebody's own. The wanted one in a dry run.
 */
async function ownPort(run: Run, wanted: number): Promise<number> {
  if (run.dry) return wanted
  for (let port = await freePort(wanted); ; port = await freePort(0)) {
    try {
      scope().undo.add('server lock', await lock(`server 127.0.0.1:${port}`, 'server'))
      return port
    } catch (error) {
      if (!(error instanceof Blocked)) throw error
    }
  }
}

/** A server that somebody else runs: it is used, and neither stopped nor emptied. */
function external(run: Run, label: string, kind: Kind, url: string): Endpoint {
  const data = kind === 'rest' ? run.common['rest-data-dir'] : undefined
  return {
    url: scenarioUrl(url, run.plan.name),
    ...(data ? { files: data, seen: `FILES_${label.toUpperCase()}` } : {}),
    blame: async () => [
      `${label} at ${url} ${(await answers(kind, url)) ? 'answers' : 'does not answer'} after the failure`,
    ],
  }
}

/**
 * Provides the servers of the run's repositories. A label without one is noted: its rows are BLOCKED or SKIPPED, or FAIL
 * where the user named it with --repo or --require; the others run.
 * @param start starts a server of a kind on a free port of loopback, and says where
 * @param reach makes ready what an external server needs
 */
export async function provide(
  start: (run: Run, kind: Kind, label: string, port: number) => Promise<Endpoint>,
  reach: (run: Run, kind: Kind, label: string, endpoint: Endpoint) => Promise<Endpoint>,
): Promise<void> {
  const { run } = scope()
  const mode = run.common.services
  for (const label of run.repos) {
    const { url } = run.plan.sample.repository(label)
    const kind = kindOf(url)
    if (!kind) continue
    // The stand-in keeps everything in a directory.
    if (run.plan.vykar.standin) {
      run.serve(label, { url: scenarioUrl(url, run.plan.name) })
      continue
    }
    try {
      const { host, port } = addressOf(url)
      const up = !run.dry && mode !== 'managed' && (await answers(kind, url))
      const name = host.replace('localhost', '127.0.0.1')
      const another = up && isLoopback(host) && !(await isFree(`server ${name}:${port}`))
      if (mode === 'external' || (up && !another)) {
        if (!up && !run.dry) throw new Blocked(`${label}: ${url} does not answer, and --services external starts none`)
        run.serve(label, await reach(run, kind, label, external(run, label, kind, url)))
        continue
      }
      if (!isLoopback(host) && mode !== 'managed')
        throw new Blocked(
          `${label}: ${url} does not answer; it is not on loopback, so nothing is put in its place: start it`,
        )
      run.serve(label, { ...(await start(run, kind, label, await ownPort(run, port))), managed: true })
    } catch (error) {
      if (!(error instanceof Blocked || error instanceof Skipped)) throw error
      const required = [...run.common.require, ...run.common.repo]
      const must = error instanceof Skipped && (required.includes(label) || required.includes('all'))
      run.unavailable.set(label, must ? new Mismatch(`required, but skipped: ${messageOf(error)}`) : error)
    }
  }
}
