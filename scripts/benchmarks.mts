#!/usr/bin/env -S npx tsx
// vykar beside restic, rustic, borg and kopia, whichever are installed: init, first, unchanged and changed backup, restore, check,
// check with data, prune. Rounds in shuffled order, cold caches, sync inside the clock, every restore compared.
// Passes when no command failed and every restored tree equals its source. It says who was faster, and where no difference
// is shown; that is no matter of passing. Results: ~/runtime/benchmarks/<time>/reports/index.html.
import { accessSync, constants, existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { seeded } from '#data-gen/random.mts'
import { ask, lastLine } from '#lib/ask.mts'
import { diskUsage } from '#lib/cleanup.mts'
import { identifyVykar, which } from '#lib/host.mts'
import { type ScenarioRun, scenario } from '#lib/scenario.mts'
import { $, fact, note, read, rowScope, scope, seconds, step } from '#lib/sh.mts'
import { quote } from '#lib/transcript.mts'
import { Blocked, Mismatch, UsageError } from '#lib/verdict.mts'
import {
  bringSource,
  type Method,
  roundOf,
  type Sample,
  type Tracer,
  timed,
  tracers,
} from '#scripts/benchmarks/measure.mts'
import { writeBenchmark } from '#scripts/benchmarks/pages.mts'
import { shuffled, summary } from '#scripts/benchmarks/stats.mts'
import { type Benchmark, ceilingNames, figuresOf, resultOf } from '#scripts/benchmarks/summary.mts'
import { type Backend, type Compression, type Lacks, operations, tools } from '#scripts/benchmarks/tools.mts'
import { serverWants } from '#scripts/common.mts'
import { corpus, sourceOptions } from '#scripts/corpus.mts'
import { ownServer } from '#scripts/guard.mts'
import { memoryCgroup } from '#scripts/memory.mts'
import { parseS3 } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'
import { needSpace } from '#scripts/space.mts'
import { underConstruction } from '#scripts/suite/machine.mts'

const names = ['vykar', 'restic', 'rustic', 'borg', 'kopia'] as const
const compressions = ['zstd', 'lz4', 'none'] as const
const options = {
  source: { kind: 'dir', help: 'corpus with snapshot-1 and snapshot-2; default ~/corpus-local' },
  'corpus-gib': sourceOptions['corpus-gib'],
  tools: { kind: 'list', help: 'tools to compare; default those installed', choices: names },
  baseline: { kind: 'file', help: 'another build of vykar, measured beside --vykar' },
  runs: { kind: 'number', help: 'measured rounds, after one to warm up', default: 5, min: 1 },
  compression: { kind: 'string', help: 'what comes closest in each tool', choices: compressions, default: 'zstd' },
  cache: { kind: 'string', help: 'page cache; cold needs root', choices: ['cold', 'warm'], default: 'cold' },
  'memory-limit': { kind: 'number', help: 'MiB that the tools may use, by a cgroup', above: true },
  strace: { kind: 'flag', help: 'one more round, untimed: the system calls of each operation' },
  perf: { kind: 'flag', help: 'one more round, untimed: the processor’s counters for each operation' },
  limit: { kind: 'string', help: 'time limit of each command', default: '1h' },
} as const
const needs = ['vykar', 'diff', 'rsync', 'timeout', 'time', 'flock'] as const
/** Where Debian has them. */
const packages = { strace: 'strace', perf: 'linux-perf' } as const
type BenchmarkRun = ScenarioRun<typeof options>

await scenario(import.meta, { needs, wants: serverWants, options }, async (run) => {
  const { runs, compression, limit } = run.options
  seconds(limit)
  const canDrop = mayDropCaches()
  if (!canDrop) note('caches cannot be dropped, so they are warm: that takes root, and a /proc/sys that can be written')
  const absent = run.options.tools.filter((name) => name !== 'vykar' && !which(tools[name]!.program))
  if (absent.length && !run.dry) throw new UsageError(`named in --tools, but not installed: ${absent.join(', ')}`)
  step('corpus')
  const made = await corpus('local', run.options.source, run.options['corpus-gib'])
  const states: Method['states'] = [join(made, 'snapshot-1'), join(made, 'snapshot-2')]
  const size = run.dry ? 0 : await diskUsage(states[0])
  if (!run.dry && !(await diskUsage(states[1])))
    throw new UsageError(`${made} has no snapshot-2: make it with data-gen/corpus.mts --churn 3`)
  const held = 'the source, a repository and a restored tree'
  if (!run.dry) needSpace([{ dir: run.runtime, bytes: size * 3.5 }], held, 'take a smaller --source')
  step('tools')
  const built = run.dry ? [] : await underConstruction()
  if (built.length)
    throw new Blocked(
      `${built.join(', ')} is being built in the background: its build would be measured too; wait for its end`,
    )
  const looks = (Object.keys(tracers) as Tracer[]).filter((name) => run.options[name])
  for (const name of looks) {
    if (!which(name)) throw new UsageError(`--${name}: ${name} is missing: apt-get install -y ${packages[name]}`)
    const tried = await ask(['bash', '-c', `${tracers[name]} /dev/null true`])
    if (tried.code) throw new UsageError(`--${name}: this host forbids it: ${lastLine(tried.stderr)}`)
  }
  const missing: Record<string, string> = {}
  const lacks: Record<string, Lacks> = {}
  const programs = await installed(run, missing, lacks)
  await servers()
  const cgroup = run.options['memory-limit']
    ? await memoryCgroup(run.options['memory-limit'], '--memory-limit')
    : undefined
  const method: Method = { cache: canDrop && run.options.cache === 'cold' ? 'cold' : 'warm', limit, cgroup, states }

  const placeOf = (tool: string, program: string, name: string, backend: Backend) => ({
    program: quote(program),
    name,
    backend,
    compression: compression as Compression,
    lacks: lacks[tool] ?? {},
  })
  const samples: Sample[] = []
  const ceilings: number[][] = [[], []]
  const says: Record<string, string> = {}
  const out = join(run.runtime, 'benchmarks', run.id.replace(/-.*/, ''))
  if (!run.dry) mkdirSync(join(out, 'raw'), { recursive: true })
  for (const repo of run.repos)
    await run.row(repo, async () => {
      const backend = backendOf(repo)
      const able = [...programs].filter(([name]) => tools[name]!.backends.includes(backend.kind))
      fact('tools', able.map(([name]) => name).join(', '))
      for (const [name] of able)
        for (const [operation, why] of Object.entries(lacks[name] ?? {})) note(`n/a: ${operation} by ${name}: ${why}`)
      for (let round = 0; round <= runs; round++) {
        step(`round ${round}: ceilings`)
        await bringSource(method.states[0])
        // What no tool can beat: copying the source with a sync, and reading all of it.
        const copied = await timed(method, 'cp -a source copy', '.')
        await $`rm -r copy`
        const whole = await timed(method, 'find source -type f -print0 | xargs -0 cat > /dev/null', '.')
        if (round) for (const [i, { seconds: time }] of [copied, whole].entries()) ceilings[i]!.push(time)
        for (const [tool, program] of shuffled(able, seeded(`${run.common.seed} ${repo} ${round}`))) {
          step(`round ${round}: ${tool}`)
          const name = `${tool}-${round}`
          const place = placeOf(tool, program, name, backend)
          const timings = await roundOf(method, tool, round, place)
          if (run.dry) continue
          samples.push(...timings)
          const file = `${repo}-${String(round).padStart(2, '0')}-${tool}.json`
          writeFileSync(join(out, 'raw', file), JSON.stringify(timings, null, 1))
        }
      }
      if (!run.dry)
        for (const [tool] of able)
          if (existsSync(join(scope().dir, `${tool}.says`))) says[`${repo}, ${tool}`] = read(`${tool}.says`)
      for (const look of looks) {
        await $`rm -rf traces/ && mkdir traces`
        for (const [tool, program] of able) {
          step(`${look}: ${tool}`)
          const place = placeOf(tool, program, `${tool}-${look}`, backend)
          const bad = (await roundOf({ ...method, under: look }, tool, -1, place)).find(({ reason }) => reason)
          if (bad) throw new Mismatch(`${look}: ${tool} ${bad.operation}: ${bad.reason}`)
        }
        await $`mkdir -p ${join(out, look)} && cp -r traces ${join(out, look, repo)}`
        note(`${look}: ${join(out, look, repo)}`)
      }
      const bad = samples.filter((sample) => sample.repo === repo && sample.reason !== undefined)
      const reasons = [...new Set(bad.map((sample) => `${sample.tool} ${sample.operation}: ${sample.reason}`))]
      if (bad.length) throw new Mismatch(`${bad.length} of the commands failed: ${reasons.join('; ')}`)
    })
  if (!samples.some((sample) => sample.round)) return

  const benchmark: Benchmark = {
    schema: 'vykar-e2e/benchmark/1',
    started: run.report.started,
    seed: run.common.seed,
    runs,
    cache: method.cache,
    compression: compression as Compression,
    sourceBytes: size,
    versions: run.report.versions,
    host: run.report.host,
    ceilings: ceilings.map((times, i) => {
      const time = summary(times)
      return { what: ceilingNames[i]!, seconds: time, throughput: size / time.median }
    }),
    says,
    missing,
    lacks,
    figures: figuresOf(samples, size, run.common.seed),
    samples,
  }
  const page = await writeBenchmark(out, benchmark)
  for (const sentence of resultOf(benchmark)) note(sentence)
  note(`benchmark: ${page}`)
})

/** Whether the kernel's caches can be dropped: in a container /proc/sys may be read-only, for root too. */
function mayDropCaches(): boolean {
  try {
    accessSync('/proc/sys/vm/drop_caches', constants.W_OK)
    return process.getuid?.() === 0
  } catch {
    return false
  }
}

/** What this version of a tool cannot do, by its own help. */
async function lacksOf(name: string, path: string): Promise<Lacks> {
  const found: Lacks = {}
  for (const operation of operations) {
    const [help, word] = tools[name]!.knows?.[operation] ?? []
    if (!help || !word) continue
    const { code, stdout, stderr } = await ask([path, ...help.split(' ')])
    // What is broken in any other way is to fail in its own words.
    const unknown = code ? /invalid choice|unknown (sub)?command|unrecognized subcommand|no such command/i.test(stderr) : !`${stdout}${stderr}`.includes(word) // biome-ignore format: one line
    if (unknown) found[operation] = `"${name} ${help}" knows no ${word}`
  }
  return found
}

/**
 * The programs to compare by name, their versions put on record; `missing` gets those that cannot be, `lacks` what they cannot do.
 */
async function installed(
  run: BenchmarkRun,
  missing: Record<string, string>,
  lacks: Record<string, Lacks>,
): Promise<Map<string, string>> {
  const { baseline, tools: chosen } = run.options
  const programs = new Map<string, string>([['vykar', 'vykar']])
  if (baseline) run.report.versions.baseline = (await identifyVykar(baseline)).version
  if (baseline) programs.set('baseline', baseline)
  for (const name of names.slice(1).filter((tool) => !chosen.length || chosen.includes(tool))) {
    const path = which(tools[name]!.program)
    if (!path) {
      missing[name] = 'not installed'
      continue
    }
    const of = await lacksOf(name, path)
    if (of.init) {
      if (chosen.length) throw new UsageError(`${name} in --tools: not a version that can be measured: ${of.init}`)
      missing[name] = of.init
      continue
    }
    if (Object.keys(of).length) lacks[name] = of
    programs.set(name, path)
    const asked = await ask([path, ...tools[name]!.version])
    run.report.versions[name] = /\d+(\.\d+)+\S*/.exec(`${asked.stdout}${asked.stderr}`)?.[0] ?? 'unknown'
  }
  if (programs.size < 2) note('no other tool is measured: vykar is alone')
  return programs
}

/** The backend as every tool is told of it. Throws Skipped for a server that is not the run's own. */
function backendOf(label: string): Backend {
  const kind = label as Backend['kind']
  if (kind === 'local') return { kind }
  ownServer()
  const { url, keys } = rowScope().run.endpoint(label)
  const backend: Backend = { kind, ...(keys ? { keys } : {}) }
  if (kind === 's3') backend.s3 = { ...parseS3(url), region: 'us-east-1' }
  if (kind === 'sftp') {
    const { hostname, port, username } = new URL(url.replace(/^sftp:/, 'http:'))
    backend.sftp = { host: hostname, port, user: username }
  }
  return backend
}
