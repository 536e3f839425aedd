// A vykar-server of the run's own: one repository at the root URL, token from the environment.
import { randomBytes } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { which } from '../host.mts'
import type { Run } from '../run.mts'
import { Skipped } from '../verdict.mts'
import { lastLines, type Service, serve } from './service.mts'

/** Whether a vykar-server answers its health check at this URL. */
export async function restAnswers(url: string): Promise<boolean> {
  try {
    const answer = await fetch(new URL('/health', url), { signal: AbortSignal.timeout(2000) })
    return answer.ok
  } catch {
    return false
  }
}

/**
 * Starts `vykar-server` on loopback.
 * @param port a free port
 * @throws Skipped where vykar-server is missing, Blocked when it does not come up
 */
export async function startRest(run: Run, port: number): Promise<Service> {
  if (!which('vykar-server'))
    throw new Skipped('vykar-server is missing: it comes with the vykar release, beside vykar')
  const url = `http://127.0.0.1:${port}`
  const dir = join(run.dirs.work, 'server-rest')
  const token = run.secret('VYKAR_E2E_REST_TOKEN', randomBytes(16).toString('hex'))
  mkdirSync(dir, { mode: 0o700 })
  const argv = ['vykar-server', '--listen', `127.0.0.1:${port}`, '--data-dir', dir]
  run.transcript.server(argv, 'VYKAR_TOKEN="$VYKAR_E2E_REST_TOKEN"')
  const { process, log } = await serve(run, 'rest', argv, { VYKAR_TOKEN: token }, () => restAnswers(url))
  return {
    url,
    set: { allow_insecure_http: true, access_token: '${VYKAR_E2E_REST_TOKEN}' },
    files: dir,
    managed: true,
    process,
    blame: async () => {
      const alive = await restAnswers(url)
      return [`server rest ${alive ? 'answers' : 'does not answer'} after the failure; its log: ${lastLines(log)}`]
    },
  }
}
