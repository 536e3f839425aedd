// A VM's disk image: made or copied, mounted by guestmount or a loop device, changed in a chroot, compared block by block.
import { spawnSync } from 'node:child_process'
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { which } from '../host.mts'
import { attach, mount, unmount } from '../loop.mts'
import { root } from '../prepare.mts'
import type { Run } from '../run.mts'
import { $ } from '../sh.mts'
import { Mismatch, Skipped, UsageError } from '../verdict.mts'

/**
 * Whether KVM runs a guest here: a /dev/kvm that can be opened may still run none. Asked of a machine without a disk,
 * whose BIOS must print its name within ten seconds.
 */
export function kvmWorks(): boolean {
  if (!existsSync('/dev/kvm') || !which('qemu-system-x86_64')) return false
  const words = ['-k', '1', '10', 'qemu-system-x86_64', '-accel', 'kvm', '-cpu', 'host', '-m', '64', '-nographic']
  const asked = spawnSync('timeout', [...words, '-no-reboot', '-net', 'none'], { encoding: 'latin1', timeout: 15_000 })
  return /SeaBIOS/.test(asked.stdout)
}

/** Copies, downloads or converts the image that the user names into `disk`, raw and sparse. */
export async function copyImage(image: string, disk: string): Promise<void> {
  const url = /^https?:\/\//.test(image)
  if (!url && !existsSync(image)) throw new UsageError(`--image ${image}: no such file`)
  const file = url ? `${disk}.download` : image
  if (url) await $({ limit: '1h' })`curl -fsSL -o ${file} ${image}`
  const kind = Buffer.alloc(4)
  const fd = existsSync(file) ? openSync(file, 'r') : -1
  if (fd >= 0) readSync(fd, kind, 0, 4, 0)
  if (fd >= 0) closeSync(fd)
  // A qcow2 image begins with QFI and 0xfb.
  if (kind.toString('latin1') === 'QFI\xfb') await $({ limit: '1h' })`qemu-img convert -O raw ${file} ${disk}`
  else await $({ limit: '1h' })`cp --sparse=always ${file} ${disk}`
  if (url) await $`rm ${file}`
}

/**
 * Builds an image from Debian packages: ext4 without partitions, of the host's own release.
 * @param gib its size, most of it a hole
 */
export async function buildImage(run: Run, disk: string, gib: number, packages: readonly string[]): Promise<void> {
  const at = `${disk}.build`
  await $`truncate -s ${String(Math.ceil(gib * 1024))}M ${disk} && mkfs.ext4 -q -F ${disk}`
  await mount(run, await attach(run, disk), at)
  const release = await $`${join(root, 'lib/debian-release')}`
  const [mirror, suite] = run.dry ? ['‹mirror›', '‹release›'] : release.stdout.trim().split(' ')
  const include = packages.length ? [`--include=${packages.join(',')}`] : []
  await $({ limit: '1h' })`debootstrap --variant=minbase ${include} ${suite!} ${at} ${mirror!}`
  await $`echo 'deb ${mirror!} ${suite!} main' > ${at}/etc/apt/sources.list`
  await detach(disk, at)
}

async function detach(disk: string, at: string): Promise<void> {
  await unmount(at)
  await $`for device in $(losetup --noheadings --output NAME --associated ${disk}); do losetup --detach $device; done`
}

/** The largest file system on a loop device or one of its partitions: the root of any usual image. */
const rootOf = (device: string) =>
  $`for part in ${device} ${device}p*; do test ! -b $part || echo "$(lsblk -bdnro SIZE $part) $(blkid -p -o value -s TYPE $part || true) $part"; done | awk '$2 ~ /^(ext4|xfs|btrfs)$/' | sort -n | tail -1 | cut -d' ' -f3`

/** How an image is mounted. */
export interface Mounting {
  how: 'guestmount' | 'loop'
  /** Whether QEMU emulates the processor, for guestmount's own machine. */
  tcg: boolean
}

/**
 * Mounts an image's root file system, runs `inside` and unmounts it again, whatever happened.
 * @param inside gets the directory
 */
export async function withMounted(
  run: Run,
  disk: string,
  { how, tcg }: Mounting,
  inside: (at: string) => Promise<void>,
): Promise<void> {
  const at = `${disk}.mnt`
  if (how === 'loop') {
    const device = await attach(run, disk)
    const found = (await rootOf(device)).stdout.trim()
    if (!found) throw new Skipped(`${disk} has no ext4, xfs or btrfs file system: take --mount guestmount`)
    await mount(run, found, at)
  } else {
    await $`mkdir -p ${at}`
    // guestmount boots a small machine of its own with the host's kernel, or any other that lies there.
    if (!run.dry && !(existsSync('/boot') && readdirSync('/boot').some((name) => name.startsWith('vmlinuz'))))
      throw new Skipped(
        'guestmount needs a kernel in /boot: apt-get install -y linux-image-amd64, or take --mount loop',
      )
    const settings = { LIBGUESTFS_BACKEND: 'direct', ...(tcg ? { LIBGUESTFS_BACKEND_SETTINGS: 'force_tcg' } : {}) }
    run.cleanup.add(`mount ${at}`, () => unmount(at))
    run.state?.add({ kind: 'mount', path: at })
    // The mark says that guestmount, which goes on while it is mounted, is meant to.
    await $({
      limit: '10m',
      env: { ...settings, VYKAR_E2E_SERVICE: 'guestmount' },
    })`guestmount -a ${disk} -i --pid-file ${disk}.guestmount ${at}`
  }
  try {
    await inside(at)
  } finally {
    if (how === 'loop') await detach(disk, at)
    else {
      // guestmount writes the image's last blocks after the unmount: its process must be gone before the image is read.
      const gone = 'tail --pid="$(cat "$0")" -f /dev/null'
      await $({ limit: '10m' })`guestunmount ${at} && bash -c ${gone} ${disk}.guestmount`
    }
  }
}

/**
 * Installs packages in a mounted image, with /dev, /proc, /sys and /run of the host bound while apt runs.
 * @param options apt-get's own, such as --no-install-recommends
 */
export async function installIn(
  run: Run,
  at: string,
  options: readonly string[],
  packages: readonly string[],
): Promise<void> {
  const bound = ['dev', 'dev/pts', 'proc', 'sys', 'run'].map((name) => join(at, name))
  const policy = join(at, 'usr/sbin/policy-rc.d')
  try {
    for (const dir of bound) await mount(run, `/${dir.slice(at.length + 1)}`, dir, ['--bind'])
    // Nothing that a package brings may be started in the chroot; names are looked up as the host does.
    await $`printf '#!/bin/sh\nexit 101\n' > ${policy} && chmod 755 ${policy}`
    await $`cp --remove-destination --dereference /etc/resolv.conf ${at}/etc/resolv.conf`
    const apt = ['env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', '-y']
    await $({ limit: '30m' })`chroot ${at} ${apt} update`
    await $({ limit: '2h' })`chroot ${at} ${apt} ${options} install ${packages}`
    await $`rm -f ${policy}`
  } finally {
    for (const dir of bound.reverse()) await unmount(dir)
  }
}

/** The distribution inside a mounted image: `debian`, `ubuntu`, … */
export const distribution = (at: string) =>
  existsSync(join(at, 'etc/os-release'))
    ? (/^ID="?(\w+)/m.exec(readFileSync(join(at, 'etc/os-release'), 'utf8'))?.[1] ?? 'unknown')
    : 'unknown'

/** Blocks in which two images are compared: those of ext4, xfs and btrfs. */
const blockBytes = 4096

/** Bytes in the 4 KiB blocks in which two images of one size differ. Throws Mismatch where the sizes differ. */
export function changedBytes(before: string, after: string): number {
  const { size } = statSync(before)
  if (statSync(after).size !== size) throw new Mismatch(`${after} has another size than ${before}`)
  const [a, b] = [openSync(before, 'r'), openSync(after, 'r')]
  const [left, right] = [Buffer.alloc(4 << 20), Buffer.alloc(4 << 20)]
  let changed = 0
  for (let at = 0; at < size; at += left.length) {
    const length = readSync(a, left, 0, left.length, at)
    readSync(b, right, 0, right.length, at)
    if (left.compare(right, 0, length, 0, length) === 0) continue
    for (let i = 0; i < length; i += blockBytes)
      if (left.compare(right, i, Math.min(i + blockBytes, length), i, Math.min(i + blockBytes, length)) !== 0)
        changed += blockBytes
  }
  closeSync(a)
  closeSync(b)
  return changed
}
