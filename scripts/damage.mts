// What is done to copies of a repository: damage that check and restore must see, and reclaiming space, which must harm no snapshot.
import { $, check, fact, note, type Output, read, rowScope, step, when } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'
import { about, sound } from '#scripts/checks.mts'
import { finding } from '#scripts/findings.mts'
import { checkLine } from '#scripts/printed.mts'
import { alikeTo } from '#scripts/witnessed.mts'

/**
 * A copy of the repository that vykar opens as a local one, in `copy`: hard links, since vykar never writes into a file that is there.
 * @returns whether there is one: the files of a server that is not ours cannot be had but through rclone
 */
export async function copyOf(repo: string): Promise<boolean> {
  const { run } = rowScope()
  const { seen, remote } = run.endpoint(repo)
  step('copy')
  // minio keeps objects in a form of its own: rclone reads them as S3.
  if (remote && repo === 's3') await $({ limit: '30m' })`rm -rf copy && rclone copy ${{ raw: remote }} copy`
  else if (seen && (repo !== 's3' || remote)) {
    const files = { raw: `"$${seen}"` }
    await $({
      limit: '30m',
    })`rm -rf copy && { cp -al ${files} copy 2> copy.err || { rm -rf copy && cp -a ${files} copy; }; }`
  } else {
    note(
      `damage and reclaiming were not tried: ${repo === 's3' ? 'rclone is missing, or does not reach it' : 'the files of this repository cannot be seen'}`,
    )
    return false
  }
  return true
}

/** The largest pack of `damaged`, as a file of its own: copies share theirs. */
const pack = `pack=$(find damaged/packs -type f -printf '%s %p\\n' | sort -n | tail -n 1 | cut -d' ' -f2) && cp "$pack" pack && mv pack "$pack"`

/** Each kind of damage, as lines of bash, and whether a plain `check`, which reads no data, must see it. */
export const kinds: Record<string, { line: string; plain: boolean }> = {
  'one bit': {
    line: `${pack} && at=$(($(stat -c %s "$pack") / 2)) && byte=$(od -An -tu1 -j $at -N1 "$pack") && printf "\\\\x$(printf %02x $((byte ^ 1)))" | dd of="$pack" bs=1 seek=$at conv=notrunc status=none`,
    plain: false,
  },
  'missing pack': { line: `${pack} && rm "$pack"`, plain: true },
  'truncated pack': { line: `${pack} && truncate -s -1000 "$pack"`, plain: false },
  'missing index': { line: 'rm damaged/index', plain: true },
}

/**
 * In copies of the copy each kind of damage is made: `check --verify-data` must say so, `check` where it can, and `restore` must fail or be
 * right, as NAME.sha256 and NAME.tree say.
 */
export async function damaged(repo: string, id: string): Promise<void> {
  const { run } = rowScope()
  step('damage')
  const there = { raw: `REPO_${repo.toUpperCase().replace(/\W/g, '_')}=damaged HOME=$PWD/lost` }
  const clear = () => $`rm -rf lost damaged-tree && mkdir lost damaged-tree`
  // What is whole is called whole in the same way, or no complaint would say anything.
  await clear()
  await $({
    limit: '1h',
  })`${{ raw: there.raw.replace('=damaged ', '=copy ') }} vykar --config lost.yaml check -R ${repo} --verify-data > whole.verify 2>&1`
  await sound('whole.verify', { all: true })
  // But what a session and a lock are for, check changes nothing.
  const files = `find damaged -type f ! -path '*/locks/*' ! -path '*/sessions/*' -printf '%P %s %i\\n' | sort`
  for (const [kind, { line, plain }] of Object.entries(kinds)) {
    const file = kind.replaceAll(' ', '-')
    await $`rm -rf damaged && cp -al copy damaged`
    await $`${{ raw: line }} && ${{ raw: files }} > damaged.files`
    await clear()
    const quick = await $({
      limit: '30m',
      expect: [0, 1],
    })`${there} vykar --config lost.yaml check -R ${repo} > ${file}.check 2>&1`
    await seen(`${file}.check`, quick, plain, kind)
    await clear()
    const whole = await $({
      limit: '1h',
      expect: [0, 1],
    })`${there} vykar --config lost.yaml check -R ${repo} --verify-data > ${file}.verify 2>&1`
    await seen(`${file}.verify`, whole, true, kind)
    await $`${{ raw: files }} | diff damaged.files -  # it is check without --repair`
    await clear()
    const restored = await $({
      limit: '1h',
      expect: [0, 1],
    })`${there} vykar --config lost.yaml restore -R ${repo} $(<${{ raw: id }}.id) damaged-tree > ${file}.restore 2>&1`
    await when(restored, { 0: () => right(kind, id), 1: async () => {} })
  }
  await $`rm -rf damaged damaged-tree lost && mkdir lost`
  if (!run.dry)
    fact('damage', 'a flipped bit, a missing and a cut pack, a missing index: all seen by check --verify-data')
}

/** What `check` said of a damaged copy; where it `must` see the damage, anything else is a FAIL. */
async function seen(file: string, { code }: Output, must: boolean, kind: string): Promise<void> {
  const hand = must ? `! grep -q ', 0 errors$' ${file} || exit 1` : `# ${file}: whether it is seen is put on record`
  await check(hand, () => {
    const text = read(file)
    const errors = checkLine.exec(text)?.[6]
    const saw = errors !== '0' && /error|missing/i.test(text)
    if (must && !saw)
      throw new Mismatch(`${kind}: ${file.endsWith('verify') ? 'check --verify-data' : 'check'} saw no error`)
    if (saw !== (code !== 0)) throw new Mismatch(`${kind}: check printed ${errors ?? 'no'} errors and exited ${code}`)
    if (!must) fact(`${kind}, plain check`, saw ? 'seen' : 'not seen')
  })
}

/** A restore out of a damaged copy that exits 0 must be right. */
async function right(kind: string, id: string): Promise<void> {
  const { run } = rowScope()
  const compared: Output = await $({
    limit: '1h',
    expect: [0, 1],
  })`(cd damaged-tree && sha256sum --check --quiet --strict ../${id}.sha256 2>&1) > damaged.wrong && { test "$(find damaged-tree -type f -printf x | wc -c)" = "$(wc -l < ${id}.sha256)" || { echo 'there are files more than there were' > damaged.wrong; exit 1; }; }`
  // What one flipped bit can do to an unencrypted repository: the files of one chunk are others, and all are there. More is worse.
  await $`grep -c ': FAILED$' damaged.wrong > damaged.count || true; grep -vE ': FAILED$|^sha256sum: WARNING: ' damaged.wrong > damaged.gone || true; wc -l < ${id}.sha256 >> damaged.count`
  await check('# exit 0, and wrong data: a finding, where configs/known-findings.yaml has it', () => {
    const said = `${kind}: restore exited 0 with wrong data: ${read('damaged.wrong').split('\n')[0]}`
    const none = /^\s*Encryption\s+none/m.test(read('info.out'))
    const [wrong, all] = read('damaged.count').split('\n').map(Number) as [number, number]
    const little = !read('damaged.gone') && wrong <= Math.max(3, all / 100)
    if (none && kind === 'one bit' && (little || !compared.code))
      finding('none-restore-unverified', compared.code ? said : undefined)
    else if (compared.code) throw new Mismatch(said)
    if (run.common['strict-gaps'] && !compared.code) note(`${kind}: restore was right`)
  })
  // What a finding is about is content: all else is as it was.
  await alikeTo(id, 'damaged-tree')
}

/**
 * Damage often shows only when space is reclaimed: for each snapshot in turn a copy in which all others are deleted and the rest is
 * repacked, opened with an empty cache, must restore it as NAME.sha256 and NAME.tree say.
 */
export async function reclaimed(repo: string, ids: readonly string[]): Promise<void> {
  step('reclaim')
  const there = { raw: `REPO_${repo.toUpperCase().replace(/\W/g, '_')}=reclaimed HOME=$PWD/lost` }
  for (const id of ids) {
    await $`rm -rf reclaimed reclaimed-tree lost && cp -al copy reclaimed && mkdir lost reclaimed-tree`
    const others = { raw: ids.flatMap((name) => (name === id ? [] : [`$(<${name}.id)`])).join(' ') }
    if (ids.length > 1) await $`${there} vykar --config lost.yaml snapshot delete -R ${repo} ${others}`
    await $`${there} vykar --config lost.yaml list -R ${repo} > reclaimed.list`
    await $`test "$(grep -cE '^ *[0-9a-f]{8} ' reclaimed.list)" = 1  # all others are gone`
    await $({
      limit: '1h',
    })`${there} vykar --config lost.yaml compact -R ${repo} --threshold 0 > reclaimed.out`
    await $`${there} vykar --config lost.yaml info -R ${repo} > reclaimed.info && ${there} vykar --config lost.yaml check -R ${repo} > reclaimed.check && find reclaimed/packs -type f -printf '%s\n' | awk '{n += $1} END {print n + 0, NR}' > reclaimed.bytes`
    await check('# the packs hold what info says, and nothing of what went', () => {
      const [, said] = /^ *Unique stored +(\S+ [KMGT]?i?B) *$/m.exec(read('reclaimed.info')) ?? []
      const [held, packs] = read('reclaimed.bytes').split(' ').map(Number) as [number, number]
      const known = checkLine.exec(read('reclaimed.check'))?.[3]
      if (Number(known) !== packs)
        throw new Mismatch(`after compact --threshold 0 the packs hold ${held} bytes: ${packs} packs, ${known} of use`)
      // Each chunk has its length before it, each pack a head.
      const heads = 2 ** 10 + 16 * Number(/^ *Unique chunks +(\d+) *$/m.exec(read('reclaimed.info'))?.[1])
      if (!said || !about(said, held, heads))
        throw new Mismatch(
          `${said ?? 'nothing'} is stored, and after compact --threshold 0 the packs hold ${held} bytes`,
        )
    })
    await $`rm -rf lost && mkdir lost`
    await $({
      limit: '1h',
    })`${there} vykar --config lost.yaml restore -R ${repo} $(<${{ raw: id }}.id) reclaimed-tree > reclaimed-tree.out`
    await $({ limit: '2h' })`(cd reclaimed-tree && sha256sum --check --quiet --strict ../${id}.sha256)`
    await $`test "$(find reclaimed-tree -type f -printf x | wc -c)" = "$(wc -l < ${id}.sha256)"`
    await alikeTo(id, 'reclaimed-tree')
  }
  await $`rm -r reclaimed reclaimed-tree`
}
