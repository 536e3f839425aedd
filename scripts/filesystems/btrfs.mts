#!/usr/bin/env -S npx tsx
// A btrfs subvolume, backed up from a read-only snapshot that `before` takes and `finally` deletes, while files churn.
// Passes when the restored tree is the moment of the snapshot in content and metadata (known gaps apart), no snapshot
// outlives its backup, and every bad case is met: the name is taken, its directory is missing, a hook fails, the file
// system is full, the backup is terminated or killed.
import { join } from 'node:path'
import { fillLive, type Snapshots, snapshotHooks, snapshotName, snapshotRow } from '#lib/filesystems/snapshot.mts'
import { attach, deviceOptions, mount, needRoot, usableDevice } from '#lib/loop.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $ } from '#lib/sh.mts'
import { standardNeeds } from '#lib/standard.mts'

const wants = ['vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const
const options = {
  ...deviceOptions,
  'corpus-gib': { kind: 'number', help: 'size of the files in GiB', default: 0.25, above: true },
} as const

await scenario(import.meta, { needs: [...standardNeeds, 'mkfs.btrfs'], wants, options }, async (run) => {
  const { device, 'wipe-device': again, 'image-gib': gib, 'corpus-gib': corpusGib } = run.options
  needRoot(run, 'mounting btrfs')
  const real = device === undefined ? undefined : usableDevice(device, again)
  const at = join(run.dirs.work, 'btrfs')
  const live = join(at, 'data')
  const snapshot = join(at, '.snapshots', snapshotName)
  const witness = join(at, '.snapshots', 'witness')

  await run.step('file system', async () => {
    const image = join(run.dirs.work, 'btrfs.img')
    if (!real) await $`truncate -s ${String(Math.ceil(gib * 1024))}M ${image}`
    const on = real ?? (await attach(run, image))
    await $`mkfs.btrfs -q -f ${on}`
    if (real) run.cleanup.add(`file system on ${real}`, () => $`wipefs -q -a ${real}`)
    await mount(run, on, at)
    await $`btrfs subvolume create ${live} && mkdir ${at}/.snapshots`
  })
  const shared = await run.step('files', async () => {
    await fillLive(run, live, corpusGib)
    // What a snapshot does not hold: another subvolume inside. And two files that share their blocks.
    await $`btrfs subvolume create ${live}/nested && echo inside > ${live}/nested/file`
    await $`head -c 32M /dev/urandom > ${live}/blocks && cp --reflink=always ${live}/blocks ${live}/reflink && sync`
    return (await $`btrfs filesystem du -s --raw ${live} | awk 'NR == 2 {print $3}'`).stdout.trim()
  })
  await run.step('servers', () => startServices(run))

  const snapshots: Snapshots = {
    live,
    source: snapshot,
    witness,
    take: `btrfs subvolume snapshot -r ${live} ${snapshot}\nbtrfs subvolume snapshot -r ${snapshot} ${witness}`,
    drop: {
      snapshot: `btrfs subvolume delete ${snapshot}`,
      witness: `if test -e ${witness}; then btrfs subvolume delete ${witness}; fi`,
    },
    exists: `test -e ${snapshot}`,
    collide: `btrfs subvolume create ${snapshot}`,
    unreachable: [
      {
        name: 'parent missing',
        bring: `mv ${at}/.snapshots ${at}/elsewhere`,
        undo: `mv ${at}/elsewhere ${at}/.snapshots`,
        said: /^ERROR: cannot access .*: No such file or directory$/m,
      },
    ],
    either: [
      {
        name: 'no space',
        // dd ends with "No space left on device", which is what is wanted.
        bring: `dd if=/dev/zero of=${live}/filler bs=1M status=none || sync`,
        undo: `rm -f ${live}/filler && sync`,
      },
    ],
    inspect: async (tree, { report }) => {
      const inside = (await $`find ${tree}/nested -mindepth 1 | wc -l`).stdout.trim()
      report.facts['nested subvolume'] =
        `${inside} of its files are in the snapshot, so in the backup: it needs a source of its own`
      const copies = (await $`du --block-size=1 ${tree}/blocks ${tree}/reflink | awk '{s += $1} END {print s}'`).stdout
      report.facts['reflinked files'] = `${shared} bytes shared on btrfs; restored, the two take ${copies.trim()} bytes`
    },
  }
  for (const repo of run.repos) {
    const values = snapshotHooks(snapshots, join(run.dirs.work, repo))
    await run.row({ repo, values }, (row) => snapshotRow(snapshots, row))
  }
})
