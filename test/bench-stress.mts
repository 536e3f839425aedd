// npm run bench -- stress: the suite's share of a walk and its memory over 2,000 steps with the stand-in, and whether one
// wrong restore in 200 is found.
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { trend } from '#scripts/stress/trend.mts'
import { run, type Sandbox, standin } from './helpers.mts'

/** What this area gets from the benchmark around it. */
interface Bench {
  box: (name: string) => Sandbox
  result: (what: string, value: string, goal: string, met: boolean) => void
}

/** Memory of the suite in MiB, step by step, from the walk's CSV. */
function memory(file: string): [number, number][] {
  const lines = readFileSync(file, 'utf8').trim().split('\n').slice(1)
  return lines.map((line, i) => [i + 1, Number(line.split(',').at(-1)) / 1024])
}

/** Two walks, about 25 minutes in all. */
export async function stress({ box, result }: Bench): Promise<void> {
  const walk = ['--repo', 'local', '--corpus-gib', '0.002', '--vykar', standin()]
  const long = await run(box('box-stress'), 'stress', [...walk, '--iterations', '2000'])
  if (long.code !== 0) throw new Error(long.stdout + long.stderr)
  const page = /^report (.*)$/m.exec(long.stdout)![1]!
  // The first quarter is start-up: compiled code, caches of the runtime.
  const settled = memory(join(dirname(page), 'stress.local.csv')).slice(500)
  const { growth, mean } = trend(settled)!
  const flat = Math.abs(growth) < mean / 10
  result(
    'stress: growth of memory, steps 500 to 2000',
    `${growth.toFixed(1)} of ${mean.toFixed(0)} MiB`,
    '< 10 %',
    flat,
  )
  const share = Number.parseFloat(String(long.report!.rows[0]!.facts['share of this suite']))
  result('stress: share of the suite, verification excluded', `${share} %`, '< 10 %', share < 10)

  const kinds = ['backup', 'change', 'interrupt', 'delete', 'prune', 'compact', 'check', 'verify', 'list']
  const weights = [...kinds.map((kind) => `${kind}=0`), 'restore=1'].join(',')
  const lie = ['--sabotage', 'restore-wrong-once', '--check-every', '1000', '--weights', weights, '--iterations', '230']
  const wrong = await run(box('box-wrong'), 'stress', [...walk, ...lie])
  const found = /step (\d+) .*diff .*sha256/.exec(wrong.last)?.[1]
  result(
    'stress: one wrong restore in 200 is found',
    found ? `in step ${found}` : 'not found',
    '<= 230 steps',
    Boolean(found),
  )
}
