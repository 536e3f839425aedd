#!/usr/bin/env -S npx tsx
// Looks at results of earlier runs.
//   report.mts index                      writes ~/runtime/reports/index.html: verdict, failures, what was not tested, history
//   report.mts show SCENARIO|DIR          prints a report, the newest of a scenario
//   report.mts compare A B                two benchmarks: what became slower or faster; two runs of a scenario: verdicts,
//                                         known gaps, steps
//   report.mts merge DIR... [--expected FILE]   takes the reports of other hosts' runtime directories over; FILE is what
//                                         `all.mts --list` printed: what has no result is listed, to be run again
//   report.mts prune --keep 30d           removes older reports and logs, not the newest of a scenario
//   report.mts pack FILE.tar.gz           the newest results and their logs in at most 20 MiB
// compare exits 1 on a regression beyond the threshold or a verdict that became worse; merge exits with the worst verdict, 1
// when something is missing.
import { existsSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { writeWhole } from '#lib/files.mts'
import { meant, optionHelp, parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { allowLostOutput, bytes, duration } from '#lib/terminal.mts'
import { exitCodes, fold, messageOf, UsageError } from '#lib/verdict.mts'
import { compare, lacking, readBenchmark } from '#scripts/benchmarks/compare.mts'
import { ratioText } from '#scripts/benchmarks/summary.mts'
import {
  collect,
  difference,
  honest,
  keyOf,
  keyOfLine,
  merge,
  newest,
  pruneRuns,
  readReport,
  type Stored,
} from '#scripts/suite/collect.mts'
import { pack } from '#scripts/suite/pack.mts'
import { indexPage } from '#scripts/suite/page.mts'
import { scenarioNames } from '#scripts/suite/scenarios.mts'

const specs = {
  help: { kind: 'flag', help: 'this text' },
  runtime: { kind: 'path', help: 'runtime directory; default ~/runtime or $VYKAR_E2E_RUNTIME' },
  threshold: { kind: 'number', help: 'share by which a time may grow', default: 0.1 },
  keep: { kind: 'string', help: 'prune: how old a run may be, in days (30d) or hours (12h)' },
  expected: { kind: 'file', help: 'merge: list of what was to be run' },
} as const

/** Prints a line for each operation that both have, the worst first, and for each that one of them lacks. Returns the exit code. */
function compareBenchmarks(a: string, b: string, threshold: number): number {
  const [first, second] = [readBenchmark(a), readBenchmark(b)]
  const changes = compare(first, second, threshold)
  for (const { repo, operation, tool, ratio, regression } of changes.sort((x, y) => y.ratio.ratio - x.ratio.ratio)) {
    const word = regression ? 'SLOWER' : !ratio.shown ? 'same' : ratio.ratio > 1 ? 'slower' : 'faster'
    console.log(`${word.padEnd(7)} ${repo} ${tool.padEnd(8)} ${operation.padEnd(17)} ${ratioText(ratio)}`)
  }
  const lacks = lacking(first, second)
  for (const { repo, operation, tool, why, worse } of lacks)
    console.log(
      `${(worse ? 'MISSING' : why.startsWith('measured') ? 'n/a' : 'new').padEnd(7)} ${repo} ${tool.padEnd(8)} ${operation.padEnd(17)} ${why}`,
    )
  const worse = changes.filter((change) => change.regression).length
  const gone = lacks.filter((lack) => lack.worse).length
  const share = `of ${changes.length} are slower by more than ${threshold * 100} %`
  console.log(
    worse + gone
      ? `FAIL ${worse} ${share}${gone ? `, ${gone} that the first had are missing or failed` : ''}`
      : `PASS none ${share.replace('are', 'is')}`,
  )
  return worse + gone ? 1 : 0
}

/** Prints how two runs of a scenario differ. Returns 1 where a verdict became worse, or a known gap or finding is new. */
function compareRuns(a: string, b: string, threshold: number): number {
  const [first, second] = [readReport(a).report, readReport(b).report]
  if (first.scenario !== second.scenario)
    throw new UsageError(`${first.scenario} and ${second.scenario} are two scenarios: compare two runs of one`)
  const { verdicts, gaps, findings, steps } = difference(first, second, threshold)
  console.log(`${first.scenario}: vykar ${first.versions.vykar} and ${second.versions.vykar}`)
  for (const { row, from, to } of verdicts) console.log(`verdict  ${row}: ${from} → ${to}`)
  for (const { row, gap, change } of gaps) console.log(`gap      ${row}: ${gap} is ${change}`)
  for (const { row, finding, change } of findings) console.log(`finding  ${row}: ${finding} is ${change}`)
  for (const { row, step, from, to } of steps)
    console.log(`time     ${row} ${step}: ${duration(from)} → ${duration(to)} (one run each: no more than a hint)`)
  const worse = verdicts.filter(
    ({ from, to }) => to !== from && to !== 'PASS' && (from === 'PASS' || to === 'FAIL' || to === 'not run'),
  ).length
  const fresh = [...gaps, ...findings].filter(({ change }) => change === 'new').length
  console.log(
    worse + fresh
      ? `FAIL ${worse} verdicts became worse, ${fresh} known gaps or findings are new`
      : 'PASS no verdict became worse, no known gap or finding is new',
  )
  return worse + fresh ? 1 : 0
}

const isReport = (path: string) =>
  path.endsWith('report.json') || path.endsWith('report.md') || existsSync(join(path, 'report.json'))

/** Writes the page. Returns its path. */
function index(runtime: string): string {
  const torn: string[] = []
  const stored = collect(runtime, torn)
  if (!stored.length) throw new UsageError(`${join(runtime, 'reports')} holds no report yet: run a scenario first`)
  const file = join(runtime, 'reports/index.html')
  writeWhole(file, indexPage(stored, scenarioNames(), join(runtime, 'reports'), torn))
  return file
}

/** The newest report of a scenario, or that of a directory. */
function show(runtime: string, word: string): void {
  const found = newest(collect(runtime))
  const run = found.get(word)?.now ?? (existsSync(word) ? readReport(word) : undefined)
  if (!run) throw new UsageError(`no report of ${word}${meant(word, [...found.keys()])}`)
  console.log(readFileSync(join(run.dir, 'report.md'), 'utf8'))
}

/**
 * Takes reports over. What counts of each runtime directory is the newest run of each call, and of equal calls of several hosts the worst.
 * Returns the exit code of the worst verdict, 1 where something expected has no result.
 */
function mergeAll(runtime: string, dirs: string[], expected: string | undefined): number {
  const lines = expected ? readFileSync(expected, 'utf8').split('\n').filter(Boolean) : []
  if (expected && !lines.length) throw new UsageError(`--expected ${expected} is empty: nothing would be missing`)
  const from = dirs.map((dir) => resolve(dir))
  const copied = merge(from, runtime)
  for (const { report } of copied)
    console.log(`${report.verdict.padEnd(8)} ${report.scenario}  ${report.reason}`.trimEnd())
  const ids = new Set<string>()
  const read = (dir: string) => {
    const torn: string[] = []
    return { stored: collect(dir, torn), torn }
  }
  const hosts = from.map(read)
  for (const { stored } of hosts) for (const { report } of stored) ids.add(report.runId)
  const here = read(runtime)
  hosts.push({ ...here, stored: here.stored.filter(({ report }) => !ids.has(report.runId)) })
  // A call that was BLOCKED or SKIPPED takes no FAIL back.
  const callsOf = (all: Stored[]) => {
    const stored = honest(all)
    return [...newest(stored, keyOf)].map(([call, { now }]) => {
      const looked = stored.find(({ report }) => keyOf(report) === call && /^(PASS|FAIL)$/.test(report.verdict))
      const stands = /^(BLOCKED|SKIPPED)$/.test(now.report.verdict) && looked?.report.verdict === 'FAIL'
      return { call, report: (stands ? looked : now).report }
    })
  }
  const calls = hosts.flatMap(({ stored }) => callsOf(stored))
  // What the stand-in has shown says nothing about vykar.
  const ended = (line: string) =>
    calls.some(({ call, report }) => call === keyOfLine(line) && report.seconds > 0 && report.verdict !== 'DEMO')
  // A result that cannot be read is none; which call it was of nobody knows, so a newer one of another call does not stand for it.
  const lost = hosts.flatMap(({ stored, torn }) =>
    torn.filter((dir) => {
      const same = callsOf(stored).filter(({ report }) => basename(report.scenario) === basename(dirname(dir)))
      const older = same.some(({ report }) => report.runId < basename(dir))
      return !same.length || older || (same.length > 1 && !lines.length)
    }),
  )
  const builds = new Set(calls.map(({ report }) => report.versions.vykar))
  const missing = lines.filter((line) => !ended(line))
  for (const line of missing) console.log(`again ./e2e ${line}`)
  console.log(`report ${index(runtime)}`)
  const verdict =
    missing.length || lost.length || builds.size > 1 ? 'FAIL' : fold(calls.map(({ report }) => report.verdict))
  const bad = calls.filter(({ report }) => report.verdict === 'FAIL' || report.verdict === 'BLOCKED')
  const skipped = calls.filter(({ report }) => report.verdict === 'SKIPPED')
  const said = [
    missing.length ? `${missing.length} of ${lines.length} have no result` : '',
    lost.length ? `cannot be read: ${lost.join(', ')}` : '',
    builds.size > 1 ? `they are of different builds: vykar ${[...builds].join(', ')}` : '',
    bad.length ? bad.map(({ call, report }) => `${call}: ${report.verdict}`).join(', ') : '',
    skipped.length ? `${skipped.length} SKIPPED: ${skipped.map(({ call }) => call).join(', ')}` : '',
  ].filter(Boolean)
  console.log([`${verdict} merged ${copied.length} reports`, ...said].join('; '))
  return exitCodes[verdict]
}

/** The moment so long ago, ISO 8601. */
function ago(keep: string | undefined): string {
  const [, count, unit] = /^(\d+)([dh])$/.exec(keep ?? '') ?? []
  if (!count || count.length > 6)
    throw new UsageError(`prune needs --keep with days or hours, such as 30d${keep ? `, not ${keep}` : ''}`)
  return new Date(Date.now() - Number(count) * (unit === 'd' ? 86_400_000 : 3_600_000)).toISOString()
}

const commands: Record<
  string,
  (paths: string[], options: ReturnType<typeof parseOptions<typeof specs>>, runtime: string) => number | Promise<number>
> = {
  index: (paths, _, runtime) => {
    expectPaths('index', paths, 0)
    console.log(`report ${index(runtime)}`)
    return 0
  },
  show: (paths, _, runtime) => {
    expectPaths('show', paths, 1)
    show(runtime, paths[0]!)
    return 0
  },
  compare: (paths, { threshold }) => {
    expectPaths('compare', paths, 2)
    return (paths.every(isReport) ? compareRuns : compareBenchmarks)(paths[0]!, paths[1]!, threshold)
  },
  merge: (paths, { expected }, runtime) => {
    if (!paths.length) throw new UsageError('merge needs the runtime directories of the other hosts')
    return mergeAll(runtime, paths, expected && resolve(expected))
  },
  prune: async (paths, { keep }, runtime) => {
    expectPaths('prune', paths, 0)
    const { gone, left } = await pruneRuns(runtime, ago(keep))
    for (const why of left) console.log(`left: ${why}`)
    console.log(gone.length ? `removed ${gone.length} runs: ${gone.join(', ')}` : 'nothing is that old')
    return 0
  },
  pack: async (paths, _, runtime) => {
    expectPaths('pack', paths, 1)
    const { packed, left, size } = await pack(runtime, resolve(paths[0]!))
    console.log(`${paths[0]}: ${packed} files, ${bytes(size)}${left ? `; ${left} did not fit` : ''}`)
    return 0
  },
}

function expectPaths(command: string, paths: string[], count: number): void {
  if (paths.length !== count)
    throw new UsageError(`${command} takes ${count} argument${count === 1 ? '' : 's'}, not ${paths.length}`)
}

allowLostOutput()
try {
  const options = parseOptions(process.argv.slice(2), specs, true)
  const [command, ...paths] = options._
  const runtime = resolve(options.runtime ?? process.env.VYKAR_E2E_RUNTIME ?? join(homedir(), 'runtime'))
  if (options.help) console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  else if (!command) throw new UsageError(`a command is needed: ${Object.keys(commands).join(', ')}`)
  else if (!commands[command])
    throw new UsageError(
      `no command ${command}${meant(command, Object.keys(commands)) || `: one of ${Object.keys(commands).join(', ')}`}`,
    )
  else if (options.expected && !existsSync(options.expected))
    throw new UsageError(`--expected ${options.expected}: no such file`)
  else process.exitCode = await commands[command](paths, options, runtime)
} catch (error) {
  console.error(`report: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
