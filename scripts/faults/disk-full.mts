#!/usr/bin/env -S npx tsx
// Disk full: the repository, the cache, the temporary directory and the target of a restore on small file systems (ext4, xfs and
// btrfs on a loop device, tmpfs) that run out of bytes, or of inodes; and commands whose own output cannot be written.
// Passes when the command that meets it fails and says so (or does without), every acknowledged snapshot is still there, and all works
// again once there is room.
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step, undo } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { copyOf } from '#scripts/damage.mts'
import { acknowledged, conclude, faultOptions, roundsOf, rowsWith, stillShown } from '#scripts/faults/common.mts'
import {
  afterwards,
  allThere,
  at,
  clearOthers,
  inTheEnd,
  lastOf,
  nothingForEver,
  violated,
} from '#scripts/faults/oracle.mts'
import { needRoot } from '#scripts/filesystems/device.mts'

/** Small file systems: how each is made and mounted at `small`. */
const systems: Record<string, string> = {
  // A new file each time: the loop device of the last one may still be going.
  ext4: 'rm -f small.img && truncate -s 64M small.img && mkfs.ext4 -q -F -N 2000 small.img && mount -o loop small.img small',
  // xfs takes 300 MiB at the least; btrfs, unless data and metadata are mixed, gives all of a small disk to data and stays full.
  xfs: 'rm -f small.img && truncate -s 320M small.img && mkfs.xfs -q -f small.img && mount -o loop,nouuid small.img small',
  btrfs:
    'rm -f small.img && truncate -s 160M small.img && mkfs.btrfs -q --mixed small.img && mount -o loop small.img small',
  tmpfs: 'mount -t tmpfs -o size=64m,nr_inodes=4000 tmpfs small',
}
const places = ['repository', 'cache', 'tmp', 'target'] as const
/** What fills the file system up, but for a little. */
const fillers = {
  bytes:
    'head -c LEFT /dev/zero > small/spare && sync -f small && { dd if=/dev/zero of=small/filler bs=64k status=none 2> /dev/null || true; } && rm small/spare && sync -f small',
  inodes:
    'mkdir small/many && (for ((n = 0; ; n++)); do : > small/many/$n || exit 0; done) 2> /dev/null; rm -f small/many/{1,2,3}',
} as const

/** What is left of the disk: in a repository enough to begin. */
const left = (place: string) =>
  place === 'repository' ? { words: '8M', bytes: 2 ** 23 } : { words: '64k', bytes: 2 ** 16 }

/** Commands whose own output cannot be written: to a log on a full disk, say. */
const spoken = {
  backup: 'backup -R local',
  list: 'list -R local',
  restore: 'restore -R local $(<ack-1.id) tree',
  check: 'check -R local',
  compact: 'compact -R local',
  prune: 'prune -R local',
} as const

const spec = { needs: [...standardNeeds, 'mkfs.xfs', 'mkfs.btrfs'], repos: ['local'], options: faultOptions } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { 'corpus-mib': mib, round: only } = run.options
  needRoot(run, 'mounting small file systems')
  const rows = [...Object.keys(systems).map((system) => ({ system, mode: 'auto' as const })), { system: 'ext4', mode: 'none' as const }] // biome-ignore format: one line
  for (const repo of run.repos) {
    for (const { system, mode } of rows)
      await row({ repo, variant: mode === 'none' ? `${system}-unencrypted` : system }, async () => {
        const ids = await acknowledged(repo, 2, Math.min(mib, 12), mode)
        await copyOf(repo)
        await $`mkdir small`
        undo`! mountpoint -q small || umount small`
        let [fired, tried] = [0, 0]
        const missed: string[] = []
        for (const place of places)
          for (const [what, filler] of Object.entries(fillers)) {
            const name = `${system} ${place} ${what}`
            // Inodes run out where their number is fixed.
            if (what === 'inodes' && (system === 'xfs' || system === 'btrfs')) continue
            if (only && only !== name) continue
            tried++
            step(name)
            await $`${{ raw: systems[system]! }}`
            await $`rm -rf cache damaged tree-full && cp -a copy ${place === 'repository' ? 'small/damaged' : 'damaged'} && mkdir small/cache small/tmp small/target`
            const there = at(repo, `$PWD/${place === 'repository' ? 'small/damaged' : 'damaged'}`)
            await $`sed 's|^cache_dir: .*|cache_dir: ${{ raw: place === 'cache' ? 'small/cache' : 'cache' }}|' config.yaml > full.yaml`
            await $`head -c 24M /dev/urandom > source/fresh && for n in $(seq 200); do echo $n > source/small-$n; done`
            await $`${{ raw: filler.replace('LEFT', left(place).words) }}; df -B1 --output=avail small | tail -n 1 > room; df --output=iavail small | tail -n 1 >> room`
            const under = { raw: `${there.raw} TMPDIR=$PWD/${place === 'tmp' ? 'small/tmp' : ''}` }
            const bound = { limit: '3m', expect: 'any' } as const
            const verb = place === 'target' ? 'restore' : 'backup'
            const met =
              verb === 'restore'
                ? await $(
                    bound,
                  )`${under} vykar --config full.yaml restore -R ${repo} $(<ack-1.id) small/target > met.out 2>&1`
                : await $(bound)`${under} vykar --config full.yaml backup -R ${repo} > met.out 2>&1`
            if (met.code > 3)
              violated('7: ends well', `ended with exit ${met.code}: ${lastOf('met.out')}`, `vykar ${verb}`)
            const must = place === 'repository' || place === 'target'
            await check('# the disk was full when it began, as df saw it', () => {
              const [bytes, inodes] = read('room').split('\n').map(Number) as [number, number]
              if (what === 'bytes' ? bytes < left(place).bytes + 2 ** 21 : inodes < 8) fired++
              else missed.push(name)
            })
            fact(name, met.code ? `exit ${met.code}: ${lastOf('met.out').slice(0, 120)}` : 'exit 0')
            if (must && what === 'bytes' && met.code === 0)
              violated('2: exit 0 means complete', 'exit 0 although the disk is full', `vykar ${verb}`)
            // What is there is there, however full it is.
            if (place === 'repository')
              await allThere(repo, ids.slice(-1), there, what === 'inodes' ? 'full-repository-refuses-restore' : '')
            // Room again; btrfs has it once it has written that down.
            await $`rm -rf small/filler small/many && sync -f small`
            await afterwards(repo, ids, met, there)
            await nothingForEver(repo, there, `vykar ${verb} on a full disk`)
            await $`umount small && rm -f source/fresh source/small-*`
          }
        await $`rm -rf damaged copy source`
        await conclude(fired, tried, missed)
      })

    await row({ repo, variant: 'output' }, async () => {
      const ids = await acknowledged(repo, 2, Math.min(mib, 12))
      await $`printf 'retention: {keep_last: 9}\n' >> config.yaml`
      const { chosen, tried } = roundsOf(only)
      for (const [verb, words] of Object.entries(spoken)) {
        const name = `output of ${verb}`
        if (!chosen(name)) continue
        await $`rm -rf tree && mkdir tree && head -c 9M /dev/urandom > source/fresh`
        // /dev/full takes nothing, as a full disk does.
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`vykar --config config.yaml ${{ raw: words }} > /dev/full 2> full.out`
        fact(name, `exit ${met.code}`)
        if (met.code === 0)
          violated('2: exit 0 means complete', 'exit 0 although nothing that it printed could be written', `vykar ${verb} > /dev/full`) // biome-ignore format: one line
        if (met.code > 3)
          violated('7: ends well', `exit ${met.code}: what it prints cannot be written`, `vykar ${verb} > /dev/full`, met.code === 134 ? 'output-unwritable-aborts' : '') // biome-ignore format: one line
        await afterwards(repo, ids, verb === 'backup' ? met : undefined, at(repo, '"$REPO_LOCAL"'))
        await clearOthers(repo, ids)
      }
      await inTheEnd(repo, ids)
      await $`rm -rf source tree corpus`
      await conclude(tried.length, tried.length)
    })
  }
  stillShown(run)
})
