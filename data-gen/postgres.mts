#!/usr/bin/env -S npx tsx
// A PostgreSQL database to back up: a shop's customers, products, orders and order events with random payloads, seeded
// and repeatable. COPY in binary format by parallel writers, indexes and foreign keys last, then CHECKPOINT.
//
//   npx tsx data-gen/postgres.mts --container vykar-pg --target-gib 10
//   npx tsx data-gen/postgres.mts --uri postgresql://postgres@127.0.0.1:5432 --target-gib 2 --append
//
// Makes the database vykar_pg_test, which must not be there (unless --append). The last lines are key=value.
import { UsageError } from '#lib/verdict.mts'
import { ask, clientOf } from './client.mts'
import { generatorMain, type Loader } from './generator.mts'
import { type Cell, type Column, references, type Storage, type Table, tableNames, tables } from './shop.mts'

/**
 * Payloads are stored out of line in chunks of 1996 bytes (TOAST_MAX_CHUNK_SIZE for pages of 8 KiB), four to a page, each
 * with an index entry of 20 bytes; rows and their indexes as measured on PostgreSQL 15.
 */
const storage: Storage = {
  piece: 1996,
  pieceOnDisk: 2070,
  eventOnDisk: 158,
  productOnDisk: 110,
  event: [2, 6],
  image: [16, 48],
}
const types: Record<Column['type'], string> = {
  id: 'bigint',
  int: 'integer',
  text: 'text',
  time: 'timestamptz',
  bytes: 'bytea',
}

/** PostgreSQL counts microseconds from 2000-01-01. */
const epoch = Date.UTC(2000, 0, 1)

/** Bytes that a cell takes in COPY's binary format, with the length in front of it. */
function cellSize(cell: Cell, type: Column['type']): number {
  if (Buffer.isBuffer(cell)) return 4 + cell.length
  if (typeof cell === 'string') return 4 + Buffer.byteLength(cell)
  return type === 'int' ? 8 : 12
}

/** COPY's binary format: a row is a count of fields, then each with its length in front; integers are big-endian. */
function encode(table: Table, rows: Iterable<Cell[]>): Buffer {
  const types = tables[table].map(({ type }) => type)
  const all = [...rows]
  const size = all.reduce((sum, row) => row.reduce<number>((s, cell, i) => s + cellSize(cell, types[i]!), sum + 2), 0)
  const out = Buffer.allocUnsafe(size)
  let at = 0
  for (const row of all) {
    at = out.writeInt16BE(row.length, at)
    for (const [i, cell] of row.entries()) {
      at = out.writeInt32BE(cellSize(cell, types[i]!) - 4, at)
      if (Buffer.isBuffer(cell)) at += cell.copy(out, at)
      else if (typeof cell === 'string') at += out.write(cell, at)
      else if (types[i] === 'int') at = out.writeInt32BE(Number(cell), at)
      else
        at = out.writeBigInt64BE(typeof cell === 'number' ? BigInt(cell) : BigInt(cell.getTime() - epoch) * 1000n, at)
    }
  }
  return out
}

await generatorMain(import.meta, async (options) => {
  const database = options.database ?? 'vykar_pg_test'
  const client = await clientOf('postgres', options)
  const psql = (db: string, sql: string) =>
    ask(client, 'psql', ['-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', '-d', db, '-c', sql])
  const size = async () => Number(await psql('postgres', `SELECT pg_database_size('${database}')`))

  const prepare = async (append: boolean) => {
    let there: string
    try {
      there = await psql('postgres', `SELECT 1 FROM pg_database WHERE datname = '${database}'`)
    } catch (error) {
      throw new UsageError(`the server cannot be used: ${(error as Error).message}`)
    }
    if (append && !there) throw new UsageError(`there is no database ${database} to append to: leave --append out`)
    if (append) {
      const counts = tableNames.map((table) => `(SELECT coalesce(max(id), 0) FROM ${table})`).join(", ',', ")
      const ids = (await psql(database, `SELECT concat(${counts})`)).split(',').map(Number)
      return Object.fromEntries(tableNames.map((table, i) => [table, ids[i]])) as Record<Table, number>
    }
    if (there)
      throw new UsageError(`database ${database} is there already: dropdb ${database}, or add to it with --append`)
    await psql('postgres', `CREATE DATABASE ${database}`)
    const statements = tableNames.flatMap((table) => {
      const columns: readonly Column[] = tables[table]
      const list = columns.map(({ name, type }) => `${name} ${types[type]} NOT NULL`).join(', ')
      // Random bytes do not compress: the attempt would only cost time.
      const plain = columns
        .filter(({ type }) => type === 'bytes')
        .map(({ name }) => `ALTER ${name} SET STORAGE EXTERNAL`)
      return [`CREATE TABLE ${table} (${list})`, ...plain.map((change) => `ALTER TABLE ${table} ${change}`)]
    })
    await psql(database, statements.join('; '))
    return Object.fromEntries(tableNames.map((table) => [table, 0])) as Record<Table, number>
  }
  const index = async () => {
    const keys = tableNames.map((table) => `ALTER TABLE ${table} ADD PRIMARY KEY (id)`)
    const foreign = references.flatMap(({ table, column, parent }) => [
      `CREATE INDEX ON ${table} (${column})`,
      `ALTER TABLE ${table} ADD FOREIGN KEY (${column}) REFERENCES ${parent} (id)`,
    ])
    await psql(database, [...keys, ...foreign].join('; '))
  }
  const settle = async () => {
    await psql(database, 'CHECKPOINT')
    return size()
  }
  const loader: Loader = {
    storage,
    size,
    prepare,
    index,
    settle,
    discard: () => psql('postgres', `DROP DATABASE IF EXISTS ${database} WITH (FORCE)`),
    rows: {
      encode,
      writer: (table) => ({
        argv: [
          ...client.exec,
          'psql',
          '-X',
          '-q',
          '-v',
          'ON_ERROR_STOP=1',
          '-d',
          database,
          '-c',
          'SET synchronous_commit = off',
          '-c',
          `COPY ${table} FROM STDIN (FORMAT binary)`,
        ],
        // Signature, flags, length of the header extension; the trailer is a field count of -1.
        head: Buffer.concat([Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1'), Buffer.alloc(8)]),
        tail: Buffer.from([255, 255]),
      }),
    },
  }
  return { client, loader }
})
