#!/usr/bin/env -S npx tsx
// Turns a fresh Debian or Ubuntu machine into the sandbox: packages for the chosen areas (all when none is named),
// container images (pulled, or built from Debian packages), the two corpora, ~/vykar.sample.yaml with random
// credentials, ~/runtime, and vykar through its own installer where there is none. What is there already stays as it
// is, so that it can be run again; a step that fails does not stop the others.
//   setup.mts                                 everything
//   setup.mts databases filesystems           packages of two areas, and the rest
//   setup.mts test --packages-only            what `npm test` needs
// Exits 0 when nothing is missing afterwards, 1 when a step failed, 77 when something has to be brought by hand.
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { builtImage } from '#lib/engine.mts'
import { aptInstall, aptLine, canSudo, find, type ToolName, tools, vykarInstall } from '#lib/host.mts'
import { nearest, optionHelp, parseOptions, type Values } from '#lib/options.mts'
import { dataGen, headerOf, root } from '#lib/prepare.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'

/** Areas and the tools they need; `test` is what the test suite needs to skip nothing that packages could bring. */
const base = ['diff', 'rsync', 'timeout', 'time', 'flock', 'setfattr', 'setfacl', 'setcap'] as const
const backends = [...base, 'curl', 'ssh-keygen', 'sshd', 'sftp', 'rclone'] as const
const clients = ['psql', 'pg_dump', 'mariadb', 'mariadb-dump'] as const
const areas: Record<string, readonly ToolName[]> = {
  local: base,
  backends,
  databases: [...backends, ...clients, 'docker', 'dockerd', 'podman', 'debootstrap'],
  containers: [...backends, 'docker', 'dockerd', 'podman', 'debootstrap'],
  filesystems: [...backends, 'mkfs.btrfs', 'guestmount', 'qemu-img', 'qemu', 'socat', 'debootstrap'],
  benchmarks: [...backends, 'borg'],
  test: [
    ...backends,
    ...clients,
    'mkfs.btrfs',
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
  'corpus-gib': { kind: 'number', help: 'size of each of the two corpora', default: 1, above: true },
  'vykar-version': { kind: 'string', help: 'the version that vykar must have; its installer brings the newest' },
} as const
type Options = Values<typeof specs>

/** What became of a step: done or there already (0), failed (1), or to be done by hand (77). */
type Outcome = [code: 0 | 1 | 77, said: string]

function packages(chosen: string[], dry: boolean): Outcome {
  const missing = [...new Set(chosen.flatMap((area) => areas[area]!))].map(find).filter((tool) => !tool.path)
  if (!missing.length) return [0, `everything for ${chosen.join(', ')} is there`]
  const line = aptLine(missing)
  const what = `${missing.map((tool) => `${tool.name} (${tool.why})`).join(', ')} missing: ${line}`
  if (dry) return [0, what]
  if (process.getuid?.() !== 0 && !canSudo())
    return [77, `${what}: neither root nor passwordless sudo: run that as root; what needs it is skipped until then`]
  const names = [...new Set(missing.map((tool) => (tools[tool.name as ToolName] as { apt?: string }).apt ?? tool.name))]
  try {
    aptInstall(names)
  } catch {
    // One package that cannot be had must not keep the others away.
    for (const name of names)
      try {
        aptInstall([name])
      } catch (error) {
        console.error(`setup: ${name}: ${messageOf(error)}`)
      }
  }
  for (const unit of missing.flatMap((tool) => services[tool.name as ToolName] ?? []))
    spawnSync('systemctl', ['disable', '--now', unit], { stdio: 'ignore' })
  const left = missing.filter((tool) => !find(tool.name as ToolName).path).map((tool) => tool.name)
  const installed = missing.map((tool) => tool.name).filter((name) => !left.includes(name))
  return left.length ? [1, `still missing: ${left.join(', ')}`] : [0, `installed ${installed.join(', ')}`]
}

/** Images that the scripts start containers from, and what test/images/build makes where they cannot be pulled. */
const images = { 'debian:stable-slim': 'base', 'postgres:16': 'postgres', 'mariadb:11': 'mariadb' } as const

/** One image for one engine: there, pulled, or built from Debian packages. */
function image(engine: string, name: string, kind: string): Outcome {
  const ask = (...words: string[]) => spawnSync(engine, words, { encoding: 'utf8', timeout: 900_000 })
  if (ask('image', 'inspect', name).status === 0) return [0, `${engine} has ${name}`]
  const built = builtImage(engine, kind)
  if (built) return [0, `${engine} has ${built}, built from Debian packages`]
  if (ask('pull', name).status === 0) return [0, `${engine} pulled ${name}`]
  const made = spawnSync(join(root, 'test/images/build'), [kind, engine], { encoding: 'utf8' })
  return made.status === 0
    ? [0, `${engine}: ${name} cannot be pulled, built ${made.stdout.trim()} from Debian packages`]
    : [1, `${engine}: ${name} cannot be pulled or built: ${made.stderr.trim().split('\n').at(-1)}`]
}

/** The images of every engine that answers. */
function imagesOf(dry: boolean): Outcome {
  const engines = ['docker', 'podman'].filter((name) => find(name as ToolName).path)
  const able = engines.filter((name) => spawnSync(name, ['info'], { stdio: 'ignore', timeout: 60_000 }).status === 0)
  if (dry) return [0, `would pull or build ${Object.keys(images).join(', ')} for ${able.join(' and ') || 'no engine'}`]
  const done = able.flatMap((engine) => Object.entries(images).map(([name, kind]) => image(engine, name, kind)))
  const silent = engines
    .filter((name) => !able.includes(name))
    .map((name): Outcome => [77, `${name} does not answer: start its daemon and run this again`])
  const all = [...done, ...silent]
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

function corpus(name: string, gib: number, dry: boolean): Outcome {
  const dir = join(homedir(), name)
  const marker = join(dir, 'corpus.json')
  if (existsSync(marker) && JSON.parse(readFileSync(marker, 'utf8')).complete === true) return [0, `${dir} is there`]
  if (dry) return [0, `would make ${dir} of ${gib} GiB, and as much again for its snapshot-2`]
  const [program, ...words] = [...dataGen('corpus'), '--out', dir, '--gib', String(gib)]
  const made = spawnSync(program!, words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
  return made.status === 0 ? [0, `made ${dir}`] : [1, made.stderr.trim().replace(/^corpus: /, '')]
}

/** vykar and its server: found, or fetched by the installer that its documentation names. */
function vykar(version: string | undefined, dry: boolean): Outcome {
  let found = find('vykar')
  if (!found.path && dry) return [0, `would run ${vykarInstall}`]
  if (!found.path) {
    const done = spawnSync('sh', ['-c', vykarInstall], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
    found = find('vykar')
    const why = done.stderr.trim().split('\n').at(-1) || `exit ${done.status}`
    if (!found.path)
      return [
        77,
        `vykar could not be installed (${vykarInstall}: ${why}): put vykar and vykar-server into /usr/local/bin`,
      ]
  }
  if (version && found.version !== version)
    return [77, `${found.path} is vykar ${found.version}, not ${version}: put that one there, or name it with --vykar`]
  const server = find('vykar-server')
  if (!server.path)
    return [
      77,
      `vykar ${found.version} is there, vykar-server is not: ${server.remedy}; backends/rest is skipped until then`,
    ]
  return [0, `vykar ${found.version} and vykar-server are there`]
}

/** All steps; one that throws has failed and does not stop the others. */
function setup(chosen: string[], options: Options): number {
  const dry = options['dry-run']
  const steps: [name: string, step: () => Outcome][] = [['packages', () => packages(chosen, dry)]]
  if (!options['packages-only'])
    steps.push(
      ...(chosen.some((area) => area === 'databases' || area === 'containers')
        ? [['images', () => imagesOf(dry)] as [string, () => Outcome]]
        : []),
      ['sample', () => sample(dry)],
      ['runtime', () => runtime(dry)],
      ['corpus-local', () => corpus('corpus-local', options['corpus-gib'], dry)],
      ['corpus-remote', () => corpus('corpus-remote', options['corpus-gib'], dry)],
      ['vykar', () => vykar(options['vykar-version'], dry)],
    )
  const codes = steps.map(([name, step]) => {
    let outcome: Outcome
    try {
      outcome = step()
    } catch (error) {
      outcome = [1, messageOf(error)]
    }
    const word = { 0: 'ok', 1: 'FAILED', 77: 'by hand' }[outcome[0]]
    console.log(`setup: ${name.padEnd(13)} ${word.padEnd(7)} ${outcome[1]}`)
    return outcome[0]
  })
  return codes.includes(1) ? 1 : Math.max(...codes)
}

try {
  const options = parseOptions(process.argv.slice(2), specs, true)
  const chosen = options._.length ? options._ : Object.keys(areas)
  const odd = chosen.find((area) => !areas[area])
  if (odd) throw new UsageError(`no area ${odd}; did you mean ${nearest(odd, Object.keys(areas))}?`)
  if (options.help)
    console.log(`${headerOf(import.meta.filename)}\n\nAreas: ${Object.keys(areas).join(', ')}\n\n${optionHelp(specs)}`)
  else process.exitCode = setup(chosen, options)
} catch (error) {
  console.error(`setup: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
