// Containers: the engine made ready, images, and how a container is started. Names end in the run's id, by which they are
// told from anybody else's; each is removed by the id that the engine gave it.
import { existsSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { type Answer, ask, lastLine } from '#lib/ask.mts'
import { statedEnvironment } from '#lib/environment.mts'
import { which } from '#lib/host.mts'
import { skipOrFail } from '#lib/prepare.mts'
import type { Run } from '#lib/run.mts'
import { $, note, read, scope, undo } from '#lib/sh.mts'
import { Blocked, Skipped, UsageError } from '#lib/verdict.mts'

/** What can be asked of an engine without a step of its own. */
const quietly = (engine: string, ...args: string[]): Promise<Answer> =>
  ask([engine, ...args], {
    env: {
      ...statedEnvironment(),
      ...(process.env.CONTAINERS_CONF ? { CONTAINERS_CONF: process.env.CONTAINERS_CONF } : {}),
    },
  })

/** The directory in which an engine keeps images and volumes. */
export async function engineRoot(engine: string): Promise<string> {
  const format = engine === 'docker' ? '{{.DockerRootDir}}' : '{{.Store.GraphRoot}}'
  return (await quietly(engine, 'info', '-f', format)).stdout.trim()
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
/** What an engine said that did not do what it was asked for, in one line, with a remedy where one is known. */
function remedyFor(engine: string, stderr: string): string {
  const known = remedies.find(([said]) => said.test(stderr))?.[1](engine)
  return `${lastLine(stderr)}${known ? `; ${known}` : ''}`
}

/**
 * Makes sure of an engine and puts its version on record.
 * @param volumes whether the run reads volumes on the host, which rootless podman keeps in a user namespace
 * @throws Skipped where it is missing or this user has no right to it, Blocked where it does not answer
 */
async function needEngine(run: Run, engine: string, volumes = false): Promise<void> {
  const apt = engine === 'docker' ? 'docker.io' : engine
  const skip = (text: string) => skipOrFail(text, [engine], run.common.require)
  if (!which(engine)) throw skip(`${engine} is missing (runs the container): apt-get install -y ${apt}`)
  const asked = await quietly(engine, 'info')
  if (asked.code !== 0) {
    const why = `${engine} does not answer: ${remedyFor(engine, asked.stderr)}`
    throw /permission denied/i.test(asked.stderr) ? skip(why) : new Blocked(why)
  }
  // Docker's belong to root, whoever may talk to its daemon.
  if (volumes && engine === 'docker' && process.getuid?.() !== 0)
    throw skip("docker keeps its volumes in root's directories: run as root")
  if (volumes && engine === 'podman') {
    const rootless = await quietly(engine, 'info', '-f', '{{.Host.Security.Rootless}}')
    if (rootless.stdout.trim() === 'true')
      throw skip('rootless podman keeps its volumes in a user namespace of its own: run as root')
  }
  const version = (await quietly(engine, '--version')).stdout
  run.report.versions[engine] = /\d+(\.\d+)+\S*/.exec(version)?.[0]?.replace(/,$/, '') ?? 'present'
}

/** Whether the host has cgroups of both versions, with controllers in version 2 as well: crun refuses that, runc does not. */
function hybridCgroups(): boolean {
  const file = '/sys/fs/cgroup/unified/cgroup.controllers'
  return existsSync(file) && readFileSync(file, 'utf8').trim() !== ''
}

/**
 * Settings that podman needs on hosts like the one at hand. It raises its containers' limits, which only CAP_SYS_RESOURCE may
 * (bit 24, capabilities(7)): without it (inside another container, say) they keep the host's.
 * @returns lines for containers.conf; none where the user has a configuration of their own, which is left as it is
 */
function podmanSettings(): string[] {
  const capabilities = BigInt(`0x${/^CapEff:\s*(\w+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`)
  const places = ['/etc/containers/containers.conf', join(homedir(), '.config/containers/containers.conf')]
  if (process.env.CONTAINERS_CONF || places.some(existsSync)) return []
  return [
    ...((capabilities >> 24n) & 1n ? [] : ['[containers]', 'default_ulimits = []']),
    ...(hybridCgroups() && which('runc') ? ['[engine]', 'runtime = "runc"'] : []),
  ]
}

/** Makes sure of an engine; podman is configured for this run only, where the host needs it. */
export async function engineReady(run: Run, engine: string, volumes = false): Promise<void> {
  const settings = engine === 'podman' ? podmanSettings() : []
  if (settings.length && !run.env.CONTAINERS_CONF) {
    await $`printf '%s\n' ${settings} > containers.conf`
    run.setEnv('CONTAINERS_CONF', `${run.dirs.work}/containers.conf`, '"$top"/containers.conf')
    note(`podman is configured for this run only (CONTAINERS_CONF): ${settings.join(' ')}`)
  }
  if (!run.dry) await needEngine(run, engine, volumes)
}

/**
 * Finds an image: the one that is wanted, or, where it is a default that cannot be pulled, the one that scripts/images/build
 * made from Debian packages. Its name is in the file `<kind>.image`.
 * @param wanted what --image says or its default
 * @param kind what scripts/images/build calls it; empty where it makes no such image
 */
export async function image(run: Run, engine: string, wanted: string, kind: string, named: boolean): Promise<void> {
  const built =
    kind && !named
      ? `$(${engine} images --format '{{.Repository}}:{{.Tag}}' | grep -E '^(localhost/)?vykar-e2e/${kind}:' || true)`
      : ''
  const remedy = kind
    ? `name one with --image, or build one: scripts/images/build ${kind} ${engine}`
    : 'name one with --image'
  const file = `${kind || 'other'}.image`
  await $({
    limit: '15m',
    otherwise: named ? UsageError : Skipped,
  })`for image in ${wanted} ${{ raw: built }}; do
  if ${engine} image inspect $image > /dev/null 2>&1 || ${engine} pull -q $image > pull.out 2>&1; then echo $image > ${file}; break; fi
done; test -s ${file} || { echo "image ${{ raw: wanted }} cannot be had ($(tail -n 1 pull.out)): ${{ raw: remedy }}" >&2; exit 1; }`
  run.report.versions[kind === 'base' ? 'image' : `${kind || 'server'} image`] = read(file)
  if (!run.dry && read(file) !== wanted)
    note(`image ${wanted} cannot be pulled: ${read(file)}, built from Debian packages, is used`)
}

/**
 * Starts a container; its id goes to the file `<name>.cid`. On FAIL it is stopped and kept, with its data.
 * @param kind whose image it runs, see `image`
 * @param flags words of `run` before the image; without `-p` it should have `--network none`
 * @param args words after the image
 */
export async function container(
  engine: string,
  name: string,
  kind: string,
  flags: readonly string[] | { raw: string },
  args: readonly string[],
): Promise<void> {
  // podman's monitor keeps the environment of whoever started it: it is a service, not something left behind.
  const service = engine === 'podman' ? ['env', `VYKAR_E2E_SERVICE=${name}`] : []
  undo({
    keep: `container vykar-${name}-${scope().run.id} (stopped; ${engine} start brings it back)`,
    there: `test -e ${name}.cid`,
  })`test ! -e ${name}.cid || ${engine} rm -f -v $(<${name}.cid)`
  undo({ limit: '2m' })`test ! -e ${name}.cid || ${engine} stop -t 60 $(<${name}.cid) 2> /dev/null || true`
  try {
    await $({
      limit: '2m',
      otherwise: Blocked,
    })`${service} ${engine} run -d --cidfile ${name}.cid --name vykar-${name}-$VYKAR_E2E_RUN --label vykar-e2e=$VYKAR_E2E_RUN ${flags} $(<${kind}.image) ${args}`
  } catch (error) {
    if (!(error instanceof Blocked)) throw error
    throw new Blocked(`${engine} cannot start the container: ${remedyFor(engine, error.message)}`)
  }
}

/**
 * Waits until what a container serves answers.
 * @param ready bash that succeeds then
 * @throws Blocked with the last lines of the container's log where it has ended instead, or out of time
 */
export async function up(engine: string, name: string, ready: string): Promise<void> {
  const runs = `test "$(${engine} container inspect -f '{{.State.Running}}' $(<${name}.cid))" = true`
  await $({
    limit: '2m',
    otherwise: Blocked,
  })`until ${{ raw: ready }}; do ${{ raw: runs }} || { echo "the container did not come up; its log: $(${engine} logs --tail 5 $(<${name}.cid) 2>&1 | paste -sd '|')" >&2; exit 1; }; sleep 1; done`
}

/** A program in a container by the name of its id file, typed as one would: `in-<name> PROGRAM …` with stdin. */
export async function wrapper(engine: string, name: string, flags: readonly string[] = []): Promise<void> {
  await $`printf '#!/bin/sh\nexec %s "$@"\n' "${{ raw: [engine, 'exec', '-i', ...flags].join(' ') }} $(<${name}.cid)" > bin/in-${name} && chmod +x bin/in-${name}`
}

/**
 * Makes a named volume, which goes again when the row (or run) has passed; its directory on the host is in `<file>.path`.
 * @param file also the middle of the volume's name, and in the row the first part of names that are the volume's
 */
export async function volume(engine: string, file: string): Promise<string> {
  const name = `vykar-${engine}-${file}-$VYKAR_E2E_RUN`
  undo({
    keep: `volume ${name.replace('$VYKAR_E2E_RUN', scope().run.id)}`,
    there: `test -e ${file}.path`,
  })`if [ "$(${engine} volume inspect -f '{{index .Labels "vykar-e2e"}}' ${{ raw: name }} 2> /dev/null)" = $VYKAR_E2E_RUN ]; then ${engine} ps -aq --filter volume=${{ raw: name }} --filter label=vykar-e2e=$VYKAR_E2E_RUN | xargs -r ${engine} rm -f; ${engine} volume rm ${{ raw: name }}; fi`
  await $`${engine} volume create --label vykar-e2e=$VYKAR_E2E_RUN ${{ raw: name }}`
  await $`${engine} volume inspect -f '{{.Mountpoint}}' ${{ raw: name }} > ${file}.path`
  return name
}
