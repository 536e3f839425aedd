#!/usr/bin/env -S npx tsx
// What is chosen, and what is not: excludes by pattern, marker, .gitignore and mount point; a restore of some files by pattern; what `diff`
// and `find` say; and a snapshot that is served by `mount`.
// Passes when what is left out is what git(1) leaves out by the same patterns and nothing else, what is brought out is what find(1) finds,
// every byte served is right, and maintenance beside a mount breaks nothing.
import { background } from '#lib/background.mts'
import { config } from '#lib/config.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, note, read, rowScope, step, undo } from '#lib/sh.mts'
import { Mismatch, Skipped } from '#lib/verdict.mts'
import { backup, restore } from '#scripts/backends/common.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { fresh, noIgnoreAbove, serverWants } from '#scripts/common.mts'
import { finding } from '#scripts/findings.mts'
import { freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'

const choices = { excludes, partly, served }
/** Patterns as gitignore(5) has them, which vykar's documentation refers to: the first ones for all sources, the others for this one. */
const patterns = ['*.tmp', '!keep.tmp', 'cache/', '/top', 'a/**/b', '[xy]z', '\\#hash', '\\!bang', 'foo*bar', '/with space', 'dir/*', '!dir/kept', 'logs/debug', '\\[lit\\]', '**/deep', '*.log', 'build/', '!build/keep', 'q\\?'] // biome-ignore format: a list
/** Names that these patterns are about, and that they only seem to be about. */
const names = ['one.tmp', 'keep.tmp', 'sub/two.tmp', 'cache/in/f', 'sub/cache/f', 'sub2/cache', 'top/f', 'sub/top/f', 'a/b/f', 'a/x/b/f', 'a/x/y/b/f', 'dir/one', 'dir/kept', 'deeper/deep/f', 'logs/debug/f', 'sub/logs/debug', 'with space/f', '.hidden/f', 'xz', 'yz', 'zz', '[lit]', 'lit/f', '#hash', '!bang', 'foobar', 'fooXbar', 'foo-bar.txt', 'plain/f', 'trail ', 'file.LOG', 'file.log', 'build/out/f', 'build/keep', 'star*name', 'q?', 'ques1', 'marked/.nobackup', 'marked/f', 'gi/x.o', 'gi/sub/y.o', 'gi/keep.o', 'gi/local', 'gi/sub/local', 'gi/sub/n/local'] // biome-ignore format: a list
/**
 * One that is about nothing; then patterns that few use, and that leave out more than they should where they are read in another way: how many
 * files 0.19.1 leaves out that git keeps, and stores that git ignores.
 */
const odd: Record<string, [lost: number, more: number]> = {
  'nosuch*': [0, 0],
  '*/': [20, 0],
  '**/': [20, 0],
  '/': [49, 0],
  'b{1,2}': [2, 1],
  '{in,dir}': [4, 0],
  'in[!x]deep': [1, 0],
  '[[:digit:]]': [0, 0],
  'a**/f': [0, 3],
}

const options = {
  choice: { kind: 'list', help: 'what to try, all unless told', choices: Object.keys(choices) },
} as const
const spec = { needs: standardNeeds, wants: [...serverWants, 'git'], options } as const

await scenario(import.meta, spec, async (run) => {
  const { choice } = run.options
  await servers()
  for (const repo of run.repos)
    for (const [name, row] of Object.entries(choices))
      if (!choice.length || choice.includes(name)) await run.row({ repo, variant: name }, () => row(repo))
})

/** What is left out is what git(1) ignores by the same patterns, a marked directory, and another file system; nothing else is. */
async function excludes(repo: string): Promise<void> {
  if (!rowScope().dry && !which('git'))
    throw new Skipped('git is missing, whose patterns these are: apt-get install -y git')
  step('source')
  await $`mkdir source && for name in ${names}; do mkdir -p "$(dirname "source/$name")" && echo "$name" > "source/$name"; done`
  await $`printf '%s\n' ${patterns} > patterns`
  await config`
sources:
  - path: source
    label: excluded
`
  await fresh(repo)
  const held = async (name: string, ignored: { raw: string }) => {
    await $({
      limit: '1h',
    })`vykar --config ${name}.yaml backup -R ${repo} > ${name}.out && sed -n 's/^Snapshot created: //p' ${name}.out > ${name}.id`
    await restore(repo, name)
    await $`rm -rf git-tree && cp -a source git-tree && export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null && git init -q git-tree && (cd git-tree && git ls-files -z --others ${ignored}) | tr '\0' '\n' | sort > ${name}.git`
    await $`(cd restored-${{ raw: name }} && find . -type f -printf '%P\n' | sort) > ${name}.held && diff ${name}.git ${name}.held`
  }
  step('patterns')
  await $`{ printf 'exclude_patterns:\n'; head -n 10 patterns | sed "s/.*/  - '&'/"; sed '/label: excluded/q' config.yaml; printf '    exclude:\n'; tail -n +11 patterns | sed "s/.*/      - '&'/"; sed '1,/label: excluded/d' config.yaml; } > patterned.yaml`
  await held('patterned', { raw: '--exclude-from=../patterns' })
  step('markers and .gitignore')
  await noIgnoreAbove()
  await $`printf '*.o\n!keep.o\n' > source/gi/.gitignore && printf '!y.o\n/local\n' > source/gi/sub/.gitignore && printf 'plain/\n*.LOG\n' > source/.gitignore`
  await $`{ cat config.yaml; printf 'exclude_if_present: [.nobackup]\ngit_ignore: true\n'; } > marked.yaml`
  await held('marked', { raw: `--exclude-standard --exclude=marked/` })
  step('two paths of one source')
  // What is excluded, and what another file system is, is said of each path and not of the first alone.
  await $`mkdir -p first/top second/sub second/top && echo 1 > first/top/f && echo 1 > first/f && for f in second/f second/sub/f second/top/f; do echo 2 > $f; done`
  if (process.getuid?.() === 0) {
    undo`! mountpoint -q second || umount second`
    await $`mount -t tmpfs -o size=1m tmpfs second && mkdir second/sub second/top && for f in second/f second/sub/f second/top/f; do echo 2 > $f; done`
  }
  await $`sed "s|  - path: source|  - paths: [first, second]|; s|label: excluded|&\n    one_file_system: true\n    exclude: ['/top']|" config.yaml > paths.yaml && vykar --config paths.yaml backup -R ${repo} > paths.out && sed -n 's/^Snapshot created: //p' paths.out > paths.id && vykar --config config.yaml snapshot list -R ${repo} $(<paths.id) > paths.listing && diff <(printf '%s\n' first/f second/f second/sub/f) <(grep -E '/f$' paths.listing | sed "s|.*-excludes/||" | sort)`
  if (process.getuid?.() === 0) await $`umount second`
  step('odd patterns')
  await $`rm -f source/.gitignore source/gi/.gitignore source/gi/sub/.gitignore && mkdir -p source/in/deep && for name in b1 b2 'b{1,2}' in/deep/f; do echo "$name" > "source/$name"; done`
  for (const [n, pattern] of Object.keys(odd).entries()) {
    await $`{ cat config.yaml; printf "exclude_patterns: ['%s']\n" ${pattern}; } > odd.yaml && printf '%s\n' ${pattern} > odd.pattern`
    await $`rc=0; vykar --config odd.yaml backup -R ${repo} > odd.out 2>&1 || rc=$?; echo $rc > odd-${n}.code; sed -n 's/^Snapshot created: //p' odd.out > odd.id; : > odd-${n}.held; test ! -s odd.id || vykar --config config.yaml snapshot list -R ${repo} $(<odd.id) --long | sed -nE 's/^-[0-7r wx-]+ +[0-9.]+ ([KMGT]i)?B [0-9-]+ [0-9:]+ //p' | sort > odd-${n}.held`
    await $`rm -rf git-tree && cp -a source git-tree && export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null && git init -q git-tree && (cd git-tree && git ls-files -z --others --exclude-from=../odd.pattern) | tr '\0' '\n' | sort > odd-${n}.git && comm -23 odd-${n}.git odd-${n}.held | wc -l > odd-${n}.lost && comm -13 odd-${n}.git odd-${n}.held | wc -l > odd-${n}.more && wc -l < odd-${n}.held > odd-${n}.count`
  }
  await check('# what git keeps is in the snapshot, and nothing else', () => {
    const met = Object.entries(odd).map(([pattern, known], n) => {
      const [lost, more, held, code] = ['lost', 'more', 'count', 'code'].map((what) => Number(read(`odd-${n}.${what}`))) as [number, number, number, number] // biome-ignore format: one line
      // A pattern may be refused.
      if (code > 2) throw new Mismatch(`exclude ${pattern}: backup exits ${code}`)
      const unlike = code === 0 && lost + more > 0
      if (unlike && (lost !== known[0] || more !== known[1]))
        throw new Mismatch(
          `exclude ${pattern}: ${lost} files are left out that git keeps, ${more} stored that it ignores`,
        )
      return { pattern, unlike, held }
    })
    const empty = met.filter(({ unlike, held }) => unlike && !held)
    const less = met.filter(({ unlike, held }) => unlike && held)
    const list = (of: typeof met) => of.map(({ pattern }) => pattern).join(' ')
    finding(
      'pattern-empties-snapshot',
      empty.length ? `excludes that leave files to git make an empty snapshot, exit 0: ${list(empty)}` : undefined,
    )
    finding(
      'patterns-unlike-git',
      less.length
        ? `excludes that leave out what git keeps, or store what it ignores, exit 0: ${list(less)}`
        : undefined,
    )
  })
  step('.gitignore above the source')
  await $`mkdir -p above/source && echo kept > above/source/file && echo '*' > above/.gitignore && { sed 's|path: source|path: above/source|' config.yaml; echo 'git_ignore: true'; } > above.yaml && vykar --config above.yaml backup -R ${repo} > above.out && sed -n 's/^Snapshot created: //p' above.out > above.id && vykar --config config.yaml snapshot list -R ${repo} $(<above.id) > above.listing`
  await check('# of a source the .gitignore files in it count', () => {
    const there = read('above.listing').split('\n').includes('file')
    finding(
      'gitignore-above-source',
      there ? undefined : 'a .gitignore in a directory above the source leaves out what is in the source, exit 0',
    )
  })
  if (process.getuid?.() !== 0 && !rowScope().dry)
    return note('other file systems were not tried: only root can mount one')
  step('another file system')
  await $`mkdir source/mounted`
  undo`! mountpoint -q source/mounted || umount source/mounted`
  await $`mount -t tmpfs none source/mounted && echo other > source/mounted/f`
  for (const one of ['true', 'false']) {
    await $`{ cat config.yaml; printf 'one_file_system: ${{ raw: one }}\n'; } > mounts.yaml`
    await $({
      limit: '1h',
    })`vykar --config mounts.yaml backup -R ${repo} > mounts.out && sed -n 's/^Snapshot created: //p' mounts.out > mounts.id`
    await $`vykar --config config.yaml snapshot list -R ${repo} $(<mounts.id) > mounts-${one}.listing`
  }
  await $`umount source/mounted`
  await $`! grep -x mounted/f mounts-true.listing && grep -qx mounted/f mounts-false.listing && grep -qx mounted mounts-false.listing || exit 1`
  await check('# of another file system the directory where it is mounted is kept', () => {
    const there = read('mounts-true.listing').split('\n').includes('mounted')
    const seen = 'with one_file_system the directory where another file system is mounted is not in the snapshot'
    finding('mount-points-left-out', there ? undefined : seen)
  })
}

/** Two snapshots of a small tree, in one.id and two.id; `source` is as at the second. */
async function twice(repo: string): Promise<void> {
  step('source')
  await $`mkdir -p source/dir/sub source/other && for name in a.txt dir/b.txt dir/sub/c.txt other/d.log 'with space' 'percent%20' 'hash#' 'umlaut-ü'; do echo "$name" > "source/$name"; done && { ln source/a.txt source/other/hard.txt 2> /dev/null || cp -p source/a.txt source/other/hard.txt; } && ln -s b.txt source/dir/link.txt && chmod 600 source/dir/sub/c.txt && touch -d '2001-02-03 04:05:06.789' source/dir/sub/c.txt && head -c 3M /dev/urandom > source/large && head -c 3M /dev/urandom > source/unread && chmod 700 source/dir`
  if (!rowScope().run.lacking.includes('xattrs')) await $`setfattr -n user.kept -v yes source/a.txt`
  await config`
sources:
  - path: source
    label: tree
`
  await fresh(repo)
  await backup(repo, 'one')
  await $`echo changed > source/dir/b.txt && rm source/other/d.log && echo new > source/new.txt`
  await backup(repo, 'two')
}

/** Some of a snapshot: files by pattern, what has changed since another one, and where a name is. */
async function partly(repo: string): Promise<void> {
  await twice(repo)
  step('latest')
  await $`mkdir newest && vykar --config config.yaml restore -R ${repo} latest newest > newest.out && diff -r --no-dereference source newest`
  step('by pattern')
  for (const [n, [pattern, words]] of Object.entries([
    ['*.txt', "-name '*.txt'"],
    ['dir/**', "-path './dir/*'"],
    ['**/c.txt', '-name c.txt'],
    ['a.txt', '-path ./a.txt'],
    ['other/hard.txt', '-path ./other/hard.txt'],
    ['nosuch', '-name nosuch'],
  ] as const)) {
    const tree = `some-${n}`
    await $`mkdir ${tree} && vykar --config config.yaml restore -R ${repo} --pattern ${pattern} $(<two.id) ${tree} > ${tree}.out`
    await $`diff <(cd source && find . -type f ${{ raw: words }} -exec sha256sum {} + | sort) <(cd ${tree} && find . -type f -exec sha256sum {} + | sort)`
    await $`for at in source ${tree}; do (cd $at && find . ! -type d ${{ raw: words }} -printf '%y %m %U:%G %T@ %p %l\n' | sort && find . -type f ${{ raw: words }} | LC_ALL=C sort | xargs -r getfattr -d) > $at.some; done && diff source.some ${tree}.some`
  }
  await $`stat -c %a some-0/dir > parent.mode`
  await check('# a directory that is made on the way is as private as it was', () => {
    const mode = read('parent.mode')
    if (mode !== '700' && mode !== '755') throw new Mismatch(`restore --pattern makes a directory of mode 700 with mode ${mode}`) // biome-ignore format: one line
    finding(
      'pattern-opens-parents',
      mode === '700' ? undefined : `restore --pattern makes a directory of mode 700 with mode ${mode}`,
    )
  })
  step('diff and find')
  // \`diff\` takes no -R, and looks for the snapshots in every repository of its config: in one that has only this.
  await $`awk '/^  - label: /{on = $3 == "${{ raw: repo }}"} /^[^ ]/{on = 1} on || !/^  /' config.yaml > alone.yaml && vykar --config alone.yaml snapshot diff $(<one.id) $(<two.id) > changed.out`
  await $`diff <(printf '%s\n' 'Added new.txt' 'Modified dir/b.txt' 'Removed other/d.log') <(awk '$1 ~ /^(Added|Modified|Removed)$/ {print $1, $2}' changed.out | sort)`
  await $`vykar --config config.yaml snapshot find -R ${repo} --last 1 --name '*.txt' > found.out`
  await $`diff <(cd source && find . -name '*.txt' -printf '%P\n' | sort) <(grep -E '^[^ ].*\.txt$' found.out | sort)`
}

/** A snapshot by WebDAV: every byte is right, nothing can be written, maintenance is held off, and TERM ends it. */
async function served(repo: string): Promise<void> {
  await twice(repo)
  if (!rowScope().dry && !which('rclone')) throw new Skipped('rclone is missing: apt-get install -y rclone')
  step('served')
  const port = rowScope().dry ? 18080 : await freePort(0)
  const url = `http://127.0.0.1:${port}`
  const mount = await background(
    'served',
  )`vykar --config config.yaml mount -R ${repo} --snapshot $(<two.id) --address 127.0.0.1:${port}`
  await $({
    limit: '60s',
  })`until curl -fs -o /dev/null -X OPTIONS ${url}/; do kill -0 $(<served.pid) || exit 1; sleep 0.1; done`
  // One file is not read yet, so that nothing of it is cached when its data go.
  await $({
    limit: '10m',
  })`RCLONE_CONFIG=/dev/null rclone copy --exclude /unread --create-empty-src-dirs --retries 1 ${`:webdav,url="${url}":`} copied && diff -r --exclude=unread --exclude=link.txt source copied`
  await $`test -L copied/dir/link.txt || test -e copied/dir/link.txt && echo yes > link.is || echo no > link.is`
  // A page of somebody else's that the user's browser shows may ask by any name; another user of this machine by the right one.
  await $`curl -s -o host.is -w '%{http_code}' -H 'Host: attacker.example' ${url}/a.txt > host.code || true`
  await $`echo 000 > user.code; if ((EUID == 0)); then setpriv --reuid 65534 --regid 65534 --clear-groups curl -s -o /dev/null -w '%{http_code}' ${url}/dir/sub/c.txt > user.code || true; fi`
  for (const method of ['PUT', 'DELETE', 'MKCOL'])
    await $`code=$(curl -sS -o /dev/null -w '%{http_code}' -X ${method} --data-binary x ${url}/a.txt); [[ $code == [45]* ]]`
  await $`vykar --config config.yaml backup -R ${repo} > three.out && sed -n 's/^Snapshot created: //p' three.out > three.id`
  const deleted = await $({
    expect: 'any',
  })`vykar --config config.yaml snapshot delete -R ${repo} $(<two.id) $(<one.id) $(<three.id) > deleted.served 2>&1 && vykar --config config.yaml compact -R ${repo} >> deleted.served 2>&1`
  await $`curl -sS -o unread.is -w '%{http_code}' ${url}/unread > unread.code 2> unread.err || true; cmp -s source/unread unread.is && echo right > unread.how || echo wrong > unread.how`
  const { by } = await mount.end('TERM', '5s')
  await check('# maintenance waits, or what is served stays right; TERM ends it', () => {
    const torn = deleted.code === 0 && read('unread.how') === 'wrong'
    if (torn && read('unread.code') === '200' && !read('unread.err'))
      throw new Mismatch('a file that is gone was served with 200, and another content')
    finding(
      'mount-without-session',
      torn ? 'snapshot delete and compact are let in beside a mount, which then breaks off what it serves' : undefined,
    )
    finding(
      'mount-leaves-symlinks-out',
      read('link.is') === 'yes' ? undefined : 'a symlink is not in what mount serves, and nothing says so',
    )
    // 000 is curl's own, where nothing was answered.
    const answered = (file: string) => /^[1-5]\d\d$/.test(read(file))
    if (answered('host.code'))
      finding(
        'mount-answers-any-name',
        read('host.code') === '200' ? 'mount answers a request for another host name with a file' : undefined,
      )
    if (answered('user.code'))
      finding(
        'mount-serves-all-users',
        read('user.code') === '200' ? 'mount gives a file of mode 600 to another user of the machine' : undefined,
      )
    else note('what mount serves to another user was not tried: only root can become one')
    finding('mount-outlives-term', by === 'KILL' ? 'vykar mount goes on serving after a TERM' : undefined)
  })
}
