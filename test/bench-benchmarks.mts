// npm run bench -- benchmarks: what timing a command costs, and whether the same vykar under two names is told apart.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { which } from '#lib/host.mts'
import { readBenchmark } from '#scripts/benchmarks/compare.mts'
import { median } from '#scripts/benchmarks/stats.mts'
import { root, run, type Sandbox, standin } from './helpers.mts'

/** What this area gets from the benchmark around it. */
interface Bench {
  dir: string
  box: (name: string) => Sandbox
  result: (what: string, value: string, goal: string, met: boolean) => void
  seconds: (command: string) => number
  corpus: (out: string, ...args: string[]) => string
}

/** The harness's clock around `true`, less what a shell needs for it alone. */
async function overhead({ box, result }: Bench): Promise<void> {
  const vykar = which('vykar') ?? standin()
  const measured = await run(box('box-overhead'), join(root, 'test/fixtures/overhead.mts'), ['--vykar', vykar])
  if (measured.code !== 0) throw new Error(measured.stdout + measured.stderr)
  const alone = median(
    Array.from({ length: 100 }, () => {
      const start = performance.now()
      spawnSync('bash', ['-c', 'true'])
      return performance.now() - start
    }),
  )
  const cost = Number(measured.report!.rows[0]!.facts.milliseconds) - alone
  result('benchmarks: cost of timing a command', `${cost.toFixed(1)} ms`, '< 20 ms', cost < 20)
}

/** The same vykar as --vykar and --baseline, under five seeds: differences shown are false. */
async function sameTwice({ dir, box, result, seconds, corpus }: Bench): Promise<void> {
  const vykar = which('vykar')
  if (!vykar) return console.log('  vykar is not on PATH: the same tool under two names is not measured')
  seconds(corpus('twice', '--churn 3 --plain --gib 0.03'))
  let [pairs, shown] = [0, 0]
  for (const seed of [1, 2, 3, 4, 5]) {
    const place = box(`box-twice-${seed}`)
    const words = ['--vykar', vykar, '--baseline', vykar, '--tools', 'vykar', '--repo', 'local', '--seed', String(seed)]
    const ended = await run(place, 'benchmarks', [...words, '--source', join(dir, 'twice'), '--runs', '5'])
    if (ended.code !== 0) throw new Error(ended.stdout + ended.stderr)
    const results = join(place.runtime, 'benchmarks')
    const ratios = readBenchmark(join(results, readdirSync(results)[0]!)).figures.flatMap((f) => f.toVykar ?? [])
    pairs += ratios.length
    shown += ratios.filter((ratio) => ratio.shown).length
  }
  const calm = 1 - shown / pairs
  result(
    `benchmarks: same tool twice, no difference shown, of ${pairs}`,
    `${(calm * 100).toFixed(0)} %`,
    '>= 90 %',
    calm >= 0.9,
  )
}

/** Runs this area. */
export async function benchmarks(bench: Bench): Promise<void> {
  await overhead(bench)
  await sameTwice(bench)
}
