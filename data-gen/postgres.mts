#!/usr/bin/env -S npx tsx
// A PostgreSQL database to back up: a shop's customers, products, orders and order events with random payloads, seeded
// and repeatable. COPY in binary format by parallel writers, indexes and foreign keys last, then CHECKPOINT.
//
//   npx tsx data-gen/postgres.mts --container vykar-pg --target-gib 10
//   npx tsx data-gen/postgres.mts --uri postgresql://postgres@127.0.0.1:5432 --target-gib 2 --append
//
// Makes the database vykar_pg_test, which must not be there (unless --append). The last lines are key=value.
import { ask, clientOf } from '#lib/databases/client.mts'
import { generatorMain, type Loader } from '#lib/databases/generator.mts'
import {
  type Cell,
  type Column,
  references,
  type Storage,
  type Table,
  tableNames,
  tables,
} from '#lib/databases/shop.mts'
import { UsageError } from '#lib/verdict.mts'

const database = 'vykar_pg_test'

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

/** COPY's binary format: a count of fields, then each with its length in front; integers are big-endian. */
function encodeCell(cell: Cell, type: Column['type']): [length: Buffer, value: Buffer] {
  const length = Buffer.alloc(4)
  let value: Buffer
  if (Buffer.isBuffer(cell)) value = cell
  else if (typeof cell === 'string') value = Buffer.from(cell)
  else {
    value = Buffer.alloc(type === 'int' ? 4 : 8)
    if (type === 'int') value.writeInt32BE(Number(cell))
    else value.writeBigInt64BE(typeof cell === 'number' ? BigInt(cell) : BigInt(cell.getTime() - epoch) * 1000n)
  }
  length.writeInt32BE(value.length)
  return [length, value]
}

function encode(table: Table, rows: Iterable<Cell[]>): Buffer {
  const columns: readonly Column[] = tables[table]
  const count = Buffer.from([columns.length >> 8, columns.length & 255])
  const parts: Buffer[] = []
  for (const row of rows) parts.push(count, ...row.flatMap((cell, i) => encodeCell(cell, columns[i]!.type)))
  return Buffer.concat(parts)
}

await generatorMain(import.meta, (options) => {
  const client = clientOf('postgres', options)
  const psql = (db: string, sql: string) =>
    ask(client, 'psql', ['-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', '-d', db, '-c', sql])
  const size = () => Number(psql('postgres', `SELECT pg_database_size('${database}')`))

  const prepare = (append: boolean) => {
    let there: string
    try {
      there = psql('postgres', `SELECT 1 FROM pg_database WHERE datname = '${database}'`)
    } catch (error) {
      throw new UsageError(`the server cannot be used: ${(error as Error).message}`)
    }
    if (append && !there) throw new UsageError(`there is no database ${database} to append to: leave --append out`)
    if (append) {
      const counts = tableNames.map((table) => `(SELECT coalesce(max(id), 0) FROM ${table})`).join(", ',', ")
      const ids = psql(database, `SELECT concat(${counts})`).split(',').map(Number)
      return Object.fromEntries(tableNames.map((table, i) => [table, ids[i]])) as Record<Table, number>
    }
    if (there)
      throw new UsageError(`database ${database} is there already: dropdb ${database}, or add to it with --append`)
    psql('postgres', `CREATE DATABASE ${database}`)
    for (const table of tableNames) {
      const columns: readonly Column[] = tables[table]
      psql(
        database,
        `CREATE TABLE ${table} (${columns.map(({ name, type }) => `${name} ${types[type]} NOT NULL`).join(', ')})`,
      )
      // Random bytes do not compress: the attempt would only cost time.
      for (const { name, type } of columns)
        if (type === 'bytes') psql(database, `ALTER TABLE ${table} ALTER COLUMN ${name} SET STORAGE EXTERNAL`)
    }
    return Object.fromEntries(tableNames.map((table) => [table, 0])) as Record<Table, number>
  }
  const index = () => {
    for (const table of tableNames) psql(database, `ALTER TABLE ${table} ADD PRIMARY KEY (id)`)
    for (const { table, column, parent } of references) {
      psql(database, `CREATE INDEX ON ${table} (${column})`)
      psql(database, `ALTER TABLE ${table} ADD FOREIGN KEY (${column}) REFERENCES ${parent} (id)`)
    }
  }
  const settle = () => {
    psql(database, 'VACUUM ANALYZE')
    psql(database, 'CHECKPOINT')
    return size()
  }
  const loader: Loader = {
    storage,
    size,
    prepare,
    index,
    settle,
    encode,
    discard: () => psql('postgres', `DROP DATABASE IF EXISTS ${database} WITH (FORCE)`),
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
  }
  return { client, loader }
})
