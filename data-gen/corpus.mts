#!/usr/bin/env -S npx tsx
// A corpus to back up: a tree with a realistic size mix, compressible and incompressible content and the awkward cases.
// The same seed and size give byte-identical trees on any machine; snapshot-2 is snapshot-1 with a stated share changed.
//
//   npx tsx data-gen/corpus.mts --out ~/corpus-local --gib 10 --seed 1 --churn 3
//
// Writes OUT/snapshot-1, OUT/snapshot-2, OUT/manifest (type, mode, size, mtime and path of everything) and
// OUT/corpus.json (what was asked for and made). The last lines are key=value.
import { createCipheriv, createHash } from 'node:crypto'
import fs from 'node:fs'
import { open } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { corpusFormat as format, run, writeAwkward } from '#data-gen/awkward.mts'
import { seeded } from '#data-gen/random.mts'
import { which } from '#lib/host.mts'
import { optionHelp, parseOptions } from '#lib/options.mts'
import { isOurs, markOurs, removeOurs } from '#lib/ours.mts'
import { headerOf } from '#lib/prepare.mts'
import { allowLostOutput, bytes } from '#lib/terminal.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'

const specs = {
  help: { kind: 'flag', help: 'this text' },
  out: { kind: 'path', help: 'directory to make; an earlier corpus there is replaced' },
  gib: { kind: 'number', help: 'size of snapshot-1 in GiB', default: 1, above: true },
  seed: { kind: 'number', help: 'same seed, same bytes', default: 1 },
  churn: { kind: 'number', help: 'percent of the files that snapshot-2 changes; 0 makes no snapshot-2', default: 3 },
  mix: { kind: 'string', help: 'file sizes', choices: ['mixed', 'large', 'small'], default: 'mixed' },
  plain: { kind: 'flag', help: 'without the awkward cases' },
  sha256: { kind: 'flag', help: 'also write OUT/manifest.sha256, for sha256sum --check in OUT' },
} as const

type Options = ReturnType<typeof parseOptions<typeof specs>>
interface FilePlan {
  path: string
  size: number
  text: boolean
}

const KiB = 1024
const MiB = KiB * KiB
/** Largest piece written at once: memory for pieces of this size is used again, that for larger ones is mapped anew each time. */
const pieceBytes = MiB
/** Files of this size and more are flushed to disk one by one; for smaller ones the sync at the end is faster. */
const flushBytes = 16 * MiB
/** Modification times lie in the ten years before this (2024-01-01), in 1/1024 s, which a double holds exactly. */
const newest = 1704067200
const marker = 'corpus.json'
/** A corpus of this many GiB also has a directory of 20,000 names: a smaller one would consist of little else. */
const crowdedFrom = 0.5

/** Sizes by share of the bytes: [share, smallest, largest]. Backup tools meet many small files and a few huge ones. */
const mixes = {
  mixed: [
    [0.04, 0.5 * KiB, 16 * KiB],
    [0.26, 64 * KiB, 2 * MiB],
    [0.7, 8 * MiB, 128 * MiB],
  ],
  large: [[1, 64 * MiB, 64 * MiB]],
  small: [[1, 4 * KiB, 4 * KiB]],
} as const

/** A size between two, every doubling equally likely; without pow(), whose last bit differs between machines. */
function logUniform(smallest: number, largest: number, random: () => number): number {
  let octaves = 0
  while (smallest * 2 ** (octaves + 1) <= largest) octaves++
  const base = smallest * 2 ** Math.floor(random() * (octaves + 1))
  return Math.min(largest, Math.round(base * (1 + random())))
}

/** Which files there are, decided before the first byte is written. */
function planFiles(total: number, mix: keyof typeof mixes, random: () => number): FilePlan[] {
  const files: FilePlan[] = []
  for (const [share, smallest, largest] of mixes[mix]) {
    let left = Math.round(total * share)
    const cap = Math.max(smallest, Math.min(largest, Math.floor(total / 8)))
    while (left > 0) {
      const size = Math.min(left, logUniform(smallest, cap, random))
      const text = random() < 0.4
      const n = files.length
      files.push({
        path: `dir-${n % 23}/sub-${Math.floor(n / 23) % 19}/file-${n}.${text ? 'log' : 'bin'}`,
        size,
        text,
      })
      left -= size
    }
  }
  return files
}

/** Log-like lines: a pool that compresses well, to be stamped so that no two chunks are the same. */
function textPool(random: () => number): Buffer {
  const words = Array.from({ length: 600 }, () =>
    Array.from({ length: 3 + Math.floor(random() * 8) }, () =>
      String.fromCharCode(97 + Math.floor(random() * 26)),
    ).join(''),
  )
  let text = ''
  while (text.length < MiB) text += `${words[Math.floor(random() * words.length)]} `
  return Buffer.from(text.slice(0, MiB), 'latin1')
}

/** The content of a file, piece by piece: an AES-CTR key stream as it is, or stamped into text. */
function* content(file: FilePlan, index: number, key: Buffer, pool: Buffer): Generator<Buffer> {
  const iv = Buffer.alloc(16)
  iv.writeUInt32BE(index, 0)
  const stream = createCipheriv('aes-128-ctr', key, iv)
  for (let at = 0; at < file.size; at += pieceBytes) {
    const length = Math.min(pieceBytes, file.size - at)
    if (!file.text) {
      yield stream.update(zeros.subarray(0, length))
      continue
    }
    const piece = Buffer.allocUnsafe(length)
    const offset = (index * 7919 + at / KiB) % (MiB / 2)
    for (let i = 0; i < length; i += MiB / 2) pool.copy(piece, i, offset, offset + MiB / 2)
    const stamps = stream.update(zeros.subarray(0, Math.ceil(length / 128))).toString('latin1')
    // 16 bytes of every 2048 are unique: deduplication finds nothing, compression a lot.
    for (let i = 0; i + 16 <= length; i += 2048) piece.write(stamps.slice(i / 128, i / 128 + 16), i, 16, 'latin1')
    yield piece
  }
}
const zeros = Buffer.alloc(pieceBytes)

async function writeFiles(
  dir: string,
  files: FilePlan[],
  key: Buffer,
  pool: Buffer,
  random: () => number,
): Promise<void> {
  for (const parent of new Set(files.map((file) => dirname(file.path))))
    fs.mkdirSync(join(dir, parent), { recursive: true })
  let flushed: Promise<unknown> = Promise.resolve()
  for (const [index, file] of files.entries()) {
    const path = join(dir, file.path)
    if (file.size <= 64 * KiB) {
      fs.writeFileSync(path, [...content(file, index, key, pool)][0] ?? '')
    } else {
      const handle = await open(path, 'w')
      // The next piece is made while the last one is written.
      let writing: Promise<unknown> = Promise.resolve()
      for (const piece of content(file, index, key, pool)) {
        await writing
        writing = handle.write(piece)
      }
      await writing
      // The disk takes one file while the next is made: otherwise it stands idle until the sync at the end.
      await flushed
      flushed = file.size < flushBytes ? handle.close() : handle.datasync().then(() => handle.close())
      flushed.catch(() => undefined) // thrown where it is awaited
    }
    setTime(path, random)
  }
  await flushed
}

function setTime(path: string, random: () => number): void {
  const at = newest - Math.floor(random() * 315_360_000) + Math.floor(random() * 1024) / 1024
  fs.utimesSync(path, at, at)
}

/** snapshot-2: a copy in which a share of the files is rewritten, grown, cut, renamed or removed, and some are new. */
async function churn(
  from: string,
  to: string,
  files: FilePlan[],
  percent: number,
  random: () => number,
): Promise<Record<string, number>> {
  await run('cp', '-a', '--reflink=auto', from, to)
  const counts = { rewritten: 0, appended: 0, truncated: 0, renamed: 0, removed: 0, added: 0 }
  const kinds = Object.keys(counts) as (keyof typeof counts)[]
  const wanted = Math.max(1, Math.round((files.length * percent) / 100))
  const pool = [...files]
  for (let n = 0; n < wanted && pool.length; n++) {
    const file = pool.splice(Math.floor(random() * pool.length), 1)[0]!
    const path = join(to, file.path)
    const kind = kinds[n % kinds.length]!
    counts[kind]++
    const fresh = Buffer.from(Array.from({ length: 4096 }, () => Math.floor(random() * 256)))
    if (kind === 'rewritten') {
      const handle = fs.openSync(path, 'r+')
      // A write every 8 MiB: a change in the middle of large files, all of a small one.
      for (let i = 0; i < file.size; i += 8 * MiB) fs.writeSync(handle, fresh, 0, Math.min(4096, file.size - i), i)
      fs.closeSync(handle)
    } else if (kind === 'appended') fs.appendFileSync(path, fresh)
    else if (kind === 'truncated') fs.truncateSync(path, Math.floor(file.size / 2))
    else if (kind === 'renamed') fs.renameSync(path, `${path}.renamed`)
    else if (kind === 'removed') fs.rmSync(path)
    else fs.writeFileSync(`${path}.added`, fresh)
    for (const name of [path, `${path}.renamed`, `${path}.added`]) if (fs.existsSync(name)) setTime(name, random)
  }
  return counts
}

/** Directories get their times last and deepest first, since every entry made in one changes it. */
function setDirectoryTimes(dir: string, random: () => number): void {
  for (const entry of fs.readdirSync(dir, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1)))
    if (entry.isDirectory() && !entry.name.startsWith('mtime-')) setDirectoryTimes(join(dir, entry.name), random)
  setTime(dir, random)
}

/** Where the suite keeps what it knows to be its own. */
const runtime = process.env.VYKAR_E2E_RUNTIME ?? join(homedir(), 'runtime')

/**
 * Refuses what must not be written to or cannot hold the result. An earlier corpus is replaced, if it carries the suite's mark;
 * a new directory gets one.
 */
async function takeDirectory(options: Options): Promise<string> {
  if (!options.out) throw new UsageError('--out DIR is needed: the directory to make')
  const out = resolve(options.out)
  const exists = fs.existsSync(out)
  if (exists && !fs.statSync(out).isDirectory()) throw new UsageError(`--out ${out} is not a directory`)
  const mine = exists && isOurs(runtime, out)
  const own = ['snapshot-1', 'snapshot-2', 'manifest', 'manifest.sha256', marker]
  const others = exists ? fs.readdirSync(out).filter((name) => !mine || !['.vykar-e2e', ...own].includes(name)) : []
  if (others.length)
    throw new UsageError(`--out ${out} is not empty and was not made by this script: name another directory`)
  // Not by Node, which does not come to an end where nothing can be made, such as below /proc.
  await run('mkdir', '-p', out).catch((error) => {
    throw new UsageError(`--out ${out}: ${messageOf(error)}`)
  })
  if (!mine) markOurs(runtime, [out])
  for (const name of own) await removeOurs(runtime, join(out, name))
  const need = options.gib * 2 ** 30 * (options.churn > 0 ? 2 : 1)
  const { bavail, bsize } = fs.statfsSync(out)
  if (need * 1.05 > bavail * bsize) {
    if (!exists) await removeOurs(runtime, out)
    throw new UsageError(
      `--gib ${options.gib} needs ${bytes(need * 1.05)} in ${out}, which has ${bytes(bavail * bsize)} free`,
    )
  }
  return out
}

async function main(options: Options): Promise<void> {
  // The same tree whatever the caller's umask is.
  process.umask(0o022)
  if (options.help) return console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  const lacking = options.plain
    ? []
    : [
        ['setfattr', 'attr'],
        ['setfacl', 'acl'],
      ].filter(([name]) => !which(name!))
  if (lacking.length)
    throw new UsageError(
      `missing ${lacking.map(([name]) => name)}: apt-get install -y ${lacking.map(([, apt]) => apt).join(' ')}, or --plain`,
    )
  const start = performance.now()
  const out = await takeDirectory(options)
  // Half-made corpora carry the marker too, so that the next call may replace them.
  fs.writeFileSync(join(out, marker), '{"complete": false}\n')
  const key = createHash('sha256').update(`vykar-e2e corpus ${options.seed}`).digest().subarray(0, 16)
  const random = seeded(`corpus ${options.seed}`)
  const files = planFiles(options.gib * 2 ** 30, options.mix as keyof typeof mixes, random)
  const [first, second] = [join(out, 'snapshot-1'), join(out, 'snapshot-2')]
  fs.mkdirSync(first)
  await writeFiles(first, files, key, textPool(random), random)
  if (!options.plain) await writeAwkward(first, key, options.gib >= crowdedFrom)
  const changed = options.churn > 0 ? await churn(first, second, files, options.churn, random) : {}
  for (const dir of [first, second]) if (fs.existsSync(dir)) setDirectoryTimes(dir, random)
  await run('sync', '-f', out)
  const figures = {
    out,
    seed: options.seed,
    target_bytes: Math.round(options.gib * 2 ** 30),
    final_bytes: files.reduce((sum, file) => sum + file.size, 0),
    files: files.length,
    mix: options.mix,
    churn_percent: options.churn,
    ...changed,
    awkward: !options.plain,
    format,
    owners: process.getuid?.() === 0,
    seconds: Number(((performance.now() - start) / 1000).toFixed(2)),
  }
  const list = "find snapshot-* -printf '%y %m %s %T@ %p\\0' | sort -z > manifest"
  await run('bash', '-c', `cd "$0" && ${list}`, out)
  if (options.sha256)
    await run(
      'bash',
      '-c',
      'cd "$0" && find snapshot-* -type f -print0 | sort -z | xargs -0 -r sha256sum > manifest.sha256',
      out,
    )
  fs.writeFileSync(join(out, marker), `${JSON.stringify({ complete: true, ...figures }, null, 2)}\n`)
  for (const [name, value] of Object.entries(figures)) console.log(`${name}=${value}`)
}

allowLostOutput()
try {
  await main(parseOptions(process.argv.slice(2), specs))
} catch (error) {
  console.error(`corpus: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
