// A VM's disk image: made or copied, mounted by guestmount or a loop device, changed in a chroot.
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { maskUri } from '#lib/address.mts'
import { ask } from '#lib/ask.mts'
import { which } from '#lib/host.mts'
import { root } from '#lib/prepare.mts'
import { $, undo } from '#lib/sh.mts'
import { Skipped, UsageError } from '#lib/verdict.mts'

/**
 * Whether KVM runs a guest here: a /dev/kvm that can be opened may still run none. Asked of a machine without a disk,
 * whose BIOS must print its name within ten seconds.
 */
export async function kvmWorks(): Promise<boolean> {
  if (!existsSync('/dev/kvm') || !which('qemu-system-x86_64')) return false
  const words = [
    'qemu-system-x86_64',
    '-accel',
    'kvm',
    '-cpu',
    'host',
    '-m',
    '64',
    '-nographic',
    '-no-reboot',
    '-net',
    'none',
  ]
  return /SeaBIOS/.test((await ask(words, { seconds: 10 })).stdout)
}

/** Copies, downloads or converts the image that the user names to disk.raw, raw and sparse. */
export async function copyImage(image: string): Promise<void> {
  const url = /^https?:\/\//.test(image)
  if (!url && !statSync(image, { throwIfNoEntry: false })?.isFile())
    throw new UsageError(`--image ${image}: no such file`)
  const otherwise = UsageError
  if (url && URL.canParse(image) && new URL(image).password)
    throw new UsageError('--image with a password in its URL: it would be in every log; curl reads ~/.netrc')
  if (url)
    await $({
      limit: '1h',
      otherwise,
    })`curl -fsSL --netrc-optional -o download ${image} || { echo ${`--image ${maskUri(image)} cannot be fetched`} >&2; exit 1; }`
  const file = url ? 'download' : image
  // A qcow2 image begins with QFI and 0xfb.
  await $({
    limit: '1h',
    otherwise,
  })`if [[ $(head -c 3 ${file}) == QFI ]]; then qemu-img convert -O raw ${file} disk.raw; else cp --sparse=always ${file} disk.raw; fi`
  if (url) await $`rm download`
}

/**
 * Builds disk.raw from Debian packages: ext4 without partitions, of the host's own release.
 * @param gib its size, most of it a hole
 */
export async function buildImage(gib: number, packages: readonly string[]): Promise<void> {
  const include = packages.length ? [`--include=${packages.join(',')}`] : []
  await $`truncate -s ${Math.ceil(gib * 1024)}M disk.raw && mkfs.ext4 -q -F disk.raw`
  await loop('disk.raw', 'mnt')
  await $({
    limit: '1h',
  })`read -r mirror suite < <(${join(root, 'scripts/images/debian-release')}) && debootstrap --variant=minbase ${include} $suite mnt $mirror > debootstrap.out && echo "deb $mirror $suite main" > mnt/etc/apt/sources.list`
  await unloop('mnt')
}

/** Mounts the largest file system on an image, which is the root of any usual one, through a loop device. */
export async function loop(image: string, at: string, options: readonly string[] = []): Promise<void> {
  undo`for device in $(losetup --noheadings --output NAME --associated ${image}); do losetup --detach $device; done`
  undo({ limit: '60s' })`until ! mountpoint -q ${at} || umount ${at}; do sleep 0.5; done`
  await $`losetup --partscan --find --show ${image} > ${at}.loop`
  await $({
    otherwise: Skipped,
  })`for part in $(<${at}.loop) $(<${at}.loop)p*; do test ! -b $part || echo "$(lsblk -bdnro SIZE $part) $(blkid -p -o value -s TYPE $part || true) $part"; done | awk '$2 ~ /^(ext4|xfs|btrfs)$/' | sort -n | tail -1 | cut -d' ' -f3 | grep . > ${at}.part || { echo ${`${image} has no ext4, xfs or btrfs file system: take --mount guestmount`} >&2; exit 1; }`
  await $`mkdir -p ${at} && mount ${options} $(<${at}.part) ${at}`
}

/** Takes the mount and its loop device away. */
export async function unloop(at: string): Promise<void> {
  await $({ limit: '60s' })`until umount ${at}; do sleep 0.5; done; losetup --detach $(<${at}.loop)`
}

/** How an image is mounted. */
export interface Mounting {
  how: 'guestmount' | 'loop'
  /** Whether QEMU emulates the processor, for guestmount's own machine. */
  tcg: boolean
}

/** Mounts the root file system of disk.raw at mnt, runs `inside` and unmounts it again. */
export async function withMounted({ how, tcg }: Mounting, inside: () => Promise<void>): Promise<void> {
  if (how === 'loop') {
    await loop('disk.raw', 'mnt')
    await inside()
    await unloop('mnt')
    return
  }
  // guestmount boots a small machine of its own with the host's kernel, or any other that lies there. The mark says that it is
  // meant to go on while it is mounted.
  await $({
    otherwise: Skipped,
  })`ls /boot/vmlinuz* > /dev/null 2>&1 || { echo 'guestmount needs a kernel in /boot: apt-get install -y linux-image-amd64, or take --mount loop' >&2; exit 1; }`
  undo({ limit: '60s' })`until ! mountpoint -q mnt || umount mnt; do sleep 0.5; done`
  const settings = ['LIBGUESTFS_BACKEND=direct', ...(tcg ? ['LIBGUESTFS_BACKEND_SETTINGS=force_tcg'] : [])]
  await $({
    limit: '10m',
  })`mkdir -p mnt && env VYKAR_E2E_SERVICE=guestmount ${settings} guestmount -a disk.raw -i --pid-file guestmount.pid mnt`
  await inside()
  // guestmount writes the image's last blocks after the unmount: its process must be gone before the image is read.
  await $({ limit: '10m' })`guestunmount mnt && tail --pid="$(<guestmount.pid)" -f /dev/null`
}

/**
 * Installs packages in the image that is mounted at mnt, with /dev, /proc and /sys of the host bound while apt runs, and a /run of its own:
 * what a package starts or asks must not reach the host's sockets.
 * @param options apt-get's own, such as --no-install-recommends
 */
export async function installIn(options: readonly string[], packages: readonly string[]): Promise<void> {
  const bound = ['dev', 'dev/pts', 'proc', 'sys']
  undo({
    limit: '60s',
  })`for dir in run sys proc dev/pts dev; do until ! mountpoint -q mnt/$dir || umount mnt/$dir; do sleep 0.5; done; done`
  await $`for dir in ${bound}; do mkdir -p mnt/$dir && mount --bind /$dir mnt/$dir; done; mkdir -p mnt/run && mount -t tmpfs tmpfs mnt/run`
  // Nothing that a package brings may be started in the chroot; names are looked up as the host does.
  await $`printf '#!/bin/sh\nexit 101\n' > mnt/usr/sbin/policy-rc.d && chmod 755 mnt/usr/sbin/policy-rc.d`
  await $`cp --remove-destination --dereference /etc/resolv.conf mnt/etc/resolv.conf`
  const apt = ['env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', '-y']
  await $({ limit: '30m' })`chroot mnt ${apt} update > apt.out`
  await $({ limit: '2h' })`chroot mnt ${apt} ${options} install ${packages} > apt.out`
  await $`rm -f mnt/usr/sbin/policy-rc.d`
  await $({ limit: '60s' })`for dir in run sys proc dev/pts dev; do until umount mnt/$dir; do sleep 0.5; done; done`
}
