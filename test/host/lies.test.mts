// Every lie of the saboteur is caught by backends/local (or local-none), for the right reason, and none passes.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { lacking, noReal, processesIn, real, root, run, sandbox, smallCorpus, standin } from '../helpers.mts'

/** What a lie must lead to: the verdict, a word of the reason, and more options where they are needed. */
type Expected = [verdict: 'FAIL' | 'BLOCKED', reason: RegExp, ...options: string[]]
const hurried = ['--time-scale', '0.004']

/** The lies that the local scenario meets; those about servers and interruption are in backends.test.mts. */
const caught: Record<string, Expected> = {
  'restore-nothing': ['FAIL', /Only in SOURCE/],
  'restore-drops-file': ['FAIL', /Only in SOURCE\/.*file-/],
  'restore-drops-empty-dir': ['FAIL', /Only in SOURCE\/.*empty-dir/],
  'restore-adds-file': ['FAIL', /Only in RESTORED: extra/],
  'restore-flips-byte': ['FAIL', /Files SOURCE\/.* and RESTORED\/.* differ/],
  'restore-truncates': ['FAIL', /Files SOURCE\/.* differ/],
  'restore-mode': ['FAIL', /mode 0644 became 0646: .*file-/],
  'restore-setuid': ['FAIL', /mode 04755 became 0755: .*mode-4755/],
  'restore-owner': ['FAIL', /owner 0 became 4711: .*file-/],
  'restore-mtime': ['FAIL', /mtime differs by less than a millisecond: .*mtime-ns/],
  'restore-xattr': ['FAIL', /xattrs differ: .*xattr/],
  'restore-acl': ['FAIL', /ACL differs: .*acl/],
  'restore-capability': ['FAIL', /xattrs differ: .*capability/],
  'restore-symlink': ['FAIL', /dangling/],
  'restore-splits-hardlink': ['FAIL', /hard-2/],
  'restore-joins-hardlink': ['FAIL', /twin-/],
  'backup-silent': ['FAIL', /printed 0 created snapshots/],
  'backup-no-snapshot': ['FAIL', /backup said deadbeef, but list shows no snapshot/],
  'backup-wrong-id': ['FAIL', /backup said deadbeef, but list shows [0-9a-f]{8}/],
  'backup-skips': ['FAIL', /backup: exit 3:/],
  'list-hides': ['FAIL', /but list shows no snapshot/],
  'list-wrong-label': ['FAIL', /under the label kaputt instead of corpus/],
  'list-wrong-host': ['FAIL', /of host otherhost/],
  'list-wrong-id': ['FAIL', /but list shows deadbeef/],
  'snapshot-list-drops': ['FAIL', /snapshot list: exit 1:/],
  'snapshot-list-invents': ['FAIL', /snapshot list: exit 1:.*> invented/],
  'check-counts-errors': ['FAIL', /check exited 0 but counted errors.*3 errors/],
  'check-refuses': ['FAIL', /check: exit 1: vykar .*check/],
  'check-complains': ['FAIL', /check exited 0 but complained: .*chunk 0123 is missing/],
  'check-empty': ['FAIL', /check looked at 0 snapshots/],
  'verify-nothing': ['FAIL', /verified 0 of \d+ chunks/],
  'snapshot-delete-nothing': ['FAIL', /compact deleted no pack/],
  'compact-nothing': ['FAIL', /compact deleted no pack/],
  'compact-pretends': ['FAIL', /compact said it freed 9.00 MiB, but/],
  'delete-nothing': ['FAIL', /left behind: .*delete left \d+ files/],
  'lock-left': ['FAIL', /a lock was left behind; locks\.out ends in: Removed 1 lock/],
  'session-left': ['FAIL', /left behind in the repository: sessions\//],
  'child-left': ['FAIL', /processes were left behind: \d+ sleep 600/],
  'hang-init': ['BLOCKED', /init: out of time after 2 s/, ...hurried],
  'hang-backup': ['BLOCKED', /backup: out of time/, ...hurried],
  'hang-restore': ['BLOCKED', /restore: out of time/, ...hurried],
  'hang-check': ['BLOCKED', /check: out of time/, ...hurried],
  'hang-ignoring-term': ['BLOCKED', /backup: out of time/, ...hurried],
}
const caughtByNone: Record<string, Expected> = { 'none-encrypts': ['FAIL', /Encryption +aes256gcm|unencrypted/] }

const tools = lacking('rsync', 'setfattr', 'setfacl', 'setcap', 'flock')
const rootOnly = process.getuid?.() === 0 ? false : 'owners and capabilities need root'

function provesCaught(script: string, lie: string, [verdict, reason, ...options]: Expected, vykar: () => string): void {
  test(`${script}: ${lie} is ${verdict}`, { skip: tools || rootOnly }, async () => {
    const box = sandbox()
    const args = ['--vykar', vykar(), '--source', smallCorpus(), '--sabotage', lie, ...options]
    const ended = await run(box, script, args)
    assert.match(ended.last, new RegExp(`^${verdict} ${script} `), ended.stdout + ended.stderr)
    assert.match(ended.last, reason)
    assert.equal(ended.code, verdict === 'FAIL' ? 1 : 75)
    const logs = join(box.runtime, 'logs', script.replace(/.*\//, ''))
    const told = join(logs, 'latest', 'sabotage.told')
    assert.ok(existsSync(told), 'the lie was not told, so nothing was proven')
    assert.equal(ended.report?.verdict, verdict)
    assert.deepEqual(processesIn(box), [], 'processes survive')
  })
}

// By the real vykar where there is one: the contract says that the stand-in is like it.
const teller = real ? () => real! : standin
describe(`lies told by the ${real ? 'real vykar' : 'stand-in'}`, { concurrency: 3 }, () => {
  for (const [lie, expected] of Object.entries(caught)) provesCaught('backends/local', lie, expected, teller)
  for (const [lie, expected] of Object.entries(caughtByNone)) provesCaught('backends/local-none', lie, expected, teller)
})

test('every lie that the saboteur lists has its test', () => {
  const lies = execFileSync(join(root, 'scripts/sabotage/vykar'), ['lies'], { encoding: 'utf8' })
  const names = lies
    .trim()
    .split('\n')
    .map((line) => line.split(' ')[0]!)
  const proven = ['lies', 'backends', 'databases', 'containers', 'filesystems', 'stress']
    .map((name) => readFileSync(join(root, `test/host/${name}.test.mts`), 'utf8'))
    .join('')
  assert.deepEqual(
    names.filter((name) => !proven.includes(`'${name}'`)),
    [],
  )
  assert.ok(names.length >= 25)
})

for (const [name, vykar, skip] of [
  ['stand-in', standin, false],
  ['real vykar', () => real!, noReal],
] as const)
  test(`the honest ${name} passes local and local-none`, { skip: skip || tools }, async () => {
    for (const script of ['backends/local', 'backends/local-none']) {
      const ended = await run(sandbox(), script, ['--vykar', vykar(), '--source', smallCorpus()])
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
      assert.match(ended.last, name === 'stand-in' ? /^DEMO / : /^PASS /)
      assert.deepEqual(ended.report?.leftBehind, [])
      assert.deepEqual(
        ended.report?.rows[0]?.gaps.map((gap) => gap.state),
        ['seen', 'seen'],
      )
    }
  })
