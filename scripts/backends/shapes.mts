#!/usr/bin/env -S npx tsx
// Shapes of sources that backup tools get wrong, each in a row of its own: a file of more than 4 GiB, names that are not UTF-8, two
// sources, files where dumps are put, several paths with equal names, a single file, a symlink to a file, a trailing slash, a file that
// grows while it is read, and the same tree with one thread and many, with a warm, a cold and a moved file cache.
// Passes when each is restored, with an empty cache, to what it was; what must be left out is left out with exit 3, and nothing else is;
// and an unchanged tree is not read again because its label, the order of its paths or its neighbours have changed.
import { background } from '#lib/background.mts'
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { Blocked, Mismatch } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { backup, restore } from '#scripts/backends/common.mts'
import { listed, standardNeeds } from '#scripts/checks.mts'
import { fresh, serverWants } from '#scripts/common.mts'
import { finding } from '#scripts/findings.mts'
import { parseBackup, parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'
import { listing } from '#scripts/witnessed.mts'

const shapes = [
  'large-file',
  'not-utf8',
  'sources',
  'dump-names',
  'paths',
  'single',
  'growing',
  'threads',
  'threads-none',
  'costs',
] as const

const options = {
  shape: { kind: 'list', help: 'shapes to try, all unless told', choices: shapes },
  'large-mib': { kind: 'number', help: 'size of the large file, which is sparse, in MiB', default: 4200, min: 64 },
} as const
const spec = { needs: standardNeeds, wants: serverWants, options } as const

await scenario(import.meta, spec, async (run) => {
  const { shape, 'large-mib': mib } = run.options
  const { seed } = run.common
  await servers()
  const rows: Record<(typeof shapes)[number], (repo: string) => Promise<void>> = {
    'large-file': (repo) => largeFile(repo, mib),
    'not-utf8': notUtf8,
    sources: twoSources,
    'dump-names': dumpNames,
    paths: equalNames,
    single,
    growing,
    threads: (repo) => threads(repo, seed, 'auto'),
    'threads-none': (repo) => threads(repo, seed, 'none'),
    costs: (repo) => costs(repo, seed),
  }
  for (const repo of run.repos)
    for (const name of shapes)
      if (!shape.length || shape.includes(name)) await run.row({ repo, variant: name }, () => rows[name](repo))
})

/** Data at both ends and just beyond 4 GiB, where 32 bits end. */
async function largeFile(repo: string, mib: number): Promise<void> {
  step('source')
  await $`mkdir source && truncate -s ${mib}M source/large`
  for (const at of ['0', '1', String(Math.min(4097, mib - 2)), String(mib - 1)])
    await $`head -c 1M /dev/urandom | dd of=source/large bs=1M seek=${at} conv=notrunc status=none`
  await config`
sources:
  - path: source
    label: large
`
  await fresh(repo)
  step('backup')
  await backup(repo, 'large')
  await listed('large', 'large.out', 'large.list')
  step('restore')
  await restore(repo, 'large')
  await sameTree('source', 'restored-large')
}

/** Names that are no UTF-8, of files with and without content, of a directory, of a symlink; the rest of the tree is complete. */
async function notUtf8(repo: string): Promise<void> {
  step('source')
  await $`mkdir -p source $'source/dir-\xff' && echo plain > source/plain && echo odd > $'source/odd-\xff' && : > $'source/empty-\xff' && echo inside > $'source/dir-\xff/inside' && ln -s plain $'source/link-\xff'`
  await config`
sources:
  - path: source
    label: odd
`
  await fresh(repo)
  step('backup')
  const code = await $({
    limit: '1h',
    expect: [0, 3],
  })`vykar --config config.yaml backup -R ${repo} > odd.out 2> odd.err`
  await $`sed -n 's/^Snapshot created: //p' odd.out > odd.id`
  step('restore')
  await restore(repo, 'odd')
  // What is restored is right, and complete but for what was announced.
  await $({ expect: [0, 1] })`diff -qr --no-dereference source restored-odd > odd.diff`
  await $`cmp source/plain restored-odd/plain && (cd source && find . -type f -size +0 | LC_ALL=C sort) > odd.was && (cd restored-odd && find . -type f -size +0 | LC_ALL=C sort) > odd.is && LC_ALL=C comm -23 odd.was odd.is > odd.missing`
  await check(`! grep -q '^Files ' odd.diff && ! grep -q 'Only in restored' odd.diff`, () => {
    const lines = read('odd.diff').split('\n').filter(Boolean)
    const wrong = lines.find((line) => !line.startsWith('Only in source'))
    if (wrong) throw new Mismatch(`a tree with names that are not UTF-8 came back wrong: ${wrong}`)
    if (lines.length && code.code === 0)
      throw new Mismatch(`exit 0, but ${lines.length} entries are missing: ${lines[0]}`)
    if (!lines.length && code.code === 3) throw new Mismatch('exit 3, but nothing is missing')
    // Files with content that are missing are named each; how a name is written that is no UTF-8 is vykar's own affair.
    for (const name of ['odd-', 'inside'])
      if (read('odd.missing').includes(name) && !new RegExp(`source/[^']*${name}`).test(read('odd.err')))
        throw new Mismatch(`exit ${code.code}, but ${name} is missing and not named`)
    const said = lines.length ? `${lines.length} entries whose names are not UTF-8 are left out, exit 3` : undefined
    finding('names-not-utf8-skipped', said)
    fact('left out', lines.length)
  })
}

/** Two sources in one config: two snapshots, each under its own label. */
async function twoSources(repo: string): Promise<void> {
  step('source')
  await $`mkdir -p one two && echo first > one/file && echo second > two/file`
  await config`
sources:
  - path: one
    label: one
  - path: two
    label: two
  - label: dumped
    command_dumps:
      - name: a.dump
        command: echo dump a
      - name: b.dump
        command: echo dump b
`
  await fresh(repo)
  step('backup')
  await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > all.out`
  await $`vykar --config config.yaml list -R ${repo} > all.list`
  await check('test "$(grep -c "^Snapshot created: " all.out)" = 3', () => {
    const created = parseBackup(read('all.out'))
    const labels = created.map(({ label }) => label).join()
    if (labels !== 'one,two,dumped')
      throw new Mismatch(`three sources, but backup made snapshots of: ${labels || 'none'}`)
    const missing = created.find(
      ({ id, label }) => !parseList(read('all.list')).some((s) => s.id === id && s.label === label),
    )
    if (missing) throw new Mismatch(`list does not show ${missing.id} of ${missing.label}`)
  })
  step('restore')
  for (const name of ['one', 'two', 'dumped']) {
    await $`grep -B1 '(label: ${{ raw: name }})' all.out | sed -n 's/^Snapshot created: //p' > ${name}.id`
    await restore(repo, name)
  }
  await sameTree('one', 'restored-one')
  await sameTree('two', 'restored-two')
  await $`echo 'dump a' | cmp - restored-dumped/vykar-dumps/a.dump && echo 'dump b' | cmp - restored-dumped/vykar-dumps/b.dump`
}

/** Files of the source's own where a dump is put in the snapshot: without dumps they are files as others; beside a dump none may vanish. */
async function dumpNames(repo: string): Promise<void> {
  step('source')
  await $`mkdir -p source/vykar-dumps && echo mine > source/vykar-dumps/a.dump && echo too > source/vykar-dumps/other && echo plain > source/plain`
  await config`
sources:
  - path: source
    label: named
`
  await fresh(repo)
  step('without dumps')
  await backup(repo, 'alone')
  await restore(repo, 'alone')
  await sameTree('source', 'restored-alone')
  step('beside a dump')
  await $`sed 's/^\( *\)label: named/&\n\1command_dumps: [{name: a.dump, command: echo dumped}]/' config.yaml > dumped.yaml`
  const met = await $({
    limit: '1h',
    expect: [0, 3],
  })`vykar --config dumped.yaml backup -R ${repo} > dumped.out 2> dumped.err`
  await $`sed -n 's/^Snapshot created: //p' dumped.out > dumped.id`
  await restore(repo, 'dumped')
  await $`echo dumped | cmp - restored-dumped/vykar-dumps/a.dump && cmp source/plain restored-dumped/plain`
  await $`cat restored-dumped/vykar-dumps/other > other.is || true`
  await check('# exit 0: what is no dump is there, too; exit 3: it is named', () => {
    const there = read('other.is') === 'too'
    const named = met.code === 3 && read('dumped.err').includes('vykar-dumps/other')
    const seen = 'a file below vykar-dumps/ of a source that has command_dumps is not in the snapshot, and backup'
    finding('dumps-hide-directory', there || named ? undefined : `${seen} exits ${met.code}`)
  })
}

/** Several paths in one source, two of which end in the same name, in another order the next time. */
async function equalNames(repo: string): Promise<void> {
  step('source')
  await $`mkdir -p a/data b/data c && echo a > a/data/file && echo b > b/data/file && echo c > c/file`
  await config`
sources:
  - paths:
      - a/data
      - b/data
      - c
    label: paths
`
  await fresh(repo)
  step('backup')
  await backup(repo, 'paths')
  step('restore')
  await restore(repo, 'paths')
  // Each path comes back below the full path that it had.
  for (const path of ['a/data', 'b/data', 'c']) {
    await $`found=$(find restored-paths -path ${`*/${path}/file`}) && test -n "$found" && cmp ${path}/file "$found"`
    await $`diff <(cd ${path} && ${{ raw: listing }}) <(cd restored-paths"$PWD"/${path} && ${{ raw: listing }})`
  }
  step('another order')
  await $`sed -i '/- a\/data/d; s|^\( *\)- c$|&\n\1- a/data|' config.yaml`
  await backup(repo, 'order')
  await restore(repo, 'order')
  await $`diff -r restored-paths restored-order`
  await check('# the same files in another order: next to nothing is stored again', () => {
    const { deduplicated } = parseBackup(read('order.out'))[0] ?? { deduplicated: 0 }
    if (deduplicated > 64 * 1024) throw new Mismatch(`the same paths in another order stored ${deduplicated} bytes`)
  })
}

/** A source that is a file, a symlink to a file or to a directory, and a directory named with a slash at its end. */
async function single(repo: string): Promise<void> {
  step('source')
  await $`mkdir tree && head -c 300k /dev/urandom > tree/file && ln -s tree/file link && ln -s tree via`
  const sources = [
    ['file', 'tree/file'],
    ['symlink', 'link'],
    ['slash', 'tree/'],
    ['directory-symlink', 'via'],
  ] as const
  await config`
sources:
  - path: tree/file
    label: file
`
  await fresh(repo)
  for (const [name, path] of sources) {
    step(name)
    await $`sed 's|- path: .*|- path: ${{ raw: path }}|; s/label: file/label: ${{ raw: name }}/' config.yaml > ${name}.yaml`
    await $({ limit: '1h' })`vykar --config ${name}.yaml backup -R ${repo} > ${name}.out`
    await $`vykar --config config.yaml list -R ${repo} > ${name}.list`
    await check(`grep -q ' ${name} ' ${name}.list`, () => {
      if (!parseList(read(`${name}.list`)).some((s) => s.label === name))
        throw new Mismatch(`${name}: exit 0, but list shows no snapshot of it`)
    })
    await $`sed -n 's/^Snapshot created: //p' ${name}.out > ${name}.id`
    await restore(repo, name)
    await $`found=$(find restored-${{ raw: name }} -type f) && test -n "$found" && cmp tree/file "$found" && test "$(stat -c '%a %u:%g %.9Y' tree/file)" = "$(stat -c '%a %u:%g %.9Y' "$found")"`
  }
}

/** A log that grows, and one that is cut, while they are read: left out with exit 3 or whole, and the rest complete. */
async function growing(repo: string): Promise<void> {
  step('source')
  await $`mkdir source && head -c 400M /dev/zero | openssl enc -aes-128-ctr -pass pass:seed -pbkdf2 > source/log 2> /dev/null && echo still > source/still`
  await config`
sources:
  - path: source
    label: growing
`
  await fresh(repo)
  step('backup')
  const writer = await background('writer')`(while true; do echo "one more line" >> source/log; sleep 0.001; done)`
  const code = await $({
    limit: '1h',
    expect: [0, 3],
  })`vykar --config config.yaml backup -R ${repo} > growing.out 2> growing.err`
  await writer.end('TERM')
  await $`sed -n 's/^Snapshot created: //p' growing.out > growing.id`
  step('restore')
  await restore(repo, 'growing')
  await $`cmp source/still restored-growing/still`
  await $`test ! -e restored-growing/log || cmp -n $(stat -c %s restored-growing/log) restored-growing/log source/log`
  await $`ls restored-growing > growing.there`
  await check('# exit 3: the log is named and left out; exit 0: it is there', () => {
    const there = read('growing.there').split('\n').includes('log')
    if (code.code === 3 && there) throw new Mismatch('exit 3, but the file that changed is in the snapshot')
    if (code.code === 3 && !/log/.test(read('growing.err'))) throw new Mismatch('exit 3, but the file is not named')
    if (code.code === 0 && !there) throw new Mismatch('exit 0, but the file that changed is missing')
    if (code.code === 0) throw new Blocked('the file did not grow while it was read')
    fact('a growing log', 'left out and named, exit 3; the rest is complete')
  })
}

/** Two ways through the same code, one promise: threads, and the file cache as it is, without it, and of another tree. */
async function threads(repo: string, seed: number, mode: 'auto' | 'none'): Promise<void> {
  step('source')
  await $({ limit: '30m' })`e2e data-gen/corpus --out corpus --gib 0.05 --churn 0 --seed ${seed}`
  await $`cp -a corpus/snapshot-1 source`
  await config`
sources:
  - path: source
    label: threads
encryption:
  mode: ${mode}
`
  await fresh(repo)
  await $`{ cat config.yaml; printf 'limits:\n  threads: 1\n'; } > one.yaml`
  const ways = {
    'one thread, cold': 'vykar --config one.yaml',
    'many threads, warm': 'vykar --config config.yaml',
    'many threads, cold': 'rm -rf cache && vykar --config config.yaml',
    moved: 'cp -a source moved && rm -r source && mv moved source && vykar --config config.yaml',
    'one thread, warm': 'vykar --config one.yaml',
  }
  for (const [n, [way, words]] of Object.entries(ways).entries()) {
    step(way)
    await $({ limit: '1h' })`${{ raw: words }} backup -R ${repo} > way-${n}.out`
    await $`sed -n 's/^Snapshot created: //p' way-${n}.out > way-${n}.id`
    await $`vykar --config config.yaml snapshot list -R ${repo} --long $(<way-${n}.id) > way-${n}.listing`
    await $`diff <(sort way-0.listing) <(sort way-${n}.listing)`
    // Types, modes and times of what has plain names, as find sees them.
    if (!n)
      await $`sed -nE 's/^-/f/; s/^([fdl])0*([0-7]+) +[0-9.]+ ([KMGT]i)?B ([0-9-]+ [0-9:]+) (dir-.*)/\1\2 \4 \5/p' way-0.listing | sort > told && test -s told && diff told <((cd source && find dir-* \( -type f -o -type d -o -type l \) -printf '%y%m %TY-%Tm-%Td %TH:%TM:%TS %p\n') | sed -E 's/\.[0-9]+ / /' | sort)`
    await restore(repo, `way-${n}`)
    await sameTree('source', `restored-way-${n}`)
    await $`chmod -R u+rwX restored-way-${{ raw: String(n) }} && rm -r restored-way-${{ raw: String(n) }}`
    if (n)
      await check(`# ${way}: nothing is stored again`, () => {
        const { deduplicated } = parseBackup(read(`way-${n}.out`))[0] ?? { deduplicated: Number.NaN }
        if (!(deduplicated < 2 ** 20))
          throw new Mismatch(`${way}: an unchanged tree stored ${deduplicated} bytes again`)
      })
  }
}

/** What is read again of a tree that has not changed, when what is around it in the config has. */
async function costs(repo: string, seed: number): Promise<void> {
  step('source')
  await $({ limit: '30m' })`e2e data-gen/corpus --out corpus --gib 0.1 --churn 0 --plain --seed ${seed}`
  await $`mkdir tree && cp -a corpus/snapshot-1 tree/a && cp -a corpus/snapshot-1/dir-0 tree/b && mkdir other && head -c 1M /dev/urandom > other/file`
  await config`
sources:
  - paths:
      - tree/a
      - tree/b
    label: costs
`
  await fresh(repo)
  const ways: [way: string, line: string][] = [
    ['first', 'true'],
    ['unchanged', 'true'],
    ['another order', "sed -i '/- tree\\/a/d; s|^\\( *\\)- tree/b$|&\\n\\1- tree/a|' config.yaml"],
    ['renamed label', "sed -i 's/label: costs/label: renamed/' config.yaml"],
    ['added path', "sed -i 's|^\\( *\\)- tree/b$|&\\n\\1- other|' config.yaml"],
    ['added source', "sed -i 's|^sources:|&\\n  - path: other\\n    label: other|' config.yaml"],
  ]
  for (const [n, [way, line]] of Object.entries(ways)) {
    step(way)
    await $`${{ raw: line }}`
    // What bash has read after `wait` is what its children have read.
    await $({
      limit: '1h',
    })`bash -c 'vykar --config config.yaml backup -R ${repo} > cost-${n}.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > cost-${n}.read`
    await check(`# ${way}: next to nothing is read`, () => {
      const [first, now] = [Number(read('cost-0.read')), Number(read(`cost-${n}.read`))]
      fact(`${way}: read (bytes)`, now)
      const whole = parseBackup(read('cost-0.out'))[0]?.original ?? 0
      if (first < whole / 2) throw new Mismatch(`the first backup has read ${first} of ${whole} bytes: nothing can be said of the next`) // biome-ignore format: one line
      if (n !== '0' && now > first / 4) throw new Mismatch(`${way}: ${now} bytes of an unchanged tree were read again, the first backup read ${first}`) // biome-ignore format: one line
    })
  }
  await $`sed -n 's/^Snapshot created: //p' cost-5.out | tail -n 1 > costs.id`
  await restore(repo, 'costs')
  for (const path of ['tree/a', 'tree/b', 'other'])
    await $`found=$(find restored-costs -type d -path ${`*/${path}`}) && diff -r --no-dereference ${path} "$found"`
}
