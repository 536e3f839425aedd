// What filling a database costs, beside three ceilings from the same run, and beside the naive way.
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { which } from '#lib/host.mts'
import { bytes } from '#lib/terminal.mts'
import { mariadbServer, postgresServer, type TestServer } from './host/database-servers.mts'

interface Bench {
  dir: string
  root: string
  result: (what: string, value: string, goal: string, met: boolean) => void
  /** Seconds of a bash command that succeeds. */
  seconds: (command: string) => number
  median: (values: number[]) => number
}
const gib = 2
const rounds = 3

/** How a server is reached from a shell, and what is asked of it there. */
interface Dialect {
  kind: 'postgres' | 'mariadb'
  start: (durable: boolean) => Promise<TestServer>
  database: string
  client: string
  environment: (server: TestServer) => string
  /** A client that runs SQL in the database `db`. */
  sql: (server: TestServer, db: string, text: string) => string
  /** Loads a prepared file, which is the client's stdin. */
  load: (server: TestServer, file: string) => string
  /** Marks the words of the generator's loading client. */
  loading: string
  emptyCopy: string[]
  durable: string
  dump: (server: TestServer, db: string) => string
  naive: { table: string; insert: string }
}

const pg: Dialect = {
  kind: 'postgres',
  start: postgresServer,
  database: 'vykar_pg_test',
  client: 'psql',
  environment: ({ password }) => `export PGPASSWORD=${password};`,
  sql: ({ port }, db, text) => `psql -Xqh127.0.0.1 -Upostgres -p${port} -v ON_ERROR_STOP=1 -d ${db} -c "${text}"`,
  load: ({ port }, file) =>
    `psql -Xqh127.0.0.1 -Upostgres -p${port} -d vykar_pg_test -c 'COPY raw FROM STDIN (FORMAT binary)' < ${file}`,
  loading: 'FROM STDIN',
  emptyCopy: ['CREATE TABLE raw (LIKE order_events)', 'ALTER TABLE raw ALTER COLUMN payload SET STORAGE EXTERNAL'],
  durable: 'CHECKPOINT',
  dump: ({ port }, db) => `pg_dump -h127.0.0.1 -Upostgres -p${port} -Fc ${db}`,
  naive: {
    table: 'CREATE TABLE naive (id bigserial PRIMARY KEY, name text, payload text)',
    insert:
      "INSERT INTO naive (name, payload) SELECT 'customer ' || g, repeat(md5(random()::text), 64) FROM generate_series(1, 20000) g",
  },
}
const maria: Dialect = {
  kind: 'mariadb',
  start: mariadbServer,
  database: 'vykar_maria_test',
  client: 'mariadb',
  environment: ({ password }) => `export MYSQL_PWD=${password};`,
  sql: ({ port }, db, text) => `mariadb -h127.0.0.1 -utester -P${port} ${db} -e "${text}"`,
  load: ({ port }, file) =>
    `cat ${file} | mariadb -h127.0.0.1 -utester -P${port} --local-infile=1 vykar_maria_test -e "$(cat ${file}.sql)"`,
  loading: 'LOAD DATA',
  emptyCopy: ['CREATE TABLE raw LIKE order_events; ALTER TABLE raw DROP INDEX order_id'],
  durable: 'FLUSH TABLES raw FOR EXPORT; UNLOCK TABLES',
  dump: ({ port }, db) => `mariadb-dump -h127.0.0.1 -utester -P${port} --single-transaction --quick ${db} | gzip -6`,
  naive: {
    table: 'CREATE TABLE naive (id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100), payload TEXT)',
    insert:
      "INSERT INTO naive (name, payload) SELECT CONCAT('customer ', seq), REPEAT(MD5(RAND()), 64) FROM seq_1_to_20000",
  },
}

/** A client that keeps what the generator would load, or drops it, and passes everything else on. */
function sinkClient({ client, loading }: Dialect, dir: string, keep: boolean): string {
  mkdirSync(dir, { recursive: true })
  const script = `#!/bin/bash
for last; do :; done
if [[ $* != *'${loading}'* ]]; then exec ${which(client)} "$@"; fi
${keep ? `[[ $* == *' order_events'* ]] && { printf '%s' "$last" | sed 's/INTO TABLE order_events/INTO TABLE raw/' > ${dir}/rows.$$.sql; exec cat > ${dir}/rows.$$; }` : ''}
exec cat > /dev/null
`
  writeFileSync(join(dir, client), script, { mode: 0o755 })
  return dir
}

async function one(bench: Bench, dialect: Dialect, disk: number): Promise<void> {
  const { dir, root, result, median, seconds } = bench
  const { kind, database, environment, sql, load, durable, naive, dump } = dialect
  const server = await dialect.start(true)
  const env = environment(server)
  const admin = kind === 'postgres' ? 'postgres' : 'mysql'
  const generator = (path: string, ok: boolean) => {
    const script = `'${root}/node_modules/.bin/tsx' '${root}/data-gen/${kind}.mts' --uri '${server.uri}' --target-gib ${gib}`
    const done = spawnSync('bash', ['-c', `PATH=${path}:$PATH ${script}`], { encoding: 'utf8' })
    if ((done.status === 0) !== ok) throw new Error(`${kind} generator: exit ${done.status}: ${done.stderr}`)
    return Number(/^seconds=(.*)/m.exec(done.stdout)?.[1])
  }
  const files = join(dir, `raw-${kind}`)
  // These end with a complaint about a database that stayed empty: what they took until then is asked.
  const start = performance.now()
  generator(sinkClient(dialect, join(dir, `null-${kind}`), false), false)
  const alone = (performance.now() - start) / 1000
  generator(sinkClient(dialect, files, true), false)
  const prepared = readdirSync(files).filter((name) => /^rows\.\d+$/.test(name))
  const size = prepared.reduce((sum, name) => sum + statSync(join(files, name)).size, 0)

  const [ratios, rates]: [number[], string[]] = [[], []]
  for (let i = 0; i < rounds; i++) {
    server.clear()
    seconds('sync')
    const made = (gib * 2 ** 30) / generator(dir, true)
    for (const text of dialect.emptyCopy) seconds(`${env} ${sql(server, database, text)}`)
    const copies = prepared.map((name) => `{ ${env} ${load(server, join(files, name))} & }; pids+=($!)`).join('; ')
    const raw =
      size /
      seconds(`${copies}; for p in \${pids[@]}; do wait $p || exit; done; ${env} ${sql(server, database, durable)}`)
    ratios.push(made / raw)
    rates.push(`${bytes(made)}/s to ${bytes(raw)}/s`)
  }
  console.log(`  ${kind}: generation alone ${bytes((gib * 2 ** 30) / alone)}/s, dd with fsync ${bytes(disk)}/s`)
  console.log(`  per round, generator to raw load: ${rates.join('; ')}`)
  const ratio = median(ratios)
  result(`${kind}.mts ÷ raw load of a prepared file, ${gib} GiB`, ratio.toFixed(2), '>= 0.8', ratio >= 0.8)

  const honest = generatorRate()
  seconds(`${env} ${sql(server, admin, 'CREATE DATABASE vykar_bench_naive')}`)
  seconds(`${env} ${sql(server, 'vykar_bench_naive', naive.table)}`)
  const insert = `${env} ${sql(server, 'vykar_bench_naive', naive.insert)}`
  const inserted = seconds(Array.from({ length: 10 }, () => insert).join(' && '))
  const slow = compressed('vykar_bench_naive') / inserted
  const value = `${(honest / slow).toFixed(1)} (${bytes(honest)}/s)`
  result(`${kind}.mts ÷ naive INSERTs, bytes of compressed dump`, value, '>= 3', honest >= 3 * slow)
  server.stop()
  rmSync(files, { recursive: true })

  function compressed(db: string): number {
    return Number(spawnSync('bash', ['-c', `${env} ${dump(server, db)} | wc -c`], { encoding: 'utf8' }).stdout)
  }
  function generatorRate(): number {
    server.clear()
    return (1 / generator(dir, true)) * compressed(database)
  }
}

/** Both generators, each beside its ceilings. */
export async function databases(bench: Bench): Promise<void> {
  const { dir, seconds } = bench
  seconds(`head -c ${gib}G /dev/urandom > ${dir}/random && sync`)
  const disk = (gib * 2 ** 30) / seconds(`dd if=${dir}/random of=${dir}/copy bs=1M conv=fsync status=none`)
  seconds(`rm ${dir}/random ${dir}/copy`)
  for (const dialect of [pg, maria]) await one(bench, dialect, disk)
}
