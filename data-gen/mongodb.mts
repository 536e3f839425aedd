#!/usr/bin/env -S npx tsx
// A MongoDB database to back up: a shop's customers, products, orders and order events with random payloads, seeded and
// repeatable. Unordered inserts by parallel writers, indexes last, then fsync.
//
//   npx tsx data-gen/mongodb.mts --container vykar-mongo --target-gib 2.5
//   npx tsx data-gen/mongodb.mts --uri mongodb://127.0.0.1:27017 --target-gib 2 --append
//
// Makes the database vykar_mongo_test, which must not be there (unless --append). The last lines are key=value.
import { BSON, type CreateIndexesOptions, type IndexSpecification, MongoServerError } from 'mongodb'
import { UsageError } from '#lib/verdict.mts'
import { generatorMain, type Loader } from './generator.mts'
import { describe, mongoOf } from './mongo-server.mts'
import { type Cell, type Column, references, type Storage, type Table, tableNames, tables } from './shop.mts'

/** Sizes are those of BSON documents, of which MongoDB's dataSize is the sum: it is what a dump holds, too. */
const storage: Storage = {
  piece: 1024,
  pieceOnDisk: 1024,
  eventOnDisk: 123,
  productOnDisk: 92,
  event: [2, 6],
  image: [16, 48],
}

/**
 * An index of each kind, with every option that a dump has to keep. No document ever expires: times end in 2024, and this is the
 * longest expiry that MongoDB takes, 68 years. FerretDB takes none of them.
 */
const special: [Table, IndexSpecification, CreateIndexesOptions][] = [
  ['customers', { email: 1 }, { unique: true, collation: { locale: 'en', strength: 2 } }],
  ['customers', { city: 1, created_at: -1 }, { name: 'by city, newest first', sparse: true, hidden: true }],
  ['products', { sku: 'hashed' }, {}],
  ['products', { name: 'text' }, { weights: { name: 5 }, default_language: 'german' }],
  ['products', { price_cents: 1 }, { partialFilterExpression: { price_cents: { $gt: 50_000 } } }],
  ['orders', { placed_at: 1 }, { expireAfterSeconds: 2 ** 31 - 1 }],
  ['orders', { '$**': 1 }, { wildcardProjection: { quantity: 1, event_count: 1 } }],
]

/** A document by its columns' names; `id` is MongoDB's `_id`. */
const documentOf = (columns: readonly Column[], row: Cell[]) =>
  Object.fromEntries(row.map((cell, i) => [columns[i]!.name.replace(/^id$/, '_id'), cell]))

await generatorMain(import.meta, async (options) => {
  const database = options.database ?? 'vykar_mongo_test'
  const driver = await mongoOf(options)
  const db = driver.db(database)
  let ferret: string | undefined

  /** FerretDB counts what its own storage takes, a third more: there the documents are read and summed up. */
  const size = async () => {
    if (!ferret) return Number((await db.stats()).dataSize)
    let sum = 0
    for (const table of tableNames)
      for await (const document of db.collection(table).find({}, { raw: true, batchSize: 32 }))
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
    if (!ferret) for (const [table, keys, how] of special) await db.collection(table).createIndex(keys, how)
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
    discard: () => db.dropDatabase(),
    rows: {
      insert: async (table, rows) => {
        const documents = [...rows].map((row) => documentOf(tables[table], row))
        // Written to disk at the end, by fsync.
        await db.collection(table).insertMany(documents, { ordered: false, writeConcern: { w: 1, journal: false } })
        return documents.reduce((sum, document) => sum + BSON.calculateObjectSize(document), 0)
      },
    },
  }
  return { client: { exec: [], args: [], env: {} }, loader, close: () => driver.close() }
})
