// The small parts: what vykar prints, options, config, known gaps, transcript, verdicts, reports.
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { expand, fill, localDir, masked, Sample, scenarioUrl } from '#lib/config.mts'
import { explain, type Gap, gapsOf } from '#lib/gaps.mts'
import { nearest, parseOptions } from '#lib/options.mts'
import { seeded } from '#lib/random.mts'
import { junit, markdown, ownSeconds, type RunReport } from '#lib/report.mts'
import { Transcript } from '#lib/transcript.mts'
import { Blocked, fold, Mismatch, Skipped, UsageError, verdictOf } from '#lib/verdict.mts'
import { parseDiff, parseRsync } from '#lib/verify.mts'
import { checkLine, inRange, parseBackup, parseList, parseSize } from '#lib/vykar.mts'
import { scratch } from './helpers.mts'

const dir = mkdtempSync(join(scratch, 'units-'))

describe('what vykar prints', () => {
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
      { id: '246d2337', label: 'corpus', files: 1, errors: 2, original: 50 * 2 ** 20, deduplicated: 40 },
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
  test('nearest', () => assert.equal(nearest('rset', ['local', 'rest', 's3']), 'rest'))
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

  test('comments and unknown keys survive, other repositories and sources do not', () => {
    const text = load().compose(
      [{ label: 'local', url: '/data/repos/local' }],
      'sources:\n  - path: /x\n    label: corpus\n',
      'f',
      '/cache',
    )
    for (const kept of [
      '# my own comment',
      '# keep this',
      'future_key: 7',
      '# the disk in the cellar',
      'url: /data/repos/local',
      'hostname: vykar-e2e',
      'cache_dir: /cache',
      'passphrase: hunter2',
    ])
      assert.ok(text.includes(kept), `${kept} is lost:\n${text}`)
    assert.doesNotMatch(text, /backup\.example\.org|\/home/)
    assert.equal(readFileSync(file, 'utf8'), sampleText)
  })
  test('a fragment that sets encryption removes every passphrase', () => {
    const text = load().compose(
      [{ label: 'local', url: '/r' }],
      'encryption:\n  mode: none\nsources: []\n',
      'f',
      '/cache',
    )
    assert.doesNotMatch(text, /passphrase/)
    assert.match(text, /mode: none/)
  })
  test('secrets are masked by key', () => {
    const text = masked(
      load().compose(
        [
          { label: 'local', url: '/r' },
          { label: 'rest', url: 'https://x' },
        ],
        'sources: []\n',
        'f',
        '/c',
      ),
    )
    assert.doesNotMatch(text, /hunter2|s3cret/)
    assert.match(text, /passphrase: \$\{VYKAR_E2E_PASSPHRASE\}/)
  })
  test('URLs and variables', () => {
    assert.equal(scenarioUrl('/repos/', 'local'), '/repos/local')
    assert.equal(scenarioUrl('s3+http://h:1/b/p', 'postgres'), 's3+http://h:1/b/p/postgres')
    assert.equal(scenarioUrl('http://h:1', 'rest'), 'http://h:1')
    assert.equal(localDir('/a'), '/a')
    assert.equal(localDir('file:///a%20b'), '/a b')
    assert.equal(localDir('sftp://h/a'), undefined)
    assert.equal(expand('${A}/${B:-x}', { A: 'a' }, 'f'), 'a/x')
    assert.throws(() => expand('${NOPE}', {}, 'f'), /f: \$\{NOPE\} is not set/)
    assert.equal(fill('path: ${SOURCE}\nhook: ${OTHER}', { SOURCE: '/a: "b"' }), 'path: "/a: \\"b\\""\nhook: ${OTHER}')
  })
})

describe('comparison', () => {
  const gap: Gap = { id: 'top', versions: '*', trigger: 'true', shows: { rsync: '^\\.d\\.\\.t\\.* \\./$' }, why: 'w' }
  test('a listed gap is seen, an unlisted difference stays, a gap that does not show is fixed', () => {
    const differences = parseRsync(['.d..t...... ./', '.f..t...... a file'])
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
    const { unexplained } = explain(parseRsync(['.d..t...... ./']), [gap], new Map([['top', new Set(['elsewhere'])]]))
    assert.equal(unexplained.length, 1)
  })
  test('paths out of diff and rsync', () => {
    const found = parseDiff(
      [
        'Only in /s/a: b c',
        'Files /s/x and /r/x differ',
        'Only in /r: extra',
        'File /s/p is a fifo while file /r/p is a fifo',
      ],
      '/s',
      '/r',
    )
    assert.deepEqual(
      found.map((d) => d.path),
      ['a/b c', 'x', 'extra', 'p'],
    )
    const lines = ['cLc.t...... links/to -> there', 'hf+++++++++ b => a', '*deleting   gone/', '.d..t...... ./']
    assert.deepEqual(
      parseRsync(lines).map((d) => d.path),
      ['links/to', 'b', 'gone', '.'],
    )
  })
  test('known-gaps.yaml holds for the versions it names only, and is refused where an entry lacks a field', () => {
    assert.deepEqual(
      gapsOf('0.19.1').map((g) => g.id),
      [
        'sparse-allocated',
        'top-directory-mtime',
        'special-files',
        's3-directory-markers',
        'killed-backup-not-reused',
        'btrfs-nested-subvolume',
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

describe('transcript', () => {
  test('paths of the run, learned values, quoting, expected exit codes', () => {
    const file = join(dir, 'commands.sh')
    const transcript = new Transcript(file, '', '/rt/runs/1')
    transcript.beginRow('local', '/rt/runs/1/local')
    transcript.relocate('/repos/local', 'repository')
    transcript.bind('snapshot', 'abcd1234', 'true')
    assert.equal(transcript.quote('/rt/runs/1/local/c d'), `"$work"'/local/c d'`)
    assert.equal(transcript.quote('/rt/runs/12'), '/rt/runs/12')
    assert.equal(transcript.quote('/repos/local/keys'), '"$work"/repository/keys')
    assert.equal(transcript.quote('abcd1234'), '"$snapshot"')
    assert.equal(transcript.quote("it's"), "$'it\\'s'")
    transcript.command('false', { expect: [1] })
    transcript.write('/rt/runs/1/local/c.yaml', 'url: /repos/local\nhook: echo $HOME `x`\n')
    transcript.beginRow('rest', '/rt/runs/1/rest')
    assert.equal(transcript.quote('abcd1234'), 'abcd1234')
    const text = readFileSync(file, 'utf8')
    assert.match(text, /rc=0; false \|\| rc=\$\?; \[\[ \$rc =~ \^\(1\)\$ \]\]/)
    assert.match(text, /url: \$work\/repository\nhook: echo \\\$HOME \\`x\\`/)
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
    versions: { vykar: '0' }, host: {}, steps: [], notes: [], charts: [], leftBehind: ['process 7'], transcript: 't',
    harness: { seconds: 0, peakKiB: 0 },
    rows: [{ repo: 'local', variant: '', verdict: 'BLOCKED', reason: 'slow "disk"\u0001', seconds: 2, steps: [], gaps: [], notes: [], facts: { reused: '3 B' }, kept: ['/k'] }],
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
    for (const part of ['- process 7', '- /k', '| local |  | reused | 3 B |']) assert.ok(text.includes(part), part)
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
