#!/usr/bin/env -S npx tsx
// MongoDB through both dump patterns, on every repository: hooks (a dump in `before`, removed in `finally`) and
// command_dumps (mongodump's archive as a file of the snapshot).
// Passes when each dump, restored into a fresh database, equals the source: indexes, documents and content of every
// collection; and when a dump that fails leaves no snapshot.
import { join } from 'node:path'
import {
  container,
  contentOf,
  dropDatabase,
  restoredName as fresh,
  sameIndexes,
  source,
  startMongodb,
  wholeShop,
} from '#lib/databases/mongodb.mts'
import {
  chosen,
  databaseNeeds,
  databaseOptions,
  expectDump,
  figures,
  fitsHook,
  generator,
  restoredDump,
  sameContent,
} from '#lib/databases/server.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $ } from '#lib/sh.mts'
import { expectSnapshot, freshRepository, restored, retire } from '#lib/standard.mts'

const wants = ['docker', 'mongodump', 'mongorestore', 'vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const
const options = databaseOptions('mongo:7', 2.5)
const name = `${source}.archive`

await scenario(import.meta, { needs: databaseNeeds, wants, options }, async (run) => {
  const db = await run.step('start', () => startMongodb(run))
  const { exec, args } = db.tools
  const made = await run.step('generate', async () =>
    figures(await $({ limit: '2h' })`${generator(run, 'mongodb', container)}`),
  )
  const before = await run.step('checksum source', () => contentOf(db, source))
  // A quarter of the data, the images: how long would the whole take?
  const sample = await run.step(
    'sample dump',
    () => $`${exec} mongodump ${args} --quiet --db=${source} --collection=products --archive > /dev/null`,
  )
  await run.step('servers', () => startServices(run))
  const dump = [...exec, 'mongodump', ...args, '--quiet', `--db=${source}`, '--archive'].join(' ')

  for (const repo of run.repos)
    for (const variant of chosen(run)) {
      const dumps = join(run.dirs.work, `${repo}-${variant}`, 'dumps')
      const values: Record<string, string> = {
        hooks: { DIR: dumps, BEFORE: `${dump} > ${dumps}/${name}`, FINALLY: `rm -f ${dumps}/${name}` },
        command_dumps: { NAME: name, COMMAND: dump },
      }[variant]
      await run.row({ repo, variant, fragment: `mongodb-${variant}`, values }, async ({ step, config, report }) => {
        if (variant === 'hooks') {
          report.facts['time limit'] = fitsHook(run, sample, 0.25)
          await $`mkdir ${dumps}`
        }
        await step('init', () => freshRepository(config, repo))
        await step('failing dump', async () => {
          await $`sed -E 's/--db=[^ "]+/& --collection=products/; s/^( *(command|before): ".*)"$/\1; exit 1"/' ${config} > failing.yaml`
          const refused = await $({ limit: '3600s', expect: [1] })`vykar --config failing.yaml backup -R ${repo}`
          refused.complained(/(exit code|exited with) 1\b/)
          const list = await $({ limit: '10m', out: 'none.out' })`vykar --config ${config} list -R ${repo}`
          list.must(/^No snapshots found\.$/m, 'the dump failed, but a snapshot was made')
        })
        const backup = await step(
          'backup',
          () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
        )
        // vykar exits 0 also where `finally` failed.
        if (variant === 'hooks') await step('dump removed', () => $`rmdir ${dumps}`)
        const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'mongodb' }))
        const path = variant === 'hooks' ? name : `vykar-dumps/${name}`
        await step('snapshot list', () => expectDump(config, repo, id, path))
        const dir = await step('restore', () => restored(config, repo, id))
        await step('load', async () => {
          const file = restoredDump(dir, path, made.target_bytes! * 0.7)
          const rename = [
            '--drop',
            `--nsFrom=${source}.*`,
            `--nsTo=${fresh}.*`,
            ...(db.ferret ? ['--noIndexRestore'] : []),
          ]
          await $({ limit: '2h' })`${exec} mongorestore ${args} --quiet --archive ${rename} < ${file}`
          await $`rm -r ${dir}`
        })
        await step('compare', async () => {
          if (!db.ferret) await sameIndexes(db)
          sameContent(before, await contentOf(db, fresh))
          await wholeShop(db, fresh)
        })
        await step('drop', () => dropDatabase(db, fresh))
        await step('retire', () => retire(config, repo, id))
      })
    }
})
