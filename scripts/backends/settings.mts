#!/usr/bin/env -S npx tsx
// What a config says, and what is done: settings of one source beside another's, several repositories in one config, several hosts and labels
// in one repository, a machine that only prunes, and commands that only say what they would do.
// Passes when each setting holds for what it is said of and for nothing else, every repository has its own snapshots, every label keeps what
// the retention says, and a dry run changes nothing.
import { config } from '#lib/config.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, rowScope, step } from '#lib/sh.mts'
import { Mismatch, Skipped, UsageError } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { fresh, noIgnoreAbove, serverWants } from '#scripts/common.mts'
import { finding } from '#scripts/findings.mts'
import { parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'

const choices = { sources, 'dry-runs': dryRuns, repositories, hosts, central, expired }
/** Those that make repositories of their own, in the row's directory. */
const local = ['repositories', 'hosts', 'central', 'expired']

const options = {
  choice: { kind: 'list', help: 'what to try, all unless told', choices: Object.keys(choices) },
} as const
const spec = { needs: standardNeeds, wants: serverWants, options } as const

await scenario(import.meta, spec, async (run) => {
  const { choice } = run.options
  if (choice.length && !run.repos.includes('local') && choice.every((name) => local.includes(name)))
    throw new UsageError(`--choice ${choice.join()} makes repositories of its own: name local in --repo`)
  await servers()
  for (const repo of run.repos)
    for (const [name, row] of Object.entries(choices))
      if ((!choice.length || choice.includes(name)) && (repo === 'local' || !local.includes(name)))
        await run.row({ repo, variant: name }, () => row(repo))
})

/** The labels of the snapshots that `list` has written into a file, sorted. */
function labels(file: string): string {
  return rowScope().dry ? '' : parseList(read(file)).map(({ label }) => label).sort().join(' ') // biome-ignore format: one line
}

/** Two sources that differ in every setting that a source may have: each holds for its own, and `-S` names one of them. */
async function sources(repo: string): Promise<void> {
  step('source')
  await $`mkdir -p one/marked two/marked && for name in file keep.log marked/.skip marked/inside ignored; do echo "1 $name" > one/$name; echo "2 $name" > two/$name; done && echo ignored | tee one/.gitignore > two/.gitignore`
  await config`
sources:
  - path: one
    label: one
    exclude: ['*.log']
    git_ignore: true
    retention: {keep_last: 1}
  - path: two
    label: two
    exclude_if_present: [.skip]
    git_ignore: false
    retention: {keep_last: 2}
`
  await noIgnoreAbove()
  await fresh(repo)
  step('each its own')
  await $`vykar --config config.yaml backup -R ${repo} > all.out`
  for (const [name, lacks] of [
    ['one', '-name *.log -o -name ignored'],
    ['two', '-path ./marked/*'],
  ] as const) {
    await $`grep -B1 '(label: ${{ raw: name }})' all.out | sed -n 's/^Snapshot created: //p' > ${name}.id && rm -rf lost && mkdir lost restored-${{ raw: name }} && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<${{ raw: name }}.id) restored-${{ raw: name }}`
    await $`(set -f; diff <(cd ${name} && find . -type f ! \( ${{ raw: lacks }} \) -exec sha256sum {} + | sort) <(cd restored-${{ raw: name }} && find . -type f -exec sha256sum {} + | sort))`
  }
  step('one of them')
  await $`vykar --config config.yaml backup -R ${repo} -S two > two.out && vykar --config config.yaml backup -R ${repo} -S two > two.out && test "$(grep -c '^Snapshot created: ' two.out)" = 1 && grep -q '(label: two)' two.out`
  await $`vykar --config config.yaml backup -R ${repo} -S one > one.out && vykar --config config.yaml list -R ${repo} > before.list`
  step('retention of each')
  await $`vykar --config config.yaml prune -R ${repo} -S two > prune-two.out && vykar --config config.yaml list -R ${repo} > two.list`
  await $`vykar --config config.yaml prune -R ${repo} > prune.out && vykar --config config.yaml list -R ${repo} > after.list`
  await check('# prune -S two leaves one alone, and each keeps as many as its own retention says', () => {
    for (const [file, wanted] of [
      ['before.list', 'one one two two two'],
      ['two.list', 'one one two two'],
      ['after.list', 'one two two'],
    ] as const)
      if (labels(file) !== wanted) throw new Mismatch(`${file}: snapshots of ${labels(file)} instead of ${wanted}`)
  })
  await $`sed -n 's/^Snapshot created: //p' one.out two.out | while read -r id; do grep -q "^ *$id " after.list || exit 1; done  # the newest are kept`
}

/** What prune, compact and check --repair would do, they do not; and prune does what it said. */
async function dryRuns(repo: string): Promise<void> {
  const { seen } = rowScope().run.endpoint(repo)
  step('source')
  await $`mkdir source`
  await config`
sources:
  - path: source
    label: tree
retention:
  keep_last: 2
`
  await fresh(repo)
  // One pack of eight files, of which one stays.
  await $`head -c 7M /dev/urandom | split -b 1M - source/extra- && for n in 1 2 3 4; do head -c 1M /dev/urandom > source/file-$n; vykar --config config.yaml backup -R ${repo} > $n.out; rm -f source/extra-*; done`
  const files = `find "$${seen}" -type f -printf '%P %s\\n' | sort`
  const state = (name: string) =>
    $`vykar --config config.yaml list -R ${repo} > ${name}.list && vykar --config config.yaml info -R ${repo} | sed '/^ Created/d' > ${name}.info${{ raw: seen ? ` && ${files} > ${name}.files` : '' }}`
  await $`sed -n 's/^Snapshot created: //p' 4.out > newest.id`
  await state('was')
  for (const [name, words] of [
    ['prune', 'prune --dry-run --list'],
    ['compact', 'compact --dry-run --threshold 0'],
    ['repair', 'check --repair --dry-run'],
    ['delete', 'snapshot delete --dry-run $(<newest.id)'],
  ] as const) {
    step(`${name} --dry-run`)
    await $`vykar --config config.yaml ${{ raw: words }} -R ${repo} > ${name}.said 2>&1 < /dev/null`
    await state('is')
    await $`cmp was.list is.list && cmp was.info is.info`
    if (seen) await $`diff was.files is.files`
  }
  step('prune as it said')
  await $`vykar --config config.yaml prune -R ${repo} > pruned.out && vykar --config config.yaml list -R ${repo} > pruned.list && vykar --config config.yaml check -R ${repo} > check.out 2>&1`
  await $`sed -n 's/^Snapshot created: //p' 3.out 4.out | sort > kept && diff kept <(grep -oE '^ *[0-9a-f]{8} ' pruned.list | tr -d ' ' | sort)`
  await $`for n in 1 2 3 4; do (((n > 2)) && echo keep || echo prune) | sed "s/\$/ $(sed -n 's/^Snapshot created: //p' $n.out)/"; done | sort > meant && diff meant <(sed -nE 's/^ *(keep|prune) +([0-9a-f]{8}).*/\1 \2/p' prune.said | sort)  # it named what goes and what stays`
  step('compact as it is')
  // Seven eighths of a pack are garbage by now: without a flag, too, they are given back.
  const small = (below: number) =>
    $`test "$(find "$${{ raw: seen! }}"/packs -type f -printf '%s\n' | awk '{n += $1} END {print n + 0}')" -lt ${below}`
  await $`vykar --config config.yaml compact -R ${repo} > compact.out`
  if (seen) await small(6_000_000) // 4 MiB are needed.
  /** What is kept is whole, whatever was given back. */
  const whole = (of: string) =>
    $`vykar --config config.yaml check -R ${repo} --verify-data > whole.check 2>&1 && grep -q ', 0 errors$' whole.check && rm -rf lost whole && mkdir lost whole && sed 's|^cache_dir: .*|cache_dir: lost|' config.yaml > lost.yaml && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(sed -n 's/^Snapshot created: //p' ${of}) whole > whole.out && diff -r source whole`
  await whole('4.out')
  step('prune and compact at once')
  await $`sed 's/keep_last: 2/keep_last: 1/' config.yaml > one.yaml && head -c 7M /dev/urandom > source/large && vykar --config config.yaml backup -R ${repo} > large.out && rm source/large && vykar --config config.yaml backup -R ${repo} > small.out && vykar --config one.yaml prune --compact -R ${repo} > at-once.out && vykar --config config.yaml list -R ${repo} > once.list && test "$(grep -cE '^ *[0-9a-f]{8} ' once.list)" = 1`
  if (seen) await small(6_000_000)
  await whole('small.out')
  if (repo !== 'local') return
  step('delete takes its own')
  await $({
    warns: /unknown entries were not removed/,
  })`cp -a "$${{ raw: seen ?? 'REPO_LOCAL' }}" copy && cp -a copy copy-sibling && cp -a copy copy2 && echo mine > copy/letter && REPO_LOCAL=$PWD/copy vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo > deleted.out 2>&1`
  await $`diff -r copy-sibling copy2 && test "$(find copy -type f)" = copy/letter && rm -r copy copy2 copy-sibling`
}

/** Two repositories in one config, of which one is not encrypted, no `-R`: each has got its own, from one cache. */
async function repositories(): Promise<void> {
  step('source')
  await $`mkdir -p one two && head -c 2M /dev/urandom > one/file && echo two > two/file && echo ${'planted-two-repositories'} >> one/words`
  await $`cat > two.yaml <<'EOF'
hostname: vykar-e2e
cache_dir: cache
repositories:
  - {label: a, url: ./a/repository, encryption: {mode: chacha20poly1305}, retention: {keep_last: 1}}
  - {label: b, url: ./b/repository, encryption: {mode: none}, retention: {keep_last: 9}}
sources:
  - {path: one, label: one}
  - {path: two, label: two, repos: [b]}
EOF
sed 's/cache_dir: cache/cache_dir: lost/' two.yaml > lost.yaml`
  await $`vykar --config two.yaml init > init.out 2>&1`
  step('both')
  await $`vykar --config two.yaml backup > first.out && echo more >> one/file && vykar --config two.yaml backup > second.out`
  for (const [label, mode, wanted] of [
    ['a', 'chacha20poly1305', 'one one'],
    ['b', 'none', 'one one two two'],
  ] as const) {
    await $`vykar --config two.yaml info -R ${label} > ${label}.info && grep -qE '^ *Encryption +${{ raw: mode }} *$' ${label}.info && vykar --config two.yaml list -R ${label} > ${label}.list`
    await check(`# ${label} holds ${wanted}`, () => {
      const found = labels(`${label}.list`)
      if (found !== wanted)
        throw new Mismatch(`repository ${label} holds snapshots of ${found || 'nothing'} instead of ${wanted}`)
    })
    await $`rm -rf lost back && mkdir lost back && id=$(awk '/ one /{id = $1} END {print id}' ${label}.list) && HOME=$PWD/lost vykar --config lost.yaml restore -R ${label} $id back && diff -r one back`
    await $`vykar --config two.yaml check -R ${label} --verify-data > ${label}.check 2>&1`
  }
  await $`grep -rqaF planted-two-repositories b/repository && ! grep -raF -m 1 planted-two-repositories a/repository || exit 1`
  step('retention of each')
  await $`vykar --config two.yaml prune > prune.out && test "$(vykar --config two.yaml list -R a | grep -c ' one ')" = 1 && vykar --config two.yaml list -R b > b.list`
  await $`test "$(grep -cE '^ *[0-9a-f]{8} ' b.list)" = 4`
  step('one is not there')
  await $`mv b away && echo again >> one/file`
  await $({ expect: [1, 3] })`vykar --config two.yaml backup > gone.out 2>&1`
  await $`test -z "$(find b -type f 2> /dev/null)" && vykar --config two.yaml list -R a > a.list && test "$(grep -cE '^ *[0-9a-f]{8} ' a.list)" = 2  # what is there has got its own`
  await $`rm -rf a b away`
}

/** Two clients on one repository, each with its own retention: one of them prunes. */
async function hosts(): Promise<void> {
  step('source')
  await $`mkdir source && echo data > source/file`
  const client = (name: string, host: string, label: string, keep: number) =>
    $`printf 'hostname: %s\ncache_dir: cache-%s\nrepositories: [{label: r, url: ./%s/repository}]\nencryption: {mode: none}\nsources: [{path: source, label: %s}]\nretention: {keep_last: %s}\n' ${host} ${name} repo ${label} ${String(keep)} > ${name}.yaml`
  for (const [what, label, id] of [
    ['another host, the same label', 'data', 'prune-takes-other-hosts'],
    ['another label', 'other', 'prune-takes-other-labels'],
  ] as const) {
    step(what)
    await $`rm -rf repo cache-*`
    await client('alpha', 'vykar-e2e', 'data', 9)
    await client('beta', 'vykar-e2e-beta', label, 1)
    await $`vykar --config alpha.yaml init > init.out 2>&1 && for n in 1 2 3; do vykar --config alpha.yaml backup > alpha.out || exit 1; done && vykar --config beta.yaml backup > beta.out && vykar --config beta.yaml prune > prune.out && vykar --config alpha.yaml list > alpha.list && grep -q "^ *$(sed -n 's/^Snapshot created: //p' beta.out) " alpha.list  # its own is kept`
    await check('# what another client has backed up is kept, as its own retention says', () => {
      const left = parseList(read('alpha.list')).filter(({ host }) => host === 'vykar-e2e').length
      fact(what, `${left} of 3 snapshots of the other client are left`)
      // With labels of their own one of each is left; anything else is no known finding.
      if (left !== 3 && left !== (label === 'data' ? 0 : 1))
        throw new Mismatch(`${left} snapshots of three of the other client are left`)
      finding(
        id,
        left < 3 ? `a client that prunes its own snapshots has removed ${3 - left} of 3 of ${what}` : undefined,
      )
    })
    await $`vykar --config beta.yaml compact > compact.out && vykar --config beta.yaml check --verify-data > check.out 2>&1`
  }
  await $`rm -rf repo`
}

/** A machine that only prunes: its config names no source, and every label keeps what the retention says of each. */
async function central(): Promise<void> {
  step('source')
  await $`mkdir source && echo data > source/file`
  const base =
    'hostname: vykar-e2e\ncache_dir: cache\nrepositories: [{label: r, url: ./repo}]\nencryption: {mode: none}'
  await $`for label in web mail; do printf '%b\nsources: [{path: source, label: %s}]\n' ${base} $label > $label.yaml; done && printf '%b\nretention: {keep_last: 1}\n' ${base} > central.yaml`
  await $`vykar --config web.yaml init > init.out 2>&1 && for label in web web web mail; do vykar --config $label.yaml backup > backup.out || exit 1; sed -n 's/^Snapshot created: //p' backup.out > $label.id; done`
  step('prune')
  await $`vykar --config central.yaml prune > prune.out && vykar --config central.yaml list > list.out`
  await check('# the newest of each label is left', () => {
    if (labels('list.out') !== 'mail web')
      throw new Mismatch(`pruned without sources: snapshots of ${labels('list.out') || 'nothing'} instead of mail web`)
  })
  await $`for label in web mail; do grep -q "^ *$(<$label.id) " list.out || exit 1; done`
  await $`rm -r repo`
}

/** A label that is backed up no more: what its age says of it stops no other label from being pruned. */
async function expired(): Promise<void> {
  if (!rowScope().dry && !which('faketime'))
    throw new Skipped('faketime is missing, which makes snapshots of long ago: apt-get install -y faketime')
  step('source')
  await $`mkdir source && echo data > source/file`
  const base =
    'hostname: vykar-e2e\ncache_dir: cache\nrepositories: [{label: r, url: ./repo}]\nencryption: {mode: none}'
  await $`for label in retired alive; do printf '%b\nsources: [{path: source, label: %s}]\nretention: {keep_within: 30d}\n' ${base} $label > $label.yaml; done`
  await $`vykar --config retired.yaml init > init.out 2>&1 && faketime -f -60d vykar --config retired.yaml backup > retired.out && faketime -f -40d vykar --config alive.yaml backup > old.out && vykar --config alive.yaml backup > new.out`
  step('prune')
  const met = await $({ expect: [0, 1] })`vykar --config alive.yaml prune > prune.out 2>&1`
  await $`vykar --config alive.yaml list > list.out && grep -q "$(sed -n 's/^Snapshot created: //p' new.out)" list.out`
  await check('# of the label that is alive the old one is gone', () => {
    const kept = labels('list.out')
      .split(' ')
      .filter((label) => label === 'alive').length
    fact('a label that is all expired', `prune: exit ${met.code}, ${kept} of 2 snapshots of the other label are left`)
    const refused = met.code === 1 && /would remove ALL/.test(read('prune.out'))
    if (kept > 1 && !refused) throw new Mismatch(`prune exits ${met.code}, and what has expired is left`)
    finding(
      'expired-label-stops-prune',
      kept > 1 ? `prune exits ${met.code} and prunes no label, because one label has old snapshots alone` : undefined,
    )
  })
  await $`rm -r repo`
}
