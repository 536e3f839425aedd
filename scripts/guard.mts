// Whose a repository is, before anything of it is deleted, and what a delete must have left: the guard of every script.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { lastLine } from '#lib/ask.mts'
import { localDir, suiteHost } from '#lib/config.mts'
import { readJson, writeWhole } from '#lib/files.mts'
import { gapsOf } from '#lib/gaps.mts'
import { skipOrFail } from '#lib/prepare.mts'
import { check, look, note, read, rowScope } from '#lib/sh.mts'
import { Mismatch, Refused, Skipped } from '#lib/verdict.mts'
import { explainLines } from '#scripts/findings.mts'
import { parseList, type Snapshot } from '#scripts/printed.mts'

const repositories = (runtime: string) => join(runtime, 'state/repositories.json')

/** What tells one local repository from another: vykar's `config` in it, which init writes with a random id. */
function identity(dir: string): string | undefined {
  const file = join(dir, 'config')
  return statSync(file, { throwIfNoEntry: false })?.isFile()
    ? createHash('sha256').update(readFileSync(file)).digest('hex')
    : undefined
}

/** Writes down that the suite made the repository in this directory. */
export function rememberRepository(runtime: string, dir: string): void {
  const known = readJson<Record<string, string>>(repositories(runtime)) ?? {}
  const id = identity(dir)
  if (!id) return
  mkdirSync(join(runtime, 'state'), { recursive: true })
  writeWhole(repositories(runtime), JSON.stringify({ ...known, [resolve(dir)]: id }, null, 1))
}

/** Whether the repository in this directory is the very one that the suite made there. */
export function isOurRepository(runtime: string, dir: string): boolean {
  const id = identity(dir)
  return id !== undefined && readJson<Record<string, string>>(repositories(runtime))?.[resolve(dir)] === id
}

const absent = /no repository found at|repository not found at/

/**
 * The guard before a delete: a repository that cannot be read, or holds a snapshot of another host, may be somebody's. One that
 * cannot be read is the suite's all the same where its identity is the one that was written down at init.
 * Only then lets `$` a delete through; from then on the repository must be gone without a trace when the row has passed.
 * @param list a file with what `vykar list` printed, stdout and stderr
 * @param objects a file with a line for each object that lies where the repository would go, on a server that is not ours
 * @throws Refused unless the user named it with --wipe-repo
 */
export async function mayDelete(list: string, objects?: string): Promise<void> {
  const s = rowScope()
  const { run, repo } = s
  const { url, files } = run.endpoint(repo)
  const hand = `awk '/^ *No snapshots found|repository not found|no repository found/ {ok = 1} / Host / {ok = at = index($0, "Host")}
  at && /^ *[0-9a-f]{8} / && substr($0, at, 10) !~ /^(${suiteHost} | *$)/ {bad = 1} END {exit bad || !ok}' ${list}${objects ? ` && { ! grep -qE '(repository not|no repository) found' ${list} || ! grep -q '[[:alnum:]]' ${objects}; }` : ''}  # nobody else's`
  await check(hand, () => {
    const refuse = (why: string) => {
      if (!run.common['wipe-repo'].includes(repo))
        throw new Refused(`refused to delete ${url}: ${why}; if it may go, name it with --wipe-repo ${repo}`)
    }
    const base = localDir(run.plan.sample.repository(repo).url)
    // A repository above ours: the sample's URL is itself somebody's.
    if (base && existsSync(join(base, 'config')) && existsSync(join(base, 'snapshots')))
      throw new Refused(`refused: ${base} in the sample is itself a repository; give label ${repo} a URL of its own`)
    const text = read(list)
    const others = files && !run.endpoint(repo).managed && existsSync(files) ? readdirSync(files) : []
    if (!localDir(url)) {
      alien(files, others)
      if (files && others.length && objects) servedThere(files, url, read(objects))
    }
    if (absent.test(text)) {
      // A directory that is no repository and not empty is somebody's too.
      if (others.length && localDir(url)) throw new Refused(`refused: ${files} holds ${others[0]} and is no repository`)
      const stranger =
        objects &&
        read(objects)
          .split('\n')
          .find((line) => /\w/.test(line))
      if (stranger) refuse(`there is no repository, but it holds ${stranger}`)
      const { managed, objects: seen } = run.endpoint(repo)
      if (!seen && !managed && /^s(3|ftp)/.test(url) && !run.common['wipe-repo'].includes(repo))
        throw skipOrFail(
          `rclone is missing: apt-get install -y rclone: what lies at ${url} cannot be told`,
          ['rclone', repo],
          run.common.require,
        )
      return
    }
    let foreign: Snapshot | undefined
    try {
      foreign = parseList(text).find((snapshot) => snapshot.host !== suiteHost)
    } catch {
      // On a server of the run's own there is nobody else's: what is left there is of a row that was kept.
      const ours = run.endpoint(repo).managed || (files && isOurRepository(run.runtime, files))
      if (!ours) refuse(`it cannot be read (${lastLine(text)})`)
    }
    if (foreign) refuse(`snapshot ${foreign.id} is of host ${foreign.host}, not of this suite`)
  })
  s.mayDelete = true
  s.undo.add(`files of ${url}`, nothingLeft, { keep: true, exists: async () => false })
}

/**
 * The row's repositories are on a server that this run has started: there is nobody else's, and they may be deleted.
 * @throws Skipped where it is somebody else's server
 */
export function ownServer(): void {
  const s = rowScope()
  const { run, repo } = s
  if (!run.endpoint(repo).managed && !s.dry)
    throw new Skipped(`${repo}: this runs on servers of its own: --services managed`)
  s.mayDelete = true
}

/**
 * What `delete` said must be that the repository is gone, or was not there. A REST server that answers 400 or 404 is recorded,
 * and its directory emptied where it is known.
 * @param said a file with what `vykar delete` printed, stdout and stderr
 */
export async function deleted(said: string): Promise<void> {
  await check(`grep -qE 'deleted|no repository found|repository not found|HTTP 40[04]' ${said}`, async () => {
    const text = read(said)
    const status = /HTTP (400|404)\b/.exec(text)?.[1]
    if (!status && !absent.test(text) && !/ deleted \(/.test(text))
      throw new Mismatch(`delete failed: ${lastLine(text)}`)
    if (status) await refusedDelete(status)
  })
}

/**
 * A directory that the user names as a REST server's holds what a repository is made of, and nothing else.
 * @throws Refused where it holds something of somebody's
 */
function alien(dir: string | undefined, names: readonly string[]): void {
  const other = names.find((name) => !/^(config|index|index\.gen|keys|snapshots|packs|locks|sessions|\.tmp\S*|lost\+found)$/.test(name)) // biome-ignore format: one line
  if (other) throw new Refused(`refused: ${dir} holds ${other}, which is no part of a repository: name the server's own data directory`) // biome-ignore format: one line
}

/**
 * A directory that the user names as a REST server's is the one that this server keeps its objects in.
 * @param served what the server lists
 * @throws Refused naming an object that lies there and is not served
 */
function servedThere(dir: string, url: string, served: string): void {
  const kept = readdirSync(dir, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name).slice(dir.length).replace(/^\/+/, ''))
  const stranger = kept.find(
    (path) => /^(config$|keys\/|snapshots\/|packs\/)/.test(path) && !served.includes(basename(path)),
  )
  if (stranger)
    throw new Refused(
      `refused: ${dir} holds ${stranger}, which ${url} does not have: it is not that server's directory`,
    )
}

/** A REST server does not delete: that is put on record, and its directory emptied where it is known. */
async function refusedDelete(status: string): Promise<void> {
  const { run, repo } = rowScope()
  const { files, managed } = run.endpoint(repo)
  note(
    `delete was answered with HTTP ${status}; ${files ? `${files} emptied` : 'not emptied: name its data directory with --rest-data-dir'}`,
  )
  if (!files) return
  if (managed) for (const name of readdirSync(files)) await run.remove(join(files, name))
  // The user named it as the server's own.
  else {
    alien(files, readdirSync(files))
    await look`find ${files} -mindepth 1 -delete`
  }
}

/** The repository that init has just made is written down as the suite's; one that was there before the row's config is somebody's. */
export async function made(): Promise<void> {
  const { run, repo, dir, dry } = rowScope()
  const { files } = run.endpoint(repo)
  const config = files && !dry ? statSync(join(files, 'config'), { throwIfNoEntry: false }) : undefined
  // Some file systems have times of whole seconds.
  const from = config ? statSync(join(dir, 'config.yaml')).birthtimeMs - 2000 : 0
  if (config && config.mtimeMs > from) rememberRepository(run.runtime, files!)
}

/** `delete` has left no file, known gaps apart. Nothing can be said of a repository whose files cannot be seen. */
async function nothingLeft(): Promise<void> {
  const { run, repo, report, dir, dry } = rowScope()
  const { files } = run.endpoint(repo)
  if (!files || dry || !existsSync(files)) return
  const said = existsSync(join(dir, 'deleted.out')) ? read('deleted.out') : ''
  const refused = /HTTP (400|404)\b/.exec(said)?.[1]
  if (refused) return refusedDelete(refused)
  // What a user's Ctrl-C has torn off in the middle of a write is nobody's fault, and vykar leaves it.
  if (run.interrupted) await look`find ${files} -name '.tmp*' -type f -delete`
  const found = await look`find ${files} -type f -printf '%P\n'`
  const { unexplained, seen } = explainLines(
    'leftover',
    found.stdout.split('\n').filter(Boolean),
    gapsOf(run.plan.vykar.version),
  )
  report.gaps.push(...seen)
  if (unexplained.length)
    throw new Mismatch(`delete left ${unexplained.length} files in ${files}: ${unexplained.slice(0, 3).join(', ')}`)
  if (localDir(run.endpoint(repo).url)) await look`find ${files} -depth -type d -empty -delete`
}
