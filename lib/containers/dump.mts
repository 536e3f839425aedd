// C: a database dumped through `exec` in command_dumps, loaded into a second container, contents equal.

import { containerClient } from '../databases/client.mts'
import { contentOf, source } from '../databases/postgres.mts'
import { type Content, expectDump, figures, restoredDump, sameContent } from '../databases/server.mts'
import { type Engine, startContainer } from '../engine.mts'
import { dataGen } from '../prepare.mts'
import type { Row } from '../row.mts'
import { $ } from '../sh.mts'
import { expectSnapshot, freshRepository, restored, retire } from '../standard.mts'
import { type ContainerRun, namesOf } from './names.mts'

/** What the rows need to know about the database that was filled. */
export interface Filled {
  content: Content
  bytes: number
}

/** The name of the dump in the snapshot. */
export const dumpName = `${source}.dump`
const client = (engine: Engine, name: string) => containerClient('postgres', engine.name, name, {})

/** The command of configs/containers-dump.yaml. */
export const dumpCommand = (engine: Engine) =>
  [...client(engine, namesOf(engine).database).exec, 'pg_dump', '-Fc', '-Z1', source].join(' ')

/** Starts both databases and fills the first. */
export async function filledDatabase(run: ContainerRun, engine: Engine): Promise<Filled> {
  const names = namesOf(engine)
  for (const name of [names.database, names.fresh])
    run.report.versions['database image'] = await startContainer(
      run,
      {
        engine: engine.name,
        name,
        image: run.options['database-image'],
        environment: { POSTGRES_HOST_AUTH_METHOD: 'trust' },
        args: ['postgres', '-c', 'max_wal_size=2GB'],
        build: 'postgres',
      },
      ['pg_isready', '-q', '-h', '127.0.0.1'],
    )
  const made = await $({
    limit: '2h',
  })`${dataGen('postgres')} --container ${names.database} --engine ${engine.name} --target-gib ${String(run.options['target-gib'])} --seed ${String(run.common.seed)}`
  return { content: await contentOf(client(engine, names.database), source), bytes: figures(made).target_bytes ?? 0 }
}

/** The row: a dump that fails late leaves no snapshot; one that does not is loaded into the second database. */
export async function execDump(engine: Engine, { step, config, repository }: Row, filled: Filled): Promise<void> {
  const repo = repository.label
  const names = namesOf(engine)
  const [there, fresh] = [client(engine, names.database).exec, client(engine, names.fresh).exec]
  await step('init', () => freshRepository(config, repo))
  await step('failing dump', async () => {
    await $`sed -E 's/pg_dump/& -t products/; s/^( *command: ".*)"$/\1; exit 1"/' ${config} > failing.yaml`
    const refused = await $({ limit: '3600s', expect: [1] })`vykar --config failing.yaml backup -R ${repo}`
    refused.complained(/command_dump .* failed \(exit code 1\)/)
    const list = await $({ limit: '10m', out: 'none.out' })`vykar --config ${config} list -R ${repo}`
    list.must(/^No snapshots found\.$/m, 'the dump failed, but a snapshot was made')
  })
  const backup = await step(
    'backup',
    () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
  )
  const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'dump' }))
  const path = `vykar-dumps/${dumpName}`
  await step('snapshot list', () => expectDump(config, repo, id, path))
  const dir = await step('restore', () => restored(config, repo, id))
  await step('load', async () => {
    const file = restoredDump(dir, path, filled.bytes * 0.7)
    await $`${fresh} dropdb --if-exists ${source} && ${fresh} createdb ${source}`
    await $({ limit: '2h' })`${fresh} pg_restore --exit-on-error -d ${source} < ${file}`
  })
  await step('compare', async () => {
    await $`${there} pg_dump --schema-only ${source} | grep -v '^.\(un\)\?restrict ' > there.schema.sql`
    await $`${fresh} pg_dump --schema-only ${source} | grep -v '^.\(un\)\?restrict ' > fresh.schema.sql`
    await $`diff there.schema.sql fresh.schema.sql`
    sameContent(filled.content, await contentOf(client(engine, names.fresh), source))
  })
  await step('drop', () => $`${fresh} dropdb ${source}`)
  await step('retire', () => retire(config, repo, id))
}
