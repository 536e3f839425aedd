#!/usr/bin/env -S npx tsx
// A VM's raw disk image, backed up before and after each round of package installations: how much of what changed does
// the repository take up?
// Passes when every restored image has the sha256 that its source had, and check finds no error. The report has per round
// the bytes changed (in 4 KiB blocks), the bytes added to the repository, their ratio and the time, and a chart.
// --mutate boot changes a running VM instead: frozen through its guest agent in `before`, thawed in `finally`.
import { statSync } from 'node:fs'
import { diskUsage } from '#lib/cleanup.mts'
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, read, step } from '#lib/sh.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { Skipped } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { listed, numbers, packBytes, shows, standardNeeds } from '#scripts/checks.mts'
import { fresh, retire, serverWants, storedChange, written } from '#scripts/common.mts'
import { stillAs } from '#scripts/corpus.mts'
import { needRoot } from '#scripts/filesystems/device.mts'
import { booted, bootPackages, needBoot } from '#scripts/filesystems/vm-image/boot.mts'
import { drawGrowth, type Growth } from '#scripts/filesystems/vm-image/growth.mts'
import {
  buildImage,
  copyImage,
  installIn,
  kvmWorks,
  type Mounting,
  withMounted,
} from '#scripts/filesystems/vm-image/image.mts'
import { parseBackup } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'
import { needSpace } from '#scripts/space.mts'

const wants = ['guestmount', 'qemu-img', 'qemu', 'socat', ...serverWants] as const
const options = {
  image: {
    kind: 'string',
    help: 'image to start from, raw or qcow2, a file or a URL; default: built from Debian packages',
  },
  'image-gib': { kind: 'number', help: 'size of an image that is built, in GiB', default: 10, above: true },
  mount: { kind: 'string', help: 'how the image is mounted', choices: ['guestmount', 'loop'], default: 'loop' },
  packages: { kind: 'list', help: 'rounds: packages separated by spaces, rounds by commas' },
  mutate: { kind: 'string', help: 'how the image is changed', choices: ['chroot', 'boot'], default: 'chroot' },
  tcg: { kind: 'flag', help: 'let QEMU emulate the processor, where KVM does not work: slow' },
} as const

/** Desktop and applications, one round each; the second without recommended packages. */
const defaults: Record<string, [first: string, second: string]> = {
  ubuntu: ['ubuntu-desktop-minimal', 'thunderbird libreoffice-core htop curl jq git'],
  debian: ['gnome-core', 'thunderbird libreoffice-core htop curl jq git'],
}

await scenario(import.meta, { needs: [...standardNeeds, 'debootstrap'], wants, options }, async (run) => {
  const { image, 'image-gib': gib, mount: how, packages, mutate } = run.options
  needRoot(run, 'mounting a disk image')
  const kvm = !run.dry && (await kvmWorks())
  const boot = mutate === 'boot'
  if (boot && !kvm && !run.options.tcg && !run.dry)
    throw new Skipped('KVM does not work here: --tcg lets QEMU emulate the processor')
  const tcg = run.options.tcg || !kvm
  if (boot && !run.dry) await needBoot()
  run.report.versions['QEMU accelerator'] = tcg ? 'tcg' : 'kvm'
  // Every state of the image, the one that is backed up, a repository and a restored one: 2 GiB or so each when filled.
  const needs = [{ dir: run.runtime, bytes: gib * 0.5 * 6 * 2 ** 30 }]
  if (!image && !run.dry) needSpace(needs, `--image-gib ${gib}`, 'take a smaller --image-gib')
  if (image && !run.dry && statSync(image, { throwIfNoEntry: false })?.isFile())
    needSpace([{ dir: run.runtime, bytes: (await diskUsage(image)) * 6 }], `--image ${image}`, 'take a smaller image')

  step('image')
  if (image) await copyImage(image)
  else await buildImage(gib, boot ? bootPackages : [])
  if (boot) {
    await servers()
    const words = packages.length ? packages.flatMap((round) => round.split(' ')) : ['htop', 'curl', 'jq', 'git']
    for (const repo of run.repos) await run.row({ repo, variant: 'boot' }, () => booted(run, repo, words, tcg))
    return
  }

  const mounting: Mounting = { how: how as Mounting['how'], tcg }
  let rounds = packages.map((words) => ({ words, apt: ['--no-install-recommends'] }))
  if (!rounds.length) {
    step('distribution')
    await withMounted(mounting, async () => {
      await $`sed -n 's/^ID="*\([a-z]*\).*/\1/p' mnt/etc/os-release > distribution`
    })
    const [first, second] = defaults[read('distribution')] ?? defaults.debian!
    rounds = [
      { words: first, apt: [] },
      { words: second, apt: ['--no-install-recommends'] },
    ]
  }
  step('baseline')
  await $({ limit: '1h' })`cp --sparse=always disk.raw 0.raw`
  const seconds = [0]
  for (const [n, { words, apt }] of rounds.entries()) {
    step(`install ${words}`)
    const start = performance.now()
    await withMounted(mounting, () => installIn(apt, words.split(' ')))
    await $({ limit: '1h' })`cp --sparse=always disk.raw ${n + 1}.raw`
    // Bytes in the 4 KiB blocks, those of ext4, xfs and btrfs, in which two states differ.
    await $({
      limit: '1h',
    })`perl -e 'open A, "<", shift; open B, "<", shift; while (read A, $a, 4096) {read B, $b, 4096; $n += 4096 if $a ne $b} print $n + 0, "\n"' ${n}.raw ${n + 1}.raw > ${n + 1}.changed`
    seconds.push((performance.now() - start) / 1000)
  }
  await servers()

  const growths: Growth[] = []
  for (const repo of run.repos)
    await run.row(repo, async () => {
      step('init')
      await config`
sources:
  - path: vm
    label: vm-image
`
      await fresh(repo)
      for (const n of [0, ...rounds.keys()].map((_, i) => i)) {
        step(`backup ${n}`)
        // Always from the same path, its checksum kept beside it.
        await $({ limit: '1h' })`mkdir -p vm && cp --sparse=always ../${n}.raw vm/disk.raw`
        await $({ limit: '1h' })`(cd vm && sha256sum disk.raw > ../${n}.sha256)`
        await written('vm', 'vm.witness')
        const before = packBytes()
        const backup = await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > ${n}.out`
        await stillAs('vm', 'vm.witness')
        await $`sed -n 's/^Snapshot created: //p' ${n}.out > ${n}.id`
        await $`vykar --config config.yaml list -R ${repo} > ${n}.list`
        await listed('vm-image', `${n}.out`, `${n}.list`)
        await $`stat -c '%b %B' vm/disk.raw > ${n}.blocks`
        if (run.dry) continue
        const added = packBytes() - before || parseBackup(read(`${n}.out`))[0]!.deduplicated
        const changed = n ? Number(read(`../${n}.changed`)) : 0
        const name = n ? rounds[n - 1]!.words : 'baseline'
        const what = n ? `${bytes(changed)} changed in ${duration(seconds[n]!)}` : 'the image as it was'
        const share = changed ? ` (${(added / changed).toFixed(2)} of what changed)` : ''
        fact(
          `${n}: ${name}`,
          `${what}, ${bytes(added)} added to the repository${share}, backup ${duration(backup.seconds)}`,
        )
        growths.push({ repo, round: n, packages: name, changed, added, seconds: backup.seconds })
      }
      step('unchanged backup')
      // Read again, and known: next to nothing is stored of an image that has not changed.
      await $`touch -r vm/disk.raw as-it-was && touch vm/disk.raw`
      const packs = packBytes()
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > same.out`
      await storedChange('same.out', undefined, packs)
      await $`vykar --config config.yaml list -R ${repo} > same.list`
      await listed('vm-image', 'same.out', 'same.list')
      await shows(rounds.length + 2, 'same.list', 'one more backup was made')
      await $({
        limit: '1h',
      })`sed -n 's/^Snapshot created: //p' same.out > same.id && mv vm away && rm -rf lost && mkdir lost restored && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<same.id) restored > restored-same.out && mv away vm`
      await numbers('restored', 'same.out', 'same.list', 'restored-same.out')
      await $({
        limit: '1h',
      })`(cd restored && sha256sum --check --quiet --strict ../${rounds.length}.sha256) && rm -r restored`
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<same.id)`
      await $`touch -r as-it-was vm/disk.raw`
      for (const n of [0, ...rounds.keys()].map((_, i) => i)) {
        step(`restore ${n}`)
        // What is backed up is out of sight.
        await $({
          limit: '1h',
        })`mv vm away && rm -rf lost && mkdir lost restored && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<${n}.id) restored > restored-${n}.out && mv away vm`
        await numbers('restored', `${n}.out`, `${n}.list`, `restored-${n}.out`)
        await $({ limit: '1h' })`(cd restored && sha256sum --check --quiet --strict ../${n}.sha256)`
        // The directory is as it was at the last backup.
        if (n === rounds.length) await sameTree('vm', 'restored')
        await $`stat -c '%b %B' restored/disk.raw >> ${n}.blocks && rm -r restored`
        const [source, restored] = read(`${n}.blocks`)
          .split('\n')
          .map((line) =>
            line
              .split(' ')
              .map(Number)
              .reduce((a, b) => a * b, 1),
          )
        fact(`${n}: on disk`, `${bytes(source ?? 0)} in the source, ${bytes(restored ?? 0)} restored`)
      }
      step('retire')
      await retire(
        repo,
        [0, ...rounds.keys()].map((_, i) => String(i)),
      )
    })
  if (growths.length) await drawGrowth(run, growths)
})
