// A scenario's own repository: made fresh behind a guard, and gone without a trace at the end.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { localDir, suiteHost } from './config.mts'
import { explainLines, gapsOf } from './gaps.mts'
import { which } from './host.mts'
import { rowScope } from './row.mts'
import { kindOf } from './services/start.mts'
import { $, DryEnd } from './sh.mts'
import { Mismatch, Refused } from './verdict.mts'
import { parseList, type Snapshot } from './vykar.mts'

const absent = /no repository found at|repository not found at/

/**
 * The snapshots of a repository.
 * @param repo a label of the config
 * @returns undefined when there is no repository
 */
export async function snapshots(config: string, repo: string): Promise<Snapshot[] | undefined> {
  const list = await $({ limit: '10m', expect: [0, 1] })`vykar --config ${config} list -R ${repo}`
  if (list.code === 1 && absent.test(list.stderr)) return undefined
  if (list.code !== 0) throw new Mismatch(`list failed: ${list.stderr.trim().split('\n').at(-1)}`)
  return parseList(list.stdout)
}

/**
 * The guard before a delete: a repository that cannot be read, or holds a snapshot of another host, may be somebody's.
 * @throws Refused unless the user named it with --wipe-repo
 */
async function guard(config: string, repo: string): Promise<void> {
  const { run, row, dry } = rowScope()
  const wipe = run.common['wipe-repo'].includes(repo)
  const refuse = (why: string) => {
    if (!wipe)
      throw new Refused(
        `refused to delete ${row.repository.url}: ${why}; if it may go, name it with --wipe-repo ${repo}`,
      )
  }
  const base = localDir(run.plan.sample.repository(repo).url)
  // A repository above ours: the sample's URL is itself somebody's.
  if (!dry && base && existsSync(join(base, 'config')) && existsSync(join(base, 'snapshots')))
    throw new Refused(`refused: ${base} in the sample is itself a repository; give label ${repo} a URL of its own`)
  let found: Snapshot[] | undefined
  try {
    found = await snapshots(config, repo)
  } catch (error) {
    if (error instanceof DryEnd) return
    if (error instanceof Mismatch) return refuse(`it cannot be read (${error.message})`)
    throw error
  }
  const foreign = found?.find((snapshot) => snapshot.host !== suiteHost)
  if (foreign) refuse(`snapshot ${foreign.id} is of host ${foreign.host}, not of this suite`)
}

/** `delete`: a missing repository is not a failure; a REST server that answers 400 or 404 is recorded and emptied. */
async function deleteRepository(config: string, repo: string): Promise<void> {
  const { run, row, dry } = rowScope()
  const gone = await $({
    limit: '10m',
    expect: [0, 1],
  })`vykar --config ${config} delete -R ${repo} --yes-delete-this-repo`
  const status = kindOf(row.repository.url) === 'rest' && /HTTP (400|404)\b/.exec(gone.stderr)?.[1]
  if (gone.code === 1 && status) {
    const mine = row.files ? `${row.files} emptied` : 'not emptied: name its data directory with --rest-data-dir'
    row.report.notes.push(`delete was answered with HTTP ${status}; ${mine}`)
    if (row.files) await $`find ${row.files} -mindepth 1 -delete`
  } else if (gone.code === 1) gone.complained(absent)
  const remote = run.services.get(repo)?.rclone
  // 3 is rclone's "directory not found".
  if (!dry && remote && which('rclone')) await $({ limit: '10m', expect: [0, 3] })`rclone delete --rmdirs ${remote}`
}

/**
 * Guard, `delete`, `init`. On PASS the repository goes again, on failure it stays for inspection.
 * @throws Refused when the repository may be somebody's
 */
export async function freshRepository(config: string, repo: string): Promise<void> {
  const { run, row } = rowScope()
  await guard(config, repo)
  await deleteRepository(config, repo)
  row.cleanup.add(
    `repository ${row.repository.url}`,
    async () => {
      if (run.keep(`repository ${row.repository.url}, config ${row.config}`)) return
      await deleteRepository(config, repo)
      if (row.files && existsSync(row.files)) await nothingLeft(row.files)
      // The empty directories of a local repository go as well.
      if (localDir(row.repository.url) && row.files) await $`rm -rf ${row.files}/`
    },
    true,
  )
  // SFTP is known to hang: its init is bounded closely.
  const limit = repo === 'sftp' ? '120s' : '10m'
  await $({ limit })`vykar --config ${config} init -R ${repo}`
}

/** `delete` must leave no file, known gaps apart. Throws Mismatch naming them. */
async function nothingLeft(files: string): Promise<void> {
  const { run, row } = rowScope()
  const found = await $({ unlisted: true })`find ${files} -type f -printf '%P\n'`
  const paths = found.stdout.split('\n').filter(Boolean)
  const { unexplained, seen } = explainLines('leftover', paths, gapsOf(run.plan.vykar.version))
  row.report.gaps.push(...seen)
  if (unexplained.length)
    throw new Mismatch(`delete left ${unexplained.length} files in ${files}: ${unexplained.slice(0, 3).join(', ')}`)
}

/** Nothing held in the repository: no lock, and, where its files can be seen, no lock or session file. */
export async function nothingHeld(config: string, repo: string): Promise<void> {
  const { row, dry } = rowScope()
  if (!dry && row.files && existsSync(row.files)) {
    const held = await $({
      unlisted: true,
    })`find ${row.files} -type f \( -path '*/locks/*' -o -path '*/sessions/*' \) -printf '%P\n'`
    const names = held.stdout.trim().split('\n').filter(Boolean)
    if (names.length) throw new Mismatch(`left behind in the repository: ${names.join(', ')}`)
  }
  const locks = await $({ limit: '120s', out: 'locks.out' })`vykar --config ${config} break-lock -R ${repo}`
  locks.must(/^No locks found\.$/m, 'a lock was left behind')
}
