// The contract between vykar and this suite: what its commands print and how they exit. It runs on the stand-in and on
// the real vykar alike, so that the stand-in cannot drift away.
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { checkLine, compactLine, parseBackup, parseList } from '#scripts/printed.mts'
import { lacking, noReal, real, sandbox, standin } from './helpers.mts'

const tools = lacking('rsync')
for (const [name, vykar, skip] of [
  ['stand-in', standin, tools],
  ['real vykar', () => real!, noReal || tools],
] as const)
  describe(name, { skip }, () => {
    const box = sandbox()
    const [source, config] = [join(box.dir, 'source'), join(box.dir, 'config.yaml')]
    mkdirSync(source)
    writeFileSync(join(source, 'a'), 'content\n')
    writeFileSync(join(source, 'odd\nname'), 'x')
    chmodSync(join(source, 'a'), 0o4751)
    mkdirSync(join(source, 'empty'))
    spawnSync('truncate', ['-s', '8M', join(source, 'sparse')])
    const write = (more = '') =>
      writeFileSync(
        config,
        `hostname: vykar-e2e\ncache_dir: ${box.dir}/cache\nrepositories:\n  - label: local\n    url: ${box.dir}/repo\nsources:\n  - path: ${source}\n    label: corpus\n${more}`,
      )
    write()
    const call = (args: string[], env: NodeJS.ProcessEnv = {}) =>
      spawnSync(vykar(), ['--config', config, ...args], {
        encoding: 'utf8',
        env: { ...process.env, NO_COLOR: '1', VYKAR_PASSPHRASE: '123', ...env },
      })
    const ok = (...args: string[]) => {
      const done = call([...args, '-R', 'local'])
      assert.equal(done.status, 0, done.stderr)
      return done.stdout
    }
    const fails = (message: RegExp, ...args: string[]) => {
      const done = call([...args, '-R', 'local'])
      assert.equal(done.status, 1, done.stdout)
      assert.match(done.stderr, message)
    }
    let id = ''

    test('version', () =>
      assert.match(spawnSync(vykar(), ['--version'], { encoding: 'utf8' }).stdout, /^vykar \d+\.\d+\.\d+/))
    test('a missing repository', () => {
      fails(/no repository found at/, 'delete', '--yes-delete-this-repo')
      fails(/repository not found at/, 'list')
    })
    test('init, then an empty list', () => {
      assert.match(ok('init'), /^Repository initialized at: .*\nEncryption mode: aes256gcm|chacha20poly1305/)
      assert.equal(ok('list').trim(), 'No snapshots found.')
      assert.equal(call(['init', '-R', 'local']).status, 1)
      assert.ok(readdirSync(join(box.dir, 'repo/keys')).length > 0)
    })
    test('a wrong passphrase', () => {
      const done = call(['list', '-R', 'local'], { VYKAR_PASSPHRASE: 'wrong' })
      assert.equal(done.status, 1)
      assert.match(done.stderr, /wrong passphrase/)
    })
    test('backup and list agree', () => {
      const [created] = parseBackup(ok('backup'))
      id = created!.id
      assert.equal(created!.label, 'corpus')
      assert.equal(created!.files, 3)
      const [row] = parseList(ok('list'))
      assert.deepEqual([row!.id, row!.host, row!.label, row!.sources], [id, 'vykar-e2e', 'corpus', [source]])
    })
    test('an unchanged second backup adds next to nothing; host and label are blank in list', () => {
      const [second] = parseBackup(ok('backup'))
      assert.ok(second!.deduplicated < 100_000)
      const rows = parseList(ok('list'))
      assert.deepEqual(
        rows.map((row) => row.label),
        ['corpus', 'corpus'],
      )
      assert.equal(parseList(ok('list', '--last', '1'))[0]!.id, second!.id)
      assert.equal(parseList(ok('list', '-S', 'corpus')).length, 2)
      assert.match(ok('list', '-S', 'nosuch'), /^No snapshots found\.$/m)
      ok('snapshot', 'delete', second!.id)
    })
    test('snapshot list and info', () => {
      assert.deepEqual(ok('snapshot', 'list', id).trim().split('\n').sort(), ['a', 'empty', 'name', 'odd', 'sparse'])
      assert.match(ok('snapshot', 'info', 'latest'), new RegExp(`Name +${id}[^]*Hostname +vykar-e2e[^]*Label +corpus`))
      fails(/snapshot not found: 'deadbeef'/, 'snapshot', 'info', 'deadbeef')
    })
    test('restore: the same tree, top directory time and holes apart', () => {
      const dest = join(box.dir, 'restored')
      assert.match(ok('restore', id, dest), /^Restored: /m)
      const difference = spawnSync(
        'bash',
        ['-c', `diff -r ${source} ${dest}; rsync -naHAXi --modify-window=-1 --delete ${source}/ ${dest}/`],
        { encoding: 'utf8' },
      )
      assert.equal(difference.stdout.trim(), '.d..t...... ./')
      assert.ok(
        Number(spawnSync('stat', ['-c', '%b', join(dest, 'sparse')], { encoding: 'utf8' }).stdout) * 512 >= 8 * 2 ** 20,
      )
      fails(/./, 'restore', id, dest)
    })
    test('check, verify-data, locks', () => {
      const [, snapshots, , , chunks, verified, errors] = checkLine.exec(ok('check', '--verify-data'))!
      assert.deepEqual([snapshots, errors], ['1', '0'])
      assert.ok(Number(verified) >= Number(chunks) && Number(chunks) > 0)
      assert.equal(checkLine.exec(ok('check'))![5], '0')
      assert.match(ok('break-lock'), /^No locks found\.$/m)
    })
    test('a corrupt repository does not pass check --verify-data', () => {
      ok('backup')
      spawnSync('bash', [
        '-c',
        `cd ${box.dir} && cp -a repo spare && find repo/packs -type f -size +0 | while read f; do truncate -s -5 "$f"; done`,
      ])
      assert.notEqual(call(['check', '-R', 'local', '--verify-data']).status, 0)
      spawnSync('bash', ['-c', `cd ${box.dir} && rm -r repo && mv spare repo`])
    })
    test('hooks: before that fails makes no snapshot, finally runs', () => {
      const before = parseList(ok('list')).length
      write(`    hooks:\n      before: exit 3\n      finally: touch ${box.dir}/finally\n`)
      fails(/hook error: hook 'exit 3' exited with 3/, 'backup')
      write()
      assert.ok(existsSync(join(box.dir, 'finally')))
      assert.equal(parseList(ok('list')).length, before)
    })
    test('command_dumps: below vykar-dumps; one that fails makes no snapshot', () => {
      const before = parseList(ok('list')).length
      write('  - label: dump\n    command_dumps:\n      - name: out.txt\n        command: echo dumped\n')
      const done = call(['backup', '-R', 'local'])
      assert.equal(done.status, 0, done.stderr)
      assert.match(ok('snapshot', 'list', 'latest'), /^vykar-dumps\/out\.txt$/m)
      write('  - label: dump\n    command_dumps:\n      - name: out.txt\n        command: echo half; exit 9\n')
      fails(/command_dump 'out\.txt' failed \(exit code 9\)/, 'backup')
      write()
      assert.equal(parseList(ok('list')).filter((row) => row.label === 'dump').length, 1)
      assert.ok(parseList(ok('list')).length >= before)
    })
    test('prune keeps the newest of each label, and the newest of an hour; without a rule it refuses', () => {
      const before = parseList(ok('list'))
      fails(/no retention rules configured/, 'prune')
      for (const rule of ['keep_last: 2', 'keep_hourly: 1\n  keep_last: 1']) {
        ok('backup')
        ok('backup')
        const rows = parseList(ok('list'))
        const last = Number(/last: (\d)/.exec(rule)![1])
        const labels = [...new Set(rows.map((row) => row.label))]
        write(`retention:\n  ${rule}\n`)
        assert.match(ok('prune'), /^Pruned \d+ snapshots \(kept \d+\), freed \d+ chunks/m)
        write()
        const left = labels.flatMap((label) => rows.filter((row) => row.label === label).slice(-last))
        assert.deepEqual(
          parseList(ok('list')).map((row) => row.id),
          rows.filter((row) => left.includes(row)).map((row) => row.id),
        )
      }
      assert.ok(before.length >= 2)
    })
    test('maintenance is refused while another client is at work; snapshot delete takes several ids', async () => {
      write(
        `  - label: slow\n    command_dumps:\n      - name: out.txt\n        command: touch ${join(box.dir, 'started')}; until test -e ${join(box.dir, 'go')}; do sleep 0.05; done; echo dumped\n`,
      )
      const env = { ...process.env, NO_COLOR: '1', VYKAR_PASSPHRASE: '123' }
      const busy = spawn(vykar(), ['--config', config, 'backup', '-R', 'local'], { env, stdio: 'ignore' })
      const ended = once(busy, 'exit')
      // At the dump it holds its session, and no lock.
      while (!existsSync(join(box.dir, 'started')) && busy.exitCode === null) await sleep(20)
      try {
        for (const words of [['compact'], ['snapshot', 'delete', parseList(ok('list'))[0]!.id]])
          fails(/active sessions prevent maintenance/, ...words)
      } finally {
        writeFileSync(join(box.dir, 'go'), '')
      }
      assert.deepEqual(await ended, [0, null])
      write()
      ok('backup')
      const ids = parseList(ok('list')).map((row) => row.id)
      ok('snapshot', 'delete', ...ids.slice(1))
      assert.deepEqual(
        parseList(ok('list')).map((row) => row.id),
        ids.slice(0, 1),
      )
    })
    test('delete all snapshots, compact frees, delete the repository', () => {
      for (const row of parseList(ok('list'))) ok('snapshot', 'delete', row.id)
      assert.match(ok('compact'), compactLine)
      assert.doesNotMatch(compactLine.exec(ok('compact'))![2]!, /[1-9]/)
      assert.match(ok('delete', '--yes-delete-this-repo'), /^Repository 'local' deleted \(\d+ keys removed\)\.$/m)
      assert.ok(!existsSync(join(box.dir, 'repo/config')))
    })
    test('encryption none: no key, no passphrase', () => {
      write('encryption:\n  mode: none\n')
      const env = { VYKAR_PASSPHRASE: undefined }
      assert.equal(call(['init', '-R', 'local'], env).status, 0)
      assert.match(call(['info', '-R', 'local'], env).stdout, /^\s*Encryption\s+none\s*$/m)
      assert.deepEqual(existsSync(join(box.dir, 'repo/keys')) ? readdirSync(join(box.dir, 'repo/keys')) : [], [])
    })
  })
