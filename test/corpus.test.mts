// data-gen/corpus.mts: repeatable, honest about what it made, and careful with what is not its own.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, test } from 'node:test'
import { lacking, root, scratch } from './helpers.mts'

const skip = lacking('setfattr', 'setfacl', 'setcap', 'rsync')
const make = (...args: string[]) =>
  spawnSync(join(root, 'node_modules/.bin/tsx'), [join(root, 'data-gen/corpus.mts'), ...args], {
    encoding: 'utf8',
    env: { ...process.env, VYKAR_E2E_RUNTIME: join(scratch, 'corpus-runtime') },
  })
const bash = (script: string) => spawnSync('bash', ['-c', script], { encoding: 'utf8' })

describe('corpus', { skip }, () => {
  const [a, b, c] = ['a', 'b', 'c'].map((name) => join(scratch, `corpus-${name}`)) as [string, string, string]
  test('the same seed and size give the same tree, another seed another one', () => {
    for (const [dir, seed] of [
      [a, '5'],
      [b, '5'],
      [c, '6'],
    ] as const) {
      const made = make('--out', dir, '--gib', '0.02', '--seed', seed, '--sha256')
      assert.equal(made.status, 0, made.stderr)
      assert.match(made.stdout, /^target_bytes=21474836$/m)
      const final = Number(/^final_bytes=(\d+)$/m.exec(made.stdout)?.[1])
      assert.ok(Math.abs(final / 21474836 - 1) < 0.01, `${final}`)
    }
    const same = bash(
      `rsync -naHAXi --checksum --delete ${a}/snapshot-1/ ${b}/snapshot-1/ && cmp ${a}/manifest.sha256 ${b}/manifest.sha256`,
    )
    assert.equal(same.stdout + same.stderr, '')
    assert.notEqual(bash(`cmp -s ${a}/manifest.sha256 ${c}/manifest.sha256`).status, 0)
  })
  test('its manifest finds a changed byte', () => {
    const check = `cd ${a} && sha256sum --check --quiet manifest.sha256`
    assert.equal(bash(check).status, 0)
    bash(`printf x >> ${a}/snapshot-1/awkward/twin-1`)
    assert.match(bash(check).stdout, /twin-1: FAILED/)
  })
  test('the awkward cases are there', () => {
    const find = (test: string) => bash(`find ${b}/snapshot-1 ${test}`).stdout.trim()
    for (const test of [
      '-type l -xtype l',
      '-links +2 -type f',
      '-size 0 -type f',
      '-perm 0',
      '-perm -4000',
      '! -newermt 1970-01-01',
      "-name '*\n*'",
      '-type d -empty',
      '-uid 12345',
    ])
      assert.notEqual(find(test), '', `nothing: find ${test}`)
    assert.ok(readdirSync(join(b, 'snapshot-1/awkward')).some((name) => name.length === 255))
    assert.notEqual(bash(`find ${b} -type f -printf '%S\n' | grep -E '^0[.]'`).stdout, '', 'no sparse file')
    assert.match(bash(`getfattr -d ${b}/snapshot-1/awkward/xattr`).stdout, /user\.vykar-e2e/)
  })
  test('snapshot-2 is changed by the stated share', () => {
    const state = JSON.parse(readFileSync(join(b, 'corpus.json'), 'utf8'))
    const stated = ['rewritten', 'appended', 'truncated', 'renamed', 'removed', 'added'].reduce(
      (sum, key) => sum + state[key],
      0,
    )
    assert.equal(stated, Math.max(1, Math.round(state.files * 0.03)))
    const seen = bash(`diff -qr --no-dereference -x special ${b}/snapshot-1 ${b}/snapshot-2`)
      .stdout.trim()
      .split('\n').length
    assert.equal(seen, stated + state.renamed)
  })
  test('change --each makes every kind of change, in a directory that is named by a relative path', () => {
    const done = bash(
      `cd ${dirname(b)} && rm -rf each && cp -a ${b}/snapshot-1 each && ${root}/node_modules/.bin/tsx ${root}/data-gen/change.mts --dir each --percent 2 --each --seed 3`,
    )
    assert.equal(done.status, 0, done.stderr)
    for (const kind of ['rewrite_with_size_and_time_kept', 'xattr', 'hardlink', 'rename', 'directory'])
      assert.match(done.stdout, new RegExp(`^${kind}=[1-9]`, 'm'))
    const changes = bash(`rsync -naHAXci --modify-window=-1 --delete ${b}/snapshot-1/ ${dirname(b)}/each/`).stdout
    assert.match(changes, /^>fc\.{8} /m, 'no file has another content and the same size and time')
    assert.match(changes, /^\.f\.{8}x /m, 'no xattr changed')
    assert.match(changes, /^\.f\.{3}p\.{3}a\. |^\.f\.{7}a\. /m, 'no ACL changed')
    assert.ok(bash(`find ${dirname(b)}/each -lname ..`).stdout, 'no file became a symlink')
    const fresh = Number(/^fresh_bytes=(\d+)$/m.exec(done.stdout)?.[1])
    const touched = Number(/^touched_bytes=(\d+)$/m.exec(done.stdout)?.[1])
    assert.ok(fresh > 1000 && touched >= fresh / 2, done.stdout)
  })
  test('text compresses and does not deduplicate, the rest does neither', () => {
    const ratio = (ending: string) =>
      Number(
        bash(
          `cd ${b}/snapshot-1; n=$(find dir-* -name '*.${ending}' -print0 | xargs -0 cat | wc -c); z=$(find dir-* -name '*.${ending}' -print0 | xargs -0 cat | gzip -1 | wc -c); echo $((z * 100 / n))`,
        ).stdout,
      )
    assert.ok(ratio('bin') >= 99, 'random content compresses')
    assert.ok(ratio('log') <= 50, 'text does not compress')
    const blocks = bash(
      `cd ${b}/snapshot-1; find dir-* -type f -size +64k -print0 | xargs -0 cat | split -b 4096 --filter='sha256sum' | sort | uniq -d | wc -l`,
    )
    assert.equal(blocks.stdout.trim(), '0', 'blocks repeat')
  })
  test('an earlier corpus is replaced, anything else is not touched', () => {
    assert.equal(make('--out', c, '--gib', '0.01', '--churn', '0').status, 0)
    assert.ok(!existsSync(join(c, 'snapshot-2')))
    writeFileSync(join(c, 'mine'), 'x')
    const refused = make('--out', c, '--gib', '0.01')
    assert.equal(refused.status, 2)
    assert.match(refused.stderr, /is not empty and was not made by this script/)
    assert.ok(existsSync(join(c, 'mine')) && existsSync(join(c, 'snapshot-1')))
    // Names that fit prove nothing: these are the user's.
    for (const names of [['file'], ['corpus.json'], ['corpus.json', 'manifest', 'snapshot-1']]) {
      const other = join(scratch, `other-${names.length}-${names[0]}`)
      mkdirSync(other)
      for (const name of names) writeFileSync(join(other, name), '{"complete": false}')
      assert.equal(make('--out', other).status, 2)
      assert.deepEqual(readdirSync(other), names)
    }
  })
  for (const [args, message] of [
    [['--gib', '1000000'], /needs .* free/],
    [['--gib', '0'], /above 0/],
    [['--gib', 'abc'], /a number/],
    [['--gib', '-1'], /above 0/],
    [['--churn', 'x'], /--churn x: a number/],
    [['--mix', 'lage'], /did you mean large\?/],
    [['--size', '1'], /unknown option --size/],
  ] as const)
    test(`refused: ${args.join(' ')}`, () => {
      const out = join(scratch, `refused-${args[0].slice(2)}-${args[1]}`)
      const refused = make('--out', out, ...args)
      assert.equal(refused.status, 2, refused.stdout)
      assert.match(refused.stderr, message)
      assert.ok(!existsSync(out))
    })
})
