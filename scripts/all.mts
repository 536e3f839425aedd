#!/usr/bin/env -S npx tsx
// Runs scenarios one after the other, or --jobs at a time, in the matrix order: all of them, a folder, or those that are named.
//   all.mts backends databases/postgres --repo local,rest      a selection
//   all.mts --profile smoke                                    a fixed list: smoke 10 min, release 1 h, soak a night
//   all.mts --resume RUN                                       goes on where a run stopped, also after kill -9, with the options
//                                                              and the vykar that it was begun with
//   all.mts --list [--json]                                    what would be run, a line each as e2e takes it
// A line for each scenario as it ends; run.json, report.md and junit.xml in ~/runtime/reports/all/<run>/. The exit code
// is the worst verdict's. A scenario that exceeds its profile's limit is ended and BLOCKED.
import { existsSync, mkdirSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { hangupIgnored, needProcess } from '#lib/environment.mts'
import { readJson } from '#lib/files.mts'
import { which } from '#lib/host.mts'
import { lock } from '#lib/lock.mts'
import { optionHelp, parseOptions } from '#lib/options.mts'
import { newRunId } from '#lib/ours.mts'
import { commonOptions, headerOf } from '#lib/prepare.mts'
import { pointTo } from '#lib/report.mts'
import { allowLostOutput, duration, Terminal } from '#lib/terminal.mts'
import { exitCodes, messageOf, UsageError, type Verdict, verdictOf } from '#lib/verdict.mts'
import { byHand, lastTimes, skippedRows, timeLeft, verdictOfAll, writeResults } from '#scripts/suite/results.mts'
import { checksums, refuseFirst, runTask, type SuiteRun, save, type Task } from '#scripts/suite/runner.mts'
import { callOf, choose, describeAll, profiles } from '#scripts/suite/scenarios.mts'

/** Options that are handed on to every scenario. */
const handed = [
  'runtime',
  'sample',
  'services',
  'vykar',
  'seed',
  'time-scale',
  'require',
  'wipe-repo',
  'strict-gaps',
  'keep',
  'install',
] as const
const specs = {
  help: { kind: 'flag', help: 'this text' },
  profile: { kind: 'string', help: 'a fixed list', choices: Object.keys(profiles) },
  repo: commonOptions.repo,
  resume: { kind: 'string', help: 'run id or directory of a run to go on with; `latest` for the newest' },
  jobs: { kind: 'number', help: 'scenarios that run at the same time; times are then no measure', default: 1, min: 1 },
  'fail-fast': { kind: 'flag', help: 'stop at the first FAIL' },
  list: { kind: 'flag', help: 'print the calls, run nothing' },
  json: { kind: 'flag', help: 'with --list: as JSON, with limits and what is left out' },
  ...(Object.fromEntries(handed.map((name) => [name, commonOptions[name]])) as Pick<
    typeof commonOptions,
    (typeof handed)[number]
  >),
} as const

/** The options of this call that every scenario gets too, as they were given. */
function handedOn(argv: string[]): string[] {
  const words: string[] = []
  for (const [i, word] of argv.entries()) {
    const name = /^--([^=]+)/.exec(word)?.[1] as (typeof handed)[number] | undefined
    if (!name || !handed.includes(name)) continue
    const { kind } = commonOptions[name]
    if (kind === 'flag') words.push(word)
    else {
      const value = word.includes('=') ? word.slice(word.indexOf('=') + 1) : argv[i + 1]!
      // A run that is resumed elsewhere means the same files.
      words.push(`--${name}`, /path|file|dir/.test(kind) && value.includes('/') ? resolve(value) : value)
    }
  }
  return words
}

/** What is `vykar` for this call, by path and checksums; undefined where there is none, which its scenarios will say. */
function programOf(word: string | undefined): SuiteRun['vykar'] {
  const path = which(word?.includes('/') ? resolve(word) : (word ?? 'vykar'))
  return path ? { path, sha256: checksums(path) } : undefined
}

/** The run of an earlier call, by id, directory or `latest`. Throws UsageError where it cannot be the same run. */
function resumed(all: string, word: string, argv: readonly string[]): { dir: string; run: SuiteRun } {
  const own = ['resume', 'runtime', 'fail-fast', 'jobs']
  const other = argv.find((given) => given.startsWith('--') && !own.includes(/^--([^=]+)/.exec(given)![1]!))
  if (other)
    throw new UsageError(`${other}: --resume goes on with what the run was begun with; begin anew for other options`)
  const dir = [join(all, word), resolve(word)].find((path) => existsSync(join(path, 'run.json')))
  if (!dir) throw new UsageError(`--resume ${word}: no such run below ${all}`)
  const run = readJson<SuiteRun>(join(dir, 'run.json'))
  if (!run?.tasks) throw new UsageError(`--resume ${word}: ${join(dir, 'run.json')} is torn: begin anew`)
  if (run.vykar && programOf(run.vykar.path)?.sha256 !== run.vykar.sha256)
    throw new UsageError(`--resume ${word}: ${run.vykar.path} is another build than at its begin: begin anew`)
  return { dir, run }
}

/** Runs what has no result yet. Returns the exit code. */
async function work(dir: string, run: SuiteRun, failFast: boolean, jobs: number): Promise<number> {
  const release = await lock(`all ${run.runId}`, `run ${run.runId}`)
  let stopped: NodeJS.Signals | undefined
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(name, () => {
      if (name !== 'SIGHUP' || !hangupIgnored()) stopped ??= name
    })
  const width = Math.max(...run.tasks.map((task) => task.scenario.length))
  const terminal = new Terminal('normal')
  const times = lastTimes(dirname(dir))
  let over = false
  /** The calls that are under way, by their place in the list, and since when. */
  const going = new Map<number, number>()
  const tell = () => {
    terminal.stop()
    if (!going.size) return
    // That which is under way the longest, and how many more there are: a line has no place for all.
    const [[first, since]] = [...going].sort(([, a], [, b]) => a - b) as [[number, number]]
    const rest = going.size > 1 ? ` and ${going.size - 1} more` : ''
    const left = () => timeLeft(run.tasks, times, (n) => (going.has(n) ? (Date.now() - going.get(n)!) / 1000 : 0), jobs)
    terminal.begin(`${first + 1} of ${run.tasks.length}`, `${run.tasks[first]!.scenario}${rest}`, left, since)
  }
  const one = async (n: number, task: Task): Promise<void> => {
    if (!task.result) {
      // One that an earlier call has left behind began then.
      going.set(n, task.process && task.begun ? Date.parse(task.begun) : Date.now())
      tell()
      task.result = await runTask(
        task,
        () => stopped !== undefined,
        () => save(dir, run),
      )
      going.delete(n)
      terminal.stop()
    }
    delete task.process
    save(dir, run)
    writeResults(dir, run)
    over ||= !task.result
    if (!task.result) return
    const { verdict, seconds, reason } = task.result
    console.log(
      `${verdict.padEnd(8)} ${task.scenario.padEnd(width)} ${duration(seconds).padStart(12)}  ${reason}`.trimEnd(),
    )
    over ||= failFast && verdict === 'FAIL'
    tell()
  }
  // Each worker takes the next one of the list whose scenario is not at work: two runs of one scenario share its repository.
  const queue = [...run.tasks.entries()]
  const busy = new Set<string>()
  const take = () => {
    const at = queue.findIndex(([, { scenario }]) => !busy.has(scenario))
    return at < 0 || over ? undefined : queue.splice(at, 1)[0]
  }
  const worker = async (): Promise<void> => {
    for (let next = take(); next; next = take()) {
      busy.add(next[1].scenario)
      await one(...next)
      busy.delete(next[1].scenario)
    }
  }
  await Promise.all(Array.from({ length: jobs }, worker))
  await release()
  const of = (word?: Verdict) => run.tasks.filter((task) => task.result?.verdict === word)
  for (const task of [...of('FAIL'), ...of('BLOCKED')]) console.log(`again ${byHand(task)}`)
  console.log(`report ${join(dir, 'report.md')}`)
  const total = run.tasks.length
  const rows = skippedRows(run)
  const others = run.left.filter(({ why }) => why.startsWith('none of its')).map(({ scenario }) => scenario)
  const said = [
    rows.length ? `${rows.length} row${rows.length > 1 ? 's' : ''} SKIPPED: ${rows.join(', ')}` : '',
    of('SKIPPED').length
      ? `${of('SKIPPED').length} of ${total} SKIPPED: ${of('SKIPPED')
          .map((task) => task.scenario)
          .join(', ')}`
      : '',
    of().length ? `${of().length} of ${total} were not run; go on with --resume ${run.runId}` : '',
    others.length ? `none of its repositories was chosen: ${others.join(', ')}` : '',
  ]
  if (run.vykar && programOf(run.vykar.path)?.sha256 !== run.vykar.sha256) {
    run.replaced = true
    run.left.push({ scenario: 'one build', why: `${run.vykar.path} was replaced meanwhile` })
    save(dir, run)
    writeResults(dir, run)
    said.push(`${run.vykar.path} was replaced meanwhile: two builds were tested`)
  }
  const verdict = verdictOfAll(run)
  console.log([verdict, 'all', said.filter(Boolean).join('; ')].filter(Boolean).join(' '))
  return stopped ? { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[stopped as 'SIGINT'] : exitCodes[verdict]
}

allowLostOutput()
try {
  needProcess()
  const argv = process.argv.slice(2)
  const options = parseOptions(argv, specs, true)
  const runtime = resolve(options.runtime ?? process.env.VYKAR_E2E_RUNTIME ?? join(homedir(), 'runtime'))
  const all = join(runtime, 'reports/all')
  if (options.help) console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  else if (options.resume) {
    const { dir, run } = resumed(all, options.resume, argv)
    process.exitCode = await work(dir, run, options['fail-fast'], options.jobs)
  } else {
    const choice = choose(await describeAll(), options._, options.profile, options.repo, handedOn(argv))
    if (options.json) console.log(JSON.stringify(choice, null, 2))
    else if (options.list) for (const { scenario, args } of choice.entries) console.log(callOf(scenario, args))
    else if (!choice.entries.length)
      throw new UsageError(
        `nothing is to be run: ${choice.left.map(({ scenario, why }) => `${scenario}: ${why}`).join('; ')}`,
      )
    else {
      await refuseFirst(choice.entries[0]!)
      const runId = newRunId()
      const dir = join(all, runId)
      mkdirSync(dir, { recursive: true })
      const vykar = programOf(options.vykar)
      // The program itself, whatever PATH says when the run is resumed.
      const program = vykar && !options.vykar ? ['--vykar', vykar.path] : []
      const tasks = choice.entries.map((entry, i) => ({
        ...entry,
        args: [...entry.args, ...program],
        output: join(dir, `${String(i + 1).padStart(2, '0')}-${basename(entry.scenario)}.out`),
      }))
      const run: SuiteRun = {
        schema: 'vykar-e2e/all/1',
        runId,
        profile: options.profile ?? '',
        started: new Date().toISOString(),
        vykar,
        tasks,
        left: choice.left,
      }
      save(dir, run)
      pointTo(join(all, 'latest'), runId)
      process.exitCode = await work(dir, run, options['fail-fast'], options.jobs)
    }
  }
} catch (error) {
  console.error(`all: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : exitCodes[verdictOf(error)]
}
