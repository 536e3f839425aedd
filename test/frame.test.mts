// The frame: rows, verdicts, exit codes, cleanup, signals, kill -9, the guard, bad input.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { sleep } from 'zx'
import {
  lacking,
  noReal,
  processesIn,
  real,
  root,
  run,
  sandbox,
  scratch,
  smallCorpus,
  standin,
  start,
} from './helpers.mts'

const skip = lacking('rsync', 'setfattr', 'setfacl', 'setcap', 'flock')
const twoByTwo = join(root, 'test/fixtures/two-by-two.mts')
const withRest = (dir: string) =>
  `repositories:\n  - label: local\n    url: ${dir}/repos\n  - label: rest\n    url: http://127.0.0.1:9\n`

/** Waits for a condition; fails the test after 90 s. */
async function until(what: string, condition: () => boolean): Promise<void> {
  for (const end = Date.now() + 90_000; !condition(); await sleep(20)) assert.ok(Date.now() < end, `waited for ${what}`)
}
const files = (dir: string): string[] => (existsSync(dir) ? readdirSync(dir) : [])

/** The shortest scenario, for what is not about backends/local's own steps. */
const simple = join(import.meta.dirname, 'fixtures/one-row.mts')

describe('rows and verdict', { concurrency: 2, skip }, () => {
  test('a failure ends its row and not the run; the report tells all four', async () => {
    const box = sandbox()
    writeFileSync(box.sample, withRest(box.dir))
    const args = ['--vykar', standin(), '--source', smallCorpus(), '--fails', 'local-again']
    const ended = await run(box, twoByTwo, args)
    assert.equal(ended.code, 1, ended.stdout + ended.stderr)
    assert.match(ended.last, /^FAIL two-by-two local again: \d+ differences/)
    const rows = ended.report!.rows
    assert.deepEqual(
      rows.map((row) => `${row.repo} ${row.variant} ${row.verdict}`),
      ['local plain DEMO', 'local again FAIL', 'rest plain DEMO', 'rest again DEMO'],
    )
    // What failed is kept and named, what passed is gone.
    assert.ok(rows[1]!.kept.some((what) => what.endsWith('local-again')))
    const work = join(box.runtime, 'work', ended.report!.runId)
    assert.deepEqual(
      files(work).filter((name) => name.startsWith('local') || name.startsWith('rest')),
      ['local-again'],
    )
    const summary = readFileSync(join(box.runtime, 'reports/summary.csv'), 'utf8').trim().split('\n')
    assert.equal(summary[0], 'run_id,scenario,repo,variant,status,reason,seconds,vykar_version,report_path')
    assert.equal(summary.length, 5)
    const junit = readFileSync(join(box.runtime, 'reports/two-by-two/latest/junit.xml'), 'utf8')
    assert.match(junit, /tests="4" failures="1" errors="0" skipped="0"/)
    assert.match(junit, /name="local again".*<failure message="\d+ differences/)
    assert.ok(files(join(box.runtime, 'logs/two-by-two/latest')).includes('rest-again.06-retire.log'))
    assert.equal(statSync(join(box.runtime, 'configs/config.two-by-two.yaml')).mode & 0o777, 0o600)
  })

  for (const [name, vykar, lack] of [
    ['stand-in', standin, false],
    ['real vykar', () => real!, noReal],
  ] as const)
    test(`a source of one small file passes too (${name})`, { skip: lack }, async () => {
      const box = sandbox()
      mkdirSync(join(box.dir, 'tiny'))
      writeFileSync(join(box.dir, 'tiny/file-1'), 'a few bytes\n')
      const ended = await run(box, 'backends/local', ['--vykar', vykar(), '--source', join(box.dir, 'tiny')])
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
    })

  test('a lie that was never told proves nothing: BLOCKED', async () => {
    const args = ['--vykar', standin(), '--source', smallCorpus(), '--sabotage', 'guest-not-frozen']
    const ended = await run(sandbox(), 'backends/local', args)
    assert.match(ended.last, /^BLOCKED backends\/local the lie guest-not-frozen was never told/)
    assert.equal(ended.code, 75)
  })

  test('a rule that was broken is FAIL, whatever ends the row; a time limit is an exit code where any is right', async () => {
    const ended = await run(sandbox(), join(import.meta.dirname, 'fixtures/violation.mts'), ['--vykar', standin()])
    assert.equal(ended.code, 1, ended.stdout + ended.stderr)
    assert.match(ended.last, /^FAIL violation local: round 1: something is lost; then BLOCKED: the server is gone/)
    assert.equal(ended.report!.rows[0]!.facts['exit code'], 124)
  })

  test('--keep leaves repository and directory on PASS', async () => {
    const box = sandbox()
    const ended = await run(box, simple, ['--vykar', standin(), '--source', smallCorpus(), '--keep'])
    assert.equal(ended.code, 0, ended.stdout + ended.stderr)
    assert.ok(existsSync(join(box.dir, 'repos/one-row/config')))
    const config = join(box.runtime, 'configs/config.one-row.yaml')
    const list = spawnSync(standin(), ['--config', config, 'list', '-R', 'local'], {
      encoding: 'utf8',
      env: { ...process.env, VYKAR_PASSPHRASE: '123' },
    })
    assert.match(list.stdout, /No snapshots found/)
  })

  test('two runs of one scenario: the second is BLOCKED by the lock and disturbs nothing', async () => {
    const box = sandbox()
    const args = ['--vykar', standin(), '--source', smallCorpus()]
    const first = start(box, 'backends/local', [...args, '--sabotage', 'hang-restore'])
    await until('restore', () => first.printed().includes('snapshot list'))
    const second = await run(box, 'backends/local', args)
    assert.equal(second.code, 75, second.stdout)
    assert.match(second.last, /^BLOCKED backends\/local local: repository .* is in use by another run/)
    first.child.kill('SIGTERM')
    assert.equal((await first.ended).code, 143)
  })
})

describe('interruption', { concurrency: 2, skip }, () => {
  for (const [lie, signal, code] of [
    ['hang-init', 'SIGINT', 130],
    ['hang-backup', 'SIGINT', 130],
    ['hang-restore', 'SIGTERM', 143],
    ['hang-check', 'SIGHUP', 129],
    ['hang-ignoring-term', 'SIGINT', 130],
  ] as const)
    test(`${signal} while vykar ${lie}s: nothing is left, the report says FAIL, exit ${code}`, async () => {
      const box = sandbox()
      const args = ['--vykar', standin(), '--source', smallCorpus(), '--sabotage', lie]
      const { child, ended } = start(box, 'backends/local', args)
      const told = () =>
        files(join(box.runtime, 'logs/local')).some((id) =>
          existsSync(join(box.runtime, 'logs/local', id, 'sabotage.told')),
        )
      await until(lie, told)
      child.kill(signal)
      const end = await ended
      assert.equal(end.code, code, end.stdout + end.stderr)
      assert.equal(end.last, `FAIL backends/local interrupted by ${signal}`)
      assert.equal(end.report!.verdict, 'FAIL')
      assert.deepEqual(processesIn(box), [])
      assert.deepEqual(files(join(box.runtime, 'work')), [])
      assert.deepEqual(
        files(join(box.runtime, 'state')).filter((name) => /^\d{8}T/.test(name)),
        [],
      )
      assert.ok(!existsSync(join(box.dir, 'repos/local')), 'the repository is still there')
    })

  test('SIGINT while something is undone: it is undone to its end, and so is the rest', async () => {
    const box = sandbox()
    const fixture = join(import.meta.dirname, 'fixtures/undoing.mts')
    const { child, ended } = start(box, fixture, ['--vykar', standin()])
    await until('the undoing', () => existsSync(join(box.runtime, 'undoing')))
    child.kill('SIGINT')
    const end = await ended
    assert.equal(end.code, 130, end.stdout + end.stderr)
    assert.deepEqual(end.report!.leftBehind, [])
    assert.ok(!existsSync(join(box.runtime, 'mine')))
  })

  test('kill -9: the next run ends what was left and passes', async () => {
    const box = sandbox()
    const args = ['--vykar', standin(), '--source', smallCorpus()]
    const { child, ended } = start(box, simple, [...args, '--sabotage', 'hang-backup'])
    await until(
      'hang',
      () =>
        spawnSync('grep', ['-rls', 'hang-backup', join(box.runtime, 'logs'), '--include=sabotage.told']).status === 0,
    )
    child.kill('SIGKILL')
    await ended
    const [runId] = files(join(box.runtime, 'work'))
    assert.ok(processesIn(box).length > 0, 'nothing was left, so this proves nothing')
    const report = JSON.parse(readFileSync(join(box.runtime, 'reports/one-row', runId!, 'report.json'), 'utf8'))
    assert.equal(report.verdict, 'FAIL')
    const next = await run(box, simple, args)
    assert.equal(next.code, 0, next.stdout + next.stderr)
    assert.match(next.stdout, new RegExp(`cleared what one-row ${runId} had left`))
    assert.deepEqual(processesIn(box), [])
    assert.deepEqual(files(join(box.runtime, 'work')), [])
  })
})

describe('never someone’s backups', { skip }, () => {
  for (const [name, vykar, lack] of [
    ['stand-in', standin, false],
    ['real vykar', () => real!, noReal],
  ] as const)
    test(`a repository that is not the suite's is refused (${name})`, { skip: lack }, async () => {
      const box = sandbox()
      const repository = join(box.dir, 'repos/one-row')
      const config = join(box.dir, 'theirs.yaml')
      mkdirSync(join(box.dir, 'data'))
      writeFileSync(join(box.dir, 'data/precious'), 'x')
      writeFileSync(
        config,
        `hostname: accounting\ncache_dir: ${box.dir}/cache\nrepositories:\n  - label: local\n    url: ${repository}\nsources:\n  - path: ${box.dir}/data\n    label: data\n`,
      )
      const theirs = (...args: string[]) =>
        execFileSync(vykar(), ['--config', config, ...args, '-R', 'local'], {
          encoding: 'utf8',
          stdio: 'pipe',
          env: { ...process.env, VYKAR_PASSPHRASE: '123' },
        })
      theirs('init')
      theirs('backup')
      const args = ['--vykar', vykar(), '--source', smallCorpus()]
      const refused = await run(box, simple, args)
      assert.equal(refused.code, 2, refused.stdout)
      assert.match(refused.last, /refused to delete .*: snapshot [0-9a-f]{8} is of host accounting/)
      assert.match(theirs('list'), /accounting/)
      const unreadable = await run(box, simple, args, { VYKAR_PASSPHRASE: 'not theirs' })
      assert.equal(unreadable.code, 2, unreadable.stdout)
      assert.match(unreadable.last, /refused to delete .*it cannot be read/)
      assert.match(theirs('list'), /accounting/)
      writeFileSync(box.sample, `repositories:\n  - label: local\n    url: ${repository}\n`)
      const nested = await run(box, simple, args)
      assert.equal(nested.code, 2, nested.stdout)
      assert.match(nested.last, /is itself a repository/)
      writeFileSync(box.sample, `repositories:\n  - label: local\n    url: ${box.dir}/repos\n`)
      const named = await run(box, simple, [...args, '--wipe-repo', 'local'])
      assert.equal(named.code, 0, named.stdout)
    })
})

describe('bad input is one line, exit 2, and makes nothing', { concurrency: 3 }, () => {
  const cases: [string, string[], RegExp, string?][] = [
    ['unknown option', ['--repos', 'local'], /unknown option --repos; did you mean --repo\?/],
    ['a tool that is none', ['--require', 'foo'], /--require foo: no such tool or repository$/m],
    ['a label that is none', ['--wipe-repo', 'locl'], /--wipe-repo locl: .*did you mean local\?/],
    ['half a seed', ['--seed', '1.5'], /--seed 1\.5: a whole number is needed/],
    ["the system's directory", ['--runtime', '/'], /runtime directory \/ is the system's/],
    ['unexpected word', ['local'], /unexpected argument local/],
    ['missing value', ['--source'], /--source needs a value/],
    ['value twice', ['--seed', '1', '--seed', '2'], /--seed is given more than once/],
    ['bad number', ['--seed', 'abc'], /--seed abc: a number/],
    ['zero', ['--time-scale', '0'], /--time-scale 0: a number above 0/],
    ['not a choice', ['--services', 'manged'], /did you mean managed\?/],
    ['missing source', ['--source', '/nonexistent/corpus'], /--source \/nonexistent\/corpus: no such directory/],
    ['other repository', ['--repo', 'nosuch'], /--repo nosuch: backends\/local runs on local/],
    ['missing vykar', ['--vykar', '/nonexistent/vykar'], /no such executable/],
    ['vykar not executable', ['--vykar', '/etc/passwd'], /no such executable/],
    ['not vykar', ['--vykar', '/bin/echo'], /not vykar: `\/bin\/echo --version` printed/],
    ['runtime is a file', ['--runtime', '/etc/passwd'], /runtime directory \/etc\/passwd cannot be written/],
    [
      'runtime not writable',
      ['--runtime', '/proc/nope'],
      /runtime directory \/proc\/nope (cannot be written|has only 0 B free)/,
    ],
    [
      'source inside runtime',
      ['--runtime', '/usr/share', '--source', '/usr/share/doc'],
      /must not lie inside each other/,
    ],
    ['runtime inside source', ['--source', scratch], /must not lie inside each other/],
    ['unknown lie', ['--sabotage', 'restore-drops-fil'], /did you mean restore-drops-file\?/],
    [
      'sample without label',
      [],
      /no repository labelled local; it has rest/,
      'repositories:\n  - label: rest\n    url: http://127.0.0.1:1\n',
    ],
    ['malformed sample', [], /sample\.yaml:3:1: /, 'repositories:\n  - label: [local\n'],
    ['sample of the wrong type', [], /sample\.yaml:1:\d+: `repositories:` must be a list/, 'repositories: 5\n'],
    [
      'repository without url',
      [],
      /sample\.yaml:2:\d+: a repository needs `label:` and `url:`/,
      'repositories:\n  - label: local\n',
    ],
    [
      'unset variable',
      [],
      /\$\{NO_SUCH_VARIABLE\} is not set/,
      'repositories:\n  - label: local\n    url: ${NO_SUCH_VARIABLE}/x\n',
    ],
  ]
  for (const [name, args, message, sample] of cases)
    test(name, async () => {
      const box = sandbox(sample)
      // Options given twice are refused, so the helper's own are only there where the case has none.
      const all = args[0] === '--vykar' ? args : ['--vykar', standin(), ...args]
      const own = args.includes('--runtime') ? { ...box, runtime: args[args.indexOf('--runtime') + 1]! } : box
      const rest = all.filter((_, i) => all[i] !== '--runtime' && all[i - 1] !== '--runtime')
      const ended = await run(own, 'backends/local', rest)
      assert.equal(ended.code, 2, ended.stdout + ended.stderr)
      assert.match(ended.stderr, message)
      assert.equal(ended.stderr.trim().split('\n').length, 1, ended.stderr)
      assert.ok(!existsSync(join(box.dir, 'runtime')) && !existsSync(join(box.dir, 'repos')))
    })

  test('a full disk', { skip: process.getuid?.() === 0 ? false : 'mounting needs root' }, async () => {
    const box = sandbox()
    mkdirSync(box.runtime)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', box.runtime])
    try {
      const ended = await run(box, 'backends/local', ['--vykar', standin(), '--source', smallCorpus()])
      assert.equal(ended.code, 2)
      assert.match(ended.stderr, /has only .* free/)
      assert.deepEqual(files(box.runtime), [])
    } finally {
      execFileSync('umount', [box.runtime])
    }
  })

  test('missing tools and a missing vykar are SKIPPED with the remedy, or FAIL where required', async () => {
    const box = sandbox()
    mkdirSync(join(box.dir, 'bin'))
    const PATH = join(box.dir, 'bin')
    const lone = await run(box, 'backends/local', ['--source', smallCorpus()], { PATH })
    assert.equal(lone.code, 77, lone.stdout + lone.stderr)
    assert.match(lone.last, /^SKIPPED backends\/local vykar is missing .*: curl -fsSL https:\/\/vykar/)
    const required = await run(box, 'backends/local', ['--source', smallCorpus(), '--require', 'vykar'], { PATH })
    assert.equal(required.code, 1)
    assert.match(required.last, /^FAIL backends\/local required, but skipped: vykar is missing/)
    const tools = await run(box, 'backends/local', ['--vykar', standin(), '--source', smallCorpus()], { PATH })
    assert.equal(tools.code, 77)
    assert.match(tools.last, /^SKIPPED .*rsync is missing \(compares metadata\).*: apt-get install -y .*rsync/)
  })
})
