// fidelity.mts: the table agrees with what vykar is known to lose, a loss that is not on record is a FAIL, and each word of the table is
// what its definition says.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { classes } from '#scripts/fidelity/classes.mts'
import { fateOf } from '#scripts/fidelity/table.mts'
import { lacking, noReal, processesIn, real, run, sandbox } from '../helpers.mts'

const skip =
  noReal || lacking('rsync', 'setfattr', 'setfacl', 'setcap') || (process.getuid?.() === 0 ? false : 'needs root')
const args = (...more: string[]) => ['--vykar', real!, '--corpus-mib', '1', ...more]

describe('fidelity', { skip, concurrency: 2 }, () => {
  test('honest, with what is installed: PASS, and the table in three forms', async () => {
    const box = sandbox()
    const ended = await run(box, 'fidelity', args())
    assert.match(ended.last, /^PASS fidelity 1 known finding: names-not-utf8-skipped/, ended.stdout + ended.stderr)
    const dir = join(box.runtime, 'reports/fidelity/latest')
    const table = JSON.parse(readFileSync(join(dir, 'fidelity.json'), 'utf8'))
    assert.equal(table.classes.length, classes.length)
    const of = (name: string, tool: string) =>
      table.classes.find((one: { name: string }) => one.name === name).fates[tool]?.word
    assert.equal(of('content of files', 'vykar'), 'kept')
    assert.equal(of('hard links of a symlink', 'vykar'), 'lost in silence')
    assert.equal(of('FIFO', 'vykar'), 'refused')
    if (!lacking('borg')) {
      assert.equal(of('FIFO', 'borg'), 'kept')
      assert.equal(of('inode flags (chattr)', 'borg'), 'kept')
    }
    assert.match(readFileSync(join(dir, 'fidelity.md'), 'utf8'), /^\| FIFO \| refused \|/m)
    assert.ok(existsSync(join(dir, 'fidelity.html')))
    assert.ok(!existsSync(join(box.dir, 'repos/fidelity')), 'the repository is still there')
    assert.deepEqual(processesIn(box), [])
  })

  for (const [lie, reason] of [
    ['restore-default-acl', /default ACL of a directory: lost in silence: \.\/awkward\/acl-default/],
    ['restore-no-dotfiles', /dot files and directories: lost in silence/],
    ['restore-capability', /capabilities: lost in silence/],
    ['restore-flips-byte', /content of files: lost in silence/],
    ['restore-adds-file', /content of files: lost in silence/],
    ['restore-mode', /permission bits: lost in silence/],
    ['restore-mtime', /mtime: nanoseconds: lost in silence/],
    ['restore-top-mode', /top directory: mode, owner: lost in silence: .*became 777/],
    ['gap-top-xattr', /top directory: xattr: lost in silence/],
    ['gap-flag-value', /inode flags \(chattr\): lost in silence: .*flag-no-dump/],
    ['gap-other-xattr', /xattr whose name is not UTF-8: lost, said/],
    ['gap-top-mtime', /top directory: mtime: lost in silence/],
    ['gap-other-value', /mtime 2300: lost in silence: \.\/awkward\/mtime-2300/],
    [
      'exit-3-as-0',
      /backup exits 0, and names that are not UTF-8 are |FIFO: lost in silence|exited 0 but warned: .*Errors: 1/,
    ],
    ['restore-copies-live', /restore: exit|Only in|no known gap says so/],
  ] as const)
    test(`${lie} is FAIL`, async () => {
      const ended = await run(sandbox(), 'fidelity', args('--tools', 'vykar', '--sabotage', lie))
      assert.equal(ended.code, 1, ended.stdout + ended.stderr)
      assert.match(ended.last, reason)
    })

  const absent = ['kopia', 'rustic', 'restic', 'borg'].find((name) => lacking(name as 'borg'))
  test('a tool that is named and not there is one line, exit 2', {
    skip: absent ? false : 'every tool is here',
  }, async () => {
    const ended = await run(sandbox(), 'fidelity', args('--tools', absent!))
    assert.equal(ended.code, 2, ended.stdout)
    assert.match(ended.last, /named in --tools, but not installed: /)
  })
})

test('kept, lost and said, lost in silence, refused', () => {
  const before = ['./a/fifo-one\tx', './a/fifo-two\ty']
  const fate = (after: string[], said = '', there = true) => {
    const { word, lost } = fateOf(before, after, said, () => there)
    return [word, lost]
  }
  assert.deepEqual(fate([...before]), ['kept', 0])
  assert.equal(fateOf([], [], '', () => true).word, 'not here')
  assert.deepEqual(fate([before[0]!]), ['lost in silence', 1])
  assert.deepEqual(fate([before[0]!], 'skipping a/fifo-two'), ['lost, said', 1])
  assert.deepEqual(fate([before[0]!], 'skipping a/fifo-two', false), ['refused', 1])
  assert.deepEqual(fate([before[0]!], 'skipping a/fifo-one', false), ['lost in silence', 1])
  assert.deepEqual(fate([before[0]!, './a/fifo-two\tz']), ['lost in silence', 1])
  assert.deepEqual(fate([...before, './a/new\tx']), ['lost in silence', 1])
  assert.match(
    fateOf(before, [before[0]!, './a/fifo-two\tz'], '', () => true).example!,
    /^\.\/a\/fifo-two: y became z$/,
  )
})

test('each class is bash, and its name stands once', () => {
  assert.equal(new Set(classes.map(({ name }) => name)).size, classes.length)
  for (const { shows } of classes) execFileSync('bash', ['-n', '-c', shows])
})
