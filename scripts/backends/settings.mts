#!/usr/bin/env -S npx tsx
// What a config says, and what is done: settings of one source beside another's, several repositories in one config, several hosts and labels
// in one repository, encryption asked for by name, commands that only say what they would do, and settings that are wrong.
// Passes when each setting holds for what it is said of and for nothing else, every repository has its own snapshots, a dry run changes
// nothing, and what cannot work is refused before anything is backed up.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, rowScope, step } from '#lib/sh.mts'
import { Mismatch, UsageError } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { fresh, noIgnoreAbove, serverWants } from '#scripts/common.mts'
import { finding } from '#scripts/findings.mts'
import { parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'

const choices = { sources, 'dry-runs': dryRuns, repositories, hosts, modes, wrong }
/** Those that make repositories of their own, in the row's directory. */
const local = ['repositories', 'hosts', 'modes', 'wrong']

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
  await state('was')
  for (const [name, words] of [
    ['prune', 'prune --dry-run --list'],
    ['compact', 'compact --dry-run --threshold 0'],
    ['repair', 'check --repair --dry-run'],
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
  await $`for n in 1 2; do grep -q "$(sed -n 's/^Snapshot created: //p' $n.out)" prune.said || exit 1; done  # it named what went`
  step('compact as it is')
  // Seven eighths of a pack are garbage by now: without a flag, too, they are given back.
  await $`vykar --config config.yaml compact -R ${repo} > compact.out`
  if (seen)
    await $`test "$(find "$${{ raw: seen }}"/packs -type f -printf '%s\n' | awk '{n += $1} END {print n + 0}')" -lt 6000000  # 4 MiB are needed`
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
    await $`vykar --config alpha.yaml init > init.out 2>&1 && for n in 1 2 3; do vykar --config alpha.yaml backup > alpha.out; done && vykar --config beta.yaml backup > beta.out && vykar --config beta.yaml prune > prune.out && vykar --config alpha.yaml list > alpha.list`
    await check('# what another client has backed up is kept, as its own retention says', () => {
      const left = parseList(read('alpha.list')).filter(({ host }) => host === 'vykar-e2e').length
      fact(what, `${left} of 3 snapshots of the other client are left`)
      if (left > 3) throw new Mismatch(`list shows ${left} snapshots of three`)
      finding(
        id,
        left < 3 ? `a client that prunes its own snapshots has removed ${3 - left} of 3 of ${what}` : undefined,
      )
    })
    await $`vykar --config beta.yaml compact > compact.out && vykar --config beta.yaml check --verify-data > check.out 2>&1`
  }
  await $`rm -rf repo`
}

/** Encryption that is asked for by name, with a passphrase that a command gives. */
async function modes(): Promise<void> {
  step('source')
  await $`mkdir source && head -c 1M /dev/urandom > source/file && echo planted-modes > source/words && head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' > pass && chmod 600 pass`
  for (const mode of ['aes256gcm', 'chacha20poly1305']) {
    step(mode)
    await $`printf 'hostname: vykar-e2e\ncache_dir: cache\nrepositories: [{label: r, url: ./%s}]\nencryption: {mode: %s, passcommand: "cat pass"}\nsources: [{path: source, label: tree}]\n' ${mode} ${mode} > ${mode}.yaml`
    await $`env -u VYKAR_PASSPHRASE vykar --config ${mode}.yaml init > init.out 2>&1 && env -u VYKAR_PASSPHRASE vykar --config ${mode}.yaml backup > backup.out && env -u VYKAR_PASSPHRASE vykar --config ${mode}.yaml info > info.out && grep -qE '^ *Encryption +${{ raw: mode }} *$' info.out`
    await $`! grep -raF -m 1 planted-modes ${mode} cache || exit 1`
    // Argon2id at no less than vykar 0.19.1 has it, 3 passes over 64 MiB (0x00010000 KiB), as msgpack writes them (RFC 9106, 4).
    await $`LC_ALL=C grep -qaP '(?s)argon2id[\x03-\x7f]\xce(\x00[\x01-\xff]|[\x01-\xff].)..[\x01-\x7f]' ${mode}/keys/repokey  # the key is derived at its full cost`
    await $`rm -rf cache lost && mkdir lost && sed '/passcommand/s/, passcommand: "cat pass"//' ${mode}.yaml > asked.yaml`
    await $({ expect: [1] })`VYKAR_PASSPHRASE=123 vykar --config asked.yaml restore latest lost > wrong.out 2>&1`
    await $`VYKAR_PASSPHRASE=$(<pass) vykar --config asked.yaml restore latest lost > restored.out && diff -r source lost`
  }
  await $`rm pass`
}

/** What cannot be what the user meant, or can never work, is refused. */
async function wrong(): Promise<void> {
  step('source')
  await $`mkdir source && echo data > source/file`
  const base = 'hostname: vykar-e2e\ncache_dir: cache\nencryption: {mode: none}\nsources: [{path: source, label: tree}]'
  step('URLs of other tools')
  // What borg, restic and rclone call a server, and a slash too few.
  for (const [n, url] of [
    'sftp:user@127.0.0.1:/backup',
    'user@127.0.0.1:/backup',
    's3:127.0.0.1/bucket',
    'rclone:remote:x',
    'https:/127.0.0.1/x',
  ].entries()) {
    await $`mkdir at-${n} && (cd at-${n} && ln -s ../source . && printf '%s\nrepositories: [{label: r, url: "%s"}]\n' ${base} ${url} > wrong.yaml && rc=0 && { timeout 30 vykar --config wrong.yaml init > init.out 2>&1 || rc=$?; } && echo $rc > init.code && find . -mindepth 2 -name config > made)`
  }
  await $`cat at-*/made > made`
  await check('# no repository in a local directory', () => {
    const made = read('made').split('\n').filter(Boolean)[0]
    finding(
      'foreign-url-becomes-directory',
      made ? `a URL as other tools write it makes a local repository: ${made}` : undefined,
    )
  })
  step('pack sizes')
  await $`printf '%s\nrepositories: [{label: r, url: ./packs, max_pack_size: 10000000}]\n' ${base} > packs.yaml`
  const made = await $({ expect: 'any' })`timeout 30 vykar --config packs.yaml init > packs.init 2>&1`
  const used = await $({ expect: 'any' })`ulimit -c 0; timeout 30 vykar --config packs.yaml backup > packs.out 2>&1`
  await check('# refused at init, or it works', () => {
    fact('max_pack_size below the default minimum', `init: exit ${made.code}, backup: exit ${used.code}`)
    finding(
      'pack-sizes-unusable',
      made.code === 0 && used.code !== 0
        ? `init takes a max_pack_size below the minimum, and every backup then ends with exit ${used.code}`
        : undefined,
    )
  })
  step('a source that is missing')
  await $`printf '%s\nrepositories: [{label: r, url: ./missing}]\n' ${base.replace('[{', '[{path: nowhere, label: nowhere}, {')} > missing.yaml && vykar --config missing.yaml init > missing.init 2>&1`
  const met = await $({ expect: [1, 2, 3] })`vykar --config missing.yaml backup > missing.out 2>&1`
  await $`vykar --config missing.yaml list > missing.list`
  await check('# the sources that are there are backed up all the same', () => {
    fact('one of two sources is missing', `backup: exit ${met.code}`)
    const there = /^ *[0-9a-f]{8} .* tree /m.test(read('missing.list'))
    finding(
      'missing-source-stops-others',
      there ? undefined : 'one source is missing, and the other, which is there, is not backed up',
    )
  })
}
