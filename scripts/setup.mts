#!/usr/bin/env -S npx tsx
// Turns a fresh Debian or Ubuntu machine into the sandbox: packages for the chosen areas (all when none is named),
// docker's daemon, container images (pulled, or built from Debian packages), an S3 server, the two corpora, ~/vykar.sample.yaml with random
// credentials, ~/runtime, and vykar through its own installer where there is none. What is there already stays as it
// is, so that it can be run again; a step that fails does not stop the others.
//   setup.mts                                 everything
//   setup.mts databases filesystems           packages of two areas, and the rest
//   setup.mts test --packages-only            what `npm test` needs
// Exits 0 when nothing is missing afterwards, 1 when a step failed, 77 when something has to be brought by hand.
import { randomBytes } from 'node:crypto'
import { cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { join } from 'node:path'
import { ask, lastLine } from '#lib/ask.mts'
import { readJson } from '#lib/files.mts'
import { aptInstall, aptLine, canSudo, find, type ToolName, tools, vykarInstall, which } from '#lib/host.mts'
import { meant, optionHelp, parseOptions, type Values } from '#lib/options.mts'
import { headerOf, root, tsxWords } from '#lib/prepare.mts'
import { allowLostOutput, duration, Terminal } from '#lib/terminal.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { guestBuilt, kernelHasZfs } from '#scripts/filesystems/guest.mts'
import { dockerDaemon, type Outcome, peerTools, s3Server, unknownUnits } from '#scripts/suite/machine.mts'
import { readiness } from '#scripts/suite/ready.mts'

/** Areas and the tools they need; `test` is what the test suite needs to skip nothing that packages could bring. */
const base = ['diff', 'rsync', 'timeout', 'time', 'flock', 'setfattr', 'setfacl', 'setcap'] as const
const backends = [...base, 'git', 'curl', 'openssl', 'ssh-keygen', 'sshd', 'sftp', 'rclone'] as const
const clients = ['psql', 'pg_dump', 'mariadb', 'mariadb-dump'] as const
const areas: Record<string, readonly ToolName[]> = {
  local: base,
  backends,
  databases: [...backends, ...clients, 'docker', 'dockerd', 'podman', 'debootstrap'],
  containers: [...backends, 'docker', 'dockerd', 'podman', 'debootstrap'],
  filesystems: [...backends, 'mkfs.btrfs', 'guestmount', 'qemu-img', 'qemu', 'socat', 'debootstrap'],
  benchmarks: [...backends, 'borg', 'restic'],
  faults: [...backends, 'faketime', 'mkfs.btrfs', 'mkfs.vfat', 'mkfs.xfs', 'strace', 'python3'],
  test: [
    ...backends,
    'faketime',
    ...clients,
    'mkfs.btrfs',
    'mkfs.vfat',
    'mkfs.xfs',
    'strace',
    'python3',
    'borg',
    'initdb',
    'mariadbd',
    'docker',
    'dockerd',
    'podman',
    'debootstrap',
  ],
}
/** Services that come with a package and are not wanted: scripts and tests start servers of their own. */
const services: Partial<Record<ToolName, string[]>> = {
  sshd: ['ssh.service', 'ssh.socket'],
  initdb: ['postgresql.service'],
  mariadbd: ['mariadb.service'],
}
const specs = {
  help: { kind: 'flag', help: 'this text' },
  'dry-run': { kind: 'flag', help: 'only say what would be done' },
  'packages-only': { kind: 'flag', help: 'no images, corpora, sample, runtime directory or vykar' },
  'zfs-guest': {
    kind: 'flag',
    help: 'builds the QEMU guest in which filesystems/zfs runs where this kernel has no ZFS (ten minutes, 4 GiB)',
  },
  'install-peers': {
    kind: 'flag',
    help: 'builds backup tools to compare with too: restic by go, rustic by cargo (half an hour, on a terminal in the background)',
  },
  'corpus-gib': { kind: 'number', help: 'size of each of the two corpora', default: 1, above: true },
  'vykar-version': { kind: 'string', help: 'the version that vykar must have; its installer brings the newest' },
} as const
type Options = Values<typeof specs>

/** What apt-get said, for who wants to know. */
const aptLog = join(tmpdir(), `vykar-e2e-setup-${process.getuid?.() ?? 0}.log`)

const terminal = new Terminal('normal')

async function packages(chosen: string[], dry: boolean): Promise<Outcome> {
  const wanted = [...new Set(chosen.flatMap((area) => areas[area]!))]
  const missing = (await Promise.all(wanted.map(find))).filter((tool) => !tool.path)
  if (!missing.length) return [0, `everything for ${chosen.join(', ')} is there`]
  const line = aptLine(missing)
  const what = `${missing.map((tool) => `${tool.name} (${tool.why})`).join(', ')} missing: ${line}`
  if (dry) return [0, what]
  if (process.getuid?.() !== 0 && !(await canSudo()))
    return [77, `${what}: neither root nor passwordless sudo: run that as root; what needs it is skipped until then`]
  // A server that was there before is the user's, whether or not its program is where it was looked for.
  const units = missing.flatMap((tool) => services[tool.name as ToolName] ?? [])
  const fresh = await unknownUnits(units)
  const names = [...new Set(missing.map((tool) => (tools[tool.name as ToolName] as { apt?: string }).apt ?? tool.name))]
  try {
    writeFileSync(aptLog, await aptInstall(names))
  } catch {
    // One package that cannot be had must not keep the others away.
    for (const name of names)
      try {
        writeFileSync(aptLog, await aptInstall([name]), { flag: 'a' })
      } catch (error) {
        terminal.line(`setup: ${name}: ${messageOf(error)}`)
      }
  }
  for (const unit of fresh) await ask(['systemctl', 'disable', '--now', unit])
  const left = (await Promise.all(missing.map((tool) => find(tool.name as ToolName)))).filter((tool) => !tool.path)
  const gone = left.map((tool) => tool.name)
  const installed = missing.map((tool) => tool.name).filter((name) => !gone.includes(name))
  return left.length ? [1, `still missing: ${gone.join(', ')}`] : [0, `installed ${installed.join(', ')} (${aptLog})`]
}

/** Images that the scripts start containers from, and what scripts/images/build makes where they cannot be pulled. */
const images = { 'debian:stable-slim': 'base', 'postgres:16': 'postgres', 'mariadb:11': 'mariadb' } as const

/** One image for one engine: there, pulled, or built from Debian packages. */
async function image(engine: string, name: string, kind: string): Promise<Outcome> {
  const engineSays = (...words: string[]) => ask([engine, ...words], { seconds: 900 })
  if ((await engineSays('image', 'inspect', name)).code === 0) return [0, `${engine} has ${name}`]
  const { stdout } = await engineSays('images', '--format', '{{.Repository}}:{{.Tag}}')
  const built = new RegExp(`^(?:localhost/)?(vykar-e2e/${kind}:\\S+)$`, 'm').exec(stdout)?.[1]
  if (built) return [0, `${engine} has ${built}, built from Debian packages`]
  if ((await engineSays('pull', name)).code === 0) return [0, `${engine} pulled ${name}`]
  const made = await ask([join(root, 'scripts/images/build'), kind, engine], { seconds: 3600 })
  return made.code === 0
    ? [0, `${engine}: ${name} cannot be pulled, built ${lastLine(made.stdout)} from Debian packages`]
    : [1, `${engine}: ${name} cannot be pulled or built: ${lastLine(made.stderr)}`]
}

/** The images of every engine that answers. */
async function imagesOf(dry: boolean): Promise<Outcome> {
  const able: string[] = []
  const all: Outcome[] = []
  for (const name of ['docker', 'podman'] as const) {
    if (!(await find(name)).path) continue
    if ((await ask([name, 'info'])).code === 0) able.push(name)
    else all.push([77, `${name} does not answer`])
  }
  if (dry) return [0, `would pull or build ${Object.keys(images).join(', ')} for ${able.join(' and ') || 'no engine'}`]
  for (const engine of able)
    for (const [name, kind] of Object.entries(images)) all.push(await image(engine, name, kind))
  const worst = all.some(([code]) => code === 1) ? 1 : all.some(([code]) => code === 77) ? 77 : 0
  return [worst, all.map(([, said]) => said).join('; ') || 'no engine is there']
}

/** The sample with credentials of its own: what was a published default is random now. */
function sample(dry: boolean): Outcome {
  const file = join(homedir(), 'vykar.sample.yaml')
  if (existsSync(file)) return [0, `${file} is there`]
  if (dry) return [0, `would write ${file} with random credentials`]
  const text = readFileSync(join(root, 'configs/vykar.sample.yaml'), 'utf8')
  const own = text.replace(
    /(\$\{VYKAR_E2E_\w+:-)[^}]*\}/g,
    (_, name: string) => `${name}${randomBytes(16).toString('hex')}}`,
  )
  writeFileSync(file, own, { mode: 0o600, flag: 'wx' })
  return [0, `wrote ${file} with random credentials`]
}

function runtime(dry: boolean): Outcome {
  const dir = join(homedir(), 'runtime')
  if (existsSync(join(dir, 'README.md'))) return [0, `${dir} is there`]
  if (dry) return [0, `would make ${dir}`]
  cpSync(join(root, 'runtime-template'), dir, { recursive: true, force: false })
  return [0, `made ${dir}`]
}

async function corpus(name: string, gib: number, dry: boolean): Promise<Outcome> {
  const dir = join(homedir(), name)
  if (readJson<{ complete?: boolean }>(join(dir, 'corpus.json'))?.complete === true) return [0, `${dir} is there`]
  if (dry) return [0, `would make ${dir} of ${gib} GiB, and as much again for its snapshot-2`]
  const made = await ask([...tsxWords('data-gen/corpus'), '--out', dir, '--gib', String(gib)], { seconds: 7200 })
  return made.code === 0 ? [0, `made ${dir}`] : [1, lastLine(made.stderr).replace(/^corpus: /, '')]
}

/** vykar and its server: found, or fetched by the installer that its documentation names. */
async function vykar(version: string | undefined, dry: boolean): Promise<Outcome> {
  let found = await find('vykar')
  if (!found.path && which('vykar')) return [1, found.why]
  if (!found.path && dry) return [0, `would run ${vykarInstall}`]
  if (!found.path) {
    const done = await ask(['sh', '-c', vykarInstall], { seconds: 600 })
    found = await find('vykar')
    const why = lastLine(done.stderr) || `exit ${done.code}`
    if (!found.path)
      return [
        77,
        `vykar could not be installed (${vykarInstall}: ${why}): put vykar and vykar-server into /usr/local/bin`,
      ]
  }
  if (version && found.version !== version)
    return [77, `${found.path} is vykar ${found.version}, not ${version}: put that one there, or name it with --vykar`]
  const server = await find('vykar-server')
  if (!server.path)
    return [
      77,
      `vykar ${found.version} is there, vykar-server is not: ${server.remedy}; backends/rest is skipped until then`,
    ]
  return [0, `vykar ${found.version} and vykar-server are there`]
}

/** The guest of filesystems/zfs. */
async function zfsGuest(dry: boolean): Promise<Outcome> {
  if (kernelHasZfs()) return [0, 'this kernel has ZFS itself']
  if (guestBuilt()) return [0, 'the guest is there']
  if (dry) return [0, 'would build the guest']
  const made = await ask([join(root, 'scripts/filesystems/guest/build')], { seconds: 3600 })
  return made.code === 0 ? [0, `built ${made.stdout.trim()}`] : [1, lastLine(made.stderr)]
}

/** All steps; one that throws has failed and does not stop the others. */
async function setup(chosen: string[], options: Options): Promise<number> {
  const dry = options['dry-run']
  const steps: [name: string, step: () => Outcome | Promise<Outcome>][] = [['packages', () => packages(chosen, dry)]]
  if (!options['packages-only'])
    steps.push(
      ...(chosen.some((area) => area === 'databases' || area === 'containers')
        ? ([
            ['docker', () => dockerDaemon(dry)],
            ['images', () => imagesOf(dry)],
          ] as typeof steps)
        : []),
      ...(chosen.some((area) => areas[area]!.includes('rclone'))
        ? ([['S3 server', () => s3Server(dry)]] as typeof steps)
        : []),
      ...(options['zfs-guest'] ? ([['ZFS guest', () => zfsGuest(dry)]] as typeof steps) : []),
      ...(options['install-peers'] ? ([['peers', () => peerTools(dry)]] as typeof steps) : []),
      ['sample', () => sample(dry)],
      ['runtime', () => runtime(dry)],
      ['corpus-local', () => corpus('corpus-local', options['corpus-gib'], dry)],
      ['corpus-remote', () => corpus('corpus-remote', options['corpus-gib'], dry)],
      ['vykar', () => vykar(options['vykar-version'], dry)],
    )
  const codes: Outcome[0][] = []
  for (const [name, step] of steps) {
    let outcome: Outcome
    const start = performance.now()
    terminal.begin('setup', name)
    try {
      outcome = await step()
    } catch (error) {
      outcome = [1, messageOf(error)]
    }
    terminal.stop()
    const word = { 0: 'ok', 1: 'FAILED', 77: 'by hand' }[outcome[0]]
    const time = duration((performance.now() - start) / 1000)
    console.log(`setup: ${name.padEnd(13)} ${word.padEnd(7)} ${time.padStart(6)}  ${outcome[1]}`)
    codes.push(outcome[0])
  }
  if (!options['packages-only'] && !dry) {
    const scripts = await readiness()
    const not = scripts.filter(({ word }) => word === 'lacks')
    console.log(`\n./e2e all would run ${scripts.length - not.length} of ${scripts.length} scripts`)
    for (const { scenario, word, without } of scripts)
      if (word !== 'ready') console.log(`${word === 'lacks' ? 'not' : 'partly'} ${scenario}: without ${without}`)
  }
  return codes.includes(1) ? 1 : Math.max(...codes)
}

allowLostOutput()
try {
  const options = parseOptions(process.argv.slice(2), specs, true)
  const chosen = options._.length ? options._ : Object.keys(areas)
  const odd = chosen.find((area) => !areas[area])
  if (odd)
    throw new UsageError(
      `no area ${odd}${meant(odd, Object.keys(areas)) || `: one of ${Object.keys(areas).join(', ')}`}`,
    )
  if (options.help)
    console.log(`${headerOf(import.meta.filename)}\n\nAreas: ${Object.keys(areas).join(', ')}\n\n${optionHelp(specs)}`)
  else process.exitCode = await setup(chosen, options)
} catch (error) {
  console.error(`setup: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
