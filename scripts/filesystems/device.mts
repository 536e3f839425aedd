// Options of scenarios that need a block device, and which real one may be used.
import { existsSync, realpathSync, statSync } from 'node:fs'
import { ask } from '#lib/ask.mts'
import { skipOrFail } from '#lib/prepare.mts'
import type { Run } from '#lib/run.mts'
import { UsageError } from '#lib/verdict.mts'

/** Options of a scenario that needs a block device of its own. */
export const deviceOptions = {
  'image-gib': {
    kind: 'number',
    help: 'size of the file system in GiB, of which a device has no more either',
    default: 2,
    above: true,
  },
  device: { kind: 'string', help: 'a real device instead of a loop image: everything on it is lost' },
  'wipe-device': { kind: 'string', help: 'the same device again: it may be used although it carries something' },
} as const

/** Mounts, loop devices and pools are root's affair. Throws Skipped for anybody else. */
export function needRoot(run: Run, what: string): void {
  if (!run.dry && process.getuid?.() !== 0)
    throw skipOrFail(`${what} needs root: run it with sudo`, ['root'], run.common.require)
}

interface Block {
  path: string
  mountpoints?: (string | null)[]
}

/** A device and what lies on it as lsblk(8) sees them; with `--inverse` the device and what it lies on. */
async function listed(device: string, ...options: string[]): Promise<Block[]> {
  const asked = await ask(['lsblk', '-J', '--list', '-o', 'PATH,MOUNTPOINTS', ...options, device])
  return asked.code === 0 ? (JSON.parse(asked.stdout) as { blockdevices: Block[] }).blockdevices : []
}
const inUse = (blocks: Block[]) => blocks.find(({ mountpoints }) => mountpoints?.some((at) => at))

/** The devices that the root file system lies on, from its own up to the disk. */
async function rootDevices(): Promise<string[]> {
  // Without the subvolume, which findmnt shows in brackets.
  const source = (await ask(['findmnt', '-nvro', 'SOURCE', '/'])).stdout.trim()
  return (await listed(source, '--inverse')).map(({ path }) => path)
}

/**
 * The device that the user names, symlinks resolved: not the root disk or a part of it, not mounted or swapped to, and
 * empty, or named again.
 * @param again the value of --wipe-device
 * @throws UsageError with the reason
 */
export async function usableDevice(name: string, again: string | undefined): Promise<string> {
  const refuse = (why: string) => new UsageError(`--device ${name}: ${why}`)
  if (!existsSync(name)) throw refuse('no such device')
  const device = realpathSync(name)
  if (!statSync(device).isBlockDevice()) throw refuse('not a block device')
  const below = await listed(device)
  const above = await listed(device, '--inverse')
  const root = await rootDevices()
  const hit = [...below, ...above].find(({ path }) => root.includes(path))
  if (hit) throw refuse(`the root file system lies on ${hit.path}: it is never used`)
  const used = inUse(below)
  if (used) throw refuse(`${used.path} is in use (${used.mountpoints!.filter(Boolean).join(', ')}): umount it first`)
  if (again !== undefined && (!existsSync(again) || realpathSync(again) !== device))
    throw new UsageError(`--wipe-device ${again} is not --device ${name}: name the same device twice, or leave it out`)
  if (again !== undefined) return device
  const remedy = `if it may be lost, name it again: --wipe-device ${name}`
  for (const { path: disk } of above.filter(({ path }) => path !== device)) {
    const sibling = inUse(await listed(disk))
    if (sibling) throw refuse(`it is a part of ${disk}, of which ${sibling.path} is in use; ${remedy}`)
  }
  const signs = await ask(['wipefs', '--noheadings', '--output', 'TYPE', device])
  if (signs.code !== 0) throw refuse(`it cannot be read: ${signs.stderr.trim()}`)
  const kinds = [...new Set(signs.stdout.split('\n').filter(Boolean))]
  if (kinds.length) throw refuse(`it carries ${kinds.join(', ')}; ${remedy}`)
  const parts = below.filter(({ path }) => path !== device)
  if (parts.length)
    throw refuse(`it has partitions or holders (${parts.map(({ path }) => path).join(', ')}); ${remedy}`)
  return device
}
