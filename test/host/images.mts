// Images for the tests, built from Debian packages where they are not there yet; and why an engine cannot be used.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { openSync } from 'node:fs'
import { join } from 'node:path'
import { which } from '#lib/host.mts'
import { startTime } from '#lib/process.mts'
import { lacking, root, scratch } from '../helpers.mts'

const answers = (engine: string) => spawnSync(engine, ['info'], { timeout: 30_000 }).status === 0

/** Starts docker's daemon, where the machine has one that does not run, until this test process ends. */
function startDockerd(): boolean {
  const dockerd = which('dockerd')
  if (!dockerd) return false
  const log = openSync(join(scratch, 'dockerd.log'), 'a')
  const child = spawn(dockerd, ['--pidfile', join(scratch, 'dockerd.pid')], { stdio: ['ignore', log, log] })
  child.unref()
  // It needs a moment to end its containerd; as our child it stays a zombie until we are gone ourselves.
  process.on('exit', () => {
    child.kill()
    for (let i = 0; i < 100 && startTime(child.pid!); i++) spawnSync('sleep', ['0.1'])
  })
  for (let i = 0; i < 60 && !answers('docker'); i++) spawnSync('sleep', ['0.5'])
  return answers('docker')
}

/** Why there can be no containers with this engine here; false where there can. */
export const noEngine = (engine: string): string | false =>
  lacking('debootstrap', engine) ||
  (process.getuid?.() === 0 ? false : 'images are built as root') ||
  (answers(engine) || (engine === 'docker' && startDockerd()) ? false : `${engine} does not answer: start its daemon`)

/** The tag of the PostgreSQL image, which has a shell and coreutils, too. */
export function postgresImage(engine: string): string {
  const there = spawnSync(engine, ['images', '--format', '{{.Repository}}:{{.Tag}}'], { encoding: 'utf8' }).stdout
  const tag = /^(?:localhost\/)?(vykar-e2e\/postgres:\d+)$/m.exec(there)?.[1]
  return tag ?? execFileSync(join(root, 'scripts/images/build'), ['postgres', engine], { encoding: 'utf8' }).trim()
}
