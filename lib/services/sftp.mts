// An sshd of the run's own on an unprivileged port: own host key, own user key, own known_hosts, internal-sftp only.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { userInfo } from 'node:os'
import { join } from 'node:path'
import { which } from '../host.mts'
import type { Run } from '../run.mts'
import { Skipped } from '../verdict.mts'
import { lastLines, type Service, serve } from './service.mts'

/** Whether an SSH server greets there within two seconds. */
export function sshAnswers(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 2000 })
    const done = (answer: boolean) => {
      socket.destroy()
      resolve(answer)
    }
    socket.once('data', (text) => done(text.toString('latin1').startsWith('SSH-')))
    socket.once('error', () => done(false))
    socket.once('timeout', () => done(false))
    socket.once('close', () => resolve(false))
  })
}

/** sshd's privilege separation wants this directory; Debian's service makes it, so it may be missing. */
function privilegeDir(run: Run): void {
  const dir = '/run/sshd'
  if (process.getuid?.() !== 0 || existsSync(dir)) return
  mkdirSync(dir, { mode: 0o755 })
  run.cleanup.add(dir, () => rmdirSync(dir))
}

/**
 * What plain sftp says of the same server with the same key: whether it or vykar is at fault.
 * @returns one sentence
 */
function plainSftp(port: number, dir: string, user: string): string {
  const options = ['-b', '-', '-P', String(port), '-i', join(dir, 'user_key')]
  const strict = [
    '-o',
    `UserKnownHostsFile=${join(dir, 'known_hosts')}`,
    '-o',
    'StrictHostKeyChecking=yes',
    '-o',
    'ConnectTimeout=10',
  ]
  const asked = spawnSync('timeout', ['20s', 'sftp', ...options, ...strict, `${user}@127.0.0.1`], {
    input: 'pwd\n',
    encoding: 'utf8',
  })
  return asked.status === 0
    ? 'plain sftp works with the same server and key right after the failure: vykar is at fault'
    : `plain sftp fails too (exit ${asked.status}: ${asked.stderr.trim().split('\n').at(-1)}): the server is at fault`
}

/**
 * Starts `sshd` on loopback.
 * @param port a free port
 * @throws Skipped where sshd is missing, Blocked when it does not come up
 */
export async function startSftp(run: Run, port: number): Promise<Service> {
  const sshd = which('sshd')
  if (!sshd || !which('ssh-keygen') || !which('sftp'))
    throw new Skipped('sshd is missing: apt-get install -y --no-install-recommends openssh-server openssh-client')
  privilegeDir(run)
  const user = userInfo().username
  const dir = join(run.dirs.work, 'server-sftp')
  const files = join(dir, 'data')
  mkdirSync(files, { recursive: true, mode: 0o700 })
  for (const key of ['host_key', 'user_key'])
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', 'vykar-e2e', '-f', join(dir, key)])
  const publicKey = (key: string) => readFileSync(join(dir, `${key}.pub`), 'utf8')
  writeFileSync(join(dir, 'authorized_keys'), publicKey('user_key'), { mode: 0o600 })
  writeFileSync(join(dir, 'known_hosts'), `[127.0.0.1]:${port} ${publicKey('host_key')}`, { mode: 0o600 })
  const config = `Port ${port}
ListenAddress 127.0.0.1
HostKey ${dir}/host_key
AuthorizedKeysFile ${dir}/authorized_keys
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
`
  writeFileSync(join(dir, 'sshd_config'), config, { mode: 0o600 })
  const argv = [sshd, '-D', '-e', '-f', join(dir, 'sshd_config')]
  run.transcript.line('# keys and sshd_config as the run made them; a new run makes new ones')
  run.transcript.line('mkdir -p "$work"/server-sftp/data')
  for (const key of ['host_key', 'user_key'])
    run.transcript.line(`ssh-keygen -q -t ed25519 -N '' -f "$work"/server-sftp/${key}`)
  run.transcript.line('cp "$work"/server-sftp/user_key.pub "$work"/server-sftp/authorized_keys')
  run.transcript.line(
    `echo "[127.0.0.1]:${port} $(cat "$work"/server-sftp/host_key.pub)" > "$work"/server-sftp/known_hosts`,
  )
  run.transcript.write(join(dir, 'sshd_config'), config)
  run.transcript.server(argv)
  const { process, log } = await serve(run, 'sftp', argv, {}, () => sshAnswers('127.0.0.1', port))
  const remote = 'RCLONE_CONFIG_E2ESFTP_'
  run.rclone({
    [`${remote}TYPE`]: 'sftp',
    [`${remote}HOST`]: '127.0.0.1',
    [`${remote}PORT`]: String(port),
    [`${remote}USER`]: user,
    [`${remote}KEY_FILE`]: join(dir, 'user_key'),
    [`${remote}KNOWN_HOSTS_FILE`]: join(dir, 'known_hosts'),
    [`${remote}SHELL_TYPE`]: 'none',
  })
  return {
    url: `sftp://${user}@127.0.0.1:${port}${files}`,
    set: { sftp_key: join(dir, 'user_key'), sftp_known_hosts: join(dir, 'known_hosts') },
    files,
    managed: true,
    process,
    rclone: `e2esftp:${files}`,
    blame: async () => [plainSftp(port, dir, user), `log of server sftp: ${lastLines(log)}`],
  }
}
