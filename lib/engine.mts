// Containers: docker or podman, started by a run, gone with it.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Cleanup } from './cleanup.mts'
import { which } from './host.mts'
import { skipOrFail } from './prepare.mts'
import type { Run } from './run.mts'
import { $, CommandFailed, scope } from './sh.mts'
import { Blocked, UsageError } from './verdict.mts'

/** What a run can ask of an engine without a step of its own. */
const quietly = (engine: string, ...args: string[]) => spawnSync(engine, args, { encoding: 'utf8', timeout: 60_000 })

/** The directory in which an engine keeps images and volumes. */
export function engineRoot(engine: string): string {
  const format = engine === 'docker' ? '{{.DockerRootDir}}' : '{{.Store.GraphRoot}}'
  return quietly(engine, 'info', '-f', format).stdout.trim()
}

/** What differs between the engines, apart from their names. */
export interface Engine {
  name: 'docker' | 'podman'
  /** Options of `events` that make it print nanoseconds since 1970, a space and what happened, and end at `now`. */
  events: (now: string) => string[]
  /** What an event calls the end of a container's process. */
  died: string
}

/** What a user can do about an engine that refuses, by what it says; the daemon is not running where it says nothing known. */
const remedies: [said: RegExp, remedy: (engine: string) => string][] = [
  [
    /permission denied/i,
    (engine) => `you may not use it: run as root${engine === 'docker' ? ', or join the group docker' : ''}`,
  ],
  [/rlimit/i, () => 'this host may not raise limits: put default_ulimits = [] under [containers] in containers.conf'],
  [
    /hybrid mode/i,
    () =>
      'crun cannot use this host\'s cgroups: apt-get install runc, and put runtime = "runc" under [engine] in containers.conf',
  ],
  [/cgroup/i, () => 'cgroups cannot be used here: put cgroups = "disabled" under [containers] in containers.conf'],
  [
    /overlay|storage driver/i,
    () => 'its storage driver cannot work on this file system: choose vfs or fuse-overlayfs in storage.conf',
  ],
  [
    /cannot connect|connection refused|no such file/i,
    (engine) => `its daemon is not running: systemctl start ${engine}`,
  ],
]
function remedyFor(engine: string, stderr: string): string {
  const known = remedies.find(([said]) => said.test(stderr))?.[1](engine)
  return `${stderr.trim().split('\n').at(-1)}${known ? `; ${known}` : ''}`
}

/**
 * Makes sure of an engine and puts its version on record.
 * @param volumes whether the run reads volumes on the host, which rootless podman keeps in a user namespace
 * @throws Skipped where it is missing or this user has no right to it, Blocked where it does not answer
 */
export function needEngine(run: Run, engine: string, volumes = false): void {
  const apt = engine === 'docker' ? 'docker.io' : engine
  const skip = (text: string) => skipOrFail(text, [engine], run.common.require)
  if (!which(engine)) throw skip(`${engine} is missing (runs the container): apt-get install -y ${apt}`)
  const asked = quietly(engine, 'info')
  if (asked.status !== 0) {
    const why = `${engine} does not answer: ${remedyFor(engine, asked.stderr)}`
    throw /permission denied/i.test(asked.stderr) ? skip(why) : new Blocked(why)
  }
  if (
    volumes &&
    engine === 'podman' &&
    quietly(engine, 'info', '-f', '{{.Host.Security.Rootless}}').stdout.trim() === 'true'
  )
    throw skip('rootless podman keeps its volumes in a user namespace of its own: run as root')
  const version = quietly(engine, '--version').stdout
  if (engine === 'podman' && !run.env.CONTAINERS_CONF) configurePodman(run)
  run.report.versions[engine] = /\d+(\.\d+)+\S*/.exec(version)?.[0]?.replace(/,$/, '') ?? 'present'
}

/** Whether the host has cgroups of both versions, with controllers in version 2 as well: crun refuses that, runc does not. */
function hybridCgroups(): boolean {
  const file = '/sys/fs/cgroup/unified/cgroup.controllers'
  return existsSync(file) && readFileSync(file, 'utf8').trim() !== ''
}

/**
 * Settings that podman needs on hosts like the one at hand, for this run only. It raises its containers' limits, which only
 * CAP_SYS_RESOURCE may (bit 24, capabilities(7)): without it (inside another container, say) they keep the host's. A
 * configuration of the user's own is left as it is.
 */
function configurePodman(run: Run): void {
  const capabilities = BigInt(`0x${/^CapEff:\s*(\w+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`)
  const own = ['/etc/containers/containers.conf', join(homedir(), '.config/containers/containers.conf')].some(
    existsSync,
  )
  if (own) return
  const settings = [
    ...((capabilities >> 24n) & 1n ? [] : ['[containers]', 'default_ulimits = []']),
    ...(hybridCgroups() && which('runc') ? ['[engine]', 'runtime = "runc"'] : []),
  ]
  if (!settings.length) return
  const file = join(run.dirs.work, 'containers.conf')
  const text = `${settings.join('\n')}\n`
  if (!run.dry) writeFileSync(file, text)
  run.transcript.write(file, text)
  run.transcript.line(`export CONTAINERS_CONF=${run.transcript.quote(file)}`)
  run.env.CONTAINERS_CONF = file
  run.report.notes.push(`podman is configured for this run only (CONTAINERS_CONF): ${settings.join(' ')}`)
}

/** A container to start: `environment` may hold secrets, which go by name. */
export interface ContainerSpec {
  engine: string
  name: string
  image: string
  environment: Record<string, string>
  args: string[]
  /** What test/images/build makes where the image cannot be pulled; nothing where it makes no such image. */
  build?: string
  /** A port that is published on loopback; without one the container has no network at all. */
  port?: number
  /** More options of `run`. */
  flags?: string[]
}

/** The image that test/images/build made, as this engine names it; undefined where there is none. */
export function builtImage(engine: string, build: string): string | undefined {
  const { stdout } = quietly(engine, 'images', '--format', '{{.Repository}}:{{.Tag}}')
  return new RegExp(`^(?:localhost/)?(vykar-e2e/${build}:\\S+)$`, 'm').exec(stdout ?? '')?.[1]
}

/**
 * The image must be there or be pulled; one that this run pulled goes again on PASS. Where a default cannot be pulled, the
 * one built from Debian packages takes its place.
 * @returns the image to use
 * @throws Skipped where there is none
 */
export async function haveImage(
  run: Run,
  { engine, image, build }: Pick<ContainerSpec, 'engine' | 'image' | 'build'>,
): Promise<string> {
  if (!scope().dry && quietly(engine, 'image', 'inspect', image).status === 0) return image
  const pull = await $({ limit: '15m', expect: 'any' })`${engine} pull ${image}`
  if (scope().dry) return image
  const why = pull.stderr.trim().split('\n').at(-1) ?? ''
  const named = run.report.argv.some((word) => word === image || word.endsWith(`=${image}`))
  const built = pull.code !== 0 && build && !named ? builtImage(engine, build) : undefined
  if (built) {
    const note = `image ${image} cannot be pulled: ${built}, built from Debian packages, is used`
    if (!run.report.notes.includes(note)) run.report.notes.push(note)
    return built
  }
  if (pull.code !== 0)
    throw skipOrFail(
      `image ${image} cannot be pulled (${why}): name one with --image, or ${build ? `build one from Debian packages: test/images/build ${build} ${engine}` : 'a server with --uri'}`,
      [image, engine],
      run.common.require,
    )
  run.cleanup.add(`image ${image}`, () => run.keep(`image ${image}`) || $`${engine} rmi ${image}`, true)
  return image
}

/**
 * Starts a container, without a network unless it publishes a port; its volumes go with it. On FAIL it is stopped and kept, with its data.
 * @param healthy asked until it succeeds: the words of a command that is run in the container
 * @throws UsageError where the name is taken, Blocked with its log's last lines where the server does not come up
 * @returns the image that it runs
 */
export async function startContainer(run: Run, spec: ContainerSpec, healthy: string[]): Promise<string> {
  const { engine, name, environment, args } = spec
  const { dry } = scope()
  if (!dry) needEngine(run, engine)
  if (!dry && quietly(engine, 'container', 'inspect', name).status === 0)
    throw new UsageError(
      `container ${name} is there already: ${engine} rm -f -v ${name}, or use it with --container ${name}`,
    )
  const image = await haveImage(run, spec)
  const variables = Object.entries(environment).flatMap(([key, value]) => ['-e', `${key}=${value}`])
  // podman's monitor keeps the environment of whoever started it: it is a service, not something left behind.
  const env = engine === 'podman' ? { VYKAR_E2E_SERVICE: name } : undefined
  run.cleanup.add(
    `container ${name} (stopped; ${engine} start ${name})`,
    async () => {
      if (run.keep(`container ${name}`)) return
      await $({ expect: [0, 1] })`${engine} rm -f -v ${name}`
      await $({ unlisted: true })`! ${engine} container inspect ${name}`
    },
    true,
  )
  run.cleanup.add(
    `stop of ${name}`,
    () => run.common.keep || $({ limit: '2m', expect: 'any' })`${engine} stop -t 60 ${name}`,
  )
  const network = spec.port ? ['-p', `127.0.0.1::${spec.port}`] : ['--network', 'none']
  const started = await $({
    limit: '2m',
    env,
    expect: 'any',
  })`${engine} run -d --name ${name} ${network} ${spec.flags ?? []} ${variables} ${image} ${args}`
  if (started.code !== 0) throw new Blocked(`${engine} cannot start ${name}: ${remedyFor(engine, started.stderr)}`)
  // By its id: a later container of the same name is somebody else's.
  if (!dry) run.state?.add({ kind: 'container', path: `${engine}/${started.stdout.trim()}` })
  try {
    await $({
      limit: '120s',
    })`until ${engine} exec ${name} ${healthy}; do test "$(${engine} container inspect -f '{{.State.Running}}' ${name})" = true || exit 1; sleep 1; done`
  } catch (error) {
    if (!(error instanceof Blocked || error instanceof CommandFailed)) throw error
    const logs = quietly(engine, 'logs', '--tail', '3', name)
    const said = `${logs.stdout}${logs.stderr}`.trim().split('\n').slice(-3).join(' | ')
    throw new Blocked(`the server in container ${name} did not come up; its log: ${said || 'nothing'}`)
  }
  return image
}

/**
 * A named volume, which must be new and goes again on PASS.
 * @param cleanup of the row or the run that it belongs to
 * @returns its directory on the host
 * @throws UsageError where the name is taken
 */
export async function createVolume(run: Run, cleanup: Cleanup, engine: string, name: string): Promise<string> {
  if (!scope().dry && quietly(engine, 'volume', 'inspect', name).status === 0)
    throw new UsageError(`volume ${name} is there already: ${engine} volume rm ${name}, if it may go`)
  cleanup.add(`volume ${name}`, () => run.keep(`volume ${name}`) || removeVolume(engine, name), true)
  await $`${engine} volume create --label vykar-e2e=${run.id} ${name}`
  if (!scope().dry) run.state?.add({ kind: 'volume', path: `${engine}/${name}/${run.id}` })
  const asked = await $`${engine} volume inspect -f ${'{{.Mountpoint}}'} ${name}`
  return asked.stdout.trim() || `/volumes/${name}`
}

async function removeVolume(engine: string, name: string): Promise<void> {
  await $`${engine} volume rm ${name}`
}
