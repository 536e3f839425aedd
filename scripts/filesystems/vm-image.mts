#!/usr/bin/env -S npx tsx
// A VM's raw disk image, backed up before and after each round of package installations: how much of what changed does
// the repository take up?
// Passes when every restored image has the sha256 that its source had, and check finds no error. The report has per round
// the bytes changed (in 4 KiB blocks), the bytes added to the repository, their ratio and the time, and a chart.
// --mutate boot changes a running VM instead: frozen through its guest agent in `before`, thawed in `finally`.
import { statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import { svgOf } from '#lib/chart.mts'
import { bootedRow, bootHooks, bootPackages, needBoot } from '#lib/filesystems/boot.mts'
import {
  buildImage,
  changedBytes,
  copyImage,
  distribution,
  installIn,
  kvmWorks,
  withMounted,
} from '#lib/filesystems/image.mts'
import { needRoot } from '#lib/loop.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $, scope } from '#lib/sh.mts'
import { needSpace } from '#lib/space.mts'
import { expectSnapshot, freshRepository, packBytes, restored, retire, standardNeeds } from '#lib/standard.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { Mismatch, Skipped } from '#lib/verdict.mts'
import { parseBackup } from '#lib/vykar.mts'

const wants = [
  'guestmount',
  'qemu-img',
  'qemu',
  'socat',
  'vykar-server',
  's3-server',
  'sshd',
  'sftp',
  'rclone',
] as const
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

/** A state of the image: before the first round, and after each. */
interface Version {
  name: string
  file: string
  changed: number
  seconds: number
}

await scenario(import.meta, { needs: [...standardNeeds, 'debootstrap'], wants, options }, async (run) => {
  const { image, 'image-gib': gib, mount: how, packages, mutate } = run.options
  needRoot(run, 'mounting a disk image')
  const kvm = !run.dry && kvmWorks()
  if (mutate === 'boot' && !kvm && !run.options.tcg && !run.dry)
    throw new Skipped('KVM does not work here: --tcg lets QEMU emulate the processor')
  const tcg = run.options.tcg || !kvm
  if (mutate === 'boot' && !run.dry) needBoot()
  run.report.versions['QEMU accelerator'] = tcg ? 'tcg' : 'kvm'
  // Every state of the image, the one that is backed up, a repository and a restored one: 2 GiB or so each when filled.
  if (!image)
    needSpace(
      [{ dir: run.runtime, bytes: gib * 0.5 * 6 * 2 ** 30 }],
      `--image-gib ${gib}`,
      'take a smaller --image-gib',
    )
  const images = join(run.dirs.work, 'images')
  const disk = join(images, 'disk.raw')

  await run.step('image', async () => {
    await $`mkdir ${images}`
    if (image) await copyImage(image, disk)
    else await buildImage(run, disk, gib, mutate === 'boot' ? bootPackages : [])
  })
  if (mutate === 'boot') {
    await run.step('servers', () => startServices(run))
    const words = packages.length ? packages.flatMap((round) => round.split(' ')) : ['htop', 'curl', 'jq', 'git']
    for (const repo of run.repos) {
      const dir = join(run.dirs.work, `${repo}-boot`)
      const values = bootHooks(dir, join(dir, 'vm'))
      await run.row({ repo, variant: 'boot', fragment: 'vm-image-boot', values }, (row) =>
        bootedRow(run, row, disk, words, tcg),
      )
    }
    return
  }

  const versions: Version[] = []
  /** Keeps the image as it is now, by its name. */
  const keep = async (name: string, seconds: number) => {
    const file = join(images, `${versions.length}.raw`)
    await $({ limit: '1h' })`cp --sparse=always ${disk} ${file}`
    const before = versions.at(-1)
    scope().transcript.line(`# how many 4 KiB blocks differ between ${before?.file ?? 'nothing'} and ${file}`)
    versions.push({ name, file, changed: before && !run.dry ? changedBytes(before.file, file) : 0, seconds })
  }
  await run.step('baseline', () => keep('baseline', 0))
  let rounds = packages.map((words) => ({ words, options: ['--no-install-recommends'] }))
  if (!rounds.length)
    await run.step('distribution', () =>
      withMounted(run, disk, { how: how as 'loop', tcg }, async (at) => {
        const [first, second] = defaults[distribution(at)] ?? defaults.debian!
        rounds = [
          { words: first, options: [] },
          { words: second, options: ['--no-install-recommends'] },
        ]
      }),
    )
  for (const { words, options: apt } of rounds)
    await run.step(`install ${words}`, async () => {
      const start = performance.now()
      await withMounted(run, disk, { how: how as 'loop', tcg }, (at) => installIn(run, at, apt, words.split(' ')))
      await keep(words, (performance.now() - start) / 1000)
    })
  await run.step('servers', () => startServices(run))

  const table: (string | number)[][] = []
  for (const repo of run.repos) {
    const source = join(run.dirs.work, repo, 'vm')
    await run.row({ repo, values: { SOURCE: source } }, async ({ step, config, files, report }) => {
      await step('init', () => freshRepository(config, repo))
      const snapshots: { id: string; version: Version; allocated: number }[] = []
      for (const [n, version] of versions.entries())
        await step(`backup ${n}`, async () => {
          await $({ limit: '1h' })`mkdir -p ${source} && cp --sparse=always ${version.file} ${source}/disk.raw`
          await $({ limit: '1h', cwd: source })`sha256sum disk.raw > ../${String(n)}.sha256`
          const before = files && !run.dry && n ? await packBytes(join(files, 'packs')) : 0
          const out = `backup-${n}.out`
          const backup = await $({ limit: '3600s', out })`vykar --config ${config} backup -R ${repo}`
          const id = await expectSnapshot(config, repo, backup, { label: 'vm-image', out })
          if (run.dry) return
          const added = files
            ? (await packBytes(join(files, 'packs'))) - before
            : parseBackup(backup.stdout)[0]!.deduplicated
          const ratio = version.changed ? added / version.changed : undefined
          report.facts[`${n}: ${version.name}`] = [
            `${bytes(version.changed)} changed${version.seconds ? ` in ${duration(version.seconds)}` : ''}`,
            `${bytes(added)} added to the repository${ratio === undefined ? '' : ` (${ratio.toFixed(2)} of what changed)`}`,
            `backup ${duration(backup.record.seconds)}`,
          ].join(', ')
          table.push([
            repo,
            n,
            version.name,
            version.changed,
            added,
            ratio?.toFixed(4) ?? '',
            backup.record.seconds.toFixed(2),
          ])
          snapshots.push({ id, version, allocated: statSync(join(source, 'disk.raw')).blocks * 512 })
        })
      for (const [n, { id, allocated }] of snapshots.entries())
        await step(`restore ${n}`, async () => {
          const dir = await restored(config, repo, id, `restored-${n}`)
          await $({ limit: '1h', cwd: dir })`sha256sum --check --quiet --strict ../${String(n)}.sha256`
          const back = statSync(join(dir, 'disk.raw')).blocks * 512
          report.facts[`${n}: on disk`] = `${bytes(allocated)} in the source, ${bytes(back)} restored`
          await $`rm -r ${dir}`
        })
      if (!run.dry && snapshots.length !== versions.length)
        throw new Mismatch('not every state of the image was restored')
      for (const { id } of snapshots.slice(0, -1))
        await step('snapshot delete', () => $`vykar --config ${config} snapshot delete -R ${repo} ${id}`)
      await step('retire', () => retire(config, repo, snapshots.at(-1)?.id ?? '‹snapshot›'))
    })
  }
  if (run.dry) return

  const dir = join(run.runtime, 'reports', run.plan.name, run.id)
  const columns = ['repo', 'round', 'packages', 'bytes_changed', 'bytes_added', 'ratio', 'backup_seconds']
  writeFileSync(join(dir, 'vm-image.csv'), stringify([columns, ...table]))
  const values = table.flatMap(([repo, n, name, changed, added]) => [
    { repo, round: `${n}: ${name}`, what: 'changed in the image', gib: Number(changed) / 2 ** 30 },
    { repo, round: `${n}: ${name}`, what: 'added to the repository', gib: Number(added) / 2 ** 30 },
  ])
  const chart = await svgOf({
    title: 'What changed in the image, and what the repository grew by',
    data: { values },
    facet: { row: { field: 'repo', title: null, header: { labelOrient: 'top', labelAnchor: 'start' } } },
    spec: {
      width: 520,
      height: { step: 18 },
      mark: 'bar',
      encoding: {
        x: { field: 'gib', type: 'quantitative', title: 'GiB' },
        y: { field: 'round', type: 'nominal', title: null, sort: null, axis: { labelLimit: 220 } },
        yOffset: { field: 'what', sort: null },
        color: { field: 'what', type: 'nominal', title: null, sort: null, legend: { labelLimit: 0 } },
      },
    },
  })
  writeFileSync(join(dir, 'growth.svg'), chart)
  run.report.charts.push({ title: 'Growth per round', file: 'growth.svg' })
})
