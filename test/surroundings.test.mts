// What is the user's stays the user's, and the surroundings are never blamed on vykar: each case once destroyed data, leaked a
// secret or became a FAIL about vykar. Most are told with the stand-in: they are about the suite.
import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { sleep } from 'zx'
import { capKept, clearDeadRuns } from '#lib/cleanup.mts'
import { isFree, lock } from '#lib/lock.mts'
import { markOurs } from '#lib/ours.mts'
import { scenarioNames } from '#scripts/suite/scenarios.mts'
import {
  cleanEnv,
  lacking,
  ownCorpus,
  processesIn,
  root,
  run,
  type Sandbox,
  sandbox,
  smallCorpus,
  standin,
  start,
} from './helpers.mts'

const skip = lacking('rsync', 'setfattr', 'setfacl', 'setcap', 'flock')
/** The shortest scenario: what it is told with costs little. */
const simple = join(import.meta.dirname, 'fixtures/one-row.mts')
const rootOnly = process.getuid?.() === 0 ? false : 'needs root'
const args = (...more: string[]) => ['--vykar', standin(), '--source', smallCorpus(), ...more]
const tree = (dir: string) =>
  execFileSync('find', [dir, '-printf', '%P %s %y\n'], { encoding: 'utf8' }).split('\n').sort()
const e2e = (box: Sandbox, script: string, ...words: string[]) =>
  spawnSync('bash', ['-c', script, 'bash', join(root, 'e2e'), ...words], {
    encoding: 'utf8',
    cwd: box.dir,
    env: cleanEnv(box),
    timeout: 120_000,
  })
/** Words of a run through `"$@"` in a script of bash. */
const words = (box: Sandbox, script: string, ...more: string[]) => [
  script,
  '--runtime',
  box.runtime,
  '--sample',
  box.sample,
  ...args(...more),
]

describe('nothing is taken for ours that is not', { skip, concurrency: 2 }, () => {
  for (const names of [['corpus.json'], ['corpus.json', 'manifest'], ['corpus.json', 'snapshot-1/thesis']])
    test(`--source with the user's ${names.join(' and ')}: backed up, and untouched`, async () => {
      const box = sandbox()
      const mine = join(box.dir, 'mine')
      mkdirSync(join(mine, 'snapshot-1'), { recursive: true })
      for (const name of names) writeFileSync(join(mine, name), '{"complete": false}')
      const before = tree(mine)
      const ended = await run(box, simple, ['--vykar', standin(), '--source', mine])
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
      assert.deepEqual(tree(mine), before)
    })

  test('a default corpus that the suite did not make is not replaced', async () => {
    const box = sandbox()
    const theirs = join(box.dir, 'corpus-local')
    mkdirSync(theirs)
    writeFileSync(join(theirs, 'corpus.json'), '{"complete": false}')
    const ended = await run(box, simple, ['--vykar', standin()])
    assert.equal(ended.code, 2, ended.stdout)
    assert.match(ended.last, /is no whole corpus, and not known to be this suite's: move it away/)
    assert.deepEqual(readdirSync(theirs), ['corpus.json'])
  })

  test('trees: what is no directory is a usage error, and no temporary directory is left', async () => {
    const box = sandbox()
    for (const words of [
      ['/no/such', box.dir],
      [box.dir, '/no/such'],
      [join(box.dir, 'sample.yaml'), box.dir],
    ]) {
      const done = spawnSync(join(root, 'e2e'), ['trees', ...words], {
        encoding: 'utf8',
        env: cleanEnv(box, { TMPDIR: box.dir }),
      })
      assert.equal(done.status, 2, done.stdout)
      assert.match(done.stderr, /^trees: \S+: no such directory\n$/)
    }
    assert.deepEqual(
      readdirSync(box.dir).filter((name) => name.startsWith('vykar-e2e-trees')),
      [],
    )
  })

  test('a size that is asked for is never passed over for the corpus that is there', async () => {
    const box = sandbox()
    ownCorpus(box)
    const args = ['--vykar', standin(), '--corpus-gib', '0.003']
    const ended = await run(box, simple, args)
    assert.equal(ended.code, 0, ended.stdout)
    assert.match(ended.stdout, /made the corpus .*corpus-local-0\.003 \(0\.003 GiB/)
    assert.match(JSON.stringify(ended.report?.rows), /corpus-local-0\.003/)
    assert.doesNotMatch((await run(box, simple, args)).stdout, /made the corpus/)
  })

  test('the cap, dead runs and prune take only what is marked', async () => {
    const box = sandbox()
    const [kept, theirs] = ['20261123T230900Z-aaaa', '20261123T230901Z-bbbb'].map((name) =>
      join(box.runtime, 'work', name),
    )
    for (const dir of [kept!, theirs!, join(box.runtime, 'work/thesis')]) {
      mkdirSync(dir, { recursive: true })
      writeFileSync(join(dir, 'data'), Buffer.alloc(1 << 20))
    }
    markOurs(box.runtime, [kept!])
    assert.deepEqual(await capKept(box.runtime, 0), [kept])
    // A state file that somebody wrote for a directory that is not marked clears nothing.
    const state = { scenario: 'x', work: theirs, path: '/bin', lines: [{ dir: theirs, line: 'rm data' }] }
    writeFileSync(join(box.runtime, 'state/20261123T230901Z-bbbb.json'), JSON.stringify(state))
    assert.match((await clearDeadRuns(box.runtime)).join(), /carries no mark of this suite: not removed/)
    assert.ok(existsSync(join(theirs!, 'data')) && existsSync(join(box.runtime, 'work/thesis/data')))
    const old = join(box.runtime, 'reports/x/20200101T000000Z-cccc')
    for (const dir of [old, old.replace('2020', '2021')]) {
      mkdirSync(dir, { recursive: true })
      const report = {
        schema: 'vykar-e2e/report/1',
        scenario: 'x',
        runId: dir.split('/').at(-1),
        started: '2020-01-01',
      }
      writeFileSync(join(dir, 'report.json'), JSON.stringify(report))
    }
    const pruned = e2e(box, '"$@"', 'report', 'prune', '--keep', '1d', '--runtime', box.runtime)
    assert.match(pruned.stdout, /left: .* carries no mark/)
    assert.ok(existsSync(old))
  })

  test('a repository that a failed run kept, unreadable as it is, does not stop the next run', async () => {
    const box = sandbox()
    const failed = await run(box, 'backends/local-none', args('--sabotage', 'none-encrypts'))
    assert.equal(failed.code, 1, failed.stdout)
    assert.ok(existsSync(join(box.dir, 'repos/local-none/config')), 'it was not kept, so nothing is proven')
    const next = await run(box, 'backends/local-none', args())
    assert.equal(next.code, 0, next.stdout + next.stderr)
  })

  test('a directory in the repository’s place that is none is not made one', async () => {
    const box = sandbox()
    mkdirSync(join(box.dir, 'repos/local'), { recursive: true })
    writeFileSync(join(box.dir, 'repos/local/letter'), 'x')
    const ended = await run(box, 'backends/local', args())
    assert.equal(ended.code, 2, ended.stdout)
    assert.match(ended.last, /holds letter and is no repository/)
  })

  test('every file says first what it is', () => {
    const found = execFileSync('find', ['lib', 'scripts', 'data-gen', '-name', '*.mts'], {
      cwd: root,
      encoding: 'utf8',
    })
    const files = found.split('\n').filter(Boolean)
    assert.ok(files.length > 100)
    for (const file of files) assert.match(readFileSync(join(root, file), 'utf8'), /^(#!.*\n)?\/\/ /, file)
  })

  test('every place that deletes asks removeOurs, or deletes by a name that it made itself', () => {
    const words = '\\b(rmSync|rmdirSync|unlinkSync|rm|rmdir)\\(|(^|[^-])\\brm -[a-z]*r|find .* -delete'
    const where = ['lib', 'scripts', 'data-gen', '--include=*.mts']
    const found = execFileSync('grep', ['-rnE', words, ...where], { cwd: root, encoding: 'utf8' })
    // A line of a script deletes what its own working directory holds, by a relative name.
    const relative = /`[^`]*\brm -rf?( ([a-z][a-z-]*\/?|\$\{(name|n)\}))+(?=[ `])|^[^:]+:\d+:rm -rf witness$/
    const allowed = [
      /^lib\/ours\.mts:.*rmSync\((join\(marks, name\)|record), \{ force/, // its own records
      /^lib\/(files|report)\.mts:.*rmSync\(fresh, /, // the temporary file that was just written
      /^lib\/cleanup\.mts:.*rmSync\((this\.file|join\(dir, name\)), /, // state files of runs
      /^lib\/(sh|background)\.mts:.*rmSync\((file|`\$\{base\}\.\$\{kind\}`, |join\(s\.dir, `\$\{name\}\.pid`\))/, // records of commands
      /^lib\/run\.mts:.*record = \{ command: `rm -rf/, // what removeOurs did, as the transcript has it
      /^lib\/environment\.mts:.*rm -r probe`/, // made three lines above
      /^scripts\/guard\.mts:.*find \$\{files\} -(mindepth 1 -delete|name '\.tmp\*' -type f -delete|depth -type d -empty -delete)/, // --rest-data-dir, torn files, empty directories
      /^scripts\/checks\.mts:.*find \$\{\{ raw: `"\$\$\{seen\}"` \}\} -ignore_readdir_race -name '\.tmp\*' .* -print -delete/, // of a repository that mayDelete let through
      /^lib\/process\.mts:.*rmdirSync\(groupOf\(runId\)\)/, // a control group, which is no directory
      /^scripts\/stress\.mts:.*rmSync\(join\(outer\.run\.dirs\.logs, file\)\)/, // records of earlier steps
      /^scripts\/stress\.mts:.*(find \$\{source\} .* -delete|xargs -0 -r rm -rf\))/, // in the client's copy of the tree
      /^scripts\/suite\/pack\.mts:.*rmSync\(out\)/, // the archive that was just written and holds a secret
      /^scripts\/benchmarks\/measure\.mts:.*rm -rf (\$\{name\} \$\{seen|"\$FILES_SFTP"\/\$\{name\})/, // a tool's repository, of a marked run
      /^scripts\/faults\/(corruption|disk-full)\.mts:.*rm -rf (lost;|small\/filler small\/many && sync -f small`)/, // in the row's directory
      /^scripts\/faults\/churn\.mts:.*rm -rf (cache; |source && mv moved source|one\.img )/, // in the row's directory
      /^scripts\/suite\/machine\.mts:.*rmSync\(code\)/, // the exit code of a build, beside its log
      /^scripts\/suite\/machine\.mts:.*tmp=\$\(mktemp -d\); trap 'chmod -R u\+w "\$tmp"; rm -rf "\$tmp"' EXIT/, // made on the same line
      /^scripts\/backends\/shapes\.mts:.*rm -rf? (cache|source|restored-way-\$)/, // in the row's directory
      /^data-gen\/awkward\.mts:.*fs\.rmdirSync\(made\)/, // made for the socket, and empty
      /^data-gen\/(corpus|change)\.mts:.*fs\.rm(Sync\(path|Sync\(join\(gone, name\)|dirSync\(gone)\)/, // a file of a tree that was made to be changed
    ]
    const lines = found.split('\n').filter((line) => line && !/:\s*(\/\/|\*)/.test(line))
    const odd = lines.filter((line) => !relative.test(line) && !allowed.some((rule) => rule.test(line)))
    assert.deepEqual(odd, [])
    // Whatever removes a tree asks removeOurs.
    assert.ok(!lines.some((line) => /recursive: true/.test(line)), 'a tree is removed without a look at its mark')
  })
})

describe('two readers of one text', { skip, concurrency: 2 }, () => {
  for (const [name, entry] of [
    ['block scalar', 'encryption:\n      passphrase: >-\n        correct horse\n        battery'],
    ['flow map', 'encryption: {mode: auto, passphrase: correct horse battery}'],
    ['quoted key', 'encryption:\n      "passphrase": correct horse battery'],
  ] as const)
    test(`a passphrase written as ${name} is in no file of the run`, async () => {
      const box = sandbox()
      writeFileSync(box.sample, `repositories:\n  - label: local\n    url: ${box.dir}/repos\n    ${entry}\n`)
      const ended = await run(box, simple, args())
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
      const leaked = spawnSync('grep', [
        '-rlE',
        'correct horse',
        join(box.runtime, 'logs'),
        join(box.runtime, 'reports'),
      ])
      assert.equal(leaked.stdout.toString(), '')
    })

  test('a passphrase of the environment that gets into a log is a FAIL, and masked in the report', async () => {
    const box = sandbox()
    const source = join(box.dir, 'correct-horse')
    mkdirSync(source)
    writeFileSync(join(source, 'file-1'), 'x')
    const ended = await run(box, simple, ['--vykar', standin(), '--source', source], {
      VYKAR_PASSPHRASE: 'correct-horse',
    })
    assert.equal(ended.code, 1, ended.stdout)
    assert.match(ended.last, /a secret in /)
    assert.ok(!JSON.stringify(ended.report).includes('correct-horse'))
  })

  for (const uri of [
    'postgresql://at:my@paQzQz:word@127.0.0.1/x',
    'postgresql://me:paQzQz%@127.0.0.1',
    'postgresql://me:pa/QzQz@127.0.0.1',
  ])
    test(`--uri ${uri}: one line, nothing leaks`, async () => {
      const box = sandbox()
      const ended = await run(box, 'databases/postgres', ['--vykar', standin(), '--uri', uri, '--repo', 'local'])
      assert.equal(ended.code, 2, ended.stdout + ended.stderr)
      assert.match(ended.stdout + ended.stderr, /percent-encode/)
      const leaked = spawnSync('grep', ['-rlE', 'paQzQz|pa/QzQz', box.runtime], { encoding: 'utf8' })
      assert.equal(leaked.stdout, '')
      assert.doesNotMatch(ended.stdout + ended.stderr, /QzQz/)
      assert.doesNotMatch(ended.stdout, /kept: database/)
    })

  test('url: ~/repo is looked at where vykar puts it: somebody’s repository there is refused', async () => {
    const box = sandbox()
    const theirs = join(box.dir, 'repo')
    const config = join(box.dir, 'theirs.yaml')
    writeFileSync(config, `hostname: accounting\nrepositories:\n  - label: local\n    url: ${theirs}\n`)
    execFileSync(standin(), ['--config', config, 'init', '-R', 'local'], {
      env: { ...process.env, VYKAR_PASSPHRASE: '123' },
    })
    const before = tree(theirs)
    writeFileSync(box.sample, 'repositories:\n  - label: local\n    url: ~/repo\n')
    const ended = await run(box, 'backends/local', args())
    assert.equal(ended.code, 2, ended.stdout)
    assert.match(ended.last, /is itself a repository/)
    assert.deepEqual(tree(theirs), before)
  })
})

describe('the surroundings', { skip, concurrency: 2 }, () => {
  test('umask 077, a start-up file that prints, a proxy, clients’ variables: no matter', () => {
    const box = sandbox()
    writeFileSync(join(box.dir, 'noise.sh'), 'echo noise\n')
    const bent = `umask 077; export BASH_ENV=${box.dir}/noise.sh CDPATH=/ RSYNC_RSH=no GREP_OPTIONS=-v VYKAR_REPOSITORY=/x
exec "$@"`
    const ended = e2e(box, bent, ...words(box, 'backends/local'))
    assert.equal(ended.status, 0, ended.stdout + ended.stderr)
  })

  test('a source that is a symlink is what it points to', async () => {
    const box = sandbox()
    symlinkSync(smallCorpus(), join(box.dir, 'link'))
    const ended = await run(box, simple, ['--vykar', standin(), '--source', join(box.dir, 'link')])
    assert.equal(ended.code, 0, ended.stdout + ended.stderr)
  })

  test('refused with the figures: holes larger than the disk, paths that do not fit below the run', async () => {
    const box = sandbox()
    const [holes, deep] = [join(box.dir, 'holes'), join(box.dir, 'deep')]
    for (const dir of [holes, deep]) mkdirSync(dir)
    writeFileSync(join(holes, 'file'), 'x')
    truncateSync(join(holes, 'file'), 2 ** 43)
    const large = await run(box, simple, ['--vykar', standin(), '--source', holes])
    assert.equal(large.code, 2, large.stdout)
    assert.match(large.last, /free, [\d.]+ TiB are needed for a source of 8\.00 TiB, holes filled/)
    const path = 'd'.repeat(200)
    execFileSync('bash', ['-c', `cd ${deep}; for i in $(seq 20); do mkdir ${path}; cd ${path}; done`])
    const long = await run(box, simple, ['--vykar', standin(), '--source', deep])
    assert.equal(long.code, 2, long.stdout)
    assert.match(
      long.last,
      /the longest path of .* has 4019 bytes, \d+ of a restored copy come before it, and 4096 is the limit/,
    )
    rmSync(deep, { recursive: true })
  })

  /** A runtime directory on a file system of its own. */
  const mounted = async (box: Sandbox, make: string, fn: () => Promise<void>) => {
    mkdirSync(box.runtime)
    const image = join(box.dir, 'image')
    execFileSync('bash', ['-c', make.replaceAll('IMAGE', image).replaceAll('AT', box.runtime)])
    try {
      await fn()
    } finally {
      // A file that someone else's look at all mounts holds for a moment must not leave it mounted.
      const undone = spawnSync('bash', [
        '-c',
        'for n in $(seq 50); do umount "$0" && exit; sleep 0.2; done; exit 1',
        box.runtime,
      ])
      assert.equal(undone.status, 0, `${undone.stderr}${spawnSync('fuser', ['-vm', box.runtime]).stderr}`)
    }
  }

  test('too few inodes: refused with the figures', { skip: rootOnly }, async () => {
    const box = sandbox()
    await mounted(box, 'mount -t tmpfs -o size=600m,nr_inodes=80 tmpfs AT', async () => {
      const ended = await run(box, simple, args())
      assert.equal(ended.code, 2, ended.stdout + ended.stderr)
      assert.match(ended.last, /has \d+ files, and .* has \d+ inodes free/)
    })
  })

  test('what the file system cannot hold is not compared, and named in the last line', {
    skip: rootOnly || lacking('mkfs.ext4'),
  }, async () => {
    const box = sandbox()
    const make = 'truncate -s 600M IMAGE && mkfs.ext4 -q -F -I 128 IMAGE && mount -o loop IMAGE AT'
    await mounted(box, make, async () => {
      const ended = await run(box, 'backends/local', args())
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
      assert.match(ended.last, /not compared here: nanoseconds/)
      assert.match(
        readFileSync(join(box.runtime, 'reports/local/latest/report.md'), 'utf8'),
        /cannot hold them \| nanoseconds/,
      )
    })
  })

  test('a source that changes meanwhile: BLOCKED with the path, in a user’s tree', async () => {
    const box = sandbox()
    const source = join(box.dir, 'logs')
    mkdirSync(source)
    for (const name of ['app.log', 'file-1', 'file-2']) writeFileSync(join(source, name), name)
    // It grows at the end, when everything is compared: without a look at the source that would be a PASS.
    const going = start(box, simple, ['--vykar', standin(), '--source', source])
    while (!going.printed().includes('compare') && going.child.exitCode === null) await sleep(10)
    writeFileSync(join(source, 'app.log'), 'one more line\n', { flag: 'a' })
    const ended = await going.ended
    assert.equal(ended.code, 75, ended.stdout)
    assert.match(ended.last, /^BLOCKED .* the source changed while it was tested: .*\/app\.log/)
    const lost = start(box, simple, ['--vykar', standin(), '--source', source])
    while (!lost.printed().includes('compare') && lost.child.exitCode === null) await sleep(10)
    renameSync(source, `${source}.away`)
    const gone = await lost.ended
    renameSync(`${source}.away`, source)
    assert.equal(gone.code, 75, gone.stdout)
    assert.match(gone.last, /^BLOCKED .*the source changed while it was tested: \S+\/logs( |;|$)/)
    // And where vykar's copy is then another, it is not vykar's fault.
    const early = start(box, simple, ['--vykar', standin(), '--source', source])
    while (!early.printed().includes(' list ') && early.child.exitCode === null) await sleep(5)
    rmSync(join(source, 'file-1'))
    const blamed = await early.ended
    assert.match(blamed.last, /^BLOCKED .*the source changed while it was tested/, blamed.stdout)
  })

  test('the runtime directory runs full: BLOCKED, the state is whole, the next run clears', {
    skip: rootOnly,
  }, async () => {
    const box = sandbox()
    await mounted(box, 'mount -t tmpfs -o size=300m tmpfs AT', async () => {
      const going = start(box, simple, args())
      while (!going.printed().includes('snapshot list') && going.child.exitCode === null) await sleep(5)
      spawnSync('dd', ['if=/dev/zero', `of=${box.runtime}/filler`, 'bs=1M'])
      const ended = await going.ended
      rmSync(join(box.runtime, 'filler'))
      assert.equal(ended.code, 75, ended.stdout + ended.stderr)
      assert.match(ended.last, /^BLOCKED one-row .*(run full|no space (is )?left|cannot be written)/i)
      const next = await run(box, simple, args())
      assert.equal(next.code, 0, next.stdout + next.stderr)
      assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
    })
  })

  test('inode flags are a known gap, seen', { skip: rootOnly || lacking('chattr') }, async () => {
    const box = sandbox()
    const source = join(box.dir, 'flags')
    mkdirSync(source)
    for (const name of ['file-1', 'file-2', 'with space']) writeFileSync(join(source, name), name)
    const set = spawnSync('chattr', ['+d', join(source, 'file-1'), join(source, 'with space')])
    const ended = await run(box, simple, ['--vykar', standin(), '--source', source])
    assert.equal(ended.code, 0, ended.stdout)
    const gap = ended.report!.rows[0]!.gaps.find(({ id }) => id === 'inode-flags')
    assert.deepEqual(set.status === 0 ? [gap?.state, gap?.count] : [], set.status === 0 ? ['seen', 2] : [])
  })
})

describe('what a process inherits', { skip, concurrency: 2 }, () => {
  test('a reader that goes away, a full device: the run goes on to its report', () => {
    const box = sandbox()
    for (const [script, code] of [
      ['set -o pipefail; "$@" | head -n 1; exit ${PIPESTATUS[0]}', 0],
      ['"$@" > /dev/full', 0],
    ] as const) {
      rmSync(join(box.runtime, 'reports/one-row'), { recursive: true, force: true })
      const ended = e2e(box, script, ...words(box, simple))
      assert.equal(ended.status, code, ended.stdout + ended.stderr)
      const report = JSON.parse(readFileSync(join(box.runtime, 'reports/one-row/latest/report.json'), 'utf8'))
      assert.equal(report.verdict, 'DEMO')
    }
    assert.deepEqual(processesIn(box), [])
  })

  test('a hangup that was ignored at the start stays so', async () => {
    const box = sandbox()
    const child = spawn('bash', ['-c', `trap '' HUP; exec "$@"`, 'bash', join(root, 'e2e'), ...words(box, simple)], {
      cwd: box.dir,
      env: cleanEnv(box),
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    })
    let printed = ''
    child.stdout.on('data', (text) => {
      printed += text
    })
    const ended = new Promise<number | null>((settle) => child.on('close', settle))
    while (!printed.includes('backup') && child.exitCode === null) await sleep(10)
    // The process group, as a terminal that closes does it.
    process.kill(-child.pid!, 'SIGHUP')
    assert.equal(await ended, 0, printed)
    assert.match(printed, /^DEMO one-row/m)
  })

  test('too few open files, a removed working directory: one line, exit 2', () => {
    const box = sandbox()
    const few = e2e(box, 'ulimit -n 100; exec "$@"', ...words(box, simple))
    assert.equal(few.status, 2, JSON.stringify(few))
    assert.match(few.stderr, /^one-row: only 100 files may be open \(ulimit -n\): 256 are needed, ulimit -n 1024\n$/)
    const gone = e2e(box, 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', ...words(box, simple))
    assert.equal(gone.status, 2, JSON.stringify(gone))
    // dash itself says a line before.
    assert.match(gone.stderr, /(^|\n)e2e: the working directory has been removed: cd to another one\n$/)
    assert.doesNotMatch(gone.stderr, /\n +at /)
  })

  test('lock files: another user’s is no obstacle, ours do not pile up', {
    skip: rootOnly || lacking('flock'),
  }, async () => {
    const key = `test ${process.pid}`
    const hash = createHash('sha256').update(key).digest('hex').slice(0, 16)
    const release = await lock(key, 'the test')
    const path = ['/run/lock', process.env.XDG_RUNTIME_DIR ?? '', tmpdir()]
      .map((dir) => join(dir, `vykar-e2e-${hash}.lock`))
      .find((name) => existsSync(name))
    assert.ok(path)
    await assert.rejects(lock(key, 'the test'), /is in use by another run/)
    await release()
    assert.ok(!existsSync(path))
    // As fs.protected_regular=2 has it: in a sticky directory nobody opens another user's file with O_CREAT.
    writeFileSync(path, '')
    chownSync(path, 65534, 65534)
    assert.ok(await isFree(key))
    rmSync(path, { force: true })
  })

  test('torn files: the next run, report index and all --resume say so and go on', async () => {
    const box = sandbox()
    const first = await run(box, simple, args())
    assert.equal(first.code, 0, first.stdout)
    const torn = join(box.runtime, 'reports/one-row/20200101T000000Z-torn')
    mkdirSync(torn)
    writeFileSync(join(torn, 'report.json'), '{"schema": ')
    writeFileSync(join(box.runtime, 'state/20200101T000000Z-torn.json'), '')
    const next = await run(box, simple, args())
    assert.equal(next.code, 0, next.stdout)
    assert.match(
      next.stdout,
      /state\/20200101T000000Z-torn\.json is torn: what run 20200101T000000Z-torn had left is not cleared/,
    )
    const index = e2e(box, '"$@"', 'report', 'index', '--runtime', box.runtime)
    assert.equal(index.status, 0, index.stderr)
    assert.match(index.stderr, /note: left out: .*no report, or a torn one/)
    mkdirSync(join(box.runtime, 'reports/all/20200101T000000Z-torn'), { recursive: true })
    writeFileSync(join(box.runtime, 'reports/all/20200101T000000Z-torn/run.json'), '')
    const resumed = e2e(box, '"$@"', 'all', '--resume', '20200101T000000Z-torn', '--runtime', box.runtime)
    assert.equal(resumed.status, 2)
    assert.match(resumed.stderr, /run\.json is torn: begin anew/)
  })

  test('doctor and setup: a vykar that crashes is not there', () => {
    const box = sandbox()
    mkdirSync(join(box.dir, 'bin'))
    writeFileSync(join(box.dir, 'bin/vykar'), '#!/bin/sh\nkill -SEGV $$\n', { mode: 0o755 })
    const env = 'export PATH=$PWD/bin:$PATH; exec "$@"'
    const doctor = e2e(box, env, 'doctor')
    assert.equal(doctor.status, 77, doctor.stdout)
    assert.match(doctor.stdout, /^lacks {3}backends\/local +without vykar \(.*does not work: exit 1\d\d/m)
    const one = (text: string) => text.split('\n').filter((line) => /^(ready|partly|lacks)\b/.test(line)).length
    assert.equal(one(doctor.stdout), scenarioNames().length)
    assert.match(e2e(box, env, 'doctor', '--verbose').stdout, /^ +rsync +\d+\.\d+/m)
    const setup = e2e(box, env, 'setup', 'local', '--dry-run')
    assert.match(setup.stdout, /setup: vykar +FAILED .*does not work/)
  })
})
