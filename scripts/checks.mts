// What must hold of what vykar printed and of what it left. Every check reads files that lines of the script have written,
// and throws; what stands for it in commands.sh is bash where bash can say it.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { lastLine } from '#lib/ask.mts'
import { localDir, suiteHost } from '#lib/config.mts'
import { explainLines, gapsOf } from '#lib/gaps.mts'
import { isOurRepository, rememberRepository } from '#lib/ours.mts'
import { check, look, note, read, rowScope, scope } from '#lib/sh.mts'
import { quote } from '#lib/transcript.mts'
import { Mismatch, Refused, Skipped } from '#lib/verdict.mts'
import { checkLine, compactLine, parseBackup, parseList, type Snapshot } from '#lib/vykar.mts'

/** What every scenario needs on the host. */
export const standardNeeds = ['vykar', 'diff', 'rsync', 'timeout', 'flock', 'setfattr', 'setfacl', 'setcap'] as const

/** A file of the row must hold a match. Throws Mismatch with `complaint` and the last line that is there. */
export async function says(file: string, pattern: RegExp, complaint: string): Promise<void> {
  await check(`grep -qP ${quote(pattern.source)} ${file}`, () => {
    const text = read(file)
    if (!pattern.test(text)) throw new Mismatch(`${complaint}; ${file} ends in: ${lastLine(text) || 'nothing'}`)
  })
}

const absent = /no repository found at|repository not found at/

/**
 * The guard before a delete: a repository that cannot be read, or holds a snapshot of another host, may be somebody's. One that
 * cannot be read is the suite's all the same where its identity is the one that was written down at init.
 * Only then lets `$` a delete through; from then on the repository must be gone without a trace when the row has passed.
 * @param list a file with what `vykar list` printed, stdout and stderr
 * @throws Refused unless the user named it with --wipe-repo
 */
export async function mayDelete(list: string): Promise<void> {
  const s = rowScope()
  const { run, repo } = s
  const { url, files } = run.endpoint(repo)
  const hand = `awk '/^ *No snapshots found|repository not found|no repository found/ {ok = 1} / Host / {ok = at = index($0, "Host")}
  at && /^ *[0-9a-f]{8} / && substr($0, at, 10) !~ /^(${suiteHost} | *$)/ {bad = 1} END {exit bad || !ok}' ${list}  # nobody else's`
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
    if (absent.test(text)) {
      // A directory that is no repository and not empty is somebody's too.
      const others = files && !run.endpoint(repo).managed && existsSync(files) ? readdirSync(files) : []
      if (others.length && localDir(url)) throw new Refused(`refused: ${files} holds ${others[0]} and is no repository`)
      return
    }
    let foreign: Snapshot | undefined
    try {
      foreign = parseList(text).find((snapshot) => snapshot.host !== suiteHost)
    } catch {
      if (!(files && isOurRepository(run.runtime, files))) refuse(`it cannot be read (${lastLine(text)})`)
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

/** A REST server does not delete: that is put on record, and its directory emptied where it is known. */
async function refusedDelete(status: string): Promise<void> {
  const { run, repo } = rowScope()
  const { files, managed } = run.endpoint(repo)
  note(
    `delete was answered with HTTP ${status}; ${files ? `${files} emptied` : 'not emptied: name its data directory with --rest-data-dir'}`,
  )
  if (!files) return
  if (managed) for (const name of readdirSync(files)) await run.remove(join(files, name))
  // The user named it as one that may be emptied.
  else await look`find ${files} -mindepth 1 -delete`
}

/** The repository that init has just made is written down as the suite's. */
export async function made(): Promise<void> {
  const { run, repo, dry } = rowScope()
  const { files } = run.endpoint(repo)
  if (files && !dry) rememberRepository(run.runtime, files)
}

/** `delete` has left no file, known gaps apart. Nothing can be said of a repository whose files cannot be seen. */
async function nothingLeft(): Promise<void> {
  const { run, repo, report, dir, dry } = rowScope()
  const { files } = run.endpoint(repo)
  if (!files || dry || !existsSync(files)) return
  const said = existsSync(join(dir, 'deleted.out')) ? read('deleted.out') : ''
  const refused = /HTTP (400|404)\b/.exec(said)?.[1]
  if (refused) return refusedDelete(refused)
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

/**
 * The backup's own words and `list` must agree: one new snapshot, under this label, of this host.
 * @param backup, list files with what the two printed
 */
export async function listed(label: string, backup = 'backup.out', list = 'list.out'): Promise<void> {
  const hand = `grep -q "^ *$(sed -n 's/^Snapshot created: //p' ${backup}) " ${list}  # labelled ${label}`
  await check(hand, () => {
    const created = parseBackup(read(backup))
    if (created.length !== 1)
      throw new Mismatch(`backup exited 0 but printed ${created.length} created snapshots instead of one`)
    const { id } = created[0]!
    const found = parseList(read(list))
    const mine = found.find((snapshot) => snapshot.id === id)
    if (!mine)
      throw new Mismatch(`backup said ${id}, but list shows ${found.map((s) => s.id).join(', ') || 'no snapshot'}`)
    if (mine.label !== label) throw new Mismatch(`list shows ${id} under the label ${mine.label} instead of ${label}`)
    if (mine.host !== suiteHost) throw new Mismatch(`list shows ${id} of host ${mine.host} instead of ${suiteHost}`)
  })
}

/** `list` must show so many snapshots; `Failure` is Blocked where that only says that the case could not be brought about. */
export async function shows(count: number, list: string, when: string, Failure = Mismatch): Promise<void> {
  await check(`test "$(grep -cE '^ *[0-9a-f]{8} ' ${list} || true)" = ${count}`, () => {
    const found = parseList(read(list)).length
    if (found !== count) throw new Failure(`${when}, but list shows ${found} snapshots instead of ${count}`)
  })
}

/** `check` looked at something and found no error; with `all` it read every chunk. */
export async function sound(file: string, all = false): Promise<void> {
  await says(file, /, 0 errors$/m, 'check exited 0 but counted errors')
  await check(`! grep -iE '^ *(error|corrupt|missing)' ${file} || exit 1`, () => {
    const text = read(file)
    const [, snapshots, , packs, chunks, verified] = checkLine.exec(text) ?? []
    if (snapshots === undefined) throw new Mismatch(`check printed no result; ${lastLine(text)}`)
    if (snapshots === '0' || packs === '0')
      throw new Mismatch(`check looked at ${snapshots} snapshots and ${packs} packs`)
    // Chunks that several packs hold are verified once or more, never less than once each.
    if (all && Number(verified) < Number(chunks))
      throw new Mismatch(`check --verify-data verified ${verified} of ${chunks} chunks`)
    const complaint = /^\s*(?:error|corrupt|missing)\b.*$/im.exec(text)?.[0]
    if (complaint) throw new Mismatch(`check exited 0 but complained: ${complaint}`)
  })
}

/** Bytes in the row's pack files, a hard link once; 0 where they cannot be seen. minio's markers do not count. */
export function packBytes(): number {
  const { run, repo, dry } = rowScope()
  const packs = join(run.endpoint(repo).files ?? '/nowhere', 'packs')
  if (dry || !existsSync(packs)) return 0
  const seen = new Map<number, number>()
  for (const entry of readdirSync(packs, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile() || entry.parentPath.includes('__XLDIR__')) continue
    const { ino, size } = statSync(join(entry.parentPath, entry.name))
    seen.set(ino, size)
  }
  return [...seen.values()].reduce((sum, size) => sum + size, 0)
}

/** After the only snapshot went, `compact` must have deleted packs, and what it freed must be free. */
export async function freed(file: string, before: number): Promise<void> {
  await check(`grep -qE ', [1-9][0-9]* empty packs deleted, ' ${file}`, () => {
    const text = read(file)
    const [, , deleted, said] = compactLine.exec(text) ?? []
    if (said === undefined) throw new Mismatch(`compact printed no result; ${lastLine(text)}`)
    if (deleted === '0') throw new Mismatch(`compact deleted no pack after the only snapshot went; ${lastLine(text)}`)
    const after = packBytes()
    if (after > before / 2)
      throw new Mismatch(`compact said it freed ${said}, but the packs went from ${before} to ${after} bytes`)
  })
}

/**
 * Nothing is held in the repository: no lock, and, where its files can be seen, no lock or session file.
 * @param locks a file with what `vykar break-lock` printed
 */
export async function nothingHeld(locks: string): Promise<void> {
  const { run, repo } = rowScope()
  await says(locks, /^No locks found\.$/m, 'a lock was left behind')
  const { files, seen } = run.endpoint(repo)
  if (!files) return
  const held = `find "$${seen}"/locks "$${seen}"/sessions -type f ! -path '*__XLDIR__*' 2> /dev/null || true`
  await check(`test -z "$(${held})"  # no lock, no session`, () => {
    const held = ['locks', 'sessions'].flatMap((kind) =>
      existsSync(join(files, kind))
        ? readdirSync(join(files, kind))
            .filter((name) => !name.includes('__XLDIR__'))
            .map((name) => `${kind}/${name}`)
        : [],
    )
    if (held.length) throw new Mismatch(`left behind in the repository: ${held.join(', ')}`)
  })
}

/** A file of the row in lines, none empty. */
export const linesOf = (name: string): string[] =>
  readFileSync(join(scope().dir, name), 'utf8').split('\n').filter(Boolean)
