#!/usr/bin/env -S npx tsx
// A MariaDB database to back up: a shop's customers, products, orders and order events with random payloads, seeded and
// repeatable. LOAD DATA LOCAL INFILE by parallel writers, secondary indexes and foreign keys last, then a flush.
//
//   npx tsx data-gen/mariadb.mts --container vykar-maria --target-gib 10
//   npx tsx data-gen/mariadb.mts --uri mariadb://root@127.0.0.1:3306 --target-gib 2 --append
//
// Makes the database vykar_maria_test, which must not be there (unless --append). The last lines are key=value.
import { createHash } from 'node:crypto'
import { UsageError } from '#lib/verdict.mts'
import { ask, clientOf } from './client.mts'
import { generatorMain, type Loader } from './generator.mts'
import { type Cell, type Column, references, type Storage, type Table, tableNames, tables } from './shop.mts'

/**
 * A BLOB that does not fit its row is stored in pages of 16 KiB of its own, each with 16330 bytes of it (the file header
 * and trailer take 46, the BLOB's own header 8), and one page in a hundred is InnoDB's book-keeping; rows and their indexes
 * as measured on MariaDB 10.11.
 */
const storage: Storage = {
  piece: 16330,
  pieceOnDisk: 16550,
  eventOnDisk: 190,
  productOnDisk: 130,
  event: [1, 2],
  image: [2, 6],
}
const types: Record<Column['type'], string> = {
  id: 'BIGINT',
  int: 'INT',
  text: 'VARCHAR(120) CHARACTER SET utf8mb4',
  time: 'DATETIME(6)',
  bytes: 'LONGBLOB',
}

/** Ends of fields and lines that no random payload contains, so that its bytes need no escapes. */
const [fieldEnd, lineEnd] = ['field', 'line'].map((what) => createHash('md5').update(`vykar-e2e ${what}`).digest()) as [
  Buffer,
  Buffer,
]

function encode(_: Table, rows: Iterable<Cell[]>): Buffer {
  const parts: Buffer[] = []
  for (const row of rows)
    row.forEach((cell, i) => {
      const text = cell instanceof Date ? cell.toISOString().slice(0, -1).replace('T', ' ') : cell
      parts.push(Buffer.isBuffer(text) ? text : Buffer.from(String(text)), i < row.length - 1 ? fieldEnd : lineEnd)
    })
  return Buffer.concat(parts)
}

await generatorMain(import.meta, async (options) => {
  const database = options.database ?? 'vykar_maria_test'
  const client = await clientOf('mariadb', options)
  const mariadb = (db: string, sql: string) => ask(client, 'mariadb', ['--batch', '--skip-column-names', db], sql)
  // The sizes of the files, not the statistics, which are estimates.
  const size = async () =>
    Number(
      await mariadb(
        'mysql',
        `SELECT COALESCE(SUM(FILE_SIZE), 0) FROM information_schema.INNODB_SYS_TABLESPACES WHERE NAME LIKE '${database}/%'`,
      ),
    )

  const prepare = async (append: boolean) => {
    let there: string
    try {
      there = await mariadb('mysql', `SHOW DATABASES LIKE '${database}'`)
    } catch (error) {
      throw new UsageError(`the server cannot be used: ${(error as Error).message}`)
    }
    if (append && !there) throw new UsageError(`there is no database ${database} to append to: leave --append out`)
    if (append) {
      const counts = tableNames.map((table) => `(SELECT COALESCE(MAX(id), 0) FROM ${table})`).join(', ')
      const ids = (await mariadb(database, `SELECT ${counts}`)).split('\t').map(Number)
      return Object.fromEntries(tableNames.map((table, i) => [table, ids[i]])) as Record<Table, number>
    }
    if (there)
      throw new UsageError(
        `database ${database} is there already: DROP DATABASE ${database}, or add to it with --append`,
      )
    await mariadb('mysql', `CREATE DATABASE ${database}`)
    for (const table of tableNames) {
      const columns: readonly Column[] = tables[table]
      const list = columns.map(({ name, type }) => `${name} ${types[type]} NOT NULL`).join(', ')
      await mariadb(database, `CREATE TABLE ${table} (${list}, PRIMARY KEY (id)) ENGINE=InnoDB ROW_FORMAT=DYNAMIC`)
    }
    return Object.fromEntries(tableNames.map((table) => [table, 0])) as Record<Table, number>
  }
  const index = async () => {
    for (const { table, column, parent } of references) {
      await mariadb(database, `ALTER TABLE ${table} ADD INDEX (${column})`)
      // With the check on, the whole table would be copied; the references hold, since ids are counted.
      await mariadb(
        database,
        `SET foreign_key_checks = 0; ALTER TABLE ${table} ADD FOREIGN KEY (${column}) REFERENCES ${parent} (id)`,
      )
    }
  }
  const settle = async () => {
    await mariadb(database, `ANALYZE TABLE ${tableNames.join(', ')}`)
    // Every page of these tables is on disk when the export lock is granted.
    await mariadb(database, `FLUSH TABLES ${tableNames.join(', ')} FOR EXPORT; UNLOCK TABLES`)
    return size()
  }
  const hex = (bytes: Buffer) => `X'${bytes.toString('hex')}'`
  const loader: Loader = {
    storage,
    size,
    prepare,
    index,
    settle,
    discard: () => mariadb('mysql', `DROP DATABASE IF EXISTS ${database}`),
    rows: {
      encode,
      writer: (table) => {
        const columns: readonly Column[] = tables[table]
        const names = columns.map(({ name }) => name).join(', ')
        const load = `SET unique_checks = 0, foreign_key_checks = 0; LOAD DATA LOCAL INFILE '/dev/stdin' INTO TABLE ${table}
          CHARACTER SET binary FIELDS TERMINATED BY ${hex(fieldEnd)} ESCAPED BY '' LINES TERMINATED BY ${hex(lineEnd)} (${names})`
        const mariadb = [...client.exec, 'mariadb', ...client.args, '--local-infile=1', database, '-e', load]
        // The client opens /dev/stdin by its name, which a pipe allows; what Node gives a child is a socket.
        const argv = ['sh', '-c', 'cat | "$@"', 'sh', ...mariadb]
        return { argv, head: Buffer.alloc(0), tail: Buffer.alloc(0) }
      },
    },
  }
  return { client, loader }
})
