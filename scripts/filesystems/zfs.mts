#!/usr/bin/env -S npx tsx
// A ZFS dataset, backed up from .zfs/snapshot/NAME of a snapshot that `before` takes and `finally` destroys, while files
// churn. Passes when the restored tree is the moment of the snapshot in content and metadata (known gaps apart), no
// snapshot outlives its backup, and every bad case is met: the name is taken, the snapshot directory cannot be reached, a
// hook fails, the pool is full, the backup is terminated or killed.
// The pool is one of the run's own, on a file or on --device; with --pool an existing one, which is never destroyed.
// --guest runs it in a QEMU guest, for a host whose kernel has no ZFS: built once from Debian packages, which takes about ten minutes.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, read, step, undo } from '#lib/sh.mts'
import { Blocked, Skipped, UsageError } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { listed, numbers, sound, standardNeeds } from '#scripts/checks.mts'
import { cutShort, finallyFails, fresh, retire, serverWants, unreadable } from '#scripts/common.mts'
import { churning, fill, fitsHost, refused, rightOrRefused, writesBetween } from '#scripts/filesystems/common.mts'
import { deviceOptions, needRoot, usableDevice } from '#scripts/filesystems/device.mts'
import { inGuest } from '#scripts/filesystems/guest.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const options = {
  ...deviceOptions,
  pool: { kind: 'string', help: "an existing pool: a dataset of the run's own is made in it, and destroyed again" },
  'corpus-gib': { kind: 'number', help: 'size of the files in GiB', default: 0.25, above: true },
  guest: { kind: 'flag', help: 'runs it in a QEMU guest with ZFS, which is built when it is not there yet' },
} as const
// In the guest ZFS is there.
const tools = process.argv.includes('--guest') ? (['qemu', 'debootstrap'] as const) : (['zpool'] as const)
const spec = { needs: [...standardNeeds, ...tools], wants: serverWants, options } as const

await scenario(import.meta, spec, async (run) => {
  const { device, 'wipe-device': again, 'image-gib': gib, 'corpus-gib': corpusGib, pool } = run.options
  const { seed } = run.common
  needRoot(run, 'a ZFS pool')
  if (run.options.guest) {
    if (device || pool) throw new UsageError('--guest has disks and pools of its own: leave --device and --pool out')
    return inGuest(run, ['--image-gib', String(gib), '--corpus-gib', String(corpusGib)])
  }
  if (device && pool) throw new UsageError('--device and --pool name two places: give one')
  if (again !== undefined && !device) throw new UsageError(`--wipe-device ${again}: name the device with --device, too`)
  fitsHost(run, gib, corpusGib, !device && !pool)

  step('pool')
  // Without the kernel module nothing but the tools is there.
  await $({
    otherwise: Skipped,
  })`zpool list -H -o name > pools 2> pools.err || { echo "this kernel has no ZFS ($(head -n 1 pools.err)): apt-get install -y zfs-dkms, or take --guest" >&2; exit 1; }`
  if (pool) {
    await $({
      otherwise: UsageError,
    })`grep -qxF -- ${pool} pools || { echo ${`--pool ${pool}: no such pool; zpool list shows them`} >&2; exit 1; }`
    await $`echo ${pool} > pool`
  } else {
    await $`echo vykerpool-$VYKAR_E2E_RUN > pool`
    if (device) await $`echo ${await usableDevice(device, again)} > vdev`
    else await $`truncate -s ${Math.ceil(gib * 1024)}M zfs.img && echo $PWD/zfs.img > vdev`
    undo`if zpool list $(<pool) > /dev/null 2>&1; then zpool destroy -f $(<pool); fi`
    // A pool that waits for its file's disk to have room again could not be destroyed.
    await $`zpool create -f -m none -o failmode=continue $(<pool) $(<vdev)`
  }
  const dataset = pool ? 'data-$VYKAR_E2E_RUN' : 'data'
  await $`echo $(<pool)/${{ raw: dataset }} > dataset`
  undo`if zfs list $(<dataset) > /dev/null 2>&1; then zfs destroy -r $(<dataset); fi`
  // "No space" fills the dataset, and not the pool that others may share.
  await $`zfs create -o quota=${Math.ceil(gib * 1024)}M -o mountpoint=$PWD/zfs -o snapdir=visible -o xattr=sa -o acltype=posixacl $(<dataset)`
  // zfs-fuse, say, has snapshots but no directory of them.
  await $({
    otherwise: Skipped,
  })`test -d zfs/.zfs/snapshot || { echo 'this ZFS shows no snapshot directory (.zfs/snapshot)' >&2; exit 1; }`
  await $`zfs version | head -1 > zfs.version`
  run.report.versions.zfs = read('zfs.version')

  step('files')
  await fill('zfs', corpusGib, seed)
  await servers()

  const [live, snapshot, witness] = ['../zfs', '../zfs/.zfs/snapshot/vykar-e2e', 'witness']
  const there = () => $`zfs list -t snapshot $(<../dataset)@vykar-e2e > /dev/null  # the snapshot is there`
  const gone = () =>
    $`! zfs list -t snapshot $(<../dataset)@vykar-e2e > /dev/null 2>&1 || exit 1  # the snapshot is gone`

  for (const repo of run.repos)
    await run.row(repo, async () => {
      step('init')
      await config`
sources:
  - path: ${snapshot}
    label: moment
    hooks:
      before: bash before.sh
      finally: bash finally.sh
`
      // `before` never takes over a snapshot that is there, except one that an earlier, killed backup left (`mine`). A file system
      // has one snapshot directory, so the witness is a copy; a directory that cannot be reached is an error here, and not an
      // empty backup later.
      await $`cat > before.sh <<'EOF'
set -e
snapshot=$(cat ../dataset)@vykar-e2e
exists() { zfs list -t snapshot "$snapshot" > /dev/null 2>&1; }
if test -e mine && exists; then zfs destroy "$snapshot"; fi
rm -f mine
if exists; then echo 'there is a snapshot of this name already' >&2; exit 1; fi
rm -rf witness
zfs snapshot "$snapshot"
rsync -aHAXS ${snapshot}/ witness/ || { zfs destroy "$snapshot"; exit 1; }
date +%s%N | tee mine > taken
EOF`
      // `finally` deletes only what `before` made.
      await $`cat > finally.sh <<'EOF'
set -e
date +%s%N > dropping
if test -e mine; then zfs destroy "$(cat ../dataset)@vykar-e2e"; rm mine; fi
EOF`
      // What a row that failed has left would be in the way of the next one.
      undo`! zfs list -t snapshot $(<../dataset)@vykar-e2e > /dev/null 2>&1 || zfs destroy $(<../dataset)@vykar-e2e`
      await fresh(repo)

      step('backup')
      const churn = await churning(live)
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
      await churn.end('TERM')
      await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`
      await gone()
      await writesBetween()
      await unreadable(repo, `${witness}/awkward/planted`)

      step('list')
      await $`vykar --config config.yaml list -R ${repo} > list.out`
      await listed('moment')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<snapshot.id) > snapshot.list`
      await $`find ${witness} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      step('restore')
      await $({
        limit: '1h',
      })`rm -rf lost && mkdir lost restored && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) restored > restored.out`
      await numbers('restored', 'backup.out', 'list.out', 'restored.out')
      await witnessed('restored', 'snapshot')

      step('compare')
      await sameTree(witness, 'restored')
      // The live files are others by now: what was restored is the moment and not its future.
      await $({ expect: [1] })`diff -qr --no-dereference ${live} ${witness} > churned`

      step('name taken')
      await $`zfs snapshot $(<../dataset)@vykar-e2e`
      await refused(repo, 'name-taken', /^there is a snapshot of this name already$/m)
      await there() // It is somebody else's: `finally` must not have deleted it.
      await $`zfs destroy $(<../dataset)@vykar-e2e`

      step('dataset not mounted')
      undo`zfs mount $(<../dataset) 2> /dev/null || true`
      await $`zfs unmount $(<../dataset)`
      await refused(repo, 'not-mounted', /^rsync: .*: No such file or directory/m)
      await $`zfs mount $(<../dataset)`
      await gone()

      step('failing before')
      await $`sed -E 's/^( *before: .*)$/\1; exit 7/' config.yaml > failing-before.yaml`
      await refused(repo, 'failing-before', /^Error: hook error: .* exited with 7$/m, 'failing-before.yaml')
      await gone()

      step('failing finally')
      await finallyFails(repo, async (tree) => {
        await there() // Until the next backup, which deletes it and takes its own.
        await sameTree(witness, tree)
      })
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > next.out`
      await gone()
      await $`sed -n 's/^Snapshot created: //p' next.out > next.id && rm -rf lost && mkdir lost next`
      await $`vykar --config config.yaml list -R ${repo} > next.list`
      await listed('moment', 'next.out', 'next.list')
      await $({
        limit: '1h',
      })`HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<next.id) next > restored-next.out`
      await numbers('next', 'next.out', 'next.list', 'restored-next.out')
      await sameTree(witness, 'next')
      await witnessed('next', 'next')
      await $`rm -r next`

      step('no space')
      undo`rm -f ${live}/filler && sync`
      await $({
        limit: '30m',
        otherwise: Blocked,
      })`! dd if=/dev/urandom of=${live}/filler bs=1M status=none 2> filler.err && sync && grep -qE 'No space left|quota exceeded' filler.err  # the quota is reached`
      await rightOrRefused(repo, 'no-space', witness, 2, gone)
      await $`rm -f ${live}/filler && sync`

      // The path still works where the directory is hidden from searches.
      step('snapdir hidden')
      undo`zfs set snapdir=visible $(<../dataset)`
      await $`zfs set snapdir=hidden $(<../dataset)`
      await rightOrRefused(repo, 'snapdir-hidden', witness, 2, gone)
      await $`zfs set snapdir=visible $(<../dataset)`

      step('terminated')
      // Something to copy, so that there is a moment to end it in.
      for (const signal of ['TERM', 'INT'] as const) {
        await $`head -c 256M /dev/urandom > ${live}/late`
        fact(`after ${signal}`, `exit ${await cutShort(repo, signal, 'taken', 2)}, the snapshot is gone`)
        await gone()
      }

      step('retire')
      await retire(repo, ['snapshot', 'next'])

      // Last, since what a killed backup leaves in the repository goes with it.
      step('killed')
      const code = await cutShort(repo, 'KILL', 'taken', 0)
      await there()
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > after-kill.out`
      await gone()
      await $`vykar --config config.yaml list -R ${repo} > after-kill.list`
      await listed('moment', 'after-kill.out', 'after-kill.list')
      await $`sed -n 's/^Snapshot created: //p' after-kill.out > snapshot.id && mkdir restored-after-kill`
      await $({
        limit: '1h',
      })`rm -rf lost && mkdir lost && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) restored-after-kill > after-kill.restored.out`
      await numbers('restored-after-kill', 'after-kill.out', 'after-kill.list', 'after-kill.restored.out')
      await sameTree(witness, 'restored-after-kill')
      await $({ limit: '1h' })`vykar --config config.yaml check -R ${repo} --verify-data > after-kill.check 2>&1`
      await sound('after-kill.check', { all: true })
      fact('after KILL', `exit ${code}, the snapshot stays; the next backup deletes it and takes its own`)
    })
})
