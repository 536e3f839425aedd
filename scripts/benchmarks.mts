#!/usr/bin/env -S npx tsx
// vykar beside restic, rustic, borg and kopia, whichever are installed: first, unchanged and changed backup, restore, check,
// check with data, prune. Rounds in shuffled order, cold caches, sync inside the clock, every restore compared.
// Passes when no command failed and every restored tree equals its source. It says who was faster, and where no difference
// is shown; that is no matter of passing. Results: ~/runtime/benchmarks/<time>/reports/index.html.
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { endpointOf } from '#lib/benchmarks/endpoint.mts'
import { bringSource, type Method, roundOf, type Sample, timed } from '#lib/benchmarks/measure.mts'
import { writeBenchmark } from '#lib/benchmarks/pages.mts'
import { ceilingNames, figuresOf } from '#lib/benchmarks/summary.mts'
import { type Compression, type Place, tools } from '#lib/benchmarks/tools.mts'
import { memoryCgroup } from '#lib/cgroup.mts'
import { diskUsage, removeBelow } from '#lib/cleanup.mts'
import { corpus } from '#lib/corpus.mts'
import { identifyVykar, which } from '#lib/host.mts'
import { seeded } from '#lib/random.mts'
import type { Row } from '#lib/row.mts'
import { type ScenarioRun, scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $, seconds } from '#lib/sh.mts'
import { needSpace } from '#lib/space.mts'
import { shuffled, summary } from '#lib/stats.mts'
import { Mismatch, UsageError } from '#lib/verdict.mts'

const names = ['vykar', 'restic', 'rustic', 'borg', 'kopia'] as const
const compressions = ['zstd', 'lz4', 'none'] as const
const own = join(homedir(), 'corpus-local')
const options = {
  source: { kind: 'dir', help: 'corpus with snapshot-1 and snapshot-2; a missing default is made', default: own },
  'corpus-gib': { kind: 'number', help: 'size of a default corpus that has to be made', default: 1, above: true },
  tools: { kind: 'list', help: 'tools to compare; default those installed', choices: names },
  baseline: { kind: 'file', help: 'another build of vykar, measured beside --vykar' },
  runs: { kind: 'number', help: 'measured rounds, after one to warm up', default: 5, min: 1 },
  compression: { kind: 'string', help: 'what comes closest in each tool', choices: compressions, default: 'zstd' },
  cache: { kind: 'string', help: 'page cache; cold needs root', choices: ['cold', 'warm'], default: 'cold' },
  'memory-limit': { kind: 'number', help: 'MiB that the tools may use, by a cgroup', above: true },
  limit: { kind: 'string', help: 'time limit of each command', default: '1h' },
} as const
const needs = ['vykar', 'diff', 'rsync', 'timeout', 'time', 'flock'] as const
const wants = ['vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const
type BenchmarkRun = ScenarioRun<typeof options>

await scenario(import.meta, { needs, wants, options }, async (run) => {
  const { runs, compression, limit } = run.options
  seconds(limit)
  const asRoot = process.getuid?.() === 0
  if (!asRoot) run.report.notes.push('not root: caches cannot be dropped, so they are warm')
  const made = await run.step('corpus', () => corpus(run))
  const states: Method['states'] = [join(made, 'snapshot-1'), join(made, 'snapshot-2')]
  const missing: Record<string, string> = {}
  const programs = await run.step('tools', async () => installed(run, missing))
  const size = run.dry ? 0 : diskUsage(states[0])
  if (!run.dry && !diskUsage(states[1]))
    throw new UsageError(`${made} has no snapshot-2: make it with data-gen/corpus.mts --churn 3`)
  const held = 'the source, a repository and a restored tree'
  needSpace([{ dir: run.runtime, bytes: size * 3.5 }], held, 'take a smaller --source')
  await run.step('servers', () => startServices(run))
  const cgroup = run.options['memory-limit'] && !run.dry ? memoryCgroup(run, run.options['memory-limit']) : undefined
  const method: Method = { cache: asRoot && run.options.cache === 'cold' ? 'cold' : 'warm', limit, cgroup, states }

  const samples: Sample[] = []
  const ceilings: number[][] = [[], []]
  const out = join(run.runtime, 'benchmarks', run.id.replace(/-.*/, ''))
  if (!run.dry) mkdirSync(join(out, 'raw'), { recursive: true })
  for (const repo of run.repos)
    await run.row({ repo, values: {} }, async (row) => {
      const { step, dir, report } = row
      const endpoint = endpointOf(run, repo, join(dir, 'repositories'))
      const able = [...programs].filter(([name]) => tools[name]!.backends.includes(endpoint.kind))
      report.facts.tools = able.map(([name]) => name).join(', ')
      const source = join(dir, 'source')
      // A dry run shows one round.
      for (let round = 0; round <= (run.dry ? 0 : runs); round++) {
        const times = await step(`round ${round}: ceilings`, () => ceilingsOf(method, row, source))
        if (round) for (const [i, time] of times.entries()) ceilings[i]!.push(time)
        for (const [tool, program] of shuffled(able, seeded(`${run.common.seed} ${repo} ${round}`)))
          await step(`round ${round}: ${tool}`, async () => {
            const name = `${tool}-${round}`
            const place = { program, name, endpoint, dir: join(dir, name), source, compression } as Place
            const timings = await roundOf(method, tool, round, repo, place)
            if (run.dry) return
            samples.push(...timings)
            const file = `${repo}-${String(round).padStart(2, '0')}-${tool}.json`
            writeFileSync(join(out, 'raw', file), JSON.stringify(timings, null, 1))
            if (timings.every((sample) => sample.reason === undefined)) await clearServer(run, repo, name)
          })
      }
      const bad = samples.filter((sample) => sample.repo === repo && sample.reason !== undefined)
      const reasons = [...new Set(bad.map((sample) => `${sample.tool} ${sample.operation}: ${sample.reason}`))]
      if (bad.length) throw new Mismatch(`${bad.length} of the commands failed: ${reasons.join('; ')}`)
    })
  if (!samples.some((sample) => sample.round)) return

  const page = await writeBenchmark(out, {
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
    missing,
    figures: figuresOf(samples, size, run.common.seed),
    samples,
  })
  run.report.notes.push(`benchmark: ${page}`)
  const absent = run.options.tools.filter((name) => missing[name])
  if (absent.length) throw new Mismatch(`named in --tools, but not installed: ${absent.join(', ')}`)
})

/** The programs to compare by name, their versions put on record; `missing` gets those that cannot be. */
function installed(run: BenchmarkRun, missing: Record<string, string>): Map<string, string> {
  const { baseline, tools: chosen } = run.options
  const programs = new Map<string, string>([['vykar', 'vykar']])
  if (baseline) run.report.versions.baseline = identifyVykar(baseline).version
  if (baseline) programs.set('baseline', baseline)
  for (const name of names.slice(1).filter((tool) => !chosen.length || chosen.includes(tool))) {
    const path = which(tools[name]!.program)
    if (!path) {
      missing[name] = 'not installed'
      continue
    }
    programs.set(name, path)
    const asked = spawnSync(path, tools[name]!.version, { encoding: 'utf8' })
    run.report.versions[name] = /\d+(\.\d+)+\S*/.exec(`${asked.stdout}${asked.stderr}`)?.[0] ?? 'unknown'
  }
  if (programs.size < 2) run.report.notes.push('no other tool is measured: vykar is alone')
  return programs
}

/** What no tool can beat, in the order of `ceilingNames`: copying the source with a sync, and reading all of it. */
async function ceilingsOf(method: Method, { dir }: Row, source: string): Promise<number[]> {
  await bringSource(method.states[0], source)
  const copied = await timed(method, `cp -a ${source} ${dir}/copy`, dir, {})
  await $`rm -r ${dir}/copy`
  const read = await timed(method, `find ${source} -type f -print0 | xargs -0 cat > /dev/null`, dir, {})
  return [copied.seconds, read.seconds]
}

/** What a tool without a command for it leaves of its repository on a server of ours. */
async function clearServer(run: BenchmarkRun, repo: string, name: string): Promise<void> {
  const { files, rclone } = run.services.get(repo) ?? {}
  if (repo === 'sftp' && files) removeBelow(files, join(files, name))
  // 3 is rclone's "directory not found".
  if (repo === 's3' && rclone) await $({ limit: '10m', expect: [0, 3] })`rclone delete --rmdirs ${rclone}/${name}`
}
