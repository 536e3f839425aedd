#!/usr/bin/env -S npx tsx
// Limits: many small files at n, 2n and 4n, one file of 8 GiB, a dump of several GiB, many hard links, few file descriptors, little memory, a
// repository or a cache that is read-only.
// Passes when all of it is backed up and restored to what it was, processor time, memory and bytes read grow no faster than the number of
// files, memory not with a dump, and what cannot be done is said; the smallest memory that still works is a figure.
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, type Output, read, step, undo } from '#lib/sh.mts'
import { bytes } from '#lib/terminal.mts'
import { Blocked, UsageError } from '#lib/verdict.mts'
import { standardNeeds, torn } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import {
  acknowledged,
  conclude,
  faultOptions,
  roundsOf,
  rowsWith,
  stillShown,
  within,
} from '#scripts/faults/common.mts'
import { at, clearOthers, inTheEnd, lastOf, restoredAs, violated } from '#scripts/faults/oracle.mts'
import { memoryCgroup } from '#scripts/memory.mts'
import { servers } from '#scripts/servers.mts'
import { needSpace } from '#scripts/space.mts'
import { listing, witnessed } from '#scripts/witnessed.mts'

/** Growth from n to 4n beyond which it is no longer linear: half way, as ratios go, from 4 times to the 16 times of what is quadratic. */
const linear = 8
/** Memory limits in MiB, the largest first. */
const limits = [512, 384, 256, 192, 128, 112, 96, 80, 64]

const options = {
  ...faultOptions,
  files: { kind: 'number', help: 'the largest number of small files', default: 110_000, min: 400 },
  links: { kind: 'number', help: 'hard links to one file', default: 100_000, min: 2000 },
  'dump-gib': { kind: 'number', help: 'size of the dump in GiB', default: 2, above: true },
  'large-gib': { kind: 'number', help: 'size of the large file, which is sparse, in GiB', default: 8, min: 1 },
  long: { kind: 'flag', help: 'a million files, and a file of 64 GiB' },
} as const
const spec = { needs: standardNeeds, wants: serverWants, repos: ['local'], options } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { round: only, links, long, 'corpus-mib': mib } = run.options
  const files = long ? 1_000_000 : run.options.files
  // ext4 takes 65,000 names of a file, and the copy of the first file is another one.
  if (links > 125_000) throw new UsageError(`--links ${links}: at most 125000 can be made on every file system`)
  await servers()
  for (const repo of run.repos) {
    const variable = `REPO_${repo.toUpperCase()}`
    const here = at(repo, `"$${variable}"`)
    const { chosen, tried } = roundsOf(only)

    await row({ repo, variant: 'many' }, async () => {
      await acknowledged(repo, 1, 1)
      await $`rm -rf source && mkdir source`
      const costs: Record<string, (Output['cost'] & { bytesRead: number })[]> = {
        'first backup': [],
        'unchanged backup': [],
        restore: [],
      }
      const all = [files / 4, files / 2, files].map(Math.round)
      for (const [i, n] of all.entries()) {
        if (!chosen(`${n} files`)) continue
        // A thousand in each directory; each has content of its own.
        await $({
          limit: '1h',
        })`seq ${i && !only ? all[i - 1]! + 1 : 1} ${n} | awk '{d = "source/" int($1 / 1000); if (d != last) {system("mkdir -p " d); last = d} f = d "/" $1; print "content of file " $1 > f; close(f)}'`
        await witnessed('source', 'many')
        await $`rm -rf cache lost tree && mkdir lost tree`
        // The shell's own count of what it and its children have read, once they have ended.
        const first = await $({
          limit: '1h',
        })`bash -c 'vykar --config config.yaml backup -R ${repo} > many.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > first.read`
        const again = await $({
          limit: '1h',
        })`bash -c 'vykar --config config.yaml backup -R ${repo} > unchanged.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > again.read`
        await $`sed -n 's/^Snapshot created: //p' many.out > many.id`
        const counted = ['many', 'unchanged'].map((name) => `<(grep -oE 'Files: [^,]*, Original: [^,]*' ${name}.out)`)
        await check(`diff ${counted.join(' ')}`, () => {
          const [was, is] = ['many', 'unchanged'].map((name) => /Files: [^,]*, Original: [^,]*/.exec(read(`${name}.out`))?.[0]) // biome-ignore format: one line
          if (was !== is) violated('2: exit 0 means complete', `a backup of an unchanged tree counts other files: ${is} instead of ${was}`, 'vykar backup') // biome-ignore format: one line
        })
        const restored = await $({
          limit: '1h',
        })`bash -c 'HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<many.id) tree > many.restored && cat /proc/$$/io' | sed -n 's/^rchar: //p' > restored.read`
        await $({
          limit: '1h',
        })`(cd tree && sha256sum --check --quiet --strict ../many.sha256) && test "$(find tree -type f -printf x | wc -c)" = ${n}`
        for (const [what, { cost }, file] of [
          ['first backup', first, 'first.read'],
          ['unchanged backup', again, 'again.read'],
          ['restore', restored, 'restored.read'],
        ] as const) {
          const bytesRead = Number(read(file))
          costs[what]!.push({ ...cost, bytesRead })
          fact(
            `${n} files, ${what}`,
            `${cost.seconds.toFixed(1)} s, ${Math.round((cost.peakKiB ?? 0) / 1024)} MiB, ${bytes(bytesRead)} read`,
          )
        }
        await clearOthers(repo, ['ack-1'])
      }
      step('no more than linear')
      await check('# no more than linear from n to 4n', () => {
        for (const [what, [least, , most]] of Object.entries(costs)) {
          if (!least || !most) continue
          // vykar's own: what the kernel takes for the same files differs by ten times from one moment to the next.
          const own = ({ cpuSeconds, systemSeconds = 0, seconds }: Output['cost']) =>
            cpuSeconds === undefined ? seconds : cpuSeconds - systemSeconds
          const grown = {
            'processor time': own(most) / Math.max(own(least), 0.1),
            memory: (most.peakKiB ?? 1) / (least.peakKiB ?? 1),
            'bytes read': most.bytesRead / least.bytesRead,
          }
          for (const [name, ratio] of Object.entries(grown))
            if (ratio > linear)
              violated(
                'cost is no more than linear',
                `${what}: ${name} grows ${ratio.toFixed(1)} times from ${all[0]} to ${all[2]} files`,
                `vykar ${what.split(' ').at(-1)}`,
              )
        }
      })
      await $`rm -rf source tree`
      await conclude(tried.length, tried.length)
    })
    tried.length = 0

    await row({ repo, variant: 'large' }, async () => {
      await acknowledged(repo, 1, 1)
      if (chosen('large file')) {
        const gib = long ? 64 : run.options['large-gib']
        // A restore writes the holes as zeros.
        if (!run.dry)
          needSpace(
            [{ dir: run.runtime, bytes: gib * 2 ** 30 * 1.1 }],
            'the restored file',
            'take a smaller --large-gib',
          )
        await $`rm -rf source && mkdir source && truncate -s ${gib}G source/large && for at in 0 1 1023 $((${gib} * 512)) $((${gib} * 1024 - 1)); do head -c 1M /dev/urandom | dd of=source/large bs=1M seek=$at conv=notrunc status=none; done`
        const made = await $({
          limit: '2h',
        })`vykar --config config.yaml backup -R ${repo} > large.out && sed -n 's/^Snapshot created: //p' large.out > large.id`
        await $`rm -rf lost tree && mkdir lost tree`
        const back = await $({
          limit: '2h',
        })`HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<large.id) tree > large.restored`
        const same = await $({ limit: '2h', expect: [0, 1] })`cmp source/large tree/large > large.cmp 2>&1`
        for (const [what, { cost }] of Object.entries({ backup: made, restore: back }))
          fact(`${gib} GiB, ${what}`, `${cost.seconds.toFixed(1)} s, ${Math.round((cost.peakKiB ?? 0) / 1024)} MiB`)
        if (same.code)
          violated(
            '2: exit 0 means complete',
            `a file of ${gib} GiB came back wrong: ${read('large.cmp')}`,
            'vykar backup; vykar restore',
          )
        await $`rm -rf source tree`
      }
      await conclude(tried.length, tried.length)
    })
    tried.length = 0

    await row({ repo, variant: 'dump' }, async () => {
      await acknowledged(repo, 1, 1)
      if (chosen('large dump')) {
        const most = run.options['dump-gib']
        if (!run.dry)
          needSpace(
            [{ dir: run.runtime, bytes: most * 2 ** 30 * 1.1 }],
            'the restored dump',
            'take a smaller --dump-gib',
          )
        await $`mkdir dumped && { sed '/^sources:/,/^[a-z]/{/^sources:/d; /^ /d}' config.yaml; printf 'sources:\n  - label: dump\n    command_dumps:\n      - {name: large, command: "bash dump.sh"}\n'; } > dump.yaml`
        const peaks: number[] = []
        for (const gib of [most / 4, most]) {
          await $`echo ${{ raw: `'head -c ${Math.round(gib * 2 ** 30)} /dev/urandom | tee >(sha256sum > dumped.sum)'` }} > dump.sh`
          const made = await $({
            limit: '1h',
          })`vykar --config dump.yaml backup -R ${repo} > dump.out && sed -n 's/^Snapshot created: //p' dump.out > dump.id`
          peaks.push(made.cost.peakKiB ?? 1)
          fact(`dump of ${gib} GiB`, `${made.seconds.toFixed(1)} s, ${Math.round((made.cost.peakKiB ?? 0) / 1024)} MiB`)
          await $`rm -rf lost tree && mkdir lost tree`
          await $({
            limit: '1h',
          })`HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<dump.id) tree > dump.restored`
          const same = await $({
            limit: '1h',
            expect: [0, 1],
          })`diff dumped.sum <(sha256sum < tree/vykar-dumps/large) > dump.diff`
          if (same.code)
            violated('2: exit 0 means complete', `a dump of ${gib} GiB came back wrong`, 'vykar backup; vykar restore') // biome-ignore format: one line
        }
        await check('# memory does not grow with the dump', () => {
          if (peaks[1]! > 2 * peaks[0]!)
            violated(
              'cost is no more than linear',
              `memory grows from ${Math.round(peaks[0]! / 1024)} to ${Math.round(peaks[1]! / 1024)} MiB from a dump of ${most / 4} GiB to one of ${most}`,
              'vykar backup',
            )
        })
        await $`rm -rf tree`
        await clearOthers(repo, ['ack-1'])
      }
      await conclude(tried.length, tried.length)
    })
    tried.length = 0

    await row({ repo, variant: 'links' }, async () => {
      await acknowledged(repo, 1, 1)
      if (chosen('hard links')) {
        // ext4 takes 65,000 names of one file: two files, a thousand names in each directory.
        await $({
          limit: '30m',
        })`rm -rf source && mkdir -p source/0 && echo linked > source/0/1 && echo other > source/0/2 && for n in $(seq 3 1000); do ln source/0/$((n % 2 + 1)) source/0/$n; done && for d in $(seq ${Math.round(links / 1000) - 1}); do cp -al source/0 source/$d; done`
        await witnessed('source', 'linked')
        await $({
          limit: '1h',
        })`vykar --config config.yaml backup -R ${repo} > linked.out && sed -n 's/^Snapshot created: //p' linked.out > linked.id`
        const how = await restoredAs(repo, 'linked', here)
        await $`find tree -type f -printf '%i\n' | sort -u | wc -l > inodes`
        fact('hard links', `${links} names, ${read('inodes')} inodes after restore`)
        if (how !== 'right' || read('inodes') !== '2')
          violated(
            '2: exit 0 means complete',
            `${links} hard links came back as ${read('inodes')} files (${how})`,
            'vykar backup; vykar restore',
          )
        await $`rm -rf source tree`
      }
      await conclude(tried.length, tried.length)
    })
    tried.length = 0

    await row({ repo, variant: 'little' }, async () => {
      const ids = await acknowledged(repo, 1, Math.max(mib, 20))
      await $`for n in $(seq 3000); do echo $n > source/small-$n; done`
      if (chosen('64 file descriptors')) {
        await witnessed('source', 'few')
        const met = await $({
          expect: 'any',
        })`(ulimit -n 64 && vykar --config config.yaml backup -R ${repo} > few.out 2>&1)`
        await $`sed -n 's/^Snapshot created: //p' few.out > few.id`
        fact('64 file descriptors', `backup exits ${met.code}${met.code ? `: ${lastOf('few.out').slice(0, 100)}` : ''}`)
        if (met.code === 0 && (await restoredAs(repo, 'few', here)) !== 'right')
          violated('2: exit 0 means complete', 'the snapshot is not complete', 'ulimit -n 64; vykar backup')
        if (met.code === 3)
          violated(
            'what cannot be done is said',
            `files are left out: ${lastOf('few.out')}`,
            'ulimit -n 64; vykar backup',
          )
        for (const words of [`check -R ${repo} --verify-data`, `restore -R ${repo} $(<ack-1.id) tree`]) {
          await $`rm -rf tree && mkdir tree`
          const one = await $({
            expect: 'any',
          })`(ulimit -n 64 && vykar --config config.yaml ${{ raw: words }} > few.out 2>&1)`
          fact(`64 file descriptors, ${words.split(' ')[0]}`, `exit ${one.code}`)
          const wrong = await $({
            expect: 'any',
          })`${{ raw: words.startsWith('check') ? 'true' : '(cd tree && sha256sum --check --quiet --strict ../ack-1.sha256 > ../wrong.out 2>&1)' }}`
          if (one.code === 0 && wrong.code)
            violated('3: exit 0 means right', 'restore exits 0 with wrong data', 'ulimit -n 64; vykar restore') // biome-ignore format: one line
          if (one.code)
            violated(
              'few descriptors are enough',
              `${words.split(' ')[0]} exits ${one.code}: ${lastOf('few.out')}`,
              `ulimit -n 64; vykar ${words.split(' ')[0]}`,
            )
        }
      }
      for (const [name, mounted] of Object.entries({ 'read-only': '"$REPO_LOCAL"', 'read-only cache': 'cache' })) {
        if (repo !== 'local' || (process.getuid?.() !== 0 && !run.dry) || !chosen(name)) continue
        const cache = mounted === 'cache'
        await $`mkdir -p ro`
        undo`! mountpoint -q ro || umount ro`
        await $`mount --bind ${{ raw: mounted }} ro && mount -o remount,ro,bind ro && ! touch ro/x 2> /dev/null || exit 1  # it is read-only`
        await $`sed 's|^cache_dir: .*|cache_dir: ${{ raw: cache ? 'ro' : 'lost' }}|' config.yaml > ro.yaml`
        const place = cache ? here : at(repo, '$PWD/ro')
        for (const words of [
          `list -R ${repo}`,
          `check -R ${repo}`,
          `restore -R ${repo} $(<ack-1.id) tree`,
          `backup -R ${repo}`,
        ]) {
          await $`rm -rf tree lost && mkdir tree lost`
          const met = await $({
            expect: 'any',
          })`${place} HOME=$PWD/lost timeout -k 5 ${within(120)} vykar --config ro.yaml ${{ raw: words }} > ro.out 2>&1`
          fact(
            `${name}${cache ? '' : ' repository'}, ${words.split(' ')[0]}`,
            `exit ${met.code}${met.code ? `: ${lastOf('ro.out').slice(0, 100)}` : ''}`,
          )
          if (met.code && !words.startsWith('backup'))
            violated(
              '1: acknowledged snapshots restore',
              `${words.split(' ')[0]} exits ${met.code} with a ${cache ? 'read-only cache' : 'read-only repository'}: ${lastOf('ro.out')}`,
              `vykar ${words.split(' ')[0]}`,
              !cache && !words.startsWith('list') && /Read-only file system/.test(read('ro.out'))
                ? 'read-only-repository-refused'
                : '',
            )
          if (met.code === 124 || met.code === 137)
            violated('7: everything ends', `${words.split(' ')[0]} did not end`, `vykar ${words}`)
          if (met.code === 0 && words.startsWith('restore')) {
            const same = await $({
              expect: 'any',
            })`(cd tree && sha256sum --check --quiet --strict ../ack-1.sha256 > ../wrong.out 2>&1) && test "$(find tree -type f -printf x | wc -c)" = "$(wc -l < ack-1.sha256)" && (cd tree && ${{ raw: listing }}) | diff -a ack-1.tree - > wrong.out`
            if (same.code)
              violated('3: exit 0 means right', `restore exits 0 with wrong data: ${lastOf('wrong.out')}`, 'vykar restore') // biome-ignore format: one line
          }
          if (met.code === 0 && words.startsWith('backup')) {
            await $`sed -n 's/^Snapshot created: //p' ro.out > ro.id`
            await witnessed('source', 'ro')
            if (!cache || (await restoredAs(repo, 'ro', here)) !== 'right')
              violated('2: exit 0 means complete', `backup exits 0 with a ${name}`, 'vykar backup')
          }
        }
        await $`umount ro`
      }
      await clearOthers(repo, ids)
      await inTheEnd(repo, ids)
      await conclude(tried.length, tried.length)
    })
    tried.length = 0

    await row({ repo, variant: 'memory' }, async () => {
      const ids = await acknowledged(repo, 1, Math.max(mib, 20))
      await $`for n in $(seq 3000); do echo $n > source/small-$n; done`
      if (chosen('memory')) {
        const group = run.dry ? '/sys/fs/cgroup/memory' : await memoryCgroup(limits[0]!, 'memory')
        const file = group.includes('/memory/') || run.dry ? 'memory.limit_in_bytes' : 'memory.max'
        const limited = (limit: number, line: string) =>
          $({
            limit: '5m',
            expect: 'any',
          })`echo $((${limit} << 20)) > ${{ raw: `${group}/${file}` }} && rm -rf cache && (echo $BASHPID > ${{ raw: group }}/cgroup.procs; ${{ raw: line }})`
        // A limit counts once something was killed by it: writes into a directory that is no control group succeed too.
        const control = await limited(64, 'head -c 512M /dev/zero | tail -c 400M | tail -c 1 > /dev/null')
        if (control.code === 0 && !run.dry) throw new Blocked('memory was not tried: the limit does not hold here')
        else {
          let least = 0
          await witnessed('source', 'little')
          for (const limit of limits) {
            const met = await limited(limit, `vykar --config config.yaml backup -R ${repo} > little.out 2>&1`)
            if (met.code) {
              fact('memory', `works with ${least} MiB; with ${limit} MiB backup exits ${met.code}`)
              break
            }
            await $`sed -n 's/^Snapshot created: //p' little.out > little.id`
            if ((await restoredAs(repo, 'little', here)) !== 'right')
              violated('2: exit 0 means complete', `with ${limit} MiB backup exits 0, and its snapshot is not complete`, 'vykar backup') // biome-ignore format: one line
            least = limit
          }
          if (least === limits.at(-1)) fact('memory', `works with ${least} MiB, the least that was tried`)
          if (!least && !run.dry)
            violated('a small machine is enough', `backup does not work with ${limits[0]} MiB`, 'vykar backup')
          // What memory has run out for was killed in the middle of its work.
          await torn()
          await $`vykar --config config.yaml break-lock -R ${repo} > locks.out`
        }
      }
      await clearOthers(repo, ids)
      await inTheEnd(repo, ids)
      await conclude(tried.length, tried.length)
    })
    tried.length = 0
  }
  stillShown(run)
})
