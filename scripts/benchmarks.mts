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
import { type Benchmark, figuresOf } from '#lib/benchmarks/summary.mts'
import { type Compression, type Endpoint, type Place, tools } from '#lib/benchmarks/tools.mts'
import { memoryCgroup } from '#lib/cgroup.mts'
import { diskUsage, removeBelow } from '#lib/cleanup.mts'
import { corpus } from '#lib/corpus.mts'
import { identifyVykar, which } from '#lib/host.mts'
import { seeded } from '#lib/random.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $, bash, seconds } from '#lib/sh.mts'
import { needSpace } from '#lib/space.mts'
import { shuffled, summary } from '#lib/stats.mts'
import { Mismatch, UsageError } from '#lib/verdict.mts'

const names = ['vykar', 'restic', 'rustic', 'borg', 'kopia'] as const
const options = {
  source: {
    kind: 'dir',
    help: 'corpus with snapshot-1 and snapshot-2; a missing default is made',
    default: join(homedir(), 'corpus-local'),
  },
  'corpus-gib': { kind: 'number', help: 'size of a default corpus that has to be made', default: 1, above: true },
  tools: { kind: 'list', help: 'tools to compare; default those installed', choices: names },
  baseline: { kind: 'file', help: 'another build of vykar, measured beside --vykar' },
  runs: { kind: 'number', help: 'measured rounds, after one to warm up', default: 5, min: 1 },
  compression: {
    kind: 'string',
    help: 'what comes closest to it in each tool',
    choices: ['zstd', 'lz4', 'none'],
    default: 'zstd',
  },
  cache: {
    kind: 'string',
    help: 'page cache before each command; cold needs root',
    choices: ['cold', 'warm'],
    default: 'cold',
  },
  'memory-limit': { kind: 'number', help: 'MiB that the tools may use, by a cgroup', above: true },
  limit: { kind: 'string', help: 'time limit of each command', default: '1h' },
} as const
const needs = ['vykar', 'diff', 'rsync', 'timeout', 'time', 'flock'] as const
const wants = ['vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const

/** Clears one tool's repository on a server; local ones went with their directory. */
async function clearRemote(
  tool: string,
  { endpoint, name, program, dir }: Place,
  files: string | undefined,
  rclone: string | undefined,
) {
  if (endpoint.kind === 'rest')
    await bash(
      { limit: '10m', env: tools[tool]!.env({ dir } as Place) },
      `${program} --config ${dir}/vykar.yaml delete -R bench --yes-delete-this-repo`,
    )
  if (endpoint.kind === 'sftp' && files) removeBelow(files, join(files, name))
  if (endpoint.kind === 's3' && rclone)
    await $({ limit: '10m', expect: [0, 3] })`rclone delete --rmdirs ${rclone}/${name}`
}

await scenario(import.meta, { needs, wants, options }, async (run) => {
  const { runs, baseline, compression, limit } = run.options
  const { seed } = run.common
  seconds(limit)
  const asRoot = process.getuid?.() === 0
  if (!asRoot) run.report.notes.push('not root: caches cannot be dropped, so they are warm')
  const corpusDir = await run.step('corpus', () => corpus(run))
  const states = [join(corpusDir, 'snapshot-1'), join(corpusDir, 'snapshot-2')] as [string, string]
  const missing: Record<string, string> = {}
  const programs = new Map<string, string>([['vykar', 'vykar']])
  if (baseline) programs.set('baseline', baseline)
  await run.step('tools', async () => {
    if (baseline) run.report.versions.baseline = identifyVykar(baseline).version
    for (const name of names.slice(1)) {
      if (run.options.tools.length && !run.options.tools.includes(name)) continue
      const path = which(tools[name]!.program)
      if (!path) missing[name] = 'not installed'
      else programs.set(name, path)
      if (!path || run.dry) continue
      const asked = spawnSync(path, tools[name]!.version, { encoding: 'utf8' })
      run.report.versions[name] = /\d+(\.\d+)+\S*/.exec(`${asked.stdout}${asked.stderr}`)?.[0] ?? 'unknown'
    }
    if (programs.size < 2) run.report.notes.push('no other tool is installed: vykar is measured alone')
  })
  const size = run.dry ? 0 : diskUsage(states[0])
  if (!run.dry && !diskUsage(states[1]))
    throw new UsageError(`${corpusDir} has no snapshot-2: make it with data-gen/corpus.mts --churn 3`)
  needSpace(
    [{ dir: run.runtime, bytes: size * 3.5 }],
    `a source of ${size} bytes, one repository and a restored tree`,
    'take a smaller --source',
  )
  await run.step('servers', () => startServices(run))
  const cgroup = run.options['memory-limit'] && !run.dry ? memoryCgroup(run, run.options['memory-limit']) : undefined
  const method: Method = { cache: asRoot && run.options.cache === 'cold' ? 'cold' : 'warm', limit, cgroup, states }

  const samples: Sample[] = []
  const ceilings = { 'copying the source (cp, sync)': [] as number[], 'reading the source (cat)': [] as number[] }
  const out = join(run.runtime, 'benchmarks', run.id.replace(/-.*/, ''))
  if (!run.dry) mkdirSync(join(out, 'raw'), { recursive: true })
  for (const repo of run.repos)
    await run.row({ repo, values: {} }, async ({ step, dir, report }) => {
      const endpoint: Endpoint = endpointOf(run, repo, join(dir, 'repositories'))
      const able = [...programs].filter(([name]) => tools[name]!.backends.includes(endpoint.kind))
      const source = join(dir, 'source')
      for (let round = 0; round <= runs; round++) {
        await step(`round ${round}: ceilings`, async () => {
          await bringSource(states[0], source)
          const copy = join(dir, 'copy')
          const cp = await timed(method, `cp -a ${source} ${copy}`, dir, {})
          await $`rm -r ${copy}`
          const cat = await timed(method, `find ${source} -type f -print0 | xargs -0 cat > /dev/null`, dir, {})
          if (round) ceilings['copying the source (cp, sync)'].push(cp.seconds)
          if (round) ceilings['reading the source (cat)'].push(cat.seconds)
        })
        const order = shuffled(able, seeded(`${seed} ${repo} ${round}`))
        for (const [tool, program] of order)
          await step(`round ${round}: ${tool}`, async () => {
            const name = `${tool}-${round}`
            const place: Place = {
              program,
              name,
              endpoint,
              dir: join(dir, name),
              source,
              compression: compression as Compression,
            }
            const made = await roundOf(method, tool, round, repo, place)
            samples.push(...made)
            if (run.dry) return
            writeFileSync(
              join(out, 'raw', `${repo}-${String(round).padStart(2, '0')}-${tool}.json`),
              JSON.stringify(made, null, 1),
            )
            const bad = made.find((sample) => sample.reason !== undefined)
            if (bad) run.report.notes.push(`${repo}: ${tool}, round ${round}, ${bad.operation}: ${bad.reason}`)
            const service = run.services.get(repo)
            if (!bad) await clearRemote(tool, place, service?.files, service?.rclone)
          })
      }
      const bad = samples.filter((sample) => sample.repo === repo && sample.reason !== undefined)
      report.facts.tools = able.map(([name]) => name).join(', ')
      if (bad.length)
        throw new Mismatch(
          `${bad.length} of the commands failed: ${[...new Set(bad.map((s) => `${s.tool} ${s.operation}: ${s.reason}`))].join('; ')}`,
        )
    })
  if (run.dry || !samples.some((sample) => sample.round)) return

  const { versions, host } = run.report
  const benchmark: Benchmark = {
    schema: 'vykar-e2e/benchmark/1',
    started: run.report.started,
    seed,
    runs,
    cache: method.cache,
    compression,
    sourceBytes: size,
    versions,
    host,
    ceilings: Object.entries(ceilings)
      .filter(([, values]) => values.length)
      .map(([what, values]) => ({ what, seconds: summary(values), throughput: size / summary(values).median })),
    missing,
    figures: figuresOf(samples, size, seed),
    samples,
  }
  const page = await writeBenchmark(out, benchmark)
  run.report.notes.push(`benchmark: ${page}`)
  const failedTools = run.options.tools.filter((name) => missing[name])
  if (failedTools.length) throw new Mismatch(`named in --tools, but not installed: ${failedTools.join(', ')}`)
})
