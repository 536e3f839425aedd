#!/usr/bin/env -S npx tsx
// A VM's raw disk image, backed up before and after each round of package installations: how much of what changed does
// the repository take up?
// Passes when every restored image has the sha256 that its source had, and check finds no error. The report has per round
// the bytes changed (in 4 KiB blocks), the bytes added to the repository, their ratio and the time, and a chart.
// --mutate boot changes a running VM instead: frozen through its guest agent in `before`, thawed in `finally`.
import { statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { bootedRow, bootHooks, bootPackages, needBoot } from '#lib/filesystems/boot.mts'
import { drawGrowth, type Growth } from '#lib/filesystems/growth.mts'
import {
  buildImage,
  changedBytes,
  copyImage,
  distribution,
  installIn,
  kvmWorks,
  type Mounting,
  withMounted,
} from '#lib/filesystems/image.mts'
import { needRoot } from '#lib/loop.mts'
import type { Row } from '#lib/row.mts'
import { type ScenarioRun, scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $, scope } from '#lib/sh.mts'
import { needSpace } from '#lib/space.mts'
import { expectSnapshot, freshRepository, packBytes, restored, retire, standardNeeds } from '#lib/standard.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { Skipped } from '#lib/verdict.mts'
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

type VmRun = ScenarioRun<typeof options>

/** A state of the image: before the first round, and after each. */
interface Version {
  name: string
  file: string
  /** Bytes in the blocks that differ from the state before. */
  changed: number
  /** Time the round took. */
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

  const versions = await statesOf(run, disk, { how: how as Mounting['how'], tcg })
  await run.step('servers', () => startServices(run))
  const growths: Growth[] = []
  for (const repo of run.repos) {
    const source = join(run.dirs.work, repo, 'vm')
    await run.row({ repo, values: { SOURCE: source } }, async (row) => {
      const { step, config, report } = row
      await step('init', () => freshRepository(config, repo))
      const kept: { id: string; allocated: number }[] = []
      for (const [n, version] of versions.entries())
        kept.push(await step(`backup ${n}`, () => backupOf(row, version, n, source, growths)))
      for (const [n, { id, allocated }] of kept.entries())
        await step(`restore ${n}`, async () => {
          const dir = await restored(config, repo, id, `restored-${n}`)
          await $({ limit: '1h', cwd: dir })`sha256sum --check --quiet --strict ../${String(n)}.sha256`
          if (!run.dry)
            report.facts[`${n}: on disk`] = `${bytes(allocated)} in the source, ${bytes(allocatedIn(dir))} restored`
          await $`rm -r ${dir}`
        })
      for (const { id } of kept.slice(0, -1))
        await step('snapshot delete', () => $`vykar --config ${config} snapshot delete -R ${repo} ${id}`)
      await step('retire', () => retire(config, repo, kept.at(-1)!.id))
    })
  }
  if (growths.length) await drawGrowth(run, growths)
})

/** Bytes that the image in a directory takes on disk. */
function allocatedIn(dir: string): number {
  return statSync(join(dir, 'disk.raw')).blocks * 512
}

/** Changes the image round by round and keeps each of its states, the first one too. */
async function statesOf(run: VmRun, disk: string, mounting: Mounting): Promise<Version[]> {
  const versions: Version[] = []
  const keep = async (name: string, seconds: number) => {
    const file = join(dirname(disk), `${versions.length}.raw`)
    await $({ limit: '1h' })`cp --sparse=always ${disk} ${file}`
    const before = versions.at(-1)
    if (before) scope().transcript.line(`# then: how many 4 KiB blocks differ between ${before.file} and ${file}`)
    versions.push({ name, file, changed: before && !run.dry ? changedBytes(before.file, file) : 0, seconds })
  }
  await run.step('baseline', () => keep('baseline', 0))
  let rounds = run.options.packages.map((words) => ({ words, apt: ['--no-install-recommends'] }))
  if (!rounds.length)
    await run.step('distribution', () =>
      withMounted(run, disk, mounting, async (at) => {
        const [first, second] = defaults[distribution(at)] ?? defaults.debian!
        rounds = [
          { words: first, apt: [] },
          { words: second, apt: ['--no-install-recommends'] },
        ]
      }),
    )
  for (const { words, apt } of rounds)
    await run.step(`install ${words}`, async () => {
      const start = performance.now()
      await withMounted(run, disk, mounting, (at) => installIn(run, at, apt, words.split(' ')))
      await keep(words, (performance.now() - start) / 1000)
    })
  return versions
}

/** One state of the image backed up: always from the same path, its checksum kept beside it. */
async function backupOf(
  { config, repository, files, report }: Row,
  version: Version,
  n: number,
  source: string,
  growths: Growth[],
) {
  const repo = repository.label
  await $({ limit: '1h' })`mkdir -p ${source} && cp --sparse=always ${version.file} ${source}/disk.raw`
  await $({ limit: '1h', cwd: source })`sha256sum disk.raw > ../${String(n)}.sha256`
  const packs = files && !scope().dry ? join(files, 'packs') : undefined
  const before = packs ? await packBytes(packs) : 0
  const out = `backup-${n}.out`
  const backup = await $({ limit: '3600s', out })`vykar --config ${config} backup -R ${repo}`
  const id = await expectSnapshot(config, repo, backup, { label: 'vm-image', out })
  if (scope().dry) return { id, allocated: 0 }
  const added = packs ? (await packBytes(packs)) - before : parseBackup(backup.stdout)[0]!.deduplicated
  const { name, changed, seconds } = version
  report.facts[`${n}: ${name}`] = [
    n ? `${bytes(changed)} changed in ${duration(seconds)}` : 'the image as it was',
    `${bytes(added)} added to the repository${changed ? ` (${(added / changed).toFixed(2)} of what changed)` : ''}`,
    `backup ${duration(backup.record.seconds)}`,
  ].join(', ')
  growths.push({ repo, round: n, packages: name, changed, added, seconds: backup.record.seconds })
  return { id, allocated: allocatedIn(source) }
}
