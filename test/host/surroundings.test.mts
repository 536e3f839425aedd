// The surroundings with the real vykar: a proxy beside a server on loopback, a plain user with a file of a foreign group.
import assert from 'node:assert/strict'
import { chownSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { lacking, noReal, real, root, run, sandbox } from '../helpers.mts'
import { finished } from '../replays.mts'

const skip = noReal || lacking('rsync', 'setfattr', 'setfacl', 'flock')

test('http_proxy is not asked for a server on loopback', {
  skip: skip || lacking('vykar-server', 'curl'),
}, async () => {
  const env = { http_proxy: 'http://127.0.0.1:1', https_proxy: 'http://127.0.0.1:1', HTTP_PROXY: 'http://127.0.0.1:1' }
  const box = sandbox('repositories:\n  - {label: rest, url: http://127.0.0.1:8585, allow_insecure_http: true}\n')
  const words = ['--vykar', real!, '--source', join(root, 'docs'), '--services', 'managed']
  const ended = await run(box, 'backends/rest', words, env)
  assert.equal(ended.last, 'PASS backends/rest', ended.stdout + ended.stderr)
})

test('a plain user: files of a foreign group are backed up, owners are not compared, and that is said', {
  skip: skip || lacking('setpriv') || (process.getuid?.() === 0 ? false : 'becoming another user needs root'),
}, async () => {
  const box = sandbox()
  const source = join(box.dir, 'source')
  mkdirSync(source)
  for (const [name, group] of [
    ['file-1', 65534],
    ['file-2', 12345],
  ] as const) {
    writeFileSync(join(source, name), name)
    chownSync(join(source, name), 65534, group)
  }
  for (const dir of [join(box.dir, '..'), box.dir, source]) chownSync(dir, 65534, 65534)
  const user = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups']
  const words = ['--vykar', real!, '--source', source, '--runtime', box.runtime, '--sample', box.sample]
  const ended = await finished(box, [...user, join(root, 'e2e'), 'backends/local', ...words])
  assert.equal(ended.code, 0, ended.out + ended.err)
  assert.match(ended.out, /^PASS backends\/local not compared here: owner$/m)
})
