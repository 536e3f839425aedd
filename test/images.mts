// Images for the tests, built from Debian packages where they are not there yet; and why an engine cannot be used.
import { execFileSync, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { lacking, root } from './helpers.mts'

/** Why there can be no containers with this engine here; false where there can. */
export const noEngine = (engine: string): string | false =>
  lacking('debootstrap', engine) ||
  (process.getuid?.() === 0 ? false : 'images are built as root') ||
  (spawnSync(engine, ['info']).status === 0 ? false : `${engine} does not answer: start its daemon`)

/** The tag of the PostgreSQL image, which has a shell and coreutils, too. */
export function postgresImage(engine: string): string {
  const there = spawnSync(engine, ['images', '--format', '{{.Repository}}:{{.Tag}}'], { encoding: 'utf8' }).stdout
  const tag = /^(?:localhost\/)?(vykar-e2e\/postgres:\d+)$/m.exec(there)?.[1]
  return tag ?? execFileSync(join(root, 'test/images/build'), ['postgres', engine], { encoding: 'utf8' }).trim()
}
