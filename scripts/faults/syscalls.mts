#!/usr/bin/env -S npx tsx
// System calls that fail, with encryption and without: strace(1) makes writes, syncs, renames, reads and attribute calls of vykar return EIO, ENOSPC, EPERM or EINTR, once
// or from a moment on, or takes its time over them, as a slow disk does.
// Passes when what could not be done is said (an exit code, or the path of what is missing), a slow disk and an interrupted call cost
// nothing, every acknowledged snapshot is still restored to what it was, and the next backup, check and restore succeed.
import { scenario } from '#lib/scenario.mts'
import { $, fact, read, step } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { copyOf } from '#scripts/damage.mts'
import { acknowledged, conclude, faultOptions, judge, rowsWith, stillShown, within } from '#scripts/faults/common.mts'
import { afterwards, at, lastOf, nothingForEver, violated } from '#scripts/faults/oracle.mts'
import { listing, witnessed } from '#scripts/witnessed.mts'

/** The packs alone, and no other file. */
const packs = "$(find $PWD/damaged/packs -type f -printf '-P %p ')"
/** What runs, what strace injects (into the packs alone where no `when` says which calls), and whether vykar must come through, must fail, must at least name what it left out, or may do either. */
type Fault = [verb: keyof typeof verbs, inject: string, must: 'work' | 'fail' | 'said' | 'any', finding?: string]
const verbs = {
  backup: 'backup',
  restore: 'restore $(<extra.id) met-tree',
  check: 'check --verify-data',
  compact: 'compact --threshold 0',
  'snapshot delete': 'snapshot delete $(<extra.id)',
  repair: 'check --repair --verify-data --yes',
} as const
// `when=N` counts the calls of each thread: the first files that vykar syncs are its session's and its lock's.
const faults: Fault[] = [
  ['backup', 'fsync:error=EIO:when=1', 'fail'],
  ['backup', 'fsync:error=EIO:when=4+', 'fail'],
  ['backup', 'fsync:error=EIO:when=8', 'any'],
  ['backup', 'write:error=ENOSPC:when=2+', 'fail'],
  ['backup', 'write:error=EIO:when=3', 'any'],
  ['backup', 'write:error=EINTR:when=2', 'work'],
  ['backup', 'renameat,rename:error=EIO:when=1+', 'fail'],
  ['backup', 'renameat:error=EIO:when=5', 'any'],
  ['backup', 'unlink:error=EIO:when=1+', 'any'],
  ['backup', 'read:error=EIO:when=40+', 'fail'],
  ['backup', 'read:error=EINTR:when=12', 'work'],
  ['backup', 'getdents64:error=EIO:when=20+', 'said'],
  ['backup', 'llistxattr:error=EIO:when=1+', 'said', 'unread-attributes-exit-0'],
  ['backup', 'lgetxattr:error=EIO:when=1+', 'said', 'unread-attributes-exit-0'],
  ['backup', 'mkdir:error=EACCES:when=1+', 'any'],
  ['backup', 'fsync,fdatasync,renameat:delay_exit=100000', 'work'],
  ['restore', 'pwrite64:error=ENOSPC:when=3+', 'fail'],
  ['restore', 'pwrite64:error=EIO:when=1', 'fail'],
  ['restore', 'pwrite64:error=EINTR:when=1', 'work'],
  ['restore', 'read:error=EIO:when=30+', 'fail'],
  ['restore', 'mkdir:error=EACCES:when=8+', 'fail'],
  ['restore', 'symlink,linkat:error=EPERM:when=1+', 'fail'],
  ['restore', 'fchmod,chmod,fchmodat:error=EPERM:when=2+', 'said'],
  ['restore', 'fchown,lchown,fchownat:error=EPERM:when=1+', 'said'],
  ['restore', 'utimensat:error=EPERM:when=2+', 'said'],
  ['restore', 'lsetxattr,setxattr,fsetxattr:error=EPERM:when=1+', 'said'],
  ['restore', 'pwrite64,read:delay_exit=5000', 'work'],
  ['check', 'read:error=EIO:when=30+', 'fail'],
  ['check', 'getdents64:error=EIO:when=4+', 'fail'],
  ['compact', 'fsync:error=EIO:when=4+', 'fail'],
  ['compact', 'renameat:error=EIO:when=2+', 'fail'],
  ['compact', 'read:error=EIO:when=16+', 'any'],
  ['compact', 'unlink:error=EIO:when=1+', 'any'],
  ['snapshot delete', 'unlink:error=EIO:when=1', 'any'],
  ['snapshot delete', 'fsync:error=EIO:when=3+', 'any'],
  ['repair', 'read,pread64:error=EIO:when=30+', 'any', 'repair-deletes-on-read-error'],
  ['repair', 'read,pread64:error=EIO', 'any', 'repair-deletes-on-read-error'],
  ['repair', 'fsync:error=EIO:when=2+', 'any'],
]

const spec = { needs: [...standardNeeds, 'strace'], repos: ['local'], options: faultOptions } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { 'corpus-mib': mib, round: only } = run.options
  const rows = run.repos.flatMap((repo) => (['auto', 'none'] as const).map((mode) => ({ repo, mode })))
  for (const { repo, mode } of rows)
    await row({ repo, variant: mode === 'none' ? 'unencrypted' : 'encrypted' }, async () => {
      const ids = await acknowledged(repo, 1, Math.min(mib, 8), mode)
      await $`mkdir source/sub && head -c 6M /dev/urandom > source/sub/extra && ln source/sub/extra source/linked && ln -s extra source/sub/symlink && setfattr -n user.word -v value source/sub/extra && chmod 640 source/sub/extra && touch -d 2001-02-03 source/sub/extra source/sub`
      await witnessed('source', 'extra')
      await $`vykar --config config.yaml backup -R ${repo} > extra.out && sed -n 's/^Snapshot created: //p' extra.out > extra.id`
      await copyOf(repo)
      const there = at(repo, '$PWD/damaged')
      let [fired, tried] = [0, 0]
      for (const [verb, inject, must, finding] of faults) {
        const name = `${verb} ${inject}`
        if (only && only !== name) continue
        tried++
        step(name)
        // Nothing of it is shared: what is written over in place must not be written over in the copy.
        await $`rm -rf damaged met-tree lost && cp -a copy damaged && mkdir met-tree lost && head -c 9M /dev/urandom > source/fresh`
        if (verb === 'compact') await $`${there} vykar --config config.yaml snapshot delete -R ${repo} $(<extra.id)`
        const words = verbs[verb].replace(/^(snapshot delete|\S+)/, `$1 -R ${repo}`)
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`rm -f calls; HOME=$PWD/lost ${there} timeout -k 5 ${within(120)} strace -f -qq -o calls -e trace=${{ raw: inject.split(':')[0]! }} -e inject=${{ raw: inject }} ${{ raw: inject.endsWith('EIO') ? packs : '' }} vykar --config lost.yaml ${{ raw: words }} > met.out 2>&1`
        await $`grep -cE '\(INJECTED\)|\(DELAYED\)' calls > hits || true; grep -cE 'write\([12],.*INJECTED' calls > unsaid || true`
        const hits = Number(read('hits'))
        if (hits) fired++
        fact(name, `${hits} times, exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`)
        // What never happened need not be said.
        // A write that fails may be one to its own output.
        if (read('unsaid') !== '0' && met.code === 134)
          violated('7: ends well', 'exit 134: what it prints cannot be written', `vykar ${verb} > /dev/full`, 'output-unwritable-aborts') // biome-ignore format: one line
        else if (hits || met.code === 124) judge(verb, met, must === 'said' ? 'any' : must)
        // Of many it names the first ones, and counts the rest.
        if (hits && must === 'said' && !/(warn|error).*(source|met-tree)/i.test(read('met.out')))
          violated('what is left out is said', `exit ${met.code}, and no path is named`, `vykar ${verb}`)
        if (verb === 'restore' && met.code === 0) {
          const compared = await $({
            expect: 'any',
          })`(cd met-tree && sha256sum --check --quiet --strict ../extra.sha256) > wrong.out 2>&1 && test "$(find met-tree -type f -printf x | wc -c)" = "$(wc -l < extra.sha256)" && diff -qr --no-dereference source/sub met-tree/sub > wrong.out 2>&1${{ raw: must === 'work' ? ` && (cd met-tree && ${listing}) | diff -a extra.tree - > wrong.out` : '' }}`
          if (compared.code)
            violated(
              '3: exit 0 means right',
              `restore exits 0 with wrong data: ${lastOf('wrong.out')}`,
              'vykar restore',
            )
        }
        if (verb === 'snapshot delete' && met.code === 0) {
          await $`${there} vykar --config config.yaml list -R ${repo} > met.list`
          if (!run.dry && read('met.list').includes(read('extra.id')))
            violated(
              'exit 0 means done',
              'snapshot delete exits 0, and list shows the snapshot',
              'vykar snapshot delete',
            )
        }
        const kept = /compact|delete/.test(verb) ? ids : [...ids, 'extra']
        await afterwards(repo, kept, verb === 'backup' ? met : undefined, there, [...ids, 'extra'], finding)
        await nothingForEver(repo, there, `vykar ${verb}`)
      }
      await $`rm -rf damaged copy source corpus met-tree`
      await conclude(fired, tried)
    })
  stillShown(run)
})
