#!/usr/bin/env -S npx tsx
// Looks at a MongoDB database through the driver, for what MongoDB's own tools cannot print.
//
//   npx tsx data-gen/mongo.mts describe --container NAME              the server: version, ferret, replica_set
//   npx tsx data-gen/mongo.mts content --database NAME --container NAME   a line a collection: name, documents, the sum of
//                                                                     60 bits of each document's md5, BSON byte for byte
//   npx tsx data-gen/mongo.mts indexes …                              a line an index
//   npx tsx data-gen/mongo.mts odd …                                  parents that have not the children that they count
//   npx tsx data-gen/mongo.mts plant --word WORD …                  a collection of its own, `planted`, holds this word alone
//   npx tsx data-gen/mongo.mts there …                                exits 1 where there is no such database
//   npx tsx data-gen/mongo.mts drop …                                 takes it away
import { createHash } from 'node:crypto'
import type { Document, MongoClient } from 'mongodb'
import { optionHelp, parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { serverOptions } from './client.mts'
import { describe, mongoOf } from './mongo-server.mts'
import { references, tableNames } from './shop.mts'

const specs = {
  help: { kind: 'flag', help: 'this text' },
  ...serverOptions,
  database: { kind: 'string', help: 'the database', default: 'vykar_mongo_test' },
  word: { kind: 'string', help: 'what `plant` plants' },
} as const

async function content(driver: MongoClient, database: string): Promise<void> {
  for (const name of tableNames) {
    let [rows, sum] = [0, 0n]
    for await (const document of driver.db(database).collection(name).find({}, { raw: true, batchSize: 32 })) {
      rows++
      const md5 = createHash('md5')
        .update(document as unknown as Buffer)
        .digest('hex')
      sum += BigInt(`0x${md5.slice(0, 15)}`)
    }
    if (rows) console.log(`${name}\t${rows}\t${sum}`)
  }
}

async function indexes(driver: MongoClient, database: string): Promise<void> {
  const found = await driver.db(database).listCollections({}, { nameOnly: true }).toArray()
  for (const name of found.map((collection) => collection.name).sort())
    for (const { v, ns, ...index } of await driver.db(database).collection(name).listIndexes().toArray())
      console.log(`${name}\t${JSON.stringify(index)}`)
}

async function odd(driver: MongoClient, database: string): Promise<void> {
  const db = driver.db(database)
  for (const { table, column, parent, counted } of references) {
    if (!counted) continue
    const counts = new Map<number, number>()
    const group = { $group: { _id: `$${column}`, count: { $sum: 1 } } }
    for await (const { _id, count } of db.collection(table).aggregate<{ _id: number; count: number }>([group]))
      counts.set(_id, count)
    const parents = db.collection<{ _id: number } & Document>(parent).find({}, { projection: { [counted]: 1 } })
    for await (const { _id, [counted]: says } of parents)
      if (says !== (counts.get(_id) ?? 0)) console.log(`${parent}\t${_id}`)
  }
}

const verbs: Record<string, (driver: MongoClient, database: string, word?: string) => Promise<unknown>> = {
  describe: async (driver) => {
    const { version, ferret, replicaSet } = await describe(driver)
    console.log(`version=${version}\nferret=${ferret ?? ''}\nreplica_set=${replicaSet ?? ''}`)
  },
  content,
  indexes,
  odd,
  plant: (driver, database, word) => {
    if (!word) throw new UsageError('--word WORD is needed: what is planted')
    return driver.db(database).collection<{ _id: number }>('planted').replaceOne({ _id: 1 }, { word }, { upsert: true })
  },
  there: async (driver, database) => {
    if (!(await driver.db(database).listCollections().toArray()).length) process.exitCode = 1
  },
  drop: (driver, database) => driver.db(database).dropDatabase(),
}

try {
  const options = parseOptions(process.argv.slice(2), specs, true)
  const [verb = '', ...more] = options._
  if (options.help) console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  else {
    if (!verbs[verb] || more.length) throw new UsageError(`one of ${Object.keys(verbs).join(', ')} is needed`)
    const driver = await mongoOf(options)
    try {
      await verbs[verb](driver, options.database, options.word)
    } finally {
      await driver.close()
    }
  }
} catch (error) {
  console.error(`mongo: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
