#!/usr/bin/env -S npx tsx
// MariaDB through both dump patterns, on every repository: hooks (a dump in `before`, removed in `finally`) and
// command_dumps (mariadb-dump's stdout as a file of the snapshot).
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

const wants = ['docker', 'mariadb', 'mariadb-dump', ...serverWants] as const
const options = { ...databaseOptions('mariadb:11'), ...churnOption } as const

await scenario(import.meta, { needs, wants, options }, async (run) => {
  const { 'target-gib': gib, jobs, seed, container, uri } = run.options
  const { source, restored } = databases(run, 'maria')

  step('start')
  await noted()
  await start(run, 'mariadb', {
    image: 'mariadb:11',
    flags: ['-e', 'MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1'],
    args: ['mariadbd', '--innodb-buffer-pool-size=512M', '--innodb-log-file-size=512M', '--max-allowed-packet=64M'],
  })
  // Only the final server listens on TCP, the one that initialises does not.
  if (!uri) await up(run.options.engine, 'db', 'in-db mariadb-admin -h127.0.0.1 --silent ping')
  await $({
    otherwise: UsageError,
  })`in-db mariadb -N -e 'SELECT VERSION()' > version 2> version.err || { echo "the server cannot be asked: $(paste -sd ' ' version.err)" >&2; exit 1; }`
  await $`in-db mariadb-dump --version | sed -E 's/.* ([0-9]+\.[0-9]+)\.[0-9]+-MariaDB.*/\1/' > mariadb-dump.version`
  await $({
    otherwise: UsageError,
  })`(($(sed 's/[^0-9].*//' mariadb-dump.version) >= $(sed 's/[^0-9].*//' version))) || { echo "mariadb-dump $(<mariadb-dump.version) is older than the server $(<version): install a mariadb-client of its version" >&2; exit 1; }`
  Object.assign(run.report.versions, { mariadb: read('version'), 'mariadb-dump': read('mariadb-dump.version') })
  if (container || uri)
    for (const database of [source, restored])
      takeAway(
        database,
        `in-db mariadb -N -D ${database} -e '' 2> /dev/null`,
        `in-db mariadb -e 'DROP DATABASE IF EXISTS ${database}'`,
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
  })`e2e data-gen/mariadb ${words} ${serverWords(run.options, ['mariadb', 'mysql'], '3306')} > figures`
  // Rows and a sum that no order of rows changes; of all rows but those that are written while the dump is made.
  await $`cat > content.sql <<'EOF'
SELECT 'customers', COUNT(*), COALESCE(SUM(CAST(CONV(LEFT(MD5(CONCAT_WS(',', QUOTE(id), QUOTE(name), QUOTE(email), QUOTE(city), QUOTE(created_at), QUOTE(order_count))), 15), 16, 10) AS DECIMAL(30))), 0) FROM customers WHERE NOT name <=> 'churn' UNION ALL
SELECT 'products', COUNT(*), COALESCE(SUM(CAST(CONV(LEFT(MD5(CONCAT_WS(',', QUOTE(id), QUOTE(sku), QUOTE(name), QUOTE(price_cents), MD5(image))), 15), 16, 10) AS DECIMAL(30))), 0) FROM products UNION ALL
SELECT 'orders', COUNT(*), COALESCE(SUM(CAST(CONV(LEFT(MD5(CONCAT_WS(',', QUOTE(id), QUOTE(customer_id), QUOTE(product_id), QUOTE(quantity), QUOTE(placed_at), QUOTE(event_count))), 15), 16, 10) AS DECIMAL(30))), 0) FROM orders WHERE customer_id NOT IN (SELECT id FROM customers WHERE name = 'churn') UNION ALL
SELECT 'order_events', COUNT(*), COALESCE(SUM(CAST(CONV(LEFT(MD5(CONCAT_WS(',', QUOTE(id), QUOTE(order_id), QUOTE(kind), QUOTE(at), MD5(payload))), 15), 16, 10) AS DECIMAL(30))), 0) FROM order_events WHERE NOT payload <=> 'churn';
EOF`
  await $({ limit: '30m' })`in-db mariadb --batch --skip-column-names ${source} < content.sql > source.content`
  await plant()
  await $`in-db mariadb ${source} -e "ALTER TABLE products COMMENT = '$(<planted)'"`

  step('sample dump')
  // A quarter of the data, the images: how long would the whole take?
  const sample = await $`in-db mariadb-dump --single-transaction --quick ${source} products > /dev/null`
  await servers()

  for (const repo of run.repos)
    for (const variant of chosen(run))
      await run.row({ repo, variant }, async () => {
        const dump = `noted in-db mariadb-dump --single-transaction --quick ${source}`
        const path = variant === 'hooks' ? 'shop.sql' : 'vykar-dumps/shop.sql'

        step('init')
        if (variant === 'hooks') {
          await fitsHook(sample, 0.25, gib)
          await $`mkdir dumps`
          await config`
sources:
  - path: dumps
    label: mariadb
    hooks:
      before: ${`${dump} > dumps/shop.sql`}
      finally: ${'rm -f dumps/shop.sql'}
`
        } else
          await config`
sources:
  - label: mariadb
    command_dumps:
      - name: ${'shop.sql'}
        command: ${dump}
`
        await fresh(repo)

        step('failing dump')
        // After all that it was to write, with an exit code or by a signal; `finally` runs all the same.
        for (const [end, message] of Object.entries(endings)) {
          await $`sed -E 's/ (vykar_maria_test\w*)/ \1 products/; s/^( *(command|before): .*)$/\1; ${{ raw: end }}/' config.yaml > failing.yaml`
          await $({ limit: '1h', expect: [1] })`vykar --config failing.yaml backup -R ${repo} > failing.out 2>&1`
          await says('failing.out', message, 'the backup failed, but not for its dump')
          await $`vykar --config config.yaml list -R ${repo} > none.out`
          await shows(0, 'none.out', 'the dump failed')
          if (variant === 'hooks') await $`test -z "$(ls dumps)"`
        }

        const written = variant === run.options.churn
        let churn: Background | undefined
        const rounds = `SELECT count(*) FROM customers WHERE name = 'churn'`
        const others = `SELECT id FROM information_schema.PROCESSLIST WHERE db = '${source}' AND id <> CONNECTION_ID()`
        if (written) {
          step('writes begin')
          // One customer, order and event a round, each round a transaction of its own, until the connection is ended.
          await $`cat > churn.sql <<'EOF'
BEGIN NOT ATOMIC LOOP
  START TRANSACTION;
  SELECT MAX(id) + 1 INTO @c FROM customers; SELECT MAX(id) + 1 INTO @o FROM orders; SELECT MAX(id) + 1 INTO @e FROM order_events;
  INSERT INTO customers VALUES (@c, 'churn', 'churn', 'churn', NOW(), 1);
  INSERT INTO orders VALUES (@o, @c, 1, 1, NOW(), 2);
  INSERT INTO order_events VALUES (@e, @o, 'placed', NOW(), 'churn'), (@e + 1, @o, 'paid', NOW(), 'churn');
  COMMIT; DO SLEEP(0.02); END LOOP; END//
EOF`
          // A server goes on with what its client has begun, also when that is gone.
          undo`for id in $(in-db mariadb -N -e ${others}); do in-db mariadb -e "KILL $id"; done`
          churn = await background('churn')`in-db mariadb --delimiter=// ${source} < churn.sql`
          await $({
            limit: '1m',
            otherwise: Blocked,
          })`until in-db mariadb -N ${source} -e ${rounds} > rounds.before && test $(<rounds.before) -gt 0; do sleep 0.1; done`
        }

        step('backup')
        await $`rm -f dumped.sha256`
        await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
        await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`

        if (written) {
          step('writes end')
          await $`in-db mariadb -N ${source} -e ${rounds} > rounds.after`
          // The writer is the only other connection to this database.
          await $`for id in $(in-db mariadb -N -e ${others}); do in-db mariadb -e "KILL $id"; done`
          await churn?.end('TERM')
          // What the rounds wrote goes again, children first.
          await $`in-db mariadb ${source} <<'EOF'
DELETE FROM order_events WHERE payload = 'churn';
DELETE FROM orders WHERE customer_id IN (SELECT id FROM customers WHERE name = 'churn');
DELETE FROM customers WHERE name = 'churn';
EOF`
        }
        // vykar exits 0 also where `finally` failed.
        if (variant === 'hooks') await $`rmdir dumps`

        step('list')
        await $`vykar --config config.yaml list -R ${repo} > list.out`
        await listed('mariadb')

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
        await $`in-db mariadb -e ${`DROP DATABASE IF EXISTS ${restored}; CREATE DATABASE ${restored}`}`
        await $({ limit: '2h' })`in-db mariadb ${restored} < restored/${path} && rm -r restored`

        step('compare')
        for (const [database, file] of [[source, 'source'], [restored, 'restored']] as const) // biome-ignore format: one line
          await $`in-db mariadb-dump --no-data --compact ${database} > ${file}.schema`
        await $`diff source.schema restored.schema`
        await $({
          limit: '30m',
        })`in-db mariadb --batch --skip-column-names ${restored} < ../content.sql > restored.content`
        await sameContent('../source.content', 'restored.content')
        await sameDump('snapshot')
        // Every order has the events that it says, every customer the orders: true at any moment, and never of a torn dump.
        await $({ limit: '30m' })`in-db mariadb --batch --skip-column-names ${restored} > odd.out <<'EOF'
SELECT 'customers', id FROM customers p WHERE order_count <> (SELECT COUNT(*) FROM orders c WHERE c.customer_id = p.id);
SELECT 'orders', id FROM orders p WHERE event_count <> (SELECT COUNT(*) FROM order_events c WHERE c.order_id = p.id);
EOF`
        await oneMoment('odd.out')
        if (written) {
          await $`in-db mariadb -N ${restored} -e ${rounds} > rounds.restored`
          await whileWritten()
        }
        await $`in-db mariadb -e ${`DROP DATABASE ${restored}`}`

        step('second backup')
        // One more table, and a dump of it alone: two snapshots of one source.
        await $`in-db mariadb ${source} -e "DROP TABLE IF EXISTS second; CREATE TABLE second AS SELECT 'vykar-e2e second' AS word"`
        await $`sed -E 's/(command|before): .* ${{ raw: source }}/& second/' config.yaml > second.yaml`
        if (variant === 'hooks') await $`mkdir dumps`
        await secondBackup(repo, 'mariadb', path)
        await $`grep -q 'vykar-e2e second' restored-renewed/${path} && rm -r restored-renewed`
        await $`in-db mariadb ${source} -e 'DROP TABLE second'`

        step('retire')
        await retire(repo, ['snapshot', 'renewed'])
      })
})
