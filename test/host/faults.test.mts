// The families of faults: each passes with the real vykar, and its oracle catches a lie about the rule that it is for.
import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { lacking, noReal, real, run, sandbox } from '../helpers.mts'

const tools = noReal || lacking('rsync', 'setfattr', 'setfacl', 'setcap', 'flock')
const skip = tools || (process.getuid?.() === 0 ? false : 'mounting small file systems needs root')

describe('faults', { skip, concurrency: 2 }, () => {
  for (const [family, ...options] of [
    ['corruption', '--round', 'pack bit 0'],
    ['crash', '--round', 'backup 1'],
    ['disk-full', '--round', 'tmpfs repository bytes'],
    ['targets'],
  ] as const)
    test(`${family} passes`, async () => {
      const ended = await run(sandbox(), `faults/${family}`, ['--vykar', real!, '--corpus-mib', '12', ...options])
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
    })

  for (const [family, lie, reason, ...options] of [
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
    // Rule 7: something is left for ever.
    ['crash', 'lock-left', /left behind after the crash|compact after the crash exits/, '--round', 'restore 0'],
  ] as const)
    test(`${family}: ${lie} breaks a rule`, async () => {
      const box = sandbox()
      const ended = await run(box, `faults/${family}`, [
        '--vykar',
        real!,
        '--corpus-mib',
        '12',
        '--sabotage',
        lie,
        ...options,
      ])
      assert.equal(ended.code, 1, ended.stdout + ended.stderr)
      const file = join(box.runtime, 'reports', family, 'latest/findings.md')
      assert.ok(existsSync(file), ended.last)
      assert.match(readFileSync(file, 'utf8'), reason)
    })
})
