#!/usr/bin/env -S npx tsx
// MongoDB through both dump patterns, on every repository: hooks (a dump in `before`, removed in `finally`) and
// command_dumps (mongodump's archive as a file of the snapshot).
// Passes when each dump, restored into a fresh database, equals the source: indexes, documents and content of every
// collection; and when a dump that fails leaves no snapshot.
import { oneServer } from '#data-gen/client.mts'
import { serverUri } from '#lib/address.mts'
import { config } from '#lib/config.mts'
import { tools, which } from '#lib/host.mts'
import { skipOrFail } from '#lib/prepare.mts'
import { scenario } from '#lib/scenario.mts'
import { $, note, read, step } from '#lib/sh.mts'
import { UsageError } from '#lib/verdict.mts'
import { listed, numbers, says, shows } from '#scripts/checks.mts'
import { fresh, retire, serverWants } from '#scripts/common.mts'
import {
  chosen,
  databaseOptions,
  databases,
  endings,
  fitsHook,
  needDatabaseSpace,
  needs,
  noted,
  oneMoment,
  onHost,
  onlyDump,
  plant,
  running,
  sameContent,
  sameDump,
  secondBackup,
  serverWords,
  takeAway,
  wholeDump,
  wordHidden,
} from '#scripts/databases/common.mts'
import { container, engineReady, image, up, wrapper } from '#scripts/engine.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const wants = ['docker', 'mongodump', 'mongorestore', ...serverWants] as const
const options = databaseOptions('mongo:7', 2.5)

await scenario(import.meta, { needs, wants, options }, async (run) => {
  const { 'target-gib': gib, jobs, seed, container: named, uri, engine } = run.options
  const { source, restored } = databases(run, 'mongo')

  oneServer({ container: named, uri, engine })

  step('start')
  await noted()
  const gone = uri && ['mongodump', 'mongorestore'].find((tool) => !which(tool))
  if (gone) throw skipOrFail(`${gone} is missing: ${tools.mongodump.install}`, [gone], run.common.require)
  if (!run.dry) await needDatabaseSpace(run)
  if (!uri) await engineReady(run, engine)
  if (named) await running(engine, named)
  else if (!uri) {
    await image(run, engine, run.options.image ?? 'mongo:7', 'mongo', run.options.image !== undefined)
    await container(engine, 'db', 'mongo', ['-p', '127.0.0.1::27017'], ['mongod', '--bind_ip_all'])
  }
  if (!uri) await wrapper(engine, 'db')
  if (!uri) await up(run.options.engine, 'db', 'in-db mongodump --quiet --db=vykar_e2e_none --archive=/dev/null')
  if (uri) {
    const { host, port, user, password } = serverUri(uri, ['mongodb'], '27017')
    const secret = password || process.env.MONGODB_PASSWORD
    const words = [
      `--host=${host}`,
      `--port=${port}`,
      ...(user ? [`--username=${user}`, '--authenticationDatabase=admin'] : []),
    ]
    if (user && secret) {
      run.secret('MONGODB_PASSWORD', secret)
      await $`(umask 077; printf "password: '%s'\n" "$(printf %s "$MONGODB_PASSWORD" | sed "s/'/''/g")" > mongo-tools.yaml)`
    }
    await onHost([], words, user && secret ? '"--config=$(dirname "$0")"/../mongo-tools.yaml ' : '')
  }
  // The server as the driver sees it.
  const server = serverWords(run.options, ['mongodb'], '27017')
  await $({
    otherwise: UsageError,
  })`e2e data-gen/mongo describe ${server} > server 2> server.err || { echo "the server cannot be asked: $(tail -n 1 server.err)" >&2; exit 1; }`
  await $({ otherwise: UsageError })`in-db mongodump --version > mongodump.version`
  const said = Object.fromEntries(
    read('server')
      .split('\n')
      .map((line) => line.split('=')),
  )
  const { version, ferret, replica_set: replicaSet } = said as Record<string, string>
  run.report.versions.mongodb = ferret ? `FerretDB ${ferret} (as MongoDB ${version})` : (version ?? '')
  run.report.versions.mongodump = /mongodump version: (\S+)/.exec(read('mongodump.version'))?.[1] ?? 'unknown'
  note(
    `${replicaSet ? `replica set ${replicaSet}` : 'a standalone server'}: a dump of one of its databases is of no single moment, so nothing is written while it is made`,
  )
  if (ferret)
    note(`FerretDB ${ferret} refuses the indexes that mongorestore makes: indexes are neither restored nor compared`)
  const on = (verb: string, database: string) => `e2e data-gen/mongo ${verb} --database ${database} ${server.raw}`
  if (named || uri)
    for (const database of [source, restored]) takeAway(database, on('there', database), on('drop', database))

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
  await $({ limit: '2h' })`e2e data-gen/mongodb ${words} ${server} > figures`
  // Every document, its BSON summed up by md5, and every index.
  await $({ limit: '30m' })`e2e data-gen/mongo content --database ${source} ${server} > source.content`
  await plant()
  await $`e2e data-gen/mongo plant --word $(<planted) --database ${source} ${server}`
  await $`e2e data-gen/mongo indexes --database ${source} ${server} > source.indexes`

  step('sample dump')
  // A quarter of the data, the images: how long would the whole take?
  const sample = await $`in-db mongodump --quiet --db=${source} --collection=products --archive > /dev/null`
  await servers()

  for (const repo of run.repos)
    for (const variant of chosen(run))
      await run.row({ repo, variant }, async () => {
        const dump = `noted in-db mongodump --quiet --db=${source} --archive`
        const path = variant === 'hooks' ? 'shop.archive' : 'vykar-dumps/shop.archive'

        step('init')
        const there = { raw: server.raw.replace('$(<db.cid)', '$(<../db.cid)') }
        // A row that failed may have left the other word.
        await $`e2e data-gen/mongo plant --word $(<../planted) --database ${source} ${there}`
        if (variant === 'hooks') {
          await fitsHook(sample, 0.25, gib)
          await $`mkdir dumps`
          await config`
sources:
  - path: dumps
    label: mongodb
    hooks:
      before: ${`${dump} > dumps/shop.archive`}
      finally: ${'rm -f dumps/shop.archive'}
`
        } else
          await config`
sources:
  - label: mongodb
    command_dumps:
      - name: ${'shop.archive'}
        command: ${dump}
`
        await fresh(repo)

        step('failing dump')
        // After all that it was to write, with an exit code or by a signal; `finally` runs all the same.
        for (const [end, message] of Object.entries(endings)) {
          await $`sed -E 's/--db=[^ "]+/& --collection=products/; s/^( *(command|before): .*)$/\1; ${{ raw: end }}/' config.yaml > failing.yaml`
          await $({ limit: '1h', expect: [1] })`vykar --config failing.yaml backup -R ${repo} > failing.out 2>&1`
          await says('failing.out', message, 'the backup failed, but not for its dump')
          await $`vykar --config config.yaml list -R ${repo} > none.out`
          await shows(0, 'none.out', 'the dump failed')
          if (variant === 'hooks') await $`test -z "$(ls dumps)"`
        }

        step('backup')
        await $`rm -f dumped.sha256`
        await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
        await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`
        // vykar exits 0 also where `finally` failed.
        if (variant === 'hooks') await $`rmdir dumps`

        step('list')
        await $`vykar --config config.yaml list -R ${repo} > list.out`
        await listed('mongodb')

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
        const rename = [
          '--drop',
          `--nsFrom=${source}.*`,
          `--nsTo=${restored}.*`,
          ...(ferret ? ['--noIndexRestore'] : []),
        ]
        await $({ limit: '2h' })`in-db mongorestore --quiet --archive ${rename} < restored/${path} && rm -r restored`

        step('compare')
        if (!ferret) await $`e2e data-gen/mongo indexes --database ${restored} ${there} | diff ../source.indexes -`
        await $({ limit: '30m' })`e2e data-gen/mongo content --database ${restored} ${there} > restored.content`
        await sameContent('../source.content', 'restored.content')
        await sameDump('snapshot')
        await $({ limit: '30m' })`e2e data-gen/mongo odd --database ${restored} ${there} > odd.out`
        await oneMoment('odd.out')
        await $`e2e data-gen/mongo drop --database ${restored} ${there}`

        step('second backup')
        // Another word, and a dump of its collection alone: two snapshots of one source.
        await $`e2e data-gen/mongo plant --word 'vykar-e2e second' --database ${source} ${there}`
        await $`sed -E 's/--db=[^ "]+/& --collection=planted/' config.yaml > second.yaml`
        if (variant === 'hooks') await $`mkdir dumps`
        await secondBackup(repo, 'mongodb', path)
        await $`grep -qaF 'vykar-e2e second' restored-renewed/${path} && rm -r restored-renewed`

        step('retire')
        await retire(repo, ['snapshot', 'renewed'])
      })
})
