#!/usr/bin/env -S npx tsx
// The release gate: may this build of vykar be shipped?
//   npm run gate -- --vykar NEW --baseline OLD [SCENARIO or folder...]
// Runs a profile with both builds, scenario by scenario in shuffled order, then times both in the same rounds, on the
// same corpus with the same seed. It ships unless there is a new FAIL (or one for another reason), a scenario or row that only the
// baseline passed or that is BLOCKED with both, a known gap or finding that vanished or appeared, or an operation that takes more
// time, memory or space than the baseline with an interval beyond the threshold, or that only the baseline could do.
// Writes report.md, junit.xml and results.tar.gz (at most 20 MiB) to ~/runtime/reports/gate/<run>/ and, where
// $GITHUB_STEP_SUMMARY is set, the report there too. The last line is SHIP or DO NOT SHIP; exit 0 or 1.
import { appendFileSync, existsSync, mkdirSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { seeded } from '#data-gen/random.mts'
import { hangupIgnored, needProcess } from '#lib/environment.mts'
import { writeWhole } from '#lib/files.mts'
import { identifyVykar } from '#lib/host.mts'
import { optionHelp, parseOptions } from '#lib/options.mts'
import { newRunId } from '#lib/ours.mts'
import { headerOf } from '#lib/prepare.mts'
import { allowLostOutput, duration, Terminal } from '#lib/terminal.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { readBenchmark } from '#scripts/benchmarks/compare.mts'
import { shuffled } from '#scripts/benchmarks/stats.mts'
import { measureOnly, rowName } from '#scripts/suite/collect.mts'
import { type Judgement, judgeScenarios, judgeTimes, type Pair } from '#scripts/suite/judge.mts'
import { pack } from '#scripts/suite/pack.mts'
import { junitOfAll, reportOf } from '#scripts/suite/results.mts'
import { checksums, refuseFirst, runTask, type SuiteRun, type Task } from '#scripts/suite/runner.mts'
import { choose, describeAll, type Entry, profiles } from '#scripts/suite/scenarios.mts'

const specs = {
  help: { kind: 'flag', help: 'this text' },
  vykar: { kind: 'path', help: 'the new build' },
  baseline: { kind: 'path', help: 'the build that it is compared with' },
  profile: { kind: 'string', help: 'scenarios to run', choices: Object.keys(profiles), default: 'smoke' },
  repo: { kind: 'list', help: 'repositories to use, by label' },
  runs: { kind: 'number', help: 'rounds of the benchmark; 0 leaves it out', default: 5 },
  threshold: { kind: 'number', help: 'share by which a time may grow', default: 0.1 },
  'corpus-gib': { kind: 'number', help: 'size of the benchmark’s corpus', default: 1, above: true },
  seed: { kind: 'number', help: 'all random choices derive from it', default: 1 },
  runtime: { kind: 'path', help: 'results; default ~/runtime or $VYKAR_E2E_RUNTIME' },
  sample: { kind: 'path', help: 'base config' },
} as const

type Options = ReturnType<typeof parseOptions<typeof specs>>
let stopped: NodeJS.Signals | undefined

const terminal = new Terminal('normal')

/**
 * Runs one entry with one build.
 * @param place of the call among all, for who watches
 */
async function runWith(dir: string, entry: Entry, build: string, path: string, place: string): Promise<Task> {
  // A profile may have a scenario more than once.
  const output = join(dir, `${place.split(' ')[0]}-${entry.scenario.replaceAll('/', '-')}.${build}.out`)
  const task: Task = { ...entry, args: [...entry.args, '--vykar', path], output }
  terminal.begin(place, `${entry.scenario} (${build})`)
  task.result = await runTask(
    task,
    () => stopped !== undefined,
    () => undefined,
  )
  terminal.stop()
  if (!task.result) throw new Error(`interrupted by ${stopped}`)
  const { verdict, seconds, reason, report } = task.result
  if (build === 'baseline' && existsSync(report)) writeWhole(join(dirname(report), measureOnly), `${dir}\n`)
  console.log(
    `${verdict.padEnd(8)} ${build.padEnd(9)} ${entry.scenario.padEnd(26)} ${duration(seconds).padStart(12)}  ${reason}`.trimEnd(),
  )
  return task
}

/** The scenarios of the profile with both builds; which one is first is drawn. */
async function scenarios(
  dir: string,
  entries: Entry[],
  builds: { vykar: string; baseline: string },
  seed: number,
): Promise<{ pairs: Pair[]; tasks: Task[] }> {
  const next = seeded(`gate ${seed}`)
  const [pairs, tasks]: [Pair[], Task[]] = [[], []]
  let n = 0
  for (const entry of entries) {
    const done: Partial<Record<'vykar' | 'baseline', Task>> = {}
    for (const build of shuffled(['vykar', 'baseline'] as const, next))
      done[build] = await runWith(dir, entry, build, builds[build], `${++n} of ${entries.length * 2}`)
    const [baseline, vykar] = [done.baseline!, done.vykar!]
    pairs.push({
      scenario: entry.scenario,
      baseline: baseline.result!,
      fresh: vykar.result!,
      reports: [reportOf(baseline), reportOf(vykar)],
    })
    tasks.push(vykar)
  }
  return { pairs, tasks }
}

/** Both builds in the same rounds of the benchmark. */
async function times(
  dir: string,
  options: Options,
  common: string[],
  builds: { vykar: string; baseline: string },
): Promise<Judgement & { reports: string[] }> {
  const size = ['--corpus-gib', String(options['corpus-gib'])]
  const args = [
    '--repo',
    'local',
    '--tools',
    'vykar',
    '--baseline',
    builds.baseline,
    '--runs',
    String(options.runs),
    ...size,
    ...common,
  ]
  const task = await runWith(dir, { scenario: 'benchmarks', args, limit: 4 * 3600 }, 'both', builds.vykar, 'times')
  const page = reportOf(task)
    ?.notes.find((note) => note.startsWith('benchmark: '))
    ?.slice('benchmark: '.length)
  const { verdict, reason } = task.result!
  const objections = verdict === 'PASS' ? [] : [`benchmarks: ${verdict}: ${reason}`]
  const reports = [task.result!.report]
  if (!page)
    return { objections: objections.length ? objections : ['benchmarks: no times were measured'], notes: [], reports }
  const judged = judgeTimes(readBenchmark(dirname(dirname(page))), options.threshold)
  return { ...judged, objections: [...objections, ...judged.objections], reports }
}

/** The page: the answer first. */
function page(versions: string, { objections, notes }: Judgement): string {
  const list = (items: string[]) => items.map((item) => `- ${item}`).join('\n') || 'none'
  const answer = objections.length ? 'DO NOT SHIP' : 'SHIP'
  return `# ${answer}\n\n${versions}\n\n## Objections\n\n${list(objections)}\n\n## Notes\n\n${list(notes)}\n`
}

async function gate(options: Options): Promise<number> {
  if (!options.vykar || !options.baseline) throw new UsageError('--vykar NEW and --baseline OLD are both needed')
  const [fresh, old] = [await identifyVykar(options.vykar), await identifyVykar(options.baseline)]
  const builds = { vykar: fresh.path, baseline: old.path }
  const runtime = resolve(options.runtime ?? process.env.VYKAR_E2E_RUNTIME ?? join(homedir(), 'runtime'))
  const sample = options.sample ? ['--sample', resolve(options.sample)] : []
  const common = ['--runtime', runtime, '--seed', String(options.seed), ...sample]
  const { entries, left } = choose(await describeAll(), options._, options.profile, options.repo, common)
  if (!entries.length)
    throw new UsageError('nothing is to be run: no scenario of the profile has one of these repositories')
  if (!Number.isInteger(options.runs)) throw new UsageError(`--runs ${options.runs}: a whole number is needed`)
  for (const path of Object.values(builds)) {
    const [first] = entries as [Entry]
    await refuseFirst({ ...first, args: [...first.args, '--vykar', path] })
  }
  const sums = Object.values(builds).map(checksums)
  const runId = newRunId()
  const started = new Date().toISOString()
  const dir = join(runtime, 'reports/gate', runId)
  mkdirSync(dir, { recursive: true })
  const { pairs, tasks } = await scenarios(dir, entries, builds, options.seed)
  const [verdicts, speed] = [
    judgeScenarios(pairs),
    options.runs
      ? await times(dir, options, common, builds)
      : { objections: [], notes: ['times were not compared'], reports: [] },
  ]
  const twice = sums[0] === sums[1]
  const same = twice ? ['both builds are the same program: nothing new could be found'] : []
  const replaced = Object.values(builds).filter((path, n) => checksums(path) !== sums[n])
  const all: Judgement = {
    objections: [
      ...replaced.map((path) => `${path} was replaced meanwhile: more than two builds were run`),
      ...verdicts.objections,
      ...speed.objections,
    ],
    notes: [
      ...same,
      ...verdicts.notes,
      ...speed.notes,
      ...left.map(({ scenario, why }) => `${scenario} was not run: ${why}`),
    ],
  }
  const text = page(
    `vykar ${fresh.version} (${fresh.path}) against ${old.version} (${old.path}), profile ${options.profile}, seed ${options.seed}`,
    all,
  )
  const run: SuiteRun = {
    schema: 'vykar-e2e/all/1',
    runId,
    profile: options.profile,
    started,
    tasks,
    left,
  }
  writeWhole(join(dir, 'report.md'), text)
  writeWhole(join(dir, 'junit.xml'), junitOfAll(run))
  if (process.env.GITHUB_STEP_SUMMARY) appendFileSync(process.env.GITHUB_STEP_SUMMARY, text)
  const reports = [...pairs.flatMap((pair) => [pair.fresh.report, pair.baseline.report]), ...speed.reports].filter(
    Boolean,
  )
  // What cannot be packed takes nothing back of the answer.
  await pack(runtime, join(dir, 'results.tar.gz'), reports.map(dirname)).catch((error) =>
    console.log(`note: results.tar.gz was not made: ${messageOf(error)}`),
  )
  for (const objection of all.objections) console.log(`objection ${objection}`)
  console.log(`report ${join(dir, 'report.md')}`)
  const untried = [...pairs.filter((pair) => pair.fresh.verdict === 'SKIPPED'), ...left].map(({ scenario }) => scenario)
  const both = pairs.filter((pair) => pair.fresh.verdict === 'FAIL' && pair.baseline.verdict === 'FAIL')
  const skipped = pairs.flatMap(({ scenario, fresh: { verdict }, reports: [, after] }) =>
    verdict === 'SKIPPED'
      ? []
      : (after?.rows ?? []).filter((row) => row.verdict === 'SKIPPED').map((row) => `${scenario} ${rowName(row)}`),
  )
  const said = [
    ...(both.length ? [`${both.length} FAIL with both: ${both.map(({ scenario }) => scenario).join(', ')}`] : []),
    ...(skipped.length ? [`${skipped.length} rows SKIPPED: ${skipped.join(', ')}`] : []),
    ...(twice ? ['the same program twice'] : []),
    ...(untried.length ? [`${untried.length} not tried: ${untried.join(', ')}`] : []),
    ...(options.runs ? [] : ['times not compared']),
    ...(options.runs && options.runs < 5 ? [`${options.runs} rounds show no difference of times`] : []),
  ]
  console.log(
    all.objections.length
      ? `DO NOT SHIP ${fresh.version}: ${all.objections.length} objections`
      : `SHIP ${fresh.version}${said.length ? `; ${said.join('; ')}` : ''}`,
  )
  return all.objections.length ? 1 : 0
}

for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.on(name, () => {
    if (name !== 'SIGHUP' || !hangupIgnored()) stopped ??= name
  })
allowLostOutput()
try {
  needProcess()
  const options = parseOptions(process.argv.slice(2), specs, true)
  if (options.help) console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  else process.exitCode = await gate(options)
} catch (error) {
  console.error(`gate: ${messageOf(error)}`)
  process.exitCode = stopped
    ? { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[stopped as 'SIGINT']
    : error instanceof UsageError
      ? 2
      : 1
}
