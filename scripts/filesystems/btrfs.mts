#!/usr/bin/env -S npx tsx
// A btrfs subvolume, backed up from a read-only snapshot that `before` takes and `finally` deletes, while files churn.
// Passes when the restored tree is the moment of the snapshot in content and metadata (known gaps apart), no snapshot
// outlives its backup, and every bad case is met: the name is taken, its directory is missing, a hook fails, the file
// system is full, the backup is terminated or killed.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, read, step, undo } from '#lib/sh.mts'
import { Blocked, UsageError } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { listed, numbers, sound, standardNeeds } from '#scripts/checks.mts'
import { cutShort, finallyFails, fresh, retire, serverWants, unreadable } from '#scripts/common.mts'
import { churning, fill, fitsHost, refused, rightOrRefused, writesBetween } from '#scripts/filesystems/common.mts'
import { deviceOptions, needRoot, usableDevice } from '#scripts/filesystems/device.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const options = {
  ...deviceOptions,
  'corpus-gib': { kind: 'number', help: 'size of the files in GiB', default: 0.25, above: true },
} as const
const spec = { needs: [...standardNeeds, 'mkfs.btrfs'], wants: serverWants, options } as const

await scenario(import.meta, spec, async (run) => {
  const { device, 'wipe-device': again, 'image-gib': gib, 'corpus-gib': corpusGib } = run.options
  const { seed } = run.common
  needRoot(run, 'mounting btrfs')
  if (again !== undefined && !device) throw new UsageError(`--wipe-device ${again}: name the device with --device, too`)
  fitsHost(run, gib, corpusGib, !device)

  step('file system')
  if (device) {
    await $`echo ${await usableDevice(device, again)} > device`
    undo({ later: false })`wipefs -q -a $(<device)`
  } else {
    await $`truncate -s ${Math.ceil(gib * 1024)}M btrfs.img`
    undo`losetup --noheadings --output NAME --associated btrfs.img | xargs -r losetup --detach`
    await $`losetup --find --show btrfs.img > device`
  }
  // "No space" fills it: of a large device no more is used than an image would have.
  await $`size=$(blockdev --getsize64 $(<device)) most=${Math.ceil(gib * 1024)}; mkfs.btrfs -q -f -b $((size < most << 20 ? size : most << 20)) $(<device) && mkdir btrfs`
  undo({ limit: '60s' })`until ! mountpoint -q btrfs || umount btrfs; do sleep 0.5; done`
  await $`mount $(<device) btrfs`
  await $`btrfs subvolume create btrfs/data && mkdir btrfs/.snapshots`

  step('files')
  await fill('btrfs/data', corpusGib, seed)
  // What a snapshot does not hold: another subvolume inside. And two files that share their blocks.
  await $`btrfs subvolume create btrfs/data/nested && echo inside > btrfs/data/nested/file`
  await $`head -c 32M /dev/urandom > btrfs/data/blocks && cp --reflink=always btrfs/data/blocks btrfs/data/reflink && sync`
  await $`btrfs filesystem du -s --raw btrfs/data | awk 'NR == 2 {print $3}' > shared`

  await servers()

  const [live, snapshot, witness] = ['../btrfs/data', '../btrfs/.snapshots/vykar-e2e', '../btrfs/.snapshots/witness']
  const there = () => $`test -e ${snapshot}  # the snapshot is there`
  const gone = () => $`test ! -e ${snapshot}  # the snapshot is gone`

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
      // `before` never takes over a snapshot that is there, except one that an earlier, killed backup left (`mine`).
      await $`cat > before.sh <<'EOF'
set -e
if test -e mine && test -e ${snapshot}; then btrfs subvolume delete ${snapshot}; fi
rm -f mine
if test -e ${snapshot}; then echo 'there is a snapshot of this name already' >&2; exit 1; fi
if test -e ${witness}; then btrfs subvolume delete ${witness}; fi
btrfs subvolume snapshot -r ${live} ${snapshot}
btrfs subvolume snapshot -r ${snapshot} ${witness} || { btrfs subvolume delete ${snapshot}; exit 1; }
date +%s%N | tee mine > taken
EOF`
      // `finally` deletes only what `before` made.
      await $`cat > finally.sh <<'EOF'
set -e
date +%s%N > dropping
if test -e mine; then btrfs subvolume delete ${snapshot}; rm mine; fi
EOF`
      // What a row that failed has left would be in the way of the next one.
      undo`test ! -e ${snapshot} || btrfs subvolume delete ${snapshot}`
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
      await $`find restored/nested -mindepth 1 | wc -l > nested`
      await $`du --block-size=1 restored/blocks restored/reflink | awk '{s += $1} END {print s}' > copies`
      fact('nested subvolume', `${read('nested')} of its files are in the snapshot, so in the backup`)
      fact('reflinked files', `${read('../shared')} bytes shared on btrfs; restored, the two take ${read('copies')}`)

      step('name taken')
      await $`btrfs subvolume create ${snapshot}`
      await refused(repo, 'name-taken', /^there is a snapshot of this name already$/m)
      await there() // It is somebody else's: `finally` must not have deleted it.
      await $`btrfs subvolume delete ${snapshot}`

      step('parent missing')
      undo`test ! -e ../btrfs/elsewhere || mv ../btrfs/elsewhere ../btrfs/.snapshots`
      await $`mv ../btrfs/.snapshots ../btrfs/elsewhere`
      await refused(repo, 'parent-missing', /^ERROR: (cannot access .*|Could not open): No such file or directory$/m)
      await $`mv ../btrfs/elsewhere ../btrfs/.snapshots`
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
      })`! dd if=/dev/zero of=${live}/filler bs=1M status=none 2> filler.err && sync && grep -q 'No space left' filler.err  # the file system is full`
      await rightOrRefused(repo, 'no-space', witness, 2, gone)
      // Where the hook still got its snapshots, the witness holds the filler: the space is back once the cleaner has come by.
      await $`rm -f ${live}/filler && if test -e ${witness}; then btrfs subvolume delete ${witness}; fi`
      await $({ limit: '5m' })`sync && btrfs subvolume sync -s 1 ../btrfs`

      step('terminated')
      // Something to copy, so that there is a moment to end it in.
      for (const signal of ['TERM', 'INT'] as const) {
        await $`head -c 256M /dev/urandom > ${live}/late`
        fact(`after ${signal}`, `exit ${await cutShort(repo, signal, 'taken', 2)}, the snapshot is gone`)
        await gone()
      }

      step('retire')
      await retire(repo, ['snapshot', 'next'])
      // What was deleted takes space until the file system's cleaner has come by.
      await $({ limit: '5m' })`btrfs subvolume sync -s 1 ../btrfs`

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
