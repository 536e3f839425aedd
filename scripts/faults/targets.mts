#!/usr/bin/env -S npx tsx
// Targets of a restore: a directory that is not empty, planted symlinks, a directory that becomes one, a private file, a path too long for
// the target, a user who may not set owners, a file system that holds no owners, links or modes, a directory that cannot be written; and
// of a `delete`: what is no repository of vykar.
// Passes when what cannot be restored is said with an exit code, everything else is there, and nothing outside of the target is written.
import { background } from '#lib/background.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, note, read, step, undo } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { acknowledged, conclude, faultOptions, held, roundsOf, rowsWith, stillShown } from '#scripts/faults/common.mts'
import { at, clearOthers, inTheEnd, lastOf, violated } from '#scripts/faults/oracle.mts'
import { needRoot } from '#scripts/filesystems/device.mts'

const spec = { needs: standardNeeds, wants: ['strace', 'mkfs.vfat'], repos: ['local'], options: faultOptions } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  needRoot(run, 'mounting a small file system, and restoring as another user')
  for (const repo of run.repos)
    await row(repo, async () => {
      const ids = await acknowledged(repo, 1, Math.min(run.options['corpus-mib'], 8))
      // Files beside a directory, a symlink, a hard link and a deep path.
      step('awkward source')
      await $`rm -r source && mkdir -p source/dir source/deep && for n in $(seq 20); do echo "file $n" > source/file-$n; done && echo inside > source/dir/inside && ln -s file-1 source/link && ln source/file-2 source/hard && chown 12345:54321 source/file-3`
      await $`(cd source/deep && for n in $(seq 16); do mkdir ${'d'.repeat(200)} && cd ${'d'.repeat(200)}; done && echo deep > deep)`
      await $`vykar --config config.yaml backup -R ${repo} > awkward.out && sed -n 's/^Snapshot created: //p' awkward.out > awkward.id`
      const { chosen, tried } = roundsOf(run.options.round)
      // Rounds in which vykar was not to be held at its moment.
      const missed: string[] = []
      const restore = async (name: string, target: string, before = '') => {
        const done = await $({
          limit: '5m',
          expect: 'any',
        })`${{ raw: before }} vykar --config config.yaml restore -R ${repo} $(<awkward.id) ${target} > ${name}.out 2>&1`
        fact(name, `exit ${done.code}${done.code ? `: ${lastOf(`${name}.out`).slice(0, 120)}` : ''}`)
        return done.code
      }

      if (chosen('not empty')) {
        await $`mkdir full && echo theirs > full/file-1 && echo other > full/other`
        const full = await restore('not-empty', 'full')
        await $`cat full/file-1 full/other > full.after 2>&1 || true`
        if (full === 0)
        violated('a target that is not empty is refused', 'exit 0 into a directory that has files', 'vykar restore') // biome-ignore format: one line
        if (read('full.after') !== 'theirs\nother')
          violated(
            'nothing of somebody is overwritten',
            `restore (exit ${full}) changed a file that was in its target`,
            'vykar restore',
          )
      }

      if (chosen('planted symlinks')) {
        await $`mkdir planted elsewhere && ln -s ../elsewhere planted/dir && ln -s ../elsewhere/written planted/file-1`
        const planted = await restore('planted', 'planted')
        await $`find elsewhere -mindepth 1 > outside`
        if (read('outside'))
          violated(
            'nothing outside of the target is written',
            `restore (exit ${planted}) wrote through a symlink: ${read('outside')}`,
            'vykar restore',
          )
      }

      // Whoever owns the target can do so at any time; strace stops vykar at the moment at which it has put the directory there.
      if (!run.dry && !which('strace')) note('a directory that becomes a symlink was not tried: strace is missing')
      else if (chosen('a directory that becomes a symlink')) {
        await $`mkdir swapped private away && chmod 700 private && mkdir -p one/dir && echo inside > one/dir/inside && chown 12345:54321 one/dir && chmod 777 one/dir && sed 's|path: source|path: one|; s|label: faults|label: one|' config.yaml > one.yaml && vykar --config one.yaml backup -R ${repo} > one.out && sed -n 's/^Snapshot created: //p' one.out > one.id`
        const going = await background(
          'swap',
        )`strace -f -qq -o calls -e trace=rename -e inject=rename:signal=SIGSTOP:when=1 vykar --config config.yaml restore -R ${repo} $(<one.id) swapped`
        const stopped = await held('swap', going)
        if (!stopped) missed.push(tried.at(-1)!)
        await $`mv swapped/dir away/ && ln -s "$PWD"/private swapped/dir; kill -CONT $(<traced.pid) 2> /dev/null || true`
        const met = await going.done([0, 1])
        await $`stat -c '%a %u' private > private.is`
        fact(
          'a directory that becomes a symlink',
          `exit ${met.code}${stopped ? '' : ', had ended'}; outside: ${read('private.is')}`,
        )
        if (stopped && read('private.is') !== '700 0')
          violated(
            'nothing outside of the target is written',
            `restore (exit ${met.code}) gave a directory outside of its target mode and owner ${read('private.is')}`,
            'vykar restore',
            'swapped-target-followed',
          )
      }

      // strace stops vykar once the first bytes have been written: nobody else may read them by then.
      if (!run.dry && !which('strace')) note('a private file while it is restored was not tried: strace is missing')
      else if (chosen('a private file while it is restored')) {
        await $`mkdir open hush && (umask 077 && head -c 400K /dev/urandom > hush/secret) && sed 's|path: source|path: hush|; s|label: faults|label: hush|' config.yaml > hush.yaml && vykar --config hush.yaml backup -R ${repo} > hush.out && sed -n 's/^Snapshot created: //p' hush.out > hush.id`
        const going = await background(
          'hushed',
        )`strace -f -qq -o calls -e trace=pwrite64 -e inject=pwrite64:signal=SIGSTOP:when=1 vykar --config config.yaml restore -R ${repo} $(<hush.id) open`
        const stopped = await held('hushed', going)
        if (!stopped) missed.push(tried.at(-1)!)
        await $`find open -name secret -size +0 -perm /077 -printf '%m\n' > secret.mode; find open -mindepth 1 -type d ! -perm -001 > closed; kill -CONT $(<traced.pid) 2> /dev/null || true`
        const met = await going.done([0, 1])
        const readable = stopped && read('secret.mode') && !read('closed')
        fact('a private file while it is restored', `exit ${met.code}${stopped ? '' : ', had ended'}; mode ${read('secret.mode') || '600'} meanwhile`) // biome-ignore format: one line
        if (readable)
          violated(
            'what is private stays private',
            `a file of mode 600 has mode ${read('secret.mode')} while it is restored, in directories that everybody may enter`,
            'vykar restore',
            'restore-readable-meanwhile',
          )
      }

      if (chosen('target is a symlink')) {
        await $`mkdir -p real && ln -s real through`
        const through = await restore('through', 'through')
        const same = await $({ expect: 'any' })`diff -rq --no-dereference source real > wrong.out 2>&1`
        if (through === 0 && same.code)
          violated('exit 0 means complete', `exit 0, and ${lastOf('wrong.out')}`, 'vykar restore')
      }

      if (chosen('path too long')) {
        // The source's longest path has 3,200 bytes: below a deep target it has more than the 4,096 that Linux takes.
        await $`long=$PWD; for n in 1 2 3 4 5; do long=$long/${'t'.repeat(200)}; mkdir "$long"; done; echo "$long" > long.path && mkdir "$(<long.path)"/target`
        const long = await restore('too-long', `${read('long.path') || 'long'}/target`)
        await $`find "$(<long.path)"/target -type f -name 'file-*' -printf x | wc -c > count`
        if (long === 0) violated('exit 0 means complete', 'exit 0 although one path cannot be written', 'vykar restore')
        else if (Number(read('count')) < 20)
          violated(
            'everything else is there',
            `one path is too long for the target (exit ${long}), and ${20 - Number(read('count'))} of 20 other files were not written`,
            'vykar restore',
            'long-path-ends-restore',
          )
      }

      if (chosen('another user')) {
        await $`mkdir theirs theirs/cache theirs/target && cp -a "$REPO_LOCAL" theirs/repository && chown -R 65534:65534 theirs`
        await $`sed 's|^cache_dir: .*|cache_dir: theirs/cache|' config.yaml > theirs.yaml && chmod a+r theirs.yaml`
        const other = await $({
          limit: '5m',
          expect: 'any',
        })`setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=$PWD/theirs ${at(repo, '$PWD/theirs/repository')} vykar --config theirs.yaml restore -R ${repo} $(<awkward.id) theirs/target > other.out 2>&1`
        await $`find theirs/target -type f -name 'file-*' -printf x | wc -c > count`
        fact(
          'another user',
          `exit ${other.code}, ${read('count')} of 20 files${other.code ? `: ${lastOf('other.out').slice(0, 120)}` : ''}`,
        )
        // A private home above the runtime directory lets nobody else in.
        const reached = await $({
          expect: 'any',
        })`setpriv --reuid 65534 --regid 65534 --clear-groups test -w "$PWD"/theirs/target`
        if (reached.code) {
          missed.push('another user')
          note('another user was not tried: he cannot enter the runtime directory; name one outside of a private home')
        }
        const theirs = await $({
          expect: 'any',
        })`diff -rq --no-dereference source theirs/target > wrong.out 2>&1`
        if (theirs.code && !reached.code)
        violated('everything else is there', `exit ${other.code}, and ${read('count')} of 20 files, or wrong ones: ${lastOf('wrong.out')}`, 'vykar restore') // biome-ignore format: one line
      }

      if (chosen('file system without owners and links')) {
        await $`truncate -s 64M fat.img && mkdir fat`
        undo`! mountpoint -q fat || umount fat`
        const made = await $({
          expect: [0, 127],
        })`command -v mkfs.vfat > /dev/null && mkfs.vfat fat.img > /dev/null && mount -o loop fat.img fat || exit 127`
        if (made.code === 0) {
          const fat = await restore('vfat', 'fat/target')
          await $`find fat/target -type f -name 'file-*' -printf x 2> /dev/null | wc -c > count`
          fact('vfat files', `${read('count')} of 20`)
          if (fat === 0) {
            const same = await $({
              expect: 'any',
            })`for n in $(seq 20); do cmp source/file-$n fat/target/file-$n || exit 1; done; test -e fat/target/link`
            if (same.code)
            violated('exit 0 means complete', `exit 0, and ${read('count')} of 20 files, or wrong ones, or no link`, 'vykar restore') // biome-ignore format: one line
          }
          await $`umount fat`
        }

        if (made.code) {
          missed.push('vfat')
          note('vfat was not tried: mkfs.vfat is missing (apt-get install -y dosfstools), or it cannot be mounted')
        }
      }

      if (chosen('default ACL')) {
        // A directory that the target lies in gives every new file an entry that its source does not have.
        await $`mkdir acl && setfacl -m d:u:12345:rwx acl`
        const acl = await restore('default-acl', 'acl/target')
        await $`getfacl -cpR acl/target | grep -c '^user:12345' > acl.count || true`
        if (acl) violated('what can be restored is restored', `exit ${acl} below a default ACL`, 'vykar restore')
        if (acl === 0 && read('acl.count') !== '0')
        violated('exit 0 means right', `${read('acl.count')} entries of the target's default ACL are on what was restored`, 'vykar restore', 'restore-keeps-inherited-acl') // biome-ignore format: one line
      }

      if (chosen('setgid')) {
        const plainModes = `find . -mindepth 1 -type d -printf '%P %m\\n' | sort`
        await $`mkdir shared && chmod 2755 shared`
        const setgid = await restore('setgid', 'shared/target')
        await $`(cd source && ${{ raw: plainModes }}) > modes.were; (cd shared/target && ${{ raw: plainModes }}) > modes.are; diff modes.were modes.are | grep -c '^>' > modes.count || true`
        if (setgid)
          violated('what can be restored is restored', `exit ${setgid} in a setgid directory`, 'vykar restore')
        if (setgid === 0 && read('modes.count') !== '0')
        violated('exit 0 means right', `${read('modes.count')} directories have the target's setgid bit, which their source has not`, 'vykar restore') // biome-ignore format: one line
      }

      if (chosen('read-only')) {
        await $`mkdir -p ro`
        undo`! mountpoint -q ro || umount ro`
        await $`mount -t tmpfs -o ro tmpfs ro`
        const ro = await restore('read-only', 'ro/target')
        if (ro === 0) violated('exit 0 means complete', 'exit 0 on a read-only file system', 'vykar restore')
        await $`umount ro`
      }

      const alien = 'delete of what is no repository of vykar'
      if (chosen(alien)) {
        // Laid out as restic's: names that vykar's own have too.
        await $`mkdir -p alien/keys alien/snapshots alien/data/ab alien/index && for f in config keys/0123 snapshots/4567 data/ab/89ab index/cdef; do echo somebody\'s > alien/$f; done && find alien -type f | sort > alien.had`
        const done = await $({
          expect: 'any',
        })`${at(repo, '$PWD/alien')} vykar --config lost.yaml delete -R ${repo} --yes-delete-this-repo > alien.out 2>&1`
        await $`find alien -type f | sort | comm -23 alien.had - > alien.gone`
        fact(alien, `exit ${done.code}: ${lastOf('alien.out').slice(0, 100)}`)
        if (read('alien.gone'))
          violated(
            'nothing of somebody is deleted',
            `delete (exit ${done.code}) removed ${read('alien.gone').split('\n').join(', ')} of a directory that no vykar command can open`,
            'vykar delete --yes-delete-this-repo',
            // Names that its own repositories have, too.
            /^alien\/(?!config$|(keys|snapshots|index)\/)/m.test(read('alien.gone'))
              ? ''
              : 'delete-takes-other-repositories',
          )
      }

      await clearOthers(repo, ids)
      await inTheEnd(repo, ids)
      await conclude(tried.length - missed.length, tried.length, missed)
    })
  stillShown(run)
})
