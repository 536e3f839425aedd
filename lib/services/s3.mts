// An S3 server of the run's own: minio, or versitygw where minio is absent. The bucket is made before init.
import { randomBytes } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { which } from '../host.mts'
import type { Run } from '../run.mts'
import { $ } from '../sh.mts'
import { Blocked, Skipped } from '../verdict.mts'
import { lastLines, type Service, serve } from './service.mts'

/** How to reach an S3 bucket. */
export interface Bucket {
  /** http://host:port */
  endpoint: string
  bucket: string
  prefix: string
  region: string
  key: string
  secret: string
}

/** Whether an HTTP server answers there at all: S3 refuses an unsigned request, which is an answer. */
export async function s3Answers(endpoint: string): Promise<boolean> {
  try {
    const answer = await fetch(endpoint, { signal: AbortSignal.timeout(2000) })
    return answer.status < 500
  } catch {
    return false
  }
}

/** Endpoint, bucket and prefix of `s3://…` or `s3+http://host:port/bucket/prefix`. */
export function parseS3(url: string): Pick<Bucket, 'endpoint' | 'bucket' | 'prefix'> {
  const parts = new URL(url.replace(/^s3(\+http)?:/, (_, plain) => (plain ? 'http:' : 'https:')))
  const [bucket = '', ...prefix] = parts.pathname.split('/').filter(Boolean)
  return { endpoint: parts.origin, bucket, prefix: prefix.join('/') }
}

/** sha256 of an empty body, which versitygw wants to be told and curl 7.88 does not tell. */
const emptyBody = 'x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'

/** Makes the bucket; one that exists already (409) is fine. Credentials go through a 0600 file, never argv. */
export async function makeBucket(run: Run, { endpoint, bucket, region, key, secret }: Bucket): Promise<void> {
  const file = join(run.dirs.work, 's3.curl')
  writeFileSync(file, `user = "${key}:${secret}"\naws-sigv4 = "aws:amz:${region}:s3"\n`, { mode: 0o600 })
  run.transcript.line(
    `(umask 077; printf 'user = "%s:%s"\\naws-sigv4 = "aws:amz:${region}:s3"\\n' "$VYKAR_E2E_S3_KEY" "$VYKAR_E2E_S3_SECRET" > "$work"/s3.curl)`,
  )
  const made = await $({
    limit: '60s',
  })`curl -sS -o /dev/null -w '%{http_code}' -K ${file} -H ${emptyBody} -X PUT ${endpoint}/${bucket}`
  if (!/^(200|409)$/.test(made.stdout))
    throw new Blocked(`bucket ${bucket} at ${endpoint} could not be made: HTTP ${made.stdout}`)
}

/** Lets rclone reach a bucket, by its environment. Returns the remote path. */
export function rcloneS3(run: Run, b: Bucket): string {
  const remote = 'RCLONE_CONFIG_E2ES3_'
  run.rclone({
    [`${remote}TYPE`]: 's3',
    [`${remote}PROVIDER`]: 'Other',
    [`${remote}ENDPOINT`]: b.endpoint,
    [`${remote}REGION`]: b.region,
    [`${remote}ACCESS_KEY_ID`]: b.key,
    [`${remote}SECRET_ACCESS_KEY`]: b.secret,
  })
  return `e2es3:${b.bucket}/${b.prefix}`
}

/**
 * Starts an S3 server on loopback and makes the bucket `vykar-stress`.
 * @param port a free port
 * @throws Skipped where neither server is there, Blocked when it does not come up
 */
export async function startS3(run: Run, port: number): Promise<Service> {
  const program = ['minio', 'versitygw'].find((name) => which(name))
  if (!program)
    throw new Skipped('no S3 server: install minio, or: go install github.com/versity/versitygw/cmd/versitygw@latest')
  const endpoint = `http://127.0.0.1:${port}`
  const dir = join(run.dirs.work, 'server-s3')
  mkdirSync(dir, { mode: 0o700 })
  const bucket: Bucket = {
    endpoint,
    bucket: 'vykar-stress',
    prefix: run.id,
    region: 'us-east-1',
    key: run.secret('VYKAR_E2E_S3_KEY', randomBytes(10).toString('hex')),
    secret: run.secret('VYKAR_E2E_S3_SECRET', randomBytes(20).toString('hex')),
  }
  const minio = program === 'minio'
  const argv = minio
    ? ['minio', 'server', '--quiet', '--address', `127.0.0.1:${port}`, '--console-address', '127.0.0.1:0', dir]
    : ['versitygw', '--port', `127.0.0.1:${port}`, 'posix', dir]
  const [user, password] = minio ? ['MINIO_ROOT_USER', 'MINIO_ROOT_PASSWORD'] : ['ROOT_ACCESS_KEY', 'ROOT_SECRET_KEY']
  run.transcript.server(argv, `${user}="$VYKAR_E2E_S3_KEY" ${password}="$VYKAR_E2E_S3_SECRET"`)
  // No telemetry and no update check: nothing outside loopback is contacted.
  const env = { [user!]: bucket.key, [password!]: bucket.secret, MINIO_UPDATE: 'off', MINIO_CALLHOME_ENABLE: 'off' }
  const { process, log } = await serve(run, 's3', argv, env, () => s3Answers(endpoint))
  run.report.versions['s3 server'] = program
  await makeBucket(run, bucket)
  return {
    url: `s3+http://127.0.0.1:${port}/${bucket.bucket}/${bucket.prefix}`,
    set: {
      allow_insecure_http: true,
      region: bucket.region,
      access_key_id: '${VYKAR_E2E_S3_KEY}',
      secret_access_key: '${VYKAR_E2E_S3_SECRET}',
    },
    files: join(dir, bucket.bucket, bucket.prefix),
    managed: true,
    process,
    rclone: rcloneS3(run, bucket),
    blame: async () => {
      const alive = await s3Answers(endpoint)
      return [`server s3 ${alive ? 'answers' : 'does not answer'} after the failure; its log: ${lastLines(log)}`]
    },
  }
}
