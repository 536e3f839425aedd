// The stress walk: honest, every lie found within a stated number of steps, replay, interruption, bad input; and the
// parts of it that can be told right or wrong by themselves.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { liveKiB, noGrowth } from '#scripts/stress/growth.mts'
import { disagreement, type Kept, survivors } from '#scripts/stress/model.mts'
import type { Sample } from '#scripts/stress/series.mts'
import { grows, trend } from '#scripts/stress/trend.mts'
import { defaultWeights, overlap, parseWeights, plan, type WalkOptions } from '#scripts/stress/walk.mts'
import {
  type Finished,
  lacking,
  processesIn,
  real,
  root,
  run,
  type Sandbox,
  sandbox,
  scratch,
  standin,
  start,
} from '../helpers.mts'

const tools = lacking('flock', 'diff', 'rsync', 'setfattr', 'setfacl')
const small = ['--repo', 'local', '--corpus-gib', '0.004']
const said = (ended: Finished) => ended.stdout + ended.stderr
const stress = (box: Sandbox, vykar: string, ...args: string[]) =>
  run(box, 'stress', ['--vykar', vykar, ...small, ...args])
const failedAt = (ended: Finished) => Number(/^FAIL stress local: step (\d+) of seed/.exec(ended.last)?.[1])

/** A lie, within how many steps it must be found, by which complaint, and the options of the walk. */
type Found = [within: number, reason: RegExp, ...options: string[]]
const lies: Record<string, Found> = {
  'compact-drops-live': [25, /check found|exit 1: (vykar|diff) /, '--verify-data-every', '4'],
  'prune-deletes-retained': [25, /list lacks snapshot [0-9a-f]{8}/, '--weights', 'prune=6,interrupt=0'],
  'delete-takes-more': [25, /check found|exit 1: (vykar|diff) /, '--verify-data-every', '5'],
  'lock-leaks-once': [40, /a lock was left behind; locks\.out ends in: Removed 1 lock/, '--weights', 'interrupt=0'],
  'list-stale': [10, /list (lacks snapshot|shows) [0-9a-f]{8}/, '--weights', 'interrupt=0'],
  'list-last-shows-all': [
    40,
    /list --last 3 shows \d+ of \d+ snapshots/,
    '--weights',
    'list=6,backup=9,prune=0,delete=0,interrupt=0',
  ],
  'space-leaks': [60, /after compact the packs have|the repository grows by/, '--weights', 'compact=10,interrupt=0'],
}

// The real vykar where there is one: the contract says that the stand-in is like it.
const [name, vykar] = real ? (['real vykar', () => real!] as const) : (['stand-in', standin] as const)
describe(`stress with the ${name}`, { skip: tools }, () => {
  const good = name === 'stand-in' ? 'DEMO stress' : 'PASS stress'

  test('two clients: good, nothing left, a line for each step, a chart', async () => {
    const box = sandbox()
    const ended = await stress(box, vykar(), '--iterations', '60', '--concurrency', '2', '--seed', '3')
    assert.equal(ended.last, good, said(ended))
    assert.deepEqual(processesIn(box), [])
    assert.deepEqual(existsSync(join(box.dir, 'repos/stress')) ? readdirSync(join(box.dir, 'repos/stress')) : [], [])
    assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
    const dir = join(box.runtime, 'reports/stress', ended.report!.runId)
    assert.equal(readFileSync(join(dir, 'stress.local.csv'), 'utf8').trim().split('\n').length, 61)
    assert.match(readFileSync(join(dir, 'stress.local.svg'), 'utf8'), /Peak memory/)
    const { facts } = ended.report!.rows[0]!
    const kinds = [...Object.keys(defaultWeights), 'clients overlapped', 'restored before it went']
    for (const kind of kinds) assert.ok(Number(facts[kind]) > 0, kind)
  })

  test('interrupts of two clients that both come too late: each looks at its own snapshot', async (t) => {
    const weights = ['--weights', 'interrupt=20,change=0,restore=0,list=0,delete=0,prune=0,compact=0,check=0,verify=0']
    // Whether an interrupt comes too late is a matter of the machine: another seed has another moment.
    for (const seed of ['132', '7', '58']) {
      const ended = await stress(
        sandbox(),
        vykar(),
        '--iterations',
        '8',
        '--concurrency',
        '2',
        '--seed',
        seed,
        ...weights,
      )
      if (/^BLOCKED stress .*\d interrupts, and all came too late/.test(ended.last)) continue
      assert.equal(ended.last, good, said(ended))
      if (Number(ended.report!.rows[0]!.facts['interrupted, came too late']) > 1) return
    }
    t.skip('no two interrupts came too late on this machine')
  })

  test('a replay fails at the same step; source, model, repository and restored tree are kept', async () => {
    const box = sandbox()
    // An interrupt comes too late once and not the next time: the lie counts backups.
    const lie = ['--sabotage', 'lock-leaks-once', '--weights', 'interrupt=0']
    const first = await stress(box, vykar(), '--iterations', '40', '--seed', '9', ...lie)
    assert.equal(first.code, 1, said(first))
    const work = join(box.runtime, 'work', first.report!.runId, 'local')
    assert.ok(existsSync(join(work, 'client-1/corpus/snapshot-1')))
    assert.ok(readdirSync(join(work, 'model')).length > 0)
    assert.ok(existsSync(join(box.dir, 'repos/stress/config')))
    const trace = /--replay (\S+)/.exec(first.last)![1]!
    const again = await run(box, 'stress', ['--vykar', vykar(), '--replay', trace, ...lie])
    assert.equal(failedAt(again), failedAt(first), again.last)
    const honest = await run(box, 'stress', ['--vykar', vykar(), '--replay', trace])
    assert.equal(honest.last, good, said(honest))
  })
})

describe('stress', { skip: tools }, () => {
  // The real vykar where there is one: its packs hold the data of many files.
  const vykar = () => real ?? standin()
  for (const [lie, [steps, reason, ...options]] of Object.entries(lies))
    test(`${lie} is found within ${steps} steps`, async () => {
      const ended = await stress(sandbox(), vykar(), '--iterations', String(steps), '--sabotage', lie, ...options)
      assert.equal(ended.code, 1, said(ended))
      assert.match(ended.last, reason)
      assert.ok(failedAt(ended) <= steps, ended.last)
      assert.match(ended.last, /to repeat: .*e2e stress --repo local --replay .*\.jsonl/)
    })

  test('refusal-hidden: maintenance that another client excludes is refused, and seen to be', {
    skip: real ? false : 'the real vykar is needed: another session excludes',
  }, async () => {
    const words = ['--concurrency', '2', '--weights', 'compact=20,delete=0,prune=0,interrupt=0', '--seed', '2']
    const ended = await stress(sandbox(), real!, '--iterations', '60', '--sabotage', 'refusal-hidden', ...words)
    assert.equal(ended.code, 1, said(ended))
    assert.match(ended.last, /compact was let in while another client's session was registered/)
  })

  test('a snapshot that goes is restored before, at the end too', async () => {
    const weights = ['--weights', 'restore=0,check=0,verify=0,prune=0,interrupt=0', '--check-every', '1000']
    const ended = await stress(sandbox(), vykar(), '--iterations', '3', '--sabotage', 'restore-flips-byte', ...weights)
    assert.match(ended.last, /^FAIL stress local: restore what was not yet: exit 1: diff .*sha256/, said(ended))
  })

  test('what reclaiming space loses is found at the end', {
    skip: real ? false : 'the stand-in has no such packs',
  }, async () => {
    const ended = await stress(sandbox(), vykar(), '--iterations', '4', '--sabotage', 'reclaim-drops')
    assert.match(ended.last, /^FAIL stress local: reclaim: exit 1: /, said(ended))
  })

  test('--source: a copy of the user’s tree is walked on, without encryption; each command has its figures', async () => {
    const box = sandbox()
    const mine = join(box.dir, 'mine')
    mkdirSync(join(mine, 'sub dir'), { recursive: true })
    for (const name of ['a', 'b', 'sub dir/c']) writeFileSync(join(mine, name), `${name} `.repeat(5000))
    spawnSync('bash', ['-c', `cd ${mine} && mkfifo pipe && truncate -s 1M holes && touch $'latin-\\xe9'`])
    const look = () => spawnSync('find', [mine, '-printf', '%P %s %T@ %y\n'], { encoding: 'utf8' }).stdout
    const before = look()
    const words = ['--source', mine, '--mode', 'none', '--iterations', '25', '--time-v']
    const ended = await run(box, 'stress', ['--vykar', vykar(), '--repo', 'local', ...words])
    assert.match(ended.last, /^(PASS|DEMO) stress$/, said(ended))
    assert.equal(look(), before)
    const dir = join(box.runtime, 'reports/stress', ended.report!.runId)
    assert.match(
      readFileSync(join(dir, 'stress.local.commands.csv'), 'utf8'),
      /vykar --config config.yaml restore .*,0,\d/,
    )
    assert.match(readFileSync(join(box.runtime, 'logs/stress/latest/commands.sh'), 'utf8'), /^ +mode: none$/m)
  })

  test('one wrong restore of 30 is found', async () => {
    const weights = 'backup=0,change=0,interrupt=0,delete=0,prune=0,compact=0,check=0,verify=0,list=0,restore=1'
    const options = ['--iterations', '35', '--sabotage', 'restore-wrong-once', '--check-every', '1000']
    const words = ['--vykar', vykar(), ...small, ...options, '--weights', weights]
    const ended = await run(sandbox(), 'stress', words, { SABOTEUR_NTH: '30' })
    assert.equal(ended.code, 1, said(ended))
    assert.match(ended.last, /restore.*exit 1: diff .*sha256/)
    assert.equal(failedAt(ended), 31)
  })

  test('Ctrl-C: exit 130, a report of what was done, nothing left', async () => {
    const box = sandbox()
    const { child, ended, printed } = start(box, 'stress', ['--vykar', standin(), ...small, '--duration', '10m'])
    while (!/#6 /.test(printed()) && child.exitCode === null) await sleep(100)
    child.kill('SIGINT')
    const { code, report, stdout } = await ended
    assert.equal(code, 130, stdout)
    assert.ok(Number(report!.rows[0]!.facts.steps) >= 6)
    assert.deepEqual(processesIn(box), [])
    assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
  })

  test('--duration ends the walk', async () => {
    const ended = await stress(sandbox(), standin(), '--duration', '5s')
    assert.equal(ended.last, 'DEMO stress', said(ended))
  })

  test('bad input is one line and exit 2', async () => {
    const box = sandbox()
    const broken = join(box.dir, 'broken.jsonl')
    writeFileSync(broken, '{"schema": "something else"}\n')
    const empty = join(box.dir, 'empty.jsonl')
    writeFileSync(empty, '{"schema":"vykar-e2e/stress-trace/1","repo":"local","options":{}}\n')
    for (const [args, message] of [
      [['--iterations', '5', '--duration', '1m'], /both given/],
      [['--duration', 'long'], /not a duration/],
      [['--weights', 'backup=x'], /KIND=NUMBER/],
      [['--weights', 'bakup=1'], /of change, backup/],
      [['--weights', 'change=0,backup=0,list=0,restore=0,interrupt=0'], /nothing is left/],
      [['--retain', '1'], /at least 2/],
      [['--replay', broken], /no trace of a stress walk/],
      [['--replay', empty], /no trace of a stress walk: it has no step/],
      [['--duration', '0s'], /--duration 0s: nothing would be done/],
      [['--replay', join(box.dir, 'nosuch')], /nosuch/],
      [['--corpus-gib', '100000'], /free/],
    ] as const) {
      const ended = await run(box, 'stress', ['--vykar', standin(), '--repo', 'local', ...args])
      assert.equal(ended.code, 2, `${args}: ${said(ended)}`)
      assert.match(said(ended), message)
    }
  })
})

describe('the model', () => {
  const kept = (serial: string, label: string, hour: string): Kept => ({
    serial,
    id: `id${serial}`,
    label,
    hour,
    files: 3,
  })
  const all = [
    kept('1', 'a', '10'),
    kept('2', 'a', '11'),
    kept('3', 'b', '11'),
    kept('4', 'a', '11'),
    kept('5', 'a', '12'),
  ]
  const ids = (snapshots: Kept[]) => snapshots.map((snapshot) => snapshot.serial).join('')

  test('retention keeps the newest of each label, and the newest of each hour', () => {
    assert.equal(ids(survivors(all, { keep_last: 1 })), '35')
    assert.equal(ids(survivors(all, { keep_last: 2 })), '345')
    assert.equal(ids(survivors(all, { keep_hourly: 2 })), '345')
    assert.equal(ids(survivors(all, { keep_hourly: 3 })), '1345')
    assert.equal(ids(survivors(all, { keep_last: 3, keep_hourly: 1 })), '2345')
  })

  test('a list that differs is complained of', () => {
    const rows = all.map(({ id, label, files }) => ({ id, label, files }))
    assert.equal(disagreement(all, rows), undefined)
    assert.match(disagreement(all, rows.slice(1))!, /lacks snapshot id1/)
    assert.match(disagreement(all.slice(1), rows)!, /shows id1 .*removed or never made/)
    assert.match(disagreement(all, rows.with(2, { ...rows[2]!, label: 'c' }))!, /under the label c instead of b/)
    assert.match(disagreement(all, rows.with(0, { ...rows[0]!, files: 4 }))!, /4 files in id1, backup counted 3/)
    assert.match(disagreement(all, [...rows, rows[0]!])!, /twice/)
  })
})

describe('the plan', () => {
  const options: WalkOptions = {
    seed: 4,
    retain: 4,
    checkEvery: 10,
    verifyDataEvery: 50,
    churn: 5,
    concurrency: 3,
    corpusGib: 1,
    weights: defaultWeights,
  }
  const snapshots = (n: number) =>
    Array.from(
      { length: n },
      (_, i): Kept => ({ serial: `${i}.1`, id: String(i), label: 'client-1', files: 1, hour: '' }),
    )

  test('the same seed and model give the same actions; another seed others', () => {
    const walk = (seed: number) => Array.from({ length: 60 }, (_, i) => plan(i + 1, snapshots(2), { ...options, seed }))
    assert.deepEqual(walk(4), walk(4))
    assert.notDeepEqual(walk(4), walk(5))
  })

  test('an empty repository is backed up to; a full one is not; checks come when they are due', () => {
    assert.deepEqual(
      plan(10, [], options).map((action) => action.kind),
      ['backup', 'backup', 'backup'],
    )
    for (let step = 1; step < 200; step++) {
      const kinds = plan(step, snapshots(5), options).map((action) => action.kind)
      if (step % 50 === 0) assert.deepEqual(kinds, ['verify'])
      else if (step % 10 === 0) assert.deepEqual(kinds, ['check'])
      else assert.ok(!kinds.includes('interrupt'), kinds.join())
    }
  })

  test('forty steps have every kind, whatever the seed', () => {
    for (const concurrency of [1, 2])
      for (let seed = 1; seed <= 20; seed++) {
        const kinds = new Set<string>()
        let held = 0
        for (let step = 1; step <= 40; step++) {
          const actions = plan(step, snapshots(held), {
            ...options,
            seed,
            concurrency,
            retain: 8,
            checkEvery: 20,
            verifyDataEvery: 100,
          })
          for (const { kind } of actions) {
            kinds.add(kind)
            if (kind === 'backup' || kind === 'interrupt') held++
            if (kind === 'delete' || kind === 'prune') held = Math.max(0, held - 1)
          }
        }
        assert.deepEqual([...kinds].sort(), Object.keys(defaultWeights).sort(), `seed ${seed}, ${concurrency} clients`)
      }
  })

  test('with several clients what excludes others meets them in a short walk', () => {
    for (let seed = 1; seed < 20; seed++)
      for (const [step, kind] of [
        [8, 'delete'],
        [14, 'compact'],
      ] as const) {
        const [first, ...beside] = plan(step, snapshots(3), {
          ...options,
          seed,
          retain: 8,
          checkEvery: 20,
          concurrency: 2,
        })
        assert.equal(first?.kind, kind)
        assert.equal(beside.length, 1)
      }
  })

  test('spans of time overlap, or only touch', () => {
    assert.ok(overlap([[0, 2], [5, 6], [1, 3]])) // biome-ignore format: one line
    assert.ok(!overlap([[0, 2], [2, 3], [4, 5]])) // biome-ignore format: one line
    assert.ok(!overlap([[0, 2]]))
  })

  test('a weight of 0 leaves an action out; a snapshot is not deleted beside its restore', () => {
    const weights = parseWeights(['prune=0', 'interrupt=0'])
    for (let step = 1; step < 400; step++) {
      const actions = plan(step, snapshots(3), { ...options, weights })
      assert.ok(actions.every((action) => action.kind !== 'prune' && action.kind !== 'interrupt'))
      const gone = actions.find((action) => action.kind === 'delete')
      assert.ok(!gone || !actions.some((action) => action.kind === 'restore' && action.target === gone.target))
    }
  })
})

describe('trends', () => {
  const points = (n: number, y: (x: number) => number) => Array.from({ length: n }, (_, x) => [x, y(x)] as const)
  const noise = (x: number) => (Math.sin(x * 12.9898) * 43758.5453) % 1

  test('a line through points, with its standard error', () => {
    // y = 0, 1, 1, 2: slope 0.6, residual sum of squares 0.2, standard error sqrt(0.2 / 2 / 5).
    const line = trend([
      [0, 0],
      [1, 1],
      [2, 1],
      [3, 2],
    ])!
    assert.ok(Math.abs(line.slope - 0.6) < 1e-12)
    assert.ok(Math.abs(line.error - Math.sqrt(0.02)) < 1e-12)
    assert.ok(Math.abs(line.growth - 1.8) < 1e-12)
  })

  test('a leak grows; noise, and what is too little or too short to matter, does not', () => {
    assert.ok(
      grows(
        points(40, (x) => 100 + x + 5 * noise(x)),
        20,
      ),
    )
    assert.equal(
      grows(
        points(40, (x) => 100 + 20 * noise(x)),
        20,
      ),
      undefined,
    )
    assert.equal(
      grows(
        points(40, (x) => 100 + x / 10),
        20,
      ),
      undefined,
    )
    assert.equal(
      grows(
        points(8, (x) => 100 + x * 10),
        20,
      ),
      undefined,
    )
    assert.equal(
      grows(
        points(40, (x) => 100 - x),
        20,
      ),
      undefined,
    )
  })
})

describe('growth in a walk', () => {
  const samples = (over: (i: number) => Partial<Sample>) =>
    Array.from(
      { length: 400 },
      (_, i): Sample => ({
        step: i + 1,
        action: '1 backup',
        seconds: 1,
        snapshots: 4,
        packBytes: 100 * 2 ** 20,
        explainedBytes: i % 10 ? undefined : 99 * 2 ** 20,
        vykarKiB: 70_000 + 500 * (i % 3),
        harnessKiB: 20_000 + 2000 * (i % 5),
        ...over(i),
      }),
    )

  test('what is flat, or noisy, is none', () => noGrowth(samples(() => ({}))))

  test('the repository beyond its content, vykar’s memory and the suite’s own are told apart', () => {
    assert.throws(
      () => noGrowth(samples((i) => ({ packBytes: (100 + i / 10) * 2 ** 20 }))),
      /the repository grows by .* a step/,
    )
    assert.throws(() => noGrowth(samples((i) => ({ vykarKiB: 70_000 + 200 * i }))), /memory of vykar backup grows/)
    assert.throws(() => noGrowth(samples((i) => ({ harnessKiB: 20_000 + 60 * i }))), /memory of this suite grows/)
    // More retained data is no leak.
    noGrowth(
      samples((i) => ({ packBytes: (100 + i) * 2 ** 20, ...(i % 10 ? {} : { explainedBytes: (99 + i) * 2 ** 20 }) })),
    )
  })

  test('what a collection leaves counts, garbage does not', () => {
    const before = liveKiB()
    for (let i = 0; i < 50; i++) Array.from({ length: 100_000 }, () => ({ i }))
    assert.ok(liveKiB() - before < 4096)
    const held = Array.from({ length: 400_000 }, (_, i) => ({ i }))
    assert.ok(liveKiB() - before > 4096, String(held.length))
  })
})

describe('changes of the source', { skip: lacking('setfattr', 'rsync') }, () => {
  const tree = (name: string) => {
    const dir = join(scratch, name)
    mkdirSync(dir)
    for (let i = 0; i < 20; i++) writeFileSync(join(dir, `file-${i}`), `${i} `.repeat(5000))
    return dir
  }
  const change = (dir: string, percent: number, seed: string) => {
    const words = ['--dir', dir, '--percent', String(percent), '--size', '270000', '--seed', seed]
    const done = spawnSync(join(root, 'node_modules/.bin/tsx'), [join(root, 'data-gen/change.mts'), ...words], {
      encoding: 'utf8',
    })
    assert.equal(done.status, 0, done.stderr)
    return done.stdout
  }
  const sums = (dir: string) =>
    spawnSync('bash', ['-c', `cd ${dir} && find . -type f -print0 | sort -z | xargs -0 sha256sum`], {
      encoding: 'utf8',
    }).stdout

  test('the same seed makes the same tree, another seed another', () => {
    const [a, b, c] = [tree('change-a'), tree('change-b'), tree('change-c')]
    const made = change(a, 60, 'seed 1')
    assert.equal(change(b, 60, 'seed 1'), made)
    change(c, 60, 'seed 2')
    assert.equal(sums(a), sums(b))
    assert.notEqual(sums(a), sums(c))
    assert.ok(made.trim().split('\n').length >= 3, made)
  })

  test('a rewritten file keeps its time to the nanosecond, also one before 1970', () => {
    const dir = tree('change-time')
    spawnSync('bash', ['-c', `touch -d '1969-07-20 20:17:40.000000001 UTC' ${dir}/*`])
    const times = () => spawnSync('bash', ['-c', `cd ${dir} && stat -c '%n %s %.9Y' *`], { encoding: 'utf8' }).stdout
    // One change at a time, until it is this one.
    for (let seed = 1; seed < 100; seed++) {
      const [before, old] = [times(), sums(dir)]
      if (!/rewrite_with_size_and_time_kept=1/.test(change(dir, 5, `seed ${seed}`))) continue
      assert.equal(times(), before)
      return assert.notEqual(sums(dir), old)
    }
    assert.fail('no file was rewritten with its time kept')
  })

  test('the size stays near what is wanted', () => {
    const dir = tree('change-size')
    for (let i = 0; i < 12; i++) change(dir, 40, `round ${i}`)
    const size = Number(spawnSync('du', ['-sb', dir], { encoding: 'utf8' }).stdout.split('\t')[0])
    assert.ok(size > 1e5 && size < 1.2e6, String(size))
  })
})
