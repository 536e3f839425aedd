// The families of faults: each passes with the real vykar, and its oracle catches a lie about the rule that it is for.
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { sleep } from 'zx'
import { discard, lacking, noReal, processesIn, real, run, type Sandbox, sandbox, start } from '../helpers.mts'

const tools =
  noReal ||
  lacking(
    'faketime',
    'strace',
    'mkfs.xfs',
    'mkfs.btrfs',
    'vykar-server',
    'sshd',
    'curl',
    'rsync',
    'setfattr',
    'setfacl',
    'setcap',
    'flock',
  )
const skip = tools || (process.getuid?.() === 0 ? false : 'mounting small file systems needs root')

/** A sandbox with repositories on servers, too. */
function served(): Sandbox {
  const box = sandbox()
  const http = 'allow_insecure_http: true'
  writeFileSync(
    box.sample,
    `repositories:
  - {label: local, url: ${box.dir}/repos}
  - {label: rest, url: http://127.0.0.1:8585, ${http}, access_token: x}
  - {label: s3, url: s3+http://127.0.0.1:9000/vykar-stress, ${http}}
  - {label: sftp, url: sftp://127.0.0.1:2222/x}
`,
  )
  return box
}
const managed = (options: readonly string[]) => (options.includes('--repo') ? [] : ['--repo', 'local'])

describe('a round that there is none of', { skip, concurrency: 2 }, () => {
  for (const family of ['corruption', 'crash', 'targets', 'network'])
    test(`${family}: refused before anything is started, and no report is left`, async () => {
      const box = served()
      const ended = await run(box, `faults/${family}`, ['--vykar', real!, '--round', 'no such round'])
      assert.equal(ended.code, 2, ended.stdout)
      assert.match(
        ended.stderr,
        /^faults\/\w+: --round no such round: there is no such round.*--dry-run shows them all\n$/,
      )
      assert.equal(ended.stdout, '')
      assert.deepEqual(readdirSync(join(box.runtime, 'reports', family)), [])
    })
})

describe('faults', { skip, concurrency: 2 }, () => {
  for (const [family, ...options] of [
    ['corruption', '--round', 'pack bit 0'],
    ['crash', '--round', 'backup 1'],
    ['disk-full', '--round', 'btrfs repository bytes'],
    ['power-loss', '--round', 'backup done'],
    ['syscalls', '--round', 'backup fsync:error=EIO:when=4+'],
    ['syscalls', '--round', 'restore utimensat:error=EPERM:when=2+'],
    ['dialects', '--repo', 's3', '--round', 'LIST in pages of two'],
    ['dialects', '--repo', 'sftp', '--round', 'MaxSessions 1'],
    ['network', '--repo', 'rest', '--round', 'backup: pack stored, answer lost'],
    ['network', '--repo', 'sftp', '--round', 'restore: reset once'],
    ['server', '--repo', 'rest', '--round', 'disk of the server full'],
    ['concurrency', '--repo', 'local', '--round', 'compact during backup'],
    ['concurrency', '--repo', 'local', '--round', 'live lock'],
    ['suspended', '--repo', 'local', '--round', 'a backup that is stopped while it uploads'],
    ['hooks'],
    ['churn', '--rounds', '1', '--round', 'replaced 0'],
    ['clock', '--snapshots', '12', '--round', 'keep_weekly 5'],
    ['limits', '--files', '2000', '--links', '2000', '--large-gib', '1', '--dump-gib', '0.4'],
    ['corruption', '--round', 'session journal bit 0'],
    ['versions', '--repo', 'local', '--baseline', real!],
  ] as const)
    test(`${[family, ...options].join(' ')} passes`, async () => {
      const ended = await run(served(), `faults/${family}`, [
        '--vykar',
        real!,
        '--services',
        'managed',
        ...(family === 'hooks' ? [] : ['--corpus-mib', '12']),
        ...managed(options),
        ...options,
      ])
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
    })

  // What vykar is known to do wrong is seen, and named in the last line.
  for (const [finding, family, ...options] of [
    ['compact-trusts-index', 'corruption', '--round', 'index deleted 0'],
    ['damaged-snapshot-unseen', 'corruption', '--round', 'snapshot cut 0'],
    ['maintenance-reads-index-unlocked', 'suspended', '--round', 'compact that is late to lock'],
    ['same-hostname-taken-for-dead', 'concurrency', '--round', 'live session of a machine of this name'],
    ['swapped-directory-followed', 'churn', '--round', 'a directory that becomes a symlink before it is opened'],
    ['swapped-target-followed', 'targets'],
    [
      'append-only-index-replaced',
      'server',
      '--repo',
      'rest',
      '--round',
      'a client that has the token of an append-only server',
    ],
    ['restore-readable-meanwhile', 'targets'],
    ['output-unwritable-aborts', 'disk-full', '--round', 'output of backup'],
    ['cycle-skips-missing', 'cycle', '--round', 'repositories that are missing'],
    ['partial-backup-displaces', 'cycle', '--round', 'a source that cannot be read'],
    ['future-snapshots-displace', 'cycle', '--round', 'snapshots from the future'],
    ['fifo-blocks-backup', 'churn', '--round', 'a file that becomes a FIFO before it is opened'],
    ['parent-of-another-disk', 'churn', '--round', 'another disk with a file of the same path, size and time'],
    ['delete-takes-other-repositories', 'targets', '--round', 'delete of what is no repository of vykar'],
    ['second-init-replaces', 'suspended', '--repo', 'local', '--round', 'two inits at once'],
    [
      'stopped-backup-destroys',
      'suspended',
      '--repo',
      'local',
      '--round',
      'a backup that is stopped before it writes the index',
    ],
    ['daemon-forgets-schedule', 'daemon', '--round', 'restarted more often than it is due'],
    ['daemon-hides-missing', 'daemon', '--round', 'repositories that are missing'],
    ['daemon-schedules-nothing', 'daemon', '--round', 'a schedule that cannot be'],
    ['daemon-waits-for-clock', 'daemon', '--round', 'a clock that was ahead'],
    ['hook-values-executed', 'hooks', '--round', 'an error that holds a command'],
    ['dump-told-passphrase', 'hooks', '--round', 'the passphrase'],
    ['missing-source-stops-others', 'hooks', '--round', 'one of two sources fails'],
    ['restored-dump-readable', 'hooks', '--round', 'dump that works'],
    ['server-files-readable', 'server', '--repo', 'rest', '--round', 'files of the server'],
    ['coarse-times-hide-change', 'churn', '--round', 'two writes within one tick of the clock'],
    ['repair-deletes-on-read-error', 'network', '--repo', 'rest', '--round', 'repair: 503 for every pack'],
  ] as const)
    test(`${finding} is seen`, async () => {
      const size = family === 'hooks' ? [] : ['--corpus-mib', '12']
      const where = [...managed(options), '--vykar', real!, '--services', 'managed', ...size]
      const ended = await run(served(), `faults/${family}`, [...where, ...options])
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
      assert.match(ended.last, new RegExp(`known findings?: .*${finding}`))
    })

  // In the middle of a fault, when file systems are mounted and servers and proxies run.
  for (const [family, begun, ...options] of [
    ['power-loss', /-ext4 +backup 1 /, '--repo', 'rest'],
    ['network', /backup: pack stored, answer lost/, '--repo', 's3'],
    ['churn', /truncated 0/, '--repo', 'local'],
    ['concurrency', /compact during backup/, '--repo', 'local'],
    ['suspended', /compact that is late to lock/, '--repo', 'local'],
    ['corruption', /pack bit 0/],
    ['crash', /-backup +backup 0 /],
    ['disk-full', /ext4 repository bytes/],
    ['syscalls', /encrypted +copy/],
    ['dialects', /repository below a symlink/, '--repo', 'sftp'],
    ['server', /killed and restarted/, '--repo', 'rest'],
    ['limits', / 2000 files/, '--files', '2000', '--links', '2000', '--large-gib', '1', '--dump-gib', '0.4'],
    ['clock', /clock -400d/, '--snapshots', '12'],
    ['targets', /not empty/],
    ['hooks', /a backup that works/],
    ['cycle', /all is well/],
    ['daemon', /every second/],
    ['versions', /turn 1: old/, '--repo', 'local', '--baseline', real!],
  ] as const)
    test(`${family}: Ctrl-C leaves nothing`, async () => {
      const box = served()
      const going = start(box, `faults/${family}`, [
        '--vykar',
        real!,
        '--services',
        'managed',
        ...managed(options),
        ...(family === 'hooks' ? [] : ['--corpus-mib', '12']),
        ...options,
      ])
      // A line is printed when a step has ended: the next one is under way.
      const until = Date.now() + 240_000
      while (!begun.test(going.printed()) && Date.now() < until) await sleep(20)
      await sleep(700)
      going.child.kill('SIGINT')
      const ended = await going.ended
      assert.equal(ended.code, 130, ended.stdout + ended.stderr)
      assert.match(ended.stdout, begun)
      assert.deepEqual(ended.report?.leftBehind, [])
      assert.deepEqual(processesIn(box), [])
      assert.doesNotMatch(readFileSync('/proc/mounts', 'utf8'), new RegExp(box.dir))
    })

  for (const [family, lie, reason, ...options] of [
    [
      'disk-full',
      'output-lost',
      /exit 0 although nothing that it printed could be written/,
      '--round',
      'output of list',
    ],
    // Rule 3: wrong data with exit 0, and check that disagrees with restore.
    ['corruption', 'restore-blind', /restore of ack-\d exits 0 with wrong data/, '--round', 'pack deleted 0'],
    ['corruption', 'verify-blind', /check --verify-data exits 0/, '--round', 'pack deleted 0'],
    // Rule 1: an acknowledged snapshot that is lost.
    [
      'crash',
      'compact-drops-live',
      /made before the fault, is (wrong|refused) when it is restored/,
      '--round',
      'compact 0',
    ],
    ['power-loss', 'never-syncs', /going, made before the fault, is (wrong|refused)/, '--round', 'backup done'],
    ['syscalls', 'restore-warns-of-nothing', /no path is named/, '--round', 'restore utimensat:error=EPERM:when=2+'],
    [
      'dialects',
      'restore-flips-byte',
      /ack-1, made before the fault, is wrong/,
      '--round',
      'repository below a symlink',
    ],
    // Rule 4: nothing works again.
    ['crash', 'list-fails', /list fails after the fault/, '--round', 'restore 0'],
    // Rule 2: exit 0 means complete.
    [
      'disk-full',
      'backup-silent-once-full',
      /exit 0 although the disk is full|exit 0 under the fault/,
      '--round',
      'tmpfs repository bytes',
    ],
    [
      'network',
      'backup-silent-once-full',
      /exits 0 although it could not be done/,
      '--repo',
      'rest',
      '--round',
      'backup: 403 from the third pack',
    ],
    [
      'network',
      'restore-flips-byte',
      /restore exits 0 with wrong data/,
      '--repo',
      'rest',
      '--round',
      'restore: 503 once',
    ],
    // What a finding says of a restore excuses no check that does not see it; and what shows at the end of a row alone is seen there.
    [
      'suspended',
      'verify-blind',
      /check --verify-data exits 0 .*, but a restore is refused/,
      '--repo',
      'local',
      '--round',
      'compact that is late to lock',
    ],
    [
      'targets',
      'compact-leaves-torn',
      /left behind after the fault, the next backup and compact: .*\.tmp/,
      '--round',
      'not empty',
    ],
    // Mutual exclusion: a lock and a session of others are ignored.
    [
      'concurrency',
      'maintenance-forces',
      /compact was let in beside a live lock/,
      '--repo',
      'local',
      '--round',
      'live lock',
    ],
    [
      'concurrency',
      'maintenance-forces',
      /compact was let in beside a live session/,
      '--repo',
      'local',
      '--round',
      'live session',
    ],
    ['daemon', 'daemon-idles', /three cycles have made 0 snapshots/, '--round', 'every second'],
    ['concurrency', 'second-backup-lost', /exit 0 under the fault, but list shows no snapshot/, '--repo', 'local', '--round', 'backup during backup'], // biome-ignore format: one line
    ['concurrency', 'refused-deletes', /extra, made before the fault, is refused/, '--repo', 'local', '--round', 'snapshot delete during backup'], // biome-ignore format: one line
    ['concurrency', 'list-hides', /list during backup does not show ack-1/, '--repo', 'local', '--round', 'list during backup'], // biome-ignore format: one line
    ['corruption', 'restore-verify-blind', /restore --verify exits 0 with wrong data/, '--round', 'pack deleted 0'],
    ['dialects', 'compact-nothing', /compact exits 0, and the space/, '--repo', 'local', '--round', 'repository below a symlink'], // biome-ignore format: one line
    ['dialects', 'snapshot-delete-nothing', /snapshot delete exits 0, and list shows/, '--repo', 'local', '--round', 'repository below a symlink'], // biome-ignore format: one line
    ['cycle', 'cycle-leaves-session', /left behind after the fault|compact exits|exits 1/, '--round', 'all is well'],
    ['hooks', 'failed-hook-crashes', /exit 139/, '--round', 'before exits 1'],
    ['crash', 'compact-leaves-torn', /left behind after the fault/, '--round', 'backup 0'],
    ['disk-full', 'partial-unnamed', /is missing, and nothing says so/, '--round', 'ext4 cache bytes'],
    ['syscalls', 'restore-mode', /restore exits 0 with wrong data/, '--round', 'restore pwrite64,read:delay_exit=5000'],
    ['hooks', 'hooks-unrun', /ran none instead of global-before, repo-before, global_prune-before/, '--round', 'prune'],
    ['hooks', 'hook-told-passphrase', /a hook has it in its environment/, '--round', 'the passphrase'],
    ['hooks', 'failed-dump-ignored', /exit 0: /, '--round', 'dump exits 1 after 8 MB'],
    ['hooks', 'hooks-warn-nothing', /a hook failed and not a word was said/, '--round', 'finally fails everywhere'],
    // A killed prune that takes what its rules keep.
    ['crash', 'prune-takes-all', /extra, made before the fault, is refused/, '--round', 'prune 0'],
    // Rule 6: damage that shows only once space is reclaimed; and metadata is part of what a snapshot was.
    [
      'syscalls',
      'compact-drops-live',
      /is (wrong|refused) once all others were deleted and their space was reclaimed/,
      '--round',
      'check read:error=EIO:when=30+',
    ],
    [
      'syscalls',
      'restore-mode',
      /ack-1, made before the fault, is wrong when it is restored/,
      '--round',
      'check read:error=EIO:when=30+',
    ],
    ['churn', 'restore-xattr', /is wrong when it is restored/, '--rounds', '1', '--round', 'replaced 0'],
    ['server', 'restore-acl', /is wrong when it is restored/, '--repo', 'rest', '--round', 'killed and restarted'],
    ['churn', 'exit-3-as-0', /exit 0 although odd\/two cannot be read/, '--round', 'mode'],
    [
      'clock',
      'prune-deletes-retained',
      /1 snapshots are gone that must be kept/,
      '--snapshots',
      '12',
      '--round',
      'keep_last 7',
    ],
    ['cycle', 'cycle-partial', /its snapshot is wrong when restored/, '--round', 'all is well'],
    ['daemon', 'daemon-partial', /the newest snapshot is wrong when it is restored/, '--round', 'every second'],
    ['daemon', 'daemon-crashes', /on TERM with exit 139/, '--round', 'TERM in the middle of a backup'],
    ['targets', 'acl-refused', /exit 1 below a default ACL/, '--round', 'default ACL'],
    ['targets', 'through-empties', /exit 0, and Files /, '--round', 'target is a symlink'],
    ['limits', 'third-empty', /counts other files/, '--files', '2000', '--round', '2000 files'],
    ['versions', 'list-hides-older', /list of the new build after turn \d lacks/, '--repo', 'local', '--baseline', real!], // biome-ignore format: one line
    ['cycle', 'cycle-checks-once', /the second cycle exits 0/, '--round', 'a pack that is missing'],
    ['daemon', 'daemon-deaf', /goes on with the config that was/, '--round', 'HUP with a config that has changed'],
    ['corruption', 'repair-takes-snapshot', /repair takes more/, '--round', 'a pack of one file'],
    [
      'cycle',
      'cycle-exits-0',
      /the first cycle exits 0 although a pack is missing/,
      '--round',
      'a pack that is missing',
    ],
    ['clock', 'prune-miscounts', /is not what prune said/, '--snapshots', '12', '--round', 'keep_last 7'],
    ['churn', 'restore-pads', /is none of its states/, '--rounds', '1', '--round', 'replaced 0'],
    ['hooks', 'restore-flips-byte', /the snapshot is wrong when it is restored/, '--round', 'before leaves a child'],
    ['dialects', 'list-hides-older', /list does not show/, '--round', 'repository below a symlink'],
    ['disk-full', 'torn-left', /left behind after the fault/, '--round', 'tmpfs repository bytes'],
    // A finding excuses what it is about, and nothing else: files that are missing are no flipped bit.
    [
      'corruption',
      'restore-drops-file',
      /unencrypted: restore of ack-\d exits 0 with wrong data[^\n]*\n\n- vykar [\d.]+\n/,
      '--round',
      'pack bit 0',
    ],
    ['clock', 'prune-nothing', /are kept that no rule keeps/, '--snapshots', '12', '--round', 'keep_yearly 3'],
    [
      'limits',
      'restore-loses-links',
      /2000 hard links came back as 3 files/,
      '--links',
      '2000',
      '--round',
      'hard links',
    ],
    ['versions', 'restore-flips-byte', /restored by the new build .* is wrong/, '--repo', 'local', '--baseline', real!],
    // Rule 7: something is left for ever.
    ['crash', 'lock-left', /left behind after the fault|compact exits/, '--round', 'restore 0'],
  ] as const)
    test(`${family}: ${lie} breaks a rule`, async () => {
      const box = served()
      const ended = await run(box, `faults/${family}`, [
        '--vykar',
        real!,
        '--services',
        'managed',
        ...managed(options),
        ...(family === 'hooks' ? [] : ['--corpus-mib', '12']),
        '--sabotage',
        lie,
        ...options,
      ])
      assert.equal(ended.code, 1, ended.stdout + ended.stderr)
      const file = join(box.runtime, 'reports', family, 'latest/findings.md')
      assert.ok(existsSync(file), ended.last)
      assert.match(readFileSync(file, 'utf8'), reason)
      discard(box)
    })
})
