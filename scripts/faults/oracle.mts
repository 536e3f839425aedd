// The oracle that every family of faults is held against: what a restored snapshot, the next backup and check must be, whatever broke.
import { appendFileSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { $, check, note, notFull, type Output, read, rowScope, step, when } from '#lib/sh.mts'
import { findingsOf } from '#scripts/findings.mts'
import { listing, witnessed } from '#scripts/witnessed.mts'

/**
 * Where a repository is, as bash that goes before a command; `files` is bash that names its directory, and `remote` rclone's path, where
 * those are not the row's.
 */
export type Place = { raw: string; files?: string; remote?: string }

/** Where the row's repository is, for lines that look at another one: a copy, a proxy. */
export const at = (repo: string, url: string, files = url.startsWith('$PWD/') ? url : undefined): Place => ({
  raw: `REPO_${repo.toUpperCase().replace(/\W/g, '_')}=${url}`,
  ...(files ? { files } : {}),
})

/** The last line of what a command has printed into a file of the row, for a message. */
export const lastOf = (file: string): string =>
  read(file)
    .split('\n')
    .at(-1)
    ?.replace(/^\S+Z +/, '') ?? ''

/** A violation of the oracle, for findings.md and the verdict. */
interface Violation {
  rule: string
  round: string
  seen: string
  command: string
}
/** Violations of a row, by its report. */
export const violations = new WeakMap<object, Violation[]>()
/** Rows whose repository may be damaged, by a known finding or another: what is cleared away there may complain. */
const suspect = new WeakSet<object>()

/**
 * Puts a violation of the round that is under way on record: a known finding is a note, another one makes the row a FAIL when it ends (`conclude`).
 * @param id of its entry in known-findings.yaml, where it may be one
 */
export function violated(rule: string, seen: string, command: string, id = ''): void {
  const { run, report, dry, steps } = rowScope()
  if (dry) return
  // What a full disk of the suite's own has brought about is nobody's fault.
  notFull(run.runtime)
  suspect.add(report)
  const known = findingsOf(run.plan.vykar.version).some((one) => one.id === id)
  const round = steps.at(-1)?.name ?? ''
  const lines =
    steps
      .at(-1)
      ?.commands.slice(-3)
      .map(({ command: line }) => `  ${line}`) ?? []
  const file = join(run.dirs.reports, 'findings.md')
  if (!existsSync(file)) appendFileSync(file, `# Findings of ${run.plan.scenario}, run ${run.id}\n`)
  appendFileSync(
    file,
    `\n## ${seen}\n\n- vykar ${run.plan.vykar.version}${known ? `; known: ${id}` : ''}\n- round: ${round}\n- expected: ${rule}\n- seen: ${seen}\n- the command: \`${command}\`\n- all commands: ${report.repo} in ${run.report.transcript}; the last three:\n\n${lines.join('\n').replaceAll(/^/gm, '    ')}\n`,
  )
  if (known) {
    if (!report.findings.some((one) => one.id === id)) report.findings.push({ id, seen })
    return
  }
  report.violated ??= `${round}: ${seen}`
  const all = violations.get(report) ?? []
  all.push({ rule, round, seen, command })
  violations.set(report, all)
}

/**
 * Restores an acknowledged snapshot with an empty cache and home and holds it against its witness.
 * @param there where the repository is, as `at` gives it
 * @param config lost.yaml has an empty cache
 * @returns `right`, `refused` (an exit code that says that it failed), or `wrong` (exit 0 and other data)
 */
export async function restoredAs(
  repo: string,
  id: string,
  there: Place,
  flags = '',
  config = 'lost.yaml',
): Promise<How> {
  await $`rm -rf lost tree && mkdir lost tree`
  const tried = await $({
    limit: '10m',
    expect: 'any',
  })`${there} HOME=$PWD/lost vykar --config ${config} restore -R ${repo} ${{ raw: flags }} $(<${{ raw: id }}.id) tree > restore.out 2>&1`
  const compared = await $({
    expect: 'any',
  })`rc=0; (cd tree && sha256sum --check --quiet --strict ../${id}.sha256 > ../wrong.out 2>&1) || rc=1; : > differ.out; if test -e ${id}.tree; then (cd tree && ${{ raw: listing }}) | diff -a ${id}.tree - > differ.out || rc=1; else test "$(find tree -type f -printf x | wc -c)" = "$(wc -l < ${id}.sha256)" || rc=1; fi; exit $rc`
  const { dry } = rowScope()
  if (tried.code === 124 || tried.code === 137)
    violated('7: everything ends', `restore of ${id} does not end`, `vykar restore ${id}`)
  else if (tried.code > 3)
    violated('7: ends well', `restore of ${id} ends with exit ${tried.code}: ${lastOf('restore.out')}`, `vykar restore ${id}`) // biome-ignore format: one line
  if (dry || (tried.code === 0 && compared.code === 0)) return 'right'
  return tried.code === 0 ? 'wrong' : 'refused'
}

/**
 * The first file that the last restore has wrong beside those that a finding names, or too many of any name; empty where there is none.
 * A finding excuses the content of what it is about, and no other file, and none that is missing, unless another name stands in its place.
 * @param names paths that may have other content, as sha256sum names them, or how many of any name may differ, in content, name or metadata
 */
export function others(names: readonly string[] | number): string {
  const wrong = read('wrong.out').split('\n').filter((line) => line && !/^sha256sum: (WARNING|.*: No such file)/.test(line)) // biome-ignore format: one line
  if (typeof names !== 'number')
    return (
      wrong.find((line) => !names.includes(/^(.*): FAILED$/.exec(line)?.[1] ?? '')) ?? (wrong.length ? '' : 'metadata')
    )
  // Of a name that is another one, one entry is missing and one is too many.
  const [was, is] = ['<', '>'].map((sign) => read('differ.out').split('\n').filter((line) => line.startsWith(sign)).length) // biome-ignore format: one line
  const failed = wrong.every((line) => /: FAILED( open or read)?$/.test(line))
  if (failed && wrong.length <= names && was === is && was! <= names) return ''
  return wrong.find((line) => line.includes('open or read')) ?? wrong[0] ?? 'metadata'
}

/** What a restore came to: as its witness, failed with an exit code that says so, or exit 0 and other data. */
type How = 'right' | 'refused' | 'wrong'

/**
 * Rule 1: every acknowledged snapshot restores to its witness. Returns what became of each.
 * @param finding id of the known finding that this round shows: an acknowledged snapshot is refused when it is restored
 */
export async function allThere(
  repo: string,
  ids: readonly string[],
  there = at(repo, '$PWD/nowhere'),
  finding = '',
): Promise<Map<string, How>> {
  const met = new Map<string, How>()
  for (const id of ids) {
    const how = await restoredAs(repo, id, there)
    // By hand the same ends the procedure, but where a known finding is met.
    if (!finding) await check(`(cd tree && sha256sum --check --quiet --strict ../${id}.sha256)`, () => {})
    met.set(id, how)
    if (how === 'right') continue
    violated(
      '1: acknowledged snapshots restore',
      `${id}, made before the fault, is ${how} when it is restored${how === 'refused' ? `: ${lastOf('restore.out')}` : ''}`,
      `vykar restore ${id}`,
      // No finding of these is about wrong data with exit 0.
      how === 'refused' ? excusing(finding, id) : '',
    )
  }
  return met
}

/** What a restore says that is refused because of a finding. */
const reasons: Record<string, RegExp> = {
  'killed-compact-destroys': /pack not found: (\w+)/,
  'stopped-compact-destroys': /(pack|chunk) not found/,
  'stopped-backup-destroys': /(pack|chunk) not found/,
  'maintenance-reads-index-unlocked': /(pack|chunk) not found/,
  'partial-backup-displaces': /snapshot not found/,
  // It is about the snapshot that is made meanwhile, and no other.
  'unread-attributes-exit-0': /(?!)/,
  'full-repository-refuses-restore': /No space left on device/,
}
/**
 * A finding excuses a restore that fails for its reason, and no other; the one about packs that a killed compact has left, as left.packs names
 * them, one that lacks one of those; the one about a compact that was stopped, what was made meanwhile and later.
 */
function excusing(finding: string, id: string): string {
  const reason = reasons[finding]
  if (!reason) return finding
  const said = reason.exec(read('restore.out'))
  if (!said || (finding === 'stopped-compact-destroys' && id.startsWith('ack-'))) return ''
  return finding !== 'killed-compact-destroys' ||
    read('left.packs')
      .split('\n')
      .some((pack) => pack.startsWith(said[1]!))
    ? finding
    : ''
}

/**
 * Rule 3, both ways: `check --verify-data` complains where a restore was refused, and nowhere else. Data that the backup itself has taken
 * wrongly is nothing that it could see.
 * @param met what the restores of all snapshots that are listed came to; `untried` where there are more
 */
async function checkAgrees(repo: string, there: Place, met: ReadonlySet<How | 'untried'>, when: string) {
  const checked = await $({
    limit: '10m',
    expect: 'any',
  })`${there} vykar --config config.yaml check -R ${repo} --verify-data > agrees.check 2>&1`
  const rule = '3: check agrees with restore'
  if (checked.code === 0 && met.has('refused'))
    violated(rule, `check --verify-data exits 0 ${when}, but a restore is refused`, 'vykar check --verify-data; vykar restore') // biome-ignore format: one line
  if (checked.code && met.size === 1 && met.has('right'))
    violated(rule, `check --verify-data exits ${checked.code} ${when}, but all restores are right: ${lastOf('agrees.check')}`, 'vykar check --verify-data') // biome-ignore format: one line
}

/**
 * Rules 2, 3, 4 and 6, once the fault is gone: a snapshot that was made under it is complete or absent; the next backup, check and restore
 * succeed, and leave nothing that only a killed process would.
 * @param ids acknowledged snapshots, which must be there
 * @param under what ran under the fault
 * @param known all that were made before the fault
 * @param finding id of the known finding that this round shows, where it is one
 * @param nextToo whether it says that the next backup, too, is refused when restored
 * @param reclaiming id of the known finding that reclaiming space after this fault is
 * @returns whether every restore was right
 */
export async function afterwards(
  repo: string,
  ids: readonly string[],
  under: Output | undefined,
  there: Place,
  known = ids,
  finding = '',
  nextToo = false,
  reclaiming = '',
): Promise<boolean> {
  const acknowledged = await allThere(repo, ids, there, finding)
  // What was made under the fault: every snapshot that is not one of the acknowledged ones.
  const listed = await $({
    expect: 'any',
  })`${there} vykar --config config.yaml list -R ${repo} > after.list 2> after.err`
  if (listed.code)
    violated('4: works again', `list fails after the fault: ${read('after.err').split('\n').at(-1)}`, 'vykar list')
  const idsOf = (names: readonly string[]) => names.map((id) => `${id}.id`)
  if (ids.length && !listed.code) {
    // With the cache that the client has: a restore that finds a snapshot says nothing of that.
    await $`cat ${idsOf(ids)} | grep -vxFf <(grep -oE '^ *[0-9a-f]{8} ' after.list | tr -d ' ') > unlisted || true`
    // Of the findings this one alone is about snapshots that are gone.
    const known = finding === 'repair-deletes-on-read-error' ? finding : ''
    await check(known ? `# ${known}` : 'test ! -s unlisted', () => {
      const [first] = read('unlisted').split('\n')
      if (first) violated('1: acknowledged snapshots restore', `list does not show ${first}`, 'vykar list', known)
    })
  }
  // A snapshot that is gone is nothing that check could complain of.
  const met = new Set<How | 'untried'>()
  const gone = ids.length && !listed.code ? read('unlisted').split('\n').filter(Boolean) : []
  const kept = ids.filter((id) => !gone.includes(read(`${id}.id`)))
  for (const id of kept) met.add(acknowledged.get(id)!)
  // What was to go and is still listed is whole, where there is a witness of it.
  for (const id of known.filter((one) => !ids.includes(one))) {
    const shown = await $({
      expect: [0, 1],
    })`test -s ${id}.id && grep -q "^ *$(<${{ raw: id }}.id) " after.list`
    const witnessed = await $({ expect: [0, 1] })`test -e ${id}.sha256`
    if (!shown.code && witnessed.code) met.add('untried')
    const still = shown.code || witnessed.code ? 'right' : await restoredAs(repo, id, there)
    if (!shown.code && !witnessed.code) met.add(still)
    if (still !== 'right')
      violated(
        '2: absent or complete',
        `${id} is still listed after the fault, and ${still} when restored`,
        'vykar restore',
        still === 'refused' ? excusing(finding, id) : '',
      )
  }
  await $`cat ${idsOf(known)} > acked && { grep -oE '^ *[0-9a-f]{8} ' after.list || true; } | tr -d ' ' | grep -vxFf acked > under.ids || true`
  if (read('under.ids')) {
    await $`head -n 1 under.ids > under.id`
    if (read('under.ids').includes('\n')) met.add('untried')
    await witnessed('source', 'under')
    const how = await restoredAs(repo, 'under', there)
    // With exit 3 files may be missing, but what is there is right.
    const rest = await $({
      expect: 'any',
    })`(cd tree && sha256sum --check --ignore-missing --quiet --strict ../under.sha256 > ../wrong.out 2>&1)`
    const whole = how === 'right' || (under?.code === 3 && how === 'wrong' && rest.code === 0)
    // What is missing is named, or a directory above it is.
    if (under?.code === 3) {
      await $`{ grep -aE 'WARN|ERROR|Error' met.out || true; } > met.said; cut -c 69- under.sha256 | while IFS= read -r f; do p=$f; test -e "tree/$f" || { until grep -qF -- "source/$p" met.said || [[ $p != */* ]]; do p=$(dirname "$p"); done; grep -qF -- "source/$p" met.said || grep -qE "source([^/]|$)" met.said || echo "$f"; }; done > unnamed`
      const [unnamed] = read('unnamed').split('\n')
      if (unnamed) violated('2: with exit 3 what is missing is named', `${unnamed} is missing, and nothing says so`, 'vykar backup') // biome-ignore format: one line
    }
    met.add(whole ? 'right' : how)
    // Attributes alone, each file itself is right.
    const bare = how === 'wrong' && read('differ.out').split('\n').every((line) => !/^[<>]/.test(line) || /^<( # file: | (user|system|security|trusted)\.| ?$)/.test(line)) // biome-ignore format: one line
    if (!whole)
      violated(
        '2: absent or complete',
        `the snapshot made under the fault (exit ${under?.code}) is ${how} when restored`,
        'vykar restore',
        bare && finding === 'unread-attributes-exit-0' ? finding : '',
      )
  } else if (under?.code === 0)
    violated('2: exit 0 means complete', 'exit 0 under the fault, but list shows no snapshot', 'vykar backup')
  await checkAgrees(repo, there, met, 'before the next backup')
  const next = await $({
    limit: '10m',
    expect: 'any',
  })`${there} vykar --config config.yaml backup -R ${repo} > next.out 2> next.err`
  if (next.code) {
    const seen = `the next backup exits ${next.code}: ${read('next.err').split('\n').at(-1)}`
    violated(next.code > 3 ? '7: ends well' : '4: works again', seen, 'vykar backup')
    return false
  }
  await $`sed -n 's/^Snapshot created: //p' next.out > next.id`
  await witnessed('source', 'next')
  const how = await restoredAs(repo, 'next', there)
  met.add(how)
  if (how !== 'right')
    violated(
      '4: works again',
      `the next backup exits 0, and is ${how} when restored`,
      'vykar backup; vykar restore',
      nextToo && how === 'refused' ? excusing(finding, 'next') : '',
    )
  await checkAgrees(repo, there, met, 'after the next backup')
  const right = met.size === 1 && met.has('right')
  if (!met.has('refused') && !met.has('wrong'))
    await reclaimHarmless(repo, kept.length ? kept : ['next'], there, reclaiming)
  return right
}

/**
 * Rule 7: the next compact works, and what only a process under way has is gone then: locks, sessions, half-written files. A journal is left
 * to the next backup once.
 * @param there has `files` or `remote` where it can be looked into
 * @param cause the command that was under way
 * @param finding id of the known finding that half-written files are, those that torn.list names
 */
export async function nothingForEver(repo: string, there: Place, cause: string, finding = '') {
  const { files, remote } = there
  const list = files
    ? `find ${files} -ignore_readdir_race \\( -type f -o -name '.tmp*' \\) -printf './%P\\n'`
    : remote && `rclone lsf -R --files-only ${remote} | sed 's|^|./|'`
  const compact = async () => {
    await $({
      limit: '5m',
    })`code=0; ${there} vykar --config config.yaml compact -R ${repo} > again.out 2>&1 || code=$?; echo $code > again.code`
    await check('test "$(<again.code)" = 0', () => {
      const code = read('again.code')
      if (code !== '0') violated('4: works again', `compact exits ${code}: ${lastOf('again.out')}`, 'vykar compact')
    })
  }
  await compact()
  if (!list) return note('what a fault has left on this server cannot be looked at')
  await $({ limit: '5m' })`{ ${{ raw: list }}; } > held.all`
  const journal = await $({ expect: [0, 1] })`grep -q '^[.]/sessions/.*[.]index$' held.all`
  await when(journal, {
    0: async () => {
      await compact()
      await $({ limit: '5m' })`{ ${{ raw: list }}; } > held.all`
    },
    1: async () => {},
  })
  await $`{ grep -E '^[.]/(locks|sessions)/|/[.]tmp' held.all || true; } > held.list`
  await check(finding ? '! grep -v "/[.]tmp" held.list || exit 1' : 'test ! -s held.list', () => {
    const held = read('held.list')
    const torn = finding && held.split('\n').every((path) => path.includes('/.tmp') && read('torn.list').split('\n').includes(path)) // biome-ignore format: one line
    if (held)
      violated(
        '7: nothing is left for ever',
        `left behind after the fault, the next backup and compact: ${held.split('\n')[0]}`,
        cause,
        torn ? finding : '',
      )
  })
}

/** At the end of a row, once every fault is gone: the oracle as a whole, and reclaiming space for each of the acknowledged snapshots. */
export async function inTheEnd(repo: string, ids: readonly string[]): Promise<void> {
  const { seen, remote } = rowScope().run.endpoint(repo)
  const here = at(repo, `"$REPO_${repo.toUpperCase().replace(/\W/g, '_')}"`)
  // minio keeps objects in a form of its own: rclone reads them as S3.
  const there = { ...here, ...(seen && repo !== 's3' ? { files: `"$${seen}"` } : remote ? { remote } : {}) }
  step('afterwards')
  const right = await afterwards(repo, ids, undefined, there)
  await nothingForEver(repo, there, 'the rounds of this row')
  if (right) for (const id of ids) await reclaimHarmless(repo, [id], there, '')
}

/** How often a row's repository was reclaimed. */
const reclaims = new WeakMap<object, number>()

/**
 * Rule 6, for one of the snapshots, each in its turn: in a copy of the repository all others are deleted and the rest is repacked, with an
 * empty cache; it restores to its witness all the same. Much damage shows only then.
 */
async function reclaimHarmless(repo: string, ids: readonly string[], there: Place, finding: string) {
  const { report, run } = rowScope()
  const { seen, remote: own } = run.endpoint(repo)
  const remote = there.remote ?? own
  const turn = reclaims.get(report) ?? 0
  reclaims.set(report, turn + 1)
  const id = ids[turn % ids.length]!
  // minio keeps objects in a form of its own: rclone reads them as S3.
  const files = there.files ?? (remote && repo === 's3' ? undefined : seen && `"$${seen}"`)
  if (files)
    await $`rm -rf reclaimed && { cp -al ${{ raw: files }} reclaimed 2> copy.err || { rm -rf reclaimed && cp -a ${{ raw: files }} reclaimed; }; }`
  else if (remote) await $({ limit: '10m' })`rm -rf reclaimed && rclone copy ${{ raw: remote }} reclaimed`
  else return
  const copy = at(repo, '$PWD/reclaimed')
  const alone = await $({
    limit: '10m',
    expect: 'any',
  })`rm -rf lost && mkdir lost && ${copy} HOME=$PWD/lost vykar --config lost.yaml list -R ${repo} > reclaimed.list 2> reclaimed.out && { grep -oE '^ *[0-9a-f]{8} ' reclaimed.list | tr -d ' ' | grep -vxFf ${id}.id > reclaimed.ids || true; } && { test ! -s reclaimed.ids || ${copy} HOME=$PWD/lost xargs vykar --config lost.yaml snapshot delete -R ${repo} < reclaimed.ids > reclaimed.out 2>&1; } && ${copy} HOME=$PWD/lost vykar --config lost.yaml compact -R ${repo} --threshold 0 > reclaimed.out 2>&1`
  const how = await restoredAs(repo, id, copy)
  const seenThen = alone.code
    ? `all other snapshots cannot be deleted and their space reclaimed: exit ${alone.code}: ${lastOf('reclaimed.out')}`
    : `${id} is ${how} once all others were deleted and their space was reclaimed`
  if (alone.code || how !== 'right')
    violated(
      '6: reclaim harms nothing',
      seenThen,
      'vykar snapshot delete; vykar compact --threshold 0; vykar restore',
      !alone.code && how === 'refused' ? excusing(finding, id) : '',
    )
  await $`rm -rf reclaimed`
}

/** Deletes what rounds have made beside the acknowledged snapshots, and gives its space back. */
export async function clearOthers(repo: string, ids: readonly string[]): Promise<void> {
  await $`cat ${ids.map((id) => `${id}.id`)} > acked && vykar --config config.yaml list -R ${repo} > all.list && { grep -oE '^ *[0-9a-f]{8} ' all.list | tr -d ' ' | grep -vxFf acked || true; } > others.ids`
  const bound = suspect.has(rowScope().report) ? ({ expect: 'any' } as const) : {}
  await $(bound)`test ! -s others.ids || xargs vykar --config config.yaml snapshot delete -R ${repo} < others.ids`
  await $(bound)`vykar --config config.yaml compact -R ${repo}`
}
