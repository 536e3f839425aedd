// What every family of faults shares: options, rounds, a repository with acknowledged snapshots, and how a row ends.

import { ask, lastLine } from '#lib/ask.mts'
import type { Background } from '#lib/background.mts'
import { config } from '#lib/config.mts'
import { meant } from '#lib/options.mts'
import type { Run } from '#lib/run.mts'
import { $, check, fact, note, rowScope, step } from '#lib/sh.mts'
import { Blocked, Mismatch, Skipped, UsageError } from '#lib/verdict.mts'
import { fresh } from '#scripts/common.mts'
import { lastOf, violated, violations } from '#scripts/faults/oracle.mts'
import { findingsOf } from '#scripts/findings.mts'
import { witnessed } from '#scripts/witnessed.mts'

/** The option of families whose faults are drawn. */
export const drawnOptions = { rounds: { kind: 'number', help: 'rounds for each kind of fault', default: 0 } } as const
/** The options of every family. */
export const faultOptions = {
  round: { kind: 'string', help: 'only this round, as its line names it' },
  'corpus-mib': { kind: 'number', help: 'size of the source in MiB', default: 20, above: true },
} as const

/**
 * The rounds of a row: `chosen` says whether a round is the one that --round names (or none is named), marks its step, and puts its name
 * into `tried`.
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
  const rounds = [...plan.stdout.matchAll(/^# ([^:\n]+): (.+)$/gm)]
    .map(([, row, name]) => ({ row, name: name! }))
    .filter(({ name }) => !/^(acknowledged|afterwards|no more than linear)$/.test(name))
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
  await $`cp -a corpus/snapshot-1 source && echo kept | tee source/acl > source/xattr && setfattr -n user.binary -v 0x00ff10 source/xattr && setfacl -m u:12345:rw source/acl`
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
    await witnessed('source', id)
    await $({ limit: '30m' })`vykar --config config.yaml backup -R ${repo} > ${id}.out`
    await $`sed -n 's/^Snapshot created: //p' ${id}.out > ${id}.id`
    ids.push(id)
    if (n === 1) await first()
  }
  return ids
}

/** One more snapshot of a source that has grown, which may go: bash that leaves its id in extra.id. */
export const more = (repo: string): string =>
  `head -c 2M /dev/urandom > source/extra && vykar --config config.yaml backup -R ${repo} > extra.out && sed -n 's/^Snapshot created: //p' extra.out > extra.id`

/**
 * What a fault must have led to.
 * @param verb what ran into it; it printed into met.out
 * @param must whether it must come through, must fail, or may do either
 * @param hangs of its entry in known-findings.yaml, where it is known not to end
 */
export function judge(verb: string, { code }: { code: number }, must: 'work' | 'fail' | 'any', hangs = ''): void {
  if (code === 124 || code === 137)
    return violated('7: everything ends', `${verb} did not end within its limit`, `vykar ${verb}`, hangs)
  if (code > 3) violated('7: ends well', `${verb} ends with exit ${code}: ${lastOf('met.out')}`, `vykar ${verb}`)
  if (must === 'work' && code !== 0)
    violated('a fault that goes away costs nothing', `${verb} exits ${code}: ${lastOf('met.out')}`, `vykar ${verb}`)
  if (must === 'fail' && code === 0)
    violated('2: exit 0 means complete', `${verb} exits 0 although it could not be done`, `vykar ${verb}`)
}

/**
 * Ends a row of faults: it is BLOCKED where no fault fired, and a FAIL where the oracle was violated.
 * @param missed rounds, or kinds of rounds, in which none did: the report names them
 */
export async function conclude(fired: number, rounds: number, missed: readonly string[] = []): Promise<void> {
  await check(`# ${rounds} rounds`, () => {
    const { report } = rowScope()
    if (!rounds) throw new Skipped('it has no round of the name that --round gives')
    fact('rounds', rounds)
    fact('faults fired', fired)
    const found = violations.get(report) ?? []
    fact('violations', found.length)
    const [first] = found
    if (!first && fired * 2 < rounds)
      throw new Blocked(
        `${fired || 'none'} of ${rounds} faults fired${missed.length ? `: not ${missed.join(', ')}` : ''}`,
      )
    if (first)
      throw new Mismatch(
        `${found.length} violation${found.length > 1 ? 's' : ''} of the oracle, findings.md has them: ${first.round}: ${first.seen}`,
      )
    if (fired < rounds || missed.length)
      note(`${rounds - fired} of ${rounds} faults did not fire${missed.length ? `: ${missed.join(', ')}` : ''}`)
  })
}

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

/**
 * At the end of a family, where all rows and rounds were run: what it shows each time, by `shows_in` of known-findings.yaml, it has shown.
 * @throws Mismatch under --strict-gaps where it has not; otherwise that is a note
 */
export function stillShown({ dry, plan, common, report }: Run): void {
  const { round, rounds } = plan.options as { round?: string; rounds?: number }
  const partly = report.rows.some(
    ({ verdict, notes }) => verdict !== 'PASS' || notes.some((one) => /not tried/.test(one)),
  )
  if (dry || round || rounds || common.repo.length || partly) return
  const seen = report.rows.flatMap(({ findings }) => findings.map(({ id }) => id))
  const fixed = findingsOf(plan.vykar.version)
    .filter((one) => one.shows_in === plan.scenario && !seen.includes(one.id))
    .map(({ id }) => id)
  if (!fixed.length) return
  const said = `known findings that no longer show, remove them from configs/known-findings.yaml: ${fixed.join(', ')}`
  if (common['strict-gaps']) throw new Mismatch(said)
  report.notes.push(said)
}
