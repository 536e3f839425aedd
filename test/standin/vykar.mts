// A stand-in for vykar: its command line and its output, for the commands that the suite uses. It keeps real content
// in a local directory whatever the repository's URL, and has the gaps of vykar 0.19.1. It says nothing about vykar.
import { spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
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
  repositories: { label: string; url: string; encryption?: { mode: string } }[]
  sources?: Source[]
  hostname?: string
  encryption?: { mode: string }
  retention?: { keep_last?: number; keep_hourly?: number }
  hooks?: Source['hooks']
}
interface Snapshot {
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
  string: ['config', 'R', 'repo', 'l', 'label', 'last', '_'],
  boolean: ['verify-data', 'yes-delete-this-repo', 'version', 'verify', 'long'],
  alias: { R: 'repo', l: 'label', c: 'config' },
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

/** Runs a program without blocking signals; a signal to this process ends it. */
function run(program: string, params: string[], output?: string): Promise<number> {
  return new Promise((resolve) => {
    const out = output ? fs.openSync(output, 'w') : 'ignore'
    const child = spawn(program, params, { stdio: ['ignore', out, 'inherit'] })
    const watch = setInterval(() => stopping && child.kill('SIGTERM'), 20)
    child.on('close', (code) => {
      clearInterval(watch)
      resolve(code ?? 1)
    })
  })
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
    return createHash('sha256').update(`key ${process.env.VYKAR_PASSPHRASE}`).digest('hex')
  }
  open(): this {
    if (!this.exists) throw new Failure(`repository not found at '${this.url}'`)
    const file = join(this.dir, 'keys/repokey')
    if (fs.existsSync(file) && fs.readFileSync(file, 'utf8') !== this.key)
      throw new Failure('decryption failed: wrong passphrase or corrupted data')
    return this
  }
  init() {
    if (this.exists) throw new Failure(`repository already exists at '${this.url}'`)
    const encrypted = this.mode !== 'none'
    if (encrypted && !process.env.VYKAR_PASSPHRASE) throw new Failure('no passphrase available')
    for (const name of ['keys', 'locks', 'sessions', 'snapshots', 'packs'])
      fs.mkdirSync(join(this.dir, name), { recursive: true })
    if (encrypted) fs.writeFileSync(join(this.dir, 'keys/repokey'), this.key)
    fs.writeFileSync(join(this.dir, 'config'), JSON.stringify({ encryption: encrypted ? 'aes256gcm' : 'none' }))
    say(`Repository initialized at: ${this.url}\nEncryption mode: ${encrypted ? 'aes256gcm' : 'none'}`)
  }
  /** Snapshots in the order they were made. */
  get snapshots(): Snapshot[] {
    const dir = join(this.dir, 'snapshots')
    return fs
      .readdirSync(dir)
      .sort()
      .map((name) => JSON.parse(fs.readFileSync(join(dir, name), 'utf8')))
  }
  find(id: string): Snapshot {
    const found = id === 'latest' ? this.snapshots.at(-1) : this.snapshots.find((s) => s.id === id)
    if (!found) throw new Failure(`snapshot not found: '${id}'`)
    return found
  }
  pack = (id: string) => join(this.dir, 'packs', id)
  forget(id: string): void {
    const dir = join(this.dir, 'snapshots')
    fs.rmSync(join(dir, fs.readdirSync(dir).find((name) => name.endsWith(`-${id}.json`))!))
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

/** A file that was changed with its size and time kept is seen too. */
const copy = ['-aHAX', '--checksum', '--modify-window=-1', '--no-specials', '--no-devices', '--numeric-ids']

async function backupSource(repo: Repository, source: Source): Promise<void> {
  const paths = source.paths ?? (source.path ? [source.path] : [])
  for (const path of paths) if (!fs.existsSync(path)) throw new Failure(`source directory does not exist: ${path}`)
  const id = randomBytes(4).toString('hex')
  const tree = join(repo.pack(id), 'tree')
  fs.mkdirSync(tree, { recursive: true })
  const session = join(repo.dir, 'sessions', `${id}.json`)
  fs.writeFileSync(session, JSON.stringify({ pid: process.pid }))
  const undo = (): void => {
    fs.rmSync(repo.pack(id), { recursive: true, force: true })
    fs.rmSync(session)
  }
  const previous = repo.snapshots.filter((s) => s.label === source.label).at(-1)
  const link = previous ? [`--link-dest=${join(repo.pack(previous.id), 'tree')}`] : []
  for (const path of paths) {
    const target = paths.length > 1 ? join(tree, path) : tree
    fs.mkdirSync(target, { recursive: true })
    const code = await run('rsync', [...copy, ...link, `${path}/`, `${target}/`])
    if (code !== 0 || stopping) {
      undo()
      throw stopping ? new Failure('interrupted', 130) : new Failure(`cannot read ${path}`)
    }
  }
  for (const dump of source.command_dumps ?? []) {
    fs.mkdirSync(join(tree, 'vykar-dumps'), { recursive: true })
    const code = await run('sh', ['-c', dump.command], join(tree, 'vykar-dumps', dump.name))
    if (code !== 0) {
      undo()
      throw new Failure(`command_dump '${dump.name}' failed (exit code ${code}): `)
    }
  }
  const added = Number(sh(`find '${tree}' -type f -links 1 -printf '%s\\n' | awk '{s+=$1} END {print s+0}'`).stdout)
  const [files, total] = sh(`find '${tree}' -type f -printf '%s\\n' | awk '{s+=$1} END {print NR, s+0}'`)
    .stdout.trim()
    .split(' ')
    .map(Number)
  sh(`cd '${tree}' && find . -type f -print0 | xargs -0 -r sha256sum > ../sums`)
  const date = new Date().toISOString()
  const label = source.label ?? paths[0]!.split('/').at(-1)!
  const snapshot = {
    id,
    date,
    host: repo.config.hostname ?? 'standin',
    label,
    sources: paths,
    files: files!,
    size: total!,
    added,
  }
  fs.writeFileSync(join(repo.dir, 'snapshots', `${date}-${id}.json`), JSON.stringify(snapshot))
  fs.rmSync(session)
  say(`Snapshot created: ${id}\n  Source: ${paths.join(', ') || '-'} (label: ${label})`)
  say(`  Files: ${files}, Original: ${size(total!)}, Compressed: ${size(total!)}, Deduplicated: ${size(added)}`)
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
  const tree = join(repo.pack(repo.find(id).id), 'tree')
  fs.mkdirSync(dest, { recursive: true })
  if (fs.readdirSync(dest).length) throw new Failure(`destination is not empty: ${dest}`)
  if ((await run('rsync', ['-aHAX', '--modify-window=-1', '--numeric-ids', `${tree}/`, `${dest}/`])) !== 0)
    throw new Failure('restore failed')
  fs.utimesSync(dest, new Date(), new Date())
  const kinds = sh(`find '${dest}' -mindepth 1 -printf '%y\\n'`).stdout.split('\n')
  const [files, dirs, links] = ['f', 'd', 'l'].map((kind) => kinds.filter((k) => k === kind).length)
  say(`Restored: ${count(files!)} files, ${count(dirs!)} dirs, ${count(links!)} symlinks (${size(repo.find(id).size)})`)
}

function check(repo: Repository): void {
  let [errors, chunks] = [0, 0]
  const { snapshots } = repo
  for (const s of snapshots) {
    chunks += s.files
    const ok = fs.existsSync(repo.pack(s.id))
    if (!ok || (args['verify-data'] && sh(`cd '${repo.pack(s.id)}/tree' && sha256sum --quiet -c ../sums`).status !== 0))
      errors++
  }
  const verified = args['verify-data'] ? chunks : 0
  say(
    `Check complete: ${snapshots.length} snapshots, ${chunks} items, ${snapshots.length} packs existence-checked (${chunks} chunks), ${verified} chunks data-verified, ${errors} errors`,
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
  const live = new Set(repo.snapshots.map((s) => s.id))
  const dead = fs.readdirSync(join(repo.dir, 'packs')).filter((id) => !live.has(id))
  let freed = 0
  for (const id of dead) {
    freed += Number(sh(`du -s -B1 '${repo.pack(id)}'`).stdout.split('\t')[0])
    fs.rmSync(repo.pack(id), { recursive: true })
  }
  say(`Compaction complete: 0 packs repacked, ${dead.length} empty packs deleted, ${size(freed)} freed`)
}

function info(repo: Repository): void {
  const { encryption } = JSON.parse(fs.readFileSync(join(repo.dir, 'config'), 'utf8'))
  say(` Repository  ${args.repo} \n URL         ${repo.url} \n Encryption  ${encryption} `)
  say(`\n Snapshots      ${repo.snapshots.length} `)
}

function remove(repo: Repository): void {
  if (!args['yes-delete-this-repo']) throw new Failure('refusing to delete without --yes-delete-this-repo')
  if (!repo.exists) throw new Failure(`no repository found at '${repo.url}'`)
  for (const name of ['keys', 'locks', 'sessions', 'snapshots', 'packs', 'config'])
    fs.rmSync(join(repo.dir, name), { recursive: true, force: true })
  say(`Repository '${args.repo}' deleted (1 keys removed).`)
}

function snapshotCommand(repo: Repository, [verb, id, ...more]: string[]): void {
  const found = repo.find(id!)
  if (verb === 'list')
    say(sh(`cd '${repo.pack(found.id)}/tree' && find . -mindepth 1 -printf '%P\\n'`).stdout.trimEnd())
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
