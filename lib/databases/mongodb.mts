// MongoDB for the database scenario and its generator: the server, its tools, the content of a database.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { type Document, MongoClient } from 'mongodb'
import { needEngine, startContainer } from '../engine.mts'
import { tools, which } from '../host.mts'
import { skipOrFail } from '../prepare.mts'
import type { Run } from '../run.mts'
import { $, scope } from '../sh.mts'
import { Mismatch, Skipped, UsageError } from '../verdict.mts'
import { type Client, containerEnvironment, oneServer, type ServerChoice } from './client.mts'
import { type Content, type DatabaseRun, exportEnv, needDatabaseSpace } from './server.mts'
import { references, tableNames } from './shop.mts'

/** The database that the generator fills, and the fresh one that dumps are loaded into. */
export const source = 'vykar_mongo_test'
export const restoredName = 'vykar_mongo_restore_test'
/** The container that a run starts. */
export const container = 'vykar-mongo'

/** Where a password that is not in the URI is taken from: it is kept out of command lines. */
const passwordVariable = 'MONGODB_PASSWORD'

/** A server: the words before and after its tools' names, and the address that the driver connects to. */
export interface Mongo {
  tools: Client
  driver: MongoClient
}

/** A driver that gives up after ten seconds where no server answers; it keeps no process alive on its own. */
function connection(host: string, user = '', password = ''): MongoClient {
  const auth = user ? { username: user, password } : undefined
  return new MongoClient(`mongodb://${host}`, { auth, serverSelectionTimeoutMS: 10_000, directConnection: true })
}

/** The server of a URI, through the host's mongodump and mongorestore. Throws UsageError where it is malformed. */
function uriServer(uri: string): Mongo & { password: string } {
  const url = URL.canParse(uri) ? new URL(uri) : undefined
  if (url?.protocol !== 'mongodb:' || !url.hostname || !/^\/?$/.test(url.pathname) || url.search)
    throw new UsageError('--uri: mongodb://USER:PASSWORD@HOST:PORT is needed')
  const user = decodeURIComponent(url.username)
  const password = decodeURIComponent(url.password) || (process.env[passwordVariable] ?? '')
  const args = [`--host=${url.hostname}`, `--port=${url.port || 27017}`]
  if (user) args.push(`--username=${user}`, '--authenticationDatabase=admin')
  const env: Record<string, string> = user && password ? { [passwordVariable]: password } : {}
  const driver = connection(`${url.hostname}:${url.port || 27017}`, user, password)
  return { tools: { exec: [], args, env }, driver, password: user && password }
}

/** The server of a container, through the tools in it and the port that it publishes on the host. */
function containerServer(engine: string, name: string): Mongo {
  const environment = containerEnvironment(engine, name)
  const port = spawnSync(engine, ['port', name, '27017/tcp'], { encoding: 'utf8' }).stdout.trim().split('\n')[0]
  if (!port) throw new UsageError(`--container ${name} publishes no port 27017 on this host: name its server by --uri`)
  if (environment.MONGO_INITDB_ROOT_USERNAME)
    throw new UsageError(`--container ${name} asks for a password: name its server by --uri`)
  return {
    tools: { exec: [engine, 'exec', '-i', name], args: [], env: {} },
    driver: connection(port.replace('0.0.0.0', '127.0.0.1')),
  }
}

/**
 * The server that the options name.
 * @returns its tools, its driver, and the password where it asks for one: the tools must be given it in a --config file
 * @throws UsageError when the choice is unclear or malformed, Skipped without the engine
 */
export function mongoOf(choice: ServerChoice): Mongo & { password: string } {
  const { container: name, uri, engine } = choice
  oneServer(choice)
  if (uri) return uriServer(uri)
  if (!name) throw new UsageError('--container NAME or --uri URI is needed: the server to fill')
  if (!which(engine))
    throw new Skipped(`${engine} is missing: apt-get install -y ${engine === 'docker' ? 'docker.io' : engine}`)
  return { ...containerServer(engine, name), password: '' }
}

/** What a server says of itself. Throws UsageError where it cannot be used. */
export async function describe(
  driver: MongoClient,
): Promise<{ version: string; ferret?: string; replicaSet?: string }> {
  try {
    const build = await driver.db('admin').command({ buildInfo: 1 })
    const hello = await driver.db('admin').command({ hello: 1 })
    await driver.db(source).listCollections().toArray()
    return { version: build.version, ferret: build.ferretdbVersion, replicaSet: hello.setName }
  } catch (error) {
    throw new UsageError(`the MongoDB server cannot be used: ${(error as Error).message.split('\n')[0]}`)
  }
}

/**
 * The server for a run, a container of its own or the one that the options name; its version is put on record.
 * @throws UsageError where it cannot be used, or one of the databases is there already
 */
export async function startMongodb(run: DatabaseRun): Promise<Mongo & { ferret?: string }> {
  const { uri, engine, image } = run.options
  const name = run.options.container ?? container
  needDatabaseSpace(run)
  const gone = uri && ['mongodump', 'mongorestore'].find((tool) => !which(tool))
  if (gone) throw skipOrFail(`${gone} is missing: ${tools.mongodump.install}`, [gone], run.common.require)
  if (!uri && !run.dry) needEngine(run, engine)
  if (!uri && !run.options.container) {
    const healthy = ['mongodump', '--quiet', '--db=vykar_e2e_none', '--archive=/dev/null']
    await startContainer(
      run,
      { engine, name, image, environment: {}, args: ['mongod', '--bind_ip_all'], port: 27017 },
      healthy,
    )
    run.report.versions.image = image
  }
  if (run.dry)
    return {
      tools: { exec: uri ? [] : [engine, 'exec', '-i', name], args: [], env: {} },
      driver: connection('127.0.0.1'),
    }
  const { password, ...server } = mongoOf({ container: uri ? run.options.container : name, uri, engine })
  run.cleanup.add('connection to the server', () => server.driver.close())
  exportEnv(run, server.tools.env)
  if (password) {
    const file = join(run.dirs.work, 'mongo-tools.yaml')
    await $`(umask 077; printf "password: '%s'\n" "$(printf %s "$MONGODB_PASSWORD" | sed "s/'/''/g")" > ${file})`
    server.tools.args.push(`--config=${file}`)
  }
  const { version, ferret, replicaSet } = await describe(server.driver)
  run.report.versions.mongodb = ferret ? `FerretDB ${ferret} (as MongoDB ${version})` : version
  const tool = await $`${server.tools.exec} mongodump --version`
  run.report.versions.mongodump = /mongodump version: (\S+)/.exec(tool.stdout)?.[1] ?? 'unknown'
  run.report.notes.push(
    `${replicaSet ? `replica set ${replicaSet}` : 'a standalone server'}: a dump of one of its databases is of no single moment, so nothing is written while it is made`,
  )
  if (ferret)
    run.report.notes.push(
      `FerretDB ${ferret} refuses the indexes that mongorestore makes: indexes are neither restored nor compared`,
    )
  if (uri || run.options.container) await ownDatabases(run, server.driver)
  return { ...server, ferret }
}

/** On a server that stays, both databases must be new, and go again on PASS. */
async function ownDatabases(run: Run, driver: MongoClient): Promise<void> {
  for (const database of [source, restoredName])
    if ((await driver.db(database).listCollections().toArray()).length)
      throw new UsageError(`database ${database} is there already: db.dropDatabase(), if it may go`)
  for (const database of [source, restoredName])
    run.cleanup.add(
      `database ${database}`,
      async () => run.keep(`database ${database}`) || (await driver.db(database).dropDatabase()),
      true,
    )
}

/** Documents and content of every collection: the sum of 60 bits of each document's md5, BSON byte for byte. */
export async function contentOf({ driver }: Mongo, database: string): Promise<Content> {
  scope().transcript.line(`# every document of ${database}, its BSON, read through the driver and summed up by md5`)
  if (scope().dry) return {}
  const content: Content = {}
  for (const name of tableNames) {
    let [rows, sum] = [0, 0n]
    for await (const document of driver.db(database).collection(name).find({}, { raw: true, batchSize: 32 })) {
      rows++
      const bson = document as unknown as Buffer
      sum += BigInt(`0x${createHash('md5').update(bson).digest('hex').slice(0, 15)}`)
    }
    if (rows) content[name] = { rows: String(rows), sum: String(sum) }
  }
  return content
}

/** Collections and their indexes must be the same in both databases. */
export async function sameIndexes({ driver }: Mongo): Promise<void> {
  if (scope().dry) return
  const text = async (database: string) => {
    const found = await driver.db(database).listCollections({}, { nameOnly: true }).toArray()
    const names = found.map(({ name }) => name).sort()
    const indexes = names.map((name) => driver.db(database).collection(name).listIndexes().toArray())
    const strip = ({ key, name, unique }: Document) => ({ key, name, unique })
    return JSON.stringify((await Promise.all(indexes)).map((list, i) => [names[i], list.map(strip)]))
  }
  const [there, here] = [await text(source), await text(restoredName)]
  if (there !== here) throw new Mismatch(`indexes differ: ${there} in the source, ${here} restored`)
}

/** Every order has the events that it says, every customer the orders. */
export async function wholeShop({ driver }: Mongo, database: string): Promise<void> {
  if (scope().dry) return
  for (const { table, column, parent, counted } of references) {
    if (!counted) continue
    const db = driver.db(database)
    const groups = db
      .collection(table)
      .aggregate<{ _id: number; count: number }>([{ $group: { _id: `$${column}`, count: { $sum: 1 } } }])
    const counts = new Map<number, number>()
    for await (const { _id, count } of groups) counts.set(_id, count)
    for await (const { _id, [counted]: says } of db
      .collection<{ _id: number } & Document>(parent)
      .find({}, { projection: { [counted]: 1 } }))
      if (says !== (counts.get(_id) ?? 0))
        throw new Mismatch(`not one moment: ${parent} ${_id} says ${says} ${table}, and has ${counts.get(_id) ?? 0}`)
  }
}

/** Takes a database away. */
export async function dropDatabase({ driver }: Mongo, database: string): Promise<void> {
  scope().transcript.line(`# through the driver: use ${database}; db.dropDatabase()`)
  if (!scope().dry) await driver.db(database).dropDatabase()
}
