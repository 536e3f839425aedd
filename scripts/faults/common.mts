// What every family of faults shares: a repository with acknowledged snapshots, and the oracle that it is held against afterwards.
import { appendFileSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { ask, lastLine } from '#lib/ask.mts'
import type { Background } from '#lib/background.mts'
import { config } from '#lib/config.mts'
import { meant } from '#lib/options.mts'
import type { Run } from '#lib/run.mts'
import { $, check, fact, note, notFull, type Output, read, rowScope, step } from '#lib/sh.mts'
import { Blocked, Mismatch, Skipped, UsageError } from '#lib/verdict.mts'
import { contents, fresh } from '#scripts/common.mts'
import { findingsOf } from '#scripts/findings.mts'

/** The option of families whose faults are drawn. */
export const drawnOptions = { rounds: { kind: 'number', help: 'rounds for each kind of fault', default: 0 } } as const
/** The options of every family. */
export const faultOptions = {
  round: { kind: 'string', help: 'only this round, as its line names it' },
  'corpus-mib': { kind: 'number', help: 'size of the source in MiB', default: 20, above: true },
} as const

/**
 * The rounds of a row: `chosen` says whether a round is the one that --round names (or none is named), marks its step, and puts its name
 * into \`tried\`.
 */
export function roundsOf(only: string | undefined): { chosen: (name: string) => boolean; tried: string[] } {
  const tried: string[] = []
  const chosen = (name: string) => {
    if (only && only !== name) return false
    step(name)
    tried.push(name)
    return true
  }
  return { chosen, tried }
}

/**
 * How the rows of a family are run: with --round those alone that have it, which `--dry-run` says before anything is started.
 * @throws UsageError where there is no such round, naming the nearest one
 */
export async function rowsWith(run: Run): Promise<Run['row']> {
  const only = (run.plan.options as { round?: string }).round
  if (only === undefined || run.dry) return run.row
  const words = process.argv
    .slice(1)
    .filter((word, i, all) => word !== '--round' && all[i - 1] !== '--round' && !word.startsWith('--round='))
  const plan = await ask([process.execPath, ...process.execArgv, ...words, '--dry-run'], { cwd: process.cwd() })
  if (plan.code)
    throw new Error(`--dry-run, which says what rounds there are: exit ${plan.code}: ${lastLine(plan.stderr)}`)
  const rounds = [...plan.stdout.matchAll(/^# ([^:\n]+): (.+)$/gm)].map(([, row, name]) => ({ row, name: name! }))
  const rows = new Set(rounds.filter(({ name }) => name === only).map(({ row }) => row))
  if (!rows.size) {
    const names = rounds.map(({ name }) => name)
    throw new UsageError(`--round ${only}: there is no such round${meant(only, names)}; --dry-run shows them all`)
  }
  return async (spec, fn) => {
    const { repo, variant } = typeof spec === 'string' ? { repo: spec, variant: '' } : spec
    if (rows.has(variant ? `${repo}-${variant}` : repo)) await run.row(spec, fn)
  }
}

/** Where a repository is, as bash that goes before a command; `files` is bash that names its directory, where that is not the row's. */
type Place = { raw: string; files?: string }

/** Where the row's repository is, for lines that look at another one: a copy, a proxy. */
export const at = (repo: string, url: string, files = url.startsWith('$PWD/') ? url : undefined): Place => ({
  raw: `REPO_${repo.toUpperCase().replace(/\W/g, '_')}=${url}`,
  ...(files ? { files } : {}),
})

/**
 * What a tree holds, for `restoredAs`: content in NAME.sha256; types, modes, owners, sizes, times and links in NAME.tree. Dumps, whose times
 * are those of the backup, have their content alone (`contents`).
 */
export async function witness(tree: string, name: string): Promise<void> {
  await contents(tree, name)
  await $`(cd ${tree} && ${{ raw: listing }}) > ${name}.tree`
}
const listing = `find . -mindepth 1 \\( -type d -printf '%y %m %U %G %T@ %p\\0' -o -printf '%y %m %U %G %n %s %T@ %p %l\\0' \\) | sort -z | tr '\\0' '\\n'`

/**
 * A repository with acknowledged snapshots `ack-1`, `ack-2`, …: for each the id in NAME.id, and in NAME.sha256 and NAME.tree what the
 * source was when it was made. Packs are small, so that there are many of them.
 * @param mode `none` for a repository without encryption
 * @param first is done after the first of them
 */
export async function acknowledged(
  repo: string,
  count: number,
  mib: number,
  mode: 'auto' | 'none' = 'auto',
  first: () => Promise<unknown> = async () => {},
): Promise<string[]> {
  const { seed } = rowScope().run.common
  step('acknowledged')
  await $({ limit: '30m' })`e2e data-gen/corpus --out corpus --gib ${mib / 1024} --churn 0 --plain --seed ${seed}`
  await $`cp -a corpus/snapshot-1 source`
  await config`
encryption:
  mode: ${mode}
sources:
  - path: source
    label: faults
repositories:
  - min_pack_size: 1048576
    max_pack_size: 4194304
`
  await fresh(repo)
  const ids: string[] = []
  for (let n = 1; n <= count; n++) {
    const id = `ack-${n}`
    if (n > 1) await $`e2e data-gen/change --dir source --percent 10 --each --seed ${seed + n} > change.out`
    await witness('source', id)
    await $({ limit: '30m' })`vykar --config config.yaml backup -R ${repo} > ${id}.out`
    await $`sed -n 's/^Snapshot created: //p' ${id}.out > ${id}.id`
    ids.push(id)
    if (n === 1) await first()
  }
  return ids
}

/** A violation of the oracle, for findings.md and the verdict. */
interface Violation {
  rule: string
  round: string
  seen: string
  command: string
}
const violations = new WeakMap<object, Violation[]>()
/** Rows whose repository may be damaged, by a known finding or another: what is cleared away there may complain. */
const suspect = new WeakSet<object>()

/**
 * Puts a violation on record: a known finding is a note, another one makes the row a FAIL when it ends (`conclude`).
 * @param id of its entry in known-findings.yaml, where it may be one
 */
export function violated(rule: string, round: string, seen: string, command: string, id = ''): void {
  const { run, report, dry } = rowScope()
  if (dry) return
  // What a full disk of the suite's own has brought about is nobody's fault.
  notFull(run.runtime)
  suspect.add(report)
  const known = findingsOf(run.plan.vykar.version).some((one) => one.id === id)
  const file = join(run.dirs.reports, 'findings.md')
  if (!existsSync(file)) appendFileSync(file, `# Findings of ${run.plan.scenario}, run ${run.id}\n`)
  appendFileSync(
    file,
    `\n## ${seen}\n\n- vykar ${run.plan.vykar.version}${known ? `; known: ${id}` : ''}\n- round: ${round}\n- rule: ${rule}\n- the command: \`${command}\`\n- all commands: ${report.repo} in ${run.report.transcript}\n`,
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
): Promise<'right' | 'refused' | 'wrong'> {
  await $`rm -rf lost tree && mkdir lost tree`
  const tried = await $({
    limit: '10m',
    expect: 'any',
  })`${there} HOME=$PWD/lost vykar --config ${config} restore -R ${repo} ${{ raw: flags }} $(<${{ raw: id }}.id) tree > restore.out 2>&1`
  const compared = await $({
    expect: 'any',
  })`(cd tree && sha256sum --check --quiet --strict ../${id}.sha256 > ../wrong.out 2>&1) && if test -e ${id}.tree; then (cd tree && ${{ raw: listing }}) | diff -a ${id}.tree - > differ.out; else test "$(find tree -type f -printf x | wc -c)" = "$(wc -l < ${id}.sha256)"; fi`
  const { dry, steps } = rowScope()
  if (tried.code === 124 || tried.code === 137)
    violated('7: everything ends', steps.at(-1)?.name ?? '', `restore of ${id} does not end`, `vykar restore ${id}`)
  if (dry || (tried.code === 0 && compared.code === 0)) return 'right'
  return tried.code === 0 ? 'wrong' : 'refused'
}

/**
 * Rule 1: every acknowledged snapshot restores to its witness. Returns whether all do.
 * @param finding id of the known finding that this round shows: an acknowledged snapshot is refused when it is restored
 */
export async function allThere(
  repo: string,
  ids: readonly string[],
  round: string,
  there = at(repo, '$PWD/nowhere'),
  finding = '',
): Promise<boolean> {
  let all = true
  for (const id of ids) {
    const how = await restoredAs(repo, id, there)
    // By hand the same ends the procedure, but where a known finding is met.
    if (!finding) await check(`(cd tree && sha256sum --check --quiet --strict ../${id}.sha256)`, () => {})
    if (how === 'right') continue
    all = false
    violated(
      '1: acknowledged snapshots restore',
      round,
      `${id}, made before the fault, is ${how} when it is restored`,
      `vykar restore ${id}`,
      // No finding of these is about wrong data with exit 0.
      how === 'refused' ? finding : '',
    )
  }
  return all
}

/**
 * Rules 2, 3, 4 and 6, once the fault is gone: a snapshot that was made under it is complete or absent; the next backup, check and restore
 * succeed, and leave nothing that only a killed process would.
 * @param ids acknowledged snapshots, which must be there
 * @param under what ran under the fault
 * @param known all that were made before the fault
 * @param finding id of the known finding that this round shows, where it is one
 * @param nextToo whether it says that the next backup, too, is refused when restored
 */
export async function afterwards(
  repo: string,
  ids: readonly string[],
  round: string,
  under: Output | undefined,
  there: Place,
  known = ids,
  finding = '',
  nextToo = false,
): Promise<void> {
  let right = await allThere(repo, ids, round, there, finding)
  const tell = (rule: string, seen: string, command: string) => violated(rule, round, seen, command)
  // What was made under the fault: every snapshot that is not one of the acknowledged ones.
  const listed = await $({
    expect: 'any',
  })`${there} vykar --config config.yaml list -R ${repo} > after.list 2> after.err`
  if (listed.code)
    tell('4: works again', `list fails after the fault: ${read('after.err').split('\n').at(-1)}`, 'vykar list')
  await $`cat ${known.map((id) => `${id}.id`)} > acked && { grep -oE '^ *[0-9a-f]{8} ' after.list || true; } | tr -d ' ' | grep -vxFf acked > under.ids || true`
  if (read('under.ids')) {
    await $`head -n 1 under.ids > under.id`
    await witness('source', 'under')
    const how = await restoredAs(repo, 'under', there)
    // With exit 3 files may be missing, but what is there is right.
    const rest = await $({
      expect: 'any',
    })`(cd tree && sha256sum --check --ignore-missing --quiet --strict ../under.sha256 > ../wrong.out 2>&1)`
    const whole = how === 'right' || (under?.code === 3 && how === 'wrong' && rest.code === 0)
    right &&= whole
    if (!whole)
      tell(
        '2: absent or complete',
        `the snapshot made under the fault (exit ${under?.code}) is ${how} when restored`,
        'vykar restore',
      )
  } else if (under?.code === 0)
    tell('2: exit 0 means complete', 'exit 0 under the fault, but list shows no snapshot', 'vykar backup')
  const next = await $({
    limit: '10m',
    expect: 'any',
  })`${there} vykar --config config.yaml backup -R ${repo} > next.out 2> next.err`
  if (next.code)
    return tell(
      '4: works again',
      `the next backup exits ${next.code}: ${read('next.err').split('\n').at(-1)}`,
      'vykar backup',
    )
  await $`sed -n 's/^Snapshot created: //p' next.out > next.id`
  await witness('source', 'next')
  const how = await restoredAs(repo, 'next', there)
  right &&= how === 'right'
  if (how !== 'right')
    violated(
      '4: works again',
      round,
      `the next backup exits 0, and is ${how} when restored`,
      'vykar backup; vykar restore',
      nextToo && how === 'refused' ? finding : '',
    )
  const checked = await $({
    limit: '10m',
    expect: 'any',
  })`${there} vykar --config config.yaml check -R ${repo} --verify-data > next.check 2>&1`
  // Of what cannot be restored check is to complain.
  if (checked.code && right)
    tell(
      '3: check agrees with restore',
      `check --verify-data exits ${checked.code}, but all restores are right`,
      'vykar check --verify-data',
    )
  if (right) await reclaimHarmless(repo, ids.length ? ids : ['next'], round, there)
}

/** How often a row's repository was reclaimed. */
const reclaims = new WeakMap<object, number>()

/**
 * Rule 6, for one of the snapshots, each in its turn: in a copy of the repository all others are deleted and the rest is repacked, with an
 * empty cache; it restores to its witness all the same. Much damage shows only then.
 */
async function reclaimHarmless(repo: string, ids: readonly string[], round: string, there: Place) {
  const { report, run } = rowScope()
  const { seen, remote } = run.endpoint(repo)
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
      round,
      seenThen,
      'vykar snapshot delete; vykar compact --threshold 0; vykar restore',
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

/**
 * What a fault must have led to.
 * @param verb what ran into it; it printed into met.out
 * @param must whether it must come through, must fail, or may do either
 * @param hangs of its entry in known-findings.yaml, where it is known not to end
 */
export function judge(name: string, verb: string, { code }: Output, must: 'work' | 'fail' | 'any', hangs = ''): void {
  if (code === 124 || code === 137)
    return violated('7: everything ends', name, `${verb} did not end within its limit`, `vykar ${verb}`, hangs)
  if (code > 3) violated('7: ends well', name, `${verb} ends with exit ${code}: ${lastOf('met.out')}`, `vykar ${verb}`)
  if (must === 'work' && code !== 0)
    violated(
      'a fault that goes away costs nothing',
      name,
      `${verb} exits ${code}: ${lastOf('met.out')}`,
      `vykar ${verb}`,
    )
  if (must === 'fail' && code === 0)
    violated('2: exit 0 means complete', name, `${verb} exits 0 although it could not be done`, `vykar ${verb}`)
}

/** Ends a row of faults: it is BLOCKED where no fault fired, and a FAIL where the oracle was violated. */
export async function conclude(fired: number, rounds: number): Promise<void> {
  await check(`# ${rounds} rounds`, () => {
    const { report } = rowScope()
    if (!rounds) throw new Skipped('it has no round of the name that --round gives')
    fact('rounds', rounds)
    fact('faults fired', fired)
    const found = violations.get(report) ?? []
    fact('violations', found.length)
    const [first] = found
    if (!first && !fired) throw new Blocked(`none of ${rounds} faults fired`)
    if (first)
      throw new Mismatch(
        `${found.length} violation${found.length > 1 ? 's' : ''} of the oracle, findings.md has them: ${first.round}: ${first.seen}`,
      )
    if (fired < rounds) note(`${rounds - fired} of ${rounds} faults did not fire`)
  })
}

/** The last line of what a command has printed into a file of the row, for a message. */
export const lastOf = (file: string): string =>
  read(file)
    .split('\n')
    .at(-1)
    ?.replace(/^\S+Z +/, '') ?? ''

/** Seconds that a command within a line may take, as --time-scale stretches them. */
export const within = (seconds: number): number => Math.ceil(seconds * rowScope().run.common['time-scale'])

/**
 * Waits until strace has stopped (SIGSTOP) the program that it runs in the background under this name and writes its calls into `calls`.
 * The program's pid is in traced.pid: `kill -CONT` lets it go on.
 * @returns whether it is held, and has not ended
 */
export async function held(name: string, task: Background): Promise<boolean> {
  await $({
    limit: '60s',
  })`until pid=$(pgrep -P $(<${{ raw: name }}.pid)) && grep -q '^State:.[tT]' /proc/$pid/status && test -s calls || ! kill -0 $(<${{ raw: name }}.pid) 2> /dev/null; do sleep 0.05; done; echo $pid > traced.pid; sleep 0.3`
  return task.running()
}
