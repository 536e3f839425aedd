// filesystems/* on real file systems: they pass when vykar is honest, catch every lie about a snapshot or an image, leave
// no mount, loop device or process behind whatever ends them, and take no device that may be somebody's.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { createReadStream, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { sleep } from 'zx'
import type { RowReport, RunReport } from '#lib/report.mts'
import { Blocked, Mismatch, Skipped } from '#lib/verdict.mts'
import { pngOf, svgOf } from '#scripts/benchmarks/chart.mts'
import { usableDevice } from '#scripts/filesystems/device.mts'
import { adopt } from '#scripts/filesystems/guest.mts'
import {
  discard,
  type Finished,
  lacking,
  noReal,
  passes,
  processesIn,
  real,
  root,
  run,
  sandbox,
  scratch,
  start,
} from '../helpers.mts'

const notRoot = process.getuid?.() === 0 ? false : 'mounting needs root'
const noLoop =
  spawnSync('losetup', ['--find'], { stdio: 'ignore' }).status === 0 ? false : 'no loop device can be had here'
const skip = noReal || notRoot || noLoop || lacking('flock', 'diff', 'rsync', 'setfattr')
const noBtrfs =
  skip ||
  lacking('mkfs.btrfs') ||
  (/\bbtrfs$/m.test(readFileSync('/proc/filesystems', 'utf8')) ? false : 'this kernel has no btrfs')
const said = (ended: Finished) => ended.stdout + ended.stderr
const sh = (command: string) =>
  execFileSync('bash', ['-euo', 'pipefail', '-c', command], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  }).trim()

/** Mounts and loop devices of the tests; those of others come and go. */
const traces = () => sh(`(mount; losetup --all) | grep -F ${scratch} || true`)
/** Takes away what a failed run kept mounted. */
function umountBelow(dir: string): void {
  sh(`awk -v dir=${dir}/ 'index($2, dir) == 1 {print $2}' /proc/self/mounts | tac | xargs -r -n1 umount
    losetup --list --noheadings --output NAME,BACK-FILE | awk -v dir=${dir}/ 'index($2, dir) == 1 {print $1}' |
      xargs -r -n1 losetup --detach`)
}
/** `traces`, once they are what they were, or after 20 s: a device whose file system someone else's mount namespace still holds goes late. */
const settled = async (had: string) => {
  for (let n = 0; n < 100 && traces() !== had; n++) await sleep(200)
  return traces()
}

const caught: Record<string, RegExp> = {
  'snapshot-live': /backup: exit 3|list shows the source|list: exit 1|difference/,
  'snapshot-stays': /backup: exit 1: test ! -e \S*vykar-e2e {2}# the snapshot is gone/,
  'snapshot-no-finally': /backup: exit 1: test ! -e \S*vykar-e2e {2}# the snapshot is gone/,
  'warned-lacks-files': /differences between \S*witness and warned/,
  'hooks-warn-nothing': /`finally` failed, and backup said nothing of it/,
  'hook-failure-hidden': /failing before: exit 0 instead of 1/,
  'hook-deletes-other': /name taken: exit 1: test -e \S*vykar-e2e {2}# the snapshot is there/,
  'restore-flips-byte': /difference/,
  'list-hides': /list shows no snapshot/,
}

describe('btrfs', { skip: noBtrfs }, () => {
  const args = (...more: string[]) => {
    const small = ['--repo', 'local', '--image-gib', '0.8', '--corpus-gib', '0.1']
    return ['--vykar', real!, ...small, ...more]
  }
  test('honest: PASS, every bad case met, nothing left', async () => {
    const had = traces()
    const box = sandbox()
    const ended = await run(box, 'filesystems/btrfs', args())
    assert.equal(ended.code, 0, said(ended))
    assert.match(ended.last, passes('filesystems/btrfs'))
    const { facts, steps } = ended.report!.rows[0]!
    assert.match(String(facts['writes while vykar copied']), /^[1-9]\d* rounds/)
    assert.match(String(facts['after TERM']), /^exit 130/)
    assert.match(String(facts['after KILL']), /^exit 137, the snapshot stays/)
    const names = steps.map((step) => step.name)
    for (const name of ['name taken', 'parent missing', 'failing before', 'failing finally', 'no space'])
      assert.ok(names.includes(name), `${name} was not tried`)
    assert.equal(await settled(had), had)
    assert.deepEqual(processesIn(box), [])
    assert.deepEqual(sh(`ls ${box.runtime}/work`), '')
  })

  for (const [lie, reason] of Object.entries(caught))
    test(`${lie} is FAIL`, async () => {
      const box = sandbox()
      const ended = await run(box, 'filesystems/btrfs', args('--sabotage', lie))
      umountBelow(box.dir)
      assert.match(ended.last, /^FAIL filesystems\/btrfs /, said(ended))
      assert.match(ended.last, reason)
      assert.equal(ended.code, 1)
      assert.ok(existsSync(join(box.runtime, 'logs/btrfs/latest/sabotage.told')), 'the lie was not told')
      discard(box)
    })

  for (const step of ['file system', 'files', 'init', 'backup', 'no space'])
    test(`Ctrl-C after ${step}: nothing is left, exit 130`, async () => {
      const had = traces()
      const box = sandbox()
      const { child, ended, printed } = start(box, 'filesystems/btrfs', args())
      while (!new RegExp(` ${step} +ok`).test(printed()) && child.exitCode === null) await sleep(50)
      child.kill('SIGINT')
      const done = await ended
      assert.equal(done.code, 130, said(done))
      assert.match(done.last, /^FAIL /)
      assert.equal(await settled(had), had)
      assert.deepEqual(processesIn(box), [])
    })

  test('what a killed run has left mounted is cleared by the next', async () => {
    const had = traces()
    const box = sandbox()
    const { child, ended, printed } = start(box, 'filesystems/btrfs', args())
    while (!/ files +ok/.test(printed()) && child.exitCode === null) await sleep(50)
    child.kill('SIGKILL')
    await ended
    assert.notEqual(traces(), had)
    const next = await run(box, 'filesystems/btrfs', args('--image-gib', 'x'))
    assert.equal(next.code, 2, said(next))
    const again = await run(box, 'backends/local', ['--vykar', real!, '--source', join(root, 'docs')])
    assert.match(again.stdout, /cleared what filesystems\/btrfs .* had left/, said(again))
    assert.equal(await settled(had), had)
  })
})

/** What takes a guest of its own is done only where it is asked for. */
const noGuest =
  lacking('qemu-system-x86_64', 'debootstrap', 'flock', 'socat', 'ssh') ||
  (process.env.VYKAR_E2E_GUEST ? false : 'building and emulating guests takes half an hour: VYKAR_E2E_GUEST=1 does it')

describe('zfs', { skip: noReal || notRoot || lacking('rsync') }, () => {
  test('without the module or the tools: SKIPPED, with what installs it', {
    skip: existsSync('/sys/module/zfs') ? 'this kernel has ZFS' : false,
  }, async () => {
    const ended = await run(sandbox(), 'filesystems/zfs', ['--vykar', real!, '--repo', 'local'])
    assert.equal(ended.code, 77, said(ended))
    assert.match(ended.last, /^SKIPPED filesystems\/zfs .*apt-get install .*zfs/)
  })

  test('what the guest came to is what the row comes to', () => {
    const row = () => ({ facts: {}, notes: [] as string[], gaps: [], findings: [] }) as unknown as RowReport
    const there = (verdict: string, reason = '') => {
      const rows = [
        { ...row(), facts: { 'after KILL': 'exit 137' }, findings: [{ id: 'killed-write-left', seen: '' }] },
      ]
      return { verdict, reason, rows, notes: [] } as unknown as RunReport
    }
    const good = row()
    adopt(good, there('PASS'), 0)
    assert.deepEqual([good.facts['after KILL'], good.findings[0]?.id], ['exit 137', 'killed-write-left'])
    const refuses = (seen: RunReport | undefined, code: number, kind: new () => Error, words: RegExp) =>
      assert.throws(
        () => adopt(row(), seen, code),
        (error: Error) => error instanceof kind && words.test(error.message),
      )
    refuses(undefined, 0, Blocked, /no report \(exit 0\)/)
    refuses(there('PASS'), 1, Mismatch, /^in the guest: PASS, exit 1$/)
    refuses(there('FAIL', 'local: lost'), 0, Mismatch, /local: lost/)
    refuses(there('BLOCKED'), 75, Blocked, /BLOCKED/)
    refuses(there('SKIPPED'), 77, Skipped, /SKIPPED/)
  })

  test('with OpenZFS in the guest: PASS, and the lie is caught', {
    skip: noGuest,
  }, async () => {
    const box = sandbox()
    const small = ['--vykar', real!, '--repo', 'local', '--guest', '--image-gib', '1', '--corpus-gib', '0.1']
    const honest = await run(box, 'filesystems/zfs', small)
    assert.match(honest.last, /^PASS filesystems\/zfs(?: 1 known finding: killed-write-left)?$/, said(honest))
    assert.equal(honest.code, 0)
    const logs = join(box.runtime, 'logs/zfs/latest/local')
    assert.match(readFileSync(join(logs, 'guest.out'), 'utf8'), /snapdir hidden +ok/)
    const lying = await run(box, 'filesystems/zfs', [...small, '--sabotage', 'snapshot-live'])
    assert.equal(lying.code, 1, said(lying))
    assert.match(
      lying.last,
      /^FAIL filesystems\/zfs local: in the guest: local: (list shows the source|snapshot list|compare)/,
    )
  })
})

describe('vm-image', { skip: skip || lacking('debootstrap') }, () => {
  let image = ''
  const args = (...more: string[]) => ['--vykar', real!, '--repo', 'local', ...more]
  before(() => {
    // Small and quick to change, with apt in it.
    image = join(scratch, 'small.raw')
    const tree = join(scratch, 'small')
    const include = '--include=apt,gpgv'
    sh(`read -r mirror suite < <(${root}/scripts/images/debian-release)
      debootstrap --variant=minbase ${include} "$suite" ${tree} "$mirror" > ${tree}.log
      echo "deb $mirror $suite main" > ${tree}/etc/apt/sources.list && rm -rf ${tree}/var/cache/apt/archives/*.deb
      truncate -s 1G ${image} && mkfs.ext4 -q -F -d ${tree} ${image} && rm -rf --one-file-system ${tree}`)
  })

  test('qcow2 from a URL, a round of packages: PASS, the figures and the chart in the report, nothing left', {
    skip: lacking('qemu-img'),
  }, async () => {
    const had = traces()
    const box = sandbox()
    const qcow2 = join(scratch, 'small.qcow2')
    sh(`qemu-img convert -O qcow2 ${image} ${qcow2}`)
    const server = createServer((_, answer) => createReadStream(qcow2).pipe(answer)).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/small.qcow2`
    const ended = await run(box, 'filesystems/vm-image', args('--image', url, '--packages', 'jq'))
    server.close()
    assert.equal(ended.code, 0, said(ended))
    const { facts } = ended.report!.rows[0]!
    assert.match(
      String(facts['1: jq']),
      /[1-9].* changed in .*, .* added to the repository \(\d\.\d\d of what changed\)/,
    )
    const dir = join(box.runtime, 'reports/vm-image/latest')
    assert.match(readFileSync(join(dir, 'growth.svg'), 'utf8'), /added to the repository/)
    assert.match(readFileSync(join(dir, 'report.md'), 'utf8'), /!\[Growth per round\]\(growth\.svg\)/)
    assert.match(readFileSync(join(dir, 'vm-image.csv'), 'utf8'), /^local,1,jq,[1-9]/m)
    assert.equal(await settled(had), had)
    assert.deepEqual(processesIn(box), [])
  })

  test('one bit that differs in a restored image is FAIL', async () => {
    const box = sandbox()
    const lie = ['--sabotage', 'restore-flips-byte']
    const ended = await run(box, 'filesystems/vm-image', args('--image', image, '--packages', 'jq', ...lie))
    assert.match(
      ended.last,
      /^FAIL filesystems\/vm-image local: (unchanged backup|restore 0): exit 1: .*sha256sum/,
      said(ended),
    )
    assert.equal(ended.code, 1)
  })

  for (const [lie, reason] of [
    ['source-changes', /something has changed the source, and it was not this suite: disk\.raw/],
    ['restore-says-more', /restore printed something after its result/],
  ] as const)
    test(`${lie} is FAIL`, async () => {
      const words = ['--image', image, '--packages', 'jq', '--sabotage', lie]
      const ended = await run(sandbox(), 'filesystems/vm-image', args(...words))
      assert.equal(ended.code, 1, said(ended))
      assert.match(ended.last, reason)
    })

  test('an image that cannot be had is one line and exit 2', async () => {
    const half = join(scratch, 'half.qcow2')
    writeFileSync(half, Buffer.from('QFI\xfb and no more', 'latin1'))
    for (const [given, reason] of [
      ['http://127.0.0.1:9/disk.qcow2', /--image http:\/\/127\.0\.0\.1:9\/disk\.qcow2 cannot be fetched/],
      [half, /qemu-img: .*half\.qcow2/],
      [join(scratch, 'nowhere.raw'), /--image \S*nowhere\.raw: no such file/],
    ] as const) {
      const box = sandbox()
      const ended = await run(box, 'filesystems/vm-image', args('--image', given))
      assert.equal(ended.code, 2, said(ended))
      assert.match(ended.stderr, reason)
      assert.deepEqual(sh(`ls ${box.runtime}/work 2> /dev/null || true`), '')
    }
  })

  test('packages that apt does not know are FAIL, and nothing stays mounted', async () => {
    const had = traces()
    const ended = await run(sandbox(), 'filesystems/vm-image', args('--image', image, '--packages', 'no-such-package'))
    assert.equal(ended.code, 1, said(ended))
    assert.match(ended.last, /Unable to locate package no-such-package/)
    assert.equal(await settled(had), had)
  })

  describe('a VM that runs', { skip: noGuest }, () => {
    const boot = ['--mutate', 'boot', '--tcg', '--image-gib', '2', '--packages', 'jq']
    const lies: Record<string, RegExp> = {
      'guest-stays-frozen': /the guest is still frozen after the backup/,
      'guest-not-frozen': /backup: exit 3|compare: exit 1: sha256sum|compare: exit \d+: e2fsck/,
    }
    test('frozen, copied, thawed: PASS', async () => {
      const had = traces()
      const box = sandbox()
      const ended = await run(box, 'filesystems/vm-image', args(...boot))
      assert.equal(ended.code, 0, said(ended))
      assert.match(String(ended.report!.rows[0]!.facts['records in the frozen image']), /^[1-9]/)
      assert.equal(await settled(had), had)
      assert.deepEqual(processesIn(box), [])
    })
    for (const [lie, reason] of Object.entries(lies))
      test(`${lie} is FAIL`, async () => {
        const box = sandbox()
        const ended = await run(box, 'filesystems/vm-image', args(...boot, '--sabotage', lie))
        umountBelow(box.dir)
        assert.match(ended.last, /^FAIL filesystems\/vm-image /, said(ended))
        assert.match(ended.last, reason)
        assert.deepEqual(processesIn(box), [])
      })
  })

  test('bad input is one line and exit 2, a lack is SKIPPED', async () => {
    const none = await run(sandbox(), 'filesystems/vm-image', args('--image', '/no/such.raw'))
    assert.equal(none.code, 2, said(none))
    assert.match(none.last, /--image \/no\/such\.raw: no such file/)
    assert.match(
      (await run(sandbox(), 'filesystems/vm-image', args('--image', scratch))).last,
      /--image \S+: no such file/,
    )
    const blank = join(scratch, 'blank.raw')
    writeFileSync(blank, Buffer.alloc(1 << 20))
    const empty = await run(sandbox(), 'filesystems/vm-image', args('--image', blank, '--packages', 'jq'))
    assert.equal(empty.code, 77, said(empty))
    assert.match(empty.last, /has no ext4, xfs or btrfs file system/)
  })
})

describe('device rules', { skip: notRoot || noLoop }, () => {
  const dir = join(scratch, 'devices')
  const devices: string[] = []
  const loop = (name: string) => {
    sh(`truncate -s 64M ${dir}/${name}`)
    const device = sh(`losetup --partscan --find --show ${dir}/${name}`)
    devices.push(device)
    return device
  }
  before(() => mkdirSync(dir))
  after(() => {
    umountBelow(dir)
  })
  const refused = (device: string, reason: RegExp, again?: string) =>
    assert.rejects(usableDevice(device, again), reason)

  test('the root disk, a mounted one, and what is no device are never taken', async () => {
    const rootDevice = sh('findmnt -nro SOURCE /')
    if (existsSync(rootDevice))
      await refused(rootDevice, /the root file system lies on .*: it is never used/, rootDevice)
    const device = loop('mounted')
    sh(`mkfs.ext4 -q ${device} && mkdir ${dir}/at && mount ${device} ${dir}/at`)
    await refused(device, /is in use \(.*at\): umount it first/, device)
    await refused(join(dir, 'mounted'), /not a block device/)
    await refused('/dev/no-such', /no such device/)
  })
  test('one with a file system only when it is named again, also through a symlink', async () => {
    const device = loop('formatted')
    sh(`mkfs.ext4 -q ${device}`)
    const link = join(dir, 'link')
    symlinkSync(device, link)
    await refused(device, /carries ext4; if it may be lost, name it again: --wipe-device/)
    await refused(link, /carries ext4/)
    await refused(device, /is not --device/, loop('other'))
    assert.equal(await usableDevice(link, device), device)
  })
  test('a partition of a disk of which another is mounted only when it is named again', {
    skip: lacking('sfdisk', 'partx'),
  }, async () => {
    const disk = loop('parts')
    sh(`printf '1M,20M\\n22M,20M\\n' | sfdisk -q ${disk} && { partx -u ${disk} || true; }`)
    if (!existsSync(`${disk}p2`)) return assert.ok(!existsSync(`${disk}p1`), 'only one partition shows')
    sh(`mkfs.ext4 -q ${disk}p1 && mkdir ${dir}/part && mount ${disk}p1 ${dir}/part`)
    await refused(`${disk}p2`, /it is a part of .*, of which .* is in use/)
    await refused(disk, /is in use/)
    assert.equal(await usableDevice(`${disk}p2`, `${disk}p2`), `${disk}p2`)
  })
  test('an empty one is taken', async () => {
    const device = loop('empty')
    assert.equal(await usableDevice(device, undefined), device)
  })
})

describe('units', () => {
  test('a chart is drawn with its text', async () => {
    const svg = await svgOf({
      data: { values: [{ what: 'thing', much: 3 }] },
      mark: 'bar',
      encoding: { x: { field: 'much', type: 'quantitative' }, y: { field: 'what', type: 'nominal' } },
    })
    assert.match(svg, />thing</)
    const png = pngOf(svg)
    assert.equal(png.subarray(1, 4).toString(), 'PNG')
    await assert.rejects(svgOf({ data: { values: [] }, mark: 'nonsense', encoding: {} } as never))
  })
})
