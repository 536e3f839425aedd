#!/usr/bin/env -S npx tsx
// A ZFS dataset, backed up from .zfs/snapshot/NAME of a snapshot that `before` takes and `finally` destroys, while files
// churn. Passes when the restored tree is the moment of the snapshot in content and metadata (known gaps apart), no
// snapshot outlives its backup, and every bad case is met: the name is taken, the snapshot directory cannot be reached, a
// hook fails, the pool is full, the backup is terminated or killed.
// The pool is one of the run's own, on a file or on --device; with --pool an existing one, which is never destroyed.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fillLive, type Snapshots, snapshotHooks, snapshotName, snapshotRow } from '#lib/filesystems/snapshot.mts'
import { deviceOptions, needRoot, usableDevice } from '#lib/loop.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $ } from '#lib/sh.mts'
import { standardNeeds } from '#lib/standard.mts'
import { Skipped, UsageError } from '#lib/verdict.mts'

const wants = ['vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const
const options = {
  ...deviceOptions,
  pool: { kind: 'string', help: 'an existing pool: a dataset `data` is made in it, and destroyed again' },
  'corpus-gib': { kind: 'number', help: 'size of the files in GiB', default: 0.25, above: true },
} as const
/** The pool that a run makes. */
const own = 'vykerpool'

await scenario(import.meta, { needs: [...standardNeeds, 'zpool'], wants, options }, async (run) => {
  const { device, 'wipe-device': again, 'image-gib': gib, 'corpus-gib': corpusGib, pool = own } = run.options
  needRoot(run, 'a ZFS pool')
  if (device && run.options.pool) throw new UsageError('--device and --pool name two places: give one')
  const real = device === undefined ? undefined : usableDevice(device, again)
  const dataset = `${pool}/data`
  const live = join(run.dirs.work, 'zfs/data')

  await run.step('pool', async () => {
    const asked = await $({ expect: 'any' })`zpool list -H -o name`
    // Without the kernel module nothing but the tools is there.
    if (!run.dry && asked.code !== 0 && /modprobe|module/i.test(asked.stderr))
      throw new Skipped(`this kernel has no ZFS (${asked.stderr.trim().split('\n')[0]}): apt-get install -y zfs-dkms`)
    const there = !run.dry && asked.stdout.split('\n').includes(pool)
    if (run.options.pool && !there && !run.dry)
      throw new UsageError(`--pool ${pool}: no such pool; zpool list shows them`)
    if (!run.options.pool) {
      if (there)
        throw new UsageError(`pool ${own} is there already: zpool destroy ${own}, or use it with --pool ${own}`)
      const vdev = real ?? join(run.dirs.work, 'zfs.img')
      if (!real) await $`truncate -s ${String(Math.ceil(gib * 1024))}M ${vdev}`
      run.state?.add({ kind: 'zfs', path: own })
      run.cleanup.add(`pool ${own}`, () => $`if zpool list ${own}; then zpool destroy ${own}; fi`)
      await $`zpool create -f -m none ${own} ${vdev}`
    } else if (!run.dry && (await $({ expect: [0, 1] })`zfs list ${dataset}`).code === 0)
      throw new UsageError(`dataset ${dataset} is there already: zfs destroy -r ${dataset}, if it may go`)
    run.state?.add({ kind: 'zfs', path: dataset })
    run.cleanup.add(`dataset ${dataset}`, () => $`if zfs list ${dataset}; then zfs destroy -r ${dataset}; fi`)
    await $`zfs create -o mountpoint=${live} -o snapdir=visible -o xattr=sa -o acltype=posixacl ${dataset}`
    // zfs-fuse, say, has snapshots but no directory of them.
    if (!run.dry && !existsSync(join(live, '.zfs/snapshot')))
      throw new Skipped(`${live} has no .zfs/snapshot: this ZFS shows no snapshot directory`)
    run.report.versions.zfs = (await $`zfs version | head -1`).stdout.trim()
  })
  await run.step('files', () => fillLive(run, live, corpusGib))
  await run.step('servers', () => startServices(run))

  const snapshot = `${dataset}@${snapshotName}`
  const directory = join(live, '.zfs/snapshot', snapshotName)
  const witness = join(run.dirs.work, 'witness')
  const snapshots: Snapshots = {
    live,
    source: directory,
    witness,
    // A file system has one snapshot at a time, so the witness is a copy. A snapshot directory that cannot be reached is
    // an error here, and not an empty backup later.
    take: `zfs snapshot ${snapshot}\nrsync -aHAXS ${directory}/ ${witness}/ || { zfs destroy ${snapshot}; exit 1; }`,
    drop: { snapshot: `zfs destroy ${snapshot}`, witness: `rm -rf ${witness}` },
    exists: `zfs list -t snapshot ${snapshot} > /dev/null 2>&1`,
    collide: `zfs snapshot ${snapshot}`,
    unreachable: [
      {
        name: 'dataset not mounted',
        bring: `zfs unmount ${dataset}`,
        undo: `zfs mount ${dataset}`,
        said: /^rsync: .*: No such file or directory/m,
      },
    ],
    either: [
      {
        name: 'no space',
        // dd ends with "No space left on device", which is what is wanted.
        bring: `dd if=/dev/urandom of=${live}/filler bs=1M status=none || sync`,
        undo: `rm -f ${live}/filler && sync`,
      },
      // The path still works where the directory is hidden from searches.
      {
        name: 'snapdir hidden',
        bring: `zfs set snapdir=hidden ${dataset}`,
        undo: `zfs set snapdir=visible ${dataset}`,
      },
    ],
  }
  for (const repo of run.repos) {
    const values = snapshotHooks(snapshots, join(run.dirs.work, repo))
    await run.row({ repo, values }, (row) => snapshotRow(snapshots, row))
  }
})
