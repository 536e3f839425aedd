#!/usr/bin/env -S npx tsx
// PostgreSQL through both dump patterns, on every repository: hooks (a dump in `before`, removed in `finally`) and
// command_dumps (pg_dump's stdout as a file of the snapshot).
// Passes when each dump, restored into a fresh database, equals the source: schema, rows and content of every table; when
// the dump that was made while the database was written to holds one moment; and when a dump that fails leaves no snapshot.
import { join } from 'node:path'
import { Churn, oneMoment } from '#lib/databases/consistency.mts'
import {
  container,
  contentOf,
  restoredName as fresh,
  query,
  sameSchema,
  source,
  startPostgres,
  writer,
} from '#lib/databases/postgres.mts'
import {
  chosen,
  churnOption,
  databaseNeeds,
  databaseOptions,
  expectDump,
  figures,
  fitsHook,
  generator,
  restoredDump,
  sameContent,
} from '#lib/databases/server.mts'
import type { Table } from '#lib/databases/shop.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $ } from '#lib/sh.mts'
import { expectSnapshot, freshRepository, restored, retire } from '#lib/standard.mts'

const wants = ['docker', 'psql', 'pg_dump', 'vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const
const options = { ...databaseOptions('postgres:16'), ...churnOption }
const name = `${source}.dump`

await scenario(import.meta, { needs: databaseNeeds, wants, options }, async (run) => {
  const db = await run.step('start', () => startPostgres(run))
  const { exec } = db
  const made = await run.step('generate', async () =>
    figures(await $({ limit: '2h' })`${generator(run, 'postgres', container)}`),
  )
  const before = await run.step('checksum source', () => contentOf(db, source))
  // A quarter of the data, the images: how long would the whole take?
  const sample = await run.step('sample dump', () => $`${exec} pg_dump -Fc -Z1 -t products ${source} > /dev/null`)
  await run.step('servers', () => startServices(run))
  const dump = [...exec, 'pg_dump', '-Fc', '-Z1', source].join(' ')

  for (const repo of run.repos)
    for (const variant of chosen(run)) {
      const dumps = join(run.dirs.work, `${repo}-${variant}`, 'dumps')
      const values: Record<string, string> = {
        hooks: { DIR: dumps, BEFORE: `${dump} > ${dumps}/${name}`, FINALLY: `rm -f ${dumps}/${name}` },
        command_dumps: { NAME: name, COMMAND: dump },
      }[variant]
      await run.row({ repo, variant, fragment: `postgres-${variant}`, values }, async ({ step, config, report }) => {
        if (variant === 'hooks') {
          report.facts['time limit'] = fitsHook(run, sample, 0.25)
          await $`mkdir ${dumps}`
        }
        await step('init', () => freshRepository(config, repo))
        await step('failing dump', async () => {
          await $`sed -E 's/pg_dump/& -t products/; s/^( *(command|before): ".*)"$/\1; exit 1"/' ${config} > failing.yaml`
          const refused = await $({ limit: '3600s', expect: [1] })`vykar --config failing.yaml backup -R ${repo}`
          refused.complained(/(exit code|exited with) 1\b/)
          const list = await $({ limit: '10m', out: 'none.out' })`vykar --config ${config} list -R ${repo}`
          list.must(/^No snapshots found\.$/m, 'the dump failed, but a snapshot was made')
        })
        const churn = new Churn(writer(db))
        if (variant === run.options.churn) await step('writes begin', () => churn.start())
        const backup = await step(
          'backup',
          () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
        )
        if (variant === run.options.churn) await step('writes end', () => churn.stop())
        // vykar exits 0 also where `finally` failed.
        if (variant === 'hooks') await step('dump removed', () => $`rmdir ${dumps}`)
        const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'postgres' }))
        const path = variant === 'hooks' ? name : `vykar-dumps/${name}`
        await step('snapshot list', () => expectDump(config, repo, id, path))
        const dir = await step('restore', () => restored(config, repo, id))
        await step('load', async () => {
          const file = restoredDump(dir, path, made.target_bytes! * 0.7)
          await $`${exec} dropdb --if-exists ${fresh} && ${exec} createdb ${fresh}`
          await $({ limit: '2h' })`${exec} pg_restore --exit-on-error -d ${fresh} < ${file}`
          await $`rm -r ${dir}`
        })
        await step('compare', async () => {
          await sameSchema(db)
          sameContent(before, await contentOf(db, fresh, made as Record<Table, number>))
          await oneMoment(query(db), fresh)
          if (variant === run.options.churn) await churn.within(fresh)
        })
        await step('drop', () => $`${exec} dropdb ${fresh}`)
        await step('retire', () => retire(config, repo, id))
      })
    }
})
