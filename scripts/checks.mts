// What must hold of what vykar printed and of what it left. Every check reads files that lines of the script have written,
// and throws; what stands for it in commands.sh is bash where bash can say it.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'
import { lastLine } from '#lib/ask.mts'
import { expand, suiteHost } from '#lib/config.mts'
import { $, check, read, rowScope, scope } from '#lib/sh.mts'
import { quote } from '#lib/transcript.mts'
import { Mismatch } from '#lib/verdict.mts'
import { finding } from '#scripts/findings.mts'
import { checkLine, compactLine, parseBackup, parseList, parseSize } from '#scripts/printed.mts'

/** What every scenario needs on the host. */
export const standardNeeds = ['vykar', 'diff', 'rsync', 'timeout', 'flock', 'setfattr', 'setfacl', 'setcap'] as const

/** A file of the row must hold a match. Throws Mismatch with `complaint` and the last line that is there. */
export async function says(file: string, pattern: RegExp, complaint: string): Promise<void> {
  await check(`grep -qP ${quote(pattern.source)} ${file}`, () => {
    const text = read(file)
    if (!pattern.test(text)) throw new Mismatch(`${complaint}; ${file} ends in: ${lastLine(text) || 'nothing'}`)
  })
}

/** The paths that the source with this label has in the row's config, as `list` shows them; none for a dump. */
function pathsOf(label: string): string[] {
  const { run, dir } = scope()
  const text = existsSync(join(dir, 'config.yaml')) ? expand(read('config.yaml'), run.env, 'config.yaml') : ''
  const { sources = [] } = (parse(text) ?? {}) as { sources?: { label?: string; path?: string; paths?: string[] }[] }
  const mine = sources.find((source) => source.label === label)
  return mine?.paths ?? (mine?.path ? [mine.path] : [])
}

/** What `list` has shown of each snapshot of a row, by the row's directory and the id. */
const rows = new Map<string, string>()

/** The moment of a time as `list` prints it: to the minute, in the time zone that commands run in. */
const minute = (date: string) => new Date(`${date.replace(' ', 'T')}Z`).getTime()
/** Whether such a time lies in the row's. */
const justNow = (date: string) =>
  minute(date) > statSync(join(scope().dir, 'config.yaml')).birthtimeMs - 120_000 && minute(date) < Date.now() + 120_000

/**
 * The backup's own words and `list` must agree: one new snapshot, under this label, of this host, of now, of this source, with these
 * figures; no file had an error.
 * @param backup, list files with what the two printed
 */
export async function listed(label: string, backup = 'backup.out', list = 'list.out'): Promise<void> {
  const hand = `grep -q "^ *$(sed -n 's/^Snapshot created: //p' ${backup}) " ${list}  # labelled ${label}`
  await check(hand, () => {
    const created = parseBackup(read(backup))
    if (created.length !== 1)
      throw new Mismatch(`backup exited 0 but printed ${created.length} created snapshots instead of one`)
    const { id, errors, files, original, compressed, deduplicated, after, sources } = created[0]!
    if (after) throw new Mismatch(`backup printed something after its result: ${after}`)
    if (errors) throw new Mismatch(`backup exited 0 but counted ${errors} errors`)
    // Each chunk has a head of its own, and the tree's own metadata are stored too.
    const heads = 2 ** 20 + original / 100 + 400 * files
    if (compressed > original + heads || deduplicated > compressed + heads)
      throw new Mismatch(`backup compressed ${original} bytes to ${compressed}, and stored ${deduplicated}`)
    const found = parseList(read(list))
    const mine = found.find((snapshot) => snapshot.id === id)
    if (!mine)
      throw new Mismatch(`backup said ${id}, but list shows ${found.map((s) => s.id).join(', ') || 'no snapshot'}`)
    if (mine.label !== label) throw new Mismatch(`list shows ${id} under the label ${mine.label} instead of ${label}`)
    if (mine.host !== suiteHost) throw new Mismatch(`list shows ${id} of host ${mine.host} instead of ${suiteHost}`)
    if (!justNow(mine.date)) throw new Mismatch(`list shows ${id} of ${mine.date}, but it was made just now`)
    const paths = pathsOf(label)
    if (paths.length && paths.join() !== mine.sources.join())
      throw new Mismatch(`list shows the source ${mine.sources.join(', ')} instead of ${paths.join(', ')}`)
    if (paths.length && paths.join(', ') !== sources)
      throw new Mismatch(`backup said that its source is ${sources} instead of ${paths.join(', ')}`)
    // What it showed of another snapshot before is what it shows now.
    for (const one of found) {
      const [key, now] = [join(scope().dir, one.id), JSON.stringify(one)]
      const before = rows.get(key) ?? now
      if (before !== now) throw new Mismatch(`list shows ${now} where it showed ${before}`)
      rows.set(key, now)
    }
    if (mine.files !== files) throw new Mismatch(`list shows ${mine.files} files of ${id}, backup said ${files}`)
    for (const [name, shown, said] of [
      ['size', mine.size, created[0]!.original],
      ['added', mine.added, created[0]!.deduplicated],
    ] as const)
      if (!about(shown, said)) throw new Mismatch(`list shows ${name} ${shown} of ${id}, backup said ${said} bytes`)
  })
}

/** Whether a size as vykar prints it stands for so many bytes, but for `slack`: two decimals of its unit. */
export function about(text: string, bytes: number, slack = 0): boolean {
  const unit = parseSize(`1 ${text.trim().split(' ')[1]}`)
  return Math.abs(parseSize(text) - bytes) <= unit * 0.011 + slack
}

/** What `restore` says that it has done. */
const restoredLine =
  /^Restored: ([\d,]+) files, ([\d,]+) dirs, ([\d,]+) symlinks(?:, ([\d,]+) hard links)? \(([^)]+)\)$/m

/**
 * The figures that vykar prints of a tree are those that find(1) counts in it: files and bytes of `backup` and `list`, files,
 * directories, symlinks, hard links and bytes of `restore`.
 * @param tree what was backed up
 * @param backup, list, restored files with what the three printed
 */
export async function numbers(
  tree: string | { raw: string },
  backup: string,
  list: string,
  restored: string,
): Promise<void> {
  const count = restored.replace(/out$/, 'count')
  // A hard link's further names are files to `backup` and links to `restore`; empty files are none to `backup` (0.19.1).
  await $({
    limit: '30m',
  })`find ${tree} -mindepth 1 -printf '%y %D:%i %s\n' | awk '{k[$1]++} $1 == "f" {b += $3; if ($3) n++; if (s[$2]++) h++; else o += $3} END {printf "files %d\nheld %d\ndirs %d\nsymlinks %d\nlinks %d\nbytes %.0f\nonce %.0f\n", k["f"], n, k["d"], k["l"], h, b, o}' > ${count}`
  const of = `$(awk '$1 == "held" {print $2}' ${count})`
  await check(`grep -qE "Files: ${of}," ${backup} && grep -q '^Restored: ' ${restored}`, () => {
    const counted = new Map(read(count).split('\n').map((line) => line.split(' ') as [string, string])) // biome-ignore format: one line
    const n = (name: string) => Number(counted.get(name))
    const [created] = parseBackup(read(backup))
    const row = parseList(read(list)).find(({ id }) => id === created?.id)
    const [, files, dirs, symlinks, links = '0', size = ''] = restoredLine.exec(read(restored)) ?? []
    if (files === undefined) throw new Mismatch(`restore printed no result; ${lastLine(read(restored))}`)
    const last = lastLine(read(restored))
    if (!restoredLine.test(last)) throw new Mismatch(`restore printed something after its result: ${last}`)
    const plain = (text: string | undefined) => Number(text?.replaceAll(',', ''))
    for (const [what, said, is] of [
      ['backup: files', created?.files, n('held')],
      ['list: files', row?.files, n('held')],
      ['restore: files', plain(files), n('files') - n('links')],
      ['restore: dirs', plain(dirs), n('dirs')],
      ['restore: symlinks', plain(symlinks), n('symlinks')],
      ['restore: hard links', plain(links), n('links')],
    ] as const)
      if (said !== is) throw new Mismatch(`${what} ${said}, but find counts ${is}`)
    for (const [what, said, is] of [
      ['list: size', row?.size ?? '', n('bytes')],
      ['restore: size', size, n('once')],
    ] as const)
      if (!about(said, is)) throw new Mismatch(`${what} ${said}, but find counts ${is} bytes`)
  })
}

/** `list` must show so many snapshots; `Failure` is Blocked where that only says that the case could not be brought about. */
export async function shows(count: number, list: string, when: string, Failure = Mismatch): Promise<void> {
  await check(`test "$(grep -cE '^ *[0-9a-f]{8} ' ${list} || true)" = ${count}`, () => {
    const found = parseList(read(list)).length
    if (found < count && Failure !== Mismatch)
      throw new Mismatch(`list shows ${found} snapshots instead of ${count}: one is lost`)
    if (found !== count) throw new Failure(`${when}, but list shows ${found} snapshots instead of ${count}`)
  })
}

/** What `check` is held against: snapshots that there are, all chunks read, and what an earlier check counted. */
export interface Sound {
  snapshots?: number
  all?: boolean
  asIn?: string
  /** Files with what `numbers` counted in the tree of each snapshot; nothing is asked where one was not counted. */
  counts?: readonly string[]
}

/**
 * `check` looked at something and found no error; with `all` it read every chunk. What it counted is what there is: snapshots, packs
 * where they can be seen, and as many chunks and items as an earlier check of the same repository.
 */
export async function sound(file: string, { snapshots: had, all, asIn, counts }: Sound = {}): Promise<void> {
  await says(file, /, 0 errors$/m, 'check exited 0 but counted errors')
  await check(`! grep -iE '^ *(error|corrupt|missing)' ${file} || exit 1`, () => {
    const text = read(file)
    const [, snapshots, items, packs, chunks, verified, errors] = checkLine.exec(text) ?? []
    if (snapshots === undefined) throw new Mismatch(`check printed no result; ${lastLine(text)}`)
    if (errors !== '0') throw new Mismatch(`check exited 0 but counted ${errors} errors`)
    const complaint = /^\s*(?:error|corrupt|missing)\b.*$/im.exec(text)?.[0]
    if (complaint) throw new Mismatch(`check exited 0 but complained: ${complaint}`)
    // What it says of its progress, on stderr, may come late.
    const progress = /^\s*((existence|verify-data): |\[\d+\/\d+\]|Verifying )|^\d{4}-\S+\s+(INFO|WARN)/
    const more = text.split(checkLine).at(-1)!.split('\n').find((line) => line.trim() && !progress.test(line)) // biome-ignore format: one line
    if (more) throw new Mismatch(`check went on after its result: ${more}`)
    if ([snapshots, items, packs, chunks].includes('0'))
      throw new Mismatch(`check looked at ${snapshots} snapshots, ${items} items, ${packs} packs and ${chunks} chunks`)
    if (had !== undefined && Number(snapshots) !== had)
      throw new Mismatch(`check looked at ${snapshots} snapshots, but there are ${had}`)
    const of = (file: string, name: string) => Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(read(file))?.[1])
    const counted = counts?.every((file) => existsSync(join(scope().dir, file))) ? counts : []
    const inAll = counted.flatMap((file) => ['files', 'dirs', 'symlinks'].map((name) => of(file, name)))
    const sum = inAll.reduce((whole, n) => whole + n, 0)
    if (counted.length && Number(items) !== sum)
      throw new Mismatch(`check looked at ${items} items, but find counts ${sum}`)
    const there = packNames()?.size
    if (had !== undefined && there !== undefined && Number(packs) !== there)
      throw new Mismatch(`check looked at ${packs} packs, but the repository has ${there}`)
    // Chunks that several packs hold are verified once or more, never less than once each.
    if (all && Number(verified) < Number(chunks))
      throw new Mismatch(`check --verify-data verified ${verified} of ${chunks} chunks`)
    if (!all && verified !== '0')
      throw new Mismatch(`check without --verify-data says that it verified ${verified} chunks`)
    const before = asIn ? checkLine.exec(read(asIn)) : undefined
    if (before && (before[2] !== items || before[4] !== chunks))
      throw new Mismatch(`check counted ${before[2]} items and ${before[4]} chunks, then ${items} and ${chunks}`)
  })
}

/** Names of the packs in the row's repository; undefined where its files cannot be seen. */
function packNames(): Set<string> | undefined {
  const { run, repo } = rowScope()
  const { files } = run.endpoint(repo)
  if (!files || !existsSync(files)) return undefined
  const packs = join(files, 'packs')
  if (!existsSync(packs)) return new Set()
  const paths = readdirSync(packs, { withFileTypes: true, recursive: true }).filter((entry) => entry.isFile())
  // minio keeps an object as a directory of that name.
  return new Set(
    paths.flatMap(({ parentPath, name }) => /[0-9a-f]{64}/.exec(join(parentPath, name).slice(packs.length)) ?? []),
  )
}

/** After the last snapshot went and `compact`, no pack is left in a repository whose files can be seen. */
export async function emptied(): Promise<void> {
  const { seen } = rowScope().run.endpoint(rowScope().repo)
  if (!seen) return
  await check(`test -z "$(find "$${seen}"/packs -type f -size +0 ! -path '*__XLDIR__*' 2> /dev/null)"`, () => {
    const size = packNames()?.size
    if (size) throw new Mismatch(`${size} packs are left after the last snapshot was deleted and compact`)
  })
}

/** Bytes in the row's pack files, a hard link once; 0 where they cannot be seen. minio's markers do not count. */
export function packBytes(): number {
  const { run, repo, dry } = rowScope()
  const packs = join(run.endpoint(repo).files ?? '/nowhere', 'packs')
  if (dry || !existsSync(packs)) return 0
  const seen = new Map<number, number>()
  for (const entry of readdirSync(packs, { withFileTypes: true, recursive: true })) {
    // What is half written is no pack, and may be gone the next moment.
    const path = join(entry.parentPath, entry.name)
    if (!entry.isFile() || /__XLDIR__|\/\.tmp/.test(path.slice(packs.length))) continue
    const stat = statSync(path, { throwIfNoEntry: false })
    if (stat) seen.set(stat.ino, stat.size)
  }
  return [...seen.values()].reduce((sum, size) => sum + size, 0)
}

/**
 * The first backup of a repository has stored what it says, where its packs can be seen.
 * @param own whether the tree is one of the suite's, a good part of which can be compressed
 */
export async function storedFirst(backup: string, own: boolean): Promise<void> {
  await check(`# ${backup}: the packs hold what it says`, () => {
    const { original, compressed, deduplicated } = parseBackup(read(backup))[0]!
    const held = packBytes()
    if (held && Math.abs(held - deduplicated) > 2 ** 21 + original / 100)
      throw new Mismatch(`the first backup said that it stored ${deduplicated} bytes, but the packs hold ${held}`)
    // The stand-in compresses nothing.
    if (own && !rowScope().run.plan.vykar.standin && compressed > original * 0.95)
      throw new Mismatch(`of ${original} bytes ${compressed} are left: nothing was compressed`)
  })
}

/**
 * What `info` says that the repository stores is what its packs hold, where they can be seen and hold nothing else; as many chunks as
 * `check` has counted; its size that of what `list` shows; its times of now.
 * @param checked, list files with what `check` and `list` printed
 */
export async function stored(info: string, checked: string, list: string): Promise<void> {
  const chunks = `s/.*existence-checked (\\([0-9]*\\) chunks).*/\\1/p`
  await check(
    `grep -q 'Unique stored' ${info} && grep -q "Unique chunks  *$(sed -n '${chunks}' ${checked}) *$" ${info}`,
    () => {
      const [, unique] = /^ *Unique chunks +(\d+) *$/m.exec(read(info)) ?? []
      const counted = checkLine.exec(read(checked))?.[4]
      if (unique !== counted) throw new Mismatch(`info counts ${unique ?? 'no'} unique chunks, check ${counted}`)
      const [, said] = /^ *Unique stored +(\S+ [KMGT]?i?B) *$/m.exec(read(info)) ?? []
      if (!said) throw new Mismatch(`info does not say what is stored; it ends in: ${lastLine(read(info))}`)
      const held = packBytes()
      if (held && !about(said, held, 2 ** 20 + held / 50))
        throw new Mismatch(`info says that ${said} are stored, but the packs hold ${held} bytes`)
      const sizes = parseList(read(list)).map(({ size }) => parseSize(size))
      const [, raw] = /^ *Raw size +(\S+ [KMGT]?i?B) *$/m.exec(read(info)) ?? []
      const sum = sizes.reduce((whole, size) => whole + size, 0)
      if (!raw || !about(raw, sum, (sizes.length * sum) / 2 ** 10))
        throw new Mismatch(`info says that ${raw ?? 'nothing'} was backed up, list ${sum} bytes`)
      for (const name of ['Created', 'Last snapshot']) {
        const [, said = ''] = new RegExp(`^ *${name} +(\\S+ \\S+) *$`, 'm').exec(read(info)) ?? []
        if (!justNow(said)) throw new Mismatch(`info says ${name} ${said || 'nothing'}, but it was just now`)
      }
    },
  )
}

/** After the only snapshot went, `compact` must have deleted packs, and what it freed must be free. */
export async function freed(file: string, before: number): Promise<void> {
  await check(`grep -qE ', [1-9][0-9]* empty packs deleted, ' ${file}`, () => {
    const text = read(file)
    const [, , deleted, said] = compactLine.exec(text) ?? []
    if (said === undefined) throw new Mismatch(`compact printed no result; ${lastLine(text)}`)
    if (!compactLine.test(lastLine(text)))
      throw new Mismatch(`compact printed something after its result: ${lastLine(text)}`)
    if (deleted === '0') throw new Mismatch(`compact deleted no pack after the only snapshot went; ${lastLine(text)}`)
    const after = packBytes()
    // The headers of packs are not counted as freed, nor what minio keeps beside an object.
    if (after > before / 2 || (before && !about(said, before - after, 4096 + before / 100)))
      throw new Mismatch(`compact said it freed ${said}, but the packs went from ${before} to ${after} bytes`)
  })
}

/** What a repository whose files can be seen holds while somebody works in it: locks, sessions, and files that are being written. */
function heldIn(files: string): string[] {
  if (!existsSync(files)) return []
  const there = readdirSync(files, { withFileTypes: true, recursive: true }).filter((entry) => !entry.isDirectory())
  return there
    .map(({ parentPath, name }) => join(parentPath, name).slice(files.length + 1))
    .filter(
      (path) => (/^(locks|sessions)\//.test(path) || /(^|\/)\.tmp[^/]*$/.test(path)) && !path.includes('__XLDIR__'),
    )
    .sort()
}
/** The same by hand. */
const heldBy = (seen: string) =>
  `find "$${seen}" -type f \\( -path '*/locks/*' -o -path '*/sessions/*' -o -name '.tmp*' \\) ! -path '*__XLDIR__*' 2> /dev/null || true`

/**
 * Nothing is held in the repository: no lock, and, where its files can be seen, no lock, session or half-written file.
 * @param locks a file with what `vykar break-lock` printed
 */
export async function nothingHeld(locks: string): Promise<void> {
  await says(locks, /^No locks found\.$/m, 'a lock was left behind')
  await released('the last command')
}

/** A command that has ended holds nothing: no lock, session or half-written file in a repository whose files can be seen. */
export async function released(what: string): Promise<void> {
  const { run, repo } = rowScope()
  const { files, seen } = run.endpoint(repo)
  if (!files || !seen) return
  await check(`test -z "$(${heldBy(seen)})"  # ${what} has ended and holds nothing`, () => {
    const held = heldIn(files)
    if (held.length) throw new Mismatch(`${what} has ended and left ${held.join(', ')}`)
  })
}

/** What a KILL in the middle of a write has left is a finding, and is taken away: vykar never does, and warns of it from then on. */
export async function torn(): Promise<void> {
  const { run, repo, mayDelete } = rowScope()
  const { seen } = run.endpoint(repo)
  if (!seen || !mayDelete) return
  await $`find ${{ raw: `"$${seen}"` }} -ignore_readdir_race -name '.tmp*' ! -path '*__XLDIR__*' -print -delete > torn.list`
  await check('# a file that was being written: finding killed-write-left', () => {
    const left = read('torn.list').split('\n')[0]
    if (left) finding('killed-write-left', `KILL left ${left}, which no maintenance removes`)
  })
}

/** A file of the row in lines, none empty. */
export const linesOf = (name: string): string[] =>
  readFileSync(join(scope().dir, name), 'utf8').split('\n').filter(Boolean)
