// benchmarks and report.mts compare: statistics against known values, tools that crash, hang, restore wrong data or are
// missing, a memory limit that holds, and comparisons that find what became slower.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { seeded } from '#data-gen/random.mts'
import { which } from '#lib/host.mts'
import { readBenchmark } from '#scripts/benchmarks/compare.mts'
import type { Sample } from '#scripts/benchmarks/measure.mts'
import { mad, median, pairedRatio, ratioOf, shuffled, summary } from '#scripts/benchmarks/stats.mts'
import { type Benchmark, figuresOf } from '#scripts/benchmarks/summary.mts'
import { operations, tools } from '#scripts/benchmarks/tools.mts'
import {
  type Finished,
  lacking,
  noReal,
  processesIn,
  real,
  root,
  run,
  type Sandbox,
  sandbox,
  scratch,
  smallCorpus,
} from '../helpers.mts'

const said = (ended: Finished) => ended.stdout + ended.stderr
const resultsOf = (box: Sandbox) => {
  const dir = join(box.runtime, 'benchmarks')
  return join(dir, readdirSync(dir)[0]!)
}

describe('statistics', () => {
  test('median, MAD and outliers are those of the textbooks', () => {
    assert.equal(median([3, 1, 2]), 2)
    assert.equal(median([4, 1, 3, 2]), 2.5)
    assert.ok(Number.isNaN(median([])))
    assert.equal(mad([1, 1, 2, 2, 4, 6, 9]), 1)
    const found = summary([10, 11, 9, 10, 12, 10, 40])
    assert.deepEqual([found.median, found.min, found.max, found.n], [10, 9, 40, 7])
    assert.deepEqual(found.outliers, [40])
    assert.deepEqual(summary([1, 1, 1]).outliers, [])
  })
  test('the interval of five paired rounds goes from their smallest to their largest ratio', () => {
    const found = pairedRatio([2, 4, 6, 8, 11], [1, 2, 3, 4, 5], 1)
    assert.deepEqual(found, { ratio: 2, low: 2, high: 2.2, shown: true })
    assert.deepEqual(pairedRatio([2, 4, 6, 8, 11], [1, 2, 3, 4, 5], 1), found)
    assert.equal(pairedRatio([1, 2, 3], [2, 2, 2], 1).shown, false)
  })
  test('the same tool under two names: no difference is shown in at least 90 of 100 comparisons', () => {
    const next = seeded('the same twice')
    // Noise as machines make it: a little each time, much now and then.
    const time = () => 10 * (1 + 0.05 * (next() + next() - 1)) * (next() < 0.1 ? 1.5 : 1)
    const five = () => Array.from({ length: 5 }, time)
    const shown = Array.from({ length: 1000 }, (_, i) => pairedRatio(five(), five(), i)).filter((ratio) => ratio.shown)
    assert.ok(shown.length <= 100, `a difference was shown in ${shown.length} of 1000`)
  })
  test('a difference of a fifth is shown, also between runs that were not made side by side', () => {
    const next = seeded('slower')
    const some = (base: number) => Array.from({ length: 7 }, () => base * (1 + 0.02 * next()))
    const found = ratioOf(some(12), some(10), 1)
    assert.ok(found.shown && found.low > 1.15 && found.high < 1.25, JSON.stringify(found))
    assert.equal(ratioOf(some(10), some(10), 1).shown, false)
  })
  test('a shuffle keeps all and repeats from its seed', () => {
    const mixed = shuffled([1, 2, 3, 4, 5], seeded('a'))
    assert.deepEqual([...mixed].sort(), [1, 2, 3, 4, 5])
    assert.deepEqual(shuffled([1, 2, 3, 4, 5], seeded('a')), mixed)
  })
})

/** A summary.json in which an operation takes so many seconds. */
function fabricated(name: string, factor: number, change: Partial<Benchmark> = {}): string {
  const samples: Sample[] = ['vykar', 'borg'].flatMap((tool) =>
    operations.flatMap((operation) =>
      [0, 1, 2, 3, 4, 5].map((round) => ({
        repo: 'local',
        tool,
        round,
        operation,
        seconds: (round ? 10 + round / 100 : 99) * (operation === 'restore' && tool === 'vykar' ? factor : 1),
      })),
    ),
  )
  const dir = join(scratch, name)
  mkdirSync(join(dir, 'reports'), { recursive: true })
  const figures = figuresOf(samples, 1e9, 1)
  const whole = { schema: 'vykar-e2e/benchmark/1', seed: 1, sourceBytes: 1e9, figures, samples, ...change }
  writeFileSync(join(dir, 'reports/summary.json'), JSON.stringify(whole))
  return dir
}
const report = (...args: string[]) =>
  spawnSync(join(root, 'node_modules/.bin/tsx'), [join(root, 'scripts/report.mts'), ...args], { encoding: 'utf8' })

describe('report.mts compare', () => {
  const before = fabricated('before', 1)
  test('what is slower beyond the threshold is named, exit 1; the warm-up does not count', () => {
    const found = report('compare', before, fabricated('slower', 1.3))
    assert.equal(found.status, 1, found.stderr)
    assert.match(found.stdout, /^SLOWER +local vykar +restore +1\.30 \(1\.30 to 1\.30\)$/m)
    assert.match(found.stdout, /^FAIL 1 of 16 are slower by more than 10 %$/m)
  })
  test('what lies below the threshold, or is faster, is PASS', () => {
    assert.equal(report('compare', before, fabricated('little', 1.08)).status, 0)
    const found = report('compare', before, fabricated('faster', 0.5))
    assert.equal(found.status, 0)
    assert.match(found.stdout, /^faster +local vykar +restore +0\.50/m)
    assert.equal(report('compare', before, fabricated('slower', 1.3), '--threshold', '0.5').status, 0)
  })
  test('an operation that is missing, or failed, on one side counts as worse', () => {
    const without = (name: string, change: (one: Benchmark['figures'][number]) => unknown) => {
      const whole = readBenchmark(before)
      const figures = whole.figures.filter((one) => change(one) !== false)
      return fabricated(name, 1, { figures })
    }
    const gone = without('gone', ({ operation, tool }) => !(operation === 'check' && tool === 'vykar'))
    const found = report('compare', before, gone)
    assert.equal(found.status, 1, found.stderr)
    assert.match(found.stdout, /^MISSING local vykar +check +measured → not measured$/m)
    assert.match(found.stdout, /^FAIL 0 of 16 are slower .*, 1 that the first had are missing or failed$/m)
    const failed = without('failed', (one) => {
      if (one.operation === 'prune' && one.tool === 'vykar') one.failed = ['round 2: exit 1']
    })
    assert.match(
      report('compare', before, failed).stdout,
      /^MISSING local vykar +prune +measured → failed in round 2: exit 1$/m,
    )
    assert.equal(report('compare', failed, before).status, 0)
    // It failed once, and now it fails more often.
    const often = without('often', (one) => {
      if (one.operation === 'prune' && one.tool === 'vykar') one.failed = ['round 2: exit 1', 'round 3: exit 1']
    })
    assert.equal(report('compare', failed, often).status, 1)
    assert.equal(report('compare', often, failed).status, 0)
  })
  test('what a version cannot do is named, and nothing that became worse', () => {
    const whole = readBenchmark(before)
    const figures = whole.figures.filter(({ operation, tool }) => !(operation === 'prune' && tool === 'borg'))
    const old = fabricated('old-borg', 1, { figures, lacks: { borg: { prune: 'it knows no compact' } } })
    const found = report('compare', before, old)
    assert.equal(found.status, 0, found.stdout)
    assert.match(found.stdout, /local borg +prune +measured → it knows no compact$/m)
  })
  test('too few rounds show nothing, and are no PASS', () => {
    const few = readBenchmark(before).samples.filter(({ round }) => round < 4)
    const found = report('compare', before, fabricated('few', 1.3, { samples: few }))
    assert.equal(found.status, 2, found.stdout)
    assert.match(found.stderr, /both measured 5 times/)
  })
  test('bad input is one line and exit 2', () => {
    const cases: [RegExp, ...string[]][] = [
      [/no such file or directory: name two reports/, 'compare', before, '/no/such'],
      [/the sources differ/, 'compare', before, fabricated('other', 1, { sourceBytes: 5e9 })],
      [/not a benchmark of this version/, 'compare', before, fabricated('old', 1, { schema: 'x' as never })],
      [/compare takes 2 arguments, not 1/, 'compare', before],
      [/did you mean compare/, 'compere', before, before],
      [/unknown option --treshold; did you mean --threshold/, 'compare', '--treshold', '1'],
    ]
    for (const [message, ...args] of cases) {
      const found = report(...args)
      assert.equal(found.status, 2, found.stdout + found.stderr)
      assert.match(found.stderr, message)
      assert.equal(found.stderr.trim().split('\n').length, 1, found.stderr)
    }
  })
})

const skip = noReal || lacking('borg', 'rsync', 'diff', 'flock', 'time')
describe('benchmarks', { skip }, () => {
  const args = (...more: string[]) => {
    const small = ['--repo', 'local', '--source', smallCorpus(), '--cache', 'warm']
    const runs = more.includes('--runs') ? [] : ['--runs', '2']
    return ['--vykar', real!, ...small, ...runs, ...more]
  }
  /** A PATH on which borg does this before or after its real work. */
  const odd = (name: string, script: string) => {
    const dir = join(scratch, `odd-${name}`)
    mkdirSync(dir, { recursive: true })
    writeFileSync(join(dir, 'borg'), `#!/bin/bash\nborg=${which('borg')}\n${script}\n"$borg" "$@"\n`, { mode: 0o755 })
    return { PATH: `${dir}:${process.env.PATH}` }
  }

  test('vykar and borg: PASS; table, JSON, charts and a page that needs no other file', async () => {
    const box = sandbox()
    const ended = await run(box, 'benchmarks', args('--tools', 'borg'))
    assert.equal(ended.code, 0, said(ended))
    assert.equal(ended.last, 'PASS benchmarks')
    const dir = join(resultsOf(box), 'reports')
    const { figures, samples, ceilings } = readBenchmark(resultsOf(box))
    assert.equal(figures.length, 2 * operations.length)
    assert.equal(samples.length, 3 * 2 * operations.length)
    assert.deepEqual(
      figures.map((f) => f.seconds.n),
      figures.map(() => 2),
    )
    assert.ok(
      figures.every((f) => f.repositoryBytes!.median > 0 && f.peakBytes!.median > 0 && f.cpuSeconds!.median > 0),
    )
    assert.ok(figures.filter((f) => f.tool === 'borg').every((f) => f.toVykar!.ratio > 0))
    assert.ok(ceilings.length === 2 && ceilings.every((c) => c.seconds.n === 2))
    const page = readFileSync(join(dir, 'index.html'), 'utf8')
    assert.match(page, /first backup: time, s/)
    assert.doesNotMatch(page, /(src|href)="(?!data:)[^"#]/)
    assert.equal(readFileSync(join(dir, 'benchmark.summary.png')).subarray(1, 4).toString(), 'PNG')
    assert.match(readFileSync(join(dir, 'summary.tsv'), 'utf8'), /^local\tprune\tborg\t2\t0\t/m)
    assert.match(readFileSync(join(dir, 'summary.md'), 'utf8'), /Ceiling: copying the source/)
    assert.deepEqual(processesIn(box), [])
    assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
  })

  test('a server that vykar warns of, as the config has it, is measured', {
    skip: lacking('vykar-server'),
  }, async () => {
    const entry =
      '{label: rest, url: "http://127.0.0.1:8585", allow_insecure_http: true, access_token: a-token-of-tests}'
    const words = args('--tools', 'vykar', '--runs', '1').map((word) => (word === 'local' ? 'rest' : word))
    const ended = await run(sandbox(`repositories:\n  - ${entry}\n`), 'benchmarks', words)
    assert.equal(ended.last, 'PASS benchmarks', said(ended))
  })

  const forbidden =
    spawnSync('strace', ['-c', '-o', '/dev/null', 'true']).status === 0 ? false : 'strace does not work here'
  test('--strace: the system calls of each operation, and no figure of that round', { skip: forbidden }, async () => {
    const box = sandbox()
    const ended = await run(box, 'benchmarks', args('--tools', 'vykar', '--runs', '1', '--strace'))
    assert.equal(ended.code, 0, said(ended))
    const dir = join(resultsOf(box), 'strace/local')
    assert.equal(readdirSync(dir).length, operations.length)
    assert.match(readFileSync(join(dir, 'vykar-first-backup.txt'), 'utf8'), /^% time +seconds[\s\S]* openat$/m)
    assert.ok(readBenchmark(resultsOf(box)).samples.every(({ round }) => round >= 0))
  })

  test('a tracer that is missing is one line', async () => {
    const dir = join(scratch, 'no-perf')
    mkdirSync(dir, { recursive: true })
    spawnSync('bash', ['-c', `ln -sf $(ls -d /usr/bin/* /bin/* /usr/local/bin/* | grep -v '/perf$') ${dir}`])
    const ended = await run(sandbox(), 'benchmarks', args('--tools', 'vykar', '--perf'), { PATH: dir })
    assert.equal(ended.code, 2, said(ended))
    assert.match(ended.last, /--perf: perf is missing: apt-get install -y linux-perf/)
  })

  const faults: Record<string, [script: string, last: RegExp, ...options: string[]]> = {
    crashes: ['[[ $1 == create ]] && exit 2', /borg first backup: .*exit 2/],
    hangs: ['[[ $1 == check ]] && sleep 600', /borg check: .*out of time after 15 s/, '--limit', '15s'],
    'restores wrong data': [
      '[[ $1 == extract ]] && { "$borg" "$@"; f=$(find . -type f -size +4k | sort | head -1); printf X | dd of="$f" bs=1 conv=notrunc status=none; exit 0; }',
      /borg restore: .*exit 1: diff/,
    ],
  }
  for (const [name, [script, last, ...options]] of Object.entries(faults))
    test(`a tool that ${name} is reported as that, and vykar's figures are there`, async () => {
      const box = sandbox()
      const ended = await run(
        box,
        'benchmarks',
        args('--tools', 'borg', '--runs', '1', ...options),
        odd(name.replaceAll(' ', '-'), script),
      )
      assert.equal(ended.code, 1, said(ended))
      assert.match(ended.last, /^FAIL benchmarks /)
      assert.match(ended.last, last)
      const { figures } = readBenchmark(resultsOf(box))
      assert.equal(figures.filter((f) => f.tool === 'vykar' && f.seconds.n === 1).length, operations.length)
      const broken = figures.find((f) => f.tool === 'borg' && f.failed.length)
      assert.equal(broken?.failed.length, 1)
      assert.equal(broken?.seconds.n, 0)
      assert.deepEqual(processesIn(box), [])
    })

  test('what a version of a tool cannot do is n/a, and no failure', async () => {
    const box = sandbox()
    const old =
      '[[ $1 == compact ]] && { echo "borg: error: argument <command>: invalid choice: compact" >&2; exit 2; }'
    const ended = await run(box, 'benchmarks', args('--tools', 'borg', '--runs', '1'), odd('old', old))
    assert.equal(ended.last, 'PASS benchmarks', said(ended))
    const why = /prune by borg(?: on local)?: "borg compact --help" knows no compact/
    assert.match(ended.report!.rows[0]!.notes.join('\n'), why)
    const { figures } = readBenchmark(resultsOf(box))
    assert.equal(figures.filter((f) => f.tool === 'borg').length, operations.length - 1)
    assert.equal(figures.filter((f) => f.tool === 'vykar').length, operations.length)
    const text = readFileSync(join(resultsOf(box), 'reports/summary.md'), 'utf8')
    assert.match(text, why)
    assert.match(text, /^\| local \| prune \| borg \| n\/a \| "borg compact --help" knows no compact \|/m)
  })

  test('a version that makes no repository as it must be made is not measured; asked for by name it is exit 2', async () => {
    const newer = odd('newer', '[[ $1 == init ]] && { echo "borg: error: invalid choice: init" >&2; exit 2; }')
    const named = await run(sandbox(), 'benchmarks', args('--tools', 'borg', '--runs', '1'), newer)
    assert.equal(named.code, 2, said(named))
    assert.match(named.last, /borg in --tools: not a version that can be measured: "borg init --help"/)
    const box = sandbox()
    const rest = spawnSync('bash', [
      '-c',
      `mkdir -p ${box.dir}/bin && ln -sf $(ls -d /usr/bin/* /bin/* /usr/local/bin/* | grep -vE '/(borg|restic|rustic|kopia)$') ${box.dir}/bin`,
    ])
    assert.equal(rest.status, 0)
    const alone = await run(box, 'benchmarks', args('--runs', '1'), {
      PATH: `${newer.PATH.split(':')[0]}:${box.dir}/bin`,
    })
    assert.equal(alone.last, 'PASS benchmarks', said(alone))
    assert.match(readBenchmark(resultsOf(box)).missing.borg!, /^"borg init --help" knows no repokey-blake2$/)
  })

  for (const [lie, reason] of [
    ['first-unread', /vykar first backup: .*has read \d+ bytes of the source/],
    ['prune-nothing', /vykar prune: .*there are not 1 snapshots/],
    ['unchanged-empty', /vykar unchanged backup: .*the snapshot lists 0, and the source has \d+/],
    ['verify-unread', /vykar check data: .*(has read \d+ bytes of the repository|data-verified)/],
    ['check-empty', /vykar check: .*Check complete: 3 snapshots/],
    ['restore-mode', /vykar restore: .*mode 0644 became 0646/],
  ] as const)
    test(`an operation that did not do what is timed is no figure: ${lie}`, async () => {
      const ended = await run(sandbox(), 'benchmarks', args('--tools', 'vykar', '--runs', '1', '--sabotage', lie))
      assert.equal(ended.code, 1, said(ended))
      assert.match(ended.last, reason)
    })

  test('a tool that is missing is named; asked for by name it is FAIL', async () => {
    const dir = join(scratch, 'no-borg')
    mkdirSync(dir, { recursive: true })
    spawnSync('bash', [
      '-c',
      `ln -sf $(ls -d /usr/bin/* /bin/* /usr/local/bin/* | grep -vE '/(borg|restic|rustic|kopia)$') ${dir}`,
    ])
    const box = sandbox()
    const ended = await run(box, 'benchmarks', args('--tools', 'borg', '--runs', '1'), { PATH: dir })
    assert.equal(ended.code, 2, said(ended))
    assert.match(ended.last, /named in --tools, but not installed: borg/)
  })

  test('a memory limit holds', {
    skip:
      process.getuid?.() === 0 &&
      (existsSync('/sys/fs/cgroup/memory') || existsSync('/sys/fs/cgroup/cgroup.controllers'))
        ? false
        : 'no memory cgroups here',
  }, async () => {
    const ended = await run(sandbox(), 'benchmarks', args('--tools', 'vykar', '--runs', '1', '--memory-limit', '24'))
    assert.equal(ended.code, 1, said(ended))
    assert.match(ended.last, /vykar init: .*exit 137/)
    for (const dir of ['/sys/fs/cgroup', '/sys/fs/cgroup/memory'])
      assert.deepEqual(existsSync(dir) ? readdirSync(dir).filter((name) => name.includes(ended.report!.runId)) : [], [])
  })

  test('every tool has a line for every operation, and says what its compression is', () => {
    const backend = { kind: 'local' } as const
    for (const [name, tool] of Object.entries(tools)) {
      const lines = tool.commands({ program: name, name, backend, compression: 'zstd' })
      assert.deepEqual(Object.keys(lines).sort(), [...operations].sort())
      for (const line of Object.values(lines)) assert.match(line, new RegExp(name))
      assert.deepEqual(Object.keys(tool.compression).sort(), ['lz4', 'none', 'zstd'])
    }
  })
})
