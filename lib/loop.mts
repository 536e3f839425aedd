// Loop images and mounts of a run, which go with it; and which real device may be used instead.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, realpathSync, statSync } from 'node:fs'
import type { Cleanup } from './cleanup.mts'
import { skipOrFail } from './prepare.mts'
import type { Run } from './run.mts'
import { $, scope } from './sh.mts'
import { UsageError } from './verdict.mts'

/** Options of a scenario that needs a block device of its own. */
export const deviceOptions = {
  'image-gib': { kind: 'number', help: 'size of the loop image in GiB', default: 2, above: true },
  device: { kind: 'string', help: 'a real device instead of a loop image: everything on it is lost' },
  'wipe-device': { kind: 'string', help: 'the same device again: it may be used although it carries something' },
} as const

/** Mounts, loop devices and pools are root's affair. Throws Skipped for anybody else. */
export function needRoot(run: Run, what: string): void {
  if (!run.dry && process.getuid?.() !== 0)
    throw skipOrFail(`${what} needs root: run it with sudo`, ['root'], run.common.require)
}

/** The cleanup stack that things made now belong to. */
const stackOf = (run: Run, cleanup?: Cleanup) => cleanup ?? run.cleanup

/**
 * Attaches an image file to a loop device, which is detached at the end: by the image, since the device's name may be
 * another's by then.
 * @returns the device; a placeholder in a dry run
 */
export async function attach(run: Run, image: string, cleanup?: Cleanup): Promise<string> {
  const detach = () =>
    $`for device in $(losetup --noheadings --output NAME --associated ${image}); do losetup --detach $device; done`
  stackOf(run, cleanup).add(`loop device of ${image}`, async () => {
    await detach()
    run.state?.remove(image)
  })
  run.state?.add({ kind: 'loop', path: image })
  const asked = await $({ out: 'loop.out' })`losetup --partscan --find --show ${image}`
  if (run.dry) return '/dev/loop‹N›'
  const device = asked.stdout.trim()
  scope().transcript.bind('device', device, `cat ${scope().transcript.quote(`${scope().dir}/loop.out`)}`)
  return device
}

/** Takes a mount away, where it is one, waiting a little for what still holds it. Throws CommandFailed where it stays busy. */
export async function unmount(at: string): Promise<void> {
  const { transcript } = scope()
  transcript.line(`umount ${transcript.quote(at)}`)
  await $({
    limit: '60s',
    unlisted: true,
  })`for i in $(seq 20); do if ! mountpoint -q ${at} || umount ${at}; then break; fi; sleep 0.5; done; ! mountpoint -q ${at}`
}

/**
 * Mounts something and registers the unmount; the mount point is made where it is missing.
 * @param options words before the device, such as `['-o', 'noatime']`
 */
export async function mount(run: Run, what: string, at: string, options: string[] = [], cleanup?: Cleanup) {
  if (!run.dry) mkdirSync(at, { recursive: true })
  stackOf(run, cleanup).add(`mount ${at}`, async () => {
    await unmount(at)
    run.state?.remove(at)
  })
  run.state?.add({ kind: 'mount', path: at })
  await $`mkdir -p ${at} && mount ${[...options, what]} ${at}`
}

interface Block {
  path: string
  mountpoints?: (string | null)[]
}

/** A device and what lies on it as lsblk(8) sees them; with `--inverse` the device and what it lies on. */
function listed(device: string, ...options: string[]): Block[] {
  const asked = spawnSync('lsblk', ['-J', '--list', '-o', 'PATH,MOUNTPOINTS', ...options, device], { encoding: 'utf8' })
  return asked.status === 0 ? (JSON.parse(asked.stdout) as { blockdevices: Block[] }).blockdevices : []
}
const inUse = (blocks: Block[]) => blocks.find(({ mountpoints }) => mountpoints?.some((at) => at))

/** The devices that the root file system lies on, from its own up to the disk. */
function rootDevices(): string[] {
  const source = spawnSync('findmnt', ['-nro', 'SOURCE', '/'], { encoding: 'utf8' }).stdout.trim()
  return listed(source, '--inverse').map(({ path }) => path)
}

/**
 * The device that the user names, symlinks resolved: not the root disk or a part of it, not mounted or swapped to, and
 * empty, or named again.
 * @param again the value of --wipe-device
 * @throws UsageError with the reason
 */
export function usableDevice(name: string, again: string | undefined): string {
  const refuse = (why: string) => new UsageError(`--device ${name}: ${why}`)
  if (!existsSync(name)) throw refuse('no such device')
  const device = realpathSync(name)
  if (!statSync(device).isBlockDevice()) throw refuse('not a block device')
  const below = listed(device)
  const above = listed(device, '--inverse')
  const root = rootDevices()
  const hit = [...below, ...above].find(({ path }) => root.includes(path))
  if (hit) throw refuse(`the root file system lies on ${hit.path}: it is never used`)
  const used = inUse(below)
  if (used) throw refuse(`${used.path} is in use (${used.mountpoints!.filter(Boolean).join(', ')}): umount it first`)
  if (again !== undefined && (!existsSync(again) || realpathSync(again) !== device))
    throw new UsageError(`--wipe-device ${again} is not --device ${name}: name the same device twice, or leave it out`)
  if (again !== undefined) return device
  const remedy = `if it may be lost, name it again: --wipe-device ${name}`
  for (const { path: disk } of above.filter(({ path }) => path !== device)) {
    const sibling = inUse(listed(disk))
    if (sibling) throw refuse(`it is a part of ${disk}, of which ${sibling.path} is in use; ${remedy}`)
  }
  const signs = spawnSync('wipefs', ['--noheadings', '--output', 'TYPE', device], { encoding: 'utf8' })
  if (signs.status !== 0) throw refuse(`it cannot be read: ${signs.stderr.trim()}`)
  const kinds = [...new Set(signs.stdout.split('\n').filter(Boolean))]
  if (kinds.length) throw refuse(`it carries ${kinds.join(', ')}; ${remedy}`)
  const parts = below.filter(({ path }) => path !== device)
  if (parts.length)
    throw refuse(`it has partitions or holders (${parts.map(({ path }) => path).join(', ')}); ${remedy}`)
  return device
}
