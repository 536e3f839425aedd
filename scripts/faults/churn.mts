#!/usr/bin/env -S npx tsx
// Churn: files that are appended to, cut, renamed, replaced, memory-mapped or deleted while a backup reads them, an edit that keeps size and
// time, a directory that becomes a symlink during the walk, files that cannot be read (mode, EIO), and file caches that are cold or moved.
// Passes when each file in the snapshot is one that the source held at some moment (old, new, or named as left out with exit 3), nothing
// outside of the source has been read, the rest is complete, and every acknowledged snapshot is still restored to what it was.
import { background } from '#lib/background.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, type Output, read, step, undo } from '#lib/sh.mts'
import { Skipped } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import {
  acknowledged,
  conclude,
  drawnOptions,
  faultOptions,
  held,
  roundsOf,
  rowsWith,
  stillShown,
  within,
} from '#scripts/faults/common.mts'
import { at, clearOthers, inTheEnd, lastOf, others, restoredAs, violated } from '#scripts/faults/oracle.mts'
import { needRoot } from '#scripts/filesystems/device.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

/**
 * What happens to a file while it is read, as bash that is run again and again: `$n` counts, each state of a file is one letter all
 * through, so that a mixture shows.
 */
const changes: Record<string, string> = {
  appended: 'head -c 200K /dev/zero | tr "\\\\0" a >> churning/hot/appended',
  truncated: 'truncate -s 1M churning/hot/truncated; head -c 24M /dev/zero | tr "\\\\0" t >> churning/hot/truncated',
  renamed:
    'mv churning/hot/renamed churning/hot/renamed-2 2> /dev/null || mv churning/hot/renamed-2 churning/hot/renamed',
  replaced:
    'head -c 24M /dev/zero | tr "\\\\0" "$(printf "\\\\$(printf %o $((97 + n % 26)))")" > churning.new && mv churning.new churning/hot/replaced',
  deleted:
    'rm -f churning/hot/deleted; head -c 24M /dev/zero | tr "\\\\0" d > churning.new && mv churning.new churning/hot/deleted',
  mapped: 'python3 fill.py churning/hot/mapped $((97 + n % 26))',
  'swapped for a symlink':
    'mv churning/hot/dir churning/dir-away 2> /dev/null && ln -s "$PWD"/outside churning/hot/dir; rm -f churning/hot/dir; mv churning/dir-away churning/hot/dir',
}

/** Writes a file all over through a mapping of it. */
const fill = `import mmap, sys
with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as pages:
    for at in range(0, len(pages), 1 << 20):
        pages[at:at + (1 << 20)] = bytes([int(sys.argv[2])]) * (1 << 20)`
/** Writes a page of a file through a mapping, runs a command, and writes the same page again. */
const again = `import mmap, os, sys
with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as pages:
    pages[0:5] = b'first'
    assert os.system(sys.argv[2]) == 0
    pages[0:5] = b'later'`

const spec = {
  needs: [...standardNeeds, 'python3'],
  wants: [...serverWants, 'strace'],
  repos: ['local'],
  options: { ...drawnOptions, ...faultOptions },
} as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { rounds: asked, round: only, 'corpus-mib': mib } = run.options
  const rounds = asked || 3
  await servers()
  for (const repo of run.repos) {
    const here = at(repo, `"$REPO_${repo.toUpperCase()}"`)
    await row({ repo, variant: 'changing' }, async () => {
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      await $`sed 's|path: source|path: churning|; s|label: faults|label: churning|' config.yaml > churn.yaml`
      await $`mkdir outside && echo 'not to be read' > outside/secret && printf '%s\n' ${fill} > fill.py && mkdir calm && head -c 1M /dev/urandom > calm/one && echo two > calm/two`
      let [fired, tried] = [0, 0]
      for (const [what, line] of Object.entries(changes))
        for (let n = 0; n < rounds; n++) {
          const name = `${what} ${n}`
          if (only && only !== name) continue
          tried++
          step(name)
          await $`rm -rf churning churning.new && mkdir -p churning/hot/dir && cp -a calm churning/ && echo inside > churning/hot/dir/file && for f in appended truncated renamed replaced deleted mapped; do head -c 24M /dev/zero | tr '\0' $(echo $f | cut -c 1) > churning/hot/$f; done; rm -rf cache`
          await $`printf '%s\n' 'n=0; while :; do n=$((n + 1)); ${{ raw: line }}; echo $n > churn.next && mv churn.next churn.count; done' > churn.sh`
          const churn = await background('churn')`bash churn.sh`
          await $`until test -s churn.count; do sleep 0.01; done`
          // A backup that was faster than the change is made again.
          const met = await $({
            limit: '10m',
            expect: [0, 3],
          })`(for n in {1..10}; do rm -rf cache; cat churn.count > churn.begin; rc=0; vykar --config churn.yaml backup -R ${repo} > met.out 2> met.err || rc=$?; cat churn.count > churn.end; [[ $rc == [03] ]] && cmp -s churn.begin churn.end || break; done; exit $rc)`
          await churn.end('KILL')
          await $`rm -f churn.count; sed -n 's/^Snapshot created: //p' met.out > churning.id; rm -rf lost tree && mkdir lost tree`
          await $`HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<churning.id) tree > restored.out 2>&1`
          // Of each file the size, its first letter, the first that is another, and the first that is none (a zero byte as 0): one letter is whole.
          await $`odd() { l=$(head -c 1 "$1" | tr '\0' 0); echo "$l$(LC_ALL=C tr -d "$l" < "$1" | tr '\0' 0 | head -c 1)$(LC_ALL=C tr -d a-z < "$1" | tr '\0' 0 | head -c 1)"; }; (cd tree/hot 2> /dev/null && for f in *; do test ! -f "$f" || printf '%s %s %s\n' "$f" "$(stat -c %s "$f")" "$(odd "$f")"; done) > letters; diff -r calm tree/calm > calm.diff || true; grep -rl 'not to be read' tree > leaked || true`
          await check('# every file is one that there was', () => {
            const times = Number(read('churn.end')) - Number(read('churn.begin'))
            if (times > 0) fired++
            const stored = read('letters').includes(what.split(' ')[0]!)
              ? 'the file was stored'
              : 'the file was left out'
            fact(name, `changed ${times} times meanwhile, exit ${met.code}${what.includes(' ') ? '' : `, ${stored}`}`)
            judge(what, met)
          })
          // Now that nothing changes any more the next backup, with the cache of the last one, holds what is there.
          await witnessed('churning', 'quiet')
          await $`vykar --config churn.yaml backup -R ${repo} > quiet.out && sed -n 's/^Snapshot created: //p' quiet.out > quiet.id`
          const how = await restoredAs(repo, 'quiet', here)
          if (how !== 'right')
            violated(
              '4: works again',
              `the backup after the change is ${how} when it is restored`,
              'vykar backup; vykar restore',
            )
          await clearOthers(repo, ids)
        }
      await $`rm -rf churning outside calm`
      await inTheEnd(repo, ids)
      await conclude(fired, tried)
    })

    await row({ repo, variant: 'unreadable' }, async () => {
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      let tried = 0
      /** A backup of `odd` that must exit 3, name exactly `left`, and hold the rest. */
      const partly = async (name: string, before: string, left: string) => {
        tried++
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`rm -rf cache; ${{ raw: before }} vykar --config odd.yaml backup -R ${repo} > odd.out 2> odd.err`
        await $`sed -n 's/^Snapshot created: //p' odd.out > odd.id; grep -oE 'odd/[a-z-]+(/[a-z-]+)*' odd.err | sort -u > named || true`
        fact(name, `exit ${met.code}, named: ${read('named').replaceAll('\n', ', ') || 'nothing'}`)
        if (met.code !== 3) violated('2: exit 3 means that exactly the announced files are missing', `exit ${met.code} although ${left} cannot be read: ${lastOf('odd.err')}`, 'vykar backup') // biome-ignore format: one line
        if (read('named') !== left) violated('what is left out is named, and nothing else', `${read('named').replaceAll('\n', ', ') || 'nothing'} is named instead of ${left}`, 'vykar backup') // biome-ignore format: one line
        if (!read('odd.id')) return violated('2: exit 3 means that exactly the announced files are missing', 'no snapshot was made', 'vykar backup') // biome-ignore format: one line
        const how = await restoredAs(repo, 'odd', here)
        if (how !== 'right') violated('2: exit 3 means that exactly the announced files are missing', `the rest is ${how} when it is restored`, 'vykar backup; vykar restore') // biome-ignore format: one line
      }
      await $`sed 's|path: source|path: odd|; s|label: faults|label: odd|' config.yaml > odd.yaml`
      if (process.getuid?.() === 0) {
        step('mode')
        await $`mkdir -p odd/sub && for n in one two three; do head -c 300K /dev/urandom > odd/$n; done && echo sub > odd/sub/file && chmod 600 odd/two`
        if (repo === 'local') {
          undo`chown -R "$(id -u)" "$REPO_LOCAL" || true`
          await $`chown -R 65534:65534 odd && chown 0:0 odd/two && rm -rf rest && cp -a odd rest && rm rest/two`
          await witnessed('rest', 'odd')
          await $`chown -R 65534:65534 "$REPO_LOCAL" && chmod a+rwx . && chmod a+r odd.yaml`
          const nobody = { raw: 'setpriv --reuid 65534 --regid 65534 --clear-groups' }
          const able = await $({ expect: 'any' })`${nobody} test -r "$PWD"/odd/one -a -w "$REPO_LOCAL"`
          // Below a home that others may not enter nobody else can run anything.
          if (able.code) note('a file of another user was not tried: the runtime directory cannot be entered by others')
          else await partly('a file of another user', nobody.raw, 'odd/two')
          await $`chmod 755 . && chown -R "$(id -u)" "$REPO_LOCAL" && rm -rf odd rest cache`
        }
        step('EIO')
        // btrfs refuses to give a block whose checksum is wrong; the device is damaged below it.
        undo`! mountpoint -q odd || umount odd`
        const made = await $({
          expect: [0, 127],
        })`command -v mkfs.btrfs > /dev/null && mkdir -p odd && truncate -s 200M eio.img && mkfs.btrfs -q -m single -d single eio.img && mount -o loop eio.img odd || exit 127`
        if (made.code) note('EIO was not tried: btrfs-progs is missing')
        else {
          await $`for n in one three; do head -c 300K /dev/urandom > odd/$n; done; (printf 'vykar-e2e-marker'; head -c 300K /dev/urandom) > odd/two; cp -a odd rest && rm rest/two && sync && umount odd`
          await witnessed('rest', 'odd')
          await $`o=$(grep -obaF -m 1 vykar-e2e-marker eio.img | head -n 1 | cut -d: -f1) && printf X | dd of=eio.img bs=1 seek=$((o + 4)) conv=notrunc status=none && mount -o loop eio.img odd`
          const damaged = await $({ expect: 'any' })`cat odd/two > /dev/null 2>&1`
          if (damaged.code) await partly('a file whose read fails with EIO', '', 'odd/two')
          else note('EIO was not tried: the damaged block can be read')
          await $`umount odd && rm -rf odd rest eio.img`
        }
      }
      await clearOthers(repo, ids)
      await inTheEnd(repo, ids)
      await conclude(tried, tried)
    })

    await row({ repo, variant: 'caches' }, async () => {
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      const cases: [name: string, line: string, finding?: string][] = [
        [
          'edit that keeps size and time',
          'f=source/edited; t=$(stat -c %y $f); head -c 200K /dev/zero | tr "\\\\0" e | dd of=$f conv=notrunc status=none; touch -d "$t" $f',
        ],
        [
          'file replaced by one of the same size and time',
          'f=source/edited; head -c 200K /dev/zero | tr "\\\\0" r > source/other && touch -r $f source/other && mv source/other $f',
        ],
        ['two files swapped', 'mv source/edited source/x && mv source/twin source/edited && mv source/x source/twin'],
        [
          'moved to other inodes',
          'cp -a source moved && rm -rf source && mv moved source && head -c 200K /dev/zero | tr "\\\\0" m | dd of=source/edited conv=notrunc status=none',
        ],
        [
          'clock set back',
          'head -c 200K /dev/zero | tr "\\\\0" c > source/edited && touch -d "1990-01-01" source/edited',
        ],
        [
          'a mapped page that is written again',
          `sync source/edited && python3 again.py source/edited 'vykar --config config.yaml backup -R ${repo} > mapped.out'`,
          'mapped-write-unseen',
        ],
      ]
      await $`printf '%s\n' ${again} > again.py`
      await $`for n in edited twin; do head -c 200K /dev/zero | tr '\0' $(echo $n | cut -c 1) > source/$n; done; touch -r source/edited source/twin; vykar --config config.yaml backup -R ${repo} > warm.out`
      let tried = 0
      for (const [name, line, finding] of cases) {
        if (only && only !== name) continue
        tried++
        step(name)
        await $`sleep 0.1; ${{ raw: line.replaceAll('\\\\0', '\\0') }}`
        await witnessed('source', 'edit')
        await $`vykar --config config.yaml backup -R ${repo} > edit.out && sed -n 's/^Snapshot created: //p' edit.out > edit.id`
        const how = await restoredAs(repo, 'edit', here)
        if (how !== 'right')
          violated(
            '2: exit 0 means complete',
            `the file cache hides a change: the snapshot is ${how}`,
            'vykar backup; vykar restore',
            how === 'wrong' && others(['./edited']) === '' ? finding : '',
          )
      }
      await clearOthers(repo, ids)
      await inTheEnd(repo, ids)
      await conclude(tried, tried)
    })

    await row({ repo, variant: 'swapped' }, async () => {
      if (!run.dry && !which('strace')) throw new Skipped('strace is missing: apt-get install -y strace')
      const ids = await acknowledged(repo, 1, 1)
      const { chosen, tried } = roundsOf(only)
      let fired = 0
      // strace stops vykar once it has seen what the path is, and has not opened it yet: whoever may write in the source has that moment, too.
      for (const [what, path, to] of [
        ['directory', 'dir', 'outside'],
        ['file', 'plain', 'outside/secret'],
      ] as const) {
        const name = `a ${what} that becomes a symlink before it is opened`
        if (!chosen(name)) continue
        await $`rm -rf swap outside away calls cache && mkdir -p swap/dir outside && echo inside > swap/dir/file && echo plain > swap/plain && echo 'not to be read' > outside/secret && sed 's|path: source|path: swap|; s|label: faults|label: swap|' config.yaml > swap.yaml`
        const going = await background(
          'swapped',
        )`strace -f -qq -o calls -P "$PWD"/swap/${path} -e trace=llistxattr,lgetxattr -e inject=llistxattr:signal=SIGSTOP:when=1 vykar --config swap.yaml backup -R ${repo}`
        const stopped = await held('swapped', going)
        await $`mv swap/${path} away && ln -s "$PWD"/${to} swap/${path}; kill -CONT $(<traced.pid) 2> /dev/null || true`
        const met = await going.done([0, 3])
        if (stopped) fired++
        await $`rm -rf tree lost && mkdir tree lost && sed -n 's/^Snapshot created: //p' swapped.out > swapped.id && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<swapped.id) tree > restored.out 2>&1; grep -rl 'not to be read' tree > leaked || true`
        fact(
          name,
          `exit ${met.code}, ${read('leaked') ? 'what the symlink names was read' : 'nothing outside was read'}`,
        )
        await leftOut('swapped', what === 'directory' ? met.code : 3, met.code, what === 'file' ? 'dir/file' : 'plain')
        if (read('leaked'))
          violated(
            'nothing outside of the source is read',
            `exit ${met.code}, and ${read('leaked')} is a file from outside of the source`,
            'vykar backup; vykar restore',
            what === 'directory' ? 'swapped-directory-followed' : '',
          )
      }
      const fifo = 'a file that becomes a FIFO before it is opened'
      if (chosen(fifo)) {
        await $`rm -rf swap away calls cache && mkdir swap && echo inside > swap/file && echo plain > swap/plain && sed 's|path: source|path: swap|; s|label: faults|label: swap|' config.yaml > swap.yaml`
        const going = await background(
          'fifo',
        )`strace -f -qq -o calls -P "$PWD"/swap/plain -e trace=llistxattr,lgetxattr -e inject=llistxattr:signal=SIGSTOP:when=1 vykar --config swap.yaml backup -R ${repo}`
        const stopped = await held('fifo', going)
        await $`mv swap/plain away && mkfifo swap/plain; kill -CONT $(<traced.pid) 2> /dev/null || true`
        await $({ expect: 'any' })`timeout ${within(15)} tail --pid=$(<fifo.pid) -f /dev/null`
        const hangs = stopped && going.running()
        // Who opens the other end lets it go on.
        await $`timeout 5 bash -c ': > swap/plain' || true`
        const met = await going.done([0, 3])
        if (stopped) fired++
        await $`rm -rf tree lost && mkdir tree lost && sed -n 's/^Snapshot created: //p' fifo.out > fifo.id && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<fifo.id) tree > restored.out 2>&1`
        await leftOut('fifo', 3, met.code, 'file')
        fact(fifo, `exit ${met.code}${hangs ? ', once somebody had opened the other end of the FIFO' : ''}`)
        if (hangs)
          violated(
            '7: everything ends',
            'the backup waits for ever for somebody to write into a FIFO',
            'vykar backup',
            'fifo-blocks-backup',
          )
      }
      await $`rm -rf swap outside away`
      await clearOthers(repo, ids)
      await inTheEnd(repo, ids)
      await conclude(fired, tried.length)
    })

    const coarse = 'two writes within one tick of the clock'
    await row({ repo, variant: 'coarse' }, async () => {
      needRoot(run, 'mounting a file system that keeps whole seconds')
      // Without encryption a backup takes a fraction of the second in which both writes must fall.
      const ids = await acknowledged(repo, 1, 1, 'none')
      const { chosen, tried } = roundsOf(only)
      let fired = 0
      if (chosen(coarse)) {
        // ext4 with inodes of 128 bytes keeps whole seconds, as vfat and many a network file system do.
        await $`mkdir coarse && truncate -s 32M coarse.img && mkfs.ext4 -q -I 128 coarse.img 2> /dev/null`
        undo`! mountpoint -q coarse || umount coarse`
        await $`mount -o loop coarse.img coarse && rmdir coarse/lost+found && sed 's|path: source|path: coarse|; s|label: faults|label: coarse|' config.yaml > coarse.yaml`
        await $`for n in 1 2 3 4 5; do until [[ $(date +%N) == [12]* ]]; do :; done; echo aaaa > coarse/file && vykar --config coarse.yaml backup -R ${repo} > coarse.out && stat -c %z coarse/file > before && echo bbbb > coarse/file && stat -c %z coarse/file > after; if cmp -s before after; then break; fi; sleep 1.1; done`
        await $`cmp -s before after && echo yes > same || echo no > same`
        if (read('same') === 'yes') fired++
        await $`vykar --config coarse.yaml backup -R ${repo} > coarse.out && sleep 1.5 && vykar --config coarse.yaml backup -R ${repo} > coarse.out && sed -n 's/^Snapshot created: //p' coarse.out > edit.id`
        await witnessed('coarse', 'edit')
        const how = await restoredAs(repo, 'edit', here)
        if (how !== 'right')
          violated(
            '2: exit 0 means complete',
            `the file cache hides a change: the snapshot is ${how}`,
            'vykar backup; vykar restore',
            how === 'wrong' && others(['./file']) === '' ? 'coarse-times-hide-change' : '',
          )
        await $`umount coarse && rm coarse.img`
      }
      const twin = 'another disk with a file of the same path, size and time'
      if (chosen(twin)) {
        // Two disks that are mounted at one place in turn, each client with a cache of its own, which is empty.
        await $`mkdir one two disk && for n in one two; do truncate -s 32M $n.img && mkfs.ext4 -q -I 128 $n.img 2> /dev/null; sed "s|path: source|path: disk|; s|label: faults|label: $n|; s|^cache_dir: .*|cache_dir: cache-$n|" config.yaml > $n.yaml; done`
        undo`for at in one two disk; do ! mountpoint -q $at || umount $at; done`
        await $`for n in one two; do mount -o loop $n.img $n && rmdir $n/lost+found; done; for n in 1 2 3 4 5; do until [[ $(date +%N) == [12]* ]]; do :; done; for n in one two; do echo $n > $n/file; touch $n; done; for n in one two; do stat -c '%y %z' $n/file; done > times; if test "$(sort -u times | wc -l)" = 1; then break; fi; sleep 1.1; done; (cd two && sha256sum file) > twin.sha256; umount one; umount two`
        await $`test "$(sort -u times | wc -l)" = 1 && echo yes > same || echo no > same`
        if (read('same') === 'yes') fired++
        await $`for n in one two; do mount -o loop $n.img disk && vykar --config $n.yaml backup -R ${repo} > $n.out && umount disk; done; sed -n 's/^Snapshot created: //p' two.out > twin.id`
        const how = await restoredAs(repo, 'twin', here)
        if (how !== 'right')
          violated(
            '3: no wrong data with exit 0',
            `the first backup of a disk exits 0, and is ${how}: it has the file of another disk`,
            'vykar backup; vykar restore',
            how === 'wrong' && others(['file']) === '' ? 'parent-of-another-disk' : '',
          )
        await $`rm -rf one.img two.img cache-one cache-two`
      }
      await clearOthers(repo, ids)
      await inTheEnd(repo, ids)
      await conclude(fired, tried.length)
    })
  }
  stillShown(run)
})

/**
 * What a backup could not take is in its exit code and named, and the file beside it is there.
 * @param other a file that nobody has touched
 */
async function leftOut(name: string, right: number, code: number, other: string): Promise<void> {
  await $`cmp swap/${other} tree/${other} > other.wrong 2>&1 || true; { grep -E 'WARN|rror' ${name}.out || true; } > named`
  await check('test ! -s other.wrong', () => {
    if (read('other.wrong')) violated('2: exit 3 means that what is announced is missing', `${other} is missing, or another: ${read('other.wrong')}`, 'vykar backup; vykar restore') // biome-ignore format: one line
    if (code !== right) violated('2: exit 3 means that what is announced is missing', `exit ${code} instead of ${right}`, 'vykar backup') // biome-ignore format: one line
    if (code === 3 && !/plain/.test(read('named'))) violated('2: exit 3 means that what is announced is missing', 'exit 3, and the file is not named', 'vykar backup') // biome-ignore format: one line
  })
}

/** What the restored tree holds of the file that was changed, and of what was not. */
function judge(what: string, { code }: Output): void {
  const broken = (seen: string, finding = '') =>
    violated('2: what is there is one that there was', seen, 'vykar backup; vykar restore', finding)
  if (read('calm.diff')) broken(`files that nobody touched are wrong: ${read('calm.diff').split('\n')[0]}`)
  if (read('leaked')) broken(`a file outside of the source was read: ${read('leaked')}`, 'swapped-directory-followed')
  const files = new Map(read('letters').split('\n').filter(Boolean).map((line) => [line.split(' ')[0]!, line.split(' ')])) // biome-ignore format: one line
  const size = 24 * 2 ** 20
  for (const file of ['appended', 'truncated', 'renamed', 'replaced', 'deleted', 'mapped']) {
    const [, bytes, letters = ''] = files.get(file) ?? (file === 'renamed' ? (files.get('renamed-2') ?? []) : [])
    const hot = file === what
    const named = read('met.err').includes(`hot/${file}`)
    if (bytes === undefined) {
      // Of the files only one that has another name, or none, for a moment may be missed, and with exit 3 one that is named.
      const missable = code === 0 ? ['renamed', 'deleted'].includes(what) : named
      if (!hot || !missable) broken(`${file} is not there (exit ${code})${named ? '' : ', and is not named'}`)
      continue
    }
    // What is written through a mapping while it is read is a mixture for every reader.
    const states = !hot ? new RegExp(`^${file[0]}$`) : what === 'mapped' ? /^[a-z]+$/ : /^[a-z]$/
    if (!states.test(letters))
      broken(`${file} is none of its states, or a mixture of several (${letters || 'nothing'}; 0 is a zero byte)`)
    if (!hot && Number(bytes) !== size) broken(`${file}, which nobody touched, has ${bytes} bytes`)
    const least = what === 'appended' ? size : 2 ** 20
    const whole = ['appended', 'truncated'].includes(what) ? Number(bytes) >= least : Number(bytes) === size
    if (hot && !whole) broken(`${file} has ${bytes} bytes, which it never had`)
  }
}
