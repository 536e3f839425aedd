// Same tree: content by diff, metadata by rsync in both directions, allocated blocks by stat, inode flags by lsattr, known
// gaps set apart.
import { existsSync, lstatSync, readFileSync, type Stats } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import type { Attribute } from './environment.mts'
import { type Difference, explain, type Gap, gapsOf } from './gaps.mts'
import type { GapSeen } from './report.mts'
import { check, execute, look, rowScope } from './sh.mts'
import { quote } from './transcript.mts'
import { Mismatch } from './verdict.mts'

/** Holes that come back a little larger are the file system's business: 64 KiB, or a tenth. */
const blockSlack = (bytes: number) => Math.max(64 * 1024, bytes / 10)

/** The words of the rsync that lists differing metadata: only what the file system at hand can hold. */
function rsyncWords(lacking: readonly Attribute[]): string[] {
  const has = (name: Attribute) => !lacking.includes(name)
  const letters = `-na${has('hard links') ? 'H' : ''}${has('ACLs') ? 'A' : ''}${has('xattrs') ? 'X' : ''}i`
  const owner = has('owner') ? [] : ['--no-owner', '--no-group']
  return ['rsync', letters, `--modify-window=${has('nanoseconds') ? -1 : 1}`, ...owner, '--delete']
}

/** Prints the entries that have inode flags other than the file system's own (extents, index, inline data), with lsattr(1). */
const flagged = (tree: string) =>
  `(cd ${tree} && find . \\( -type f -o -type d \\) -print0 | xargs -0 -r lsattr -d 2> /dev/null | grep -P '^(?=[-a-zA-Z]{16,} )(?![-eIN]+ )' || true)`
/** Prints allocated blocks and path of files with holes, each ended by NUL. */
const holes = `find . -type f -size +0 -printf '%S %b %P\\0' | { grep -zE '^(0|0[.][0-9]+|[0-9.]+e-[0-9]+) ' || true; } | sed -z 's/^[^ ]* //'`

/**
 * The lines that list how two trees differ, into the files NAME.diff, NAME.there, …; the first exits 1 where they do.
 * @param a, b the trees, quoted for bash
 */
export const listings = (a: string, b: string, name: string, lacking: readonly Attribute[]): string[] => {
  const rsync = rsyncWords(lacking).join(' ')
  return [
    `diff -qr --no-dereference ${a} ${b} > ${name}.diff`,
    // Both directions: one alone misses files that were wrongly hardlinked together.
    `${rsync} ${a}/ ${b}/ > ${name}.there`,
    `${rsync} ${b}/ ${a}/ > ${name}.back`,
    `${flagged(a)} > ${name}.flags`,
    `${flagged(b)} > ${name}.flags-restored`,
    `(cd ${a} && ${holes}) > ${name}.holes`,
  ]
}

const text = (file: string) => (existsSync(file) ? readFileSync(file, 'latin1') : '')
const utf8 = (bytes: string) => Buffer.from(bytes, 'latin1').toString('utf8')
const items = (listing: string) => listing.split('\0').filter(Boolean)

/**
 * The differences in what `diff -qr` printed, where a name may hold a newline: what a gap excuses is looked for as the exact text
 * that diff prints for that path, the rest is read line by line.
 * @param excused paths by the gap that may show for them
 */
export function parseDiff(printed: string, source: string, restored: string, excused: readonly string[]): Difference[] {
  const found: Difference[] = []
  let rest = `\n${printed}`
  for (const path of excused) {
    const at = dirname(path) === '.' ? source : `${source}/${dirname(path)}`
    const line = `\nOnly in ${at}: ${basename(path)}\n`
    if (!rest.includes(line)) continue
    rest = rest.replace(line, '\n')
    found.push({ probe: 'diff', line: `Only in SOURCE: ${path}`, path })
  }
  for (const raw of rest.split('\n').filter(Boolean)) {
    const line = raw.replaceAll(restored, 'RESTORED').replaceAll(source, 'SOURCE')
    const only = /^Only in (SOURCE|RESTORED)(?:\/(.*?))?: (.*)$/.exec(line)
    const pair = /^(?:Files?|Symbolic links) SOURCE\/(.*?) (?:and RESTORED|is a )/.exec(line)
    found.push({ probe: 'diff', line, path: only ? join(only[2] ?? '', only[3]!) : (pair?.[1] ?? '') })
  }
  return found
}

/**
 * The differences in what `rsync -i` printed: eleven flags (or `*deleting`), a space, the path, ` -> ` for symlinks. rsync writes
 * what cannot be printed as `\#ooo`.
 */
export function parseRsync(printed: string): Difference[] {
  return [...new Set(printed.split('\n').filter(Boolean))].flatMap((line) => {
    const escaped = line.slice(12).replace(/( -> | => ).*$/, '')
    const name = escaped.replace(/\\#(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
    const path = name.replace(/^\.\/$/, '.').replace(/\/$/, '')
    // One difference an attribute, so that a gap excuses that attribute and no other.
    const letters = /^[.c][fdLDS]([.a-zA-Z]{9}) /.exec(line)?.[1]?.split('') ?? []
    const changed = letters.flatMap((letter, at) => (letter === '.' ? [] : [at]))
    if (changed.length < 2) return [{ probe: 'rsync', line, path }]
    const only = (at: number) => letters.map((letter, i) => (i === at ? letter : '.')).join('')
    return changed.map((at) => ({ probe: 'rsync', line: line.slice(0, 2) + only(at) + line.slice(11), path }))
  })
}

const stat = (path: string): Stats | undefined => lstatSync(path, { throwIfNoEntry: false })

/** Files with holes whose restored copy takes more disk than they do. */
function grown(listing: string, restored: string): Difference[] {
  return items(listing).flatMap((item): Difference[] => {
    const [, blocks, path] = /^(\d+) (.*)$/s.exec(item) ?? []
    const [was, is] = [Number(blocks) * 512, (stat(join(restored, utf8(path!)))?.blocks ?? 0) * 512]
    return is > was + blockSlack(was) ? [{ probe: 'blocks', line: `blocks ${was} ${is} ${path}`, path: path! }] : []
  })
}

/** Entries whose inode flags differ, out of what lsattr printed for each tree. */
export function differentFlags(source: string, restored: string): Difference[] {
  const read = (listing: string) =>
    new Map([...listing.matchAll(/^([-a-zA-Z]{16,}) \.\/?(.*)$/gm)].map(([, flags, path]) => [path || '.', flags!.replace(/[-eIN]/g, '')])) // biome-ignore format: one line
  const [was, is] = [read(source), read(restored)]
  return [...new Set([...was.keys(), ...is.keys()])]
    .filter((path) => (was.get(path) ?? '') !== (is.get(path) ?? ''))
    .map((path) => ({
      probe: 'flags',
      line: `flags ${was.get(path) || 'none'} became ${is.get(path) || 'none'}: ${path}`,
      path,
    }))
}

/** What each letter of rsync's itemized changes is about (rsync(1), --itemize-changes). */
const changes: [at: number, what: string, value?: (entry: Stats) => string][] = [
  [2, 'content'],
  [3, 'size', ({ size }) => String(size)],
  [4, 'mtime', ({ mtimeMs }) => new Date(mtimeMs).toISOString()],
  [5, 'mode', ({ mode }) => `0${(mode & 0o7777).toString(8)}`],
  [6, 'owner', ({ uid }) => String(uid)],
  [7, 'group', ({ gid }) => String(gid)],
  [9, 'ACL'],
  [10, 'xattrs'],
]

/** Whether it is a date that a file system of 32 bits has cut off at its end. */
function cutOff({ probe, line, path }: Difference, source: string, restored: string): boolean {
  const [was, is] = [source, restored].map((tree) => (stat(join(tree, utf8(path)))?.mtimeMs ?? 0) / 1000)
  return probe === 'rsync' && /^.{4}t\.+ /.test(line) && was! > 2 ** 31 - 1 && is === 2 ** 31 - 1
}

/** Prints the extended attributes and the ACL entries of a path, an entry a line; the ACL's base entries are the mode's. */
const attributesOf = (path: string) =>
  `{ getfattr -h -d -m - -e hex -- ${path}; getfacl -cpn -- ${path}; } 2> /dev/null | grep -avE '^(#|$|(user|group|other|mask)::|system[.])' || true`

/** What has gone of ACL entries, or else of attributes, and what has come instead: ` lost user.name=0x61`. */
function exchanged(acl: boolean, was: string, is: string): string {
  // getfattr writes bytes that are no ASCII as \ooo.
  const plain = (entry: string) =>
    utf8(entry.replace(/\\(\d{3})/g, (_, n: string) => String.fromCharCode(Number.parseInt(n, 8))))
  const own = (text: string) => text.split('\n').filter((entry) => entry && acl === /^(default:)?[a-z]+:/.test(entry))
  const [before, after] = [own(was), own(is)]
  const list = (word: string, of: string[], not: string[]) =>
    of.filter((entry) => !not.includes(entry)).map((entry, n) => `${n ? '' : ` ${word}`} ${plain(entry).slice(0, 60)}`).join('') // biome-ignore format: one line
  return list('lost', before, after) + list('got', after, before)
}

/** A difference in words: `mode 0750 became 0700: dir/file`. */
export function inWords({ probe, line, path, detail }: Difference, source: string, restored: string): string {
  const name = utf8(path).replaceAll('\n', '\\n')
  if (probe === 'blocks') return `${line.split(' ')[1]} bytes on disk became ${line.split(' ')[2]}: ${name}`
  if (probe !== 'rsync') return utf8(line)
  const [a, b] = [stat(join(source, utf8(path))), stat(join(restored, utf8(path)))]
  if (!a !== !b) return `${a ? 'missing in the restored tree' : 'too many in the restored tree'}: ${name}`
  if (line.startsWith('h') || / => /.test(line)) return `hard links differ: ${name}`
  const said = changes
    .filter(([at]) => /[a-zA-Z]/.test(line[at] ?? ''))
    .map(([, what, value]) => {
      const [was, is] = a && b && value ? [value(a), value(b)] : ['', '']
      if (what === 'mtime' && was === is) return 'mtime differs by less than a millisecond'
      if (was !== is) return `${what} ${was} became ${is}`
      return what + (detail || (what.endsWith('s') ? ' differ' : ' differs'))
    })
  if (/^cL/.test(line) || (line[1] === 'L' && line[0] === 'c')) said.push('symlink target differs')
  return `${said.join(', ') || 'type differs'}: ${name}`
}

/** What the comparison of two trees has to go by: files `NAME.diff`, `.there`, `.back`, `.flags`, `.flags-restored`, `.holes`. */
export interface Compared {
  source: string
  restored: string
  /** The directory of these files, and the first part of their names. */
  dir: string
  name: string
  version: string
  /** What the file system of the restored tree cannot hold. */
  lacking: readonly Attribute[]
  /** Runs bash in one of the trees and returns what it prints. */
  bash: (tree: string, line: string) => Promise<string>
}

/** Differences that no known gap explains, in words, and the gaps whose case the source has. */
export async function judge(c: Compared): Promise<{ unexplained: string[]; seen: GapSeen[]; gaps: Gap[] }> {
  const gaps = gapsOf(c.version)
  const affected = new Map<string, Set<string>>()
  for (const { id, trigger } of gaps)
    affected.set(id, new Set(trigger ? items(Buffer.from(await c.bash(c.source, trigger)).toString('latin1')) : []))
  const at = (end: string) => text(join(c.dir, `${c.name}.${end}`))
  const excused = gaps.filter(({ shows }) => shows.diff).flatMap(({ id }) => [...affected.get(id)!])
  const [source, restored] = [resolve(c.dir, c.source), resolve(c.dir, c.restored)]
  const differences = [
    ...parseDiff(at('diff'), c.source, c.restored, excused),
    ...parseRsync(at('there') + at('back')),
    ...grown(at('holes'), restored),
    ...(c.lacking.includes('inode flags') ? [] : differentFlags(at('flags'), at('flags-restored'))),
  ]
  const held = (d: Difference) => !c.lacking.includes('dates after 2038') || !cutOff(d, source, restored)
  // Which attribute differs rsync does not say: where it is not that of every file, it is looked up.
  const attributes = differences.filter(({ probe, line }) => probe === 'rsync' && /^\.[fdLDS].{7,8}[ax]/.test(line))
  for (const one of attributes.slice(0, 100)) {
    const line = attributesOf(quote(utf8(one.path)))
    const [was, is] = [await c.bash(c.source, line), await c.bash(c.restored, line)]
    one.detail = exchanged(one.line[9] === 'a', was, is)
  }
  const words = (d: Difference) => inWords(d, source, restored)
  const { unexplained, seen } = explain(differences.filter(held), gaps, affected, words)
  return { unexplained: unexplained.map(words), seen, gaps }
}

const pathOf = (tree: Tree) => (typeof tree === 'string' ? tree : tree.path)
/** A directory, seen from the row's; or bash that names it, with the path that it stands for. */
export type Tree = string | { raw: string; path: string }

/**
 * Requires that two trees are the same: content, names, types, mode, owner, mtime (ns), symlink targets, hardlink groups,
 * xattrs, ACLs, capabilities, inode flags, allocated blocks. Known gaps of this vykar become notes of the row.
 * @param name first part of the names of the listings, the restored tree's unless told
 * @throws Mismatch naming the first differences
 */
export async function sameTree(a: Tree, b: Tree, name = pathOf(b).replaceAll('/', '-')): Promise<void> {
  const { report, run, dir, steps } = rowScope()
  const limit = '2h'
  const [source, restored] = [pathOf(a), pathOf(b)]
  const [left, right] = [a, b].map((tree) => (typeof tree === 'string' ? quote(tree) : tree.raw)) as [string, string]
  for (const [n, line] of listings(left, right, name, run.lacking).entries())
    await execute(line, { limit, ...(n === 0 ? { expect: [0, 1] } : {}) })
  await check(`e2e trees --files ${name} ${left} ${right}  # only known gaps may show`, async () => {
    const bash = async (tree: string, line: string) => (await look({ limit })`(cd ${tree} && bash -c ${line})`).stdout
    const { version } = run.plan.vykar
    const { unexplained, seen } = await judge({ source, restored, dir, name, version, lacking: run.lacking, bash })
    // A row that compares several trees shows each gap once.
    report.gaps.push(...seen.filter((gap) => !report.gaps.some((had) => had.id === gap.id && had.state === gap.state)))
    if (unexplained.length)
      throw new Mismatch(
        `${unexplained.length} difference${unexplained.length > 1 ? 's' : ''} between ${source} and ${restored}: ${unexplained.slice(0, 3).join('; ')}${unexplained.length > 3 ? '; …' : ''} (log: ${steps.at(-1)?.log})`,
      )
    const fixed = seen.filter((gap) => gap.state === 'fixed').map((gap) => gap.id)
    if (!fixed.length) return
    const said = `known gap fixed, remove it from configs/known-gaps.yaml: ${fixed.join(', ')}`
    if (run.common['strict-gaps']) throw new Mismatch(said)
    report.notes.push(said)
  })
}
