// A stand-in for vykar: its command line and its output, for the commands that the suite uses. It keeps real content in a local
// directory whatever the repository's URL: the tree as a stream of tar, cut into chunks by their content, encrypted, in packs with an
// index. It says nothing about vykar.
import { spawn, spawnSync } from 'node:child_process'
import { createCipheriv, createHash, randomBytes } from 'node:crypto'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import minimist from 'minimist'
import { parse } from 'yaml'

interface Source {
  path?: string
  paths?: string[]
  label?: string
  hooks?: Partial<Record<'before' | 'after' | 'failed' | 'finally', string | string[]>>
  command_dumps?: { name: string; command: string }[]
}
interface Config {
  cache_dir?: string
  repositories: { label: string; url: string; encryption?: { mode: string } }[]
  sources?: Source[]
  hostname?: string
  encryption?: { mode: string }
  retention?: { keep_last?: number; keep_hourly?: number }
  hooks?: Source['hooks']
}
interface Snapshot {
  chunks: string[]
  paths: string[]
  id: string
  date: string
  host: string
  label: string
  sources: string[]
  files: number
  size: number
  added: number
}

class Failure extends Error {
  constructor(
    message: string,
    readonly code = 1,
  ) {
    super(message)
  }
}

const args = minimist(process.argv.slice(2), {
  string: ['config', 'R', 'repo', 'l', 'label', 'last', 'source', 'threshold', '_'],
  boolean: ['verify-data', 'yes-delete-this-repo', 'version', 'verify', 'long'],
  alias: { R: 'repo', l: 'label', c: 'config', S: 'source' },
})
const say = (text: string): void => {
  process.stdout.write(`${text}\n`)
}
const size = (bytes: number): string => {
  const unit = ['B', 'KiB', 'MiB', 'GiB']
  let i = 0
  let value = bytes
  for (; value >= 1024 && i < 3; i++) value /= 1024
  return `${i ? value.toFixed(2) : value} ${unit[i]}`
}
const count = (n: number) => String(n).replace(/\B(?=(\d{3})+$)/g, ',')
const sh = (command: string, env = {}) =>
  spawnSync('bash', ['-c', command], { encoding: 'utf8', env: { ...process.env, ...env }, maxBuffer: 1 << 28 })

function loadConfig(): Config {
  const file = args.config ?? process.env.VYKAR_CONFIG
  if (!file || !fs.existsSync(file)) throw new Failure(`config file not found: ${file}`)
  const text = fs.readFileSync(file, 'utf8').replace(/\$\{(\w+)(?::-([^}]*))?\}/g, (_, name, fallback) => {
    const value = process.env[name] || fallback
    if (value === undefined) throw new Failure(`environment variable '${name}' is not set`)
    return value
  })
  return parse(text) as Config
}

let stopping = false
process.on('SIGTERM', () => {
  stopping = true
})
process.on('SIGINT', () => {
  stopping = true
})

/** Runs bash without blocking signals; a signal to this process ends it. */
function run(line: string, cwd: string, output?: string): Promise<number> {
  return new Promise((resolve) => {
    const out = output ? fs.openSync(output, 'w') : 'ignore'
    const child = spawn('bash', ['-c', line], { cwd, stdio: ['ignore', out, 'inherit'], detached: true })
    const watch = setInterval(() => stopping && process.kill(-child.pid!, 'SIGTERM'), 20)
    child.on('close', (code) => {
      clearInterval(watch)
      resolve(code ?? 1)
    })
  })
}

const sha = (data: Buffer | string) => createHash('sha256').update(data).digest('hex')
/** Random numbers, one for each byte, which the boundaries of chunks follow. */
const gear = Array.from({ length: 256 }, (_, n) => createHash('sha256').update(`gear ${n}`).digest().readUInt32BE())
/** Chunks of 16 KiB on average, by content: what is inserted moves no boundary but its own. */
function chunksOf(data: Buffer): Buffer[] {
  const found: Buffer[] = []
  let [from, hash] = [0, 0]
  for (let at = 0; at < data.length; at++) {
    hash = ((hash << 1) + gear[data[at]!]!) >>> 0
    if (at - from < 4096 || (hash >>> 18 !== 0 && at - from < 65536)) continue
    found.push(data.subarray(from, at + 1))
    from = at + 1
    hash = 0
  }
  if (from < data.length) found.push(data.subarray(from))
  return found
}

class Repository {
  readonly url: string
  readonly dir: string
  readonly mode: string
  constructor(readonly config: Config) {
    const label = args.repo ?? config.repositories[0]?.label
    const found = config.repositories.find((r) => r.label === label || r.url === label)
    if (!found) throw new Failure(`no repository matching '${label}'`)
    this.url = found.url
    const hash = createHash('sha256').update(this.url).digest('hex').slice(0, 12)
    const elsewhere = process.env.VYKAR_STANDIN_DIR ?? join(tmpdir(), 'vykar-standin')
    this.dir = /^[\w+]+:\/\//.test(this.url) ? join(elsewhere, hash) : this.url
    this.mode = found.encryption?.mode ?? config.encryption?.mode ?? 'auto'
  }
  get exists() {
    return fs.existsSync(join(this.dir, 'config'))
  }
  private get key() {
    return createHash('sha256').update(`key ${process.env.VYKAR_PASSPHRASE}`).digest()
  }
  private get stored(): { encryption: string } {
    return JSON.parse(fs.readFileSync(join(this.dir, 'config'), 'utf8'))
  }
  get encrypted(): boolean {
    return this.stored.encryption !== 'none'
  }
  open(): this {
    if (!this.exists) throw new Failure(`repository not found at '${this.url}'`)
    const file = join(this.dir, 'keys/repokey')
    if (this.encrypted && !fs.existsSync(file)) throw new Failure('invalid repository format: missing keys/repokey')
    if (this.encrypted && fs.readFileSync(file, 'utf8') !== sha(this.key))
      throw new Failure('decryption failed: wrong passphrase or corrupted data')
    return this
  }
  init() {
    if (this.exists) throw new Failure(`repository already exists at '${this.url}'`)
    const encrypted = this.mode !== 'none'
    if (encrypted && !process.env.VYKAR_PASSPHRASE) throw new Failure('no passphrase available')
    for (const name of ['keys', 'locks', 'sessions', 'snapshots', 'packs'])
      fs.mkdirSync(join(this.dir, name), { recursive: true })
    if (encrypted) fs.writeFileSync(join(this.dir, 'keys/repokey'), sha(this.key))
    fs.writeFileSync(join(this.dir, 'config'), JSON.stringify({ encryption: encrypted ? 'aes256gcm' : 'none' }))
    this.index = {}
    say(`Repository initialized at: ${this.url}\nEncryption mode: ${encrypted ? 'aes256gcm' : 'none'}`)
  }
  /** Encrypts or decrypts; the same bytes where the mode is none. */
  crypt(data: Buffer, name: string): Buffer {
    if (!this.encrypted) return data
    return createCipheriv('aes-256-ctr', this.key, createHash('md5').update(name).digest()).update(data)
  }
  /** Writes beside and renames, as vykar does. */
  private put(file: string, data: Buffer | string): void {
    fs.mkdirSync(join(file, '..'), { recursive: true })
    fs.writeFileSync(`${file}.tmp`, data, { mode: 0o600 })
    fs.renameSync(`${file}.tmp`, file)
  }
  /** Where each chunk is: pack, offset, length. */
  get index(): Record<string, [string, number, number]> {
    const file = join(this.dir, 'index')
    if (!fs.existsSync(file)) return {}
    return JSON.parse(this.crypt(fs.readFileSync(file), 'index').toString())
  }
  set index(entries: Record<string, [string, number, number]>) {
    this.put(join(this.dir, 'index'), this.crypt(Buffer.from(JSON.stringify(entries)), 'index'))
  }
  packFile = (pack: string) => join(this.dir, 'packs', pack.slice(0, 2), pack)
  get packs(): string[] {
    const all = fs.readdirSync(join(this.dir, 'packs'), { recursive: true }) as string[]
    return all.flatMap((path) => /[0-9a-f]{64}$/.exec(path) ?? [])
  }
  /** Stores chunks that are not there yet as one pack. Returns how many bytes are new. */
  store(chunks: ReadonlyMap<string, Buffer>): number {
    const { index } = this
    const fresh = [...chunks].filter(([id]) => !index[id] || !fs.existsSync(this.packFile(index[id]![0])))
    if (!fresh.length) return 0
    const data = Buffer.concat(fresh.map(([id, chunk]) => this.crypt(chunk, id)))
    const pack = sha(data)
    let at = 0
    for (const [id, { length }] of fresh) {
      index[id] = [pack, at, length]
      at += length
    }
    this.put(this.packFile(pack), data)
    this.index = index
    return at
  }
  /** The pack that was read last: chunks of one tree lie side by side. */
  private read = { pack: '', data: Buffer.alloc(0) }
  /** A chunk. Throws where it is missing, or is another one; without encryption that is not looked at. */
  chunk(id: string, index: Repository['index'], verify = this.encrypted): Buffer {
    const [pack, at, length] = index[id] ?? []
    if (pack === undefined) throw new Failure(`chunk not found: ${id.slice(0, 16)}`)
    const file = this.packFile(pack)
    if (!fs.existsSync(file)) throw new Failure(`pack not found: ${pack.slice(0, 16)}`)
    if (this.read.pack !== file) this.read = { pack: file, data: fs.readFileSync(file) }
    const whole = this.read.data
    if (whole.length < at! + length!) throw new Failure(`short read on ${pack}`)
    const data = this.crypt(whole.subarray(at, at! + length!), id)
    if (verify && sha(data) !== id) throw new Failure(`chunk ${id.slice(0, 16)}: decryption failed`)
    return data
  }
  save(snapshot: Snapshot): void {
    const name = `${snapshot.date}-${snapshot.id}`
    this.put(join(this.dir, 'snapshots', name), this.crypt(Buffer.from(JSON.stringify(snapshot)), name))
  }
  /** Snapshots in the order they were made. */
  get snapshots(): Snapshot[] {
    const dir = join(this.dir, 'snapshots')
    return fs
      .readdirSync(dir)
      .sort()
      .map((name) => JSON.parse(this.crypt(fs.readFileSync(join(dir, name)), name).toString()))
  }
  find(id: string): Snapshot {
    const found = id === 'latest' ? this.snapshots.at(-1) : this.snapshots.find((s) => s.id === id)
    if (!found) throw new Failure(`snapshot not found: '${id}'`)
    return found
  }
  forget(id: string): void {
    const dir = join(this.dir, 'snapshots')
    fs.rmSync(join(dir, fs.readdirSync(dir).find((name) => name.endsWith(`-${id}`))!))
  }
  /** Maintenance is refused while a backup runs; what a killed one left is cleared. */
  alone(): void {
    const dir = join(this.dir, 'sessions')
    for (const name of fs.readdirSync(dir)) {
      const { pid } = JSON.parse(fs.readFileSync(join(dir, name), 'utf8'))
      if (fs.existsSync(`/proc/${pid}`)) throw new Failure(`active sessions prevent maintenance: ${name}`)
      fs.rmSync(join(dir, name))
    }
  }
}

/** What is stored of a tree; nothing else is kept of special files than that tar says nothing about them. */
const kinds = '\\( -type f -o -type d -o -type l \\)'
const tar =
  "tar -c --format=posix --pax-option=delete=atime,delete=ctime --no-recursion --null -T - --acls --xattrs --xattrs-include='*' --numeric-owner"
const untar = "tar -x -i -p --warning=no-timestamp --acls --xattrs --xattrs-include='*' --numeric-owner"

/** A tree as it was stored. */
interface Stored {
  seal: string
  chunks: string[]
  paths: string[]
  files: number
  total: number
}

/** Writes the snapshot and says so. */
function commit(repo: Repository, id: string, label: string, sources: string[], tree: Stored, added: number): void {
  const { files, total, chunks, paths } = tree
  const host = repo.config.hostname ?? 'standin'
  repo.save({ id, date: new Date().toISOString(), host, label, sources, files, size: total, added, chunks, paths })
  say(`Snapshot created: ${id}\n  Source: ${sources.join(', ') || '-'} (label: ${label})`)
  say(`  Files: ${files}, Original: ${size(total)}, Compressed: ${size(total)}, Deduplicated: ${size(added)}`)
}

async function backupSource(repo: Repository, source: Source): Promise<void> {
  const paths = source.paths ?? (source.path ? [source.path] : [])
  for (const path of paths) if (!fs.existsSync(path)) throw new Failure(`source directory does not exist: ${path}`)
  const id = randomBytes(4).toString('hex')
  const work = fs.mkdtempSync(join(tmpdir(), 'standin-'))
  const session = join(repo.dir, 'sessions', `${id}.json`)
  fs.writeFileSync(session, JSON.stringify({ pid: process.pid }))
  try {
    for (const dump of source.command_dumps ?? []) {
      fs.mkdirSync(join(work, 'dumps/vykar-dumps'), { recursive: true })
      const code = await run(dump.command, process.cwd(), join(work, 'dumps/vykar-dumps', dump.name))
      if (code !== 0) throw new Failure(`command_dump '${dump.name}' failed (exit code ${code}): `)
    }
    const trees = paths.length > 1 ? [['/', paths.map((path) => `'${path.slice(1)}'`).join(' ')]] : paths.map((path) => [path, '.']) // biome-ignore format: one line
    if (fs.existsSync(join(work, 'dumps'))) trees.push([join(work, 'dumps'), '.'])
    const label = source.label ?? paths[0]!.split('/').at(-1)!
    // What find(1) sees of a tree tells whether it is the one that was stored last.
    const looks = trees.map(([cwd, what]) => `(cd '${cwd}' && find ${what} -printf '%P %y %m %U %G %s %T@ %C@ %i\\0')`)
    const seal = sha(sh(looks.join('; ')).stdout)
    const memory = join(repo.config.cache_dir ?? work, `tree-${label}.json`)
    const last: Stored | undefined = fs.existsSync(memory)
      ? JSON.parse(repo.crypt(fs.readFileSync(memory), 'memory').toString())
      : undefined
    const { index } = repo
    if (
      last?.seal === seal &&
      !source.command_dumps &&
      last.chunks.every((hash) => index[hash] && fs.existsSync(repo.packFile(index[hash][0])))
    )
      return commit(repo, id, label, paths, last, 0)
    const found: string[] = []
    const pieces: Buffer[] = []
    let [files, total] = [0, 0]
    for (const [n, [cwd, what]] of trees.entries()) {
      const find = `find ${what} ! -path . ${kinds}`
      const stream = join(work, `${n}.tar`)
      const code = await run(`set -o pipefail; ${find} -print0 | LC_ALL=C sort -z | ${tar}`, cwd!, stream)
      if (stopping) throw new Failure('interrupted', 130)
      if (code !== 0) throw new Failure(`cannot read ${cwd}`)
      pieces.push(...chunksOf(fs.readFileSync(stream)))
      const seen = spawnSync('bash', ['-c', `${find} -printf '%y %s %P\\0'`], { cwd, encoding: 'utf8', maxBuffer: 1 << 28 }) // biome-ignore format: one line
      for (const [, kind, size, path] of seen.stdout.matchAll(/(\w) (\d+) ([^\0]*)\0/g)) {
        found.push(path!)
        if (kind !== 'f') continue
        total += Number(size)
        if (Number(size)) files++
      }
    }
    const chunks = pieces.map((piece) => [sha(piece), piece] as const)
    const added = repo.store(new Map(chunks))
    const stored = { seal, chunks: chunks.map(([hash]) => hash), paths: found, files, total }
    fs.writeFileSync(memory, repo.crypt(Buffer.from(JSON.stringify(stored)), 'memory'))
    commit(repo, id, label, paths, stored, added)
  } finally {
    fs.rmSync(session)
    fs.rmSync(work, { recursive: true })
  }
}

async function backup(repo: Repository, paths: string[]): Promise<void> {
  if (args.label && !paths.length) throw new Failure('--label needs ad-hoc paths')
  const sources = paths.length ? [{ paths, label: args.label ?? 'default' }] : (repo.config.sources ?? [])
  for (const source of sources) {
    const hooks = [repo.config.hooks, (source as Source).hooks]
    const hook = (name: 'before' | 'after' | 'failed' | 'finally') => {
      for (const command of hooks.flatMap((h) => h?.[name] ?? [])) {
        const done = spawnSync('sh', ['-c', command], {
          stdio: 'inherit',
          env: { ...process.env, VYKAR_PASSPHRASE: undefined },
        })
        if (done.status === 0) continue
        if (name === 'before') throw new Failure(`hook error: hook '${command}' exited with ${done.status}`)
        process.stderr.write(`Hook warning: ${command}\n`)
      }
    }
    try {
      hook('before')
      await backupSource(repo, source)
      hook('after')
    } catch (error) {
      hook('failed')
      throw error
    } finally {
      hook('finally')
    }
  }
}

function list(repo: Repository): void {
  let rows = repo.snapshots
  if (args.source) rows = rows.filter(({ label }) => label === args.source)
  if (args.last) rows = rows.slice(-Number(args.last))
  if (!rows.length) return say('No snapshots found.')
  const cells = [['ID', 'Date', 'Host', 'Label', 'Source', 'Files', 'Size', 'Added']]
  rows.forEach((s, i) => {
    const same = i > 0 && rows[i - 1]!.host === s.host && rows[i - 1]!.label === s.label
    const [first = '-', ...more] = s.sources
    const date = s.date.slice(0, 16).replace('T', ' ')
    cells.push([
      s.id,
      date,
      same ? '' : s.host,
      same ? '' : s.label,
      first,
      count(s.files),
      size(s.size),
      size(s.added),
    ])
    for (const path of more) cells.push(['', '', '', '', path, '', '', ''])
  })
  const width = cells[0]!.map((_, i) => Math.max(...cells.map((row) => row[i]!.length)))
  for (const row of cells)
    say(` ${row.map((c, i) => (i > 4 ? c.padStart(width[i]!) : c.padEnd(width[i]!))).join('  ')} `)
}

async function restore(repo: Repository, id: string, dest: string): Promise<void> {
  const found = repo.find(id)
  fs.mkdirSync(dest, { recursive: true })
  if (fs.readdirSync(dest).length) throw new Failure(`destination is not empty: ${dest}`)
  const { index } = repo
  const child = spawn('bash', ['-c', untar], { cwd: dest, stdio: ['pipe', 'ignore', 'inherit'] })
  const ended = new Promise<number | null>((settle) => child.on('close', settle))
  child.stdin.on('error', () => {})
  try {
    for (const hash of found.chunks) child.stdin.write(repo.chunk(hash, index))
  } finally {
    child.stdin.end()
  }
  if ((await ended) !== 0) throw new Failure('restore failed')
  const kinds = sh(`find '${dest}' -mindepth 1 -printf '%y %i %s\\n'`).stdout.trim().split('\n').map((line) => line.split(' ')) // biome-ignore format: one line
  const once = new Map(kinds.filter(([kind]) => kind === 'f').map(([, inode, bytes]) => [inode, Number(bytes)]))
  const [names, dirs, links] = ['f', 'd', 'l'].map((kind) => kinds.filter(([k]) => k === kind).length) as [number, number, number] // biome-ignore format: one line
  const hard = names - once.size
  const bytes = [...once.values()].reduce((sum, n) => sum + n, 0)
  say(`Restored: ${count(once.size)} files, ${count(dirs)} dirs, ${count(links)} symlinks${hard ? `, ${hard} hard links` : ''} (${size(bytes)})`) // biome-ignore format: one line
}

const usedChunks = ({ snapshots }: Repository): string[] => [...new Set(snapshots.flatMap((s) => s.chunks))]

function check(repo: Repository): void {
  const { snapshots, index } = repo
  const chunks = usedChunks(repo)
  const packs = new Set(chunks.flatMap((id) => index[id]?.[0] ?? []))
  let errors = chunks.filter((id) => !index[id]).length
  for (const pack of packs) if (!fs.existsSync(repo.packFile(pack))) errors++
  if (args['verify-data'])
    for (const id of chunks)
      try {
        repo.chunk(id, index, true)
      } catch (error) {
        errors++
        process.stderr.write(`Error: ${(error as Error).message}\n`)
      }
  const items = snapshots.reduce((sum, s) => sum + s.paths.length, 0)
  const verified = args['verify-data'] ? chunks.length : 0
  say(
    `Check complete: ${snapshots.length} snapshots, ${items} items, ${packs.size} packs existence-checked (${chunks.length} chunks), ${verified} chunks data-verified, ${errors} errors`,
  )
  if (errors) throw new Failure(`check found ${errors} error(s)`)
}

function prune(repo: Repository): void {
  repo.alone()
  const { keep_last = 0, keep_hourly = 0 } = repo.config.retention ?? {}
  if (!keep_last && !keep_hourly) throw new Failure('no retention rules configured')
  const { snapshots } = repo
  const kept = new Set<string>()
  for (const label of new Set(snapshots.map((s) => s.label))) {
    const mine = snapshots.filter((s) => s.label === label).reverse()
    const hours = [...new Set(mine.map((s) => s.date.slice(0, 13)))].slice(0, keep_hourly)
    for (const s of mine.slice(0, keep_last)) kept.add(s.id)
    for (const hour of hours) kept.add(mine.find((s) => s.date.startsWith(hour))!.id)
  }
  const gone = snapshots.filter((s) => !kept.has(s.id))
  for (const s of gone) repo.forget(s.id)
  say(`Pruned ${gone.length} snapshots (kept ${kept.size}), freed ${gone.length} chunks (${size(0)})`)
}

function compact(repo: Repository): void {
  repo.alone()
  const { index } = repo
  const live = new Set(repo.snapshots.flatMap((s) => s.chunks))
  const threshold = Number(args.threshold ?? 20)
  let [freed, dead, repacked] = [0, 0, 0]
  for (const pack of repo.packs) {
    const file = repo.packFile(pack)
    const { size: whole } = fs.statSync(file)
    const mine = Object.entries(index).filter(([, [where]]) => where === pack)
    const used = mine.filter(([id]) => live.has(id))
    const unused = whole - used.reduce((sum, [, [, , length]]) => sum + length, 0)
    if (used.length && (!unused || (unused * 100) / whole < threshold)) continue
    const chunks = new Map(used.map(([id]) => [id, repo.chunk(id, index)]))
    for (const [id] of mine) delete index[id]
    repo.index = index
    freed += whole - repo.store(chunks)
    Object.assign(index, repo.index)
    fs.rmSync(file)
    if (used.length) repacked++
    else dead++
  }
  say(`Compaction complete: ${repacked} packs repacked, ${dead} empty packs deleted, ${size(freed)} freed`)
}

function info(repo: Repository): void {
  const encryption = repo.encrypted ? 'aes256gcm' : 'none'
  say(` Repository  ${args.repo} \n URL         ${repo.url} \n Encryption  ${encryption} `)
  const times = repo.snapshots.map(({ date }) => date).sort()
  const made = fs.statSync(join(repo.dir, 'config')).birthtime.toISOString()
  const shown = (date: string) => date.slice(0, 19).replace('T', ' ')
  say(` Created     ${shown(made)} `)
  say(`\n Snapshots      ${repo.snapshots.length} `)
  say(` Last snapshot  ${shown(times.at(-1) ?? made)} `)
  say(` Raw size       ${size(repo.snapshots.reduce((sum, snapshot) => sum + snapshot.size, 0))} `)
  say(` Unique chunks  ${usedChunks(repo).length} `)
  say(` Unique stored  ${size(repo.packs.reduce((sum, pack) => sum + fs.statSync(repo.packFile(pack)).size, 0))} `)
}

function remove(repo: Repository): void {
  if (!args['yes-delete-this-repo']) throw new Failure('refusing to delete without --yes-delete-this-repo')
  if (!repo.exists) throw new Failure(`no repository found at '${repo.url}'`)
  for (const name of ['keys', 'locks', 'sessions', 'snapshots', 'packs', 'index', 'config'])
    fs.rmSync(join(repo.dir, name), { recursive: true, force: true })
  say(`Repository '${args.repo}' deleted (1 keys removed).`)
}

function snapshotCommand(repo: Repository, [verb, id, ...more]: string[]): void {
  const found = repo.find(id!)
  if (verb === 'list') say(found.paths.join('\n'))
  else if (verb === 'info')
    say(` Name          ${found.id} \n Hostname      ${found.host} \n Label         ${found.label} `)
  else if (verb === 'delete') {
    repo.alone()
    for (const { id } of [found, ...more.map((word) => repo.find(word))]) repo.forget(id)
    say(`Deleted snapshot '${found.id}'\n  Freed: ${found.files} chunks, ${size(found.size)}`)
  } else throw new Failure(`unrecognized subcommand '${verb}'`, 2)
}

async function main(): Promise<void> {
  if (args.version) return say('vykar 0.19.1 (stand-in)')
  const [command, ...rest] = args._
  const repo = new Repository(loadConfig())
  if (command === 'init') return repo.init()
  if (command === 'delete') return remove(repo)
  repo.open()
  if (repo.config.cache_dir) fs.mkdirSync(repo.config.cache_dir, { recursive: true })
  if (command === 'backup') return backup(repo, rest)
  if (command === 'list') return list(repo)
  if (command === 'snapshot') return snapshotCommand(repo, rest)
  if (command === 'restore') return restore(repo, rest[0]!, rest[1]!)
  if (command === 'check') return check(repo)
  if (command === 'compact') return compact(repo)
  if (command === 'prune') return prune(repo)
  if (command === 'info') return info(repo)
  if (command === 'break-lock') {
    const locks = fs.readdirSync(join(repo.dir, 'locks'))
    for (const name of locks) fs.rmSync(join(repo.dir, 'locks', name))
    return say(locks.length ? `Removed ${locks.length} lock(s).` : 'No locks found.')
  }
  throw new Failure(`unrecognized subcommand '${command}'`, 2)
}

try {
  await main()
} catch (error) {
  process.stderr.write(`Error: ${error instanceof Error ? error.message : error}\n`)
  process.exitCode = error instanceof Failure ? error.code : 1
}
