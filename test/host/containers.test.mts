// containers/docker and podman on real engines: they pass when vykar and the engine are honest, catch every lie about a
// container, name what a user can do about an engine that refuses, and leave nothing behind.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, describe, test } from 'node:test'
import { downtimeOf } from '#scripts/containers/common.mts'
import {
  discard,
  type Finished,
  lacking,
  noReal,
  passes,
  processesIn,
  real,
  run,
  sandbox,
  scratch,
} from '../helpers.mts'
import { noEngine, postgresImage } from './images.mts'

const tools = lacking('flock', 'diff', 'rsync', 'setfattr')
const said = (ended: Finished) => ended.stdout + ended.stderr
const lines = (engine: string, ...args: string[]) =>
  spawnSync(engine, args, { encoding: 'utf8' }).stdout.split('\n').filter(Boolean).sort()

/** What a lie must lead to, and the pattern that it is about. */
const caught: Record<string, [pattern: string, reason: RegExp]> = {
  'container-not-started': ['downtime', /the container does not run after the backup/],
  // What writes during the copy may also change a file under vykar's eyes, which it says first.
  'container-not-stopped': ['downtime', /the container was not stopped for the backup|exit 3: .*could not be read/],
  'container-restarted': ['downtime', /started behind the hook's back, [\d.]+ s before|exit 3: .*could not be read/],
  'container-killed': ['downtime', /records: exit 1: .*sha256sum/],
  'warned-lacks-files': ['downtime', /differences between \S+ and warned/],
  'source-changes': ['volume', /difference.* between .*SOURCE\//],
  'source-loses-first': ['volume', /something has changed the source/],
  'plaintext-leaks': ['volume', /words of the source can be read/],
  'restore-says-more': ['volume', /restore printed something after its result/],
  'fails-when-emptied': ['downtime', /downtime: the backup failed by itself, before KILL: exit 1/],
  'restore-owner': ['volume', /difference/],
  'dump-empty': ['dump', /restored dump has 0 B|empty output/],
  'fifth-vanishes': ['downtime', /ended the backup with exit 0 instead of 130, and there is no snapshot of it/],
  'late-unhooked': ['downtime', /`before` was not run to its end/],
  'dump-failure-hidden': ['dump', /failing dump: exit 0 instead of 1/],
}

for (const engine of ['docker', 'podman'] as const)
  describe(engine, { skip: noReal || tools || noEngine(engine) }, () => {
    let image = ''
    const args = (...more: string[]) => {
      const small = [
        '--repo',
        'local',
        '--target-gib',
        '0.03',
        ...(more.includes('--ballast-mib') ? [] : ['--ballast-mib', '192']),
      ]
      return ['--vykar', real!, '--image', image, '--database-image', image, ...small, ...more]
    }
    const [containers, volumes] = [
      ['ps', '-a', '--format', '{{.Names}}'],
      ['volume', 'ls', '--format', '{{.Name}}'],
    ] as const
    /** Takes away what a failed run kept: what carries its id. */
    const clear = (id = 'none') => {
      for (const name of lines(engine, ...containers).filter((name) => name.endsWith(id)))
        spawnSync(engine, ['rm', '-f', '-v', name])
      for (const name of lines(engine, ...volumes).filter((name) => name.endsWith(id)))
        spawnSync(engine, ['volume', 'rm', name])
    }
    before(() => {
      image = postgresImage(engine)
    })

    test('honest, all patterns: PASS, the downtime in the report, nothing left', async () => {
      const had = [lines(engine, ...containers), lines(engine, ...volumes), lines(engine, 'images', '-q')]
      const box = sandbox()
      const ended = await run(box, `containers/${engine}`, args())
      assert.equal(ended.code, 0, said(ended))
      assert.match(ended.last, passes(`containers/${engine}`))
      const rows = ended.report!.rows
      assert.deepEqual(
        rows.map((row) => row.variant),
        ['volume', 'downtime', 'dump'],
      )
      for (const of of ['that succeeded', 'that failed', 'ended by TERM', 'ended by INT'])
        assert.match(String(rows[1]!.facts[`downtime of a backup ${of}`]), /^\d+\.\d\d s$/)
      assert.match(String(rows[1]!.facts['after TERM']), /^exit 130, the container runs$/)
      assert.match(String(rows[1]!.facts['after KILL']), /^exit 137, the container stays stopped/)
      assert.deepEqual([lines(engine, ...containers), lines(engine, ...volumes), lines(engine, 'images', '-q')], had)
      assert.deepEqual(processesIn(box), [])
    })

    test('a disk that is too small is refused before anything is made', async () => {
      const ended = await run(sandbox(), `containers/${engine}`, args('--ballast-mib', '1000000000'))
      assert.equal(ended.code, 2, said(ended))
      assert.match(ended.last, /free, .* are needed for --target-gib 0\.03 --ballast-mib 1000000000/)
    })

    test('an image that is named and cannot be had is exit 2, and what was made before is gone', async () => {
      const had = [lines(engine, ...containers), lines(engine, ...volumes)]
      const box = sandbox()
      const words = args().flatMap((word, i, all) =>
        all[i - 1] === '--database-image' ? ['localhost:1/nosuch:1'] : [word],
      )
      const ended = await run(box, `containers/${engine}`, words)
      assert.equal(ended.code, 2, said(ended))
      assert.match(ended.last, /image localhost:1\/nosuch:1 cannot be had/)
      assert.deepEqual([lines(engine, ...containers), lines(engine, ...volumes)], had)
      assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
      assert.deepEqual(processesIn(box), [])
    })

    // What a lie is about is in vykar and the checks, not in the engine: one of them will do.
    for (const [lie, [pattern, reason]] of Object.entries(engine === 'podman' || lacking('podman') ? caught : {}))
      test(`${lie} is FAIL`, async () => {
        const box = sandbox()
        const ended = await run(box, `containers/${engine}`, args('--pattern', pattern, '--sabotage', lie))
        try {
          assert.match(ended.last, new RegExp(`^FAIL containers/${engine} `), said(ended))
          assert.match(ended.last, reason)
          assert.equal(ended.code, 1)
          assert.ok(existsSync(join(box.runtime, 'logs', engine, 'latest/sabotage.told')), 'the lie was not told')
          const kept = pattern === 'dump' ? 'container vykar-db-' : `volume vykar-${engine}-`
          assert.match(ended.stdout, new RegExp(`kept: ${kept}(\\w+-)?${ended.report!.runId}`))
          const had = [lines(engine, ...containers), lines(engine, ...volumes)]
          assert.ok(had.flat().some((name) => name.endsWith(ended.report!.runId)))
          // What a failed run kept is in no other run's way, and stays: seen once for each pattern.
          if (!['container-not-started', 'source-changes', 'dump-empty'].includes(lie)) return
          const next = await run(sandbox(), `containers/${engine}`, args('--pattern', pattern))
          assert.match(next.last, passes(`containers/${engine}`), said(next))
          assert.deepEqual([lines(engine, ...containers), lines(engine, ...volumes)], had)
        } finally {
          clear(ended.report?.runId)
          discard(box)
        }
      })
  })

describe('an engine that refuses', { skip: noReal || tools }, () => {
  /** A PATH on which the engine says this to `info`, `run` or both. */
  const refusing = (engine: string, name: string, script: string) => {
    const dir = join(scratch, `refusing-${name}`)
    mkdirSync(dir, { recursive: true })
    writeFileSync(join(dir, engine), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
    return { PATH: `${dir}:${process.env.PATH}` }
  }
  const cases: [engine: string, name: string, script: string, code: number, last: RegExp][] = [
    [
      'docker',
      'no-daemon',
      'echo "Cannot connect to the Docker daemon at unix:///var/run/docker.sock." >&2; exit 1',
      75,
      /^BLOCKED .*docker does not answer: .*its daemon is not running: systemctl start docker/,
    ],
    [
      'docker',
      'no-right',
      'echo "permission denied while trying to connect to the Docker daemon socket" >&2; exit 1',
      77,
      /^SKIPPED .*you may not use it: run as root, or join the group docker/,
    ],
    [
      'podman',
      'rootless',
      'case "$*" in *Rootless*) echo true;; *version*) echo podman version 5.0.0;; esac; exit 0',
      77,
      /^SKIPPED .*rootless podman .*run as root/,
    ],
    [
      'podman',
      'rlimit',
      'case "$1" in run) echo "Error: crun: setrlimit RLIMIT_NOFILE: Operation not permitted" >&2; exit 126;; container) exit 1;; volume) test "$2" != inspect || test "$3" = -f || exit 1; echo /nowhere;; esac; exit 0',
      75,
      /^BLOCKED .*podman cannot start the container: .*default_ulimits = \[\]/,
    ],
    [
      'podman',
      'cgroup',
      'case "$1" in run) echo "Error: crun: create cgroup: Read-only file system" >&2; exit 126;; container) exit 1;; esac; exit 0',
      75,
      /^BLOCKED .*podman cannot start the container: .*cgroups = "disabled"/,
    ],
  ]
  for (const [engine, name, script, code, last] of cases)
    test(`${engine}: ${name}`, async () => {
      const ended = await run(
        sandbox(),
        `containers/${engine}`,
        ['--vykar', real!, '--repo', 'local', '--pattern', 'dump'],
        refusing(engine, name, script),
      )
      assert.match(ended.last, last, said(ended))
      assert.equal(ended.code, code)
    })

  test('an engine that is not installed is SKIPPED, with what installs it', async () => {
    const dir = join(scratch, 'no-engine')
    mkdirSync(dir, { recursive: true })
    // Every program but the engines.
    spawnSync('bash', ['-c', `ln -sf $(ls -d /usr/bin/* /bin/* | grep -vE '/(docker|podman)$') ${dir}`])
    const ended = await run(sandbox(), 'containers/podman', ['--vykar', real!, '--repo', 'local'], { PATH: dir })
    assert.equal(ended.code, 77, said(ended))
    assert.match(ended.last, /^SKIPPED .*podman is missing .*apt-get install -y podman/)
  })
})

describe('units', () => {
  const at = (ms: number, what: string) => `${ms}000000 ${what}`
  const between = (...events: string[]) => downtimeOf(events.join('\n'), 'die', 200_000000n, 900_000000n)

  test('the downtime is that between the end of the process and its start', () => {
    assert.equal(between(at(100, 'kill'), at(150, 'die'), at(160, 'stop'), at(950, 'start')), 0.8)
  })
  test('events that do not show a stop for the whole backup are told apart', () => {
    assert.throws(() => between(at(950, 'start')), /was not stopped for the backup/)
    assert.throws(() => between(at(300, 'die'), at(950, 'start')), /ended only 0\.10 s after `before`/)
    assert.throws(() => between(at(150, 'die')), /was not started again/)
    assert.throws(() => between(at(150, 'die'), at(500, 'start')), /behind the hook's back, 0\.40 s before `finally`/)
    assert.throws(() => between(at(150, 'die'), at(910, 'start'), at(920, 'die'), at(930, 'start')), /4 times/)
  })
})
