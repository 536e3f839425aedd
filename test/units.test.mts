// The small parts: what vykar prints, options, config, known gaps, transcript, verdicts, reports.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { seeded } from '#data-gen/random.mts'
import { maskUri, resolveUrl, serverUri } from '#lib/address.mts'
import { expand, localDir, Sample, scenarioUrl } from '#lib/config.mts'
import { leftOutside, statedEnvironment, strewn } from '#lib/environment.mts'
import { readJson, writeWhole } from '#lib/files.mts'
import { explain, type Gap, gapsOf, unexplainedWarnings } from '#lib/gaps.mts'
import { aptLine } from '#lib/host.mts'
import { meant, parseOptions } from '#lib/options.mts'
import { isOurs, isRunId, markOurs, ourRuns, removeOurs } from '#lib/ours.mts'
import { moved } from '#lib/process.mts'
import {
  junit,
  leftAsBefore,
  markdown,
  ownSeconds,
  type RunReport,
  reportBefore,
  withoutSecrets,
} from '#lib/report.mts'
import type { Run } from '#lib/run.mts'
import { quote, Transcript } from '#lib/transcript.mts'
import { Blocked, fold, Mismatch, Skipped, UsageError, verdictOf } from '#lib/verdict.mts'
import { differentFlags, inWords, parseDiff, parseRsync } from '#lib/verify.mts'
import { inRange } from '#lib/version.mts'
import { stillShown } from '#scripts/faults/common.mts'
import { findingsOf } from '#scripts/findings.mts'
import { isOurRepository, rememberRepository } from '#scripts/guard.mts'
import { checkLine, parseBackup, parseList, parseSize } from '#scripts/printed.mts'
import { root, scratch } from './helpers.mts'

const dir = mkdtempSync(join(scratch, 'units-'))

describe('time left', () => {
  const steps = [{ name: 'backup', log: '', seconds: 50, commands: [] }]
  const row = { repo: 'rest', variant: 'none', steps }
  const before = { argv: ['--seed', '1'], steps: [], rows: [row] } as unknown as RunReport
  test('a step takes as long as in the run before, where that is known and not over', () => {
    assert.equal(leftAsBefore(before, 'rest-none', 'backup', 10), ', about 40 s left as the last time')
    assert.equal(leftAsBefore(before, 'rest-none', 'backup', 60), '')
    for (const [where, step] of [
      ['rest', 'backup'],
      ['run', 'backup'],
      ['rest-none', 'check'],
    ] as const)
      assert.equal(leftAsBefore(before, where, step, 0), '')
    assert.equal(leftAsBefore(undefined, 'rest-none', 'backup', 0), '')
  })
  test('a run of other options says nothing of this one', () => {
    mkdirSync(join(dir, 'latest'))
    writeFileSync(join(dir, 'latest/report.json'), JSON.stringify(before))
    assert.deepEqual(reportBefore(before, dir), before)
    assert.equal(reportBefore({ ...before, argv: ['--seed', '2'] }, dir), undefined)
    assert.equal(reportBefore(before, join(dir, 'nowhere')), undefined)
  })
})

describe('what vykar prints', () => {
  test('list: lines of the log on stderr are no table, and hide none', () => {
    const warned =
      "Warning: repository 'rest' uses non-HTTPS REST URL 'http://x'. Transport is not TLS-protected.\n2026-11-25T23:13:04.364271Z  WARN repository.url uses plaintext HTTP\n"
    assert.deepEqual(parseList(`${warned}No snapshots found.\n`), [])
    assert.throws(() => parseList(`${warned}Error: wrong passphrase\n`), /printed no table: Error: wrong passphrase/)
  })
  test('a warning that nothing explains is found in either form', () => {
    const both = 'Warning: something is odd\n2026-11-25T23:13:04.364271Z  WARN so is this\n'
    assert.deepEqual(unexplainedWarnings(both, '0.19.1', ''), ['something is odd', 'so is this'])
    const plain =
      "Warning: repository 'rest' uses non-HTTPS REST URL 'http://127.0.0.1:1/'. Transport is not TLS-protected.\n"
    assert.deepEqual(unexplainedWarnings(plain, '0.19.1', 'allow_insecure_http: true'), [])
    assert.equal(unexplainedWarnings(plain, '0.19.1', '').length, 1)
    // What the config asks for explains that warning, and nothing else that has such a URL in it.
    const lost = '2026-11-25T23:13:04.364271Z ERROR pack lost: PUT http://127.0.0.1:1/packs\n'
    assert.deepEqual(unexplainedWarnings(lost + plain, '0.19.1', 'allow_insecure_http: true'), [
      'pack lost: PUT http://127.0.0.1:1/packs',
    ])
    const none = "Warning: repository 'rest' uses REST with plaintext mode (encryption.mode=none).\n"
    assert.deepEqual(unexplainedWarnings(none, '0.19.1', 'encryption:\n  mode: none'), [])
    assert.equal(unexplainedWarnings(none, '0.19.1', 'encryption:\n  mode: auto').length, 1)
  })
  test('an error on any line is found, whatever its form', () => {
    const found = (text: string) => unexplainedWarnings(text, '0.19.1', '')
    assert.deepEqual(found('Snapshot created: 12345678\nError: 3 files lost\n'), ['Error: 3 files lost'])
    assert.equal(found('Restored: 1 files, 1 dirs, 0 symlinks (1 MiB), Errors: 7\n').length, 1)
    assert.deepEqual(found('Check complete: 1 snapshots, 1 items, 0 errors\n'), [])
    const many = '2026-11-25T23:13:04.364271Z  WARN 588 additional metadata warnings suppressed\n'
    assert.deepEqual(unexplainedWarnings(many, '0.19.1', ''), [])
    assert.equal(unexplainedWarnings(many.replace('metadata', 'data'), '0.19.1', '').length, 1)
  })
  test('list: repeated host and label, several source paths, counts with separators', () => {
    const found = parseList(` ID        Date              Host       Label   Source      Files        Size       Added 
 246d2337  2026-11-23 23:40  vykar-e2e  corpus  /tmp/p/src  2,710   50.00 MiB   50.20 MiB 
 ae120cdf  2026-11-23 23:40                     /tmp/p/src      3   50.00 MiB        40 B 
 66872a49  2026-11-23 23:40  vykar-e2e  other   /etc/apt       34  652.83 KiB  113.50 KiB 
                                                /etc/ssh                                  
`)
    assert.deepEqual(
      found.map((s) => [s.id, s.host, s.label, s.sources.join(), s.files]),
      [
        ['246d2337', 'vykar-e2e', 'corpus', '/tmp/p/src', 2710],
        ['ae120cdf', 'vykar-e2e', 'corpus', '/tmp/p/src', 3],
        ['66872a49', 'vykar-e2e', 'other', '/etc/apt,/etc/ssh', 34],
      ],
    )
    assert.deepEqual(parseList('No snapshots found.\n'), [])
    for (const odd of [
      '',
      'Segmentation fault\n',
      ' ID  Date  Host  Label  Source  Files  Size  Added\n abc garbage\n',
    ])
      assert.throws(() => parseList(odd), /vykar list printed/)
  })

  test('backup: hook output is passed over, errors are counted', () => {
    const text = `hook says: Snapshot created: cafecafe
Snapshot created: 246d2337
  Source: /tmp/p/src (label: corpus)
  Files: 1, Errors: 2, Original: 50.00 MiB, Compressed: 50.20 MiB, Deduplicated: 40 B
`
    assert.deepEqual(parseBackup(text), [
      { id: '246d2337', sources: '/tmp/p/src', label: 'corpus', files: 1, errors: 2, original: 50 * 2 ** 20, compressed: 50.2 * 2 ** 20, deduplicated: 40, after: '' }, // biome-ignore format: one line
    ])
    assert.deepEqual(parseBackup('Snapshot created: 246d2337\n'), [])
  })

  test('sizes, check, version ranges', () => {
    assert.equal(parseSize('1.50 KiB'), 1536)
    assert.throws(() => parseSize('much'), /not a size/)
    assert.ok(
      checkLine.test(
        'Check complete: 3 snapshots, 49 items, 7 packs existence-checked (63 chunks), 0 chunks data-verified, 0 errors',
      ),
    )
    assert.ok(inRange('0.19.1', '<=0.19.1') && inRange('0.19.1-rc1', '>=0.17 <0.20') && inRange('9.9.9', '*'))
    assert.ok(!inRange('0.19.2', '<=0.19.1') && !inRange('0.20.0', '>=0.17 <0.20'))
    assert.throws(() => inRange('1.0.0', 'new'), /not a version range/)
  })
})

test('what the program of the run that moves most has read and written so far', async () => {
  const dir = mkdtempSync(join(scratch, 'moved-'))
  const id = `20260101T000000Z-${process.pid}`
  assert.equal(moved(id), '')
  const env = { ...process.env, VYKAR_E2E_RUN: id }
  const copies = (['vykar', 'restic'] as const).map((name) => {
    copyFileSync('/bin/cat', join(dir, name))
    return spawn(join(dir, name), [], { env, stdio: ['pipe', 'pipe', 'ignore'] })
  })
  // What waits for others moves nothing of its own, and a server's bytes are its clients'.
  const shell = spawn('bash', ['-c', 'head -c 9M /dev/zero > /dev/null; echo; read'], {
    env,
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  const server = spawn('bash', ['-c', 'exec -a server tail -c 9M -f /dev/zero'], {
    env: { ...env, VYKAR_E2E_SERVICE: 'server' },
    stdio: 'ignore',
  })
  const passed = async (n: number, size: number) => {
    let came = 0
    copies[n]!.stdin.write(Buffer.alloc(size))
    for await (const piece of copies[n]!.stdout.iterator({ destroyOnReturn: false })) {
      came += (piece as Buffer).length
      if (came === size) return
    }
  }
  try {
    await once(shell.stdout, 'data')
    await passed(0, 1 << 20)
    assert.match(moved(id), /^, vykar: 1\.\d+ MiB read, 1\.\d+ MiB written$/)
    await passed(1, 3 << 20)
    assert.match(moved(id), /^, restic: 3\.\d+ MiB read, 3\.\d+ MiB written$/)
  } finally {
    for (const child of [...copies, shell, server]) {
      child.kill()
      await once(child, 'exit')
    }
  }
})

describe('options', () => {
  const specs = {
    repo: { kind: 'list', help: '' },
    gib: { kind: 'number', help: '', default: 1, above: true },
    keep: { kind: 'flag', help: '' },
  } as const
  test('values, defaults, lists', () => {
    assert.deepEqual(parseOptions(['--repo', 'local,rest', '--gib=2.5', '--keep'], specs), {
      _: [],
      repo: ['local', 'rest'],
      gib: 2.5,
      keep: true,
    })
    assert.deepEqual(parseOptions([], specs), { _: [], repo: [], gib: 1, keep: false })
  })
  for (const [argv, message] of [
    [['--gibs', '1'], /did you mean --gib\?/],
    [['--gib'], /needs a value/],
    [['--gib', '0'], /above 0/],
    [['--gib', '-1'], /above 0/],
    [['--gib', '1e999'], /a number above 0/],
    [['--gib', '1', '--gib', '2'], /more than once/],
    [['--keep=no'], /takes no value/],
    [['-x'], /unknown option -x/],
  ] as const)
    test(argv.join(' '), () =>
      assert.throws(
        () => parseOptions([...argv], specs),
        (e) => e instanceof UsageError && message.test(e.message),
      ),
    )
  test('a near name is suggested, and no other', () => {
    assert.equal(meant('rset', ['local', 'rest', 's3']), '; did you mean rest?')
    assert.equal(meant('foo', ['local', 'rest', 'sftp']), '')
  })
})

describe('config', () => {
  const sampleText = `# my own comment
compression:   # keep this
  algorithm: zstd
future_key: 7
repositories:
  # the disk in the cellar
  - label: local
    url: \${BASE}/repos
    encryption:
      passphrase: hunter2
  - label: rest
    url: https://backup.example.org
    access_token: s3cret
sources:
  - /home
`
  const file = join(dir, 'sample.yaml')
  writeFileSync(file, sampleText)
  const load = () => Sample.load(file, { BASE: '/data' })

  const hidden: string[] = []
  const compose = (labels: string[], over: string) =>
    load().compose(
      labels.map((label) => ({ label })),
      over,
      (key, value) => {
        hidden.push(`${key}=${value}`)
        return `HIDDEN_${key.toUpperCase()}`
      },
    )
  test('unknown keys survive, other repositories and sources do not; the sample stays as it is', () => {
    const text = compose(['local'], 'sources:\n  - path: /x\n    label: corpus\n')
    for (const kept of [
      'algorithm: zstd',
      'future_key: 7',
      'url: ${REPO_LOCAL}',
      'hostname: vykar-e2e',
      'cache_dir: cache',
    ])
      assert.ok(text.includes(kept), `${kept} is lost:\n${text}`)
    assert.doesNotMatch(text, /backup\.example\.org|\/home/)
    assert.equal(readFileSync(file, 'utf8'), sampleText)
  })
  test('hooks of the sample are run by nobody; those of a script are', () => {
    const odd = join(dir, 'hooks.yaml')
    writeFileSync(
      odd,
      'hooks:\n  before: stop-the-database\nrepositories:\n  - label: local\n    url: /x\n    hooks:\n      after: umount-it\n',
    )
    const text = Sample.load(odd).compose(
      [{ label: 'local' }],
      'sources:\n  - path: /x\n    hooks: {before: mine}\n',
      String,
    )
    assert.doesNotMatch(text, /stop-the-database|umount-it/)
    assert.match(text, /before: mine/)
  })
  test('a script that sets encryption removes every passphrase; keys of the script go to all repositories', () => {
    const text = compose(['local', 'rest'], 'encryption:\n  mode: none\nrepositories:\n  - min_pack_size: 7\n')
    assert.doesNotMatch(text, /passphrase/)
    assert.match(text, /mode: none/)
    assert.equal(text.match(/min_pack_size: 7/g)?.length, 2)
  })
  for (const [name, yaml, secret] of [
    ['plain', 'passphrase: hush-hush', 'hush-hush'],
    ['block scalar', 'passphrase: >-\n        hush\n        hush', 'hush hush'],
    ['flow map', 'encryption: {mode: auto, passphrase: hush-hush}', 'hush-hush'],
    ['quoted key', '"passphrase": \'hush-hush\'', 'hush-hush'],
    ['default of a variable', 'access_token: ${NOT_SET_HERE:-hush-hush}', 'hush-hush'],
    ['alias', 'note: &p hush-hush\n    passphrase: *p', 'hush-hush'],
    ['comment beside it', 'passphrase: hush-hush # was hush-hush', 'hush-hush'],
    ['password in a URL', 'mirror: 1\n    url: https://me:hush-hush@example.org', 'hush-hush'],
  ] as const)
    test(`a secret written as ${name} is known, and in no file`, () => {
      const odd = join(dir, 'odd.yaml')
      const own = yaml.includes('url:') ? '' : '    url: /x\n'
      writeFileSync(odd, `repositories:\n  - label: local\n${own}    ${yaml}\n`)
      const sample = Sample.load(odd)
      assert.deepEqual(sample.secrets, [secret])
      const text = sample.compose([{ label: 'local' }], '', () => 'HIDDEN')
      assert.ok(!text.includes(secret), text)
    })
  test('URLs and variables are resolved as vykar does', () => {
    assert.equal(scenarioUrl('/repos/', 'local'), '/repos/local')
    assert.equal(scenarioUrl('s3+http://h:1/b/p', 'postgres'), 's3+http://h:1/b/p/postgres')
    assert.equal(scenarioUrl('http://h:1', 'rest'), 'http://h:1')
    assert.equal(localDir('/a'), '/a')
    assert.equal(localDir('sftp://h/a'), undefined)
    assert.equal(expand('${A}/${B:-x}', { A: 'a', B: '' }, 'f'), 'a/x')
    assert.throws(() => expand('${NOPE}', {}, 'f'), /f: \$\{NOPE\} is not set/)
    for (const [url, means] of [
      ['~/repo', `${process.env.HOME}/repo`],
      ['~', process.env.HOME],
      ['file:///x%20y', '/x%20y'],
      [' /a/../b ', '/b'],
      ['relative/repo', join(process.cwd(), 'relative/repo')],
      ['s3+https://h/b', 's3://h/b'],
      ['sftp://me@h:22/x', 'sftp://me@h:22/x'],
    ] as const)
      assert.equal(resolveUrl(url, 'f'), means)
    for (const odd of ['', 'file://', 'ftp://h/x', 'http://'])
      assert.throws(() => resolveUrl(odd, 'f'), UsageError, odd)
  })
  test('a server URI works, or one line without the password says how to write it', () => {
    assert.deepEqual(serverUri('postgresql://me:p%40ss%2F@db:5433/shop', ['postgresql'], '5432'), {
      host: 'db',
      port: '5433',
      user: 'me',
      password: 'p@ss/',
    })
    assert.equal(serverUri('mariadb://[::1]', ['mariadb'], '3306').host, '::1')
    for (const odd of ['at:my@pa55:word', 'me:pa55%', 'me:pa/55', 'me:pa?55', 'me:pa 55', 'me:pa:55'])
      assert.throws(
        () => serverUri(`postgresql://${odd}@host/x`, ['postgresql'], '5432'),
        (error: Error) =>
          /percent-encode/.test(error.message) && !/55/.test(error.message) && !error.message.includes('\n'),
        odd,
      )
    assert.throws(() => serverUri('mysql://h', ['postgresql'], '1'), /postgresql:\/\/USER:PASSWORD@HOST:PORT is needed/)
    assert.equal(
      maskUri('--uri=postgresql://at:my@pass:word@host/x?password=y'),
      '--uri=postgresql://***@host/x?password=***',
    )
  })
})

describe('whose a thing is', () => {
  const runtime = join(dir, 'runtime')
  const at = (name: string) => join(runtime, 'work', name)
  const ours = at('20261123T230900Z-x7k2')
  mkdirSync(ours, { recursive: true })
  markOurs(runtime, [ours])
  test('a mark that the runtime directory knows, and for this very directory', () => {
    assert.ok(isOurs(runtime, ours))
    const copy = at('20261123T230901Z-x7k2')
    mkdirSync(copy)
    writeFileSync(join(copy, '.vykar-e2e'), readFileSync(join(ours, '.vykar-e2e')))
    const forged = at('20261123T230902Z-x7k2')
    mkdirSync(forged)
    writeFileSync(join(forged, '.vykar-e2e'), '00000000-0000-4000-8000-000000000000\n')
    mkdirSync(at('thesis'))
    for (const dir of [copy, forged, at('thesis')]) assert.ok(!isOurs(runtime, dir), dir)
    assert.deepEqual(ourRuns(runtime, join(runtime, 'work')), [ours])
    assert.ok(isRunId('20261123T230900Z-x7k2') && !isRunId('thesis') && !isRunId('20261123T230900Z'))
  })
  test('only what is proven goes, symlinks resolved', async () => {
    mkdirSync(join(ours, 'local/restored'), { recursive: true })
    writeFileSync(join(at('thesis'), 'chapter-1'), 'years of work')
    symlinkSync(at('thesis'), join(ours, 'link'))
    await assert.rejects(removeOurs(runtime, at('thesis')), /carries no mark of this suite: not removed/)
    await assert.rejects(removeOurs(runtime, join(ours, 'link')), /carries no mark/)
    await assert.rejects(removeOurs(join(dir, 'other'), ours), /carries no mark/)
    await removeOurs(runtime, join(ours, 'local'))
    assert.ok(!existsSync(join(ours, 'local')) && existsSync(ours))
    await removeOurs(runtime, ours)
    assert.ok(!existsSync(ours) && existsSync(join(at('thesis'), 'chapter-1')))
  })
  test('a repository is known by what init wrote into it', () => {
    const repo = join(dir, 'repo')
    mkdirSync(repo)
    writeFileSync(join(repo, 'config'), 'one')
    assert.ok(!isOurRepository(runtime, repo))
    rememberRepository(runtime, repo)
    assert.ok(isOurRepository(runtime, repo))
    writeFileSync(join(repo, 'config'), 'another')
    assert.ok(!isOurRepository(runtime, repo))
  })
})

describe('the surroundings', () => {
  test('variables that bend commands do not reach them, loopback has no proxy', () => {
    const bent = ['VYKAR_PASSPHRASE', 'AWS_PROFILE', 'RCLONE_CONFIG', 'PGHOST', 'MYSQL_PWD', 'DOCKER_HOST', 'BASH_ENV', 'CDPATH', 'RSYNC_RSH', 'LC_TIME'] // biome-ignore format: a list
    const before = { ...process.env }
    for (const name of bent) process.env[name] = 'x'
    process.env.no_proxy = 'corp.example'
    const env = statedEnvironment()
    process.env = before
    for (const name of bent) assert.equal(env[name], undefined, name)
    assert.equal(env.LC_ALL, 'C.UTF-8')
    assert.equal(env.no_proxy, 'corp.example,127.0.0.1,localhost,::1')
  })
  test('a file is whole or not there; what is torn reads as nothing', () => {
    const file = join(dir, 'state.json')
    writeWhole(file, '{"a": 1}')
    assert.deepEqual(readJson(file), { a: 1 })
    for (const torn of ['', '{"a": ', 'null']) {
      writeFileSync(file, torn)
      assert.equal(readJson(file), undefined)
    }
    assert.equal(readJson(join(dir, 'nowhere')), undefined)
  })
})

describe('comparison', () => {
  const gap: Gap = { id: 'top', versions: '*', trigger: 'true', shows: { rsync: '^\\.d\\.\\.t\\.* \\./$' }, why: 'w' }
  test('a listed gap is seen, an unlisted difference stays, a gap that does not show is fixed', () => {
    const differences = parseRsync('.d..t...... ./\n.f..t...... a file\n')
    const { unexplained, seen } = explain(
      differences,
      [gap, { ...gap, id: 'other', shows: { blocks: '.' } }],
      new Map([
        ['top', new Set(['.'])],
        ['other', new Set(['sparse'])],
      ]),
    )
    assert.deepEqual(
      unexplained.map((d) => d.path),
      ['a file'],
    )
    assert.deepEqual(
      seen.map((s) => [s.id, s.state, s.count]),
      [
        ['top', 'seen', 1],
        ['other', 'fixed', 0],
      ],
    )
  })
  test('a gap excuses only the paths that have its case', () => {
    const { unexplained } = explain(parseRsync('.d..t...... ./'), [gap], new Map([['top', new Set(['elsewhere'])]]))
    assert.equal(unexplained.length, 1)
  })
  test('paths out of diff and rsync, with newlines in names', () => {
    const printed =
      'Only in /s/a: b c\nFiles /s/x and /r/x differ\nOnly in /r: extra\nFile /s/p is a fifo while file /r/p is a fifo\n'
    assert.deepEqual(
      parseDiff(printed, '/s', '/r', []).map((d) => d.path),
      ['a/b c', 'x', 'extra', 'p'],
    )
    // What a gap excuses is found as diff prints it, and no more than that.
    assert.deepEqual(
      parseDiff('Only in /s/a: b\nc\nOnly in /s: d\n', '/s', '/r', ['a/b\nc']).map((d) => d.path),
      ['a/b\nc', 'd'],
    )
    const lines =
      'cLc.t...... links/to -> there\nhf+++++++++ b => a\n*deleting   gone/\n.d..t...... ./\n.f..t...... new\\#012line\n'
    assert.deepEqual([...new Set(parseRsync(lines).map((d) => d.path))], ['links/to', 'b', 'gone', '.', 'new\nline'])
  })
  test('one difference an attribute: a gap about the time excuses no mode', () => {
    const { unexplained } = explain(parseRsync('.d..tp..... ./'), [gap], new Map([['top', new Set(['.'])]]))
    assert.deepEqual(
      unexplained.map((d) => d.line),
      ['.d...p..... ./'],
    )
  })
  test('differences are told in words', () => {
    const [a, b] = [join(dir, 'a'), join(dir, 'b')]
    for (const tree of [a, b]) {
      mkdirSync(tree)
      writeFileSync(join(tree, 'f'), tree)
    }
    chmodSync(join(a, 'f'), 0o750)
    chmodSync(join(b, 'f'), 0o700)
    writeFileSync(join(a, 'g'), '')
    const words = (line: string) => parseRsync(line).map((d) => inWords(d, a, b))
    assert.deepEqual(words('.f...p..... f'), ['mode 0750 became 0700: f'])
    assert.deepEqual(words('>f+++++++++ g'), ['missing in the restored tree: g'])
    assert.deepEqual(words('.f.......ax f'), ['ACL differs: f', 'xattrs differ: f'])
    assert.deepEqual(words('hf......... f => g'), ['hard links differ: f'])
  })
  test('inode flags: the file system’s own do not count', () => {
    const source = '----i---------e------- ./a b\n--------------e------- ./c\n-----a---------------- .\n'
    assert.deepEqual(
      differentFlags(source, '--------------e------- ./a b\n').map((d) => d.line),
      ['flags i became none: a b', 'flags a became none: .'],
    )
  })
  test('known-gaps.yaml holds for the versions it names only, and is refused where an entry lacks a field', () => {
    assert.deepEqual(
      gapsOf('0.19.1').map((g) => g.id),
      [
        'sparse-allocated',
        'top-directory-mtime',
        'top-directory-attributes',
        'special-files',
        's3-directory-markers',
        'killed-backup-not-reused',
        'btrfs-nested-subvolume',
        'inode-flags',
        'mtime-after-2262',
        'hardlinked-symlinks',
        'xattr-name-not-utf8',
        'harmless-warnings',
      ],
    )
    // What is the file system's own way holds for every vykar.
    assert.deepEqual(
      gapsOf('99.0.0').map((g) => g.id),
      ['btrfs-nested-subvolume'],
    )
    const bad = join(dir, 'gaps.yaml')
    writeFileSync(bad, '- id: x\n  versions: "*"\n')
    assert.throws(() => gapsOf('1.0.0', bad), /gap x lacks one of/)
  })
})

describe('known findings', () => {
  const run = (ids: string[], options: object, common: object, notes: string[] = []) =>
    ({
      dry: false,
      plan: { scenario: 'faults/cycle', options, vykar: { version: '0.19.1' } },
      common: { repo: [], ...common },
      report: { rows: [{ verdict: 'PASS', notes, findings: ids.map((id) => ({ id })) }], notes: [] },
    }) as unknown as Run
  const all = findingsOf('0.19.1').filter((one) => one.shows_in === 'faults/cycle').map(({ id }) => id) // biome-ignore format: one line

  test('what a family always shows and has not shown is a note, and a FAIL under --strict-gaps', () => {
    assert.ok(all.length > 1)
    const whole = run(all, {}, { 'strict-gaps': true })
    stillShown(whole)
    assert.deepEqual(whole.report.notes, [])
    const softly = run(all.slice(1), {}, {})
    stillShown(softly)
    assert.match(softly.report.notes[0]!, new RegExp(`no longer show, .*: ${all[0]}$`))
    assert.throws(() => stillShown(run(all.slice(1), {}, { 'strict-gaps': true })), /no longer show/)
    // Of one round, one repository, or where a round was not tried, nothing can be said.
    stillShown(run([], { round: 'x' }, { 'strict-gaps': true }))
    stillShown(run([], {}, { 'strict-gaps': true, repo: ['local'] }))
    stillShown(run([], {}, { 'strict-gaps': true }, ['x was not tried: faketime is missing']))
  })

  test('each that says where it shows names a script, and no chance', () => {
    const found = findingsOf('0.19.1').filter((one) => one.shows_in)
    for (const { id, shows_in, chance } of found)
      assert.ok(existsSync(join(root, `scripts/${shows_in}.mts`)) && !chance, id)
    assert.ok(found.length > 30)
  })
})

describe('commands.sh', () => {
  test('headings wait for a line, places change directory, words are quoted', () => {
    const file = join(dir, 'commands.sh')
    const transcript = new Transcript(file, '# head\n')
    transcript.head('run: nothing')
    transcript.head('local: init')
    transcript.add('local', 'true')
    transcript.add('', 'false')
    assert.equal(
      readFileSync(file, 'utf8'),
      '# head\n\n# local: init\nmkdir -p "$top"/local && cd "$top"/local\ntrue\ncd "$top"\nfalse\n',
    )
    assert.equal(quote("it's"), "$'it\\'s'")
    assert.equal(quote('a b'), "'a b'")
  })
})

describe('verdicts and reports', () => {
  test('FAIL over BLOCKED over PASS over SKIPPED; nothing at all is FAIL', () => {
    assert.equal(fold(['PASS', 'BLOCKED', 'FAIL']), 'FAIL')
    assert.equal(fold(['SKIPPED', 'PASS', 'BLOCKED']), 'BLOCKED')
    assert.equal(fold(['SKIPPED', 'PASS']), 'PASS')
    assert.equal(fold(['SKIPPED']), 'SKIPPED')
    assert.equal(fold([]), 'FAIL')
    assert.deepEqual([new Blocked(''), new Skipped(''), new Mismatch(''), new TypeError(''), 'x'].map(verdictOf), [
      'BLOCKED',
      'SKIPPED',
      'FAIL',
      'FAIL',
      'FAIL',
    ])
  })
  const report = {
    schema: 'vykar-e2e/report/1', scenario: 'backends/x', runId: 'r', started: 's', seconds: 1, verdict: 'FAIL', reason: 'a < b', standin: true, seed: 1, argv: [],
    options: {},
    versions: { vykar: '0' }, host: {}, steps: [], notes: [], charts: [], leftBehind: ['process 7'], notCompared: ['xattrs'], transcript: 't',
    harness: { seconds: 0, peakKiB: 0 },
    rows: [{ repo: 'local', variant: '', verdict: 'BLOCKED', reason: 'slow "disk"\u0001', seconds: 2, steps: [], gaps: [], findings: [], notes: [], facts: { reused: '3 B' }, kept: ['/k'] }],
  } satisfies RunReport // biome-ignore format: a fixture
  test('JUnit: a run that failed outside of its rows has a case of its own; text is escaped', () => {
    const text = junit(report)
    assert.match(text, /tests="2" failures="1" errors="1" skipped="0"/)
    assert.match(text, /<failure message="a &lt; b"\/>/)
    assert.match(text, /<error message="slow &quot;disk&quot;\?"\/>/)
  })
  test('the page says stand-in in its title, and names what was kept and left', () => {
    const text = markdown(report)
    assert.match(text.split('\n')[0]!, /FAIL backends\/x \(stand-in: this says nothing about vykar\)/)
    for (const part of [
      '- process 7',
      '- /k',
      '| local |  | reused | 3 B |',
      '| compared by nobody | atime,',
      'cannot hold them | xattrs |',
    ])
      assert.ok(text.includes(part), part)
  })
  test('secrets of six characters and more are masked wherever they stand', () => {
    const told = { ...report, notes: ['hunter2!', 'a123'] }
    const text = JSON.stringify(withoutSecrets(told, new Set(['hunter2!', '123'])))
    assert.ok(!text.includes('hunter2') && text.includes('a123'))
  })
  test('the share of the suite: commands side by side count once', () => {
    const command = (at: number, seconds: number) => ({ command: '', code: 0, at, seconds })
    const step = { name: '', log: '', seconds: 0, commands: [command(1000, 2), command(2000, 2), command(6000, 1)] }
    assert.equal(ownSeconds({ steps: [step], rows: [] }, 5), 1)
  })
  test('random numbers are the same on every machine', () => {
    const random = seeded('x')
    assert.deepEqual(
      [random(), random()].map((n) => Math.floor(n * 2 ** 32)),
      [2216422362, 1824738947],
    )
  })
})

test('what vykar leaves in a place where everybody leaves things is seen', () => {
  const before = strewn()
  const file = join('/tmp', `vykar-spool-${process.pid}`)
  writeFileSync(file, '')
  try {
    assert.deepEqual(leftOutside(before, '/nowhere', '/nowhere').left, [file])
  } finally {
    rmSync(file)
  }
})

test('what vykar leaves in its own directory is seen, also where the user has that directory', () => {
  const own = join(homedir(), '.cache/vykar')
  const made = mkdirSync(own, { recursive: true })
  const file = join(own, `0123abcd-${process.pid}`)
  try {
    const before = strewn()
    writeFileSync(file, '')
    assert.deepEqual(leftOutside(before, '/nowhere', '/nowhere').left, [file])
  } finally {
    rmSync(file, { force: true })
    if (made) rmSync(made, { recursive: true })
  }
})

test("the line that installs what is missing brings docker's client, which Debian 13 only recommends", () => {
  const missing = (name: string) => ({ name, why: '', remedy: '' })
  assert.equal(aptLine([missing('docker'), missing('rsync')]), 'apt-get install -y docker.io rsync')
  assert.equal(aptLine([missing('rsync')]), 'apt-get install -y --no-install-recommends rsync')
})
