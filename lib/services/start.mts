// Which repositories need a server, whose it is, and what is done where none answers (--services auto|managed|external).
import { scenarioUrl } from '../config.mts'
import { which } from '../host.mts'
import { isFree, lock } from '../lock.mts'
import type { Run } from '../run.mts'
import { Blocked, Mismatch, messageOf, Skipped } from '../verdict.mts'
import { restAnswers, startRest } from './rest.mts'
import { makeBucket, parseS3, rcloneS3, s3Answers, startS3 } from './s3.mts'
import { freePort, isLoopback, type Service } from './service.mts'
import { sshAnswers, startSftp } from './sftp.mts'

type Kind = 'rest' | 's3' | 'sftp'
/** The default ports of the servers: vykar-server's, minio's, and an unprivileged one for sshd. */
const defaultPort: Record<Kind, number> = { rest: 8585, s3: 9000, sftp: 22 }

/** What kind of server a repository URL needs; undefined for a local path. */
export function kindOf(url: string): Kind | undefined {
  if (/^https?:/.test(url)) return 'rest'
  if (/^s3(\+http)?:/.test(url)) return 's3'
  return url.startsWith('sftp:') ? 'sftp' : undefined
}

/** Host and port of a repository URL. */
export function addressOf(url: string): { host: string; port: number } {
  const kind = kindOf(url)!
  const { hostname, port, protocol } = new URL(url.replace(/^(s3\+http|sftp):/, 'http:').replace(/^s3:/, 'https:'))
  const fallback = kind === 'sftp' ? defaultPort.sftp : protocol === 'https:' ? 443 : 80
  return { host: hostname, port: port ? Number(port) : fallback }
}

function answers(kind: Kind, url: string): Promise<boolean> {
  const { host, port } = addressOf(url)
  if (kind === 'rest') return restAnswers(url)
  return kind === 's3' ? s3Answers(parseS3(url).endpoint) : sshAnswers(host, port)
}

/** A server that somebody else runs: it is used, and neither stopped nor emptied. */
async function external(run: Run, label: string, kind: Kind, sampleUrl: string): Promise<Service> {
  const url = scenarioUrl(sampleUrl, run.plan.name)
  const service: Service = {
    url,
    files: kind === 'rest' ? run.common['rest-data-dir'] : undefined,
    managed: false,
    blame: async () => [
      `${label} at ${sampleUrl} ${(await answers(kind, sampleUrl)) ? 'answers' : 'does not answer'} after the failure`,
    ],
  }
  if (kind !== 's3') return service
  const value = (key: string) => run.plan.sample.value(label, key)
  const bucket = {
    ...parseS3(url),
    region: value('region') ?? 'us-east-1',
    key: value('access_key_id') ?? '',
    secret: value('secret_access_key') ?? '',
  }
  await makeBucket(run, bucket)
  return { ...service, rclone: rcloneS3(run, bucket) }
}

/**
 * A free port on loopback whose lock this run holds while its server lives: how two runs that start at the same moment
 * take different ones, and how another run knows that the server there is not somebody's own.
 */
async function ownPort(run: Run, wanted: number): Promise<number> {
  for (let port = await freePort(wanted); ; port = await freePort(0)) {
    try {
      run.cleanup.add('server lock', await lock(`server 127.0.0.1:${port}`, 'server'))
      return port
    } catch (error) {
      if (!(error instanceof Blocked)) throw error
    }
  }
}

async function managed(run: Run, kind: Kind, port: number): Promise<Service> {
  const start = { rest: startRest, s3: startS3, sftp: startSftp }[kind]
  return start(run, await ownPort(run, port))
}

async function provide(run: Run, label: string): Promise<Service | undefined> {
  const { url } = run.plan.sample.repository(label)
  const kind = kindOf(url)
  if (!kind || run.dry || run.plan.vykar.standin) return undefined
  const { host, port } = addressOf(url)
  const mode = run.common.services
  if (mode === 'managed') return managed(run, kind, port)
  const up = await answers(kind, url)
  const ofAnotherRun =
    up && isLoopback(host) && !(await isFree(`server ${host.replace('localhost', '127.0.0.1')}:${port}`))
  if (up && !ofAnotherRun) return external(run, label, kind, url)
  if (mode === 'external') throw new Blocked(`${label}: ${url} does not answer, and --services external starts none`)
  if (!isLoopback(host))
    throw new Blocked(
      `${label}: ${url} does not answer; it is not on loopback, so nothing is put in its place: start it`,
    )
  return managed(run, kind, port)
}

/**
 * Provides the servers of the run's repositories. A label without one is noted: its rows are BLOCKED or SKIPPED, or FAIL
 * where the user named it with --repo or --require; the others run.
 */
export async function startServices(run: Run): Promise<void> {
  for (const label of run.repos) {
    try {
      const service = await provide(run, label)
      if (service) run.services.set(label, service)
    } catch (error) {
      if (!(error instanceof Blocked || error instanceof Skipped)) throw error
      const required = [...run.common.require, ...run.common.repo]
      const must = error instanceof Skipped && (required.includes(label) || required.includes('all'))
      run.unavailable.set(label, must ? new Mismatch(`required, but skipped: ${messageOf(error)}`) : error)
    }
  }
  if (which('vykar-server') && run.services.has('rest')) run.report.versions['vykar-server'] = which('vykar-server')!
}
