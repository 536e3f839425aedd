// PostgreSQL for the database scenarios: the server, the content of a database, writes that go on during a dump.
import { $ } from '../sh.mts'
import { UsageError } from '../verdict.mts'
import type { Client } from './client.mts'
import type { Query, Writer } from './consistency.mts'
import { type Content, type DatabaseRun, parseContent, server } from './server.mts'
import { type Column, type Table, tableNames, tables } from './shop.mts'

/** The database that the generator fills, and the fresh one that dumps are loaded into. */
export const source = 'vykar_pg_test'
export const restoredName = 'vykar_pg_restore_test'
/** The container that a run starts. */
export const container = 'vykar-pg'

/**
 * The server that the options name, or a container of the run's own; its version is put on record.
 * @throws UsageError where it cannot be used with these options, or the client is older than the server
 */
export async function startPostgres(run: DatabaseRun): Promise<Client> {
  const client = await server(run, 'postgres', {
    name: container,
    environment: { POSTGRES_HOST_AUTH_METHOD: 'trust' },
    args: ['postgres', '-c', 'max_wal_size=2GB', '-c', 'shared_buffers=256MB'],
    // Only the final server listens on TCP, the one that initialises does not.
    healthy: ['pg_isready', '-q', '-h', '127.0.0.1'],
  })
  const { exec } = client
  const asked = await $({ expect: 'any' })`${exec} psql -X -At -d postgres -c ${'SHOW server_version'}`
  if (run.dry) return client
  if (asked.code !== 0)
    throw new UsageError(`the PostgreSQL server cannot be used: ${asked.stderr.trim().split('\n')[0]}`)
  const version = asked.stdout.trim()
  const dump = (await $`${exec} pg_dump --version`).stdout.trim()
  run.report.versions.postgres = version
  run.report.versions.pg_dump = /\d+(\.\d+)*/.exec(dump)?.[0] ?? dump
  const [mine, its] = [run.report.versions.pg_dump, version].map((text) => Number.parseInt(text, 10)) as [
    number,
    number,
  ]
  if (mine < its)
    throw new UsageError(`pg_dump ${mine} is older than the server ${its}: apt-get install postgresql-client-${its}`)
  const { container: named, uri } = run.options
  if (named || uri) await ownDatabases(run, client)
  return client
}

/** On a server that stays, both databases must be new, and go again on PASS. */
async function ownDatabases(run: DatabaseRun, { exec }: Client): Promise<void> {
  for (const database of [source, restoredName]) {
    const sql = `SELECT datname FROM pg_database WHERE datname = '${database}'`
    const there = await $`${exec} psql -X -At -d postgres -c ${sql}`
    if (there.stdout.trim())
      throw new UsageError(`database ${database} is there already: dropdb ${database}, if it may go`)
  }
  for (const database of [source, restoredName])
    run.cleanup.add(
      `database ${database}`,
      () => run.keep(`database ${database}`) || $`${exec} dropdb --if-exists --force ${database}`,
      true,
    )
}

/** Runs SQL through psql. */
export const query =
  ({ exec }: Client): Query =>
  async (database, sql) => {
    const asked = await $({ limit: '30m' })`${exec} psql -X -q -At -v ON_ERROR_STOP=1 -d ${database} -c ${sql}`
    return asked.stdout.trim()
  }

/** A row as text: payloads by their md5, the rest as PostgreSQL writes it. */
const rowText = (columns: readonly Column[]) =>
  `(${columns.map(({ name, type }) => (type === 'bytes' ? `md5(${name})` : name)).join(', ')})::text`

/**
 * Rows and content of every table: the sum of 64 bits of each row's md5, which no order of rows changes.
 * @param upTo only rows with an id up to this one, by table
 */
export async function contentOf(client: Client, database: string, upTo?: Record<Table, number>): Promise<Content> {
  const sum = (table: Table) => `sum(('x' || left(md5(${rowText(tables[table])}), 16))::bit(64)::bigint::numeric)`
  const count = (table: Table) =>
    `SELECT '${table}', count(*), coalesce(${sum(table)}, 0) FROM ${table}${upTo ? ` WHERE id <= ${upTo[table]}` : ''}`
  return parseContent(await query(client)(database, tableNames.map(count).join(' UNION ALL ')))
}

/** Tables, indexes and constraints as pg_dump writes them must be the same in both databases. */
export async function sameSchema({ exec }: Client): Promise<void> {
  for (const database of [source, restoredName])
    await $`${exec} pg_dump --schema-only ${database} | grep -v '^.\(un\)\?restrict ' > ${database}.schema.sql`
  await $`diff ${source}.schema.sql ${restoredName}.schema.sql`
}

/** One customer, order and event a round, each round a transaction of its own, until the connection is ended. */
const churnSql = `DO $do$ DECLARE c bigint; o bigint; BEGIN LOOP
  INSERT INTO customers SELECT max(id) + 1, 'churn', 'churn', 'churn', now(), 1 FROM customers RETURNING id INTO c;
  INSERT INTO orders SELECT max(id) + 1, c, 1, 1, now(), 2 FROM orders RETURNING id INTO o;
  INSERT INTO order_events SELECT max(id) + 1, o, 'placed', now(), 'churn' FROM order_events;
  INSERT INTO order_events SELECT max(id) + 1, o, 'paid', now(), 'churn' FROM order_events;
  COMMIT; PERFORM pg_sleep(0.02); END LOOP; END $do$`
const churnName = 'vykar-e2e-churn'

/** The writer for this server. */
export function writer(client: Client): Writer {
  const words = [...client.exec, 'psql', '-X', '-q', '-d', `dbname=${source} application_name=${churnName}`]
  const terminate = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '${churnName}'`
  const ask = query(client)
  return {
    database: source,
    query: ask,
    argv: [...words, '-c', churnSql],
    end: async () => void (await ask('postgres', terminate)),
  }
}
