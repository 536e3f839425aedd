#!/usr/bin/env -S npx tsx
// PostgreSQL through both dump patterns, on every repository: hooks (a dump in `before`, removed in `finally`) and
// command_dumps (pg_dump's stdout as a file of the snapshot).
// Passes when each dump, restored into a fresh database, equals the source: schema, rows and content of every table; when
// the dump that was made while the database was written to holds one moment; and when a dump that fails leaves no snapshot.
import { type Background, background } from '#lib/background.mts'
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, read, step, undo } from '#lib/sh.mts'
import { Blocked, UsageError } from '#lib/verdict.mts'
import { listed, numbers, says, shows } from '#scripts/checks.mts'
import { fresh, retire, serverWants } from '#scripts/common.mts'
import {
  chosen,
  churnOption,
  databaseOptions,
  databases,
  endings,
  fitsHook,
  needs,
  noted,
  oneMoment,
  onlyDump,
  plant,
  sameContent,
  sameDump,
  secondBackup,
  serverWords,
  start,
  takeAway,
  whileWritten,
  wholeDump,
  wordHidden,
} from '#scripts/databases/common.mts'
import { up } from '#scripts/engine.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const wants = ['docker', 'psql', 'pg_dump', ...serverWants] as const
const options = { ...databaseOptions('postgres:16'), ...churnOption } as const

await scenario(import.meta, { needs, wants, options }, async (run) => {
  const { 'target-gib': gib, jobs, seed, container, uri } = run.options
  const { source, restored } = databases(run, 'pg')

  step('start')
  await noted()
  await start(run, 'postgres', {
    image: 'postgres:16',
    flags: ['-e', 'POSTGRES_HOST_AUTH_METHOD=trust'],
    args: ['postgres', '-c', 'max_wal_size=2GB', '-c', 'shared_buffers=256MB'],
  })
  // Only the final server listens on TCP, the one that initialises does not.
  if (!uri) await up(run.options.engine, 'db', 'in-db pg_isready -q -h 127.0.0.1')
  await $({
    otherwise: UsageError,
  })`in-db psql -X -At -d postgres -c 'SHOW server_version' > version 2> version.err || { echo "the server cannot be asked: $(paste -sd ' ' version.err)" >&2; exit 1; }`
  await $`in-db pg_dump --version | sed -E 's/^[^0-9]*([0-9.]+).*/\1/' > pg_dump.version`
  await $({
    otherwise: UsageError,
  })`(($(sed 's/[^0-9].*//' pg_dump.version) >= $(sed 's/[^0-9].*//' version))) || { echo "pg_dump $(<pg_dump.version) is older than the server $(<version): apt-get install postgresql-client-$(sed 's/[^0-9].*//' version)" >&2; exit 1; }`
  Object.assign(run.report.versions, { postgres: read('version'), pg_dump: read('pg_dump.version') })
  if (container || uri)
    for (const database of [source, restored])
      takeAway(
        database,
        `in-db psql -X -d ${database} -c '\\q' 2> /dev/null`,
        `in-db dropdb --if-exists --force ${database}`,
      )

  step('generate')
  const words = [
    '--database',
    source,
    '--target-gib',
    String(gib),
    '--seed',
    String(seed),
    ...(jobs ? ['--jobs', String(jobs)] : []),
  ]
  await $({
    limit: '2h',
  })`e2e data-gen/postgres ${words} ${serverWords(run.options, ['postgresql', 'postgres'], '5432')} > figures`
  // Rows and a sum that no order of rows changes; of all rows but those that are written while the dump is made.
  await $`cat > content.sql <<'EOF'
\set sum 'coalesce(sum((''x'' || left(md5(r::text), 16))::bit(64)::bigint::numeric), 0)'
SELECT 'customers', count(*), :sum FROM (SELECT * FROM customers WHERE name IS DISTINCT FROM 'churn') r UNION ALL
SELECT 'products', count(*), :sum FROM (SELECT id, sku, name, price_cents, md5(image) FROM products) r UNION ALL
SELECT 'orders', count(*), :sum FROM (SELECT * FROM orders WHERE customer_id NOT IN (SELECT id FROM customers WHERE name = 'churn')) r UNION ALL
SELECT 'order_events', count(*), :sum FROM (SELECT id, order_id, kind, at, md5(payload) FROM order_events WHERE payload IS DISTINCT FROM 'churn') r;
EOF`
  await $({
    limit: '30m',
  })`in-db psql -X -q -At -v ON_ERROR_STOP=1 -d ${source} < content.sql > source.content`
  await plant()
  await $`in-db psql -X -q -v ON_ERROR_STOP=1 -d ${source} -c "COMMENT ON TABLE products IS '$(<planted)'"`

  step('sample dump')
  // A quarter of the data, the images: how long would the whole take?
  const sample = await $`in-db pg_dump -Fc -Z1 -t products ${source} > /dev/null`
  await servers()

  for (const repo of run.repos)
    for (const variant of chosen(run))
      await run.row({ repo, variant }, async () => {
        const dump = `noted in-db pg_dump -Fc -Z1 ${source}`
        const path = variant === 'hooks' ? 'shop.dump' : 'vykar-dumps/shop.dump'

        step('init')
        if (variant === 'hooks') {
          await fitsHook(sample, 0.25, gib)
          await $`mkdir dumps`
          await config`
sources:
  - path: dumps
    label: postgres
    hooks:
      before: ${`${dump} > dumps/shop.dump`}
      finally: ${'rm -f dumps/shop.dump'}
`
        } else
          await config`
sources:
  - label: postgres
    command_dumps:
      - name: ${'shop.dump'}
        command: ${dump}
`
        await fresh(repo)

        step('failing dump')
        // After all that it was to write, with an exit code or by a signal; `finally` runs all the same.
        for (const [end, message] of Object.entries(endings)) {
          await $`sed -E 's/pg_dump/& -t products/; s/^( *(command|before): .*)$/\1; ${{ raw: end }}/' config.yaml > failing.yaml`
          await $({ limit: '1h', expect: [1] })`vykar --config failing.yaml backup -R ${repo} > failing.out 2>&1`
          await says('failing.out', message, 'the backup failed, but not for its dump')
          await $`vykar --config config.yaml list -R ${repo} > none.out`
          await shows(0, 'none.out', 'the dump failed')
          if (variant === 'hooks') await $`test -z "$(ls dumps)"`
        }

        const written = variant === run.options.churn
        let churn: Background | undefined
        const rounds = `SELECT count(*) FROM customers WHERE name = 'churn'`
        const ended = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'churn' AND datname = '${source}'`
        if (written) {
          step('writes begin')
          // One customer, order and event a round, each round a transaction of its own, until the connection is ended.
          await $`cat > churn.sql <<'EOF'
DO $do$ DECLARE c bigint; o bigint; BEGIN LOOP
  INSERT INTO customers SELECT max(id) + 1, 'churn', 'churn', 'churn', now(), 1 FROM customers RETURNING id INTO c;
  INSERT INTO orders SELECT max(id) + 1, c, 1, 1, now(), 2 FROM orders RETURNING id INTO o;
  INSERT INTO order_events SELECT max(id) + 1, o, 'placed', now(), 'churn' FROM order_events;
  INSERT INTO order_events SELECT max(id) + 1, o, 'paid', now(), 'churn' FROM order_events;
  COMMIT; PERFORM pg_sleep(0.02); END LOOP; END $do$
EOF`
          // A server goes on with what its client has begun, also when that is gone.
          undo`in-db psql -X -At -d postgres -c ${ended} || true`
          churn = await background(
            'churn',
          )`in-db psql -X -q -d ${`dbname=${source} application_name=churn`} < churn.sql`
          await $({
            limit: '1m',
            otherwise: Blocked,
          })`until in-db psql -X -At -d ${source} -c ${rounds} > rounds.before && test $(<rounds.before) -gt 0; do sleep 0.1; done`
        }

        step('backup')
        await $`rm -f dumped.sha256`
        await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
        await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`

        if (written) {
          step('writes end')
          await $`in-db psql -X -At -d ${source} -c ${rounds} > rounds.after`
          await $`in-db psql -X -At -d postgres -c ${ended}`
          await churn?.end('TERM')
          // What the rounds wrote goes again, children first.
          await $`in-db psql -X -q -v ON_ERROR_STOP=1 -d ${source} <<'EOF'
DELETE FROM order_events WHERE payload = 'churn';
DELETE FROM orders WHERE customer_id IN (SELECT id FROM customers WHERE name = 'churn');
DELETE FROM customers WHERE name = 'churn';
EOF`
        }
        // vykar exits 0 also where `finally` failed.
        if (variant === 'hooks') await $`rmdir dumps`

        step('list')
        await $`vykar --config config.yaml list -R ${repo} > list.out`
        await listed('postgres')

        step('snapshot list')
        await $`vykar --config config.yaml snapshot list -R ${repo} $(<snapshot.id) > snapshot.list`
        await onlyDump('snapshot.list', path)

        step('restore')
        await $({
          limit: '1h',
        })`rm -rf lost && mkdir lost restored && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) restored > restored.out`
        await numbers('restored', 'backup.out', 'list.out', 'restored.out')
        await witnessed('restored', 'snapshot')

        step('load')
        await wholeDump('restored', path)
        await wordHidden(repo, `restored/${path}`)
        await $`in-db dropdb --if-exists --force ${restored}`
        await $`in-db createdb ${restored}`
        await $({ limit: '2h' })`in-db pg_restore --exit-on-error -d ${restored} < restored/${path} && rm -r restored`

        step('compare')
        for (const [database, file] of [[source, 'source'], [restored, 'restored']] as const) // biome-ignore format: one line
          await $`in-db pg_dump --schema-only ${database} | grep -v '^.\(un\)\?restrict ' > ${file}.schema`
        await $`diff source.schema restored.schema`
        await $({
          limit: '30m',
        })`in-db psql -X -q -At -v ON_ERROR_STOP=1 -d ${restored} < ../content.sql > restored.content`
        await sameContent('../source.content', 'restored.content')
        await sameDump('snapshot')
        // Every order has the events that it says, every customer the orders: true at any moment, and never of a torn dump.
        await $({ limit: '30m' })`in-db psql -X -q -At -v ON_ERROR_STOP=1 -d ${restored} > odd.out <<'EOF'
SELECT 'customers', id FROM customers p WHERE order_count <> (SELECT count(*) FROM orders WHERE customer_id = p.id);
SELECT 'orders', id FROM orders p WHERE event_count <> (SELECT count(*) FROM order_events WHERE order_id = p.id);
EOF`
        await oneMoment('odd.out')
        if (written) {
          await $`in-db psql -X -At -d ${restored} -c ${rounds} > rounds.restored`
          await whileWritten()
        }
        await $`in-db dropdb --force ${restored}`

        step('second backup')
        // One more table, and a dump of it alone: two snapshots of one source.
        await $`in-db psql -X -q -v ON_ERROR_STOP=1 -d ${source} -c "DROP TABLE IF EXISTS second; CREATE TABLE second AS SELECT 'vykar-e2e second' AS word"`
        await $`sed 's/pg_dump/& -t second/' config.yaml > second.yaml`
        if (variant === 'hooks') await $`mkdir dumps`
        await secondBackup(repo, 'postgres', path)
        await $`in-db pg_restore -f - < restored-renewed/${path} > second.sql && grep -q 'vykar-e2e second' second.sql && rm -r restored-renewed`
        await $`in-db psql -X -q -v ON_ERROR_STOP=1 -d ${source} -c 'DROP TABLE second'`

        step('retire')
        await retire(repo, ['snapshot', 'renewed'])
      })
})
