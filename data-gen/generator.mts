// What the database generators share: options, parallel writers into the client's stdin, progress, the closing lines.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { statedEnvironment } from '#lib/environment.mts'
import { type OptionSpecs, optionHelp, parseOptions, type Values } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { messageOf, Skipped, UsageError } from '#lib/verdict.mts'
import { type Client, serverOptions } from './client.mts'
import { block, blockRows, type Cell, planRows, type Storage, type Table, tableNames } from './shop.mts'

/** The options of every database generator. */
export const generatorOptions = {
  help: { kind: 'flag', help: 'this text' },
  ...serverOptions,
  database: { kind: 'string', help: 'name of the database to make; default as said above' },
  'target-gib': {
    kind: 'number',
    help: 'size of the database as the server reports it, in GiB',
    default: 10,
    above: true,
  },
  seed: { kind: 'number', help: 'same seed and size, same rows', default: 1 },
  jobs: { kind: 'number', help: 'parallel writers, at most', default: Math.max(2, availableParallelism()), min: 1 },
  append: { kind: 'flag', help: 'add as much to a database that is there already' },
} as const satisfies OptionSpecs

type Later<T> = T | Promise<T>

/** The client command that takes rows of a table on stdin, what stands before and after them, and how they are written. */
interface ClientRows {
  writer: (table: Table) => { argv: string[]; head: Buffer; tail: Buffer }
  encode: (table: Table, rows: Iterable<Cell[]>) => Buffer
}

/** Inserts rows and returns their bytes. */
interface DriverRows {
  insert: (table: Table, rows: Iterable<Cell[]>) => Promise<number>
}

/** A server as a generator sees it; the database's name is the generator's own affair. */
export interface Loader {
  storage: Storage
  /** Makes database and tables; with `append` they must be there. Returns the rows of each table, 0 in a new one. */
  prepare: (append: boolean) => Later<Record<Table, number>>
  /** How rows get in: through a client program's stdin, or through a driver. */
  rows: ClientRows | DriverRows
  /** Indexes and foreign keys, last. */
  index: () => Later<void>
  /** Takes away a database that could not be filled. */
  discard: () => Later<unknown>
  /** Makes the data durable and returns the database's size in bytes. */
  settle: () => Later<number>
  /** The database's size in bytes. */
  size: () => Later<number>
}

/** What the writers of one table share. */
interface Writing {
  loader: Loader
  client: Client
  table: Table
  /** The next block that nobody has taken; undefined when there is none. */
  blocks: () => number | undefined
  rows: (index: number) => Iterable<Cell[]>
  /** Told of bytes that were written; negative where they were taken back. */
  wrote: (count: number) => void
}

/** One writer: it is given blocks as long as there are any, and ends when the server has taken them all. */
async function write({ loader, client, table, blocks, rows, wrote }: Writing): Promise<void> {
  if ('insert' in loader.rows) {
    for (let index = blocks(); index !== undefined; index = blocks())
      wrote(await loader.rows.insert(table, rows(index)))
    return
  }
  const { writer, encode } = loader.rows
  const { argv, head, tail } = writer(table)
  const child = spawn(argv[0]!, argv.slice(1), {
    env: { ...statedEnvironment(), ...client.env },
    stdio: ['pipe', 'ignore', 'pipe'],
  })
  let complaint = ''
  child.stderr.on('data', (text) => {
    complaint = `${complaint}${text}`.slice(-4096)
  })
  const closed = once(child, 'close') as Promise<[number | null]>
  // A client that gives up closes its stdin; what it said on stderr is the reason worth showing.
  child.stdin.on('error', () => undefined)
  const send = async (data: Buffer) => {
    if (child.stdin.write(data)) return
    await Promise.race([once(child.stdin, 'drain').catch(() => undefined), closed])
  }
  await send(head)
  for (let index = blocks(); index !== undefined && child.exitCode === null; index = blocks()) {
    const data = encode(table, rows(index))
    await send(data)
    wrote(data.length)
  }
  child.stdin.end(tail)
  const [code] = await closed
  if (code === 0) return
  const lines = complaint.trim().split('\n').filter(Boolean)
  throw new Error(`${table}: ${lines.find((line) => /error/i.test(line)) ?? lines[0] ?? `exit ${code}`}`)
}

/** What InnoDB says to the one of two transactions that wait for each other; it has taken all of it back. */
const deadlock = /\b1213\b.*Deadlock/
/** Times that a writer begins again. */
const attempts = 5

/**
 * One writer that begins again after a deadlock: two loads into an empty table both want it for themselves. Blocks are a
 * function of their number, so those that were taken back are written once more.
 */
async function writeAll(writing: Writing): Promise<void> {
  const { blocks, wrote } = writing
  let again: number[] = []
  for (let attempt = 1; ; attempt++) {
    const taken: number[] = []
    let written = 0
    const next = () => {
      const index = again.shift() ?? blocks()
      if (index !== undefined) taken.push(index)
      return index
    }
    try {
      const counted = (count: number) => {
        written += count
        wrote(count)
      }
      return await write({ ...writing, blocks: next, wrote: counted })
    } catch (error) {
      if (attempt === attempts || !deadlock.test(messageOf(error))) throw error
      wrote(-written)
      again = [...taken, ...again]
    }
  }
}

/**
 * Writers for so many bytes: each has at least 64 MiB. Parallel loads of less leave InnoDB with more half-filled extents
 * than the size check allows (seen: 47 MiB for 31 MiB with two writers), and gain nothing.
 */
function writersFor(size: number, most: number): number {
  return Math.max(1, Math.min(most, Math.floor(size / 2 ** 26)))
}

/** Reports how far it is, on stderr, every five seconds. */
function progress(total: number): { add: (count: number) => void; end: () => void } {
  const start = performance.now()
  let done = 0
  const timer = setInterval(() => {
    const seconds = (performance.now() - start) / 1000
    const left = (seconds / done) * (total - done)
    console.error(
      `  ${bytes(done)} of about ${bytes(total)} written, ${bytes(done / seconds)}/s, ${done ? duration(Math.max(left, 0)) : 'time'} left`,
    )
  }, 5000)
  return { add: (count) => (done += count), end: () => clearInterval(timer) }
}

async function generate(options: Values<typeof generatorOptions>, client: Client, loader: Loader): Promise<void> {
  const start = performance.now()
  const target = Math.round(options['target-gib'] * 2 ** 30)
  const first = await loader.prepare(options.append)
  // A new database is not empty: its own catalogues count.
  const base = await loader.size()
  const wanted = options.append ? target : target - base
  const discard = async () => options.append || loader.discard()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(name, () => {
      void discard().finally(() => process.exit(name === 'SIGINT' ? 130 : 143))
    })
  const shown = progress(wanted * (loader.storage.piece / loader.storage.pieceOnDisk))
  try {
    const plan = planRows(wanted, loader.storage)
    for (const table of tableNames) {
      let next = 0
      const blocks = () => (next * blockRows < plan[table] ? next++ : undefined)
      const rows = (index: number) => block(table, index, plan, first, loader.storage, options.seed)
      const writers = Array.from({ length: writersFor(wanted, options.jobs) }, () =>
        writeAll({ loader, client, table, blocks, rows, wrote: shown.add }),
      )
      const failed = (await Promise.allSettled(writers)).find((result) => result.status === 'rejected')
      if (failed) throw failed.reason
    }
    if (!options.append) await loader.index()
    const final = (await loader.settle()) - (options.append ? base : 0)
    // InnoDB grows its files by extents of up to 4 MiB each: only in very small databases does that matter.
    if (Math.abs(final - target) > Math.max(target * 0.05, 16 * 2 ** 20))
      throw new Error(`the database has ${bytes(final)}, which is not within 5 % of the target of ${bytes(target)}`)
    const counts = Object.fromEntries(tableNames.map((table) => [table, first[table] + plan[table]]))
    const seconds = Number(((performance.now() - start) / 1000).toFixed(2))
    const figures = { target_bytes: target, final_bytes: final, ...counts, seed: options.seed, seconds }
    for (const [name, value] of Object.entries(figures)) console.log(`${name}=${value}`)
  } catch (error) {
    await discard()
    throw error
  } finally {
    shown.end()
  }
}

/**
 * A generator's main program: options, the work, one line on failure, exit codes 0, 1 (failed), 2 (command line), 77.
 * @param connect gives the client and the loader for the options; may refuse them
 */
export async function generatorMain(
  meta: ImportMeta,
  connect: (options: Values<typeof generatorOptions>) => Later<{
    client: Client
    loader: Loader
    close?: () => Promise<void>
  }>,
): Promise<void> {
  const name = meta.filename.replace(/.*\/|\.mts$/g, '')
  try {
    const options = parseOptions(process.argv.slice(2), generatorOptions)
    if (options.help) return console.log(`${headerOf(meta.filename)}\n\n${optionHelp(generatorOptions)}`)
    if (options.database && !/^\w+$/.test(options.database))
      throw new UsageError(`--database ${options.database}: letters, digits and _ only`)
    const { client, loader, close } = await connect(options)
    try {
      await generate(options, client, loader)
    } finally {
      await close?.()
    }
  } catch (error) {
    console.error(`${name}: ${messageOf(error)}`)
    process.exitCode = error instanceof UsageError ? 2 : error instanceof Skipped ? 77 : 1
  }
}
