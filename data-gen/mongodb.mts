#!/usr/bin/env -S npx tsx
// A MongoDB database to back up: a shop's customers, products, orders and order events with random payloads, seeded and
// repeatable. BSON into parallel mongorestore processes, indexes last, then fsync.
//
//   npx tsx data-gen/mongodb.mts --container vykar-mongo --target-gib 2.5
//   npx tsx data-gen/mongodb.mts --uri mongodb://127.0.0.1:27017 --target-gib 2 --append
//
// Makes the database vykar_mongo_test, which must not be there (unless --append). The last lines are key=value.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BSON, MongoServerError } from 'mongodb'
import { generatorMain, type Loader } from '#lib/databases/generator.mts'
import { source as database, describe, mongoOf } from '#lib/databases/mongodb.mts'
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

/** Sizes are those of BSON documents, of which MongoDB's dataSize is the sum: it is what a dump holds, too. */
const storage: Storage = {
  piece: 1024,
  pieceOnDisk: 1024,
  eventOnDisk: 123,
  productOnDisk: 92,
  event: [4, 12],
  image: [32, 96],
}

function encode(table: Table, rows: Iterable<Cell[]>): Buffer {
  const columns: readonly Column[] = tables[table]
  const documents = [...rows].map((row) =>
    BSON.serialize(Object.fromEntries(row.map((cell, i) => [columns[i]!.name.replace(/^id$/, '_id'), cell]))),
  )
  return Buffer.concat(documents)
}

await generatorMain(import.meta, (options) => {
  const { tools, driver, password } = mongoOf(options)
  const db = driver.db(database)
  // The tools take a password from a terminal, a command line or a file: only the file is fit for a program.
  const secret = password ? mkdtempSync(join(tmpdir(), 'vykar-e2e-mongodb-')) : ''
  if (secret) {
    writeFileSync(join(secret, 'tools.yaml'), `password: ${JSON.stringify(password)}\n`, { mode: 0o600 })
    tools.args.push(`--config=${join(secret, 'tools.yaml')}`)
  }
  const close = async () => {
    await driver.close()
    if (secret) rmSync(secret, { recursive: true })
  }
  let ferret: string | undefined

  /** FerretDB counts what its own storage takes, a third more: there the documents are read and summed up. */
  const size = async () => {
    if (!ferret) return Number((await db.stats()).dataSize)
    let sum = 0
    for (const table of tableNames)
      for await (const document of db.collection(table).find({}, { raw: true }))
        sum += (document as unknown as Buffer).length
    return sum
  }
  const prepare = async (append: boolean) => {
    ferret = (await describe(driver)).ferret
    const there = (await db.listCollections().toArray()).length > 0
    if (append && !there) throw new UsageError(`there is no database ${database} to append to: leave --append out`)
    if (there && !append)
      throw new UsageError(`database ${database} is there already: db.dropDatabase(), or add to it with --append`)
    const first = tableNames.map(async (table) => {
      if (!append) await db.createCollection(table)
      const [last] = await db
        .collection<{ _id: number }>(table)
        .find({}, { projection: { _id: 1 } })
        .sort({ _id: -1 })
        .limit(1)
        .toArray()
      return [table, last?._id ?? 0]
    })
    return Object.fromEntries(await Promise.all(first)) as Record<Table, number>
  }
  const index = async () => {
    for (const { table, column } of references) await db.collection(table).createIndex({ [column]: 1 })
  }
  const settle = async () => {
    // FerretDB has no such command (code 59), and writes through.
    await driver
      .db('admin')
      .command({ fsync: 1 })
      .catch((error) => {
        if (!(error instanceof MongoServerError && error.code === 59)) throw error
      })
    return size()
  }
  const loader: Loader = {
    storage,
    size,
    prepare,
    index,
    settle,
    encode,
    discard: () => db.dropDatabase(),
    writer: (table) => {
      const to = [`--db=${database}`, `--collection=${table}`, '--quiet', '--writeConcern={w: 1, j: false}', '-']
      return {
        argv: [...tools.exec, 'mongorestore', ...tools.args, ...to],
        head: Buffer.alloc(0),
        tail: Buffer.alloc(0),
      }
    },
  }
  return { client: tools, loader, close }
})
