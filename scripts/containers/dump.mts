// The dump pattern of the container scenarios: a database in one container, dumped through exec, loaded into a second one.
import { config } from '#lib/config.mts'
import { $, step } from '#lib/sh.mts'
import { listed, numbers, says, shows } from '#scripts/checks.mts'
import { fresh, retire } from '#scripts/common.mts'
import type { ContainerRun } from '#scripts/containers/common.mts'
import {
  endings,
  noted,
  onlyDump,
  plant,
  sameContent,
  sameDump,
  secondBackup,
  wholeDump,
  wordHidden,
} from '#scripts/databases/common.mts'
import { container, image, up, wrapper } from '#scripts/engine.mts'
import { witnessed } from '#scripts/witnessed.mts'

/** The containers `db`, which is filled, and `fresh`; `in-db` and `in-fresh` run a command in them. */
export async function databases(run: ContainerRun, engine: 'docker' | 'podman'): Promise<void> {
  const { options: o, common: { seed } } = run // biome-ignore format: one line
  step('database')
  await noted()
  await image(run, engine, o['database-image'] ?? 'postgres:16', 'postgres', o['database-image'] !== undefined)
  for (const name of ['db', 'fresh']) {
    const words = ['postgres', '-c', 'max_wal_size=2GB']
    await container(engine, name, 'postgres', ['--network', 'none', '-e', 'POSTGRES_HOST_AUTH_METHOD=trust'], words)
    await wrapper(engine, name, ['-e', 'PGUSER=postgres'])
    await up(engine, name, `in-${name} pg_isready -q -h 127.0.0.1`)
  }
  await $({
    limit: '2h',
  })`e2e data-gen/postgres --engine ${engine} --container $(<db.cid) --target-gib ${o['target-gib']} --seed ${seed} > figures`
  await $`cat > content.sql <<'EOF'
\set sum 'coalesce(sum((''x'' || left(md5(r::text), 16))::bit(64)::bigint::numeric), 0)'
SELECT 'customers', count(*), :sum FROM customers r UNION ALL SELECT 'orders', count(*), :sum FROM orders r UNION ALL
SELECT 'products', count(*), :sum FROM (SELECT id, sku, name, price_cents, md5(image) FROM products) r UNION ALL
SELECT 'order_events', count(*), :sum FROM (SELECT id, order_id, kind, at, md5(payload) FROM order_events) r;
EOF`
  await $({ limit: '30m' })`in-db psql -X -q -At -v ON_ERROR_STOP=1 -d vykar_pg_test < content.sql > source.content`
  await plant()
  await $`in-db psql -X -q -v ON_ERROR_STOP=1 -d vykar_pg_test -c "COMMENT ON TABLE products IS '$(<planted)'"`
}

/** The row of a repository: the dump fails, works, is restored, loaded and compared; then one more, of another table. */
export async function dumpRow(run: ContainerRun, repo: string): Promise<void> {
  await run.row({ repo, variant: 'dump' }, async () => {
    step('init')
    await config`
sources:
  - label: dump
    command_dumps:
      - name: shop.dump
        command: noted in-db pg_dump -Fc -Z1 vykar_pg_test
`
    await fresh(repo)

    step('failing dump')
    for (const [end, message] of Object.entries(endings)) {
      await $`sed -E 's/pg_dump/& -t products/; s/^( *command: .*)$/\1; ${{ raw: end }}/' config.yaml > failing.yaml`
      await $({ limit: '1h', expect: [1] })`vykar --config failing.yaml backup -R ${repo} > failing.out 2>&1`
      await says('failing.out', message, 'the backup failed, but not for its dump')
      await $`vykar --config config.yaml list -R ${repo} > none.out`
      await shows(0, 'none.out', 'the dump failed')
    }

    step('backup')
    await $`rm -f dumped.sha256`
    await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
    await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`

    step('list')
    await $`vykar --config config.yaml list -R ${repo} > list.out`
    await listed('dump')
    await $`vykar --config config.yaml snapshot list -R ${repo} $(<snapshot.id) > snapshot.list`
    await onlyDump('snapshot.list', 'vykar-dumps/shop.dump')

    step('restore')
    await $({
      limit: '1h',
    })`rm -rf lost && mkdir lost restored && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) restored > restored.out`
    await numbers('restored', 'backup.out', 'list.out', 'restored.out')
    await witnessed('restored', 'snapshot')

    step('load')
    await wholeDump('restored', 'vykar-dumps/shop.dump')
    await wordHidden(repo, 'restored/vykar-dumps/shop.dump')
    await $`in-fresh dropdb --if-exists vykar_pg_test && in-fresh createdb vykar_pg_test`
    await $({ limit: '2h' })`in-fresh pg_restore --exit-on-error -d vykar_pg_test < restored/vykar-dumps/shop.dump`

    step('compare')
    for (const name of ['db', 'fresh'])
      await $`in-${name} pg_dump --schema-only vykar_pg_test | grep -v '^.\(un\)\?restrict ' > ${name}.schema`
    await $`diff db.schema fresh.schema`
    await $({
      limit: '30m',
    })`in-fresh psql -X -q -At -v ON_ERROR_STOP=1 -d vykar_pg_test < ../content.sql > fresh.content`
    await sameContent('../source.content', 'fresh.content')
    await sameDump('snapshot')
    await $`in-fresh dropdb vykar_pg_test`

    step('second backup')
    // One more table, and a dump of it alone: two snapshots of one source.
    await $`in-db psql -X -q -v ON_ERROR_STOP=1 -d vykar_pg_test -c "DROP TABLE IF EXISTS second; CREATE TABLE second AS SELECT 'vykar-e2e second' AS word"`
    await $`sed 's/pg_dump/& -t second/' config.yaml > second.yaml`
    await secondBackup(repo, 'dump', 'vykar-dumps/shop.dump')
    await $`in-fresh pg_restore -f - < restored-renewed/vykar-dumps/shop.dump > second.sql && grep -q 'vykar-e2e second' second.sql && rm -r restored-renewed`
    await $`in-db psql -X -q -v ON_ERROR_STOP=1 -d vykar_pg_test -c 'DROP TABLE second'`

    step('retire')
    await retire(repo, ['snapshot', 'renewed'])
  })
}
