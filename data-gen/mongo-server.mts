// How a MongoDB server is reached by the driver, for the generator and for what looks at a database.
import { MongoClient } from 'mongodb'
import { serverUri } from '#lib/address.mts'
import { ask } from '#lib/ask.mts'
import { statedEnvironment } from '#lib/environment.mts'
import { which } from '#lib/host.mts'
import { Skipped, UsageError } from '#lib/verdict.mts'
import { containerEnvironment, oneServer, type ServerChoice } from './client.mts'

/** Where a password that is not in the URI is taken from: it is kept out of command lines. */
export const passwordVariable = 'MONGODB_PASSWORD'

/**
 * The driver for the server that the options name; it gives up after ten seconds where no server answers.
 * @throws UsageError when the choice is unclear or malformed, Skipped without the engine
 */
export async function mongoOf(choice: ServerChoice): Promise<MongoClient> {
  const { container: name, uri, engine } = choice
  oneServer(choice)
  const settings = { serverSelectionTimeoutMS: 10_000, directConnection: true }
  if (uri) {
    const { host, port, user, password } = serverUri(uri, ['mongodb'], '27017')
    const secret = password || process.env[passwordVariable] || ''
    const auth = user ? { username: user, password: secret } : undefined
    return new MongoClient(`mongodb://${host.includes(':') ? `[${host}]` : host}:${port}`, { ...settings, auth })
  }
  if (!name) throw new UsageError('--container NAME or --uri URI is needed: the server to fill')
  if (!which(engine))
    throw new Skipped(`${engine} is missing: apt-get install -y ${engine === 'docker' ? 'docker.io' : engine}`)
  const environment = await containerEnvironment(engine, name)
  const asked = await ask([engine, 'port', name, '27017/tcp'], { env: statedEnvironment() })
  const port = asked.stdout.trim().split('\n')[0]
  if (!port) throw new UsageError(`--container ${name} publishes no port 27017 on this host: name its server by --uri`)
  if (environment.MONGO_INITDB_ROOT_USERNAME)
    throw new UsageError(`--container ${name} asks for a password: name its server by --uri`)
  return new MongoClient(`mongodb://${port.replace('0.0.0.0', '127.0.0.1')}`, settings)
}

/** What a server says of itself. Throws UsageError where it cannot be used. */
export async function describe(
  driver: MongoClient,
): Promise<{ version: string; ferret?: string; replicaSet?: string }> {
  try {
    const build = await driver.db('admin').command({ buildInfo: 1 })
    const hello = await driver.db('admin').command({ hello: 1 })
    await driver.db('vykar_e2e_none').listCollections().toArray()
    return { version: build.version, ferret: build.ferretdbVersion, replicaSet: hello.setName }
  } catch (error) {
    throw new UsageError(`the MongoDB server cannot be used: ${(error as Error).message.split('\n')[0]}`)
  }
}
