#!/usr/bin/env -S npx tsx
// What a config file may say and what it may not: the short form of sources, keys that are misspelt, settings that cannot work, encryption asked
// for by name, passphrases that a command gives, a repository that is another one than before, and questions that nobody answers.
// Passes when every form of the file means what the documentation says, what is wrong is refused before anything is done, encryption is what was
// asked for, no nonce is used twice, and blobs that have changed places are refused.
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { finding } from '#scripts/findings.mts'

const choices = { forms, typos, wrong, passcommands, modes, swapped, asked, identity, questions }
const options = {
  choice: { kind: 'list', help: 'what to try, all unless told', choices: Object.keys(choices) },
} as const
// The repositories are in the row's directory: what a config says is read before any server is asked.
const spec = { needs: standardNeeds, repos: ['local'], options } as const

await scenario(import.meta, spec, async (run) => {
  const { choice } = run.options
  for (const [name, row] of Object.entries(choices))
    if (!choice.length || choice.includes(name)) await run.row({ repo: 'local', variant: name }, row)
})

/** The beginning of every config here. */
function base(mode = 'none'): string {
  return `hostname: vykar-e2e\\ncache_dir: cache\\nencryption: {mode: ${mode}}\\nrepositories: [{label: r, url: ./repo}]`
}

/** Sources as plain paths, which all come into one snapshot; a config that is found in the directory, or named by a variable. */
async function forms(): Promise<void> {
  step('source')
  await $`mkdir one two && head -c 1M /dev/urandom > one/file && echo two > two/file`
  await $`printf '%b\nsources: ["%s", "%s"]\n' ${base()} "$PWD/one" "$PWD/two" > vykar.yaml && cp vykar.yaml config.yaml`
  step('plain paths')
  await $`vykar --config config.yaml init > init.out 2>&1 && vykar --config config.yaml backup > backup.out && vykar --config config.yaml list > list.out && test "$(grep -cE '^ *[0-9a-f]{8} ' list.out)" = 1`
  await $`mkdir back && HOME=$PWD/back vykar --config config.yaml restore latest back > restored.out && diff -r one "back$PWD/one" && diff -r two "back$PWD/two"`
  step('a config that is found')
  await $`vykar list > found.out && diff list.out found.out && mkdir away && { ! (cd away && VYKAR_CONFIG=../named.yaml vykar list > ../lacks.out 2>&1) || exit 1; }`
  await $`rm vykar.yaml && sed 's#\./repo#../repo#; s#: cache$#: ../cache#' config.yaml > named.yaml && (cd away && VYKAR_CONFIG=../named.yaml vykar list > ../named.out) && diff list.out named.out`
  await $`rm -r repo`
}

/** A key that is misspelt is refused: nobody sees that it does nothing, until the backup is needed. */
async function typos(): Promise<void> {
  step('source')
  await $`mkdir source && echo data > source/file && printf '%b\nsources: [{path: source, label: tree}]\n' ${base()} > right.yaml && vykar --config right.yaml init > init.out 2>&1 && vykar --config right.yaml backup > right.out`
  step('keys of the config')
  for (const [key, line] of [
    ['exclude_pattern', 'exclude_pattern: [x]'],
    ['encrypton', 'encrypton: {mode: auto}'],
    ['keep_dialy', 'retention: {keep_dialy: 1}'],
    ['befor', 'hooks: {befor: x}'],
    ['enable', 'xattrs: {enable: false}'],
    ['min_sze', 'chunker: {min_sze: 5}'],
  ] as const)
    await $`{ cat right.yaml; echo ${line}; } > typo.yaml && rc=0 && { vykar --config typo.yaml backup > typo.out 2>&1 || rc=$?; } && test $rc = 1 && grep -qw ${key} typo.out`
  await $`sed 's#url: ./repo#&, min_pack_sze: 1#' right.yaml > typo.yaml && rc=0 && { vykar --config typo.yaml backup > typo.out 2>&1 || rc=$?; } && test $rc = 1 && grep -qw min_pack_sze typo.out`
  step('keys of a source')
  await $`echo secret > source/id.key && : > taken`
  for (const key of ['excludes: ["*.key"]', 'repo: [another]', 'one_file_sytem: true', 'retentions: {keep_last: 1}']) // biome-ignore format: one line
    await $`sed ${`s#label: tree#&, ${key}#`} right.yaml > typo.yaml && { vykar --config typo.yaml backup > typo.out 2>&1 && echo ${key} >> taken || true; }`
  await check('# a misspelt key of a source is refused', () => {
    const taken = read('taken').split('\n').filter(Boolean)
    finding(
      'source-keys-ignored',
      taken.length ? `a source with \`${taken[0]}\` is backed up as if it were not there` : undefined,
    )
  })
  await $`rm -r repo`
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
    const codes = ['0', '1', '2', '3', '4'].map((n) => read(`at-${n}/init.code`))
    const odd = codes.find((code) => !['0', '1', '2'].includes(code))
    if (odd) throw new Mismatch(`init with a URL as other tools write it exits ${odd}`)
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
  step('values')
  // What the documentation gives as a value is one; what it does not is refused, and not taken for another.
  const tried = async (name: string, repo: string, more: string, words: string) => {
    await $`printf '%s\nrepositories: [{label: r, url: ./%s}]\n%b\n' ${base} ${repo} ${more} > ${name}.yaml && { test -e ${repo}/config || vykar --config ${name}.yaml init > ${name}.init 2>&1 || true; }`
    return (
      await $({
        expect: 'any',
      })`ulimit -c 0; THREE=3 timeout 60 vykar --config ${name}.yaml ${{ raw: words }} > ${name}.out 2>&1`
    ).code
  }
  const never = await tried('never', 'values', 'check: {full_every: null}', 'check')
  const level = await tried('level', 'values', 'compression: {algorithm: zstd, zstd_level: 999}', 'backup')
  const flow = await tried('flow', 'values', 'limits: {connections: ${THREE}}', 'list')
  const block = await tried('block', 'values', 'limits:\\n  connections: ${THREE}', 'list')
  const dumped = await tried('dumped', 'dump-names', '', 'list')
  await $`sed 's#label: tree#&, command_dumps: [{name: "..", command: "echo hi"}]#' dumped.yaml > dotted.yaml`
  const dotted = await $({ expect: 'any' })`timeout 60 vykar --config dotted.yaml backup > dotted.out 2>&1`
  const brought = await $({
    expect: 'any',
  })`mkdir dotted && timeout 60 vykar --config dotted.yaml restore latest dotted > dotted.restored 2>&1`
  await check('# what is documented works, what cannot be is refused', () => {
    if (block || dumped) throw new Mismatch(`a config that is right ends with exit ${block || dumped}`)
    finding('full-every-null-refused', never ? `check: {full_every: null} is refused: exit ${never}` : undefined)
    finding('zstd-level-unchecked', level === 0 ? 'zstd_level: 999 is taken' : undefined)
    finding('flow-variables-refused', flow ? `limits: {connections: \${THREE}} is refused: exit ${flow}` : undefined)
    const lost = dotted.code === 0 && brought.code !== 0
    finding(
      'dump-name-unrestorable',
      lost ? `a dump named \`..\` is backed up with exit 0, and nothing of its snapshot can be restored` : undefined,
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

/** Commands that give no passphrase: what they print is none, and no repository is made with it. */
async function passcommands(): Promise<void> {
  step('locked')
  await $`mkdir source && echo data > source/file`
  for (const command of ['echo locked; exit 1', 'true', 'false'])
    await $`printf '%b\nsources: [{path: source, label: tree}]\n' ${base(`aes256gcm, passcommand: "${command}"`)} > locked.yaml && rc=0 && { env -u VYKAR_PASSPHRASE timeout 60 vykar --config locked.yaml init > locked.out 2>&1 < /dev/null || rc=$?; } && test $rc = 1 && grep -q passcommand locked.out && test ! -e repo/config`
  await $`printf '%b\n' ${base('aes256gcm')} > empty.yaml && rc=0 && { VYKAR_PASSPHRASE= timeout 60 vykar --config empty.yaml init > empty.out 2>&1 < /dev/null || rc=$?; } && test $rc = 1 && grep -qi passphrase empty.out && test ! -e repo/config  # an empty passphrase`
}

/** Encryption that is asked for by name, with a passphrase that a command gives. */
async function modes(): Promise<void> {
  step('source')
  await $`mkdir source && head -c 1M /dev/urandom > source/file && echo planted-modes > source/words && head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' > pass && chmod 600 pass`
  for (const mode of ['aes256gcm', 'chacha20poly1305']) {
    step(mode)
    await $`printf 'hostname: vykar-e2e\ncache_dir: cache\nrepositories: [{label: r, url: ./%s}]\nencryption: {mode: %s, passcommand: "cat pass"}\nsources: [{path: source, label: tree}]\n' ${mode} ${mode} > ${mode}.yaml`
    await $`env -u VYKAR_PASSPHRASE vykar --config ${mode}.yaml init > init.out 2>&1 && env -u VYKAR_PASSPHRASE vykar --config ${mode}.yaml backup > backup.out 2>&1 && env -u VYKAR_PASSPHRASE vykar --config ${mode}.yaml info > info.out 2>&1 && grep -qE '^ *Encryption +${{ raw: mode }} *$' info.out`
    await $`! grep -raF -m 1 -e planted-modes -f pass ${mode} cache *.out || exit 1  # nor is the passphrase there`
    // A pack is a header of 9 bytes, then each blob behind its length (4 bytes): its type (1), its nonce (12) and the rest. No nonce is used twice.
    await $`for pack in $(find ${mode}/packs -type f -size +0); do at=9; while ((at < $(stat -c %s $pack))); do od -An -tx1 -j$((at + 5)) -N12 $pack; at=$((at + 4 + $(od -An -tu4 --endian=little -j$at -N4 $pack))); done; done | sort > nonces && test "$(wc -l < nonces)" -gt 2 && test -z "$(uniq -d nonces)"`
    // Argon2id at no less than vykar 0.19.1 has it, 3 passes over 64 MiB (0x00010000 KiB), as msgpack writes them (RFC 9106, 4).
    await $`LC_ALL=C grep -qaP '(?s)argon2id[\x03-\x7f]\xce(\x00[\x01-\xff]|[\x01-\xff].)..[\x01-\x7f]' ${mode}/keys/repokey  # the key is derived at its full cost`
    await $`rm -rf cache lost && mkdir lost && sed '/passcommand/s/, passcommand: "cat pass"//' ${mode}.yaml > asked.yaml`
    await $({ expect: [1] })`VYKAR_PASSPHRASE=123 vykar --config asked.yaml restore latest lost > wrong.out 2>&1`
    await $`VYKAR_PASSPHRASE=$(<pass) vykar --config asked.yaml restore latest lost > restored.out && diff -r source lost`
  }
  await $`rm pass`
}

/** Two blobs of one length that have changed places: each is what it was, and neither is where it belongs. */
async function swapped(): Promise<void> {
  step('source')
  await $`mkdir source && for name in a b; do head -c 100K /dev/urandom > source/$name; done`
  for (const mode of ['aes256gcm', 'chacha20poly1305']) {
    step(mode)
    await $`rm -rf repo cache && printf '%b\ncompression: {algorithm: none}\nlimits: {threads: 1}\nsources: [{path: source, label: tree}]\n' ${base(mode)} > swap.yaml && vykar --config swap.yaml init > init.out 2>&1 && vykar --config swap.yaml backup > backup.out`
    // A header of 9 bytes, then each blob behind its length.
    await $`pack=$(find repo/packs -type f -size +150k) && n=$(od -An -tu4 --endian=little -j9 -N4 $pack | tr -d ' ') && test "$(stat -c %s $pack)" = $((9 + 2 * (4 + n))) && piece() { dd if=$pack iflag=skip_bytes,count_bytes skip=$1 count=$2 status=none; } && { piece 0 13; piece $((17 + n)) $n; piece $((13 + n)) 4; piece 13 $n; } > swapped && ! cmp -s swapped $pack && cat swapped > $pack`
    await $`rm -rf cache back && mkdir back && rc=0 && { vykar --config swap.yaml restore latest back > restored.out 2>&1 || rc=$?; } && test $rc = 1 && rc=0 && { vykar --config swap.yaml check --verify-data > check.out 2>&1 || rc=$?; } && test $rc = 1`
    for (const name of ['a', 'b'])
      await $`! cmp -s back/${{ raw: name }} source/${{ raw: name === 'a' ? 'b' : 'a' }} || exit 1  # no file has the other's content`
  }
  await $`rm -r repo`
}

/** A config asks for encryption, and at its URL is a repository that has none: plain text is not what was asked for. */
async function asked(): Promise<void> {
  step('source')
  await $`mkdir source && echo planted-asked-for > source/words && printf '%b\nsources: [{path: source, label: tree}]\n' ${base('aes256gcm')} > asked.yaml`
  await $`printf '%b\n' ${base()} | sed 's/cache$/other/' > plain.yaml && vykar --config plain.yaml init > init.out 2>&1`
  step('backup')
  const met = await $({ expect: 'any' })`vykar --config asked.yaml backup > asked.out 2>&1`
  await $`{ grep -rlaF planted-asked-for repo || true; } > leaked`
  await check('# nothing of the source is in plain text', () => {
    fact('encryption asked for, and none there', `backup: exit ${met.code}`)
    if (read('leaked') && met.code) throw new Mismatch(`the backup exits ${met.code}, and has stored plain text`)
    finding(
      'encryption-not-held',
      read('leaked') && met.code === 0
        ? `the config asks for aes256gcm, and the backup into an unencrypted repository exits ${met.code} with plain text in it`
        : undefined,
    )
  })
  await $`rm -r repo`
}

/** At the URL is another repository than before: nothing is read from it or backed up to it until that is said to be right. */
async function identity(): Promise<void> {
  step('source')
  await $`mkdir source back && echo data > source/file && printf '%b\nsources: [{path: source, label: tree}]\n' ${base()} > here.yaml && sed 's/: cache$/: other/' here.yaml > there.yaml`
  await $`vykar --config here.yaml init > init.out 2>&1 && vykar --config here.yaml backup > first.out && mv repo kept && vykar --config there.yaml init > init.out 2>&1 && vykar --config there.yaml backup > theirs.out`
  step('refused')
  for (const [name, words] of [
    ['backup', 'backup'],
    ['list', 'list'],
    ['restore', 'restore latest back'],
    ['check', 'check'],
  ] as const)
    await $`rc=0 && { vykar --config here.yaml ${{ raw: words }} > ${name}.out 2>&1 || rc=$?; } && test $rc = 1 && grep -q -- --trust-repo ${name}.out`
  await $`test -z "$(find back -type f)" && test "$(vykar --config there.yaml list | grep -cE '^ *[0-9a-f]{8} ')" = 1`
  step('accepted')
  await $`vykar --config here.yaml --trust-repo backup > trusted.out 2>&1 && vykar --config here.yaml list > list.out && test "$(grep -cE '^ *[0-9a-f]{8} ' list.out)" = 2`
  await $`rm -r repo kept`
}

/** A question that nobody answers, as in cron, is answered with no. */
async function questions(): Promise<void> {
  step('source')
  await $`mkdir source && head -c 1M /dev/urandom > source/file && printf '%b\nsources: [{path: source, label: tree}]\n' ${base()} > here.yaml && vykar --config here.yaml init > init.out 2>&1 && vykar --config here.yaml backup > backup.out`
  step('delete')
  await $`rc=0 && { timeout 60 vykar --config here.yaml delete -R r > delete.out 2>&1 < /dev/null || rc=$?; } && test $rc = 1 && grep -q "refusing to delete" delete.out && vykar --config here.yaml check --verify-data > check.out 2>&1`
  step('repair')
  await $`pack=$(find repo/packs -type f -size +500k) && mv $pack away && find repo -type f ! -path '*/sessions/*' ! -path '*/locks/*' -exec sha256sum {} + | sort > was`
  const met = await $({
    expect: 'any',
  })`timeout 60 vykar --config here.yaml check --repair > repair.out 2>&1 < /dev/null`
  await $`find repo -type f ! -path '*/sessions/*' ! -path '*/locks/*' -exec sha256sum {} + | sort > is && diff was is`
  await check('# what was not repaired is not said to be well', () => {
    fact('check --repair, and nobody answers', `exit ${met.code}`)
    // What it says of the pack must be true, however it ends.
    if (!/, [1-9]\d* errors$/m.test(read('repair.out')))
      throw new Mismatch('check --repair has seen nothing of a pack that is missing')
    if (met.code > 1 && met.code !== 3)
      throw new Mismatch(`check --repair without an answer ends with exit ${met.code}`)
    finding(
      'unanswered-repair-exits-0',
      met.code === 0 ? 'check --repair finds a missing pack, is not answered, repairs nothing and exits 0' : undefined,
    )
  })
  await $`rm -r repo away`
}
