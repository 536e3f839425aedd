#!/usr/bin/env -S npx tsx
// Changes a tree as its users would: files are added, copied, grown, cut, renamed, removed, rewritten (some with size and time
// kept), and get other modes, owners, times, attributes and links. The same seed and the same tree give the same changes.
//
//   npx tsx data-gen/change.mts --dir DIR --percent 5 --size BYTES --seed TEXT
//
// The last lines are key=value: how many changes of each kind were made, and with --each how many bytes are new (fresh_bytes)
// and how large the files are whose content is another one (touched_bytes).
import { createCipheriv, createHash } from 'node:crypto'
import fs from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { run } from '#data-gen/awkward.mts'
import { seeded } from '#data-gen/random.mts'
import { optionHelp, parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'

/** A regular file of the tree. */
interface Entry {
  path: string
  size: number
}

/** Regular files below a directory, in the order of their names. */
function filesOf(dir: string): Entry[] {
  const found: Entry[] = []
  for (const entry of fs.readdirSync(dir, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(dir, entry.name)
    if (entry.isDirectory()) found.push(...filesOf(path))
    else if (entry.isFile()) found.push({ path, size: fs.lstatSync(path).size })
  }
  return found
}

/** What the changes of one round share. */
interface Hand {
  dir: string
  random: () => number
  /** So many bytes that no other change has. */
  fresh: (length: number) => Buffer
  /** A path below `dir` that nothing has yet. */
  unused: () => string
  root: boolean
}

/** Overwrites 4 KiB somewhere in a file, or all of a smaller one. */
function rewrite({ path, size }: Entry, { random, fresh }: Hand): void {
  const at = Math.floor(random() * Math.max(0, size - 4096))
  const handle = fs.openSync(path, 'r+')
  fs.writeSync(handle, fresh(Math.min(4096, size)), 0, undefined, at)
  fs.closeSync(handle)
}

/** Makes a change and puts the modification time back to the nanosecond, which utimes() of Node cannot. */
async function keepTime(path: string, change: () => void): Promise<void> {
  const at = fs.lstatSync(path, { bigint: true }).mtimeNs
  change()
  const [age, second] = [at < 0n ? -at : at, 10n ** 9n]
  const time = `${at < 0n ? '-' : ''}${age / second}.${String(age % second).padStart(9, '0')}`
  await run('touch', '-d', `@${time}`, path)
}

const pick = <T,>(values: readonly T[], random: () => number) => values[Math.floor(random() * values.length)]!

/** The kinds of change, each made to one file; what backup tools decide by size and time only is among them. */
const changes: Record<string, (file: Entry, hand: Hand) => unknown> = {
  add: (_, { random, fresh, unused }) => fs.writeFileSync(unused(), fresh(Math.floor(2 ** (8 + random() * 13)))),
  copy: ({ path }, { unused }) => fs.copyFileSync(path, unused()),
  grow: ({ path }, { random, fresh }) => fs.appendFileSync(path, fresh(Math.floor(2 ** (random() * 17)))),
  truncate: ({ path, size }, { random }) => fs.truncateSync(path, Math.floor(size * random())),
  rename: ({ path }, { unused }) => fs.renameSync(path, unused()),
  delete: ({ path }) => fs.rmSync(path),
  rewrite,
  'rewrite with size and time kept': (file, hand) => keepTime(file.path, () => rewrite(file, hand)),
  mode: ({ path }, { random }) => fs.chmodSync(path, pick([0o600, 0o640, 0o644, 0o755, 0o4755], random)),
  owner: ({ path }, { random, root }) => root && fs.chownSync(path, pick([0, 1000, 12345], random), 54321),
  time: ({ path }, { random }) => {
    const at = Math.floor(random() * 2 ** 31) + Math.floor(random() * 1024) / 1024
    fs.utimesSync(path, at, at)
  },
  xattr: ({ path }, { random }) =>
    run('setfattr', '-n', 'user.stress', '-v', String(Math.floor(random() * 2 ** 31)), path),
  hardlink: ({ path }, { unused }) => fs.linkSync(path, unused()),
  symlink: ({ path }, { unused }) => fs.symlinkSync(path.split('/').at(-1)!, unused()),
  directory: (_, { unused }) => fs.mkdirSync(unused()),
}
/**
 * What only --each does: a file gets an access control list, another becomes a symlink, a symlink points elsewhere, a directory becomes
 * a file.
 * @param left files that were not touched
 * @param touched paths that were
 */
async function turn(left: readonly Entry[], touched: ReadonlySet<string>, { dir, fresh }: Hand): Promise<void> {
  const [listed, linked, ...others] = left
  if (listed) await run('setfacl', '-m', 'u:12345:rw', listed.path)
  if (linked) {
    const { path } = linked
    fs.rmSync(path)
    fs.symlinkSync('..', path)
  }
  const links = fs.readdirSync(dir, { withFileTypes: true, recursive: true }).filter((entry) => entry.isSymbolicLink())
  const [link] = links.map((entry) => join(entry.parentPath, entry.name)).filter((path) => path !== linked?.path)
  if (link) {
    const path = link
    fs.rmSync(path)
    fs.symlinkSync('another target', path)
  }
  const above = (paths: readonly string[]) => new Set(paths.map((path) => dirname(path)))
  const busy = above([...touched, listed?.path ?? '', linked?.path ?? ''])
  const count = (path: string) => fs.readdirSync(path).length
  const flat = (path: string) => fs.readdirSync(path, { withFileTypes: true }).every((entry) => !entry.isDirectory())
  const [gone] = [...above(others.map(({ path }) => path))]
    .filter((path) => path !== dir && flat(path) && ![...busy].some((other) => `${other}/`.startsWith(`${path}/`)))
    .sort((a, b) => count(a) - count(b))
  if (!gone) return
  for (const name of fs.readdirSync(gone)) fs.rmSync(join(gone, name))
  fs.rmdirSync(gone)
  fs.writeFileSync(gone, fresh(100))
}
/** Changes after which a file's content is another one than before, or was not there. */
const touching = ['add', 'copy', 'grow', 'truncate', 'rewrite', 'rewrite with size and time kept']
const growing = ['add', 'copy', 'grow']
const shrinking = ['delete', 'truncate']

/**
 * Changes a tree.
 * @param percent share of the files that are touched, at least one
 * @param size what the tree shall have, in bytes: far above it only shrinking changes are made, far below growing ones
 * @param seed of this round's choices
 * @param each whether every kind is made at least once, before chance decides
 * @returns how many changes of each kind were made, and with `each` what they come to in bytes
 */
async function change(
  dir: string,
  percent: number,
  size: number,
  seed: string,
  each: boolean,
): Promise<Record<string, number>> {
  const random = seeded(seed)
  const stream = createCipheriv(
    'aes-128-ctr',
    createHash('sha256').update(seed).digest().subarray(0, 16),
    Buffer.alloc(16),
  )
  const made: Record<string, number> = {}
  // Looked through once, and kept up to date: a tree of many files takes longer to list than to change.
  const all = filesOf(dir)
  const kindsOf = Object.keys(changes)
  const count = Math.max(each ? kindsOf.length : 1, Math.round((all.length * percent) / 100))
  const files = all.filter((file) => file.size > 0)
  let total = files.reduce((sum, file) => sum + file.size, 0)
  const directories = [...new Set([dir, ...files.map((file) => dirname(file.path))])]
  const see = (path: string) => {
    const stat = fs.lstatSync(path, { throwIfNoEntry: false })
    if (!stat?.isFile() || stat.size === 0) return
    files.push({ path, size: stat.size })
    total += stat.size
  }
  let [freshBytes, touchedBytes] = [0, 0]
  const touched = new Set<string>()
  const bytes = (length: number) => {
    freshBytes += length
    return stream.update(Buffer.alloc(length))
  }
  const hand = { dir, random, fresh: bytes, root: process.getuid?.() === 0 }
  for (let n = 0; n < count; n++) {
    const kinds = total > size * 1.2 ? shrinking : total < size * 0.8 ? growing : kindsOf
    const drawn = pick(files.length > 1 ? kinds : ['add'], random)
    const kind = each ? (kindsOf[n] ?? drawn) : drawn
    const [file = { path: '', size: 0 }] = files.splice(Math.floor(random() * files.length), 1)
    // In a small tree some kinds find no file that was not touched.
    if (!file.path && !['add', 'directory'].includes(kind)) continue
    total -= file.size
    const name = `new-${createHash('sha256').update(`${seed} ${n}`).digest('hex').slice(0, 12)}`
    const fresh = join(pick(directories, random), name)
    await changes[kind]!(file, { ...hand, unused: () => fresh })
    // What the figures are about is touched once.
    if (!each) for (const path of [file.path, fresh]) if (path) see(path)
    touched.add(file.path).add(fresh)
    const now = fs.existsSync(fresh) ? fresh : file.path
    if (touching.includes(kind)) touchedBytes += fs.statSync(now).size
    made[kind] = (made[kind] ?? 0) + 1
  }
  if (!each) return made
  await turn(files, touched, { ...hand, unused: () => dir })
  return { ...made, fresh_bytes: freshBytes, touched_bytes: touchedBytes }
}

const specs = {
  help: { kind: 'flag', help: 'this text' },
  dir: { kind: 'dir', help: 'the tree; it is changed in place' },
  percent: { kind: 'number', help: 'share of the files that are touched', default: 5, above: true },
  size: { kind: 'number', help: 'bytes that the tree shall keep to, about; 0 for those that it has', default: 0 },
  seed: { kind: 'string', help: 'same seed, same changes', default: '1' },
  each: { kind: 'flag', help: 'every kind of change at least once, a file at most once; says how many bytes changed' },
} as const

try {
  process.umask(0o022)
  const options = parseOptions(process.argv.slice(2), specs)
  if (options.help) console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  else {
    if (!options.dir || !fs.statSync(options.dir, { throwIfNoEntry: false })?.isDirectory())
      throw new UsageError(`--dir ${options.dir ?? 'DIR is needed'}: the tree to change`)
    const size = options.size || filesOf(options.dir).reduce((sum, file) => sum + file.size, 0)
    const made = await change(resolve(options.dir), options.percent, size, options.seed, options.each)
    for (const [kind, count] of Object.entries(made)) console.log(`${kind.replaceAll(' ', '_')}=${count}`)
  }
} catch (error) {
  console.error(`change: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
