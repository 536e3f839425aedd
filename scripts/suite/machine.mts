// What setup.mts does to a machine beside installing packages: starts docker's daemon, brings an S3 server, and with --install-peers the
// backup tools to compare with that Debian does not have, or not new enough.
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { sleep } from 'zx'
import { ask, lastLine } from '#lib/ask.mts'
import { aptInstall, canSudo, find, which } from '#lib/host.mts'

/** What became of a step: done or there already (0), failed (1), or to be done by hand (77). */
export type Outcome = [code: 0 | 1 | 77, said: string]

/** How a daemon is started, the usual way first: an init script fails where limits cannot be raised, as in a container. */
const dockerStarts: [string, string][] = [
  ['systemd', '[ -d /run/systemd/system ] && systemctl start docker'],
  ['its init script', 'service docker start'],
  [
    'dockerd in the background, /var/log/dockerd.log',
    // The ampersand is of this one command: a shell in between would hold what is waited for.
    '[ -d /run/systemd/system ] || { setsid nohup dockerd --pidfile /run/docker.pid >> /var/log/dockerd.log 2>&1 < /dev/null & }',
  ],
]

/** Those of the units that systemd does not know, or all where there is no systemd. */
export async function unknownUnits(units: readonly string[]): Promise<string[]> {
  const unknown: string[] = []
  for (const unit of units) if ((await ask(['systemctl', 'cat', unit])).code !== 0) unknown.push(unit)
  return unknown
}

/** Docker's daemon answers, where docker is installed. */
export async function dockerDaemon(dry: boolean): Promise<Outcome> {
  const answers = async () => (await ask(['docker', 'info'], { seconds: 20 })).code === 0
  if (!(await find('docker')).path) return [0, 'docker is not installed']
  if (await answers()) return [0, "docker's daemon answers"]
  if (process.env.DOCKER_HOST) return [77, `docker at ${process.env.DOCKER_HOST} does not answer: see DOCKER_HOST`]
  if (!which('dockerd')) return [77, "docker's daemon does not answer, and is not on this host"]
  if (dry) return [0, "would start docker's daemon"]
  if (process.getuid?.() !== 0) return [77, "docker's daemon does not run: sudo systemctl start docker"]
  const others = existsSync('/run/docker.pid')
  for (const [how, line] of dockerStarts) {
    if ((await ask(['bash', '-c', line], { seconds: 90 })).code !== 0) continue
    for (let tries = 0; tries < 30; tries++) {
      if (await answers()) return [0, `docker's daemon was started: ${how}`]
      await new Promise((settle) => setTimeout(settle, 500))
    }
  }
  // One of ours that does not answer goes again.
  if (!others) await ask(['bash', '-c', '[ -d /run/systemd/system ] || kill "$(cat /run/docker.pid)"'])
  return [1, "docker's daemon cannot be started: see /var/log/dockerd.log"]
}

/** Versions of versitygw by the Go that builds them (`go` line of their go.mod), the newest first. */
const versitygw: [go: number, version: string][] = [
  [1.24, 'v1.2.0'],
  [1.21, 'v1.0.10'],
]
const image = 'docker.io/versity/versitygw:v1.2.0'
/** The Go that an older one brings, as a module whose checksum it asks for, where that is too old to build any. */
const newerGo = 'v0.0.1-go1.24.0'

/** Where programs go that no package brings: made where it is missing. */
function ownPrograms(): string {
  const dir = process.getuid?.() === 0 ? '/usr/local/bin' : join(homedir(), '.local/bin')
  mkdirSync(dir, { recursive: true })
  return dir
}

/** An S3 server: there, built by Go at the version that this Go can build, or copied out of its image. */
export async function s3Server(dry: boolean): Promise<Outcome> {
  const found = await find('s3-server')
  if (found.path) return [0, `${found.path} is there`]
  const go = which('go')
  const own = Number(/go(\d+\.\d+)/.exec(go ? (await ask([go, 'version'])).stdout : '')?.[1] ?? 0)
  const version = versitygw.find(([least]) => own >= least)?.[1]
  const engines: string[] = []
  for (const name of ['podman', 'docker'] as const)
    if ((await find(name)).path && (await ask([name, 'info'], { seconds: 20 })).code === 0) engines.push(name)
  if (dry)
    return [
      0,
      version
        ? `would build versitygw ${version}`
        : `would copy versitygw out of ${image} by ${engines.join(' or ') || 'no engine'}`,
    ]
  const dir = ownPrograms()
  const tried: string[] = []
  if (version) {
    const module = `github.com/versity/versitygw/cmd/versitygw@${version}`
    const env = { ...process.env, GOBIN: dir, CGO_ENABLED: '0', GOFLAGS: '-buildvcs=false' }
    const built = await ask([go!, 'install', module], { seconds: 1800, env })
    if (built.code === 0) return [0, `built versitygw ${version} into ${dir}`]
    tried.push(`go install: ${lastLine(built.stderr)}`)
  } else tried.push(go ? `Go ${own} is too old, 1.21 is needed` : 'no Go')
  for (const engine of engines) {
    const line = `set -eo pipefail; ${engine} image inspect ${image} > /dev/null 2>&1 || ${engine} pull -q ${image} > /dev/null
id=$(${engine} create --label vykar-e2e.setup ${image}); trap '${engine} rm "$id" > /dev/null' EXIT; ${engine} cp "$id":/app/versitygw ${dir}/versitygw`
    const copied = await ask(['bash', '-c', line], { seconds: 900 })
    if (copied.code === 0 && (await find('s3-server')).path) return [0, `copied versitygw out of ${image} into ${dir}`]
    tried.push(`${engine}: ${lastLine(copied.stderr)}`)
  }
  if (go && !version) {
    const line = `set -eo pipefail; tmp=$(mktemp -d); trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT; cd "$tmp"; export GOMODCACHE=$tmp/mod GOCACHE=$tmp/cache
go mod download golang.org/toolchain@${newerGo}.linux-$(go env GOARCH); new=$(echo "$GOMODCACHE"/golang.org/toolchain@*); chmod -R u+w "$new"; chmod +x "$new"/bin/* "$new"/pkg/tool/*/*
GOTOOLCHAIN=local GOROOT=$new GOBIN=${dir} CGO_ENABLED=0 "$new"/bin/go install -buildvcs=false github.com/versity/versitygw/cmd/versitygw@${versitygw[0]![1]}`
    const built = await ask(['bash', '-c', line], { seconds: 1800 })
    if (built.code === 0 && (await find('s3-server')).path)
      return [0, `built versitygw ${versitygw[0]![1]} into ${dir}, with ${newerGo.slice(7)} brought by Go ${own}`]
    tried.push(`Go ${newerGo.slice(9)}: ${lastLine(built.stderr)}`)
  }
  // Debian's own Go last: it takes 500 MB.
  const offered = /Candidate: (?:\d+:)?(\d+\.\d+)/.exec((await ask(['apt-cache', 'policy', 'golang-go'])).stdout)?.[1]
  if (!go && offered && (process.getuid?.() === 0 || (await canSudo()))) {
    await aptInstall(['golang-go'])
    return await s3Server(dry)
  }
  return [77, `no S3 server (${tried.join('; ')}): put minio or versitygw into ${dir}; S3 is SKIPPED until then`]
}

/**
 * Peers that a compiler brings: what does, and the line that it runs; `least` is the version below which another is wanted, `long` one
 * that nobody waits for.
 */
const peers: { name: string; least?: number; long?: true; by: string; words: (dir: string) => string[] }[] = [
  {
    // Debian 12 has 0.14, and Debian 13 0.18: a restore of a path below a snapshot needs 0.16.
    name: 'restic',
    least: 0.16,
    by: 'go',
    words: () => ['install', 'github.com/restic/restic/cmd/restic@v0.17.3'],
  },
  {
    name: 'rustic',
    long: true,
    by: 'cargo',
    words: (dir) => ['install', 'rustic-rs', '--version', '0.9.5', '--locked', '--root', join(dir, '..')],
  },
]

/** Where what takes long keeps its log, beside the guest's disk: nobody else writes there. */
const logOf = (name: string) => join(homedir(), '.cache/vykar-e2e', `${name}.log`)
/** Whether a program is being built: flock(1) says so by an exit code of its own. */
const beingBuilt = async (name: string) =>
  existsSync(logOf(name)) && (await ask(['flock', '-n', '-E', '75', logOf(name), 'true'])).code === 75

/** Peers that an earlier setup is still building, which what is measured would be measured beside. */
export async function underConstruction(): Promise<string[]> {
  const found: string[] = []
  for (const { name } of peers) if (await beingBuilt(name)) found.push(name)
  return found
}

/**
 * Builds a program in the background, with a lock on its log, which the kernel gives back whatever happens, and its exit code beside it.
 * @param dir where the program goes
 * @returns what became of it: under way, begun, there, or why the last one failed, which the next call tries again
 */
async function inBackground(name: string, line: string[], dir: string, env: NodeJS.ProcessEnv): Promise<Outcome> {
  const [log, code] = [logOf(name), `${logOf(name)}.code`]
  const ended = (): Outcome | undefined => {
    if (!existsSync(code)) return undefined
    const status = readFileSync(code, 'utf8').trim()
    rmSync(code)
    if (status === '0' && existsSync(join(dir, name))) return [0, `built ${name} into ${dir}`]
    return [
      1,
      `${name}: ${line[0]}: exit ${status}: ${lastLine(readFileSync(log, 'utf8'))} (${log}); run this again to try anew`,
    ]
  }
  mkdirSync(dirname(log), { recursive: true })
  if (await beingBuilt(name)) return [77, `${name} is being built: tail -f ${log}`]
  const last = ended()
  if (last) return last
  writeFileSync(log, '')
  const script = '"$@" > "$0" 2>&1; echo $? > "$0.code"'
  const words = ['-n', '-E', '75', log, 'nice', 'bash', '-c', script, log, ...line]
  const child = spawn('setsid', ['flock', ...words], { env, cwd: '/', stdio: 'ignore', detached: true })
  const failed = await Promise.race([
    new Promise<Error>((settle) => child.on('error', settle)),
    // What fails at once is said at once.
    sleep(3000),
  ])
  child.unref()
  if (failed) return [1, `${name}: ${failed.message}`]
  return (
    ended() ?? [
      77,
      `${name} is being built in the background, in about half an hour: tail -f ${log}, then run this again`,
    ]
  )
}

/**
 * Peers for the benchmark and for fidelity: each that is there in a version that will do, or what brings it; kopia comes by hand alone.
 * @param wait whether one that takes long is waited for: where nobody watches, what is left behind ends with the job
 */
export async function peerTools(dry: boolean, wait = !process.stdout.isTTY): Promise<Outcome> {
  const said: string[] = []
  let worst: Outcome[0] = 0
  for (const { name, least = 0, long, by, words } of peers) {
    const path = which(name)
    const shown = path ? (await ask([path, 'version'])).stdout || (await ask([path, '--version'])).stdout : ''
    const version = /(\d+)\.(\d+)\S*/.exec(shown)
    // 0.9 is older than 0.16.
    const own = version ? Number(version[1]) + Number(version[2]) / 100 : 0
    if (path && own >= least) {
      said.push(`${name} ${version?.[0] ?? ''} is there`)
      continue
    }
    const compiler = which(by)
    if (!compiler) said.push(`${name}: no ${by} to build it with`)
    else if (dry) said.push(`would build ${name}: ${by} ${words('/usr/local/bin').join(' ')}`)
    else {
      const dir = ownPrograms()
      const env = { ...process.env, GOBIN: dir, CGO_ENABLED: '0' }
      if (long && !wait) {
        const [code, text] = await inBackground(name, [compiler, ...words(dir)], dir, env)
        said.push(text)
        worst = worst === 1 ? 1 : code || worst
        continue
      }
      const built = await ask([compiler, ...words(dir)], { seconds: 5400, env })
      said.push(built.code === 0 ? `built ${name} into ${dir}` : `${name}: ${by}: ${lastLine(built.stderr)}`)
      if (built.code) worst = 1
    }
    if (!compiler) worst ||= 77
  }
  if (!which('kopia')) said.push('kopia: in no registry of packages: https://kopia.io/docs/installation')
  return [worst, said.join('; ')]
}
