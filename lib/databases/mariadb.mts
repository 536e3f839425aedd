// MariaDB for the database scenarios: the server, the content of a database, writes that go on during a dump.
import { $ } from '../sh.mts'
import { UsageError } from '../verdict.mts'
import type { Client } from './client.mts'
import type { Query, Writer } from './consistency.mts'
import { type Content, type DatabaseRun, parseContent, server } from './server.mts'
import { type Column, type Table, tableNames, tables } from './shop.mts'

/** The database that the generator fills, and the fresh one that dumps are loaded into. */
export const source = 'vykar_maria_test'
export const restoredName = 'vykar_maria_restore_test'
/** The container that a run starts. */
export const container = 'vykar-maria'

/** Runs SQL through the client; columns are separated by tabs. */
export const query =
  ({ exec, args }: Client): Query =>
  async (database, sql) => {
    const asked = await $({ limit: '30m' })`${exec} mariadb ${args} --batch --skip-column-names ${database} -e ${sql}`
    return asked.stdout.trim()
  }

/**
 * The server that the options name, or a container of the run's own; its version is put on record.
 * @throws UsageError where it cannot be used with these options, or the client is older than the server
 */
export async function startMariadb(run: DatabaseRun): Promise<Client> {
  const client = await server(run, 'mariadb', {
    name: container,
    environment: { MARIADB_ALLOW_EMPTY_ROOT_PASSWORD: '1' },
    args: ['mariadbd', '--innodb-buffer-pool-size=512M', '--innodb-log-file-size=512M', '--max-allowed-packet=64M'],
    // Only the final server listens on TCP, the one that initialises does not.
    healthy: ['mariadb-admin', '-h127.0.0.1', '--silent', 'ping'],
  })
  const { exec, args } = client
  const asked = await $({ expect: 'any' })`${exec} mariadb ${args} -N -e ${'SELECT VERSION()'}`
  if (run.dry) return client
  if (asked.code !== 0) throw new UsageError(`the MariaDB server cannot be used: ${asked.stderr.trim().split('\n')[0]}`)
  const version = asked.stdout.trim()
  const dump = /(\d+\.\d+)\.\d+-MariaDB/.exec((await $`${exec} mariadb-dump --version`).stdout)?.[1] ?? ''
  run.report.versions.mariadb = version
  run.report.versions['mariadb-dump'] = dump
  const [mine, its] = [dump, version].map((text) => Number.parseInt(text, 10)) as [number, number]
  if (mine < its)
    throw new UsageError(`mariadb-dump ${mine} is older than the server ${its}: install mariadb-client ${its}`)
  const { container: named, uri } = run.options
  if (named || uri) await ownDatabases(run, client)
  return client
}

/** On a server that stays, both databases must be new, and go again on PASS. */
async function ownDatabases(run: DatabaseRun, client: Client): Promise<void> {
  for (const database of [source, restoredName])
    if (await query(client)('mysql', `SHOW DATABASES LIKE '${database}'`))
      throw new UsageError(`database ${database} is there already: DROP DATABASE ${database}, if it may go`)
  for (const database of [source, restoredName])
    run.cleanup.add(
      `database ${database}`,
      async () =>
        run.keep(`database ${database}`) || (await query(client)('mysql', `DROP DATABASE IF EXISTS ${database}`)),
      true,
    )
}

/** A row as text: payloads by their md5, the rest quoted as SQL would have it. */
const rowText = (columns: readonly Column[]) =>
  `CONCAT_WS(',', ${columns.map(({ name, type }) => (type === 'bytes' ? `MD5(${name})` : `QUOTE(${name})`)).join(', ')})`

/**
 * Rows and content of every table: the sum of 60 bits of each row's md5, which no order of rows changes.
 * @param upTo only rows with an id up to this one, by table
 */
export async function contentOf(client: Client, database: string, upTo?: Record<Table, number>): Promise<Content> {
  const sum = (table: Table) => `SUM(CAST(CONV(LEFT(MD5(${rowText(tables[table])}), 15), 16, 10) AS DECIMAL(30)))`
  const count = (table: Table) =>
    `SELECT '${table}', COUNT(*), COALESCE(${sum(table)}, 0) FROM ${table}${upTo ? ` WHERE id <= ${upTo[table]}` : ''}`
  return parseContent(await query(client)(database, tableNames.map(count).join(' UNION ALL ')))
}

/** Tables, indexes and constraints as mariadb-dump writes them must be the same in both databases. */
export async function sameSchema({ exec, args }: Client): Promise<void> {
  for (const database of [source, restoredName])
    await $`${exec} mariadb-dump ${args} --no-data --compact ${database} > ${database}.schema.sql`
  await $`diff ${source}.schema.sql ${restoredName}.schema.sql`
}

/** One customer, order and event a round, each round a transaction of its own, until the connection is ended. */
const churnSql = `BEGIN NOT ATOMIC LOOP
  START TRANSACTION;
  SELECT MAX(id) + 1 INTO @c FROM customers; SELECT MAX(id) + 1 INTO @o FROM orders; SELECT MAX(id) + 1 INTO @e FROM order_events;
  INSERT INTO customers VALUES (@c, 'churn', 'churn', 'churn', NOW(), 1);
  INSERT INTO orders VALUES (@o, @c, 1, 1, NOW(), 2);
  INSERT INTO order_events VALUES (@e, @o, 'placed', NOW(), 'churn'), (@e + 1, @o, 'paid', NOW(), 'churn');
  COMMIT; DO SLEEP(0.02); END LOOP; END`

/** The writer for this server. */
export function writer(client: Client): Writer {
  const ask = query(client)
  const find = `SELECT id FROM information_schema.PROCESSLIST WHERE db = '${source}' AND id <> CONNECTION_ID()`
  const end = async () => {
    for (const id of (await ask(source, find)).split('\n').filter(Boolean)) await ask(source, `KILL ${id}`)
  }
  return {
    database: source,
    query: ask,
    argv: [...client.exec, 'mariadb', ...client.args, '--delimiter=//', source, '-e', churnSql],
    end,
  }
}
