#!/usr/bin/env -S npx tsx
// Installs the packages that the scripts of the chosen areas need, through apt-get, as root or with passwordless sudo:
// setup.mts local, setup.mts backends, setup.mts databases, setup.mts containers, setup.mts test, or all areas when none is named. Says what it did and what it could not.
// Exits 0 when nothing is missing afterwards that a package brings; a lack that it may not mend is named (exit 77).
import { spawnSync } from 'node:child_process'
import { aptInstall, aptLine, canSudo, find, type ToolName, tools } from '#lib/host.mts'
import { nearest, parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
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
  'dry-run': { kind: 'flag', help: 'only say what would be installed' },
} as const

function setup(chosen: string[], dryRun: boolean): number {
  const missing = [...new Set(chosen.flatMap((area) => areas[area]!))].map(find).filter((tool) => !tool.path)
  if (!missing.length) {
    console.log(`setup: everything for ${chosen.join(', ')} is there`)
    return 0
  }
  const line = aptLine(missing)
  console.log(`setup: ${missing.map((tool) => `${tool.name} (${tool.why})`).join(', ')} missing: ${line}`)
  if (dryRun) return 0
  if (process.getuid?.() !== 0 && !canSudo()) {
    console.log(
      'setup: neither root nor passwordless sudo: run the line above as root; what needs it is skipped until then',
    )
    return 77
  }
  aptInstall(missing.map((tool) => (tools[tool.name as ToolName] as { apt?: string }).apt ?? tool.name))
  for (const unit of missing.flatMap((tool) => services[tool.name as ToolName] ?? []))
    spawnSync('systemctl', ['disable', '--now', unit], { stdio: 'ignore' })
  const left = missing.filter((tool) => !find(tool.name as ToolName).path)
  console.log(left.length ? `setup: still missing: ${left.map((tool) => tool.name).join(', ')}` : 'setup: installed')
  return left.length ? 1 : 0
}

try {
  const options = parseOptions(process.argv.slice(2), specs, true)
  const chosen = options._.length ? options._ : Object.keys(areas)
  const odd = chosen.find((area) => !areas[area])
  if (odd) throw new UsageError(`no area ${odd}; did you mean ${nearest(odd, Object.keys(areas))}?`)
  if (options.help)
    console.log(
      `${headerOf(import.meta.filename)}\n\nAreas: ${Object.keys(areas).join(', ')}\n\n  --dry-run   only say what would be installed`,
    )
  else process.exitCode = setup(chosen, options['dry-run'])
} catch (error) {
  console.error(`setup: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
