// What every family of faults shares: a repository with acknowledged snapshots, and the oracle that it is held against afterwards.
import { appendFileSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { config } from '#lib/config.mts'
import { $, check, fact, note, type Output, read, rowScope, step } from '#lib/sh.mts'
import { Blocked, Mismatch, Skipped } from '#lib/verdict.mts'
import { contents, fresh } from '#scripts/common.mts'
import { findingsOf } from '#scripts/findings.mts'

/** The options of every family. */
export const faultOptions = {
  rounds: { kind: 'number', help: 'rounds for each kind of fault', default: 0 },
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

/** Where the row's repository is, for lines that look at another one: a copy, a proxy. */
export const at = (repo: string, url: string) => ({ raw: `REPO_${repo.toUpperCase().replace(/\W/g, '_')}=${url}` })

/**
 * A repository with acknowledged snapshots `ack-1`, `ack-2`, …: for each the id in NAME.id, and in NAME.sha256 what the source was when
 * it was made. Packs are small, so that there are many of them.
 * @param mode `none` for a repository without encryption
 */
export async function acknowledged(
  repo: string,
  count: number,
  mib: number,
  mode: 'auto' | 'none' = 'auto',
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
    await contents('source', id)
    await $({ limit: '30m' })`vykar --config config.yaml backup -R ${repo} > ${id}.out`
    await $`sed -n 's/^Snapshot created: //p' ${id}.out > ${id}.id`
    ids.push(id)
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
  there: { raw: string },
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
  })`(cd tree && sha256sum --check --quiet --strict ../${id}.sha256 > ../wrong.out 2>&1) && test "$(find tree -type f -printf x | wc -c)" = "$(wc -l < ${id}.sha256)"`
  const { dry } = rowScope()
  if (dry || (tried.code === 0 && compared.code === 0)) return 'right'
  return tried.code === 0 ? 'wrong' : 'refused'
}

/**
 * Rule 1: every acknowledged snapshot restores to its witness. Returns whether all do.
 * @param finding id of the known finding that this round shows, where it is one
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
    if (how === 'right') continue
    all = false
    violated(
      '1: acknowledged snapshots restore',
      round,
      `${id}, made before the fault, is ${how} when it is restored`,
      `vykar restore ${id}`,
      finding,
    )
  }
  return all
}

/**
 * Rules 2 and 4, once the fault is gone: a snapshot that was made under it is complete or absent; the next backup, check and restore
 * succeed, and leave nothing that only a killed process would.
 * @param ids acknowledged snapshots, which must be there
 * @param under what ran under the fault
 * @param known all that were made before the fault
 * @param finding id of the known finding that this round shows, where it is one
 */
export async function afterwards(
  repo: string,
  ids: readonly string[],
  round: string,
  under: Output | undefined,
  there: { raw: string },
  known = ids,
  finding = '',
): Promise<void> {
  let right = await allThere(repo, ids, round, there, finding)
  const tell = (rule: string, seen: string, command: string) => violated(rule, round, seen, command, finding)
  // What was made under the fault: every snapshot that is not one of the acknowledged ones.
  const listed = await $({
    expect: 'any',
  })`${there} vykar --config config.yaml list -R ${repo} > after.list 2> after.err`
  if (listed.code)
    tell('4: works again', `list fails after the fault: ${read('after.err').split('\n').at(-1)}`, 'vykar list')
  await $`cat ${known.map((id) => `${id}.id`)} > acked && { grep -oE '^ *[0-9a-f]{8} ' after.list || true; } | tr -d ' ' | grep -vxFf acked > under.ids || true`
  if (read('under.ids')) {
    await $`head -n 1 under.ids > under.id`
    await contents('source', 'under')
    const how = await restoredAs(repo, 'under', there)
    right &&= how === 'right'
    if (how !== 'right' && under?.code !== 3)
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
  await contents('source', 'next')
  const how = await restoredAs(repo, 'next', there)
  right &&= how === 'right'
  if (how !== 'right')
    tell('4: works again', `the next backup exits 0, and is ${how} when restored`, 'vykar backup; vykar restore')
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
    if (!rounds) throw new Skipped('no round of the name that --round gives')
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
