// rest, s3, sftp and interrupt-minimal on real servers: they pass when vykar is honest, catch the lies about what is
// special to them, and leave no server, port, key or directory behind.
import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { sleep } from 'zx'
import { which } from '#lib/host.mts'
import { addressOf, kindOf, parseS3 } from '#scripts/provide.mts'
import {
  discard,
  lacking,
  mediumCorpus,
  noReal,
  passes,
  processesIn,
  real,
  run,
  type Sandbox,
  sandbox,
  scratch,
  smallCorpus,
  standin,
  start,
} from '../helpers.mts'

const tools = lacking('rsync', 'setfattr', 'setfacl', 'setcap', 'flock', 'curl')
const noRest = noReal || tools || lacking('vykar-server')
const noS3 = noReal || tools || (lacking('minio') && lacking('versitygw'))
const noSftp = noReal || tools || lacking('sshd', 'sftp', 'ssh-keygen')
const all = noRest || noS3 || noSftp

/** A sandbox with all four repositories, the servers at their default ports. */
const box = () => {
  const where = sandbox()
  const http = 'allow_insecure_http: true'
  writeFileSync(
    where.sample,
    `repositories:
  - {label: local, url: ${where.dir}/repos}
  - {label: rest, url: http://127.0.0.1:8585, ${http}}
  - {label: s3, url: s3+http://127.0.0.1:9000/vykar-stress, ${http}}
  - {label: sftp, url: sftp://127.0.0.1:2222/x}
`,
  )
  return where
}
const args = (...more: string[]) => ['--vykar', real!, '--source', smallCorpus(), ...more]
const listening = () =>
  spawnSync('ss', ['-Hltn'], { encoding: 'utf8' }).stdout.replace(/ +/g, ' ').trim().split('\n').sort()
const clean = (where: Sandbox) => {
  assert.deepEqual(processesIn(where), [], 'processes survive')
  assert.deepEqual(readdirSync(join(where.runtime, 'work')), [], 'working directories are left')
  assert.deepEqual(
    readdirSync(join(where.runtime, 'state')).filter((name) => /^\d{8}T/.test(name)),
    [],
  )
}

describe('honest', { concurrency: 2 }, () => {
  for (const [name, skip] of [
    ['s3', noS3],
    ['sftp', noSftp],
  ] as const)
    test(`${name} passes and leaves nothing`, { skip }, async () => {
      const where = box()
      const ended = await run(where, `backends/${name}`, args('--services', 'managed'))
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
      assert.equal(ended.last, `PASS backends/${name}`)
      clean(where)
    })

  for (const [signal, rc, ...repos] of [
    ['TERM', 130, 'local', 'rest', 's3', 'sftp'],
    ['KILL', 137, 'local', 'rest'],
  ] as const)
    test(`interrupt-minimal --signal ${signal} on ${repos.join(', ')}, and its CSV`, { skip: all }, async () => {
      const where = box()
      const ended = await run(where, 'backends/interrupt-minimal', [
        '--vykar',
        real!,
        '--source',
        mediumCorpus(),
        '--signal',
        signal,
        '--services',
        'managed',
        '--repo',
        repos.join(),
      ])
      assert.equal(ended.code, 0, ended.stdout + ended.stderr)
      const csv = readFileSync(join(where.runtime, 'reports/interrupt-minimal/latest/interrupt-minimal.csv'), 'utf8')
        .trim()
        .split('\n')
      assert.equal(csv[0], 'backend,status,reason,interrupt_rc,resume_rc,snapshot_id,log_dir,report_path')
      assert.deepEqual(
        csv.slice(1).map((line) => line.split(',').slice(0, 5).join()),
        repos.map((repo) => `${repo},PASS,,${rc},0`),
      )
      for (const line of csv.slice(1)) {
        const [, , , , , id, logs, page] = line.split(',')
        assert.match(id!, /^[0-9a-f]{8}$/)
        assert.ok(existsSync(logs!) && existsSync(page!))
      }
      for (const row of ended.report!.rows)
        if (signal === 'KILL') assert.ok(row.gaps.some((gap) => gap.id === 'killed-backup-not-reused'))
        else assert.match(String(row.facts['reused by the resume']), /^[1-9].* of .* uploaded, .* more for /)
      // The other tests of this file run beside this one: only what this run's own servers took is looked at.
      const transcript = readFileSync(ended.report!.transcript, 'utf8')
      const taken = /(?:--listen 127\.0\.0\.1:|--address 127\.0\.0\.1:|--port 127\.0\.0\.1:|^Port )(\d+)/gm
      const ports = [...transcript.matchAll(taken)].map((found) => found[1]!)
      assert.ok(ports.length >= repos.length - 1)
      for (const port of ports.filter((one) => !['8585', '9000', '2222'].includes(one)))
        assert.ok(!listening().some((line) => line.includes(`:${port} `)), `port ${port} is still open`)
      clean(where)
    })

  for (const [script, lie, code, reason, ...options] of [
    [
      'backends/shapes',
      'odd-loses-plain',
      1,
      /cmp source\/plain restored-odd\/plain/,
      '--repo',
      'local',
      '--shape',
      'not-utf8',
    ],
    [
      'backends/shapes',
      'odd-unnamed',
      1,
      /exit 3, but odd- is missing and not named/,
      '--repo',
      'local',
      '--shape',
      'not-utf8',
    ],
    [
      'backends/selection',
      'exclude-takes-more',
      1,
      /diff patterned\.git patterned\.held/,
      '--repo',
      'local',
      '--choice',
      'excludes',
    ],
    ['backends/selection', 'latest-oldest', 1, /latest: exit 1: /, '--repo', 'local', '--choice', 'partly'],
    ['backends/queries', 'find-no-question', 1, /exit 1: diff/, '--repo', 'local', '--question', 'found'],
    ['backends/shapes', 'paths-open', 1, /restore: exit 1: diff /, '--repo', 'local', '--shape', 'paths'],
    ['backends/config-file', 'passphrase-kept', 1, /aes256gcm: exit 1: ! grep /, '--choice', 'modes'],
    ['backends/selection', 'pattern-adds', 1, /by pattern: exit 1: diff/, '--repo', 'local', '--choice', 'partly'],
    ['backends/selection', 'pattern-modes', 1, /by pattern: exit 1: /, '--repo', 'local', '--choice', 'partly'],
    ['backends/config-file', 'first-path-only', 1, /plain paths: exit [12]: /, '--choice', 'forms'],
    ['backends/config-file', 'typos-taken', 1, /keys of the config: exit 1: /, '--choice', 'typos'],
    ['backends/config-file', 'passcommand-unchecked', 1, /locked: exit 1: /, '--choice', 'passcommands'],
    ['backends/config-file', 'identity-unpinned', 1, /refused: exit 1: /, '--choice', 'identity'],
    ['backends/config-file', 'swap-unseen', 1, /aes256gcm: exit 1: /, '--choice', 'swapped'],
    ['backends/config-file', 'nonce-again', 1, /aes256gcm: exit 1: for pack in /, '--choice', 'modes'],
    ['backends/config-file', 'question-answered', 1, /delete: exit 1: /, '--choice', 'questions'],
    ['backends/settings', 'delete-dry-run-acts', 1, /delete --dry-run: exit 1: cmp /, '--repo', 'local', '--choice', 'dry-runs'], // biome-ignore format: one line
    ['backends/settings', 'prune-never-compacts', 1, /at once: exit 1: test /, '--repo', 'local', '--choice', 'dry-runs'], // biome-ignore format: one line
    ['backends/settings', 'prune-pools-labels', 1, /pruned without sources: /, '--repo', 'local', '--choice', 'central'], // biome-ignore format: one line
    ['backends/rest', 'insecure-silently', 1, /only where it is safe: exit 1: /],
    ['backends/rest', 'tls-unverified', 1, /only where it is safe: exit 1: .*tls\.out/],
    ['backends/selection', 'second-path-dropped', 1, /two paths of one source: exit 1: /, '--repo', 'local', '--choice', 'excludes'], // biome-ignore format: one line
    ['backends/settings', 'settings-spread', 1, /each its own: exit 1: /, '--repo', 'local', '--choice', 'sources'],
    ['backends/settings', 'prune-spreads', 1, /two\.list: snapshots of /, '--repo', 'local', '--choice', 'sources'],
    [
      'backends/settings',
      'dry-run-acts',
      1,
      /prune --dry-run: exit 1: cmp /,
      '--repo',
      'local',
      '--choice',
      'dry-runs',
    ],
    [
      'backends/settings',
      'compact-only-empty',
      1,
      /compact as it is: exit 1: /,
      '--repo',
      'local',
      '--choice',
      'dry-runs',
    ],
    [
      'backends/settings',
      'delete-takes-sibling',
      1,
      /delete takes its own: exit 2: diff/,
      '--repo',
      'local',
      '--choice',
      'dry-runs',
    ],
    [
      'backends/settings',
      'second-skipped',
      1,
      /repository b holds snapshots of nothing/,
      '--repo',
      'local',
      '--choice',
      'repositories',
    ],
    ['backends/queries', 'find-drops-one', 1, /find: exit 1: diff/, '--repo', 'local', '--question', 'found'],
    [
      'backends/queries',
      'find-says-unchanged',
      1,
      /timeline: exit 1: diff/,
      '--repo',
      'local',
      '--question',
      'timeline',
    ],
    [
      'backends/queries',
      'info-of-another',
      1,
      /snapshot info says Files 9\d+ instead of \d+/,
      '--repo',
      'local',
      '--question',
      'shown',
    ],
    ['backends/queries', 'list-unsorted', 1, /shown: exit 1: diff .*printf/, '--repo', 'local', '--question', 'shown'],
    ['backends/selection', 'diff-hides', 1, /diff and find: exit 1: diff/, '--repo', 'local', '--choice', 'partly'],
    [
      'backends/shapes',
      'dumps-hide-more',
      1,
      /Only in SOURCE: vykar-dumps/,
      '--repo',
      'local',
      '--shape',
      'dump-names',
    ],
    [
      'backends/shapes',
      'cache-forgets',
      1,
      /: \d+ bytes of an unchanged tree were read again/,
      '--repo',
      'local',
      '--shape',
      'costs',
    ],
    ['backends/shapes', 'sources-second-dropped', 1, /made snapshots of: one,dumped/, '--repo', 'local', '--shape', 'sources'], // biome-ignore format: one line
    ['backends/shapes', 'sources-dump-dropped', 1, /restore: exit [12]: .*dump b/, '--repo', 'local', '--shape', 'sources'], // biome-ignore format: one line
    ['backends/shapes', 'one-thread-skips', 1, /one thread, cold: exit 1: /, '--repo', 'local', '--shape', 'threads'],
    ['backends/shapes', 'exit-3-as-0', 1, /backup: vykar exited 0 but warned: .*Errors: 1/, '--repo', 'local', '--shape', 'growing'], // biome-ignore format: one line
    [
      'backends/shapes',
      'added-path-dropped',
      1,
      /added source: exit 2: found=.*other/,
      '--repo',
      'local',
      '--shape',
      'costs',
    ],
    ['backends/queries', 'long-sizes', 1, /--long shows 7[.]77 GiB of /, '--repo', 'local', '--question', 'shown'],
    ['backends/queries', 'info-other-source', 1, /Source paths other instead of source/, '--repo', 'local', '--question', 'shown'], // biome-ignore format: one line
    ['backends/settings', 'prune-compact-drops', 1, /prune and compact at once: exit \d+: .*--verify-data/, '--repo', 'local', '--choice', 'dry-runs'], // biome-ignore format: one line
    ['backends/settings', 'prune-takes-all', 1, /another host, the same label: exit 1: .*alpha/, '--repo', 'local', '--choice', 'hosts'], // biome-ignore format: one line
    ['backends/selection', 'exclude-panics', 1, /exclude \S+digit\S+: backup exits 134/, '--repo', 'local', '--choice', 'excludes'], // biome-ignore format: one line
    ['backends/sftp', 'host-key-forgotten', 1, /was neither refused nor written down/],
    ['backends/sftp', 'host-key-unchecked', 1, /a changed host key was not refused/],
    ['backends/sftp', 'host-key-silent', 1, /was accepted, and not a word said/],
    ['backends/local-none', 'damage-spreads', 1, /one bit: restore exited 0 with wrong data/],
    ['backends/s3', 'never-in-parts', 75, /the listing shows no object that came in parts/],
  ] as const)
    test(`${script}: ${lie} is caught`, { skip: all }, async () => {
      const ended = await run(box(), script, [
        '--vykar',
        real!,
        '--services',
        'managed',
        '--sabotage',
        lie,
        ...options,
        ...(/s3|none/.test(script) ? ['--corpus-gib', '0.02'] : []),
      ])
      assert.equal(ended.code, code, ended.stdout)
      assert.match(ended.last, reason)
    })

  for (const [what, lie, reason] of [
    [
      'gives its objects to anybody',
      "if (/^\\/(packs|snapshots|keys)\\/[^?]*$/.test(req.url)) headers.authorization = 'Bearer ' + process.env.VYKAR_TOKEN",
      /a request without the right token was answered with 200 GET \/packs\//,
    ],
    [
      'takes what was damaged on its way',
      "if (req.method === 'PUT' && /^0{64}$/.test(headers['x-content-blake2b'])) return res.writeHead(204).end()",
      /what is damaged on its way: exit 1: /,
    ],
  ] as const)
    test(`a server that ${what} is caught`, { skip: noRest }, async () => {
      const where = box()
      const dir = join(where.dir, 'beside')
      mkdirSync(dir)
      symlinkSync(which(real!)!, join(dir, 'vykar'))
      // The real server behind one that tells the lie.
      writeFileSync(
        join(dir, 'vykar-server'),
        `#!${process.execPath}
const http = require('node:http'), { spawn } = require('node:child_process')
const words = process.argv.slice(2), at = words.indexOf('--listen') + 1
const [host, port] = words[at].split(':'), back = Number(port) + 1000 > 65000 ? Number(port) - 1000 : Number(port) + 1000
words[at] = host + ':' + back
const server = spawn(${JSON.stringify(which('vykar-server'))}, words, { stdio: 'inherit' })
process.on('SIGTERM', () => { server.kill(); process.exit() })
http.createServer((req, res) => {
  const headers = { ...req.headers }
  ${lie}
  req.pipe(http.request({ host, port: back, method: req.method, path: req.url, headers }, (answer) => {
    res.writeHead(answer.statusCode, answer.headers)
    answer.pipe(res)
  }).on('error', () => res.destroy()))
}).listen(Number(port), host)
`,
        { mode: 0o755 },
      )
      const ended = await run(where, 'backends/rest', [
        '--vykar',
        join(dir, 'vykar'),
        '--source',
        smallCorpus(),
        '--services',
        'managed',
      ])
      assert.equal(ended.code, 1, ended.stdout + ended.stderr)
      assert.match(ended.last, reason)
    })

  test('two scripts that want the same ports at once both pass', { skip: noRest }, async () => {
    const [a, b] = [box(), box()]
    const ended = await Promise.all([run(a, 'backends/rest', args()), run(b, 'backends/rest', args())])
    for (const one of ended) assert.equal(one.last, 'PASS backends/rest', one.stdout + one.stderr)
    for (const one of [a, b]) clean(one)
    assert.notEqual(
      ...(ended.map((one) => /--listen (\S+)/.exec(readFileSync(one.report!.transcript, 'utf8'))?.[1]) as [
        string,
        string,
      ]),
    )
  })

  test('one scenario on two repositories at the same time', { skip: noRest || noSftp }, async () => {
    const where = box()
    const ended = await Promise.all(
      ['rest', 'sftp'].map((repo) =>
        run(where, 'backends/interrupt-minimal', ['--vykar', real!, '--source', smallCorpus(), '--repo', repo]),
      ),
    )
    for (const one of ended) assert.match(one.last, passes('backends/interrupt-minimal'), one.stdout + one.stderr)
    clean(where)
  })
})

describe('whose server it is', { concurrency: 2 }, () => {
  test("objects of a user's where a repository would go: refused, and they stay", {
    skip: noS3 || lacking('rclone'),
  }, async () => {
    const where = box()
    const port = 18_900 + (process.pid % 90)
    const [theirs, at] = [join(where.dir, 'theirs'), `127.0.0.1:${port}`]
    mkdirSync(theirs)
    const [program, words] = lacking('minio')
      ? ['versitygw', ['--port', at, 'posix', theirs]]
      : ['minio', ['server', '--address', at, '--console-address', '127.0.0.1:0', theirs]]
    const keys = { ROOT: 'ACCESS_KEY', MINIO_ROOT: 'USER' }
    const secrets = { ROOT: 'SECRET_KEY', MINIO_ROOT: 'PASSWORD' }
    const named = (what: Record<string, string>, value: string) =>
      Object.fromEntries(Object.entries(what).map(([prefix, key]) => [`${prefix}_${key}`, value]))
    const server = spawn(program, words, {
      env: { ...process.env, ...named(keys, 'accounting-user'), ...named(secrets, 'theirs-secret') },
      stdio: 'ignore',
    })
    try {
      const remote = {
        TYPE: 's3',
        PROVIDER: 'Other',
        REGION: 'us-east-1',
        ENDPOINT: `http://127.0.0.1:${port}`,
        ACCESS_KEY_ID: 'accounting-user',
        SECRET_ACCESS_KEY: 'theirs-secret',
      }
      const env = {
        ...process.env,
        AWS_CA_BUNDLE: undefined,
        RCLONE_CONFIG: '/dev/null',
        ...Object.fromEntries(Object.entries(remote).map(([key, value]) => [`RCLONE_CONFIG_X_${key}`, value])),
      }
      const rclone = (...words: string[]) =>
        spawnSync('rclone', words, { env, encoding: 'utf8', input: 'a dump' }).stdout
      for (let tries = 0; tries < 50 && !rclone('lsf', '-R', 'x:theirs').includes('dump'); tries++) {
        // Not by rclone, which sends what versitygw refuses.
        const empty = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
        spawnSync('bash', [
          '-c',
          `curl -s --aws-sigv4 aws:amz:us-east-1:s3 -u accounting-user:theirs-secret -H 'x-amz-content-sha256: ${empty}' -X PUT http://${at}/theirs`,
        ])
        // The objects of versitygw are files.
        if (program === 'minio') rclone('rcat', 'x:theirs/s3/accounting.dump')
        else if (existsSync(join(theirs, 'theirs'))) {
          mkdirSync(join(theirs, 'theirs/s3'), { recursive: true })
          writeFileSync(join(theirs, 'theirs/s3/accounting.dump'), 'a dump')
        }
        await sleep(200)
      }
      writeFileSync(
        where.sample,
        `repositories:\n  - label: s3\n    url: s3+http://127.0.0.1:${port}/theirs\n    allow_insecure_http: true\n    access_key_id: accounting-user\n    secret_access_key: theirs-secret\n`,
      )
      const refused = await run(where, 'backends/s3', args('--services', 'external'))
      assert.equal(refused.code, 2, refused.stdout + refused.stderr)
      assert.match(refused.last, /refused to delete .*: there is no repository, but it holds .*accounting\.dump/)
      assert.match(rclone('lsf', '-R', 'x:theirs'), /accounting\.dump/)
      // Where nobody can tell what lies there, nothing is made there, and nothing deleted.
      const blind = join(where.dir, 'no-rclone')
      mkdirSync(blind)
      spawnSync('bash', [
        '-c',
        `ln -s $(ls -d /usr/bin/* /bin/* /usr/sbin/* /usr/local/bin/* | grep -v '/rclone$') ${blind} 2> /dev/null`,
      ])
      const unseen = await run(where, 'backends/s3', args('--services', 'external'), {
        PATH: blind,
      })
      assert.equal(unseen.code, 77, unseen.stdout + unseen.stderr)
      assert.match(
        unseen.last,
        /^SKIPPED .*rclone is missing: apt-get install -y rclone: what lies at .* cannot be told/,
      )
      assert.match(rclone('lsf', '-R', 'x:theirs'), /accounting\.dump/)
    } finally {
      server.kill()
    }
  })
  test("a user's own running server is used, and neither stopped nor emptied", { skip: noRest }, async () => {
    const where = box()
    const data = join(where.dir, 'server-data')
    mkdirSync(data)
    const port = 18_600 + (process.pid % 300)
    const server = spawn('vykar-server', ['--listen', `127.0.0.1:${port}`, '--data-dir', data], {
      env: { ...process.env, VYKAR_TOKEN: 'theirs' },
      stdio: 'ignore',
    })
    try {
      await sleep(500)
      writeFileSync(
        where.sample,
        `repositories:\n  - label: rest\n    url: http://127.0.0.1:${port}\n    allow_insecure_http: true\n    access_token: theirs\n`,
      )
      const passed = await run(where, 'backends/rest', args())
      assert.equal(passed.last, 'PASS backends/rest', passed.stdout + passed.stderr)
      assert.equal(server.exitCode, null)
      assert.ok((await fetch(`http://127.0.0.1:${port}/health`)).ok)
      // Its files cannot be seen, but its objects can.
      for (const [lie, reason] of [
        ['delete-nothing', /left behind: .*\?list.*\|\| exit 1/],
        ['compact-pretends', /retire: exit 1: .*objects\.after/],
      ] as const) {
        const caught = await run(where, 'backends/rest', args('--sabotage', lie))
        assert.equal(caught.code, 1, caught.stdout)
        assert.match(caught.last, reason)
      }
      // A directory that is not the server's is not emptied, whatever is answered to a delete.
      mkdirSync(join(where.dir, 'photos'))
      writeFileSync(join(where.dir, 'photos/letter.txt'), 'mine')
      const wrong = await run(where, 'backends/rest', args('--rest-data-dir', join(where.dir, 'photos')))
      assert.equal(wrong.code, 2, wrong.stdout + wrong.stderr)
      assert.match(wrong.last, /photos holds letter\.txt, which is no part of a repository/)
      assert.equal(readFileSync(join(where.dir, 'photos/letter.txt'), 'utf8'), 'mine')
      // Nor is a whole repository that another server has, whether this one has none or one of the suite's.
      const live = join(where.dir, 'live')
      const mine = (...words: string[]) =>
        execFileSync(real!, ['--config', join(where.dir, 'live.yaml'), ...words, '-R', 'live'], {
          encoding: 'utf8',
          stdio: 'pipe',
          env: { ...process.env, VYKAR_PASSPHRASE: 'live' },
        })
      writeFileSync(
        join(where.dir, 'live.yaml'),
        `hostname: vykar-e2e\ncache_dir: ${where.dir}/cache-live\nrepositories:\n  - label: live\n    url: ${live}\nsources:\n  - path: ${smallCorpus()}\n    label: data\n`,
      )
      mine('init')
      mine('backup')
      for (const first of [[], ['--keep']]) {
        if (first.length) await run(where, 'backends/rest', args(...first))
        const other = await run(where, 'backends/rest', args('--rest-data-dir', live))
        assert.equal(other.code, 2, other.stdout + other.stderr)
        assert.match(other.last, /live holds \S+, which http\S+ does not have: it is not that server's directory/)
      }
      assert.match(mine('check'), /, 0 errors/)
      // Its own is emptied by nobody but vykar.
      const named = await run(where, 'backends/rest', args('--rest-data-dir', data))
      assert.equal(named.last, 'PASS backends/rest', named.stdout + named.stderr)
      // With somebody else's snapshot in it, it is refused and stays as it is.
      const config = join(where.dir, 'theirs.yaml')
      writeFileSync(
        config,
        `hostname: accounting\ncache_dir: ${where.dir}/cache\nrepositories:\n  - label: rest\n    url: http://127.0.0.1:${port}\n    allow_insecure_http: true\n    access_token: theirs\nsources:\n  - path: ${smallCorpus()}\n    label: data\n`,
      )
      const theirs = (...words: string[]) =>
        execFileSync(real!, ['--config', config, ...words, '-R', 'rest'], {
          encoding: 'utf8',
          stdio: 'pipe',
          env: { ...process.env, VYKAR_PASSPHRASE: '123' },
        })
      theirs('init')
      theirs('backup')
      const refused = await run(where, 'backends/rest', args())
      assert.equal(refused.code, 2, refused.stdout)
      assert.match(theirs('list'), /accounting/)
    } finally {
      server.kill('SIGKILL')
    }
  })

  test('a busy port that is no vykar-server: a free one is taken', { skip: noRest }, async () => {
    const where = box()
    const other = createServer((socket) => socket.end('no')).listen(0, '127.0.0.1')
    await sleep(50)
    const { port } = other.address() as { port: number }
    writeFileSync(
      where.sample,
      `repositories:\n  - label: rest\n    url: http://127.0.0.1:${port}\n    allow_insecure_http: true\n    access_token: x\n`,
    )
    const ended = await run(where, 'backends/rest', args())
    other.close()
    assert.equal(ended.last, 'PASS backends/rest', ended.stdout + ended.stderr)
  })

  for (const [name, mode, url, reason] of [
    [
      'nothing answers and --services external',
      'external',
      'http://127.0.0.1:9',
      /does not answer, and --services external starts none/,
    ],
    [
      'an endpoint that is not on loopback',
      'auto',
      'http://rest.invalid:8585',
      /it is not on loopback, so nothing is put in its place/,
    ],
  ] as const)
    test(`${name}: BLOCKED`, { skip: noRest }, async () => {
      const where = box()
      writeFileSync(
        where.sample,
        `repositories:\n  - label: rest\n    url: ${url}\n    allow_insecure_http: true\n    access_token: x\n`,
      )
      const ended = await run(where, 'backends/rest', args('--services', mode))
      assert.equal(ended.code, 75, ended.stdout + ended.stderr)
      assert.match(ended.last, /^BLOCKED backends\/rest /)
      assert.match(ended.last, reason)
    })

  test('no vykar-server: SKIPPED, or FAIL where it is named; the other repositories run', {
    skip: noReal || tools,
  }, async () => {
    const where = box()
    // Where no run beside this one has a server.
    writeFileSync(where.sample, readFileSync(where.sample, 'utf8').replace(':8585', ':1'))
    const bin = join(where.dir, 'bin')
    mkdirSync(bin)
    const PATH = process.env
      .PATH!.split(':')
      .map((dir, i) => {
        const copy = join(bin, String(i))
        spawnSync('bash', [
          '-c',
          `mkdir -p ${copy}; [ -d ${dir} ] && ln -s ${dir}/* ${copy}/ 2>/dev/null; rm -f ${copy}/vykar-server ${copy}/minio ${copy}/versitygw`,
        ])
        return copy
      })
      .join(':')
    // Nor is one beside the program.
    const alone = join(where.dir, 'alone')
    mkdirSync(alone)
    symlinkSync(real!, join(alone, 'vykar'))
    const without = (...more: string[]) => ['--vykar', join(alone, 'vykar'), '--source', smallCorpus(), ...more]
    const skipped = await run(where, 'backends/rest', without(), { PATH })
    assert.equal(skipped.code, 77, skipped.stdout)
    assert.match(skipped.last, /^SKIPPED backends\/rest rest: vykar-server is missing/)
    const named = await run(where, 'backends/rest', without('--repo', 'rest'), { PATH })
    assert.equal(named.code, 1, named.stdout + named.stderr)
    assert.match(named.last, /required, but skipped/)
  })

  test('URLs', () => {
    assert.deepEqual(['/x', 'http://a:1', 's3://e/b', 's3+http://e:9/b', 'sftp://u@h/x'].map(kindOf), [
      undefined,
      'rest',
      's3',
      's3',
      'sftp',
    ])
    assert.deepEqual(addressOf('sftp://u@h/x'), { host: 'h', port: 22 })
    assert.deepEqual(addressOf('s3+http://127.0.0.1:9000/b/p'), { host: '127.0.0.1', port: 9000 })
    assert.deepEqual(parseS3('s3+http://127.0.0.1:9000/b/p/q'), {
      endpoint: 'http://127.0.0.1:9000',
      bucket: 'b',
      prefix: 'p/q',
    })
  })
})

describe('lies', { concurrency: 3 }, () => {
  const lies: [string, string, string | false, 'FAIL' | 'BLOCKED' | 'PASS', RegExp, ...string[]][] = [
    [
      'interrupt-exits-0',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /exit 0 on TERM, but list shows no snapshot/,
      '--repo',
      'local',
    ],
    [
      'interrupt-ignored',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /TERM did not end the backup within 5 s, KILL was needed/,
      '--grace',
      '5',
      '--repo',
      'local',
    ],
    [
      'interrupt-partial',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /Only in SOURCE|reused nothing/,
      '--repo',
      'local',
      '--grace',
      '60',
    ],
    [
      'interrupt-late-139',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /TERM ended the backup with exit 139 instead of 130/,
      '--repo',
      'local',
    ],
    ['restore-copies-live', 'interrupt-minimal', noReal, 'FAIL', /but find counts 0/, '--repo', 'local'],
    [
      'resume-loses-file',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /snapshot list: exit 1|Only in SOURCE|list shows the source/,
      '--repo',
      'local',
    ],
    ['resume-wrong-id', 'interrupt-minimal', noReal, 'FAIL', /backup said deadbeef, but list shows/, '--repo', 'local'],
    [
      'resume-starts-over',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /TERM reused nothing of .* that had been uploaded: nine tenths are needed/,
      '--repo',
      'local',
    ],
    [
      'maintenance-blocked',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /(retire|reuse): exit 1:.*active session/,
      '--repo',
      'local',
    ],
    [
      'lock-left',
      'interrupt-minimal',
      noReal,
      'FAIL',
      /a lock was left behind; locks\.out ends in: Removed 1 lock/,
      '--repo',
      'local',
    ],
    ['server-says-401', 'rest', noRest, 'FAIL', /restore all lost: exit 1: .*HTTP 401/],
    ['server-says-500-once', 'rest', noRest, 'FAIL', /restore all lost: exit 1: .*HTTP 500/],
    ['delete-says-404', 'rest', noRest, 'PASS', /^PASS backends\/rest$/],
    ['hang-init', 'sftp', noSftp, 'BLOCKED', /(changed host key|init): out of time/, '--time-scale', '0.05'],
    ['hang-backup', 'sftp', noSftp, 'BLOCKED', /backup: out of time/, '--time-scale', '0.04'],
  ]
  for (const [lie, script, skip, verdict, reason, ...more] of lies)
    test(`${script}: ${lie} is ${verdict}`, { skip: skip || tools }, async () => {
      const where = box()
      const source = ['--vykar', real!, '--source', script === 'interrupt-minimal' ? mediumCorpus() : smallCorpus()]
      const ended = await run(where, `backends/${script}`, [...source, '--sabotage', lie, ...more])
      assert.match(ended.last, new RegExp(`^${verdict} `), ended.stdout + ended.stderr)
      assert.match(ended.last, reason)
      assert.ok(existsSync(join(where.runtime, 'logs', script, 'latest/sabotage.told')), 'the lie was not told')
      assert.deepEqual(processesIn(where), [], 'processes survive')
      const notes = ended.report!.rows.flatMap((row) => row.notes).join('\n')
      if (lie === 'delete-says-404') assert.match(notes, /delete was answered with HTTP 404; .*server-rest emptied/)
      if (script === 'sftp') assert.match(notes, /plain sftp works with the same server/)
      discard(where)
    })

  test('a step out of time ends its row, the next repository still runs', { skip: tools }, async () => {
    const where = sandbox(
      `repositories:\n  - label: local\n    url: ${scratch}/next\n  - label: rest\n    url: http://127.0.0.1:9\n`,
    )
    const fixture = join(import.meta.dirname, '../fixtures/two-by-two.mts')
    const ended = await run(where, fixture, [
      '--vykar',
      standin(),
      '--source',
      smallCorpus(),
      '--sabotage',
      'hang-init',
      '--time-scale',
      '0.004',
    ])
    assert.equal(ended.code, 75, ended.stdout)
    assert.equal(ended.report!.rows.length, 4)
    for (const row of ended.report!.rows) assert.match(row.reason, /init: out of time/)
  })

  for (const [script, service, skip] of [
    ['rest', 'vykar-server', noRest],
    ['s3', 's3-server', noS3],
    ['sftp', 'sshd', noSftp],
  ] as const)
    test(`${script}: the server is killed in the middle of a backup: no PASS, no hang, its last log lines`, {
      skip,
    }, async () => {
      const where = box()
      const big = join(where.dir, 'big')
      mkdirSync(big)
      execFileSync('bash', ['-c', `head -c 800M /dev/urandom > ${big}/file`])
      const common = ['--vykar', real!, '--source', big, '--services', 'managed', '--time-scale', '0.05']
      const going = start(where, `backends/${script}`, common)
      const logs = join(where.runtime, 'logs', script)
      const backingUp = () =>
        existsSync(logs) &&
        readdirSync(logs).some(
          (id) => id !== 'latest' && readdirSync(join(logs, id)).some((name) => /-backup\..*err$/.test(name)),
        )
      for (let i = 0; i < 3000 && !backingUp(); i++) await sleep(10)
      await sleep(300)
      const work = join(where.runtime, 'work', readdirSync(join(where.runtime, 'work'))[0]!)
      const pid = readFileSync(join(work, `${service}.pid`), 'utf8').trim()
      // sshd serves a connection in a child, which outlives the listener.
      spawnSync('bash', ['-c', `kill -KILL $(pgrep -P ${pid}) ${pid} 2>/dev/null; true`])
      const ended = await going.ended
      assert.match(ended.last, /^(FAIL|BLOCKED) /, ended.stdout)
      assert.ok(ended.seconds < 240, `${ended.seconds} s`)
      assert.match(ended.report!.rows[0]!.notes.join('\n'), /log/)
      assert.match(ended.report!.rows[0]!.notes.join('\n'), /does not answer|plain sftp fails too/)
      assert.deepEqual(processesIn(where), [])
      discard(where)
    })
})
