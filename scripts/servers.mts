// The servers of repositories on loopback: how each is started, and how plain clients reach it. Whose server is used, and on
// which port, scripts/provide.mts decides.
import { randomBytes } from 'node:crypto'
import { existsSync, realpathSync } from 'node:fs'
import { homedir, userInfo } from 'node:os'
import { dirname } from 'node:path'
import { type Endpoint, variableOf } from '#lib/address.mts'
import { ask, lastLine } from '#lib/ask.mts'
import { background } from '#lib/background.mts'
import { which } from '#lib/host.mts'
import type { Run } from '#lib/run.mts'
import { $, look, note, read, step, undo } from '#lib/sh.mts'
import { Blocked, Skipped } from '#lib/verdict.mts'
import { addressOf, answering, type Kind, parseS3, provide } from '#scripts/provide.mts'

/** Starts what the run's repositories need; where a server cannot be had, its rows say so. */
export async function servers(): Promise<void> {
  step('servers')
  await provide((run, kind, _, port) => ({ rest, s3, sftp })[kind](run, port), reach)
}

/**
 * Waits until the server that was started answers, and not another one that has its address: it must still run a moment later.
 * Throws Blocked with the last lines of its log where it does not.
 */
async function answered(name: string, kind: Kind, url: string): Promise<void> {
  await $({
    limit: '30s',
    otherwise: Blocked,
  })`until ${{ raw: answering(kind, url) }} || ! kill -0 $(<${name}.pid) 2> /dev/null; do sleep 0.1; done; sleep 0.2; kill -0 $(<${name}.pid) 2> /dev/null || { echo "${name} did not come up: $(tail -n 5 ${name}.out | paste -sd '|')" >&2; exit 1; }`
}

/** What is said after a failure: whether the server answers, and the last lines of its log. */
const blame = (name: string, kind: Kind, url: string) => async (): Promise<string[]> => {
  const asked = await look({ expect: 'any' })`${{ raw: answering(kind, url) }}`
  const log = await look`tail -n 5 ../${name}.out | sed 's/\x1b\[[0-9;]*m//g; s/X-Amz-[^ |]*//g' | paste -sd '|'`
  return [
    `${name} ${asked.code === 0 ? 'answers' : 'does not answer'} after the failure; its log: ${log.stdout.trim() || 'nothing'}`,
  ]
}

/** Bash that prints a line for each object behind an rclone path; none where rclone is missing. */
const listing = (remote: string): Pick<Endpoint, 'remote' | 'objects'> =>
  remote ? { remote, objects: `rclone lsf -R --files-only ${remote}` } : {}

/** The same of a REST server, which lists its objects as JSON; the token is in no argument. */
const asked = (variable: string) =>
  `curl -fsS -K - "$${variable}/?list" <<< "header = \\"Authorization: Bearer $VYKAR_E2E_REST_TOKEN\\"" | tr ',' '\\n'`

const random = () => randomBytes(16).toString('hex')

/** A server that does not lie beside the vykar under test may be of another build: then a PASS would be of a pair that nobody ships. */
async function sameBuild(run: Run, server: string, beside: boolean): Promise<void> {
  const { path, version } = run.plan.vykar
  if (run.dry || beside || dirname(path) === dirname(server)) return
  const asked = await ask([server, '--version'], { seconds: 30 })
  const its = /^vykar-server (\d+\.\d+\.\d+\S*)/m.exec(asked.stdout)?.[1]
  if (its && its !== version)
    throw new Skipped(`${server} is ${its}, ${path} is ${version}: put the vykar-server of that build beside it`)
  note(`${server} is used, which does not lie beside ${path}: whether both are of one build is not known`)
}

/** vykar-server: one repository at the root URL, its token in the environment. */
async function rest(run: Run, port: number): Promise<Endpoint> {
  const beside = `${run.dirs.work}/bin/vykar-server`
  const server = existsSync(beside) ? realpathSync(beside) : which('vykar-server')
  if (!server) throw new Skipped('vykar-server is missing: it comes with the vykar release, beside vykar')
  await sameBuild(run, server, existsSync(beside))
  const url = `http://127.0.0.1:${port}`
  run.secret('VYKAR_E2E_REST_TOKEN', random(), true)
  await $`mkdir -m 700 server-rest`
  await background('vykar-server', {
    service: true,
  })`VYKAR_TOKEN=$VYKAR_E2E_REST_TOKEN vykar-server --listen 127.0.0.1:${port} --data-dir server-rest`
  await answered('vykar-server', 'rest', url)
  run.report.versions['vykar-server'] = server
  return {
    url,
    files: `${run.dirs.work}/server-rest`,
    seen: 'FILES_REST',
    objects: asked('REPO_REST'),
    keys: { allow_insecure_http: true, access_token: '${VYKAR_E2E_REST_TOKEN}' },
    blame: blame('vykar-server', 'rest', url),
  }
}

/** Makes the bucket (409: it is there) and lets rclone reach it; both take the credentials from the environment. */
async function bucket(run: Run, url: string, region: string): Promise<string> {
  const { endpoint, bucket, prefix } = parseS3(url)
  await $`(umask 077; printf 'user = "%s:%s"\naws-sigv4 = "aws:amz:%s:s3"\n' "$VYKAR_E2E_S3_KEY" "$VYKAR_E2E_S3_SECRET" ${region} > s3.curl)`
  // versitygw wants to be told the sha256 of an empty body, and curl 7.88 does not tell.
  await $({
    limit: '60s',
    otherwise: Blocked,
  })`curl -sS -o bucket.out -w '%{http_code}\n' -K s3.curl -H "x-amz-content-sha256: $(sha256sum < /dev/null | cut -c -64)" -X PUT ${endpoint}/${bucket} > bucket.code && grep -qE '^(200|409)$' bucket.code || { echo "the S3 server at ${{ raw: endpoint }} answers HTTP $(<bucket.code) to these credentials: mend them in the sample, or let this run start its own (--services managed)" >&2; exit 1; }`
  for (const [name, value] of Object.entries({ TYPE: 's3', PROVIDER: 'Other', ENDPOINT: endpoint, REGION: region }))
    run.setEnv(`RCLONE_CONFIG_E2ES3_${name}`, value)
  run.setEnv('RCLONE_CONFIG', '/dev/null')
  run.setEnv('RCLONE_CONFIG_E2ES3_ACCESS_KEY_ID', run.env.VYKAR_E2E_S3_KEY!, '$VYKAR_E2E_S3_KEY')
  run.setEnv('RCLONE_CONFIG_E2ES3_SECRET_ACCESS_KEY', run.env.VYKAR_E2E_S3_SECRET!, '$VYKAR_E2E_S3_SECRET')
  return which('rclone') ? `e2es3:${bucket}/${prefix}` : ''
}

/** minio, or versitygw where minio is absent. */
async function s3(run: Run, port: number): Promise<Endpoint> {
  const program = ['minio', 'versitygw'].find((name) => which(name))
  if (!program) throw new Skipped('no S3 server: install minio, or: npx tsx scripts/setup.mts backends')
  const url = `s3+http://127.0.0.1:${port}/vykar-stress/${run.plan.name}`
  run.secret('VYKAR_E2E_S3_KEY', random(), true)
  run.secret('VYKAR_E2E_S3_SECRET', random(), true)
  await $`mkdir -m 700 server-s3 server-s3.versions`
  // No telemetry and no update check: nothing outside loopback is contacted.
  if (program === 'minio')
    await background('s3-server', {
      service: true,
    })`MINIO_UPDATE=off MINIO_CALLHOME_ENABLE=off MINIO_ROOT_USER=$VYKAR_E2E_S3_KEY MINIO_ROOT_PASSWORD=$VYKAR_E2E_S3_SECRET minio server --quiet --certs-dir server-s3.certs --address 127.0.0.1:${port} --console-address 127.0.0.1:0 server-s3`
  else
    await background('s3-server', {
      service: true,
    })`ROOT_ACCESS_KEY=$VYKAR_E2E_S3_KEY ROOT_SECRET_KEY=$VYKAR_E2E_S3_SECRET versitygw --port 127.0.0.1:${port} posix --versioning-dir "$PWD"/server-s3.versions "$PWD"/server-s3`
  await answered('s3-server', 's3', url)
  run.report.versions['s3 server'] = program
  const remote = await bucket(run, url, 'us-east-1')
  return {
    url,
    files: `${run.dirs.work}/server-s3/vykar-stress/${run.plan.name}`,
    seen: 'FILES_S3',
    keys: {
      allow_insecure_http: true,
      region: 'us-east-1',
      access_key_id: '${VYKAR_E2E_S3_KEY}',
      secret_access_key: '${VYKAR_E2E_S3_SECRET}',
    },
    ...listing(remote),
    blame: blame('s3-server', 's3', url),
  }
}

/** sshd on an unprivileged port: own host key, own user key, own known_hosts, internal-sftp only. */
async function sftp(run: Run, port: number): Promise<Endpoint> {
  const sshd = which('sshd')
  if (!sshd || !which('ssh-keygen') || !which('sftp'))
    throw new Skipped('sshd is missing: apt-get install -y --no-install-recommends openssh-server openssh-client')
  const user = userInfo().username
  // sshd's privilege separation wants this directory, which Debian's service makes.
  if (process.getuid?.() === 0) {
    // Another sshd may need it by then, or have needed it before.
    undo`test -e sshd.was || pgrep -x sshd > /dev/null || rmdir /run/sshd || true`
    await $`test ! -e /run/sshd || touch sshd.was; mkdir -p /run/sshd`
  }
  await $`mkdir -m 700 server-sftp server-sftp/data`
  for (const key of ['host_key', 'user_key']) await $`ssh-keygen -q -t ed25519 -N '' -C vykar-e2e -f server-sftp/${key}`
  await $`cp server-sftp/user_key.pub server-sftp/authorized_keys`
  await $`echo "[127.0.0.1]:${port} $(<server-sftp/host_key.pub)" > server-sftp/known_hosts`
  await $`cat > server-sftp/sshd_config <<EOF
Port ${port}
ListenAddress 127.0.0.1
HostKey "$PWD/server-sftp/host_key"
AuthorizedKeysFile "$PWD/server-sftp/authorized_keys"
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers ${user}
MaxStartups 100
Subsystem sftp internal-sftp
ForceCommand internal-sftp
EOF`
  await background('sshd', { service: true })`${sshd} -D -e -f "$PWD"/server-sftp/sshd_config`
  const files = `${run.dirs.work}/server-sftp/data`
  await answered('sshd', 'sftp', `sftp://127.0.0.1:${port}/`)
  rcloneSftp(run, '127.0.0.1', port, user)
  for (const [name, file] of Object.entries({ KEY_FILE: 'user_key', KNOWN_HOSTS_FILE: 'known_hosts' }))
    run.setEnv(`RCLONE_CONFIG_E2ESFTP_${name}`, `${run.dirs.work}/server-sftp/${file}`, `$top/server-sftp/${file}`)
  return {
    url: `sftp://${user}@127.0.0.1:${port}${files}`,
    files,
    seen: 'FILES_SFTP',
    keys: { sftp_key: '../server-sftp/user_key', sftp_known_hosts: '../server-sftp/known_hosts' },
    ...listing(which('rclone') ? 'e2esftp:"$FILES_SFTP"' : ''),
    blame: async () => [await plainSftp(port, user), ...(await blame('sshd', 'sftp', `sftp://127.0.0.1:${port}/`)())],
  }
}

/** Lets rclone reach an SFTP server. */
function rcloneSftp(run: Run, host: string, port: number, user: string): void {
  const remote = { TYPE: 'sftp', HOST: host, PORT: String(port), USER: user, SHELL_TYPE: 'none' }
  for (const [name, value] of Object.entries(remote)) run.setEnv(`RCLONE_CONFIG_E2ESFTP_${name}`, value)
  run.setEnv('RCLONE_CONFIG', '/dev/null')
}

/** What plain sftp says of the same server with the same key: whether it or vykar is at fault. */
async function plainSftp(port: number, user: string): Promise<string> {
  const asked = await look({
    limit: '2m',
    expect: 'any',
  })`echo pwd | sftp -b - -P ${port} -i ../server-sftp/user_key -o UserKnownHostsFile=../server-sftp/known_hosts -o StrictHostKeyChecking=yes -o ConnectTimeout=10 ${user}@127.0.0.1`
  return asked.code === 0
    ? 'plain sftp works with the same server and key right after the failure: vykar is at fault'
    : `plain sftp fails too (exit ${asked.code}: ${lastLine(asked.stderr)}): the server is at fault`
}

/** Of an external server the objects are listed, with the credentials that the base config has for it; S3 needs the bucket as well. */
async function reach(run: Run, kind: Kind, label: string, endpoint: Endpoint): Promise<Endpoint> {
  const { keys } = run.plan.sample.repository(label)
  if (run.dry) return endpoint
  if (kind === 'rest') {
    run.secret('VYKAR_E2E_REST_TOKEN', String(keys.access_token ?? ''))
    return { ...endpoint, objects: asked(variableOf(label)) }
  }
  if (kind === 'sftp') {
    const { host, port } = addressOf(endpoint.url)
    const { username, pathname } = new URL(endpoint.url.replace('sftp:', 'http:'))
    rcloneSftp(run, host, port, username || userInfo().username)
    for (const [name, key] of [['KEY_FILE', 'sftp_key'], ['KNOWN_HOSTS_FILE', 'sftp_known_hosts']] as const) // biome-ignore format: a table
      if (keys[key]) run.setEnv(`RCLONE_CONFIG_E2ESFTP_${name}`, String(keys[key]).replace(/^~/, homedir()))
    return { ...endpoint, ...listing(which('rclone') ? `e2esftp:${decodeURIComponent(pathname)}` : '') }
  }
  run.secret('VYKAR_E2E_S3_KEY', String(keys.access_key_id ?? ''))
  run.secret('VYKAR_E2E_S3_SECRET', String(keys.secret_access_key ?? ''))
  const remote = await bucket(run, endpoint.url, String(keys.region ?? 'us-east-1'))
  note(`bucket at ${endpoint.url}: HTTP ${read('bucket.code')}`)
  return { ...endpoint, ...listing(remote) }
}
