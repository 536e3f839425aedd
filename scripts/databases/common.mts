// What the database scenarios share: options, the server, the checks of a dump.
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import {
  containerClient,
  containerEnvironment,
  type Kind,
  oneServer,
  serverOptions,
  uriClient,
} from '#data-gen/client.mts'
import { serverUri } from '#lib/address.mts'
import { localDir } from '#lib/config.mts'
import type { OptionSpecs, Values } from '#lib/options.mts'
import type { Run } from '#lib/run.mts'
import { $, check, fact, note, type Output, read, scope, undo } from '#lib/sh.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { quote } from '#lib/transcript.mts'
import { Blocked, Mismatch, UsageError } from '#lib/verdict.mts'
import { listed, numbers, released, shows } from '#scripts/checks.mts'
import { unreadable } from '#scripts/common.mts'
import { container, engineReady, engineRoot, image, wrapper } from '#scripts/engine.mts'
import { needSpace } from '#scripts/space.mts'
import { witnessed } from '#scripts/witnessed.mts'

export const variants = ['hooks', 'command_dumps'] as const
export const needs = ['vykar', 'diff', 'timeout', 'flock'] as const

/** Ways in which a dump that has failed ends, after its last byte, and what vykar says of each. */
export const endings = {
  'exit 1': /(exit code|exited with) 1\b/,
  'exit 137': /(exit code|exited with) 137\b/,
  'kill -9 $$': /exit code unknown|exited with signal/,
} as const

/** The options of every database scenario, with its own default image and size in GiB. */
export function databaseOptions(defaultImage: string, gib = 10) {
  return {
    ...serverOptions,
    image: { kind: 'string', help: `image to start a container from; default ${defaultImage}` },
    'target-gib': { kind: 'number', help: 'size of the database in GiB', default: gib, min: 0.02 },
    jobs: { kind: 'number', help: 'parallel writers of the generator', min: 1 },
    variant: { kind: 'list', help: 'dump patterns to try, both unless told', choices: variants },
  } as const satisfies OptionSpecs
}

/** Writes that go on during a dump. */
export const churnOption = {
  churn: {
    kind: 'string',
    help: 'the variant during whose dump the database is written to',
    choices: [...variants, 'none'],
    default: 'command_dumps',
  },
} as const satisfies OptionSpecs
export type DatabaseRun = Run & { options: Values<ReturnType<typeof databaseOptions>> }

/** The variants that the user chose, both unless told. */
export function chosen({ options }: DatabaseRun & { options: { churn?: string } }): (typeof variants)[number][] {
  const tried = variants.filter((name) => !options.variant.length || options.variant.includes(name))
  const during = options.churn
  if (during && during !== 'none' && !tried.some((name) => name === during))
    note(
      `nothing is written during a dump: --churn ${during} is not among --variant, so no dump is shown to be of one moment`,
    )
  return tried
}

/** The database that is filled and the one that dumps are loaded into: on a server that stays, the run's id is in their names. */
export function databases({ options, id }: DatabaseRun, name: string): { source: string; restored: string } {
  const mark = options.container || options.uri ? `_${id.toLowerCase().replace(/\W/g, '_')}` : ''
  return { source: `vykar_${name}_test${mark}`, restored: `vykar_${name}_restore_test${mark}` }
}

/**
 * The server: a container started for this run, or the one that --container or --uri names. From then on `in-db PROGRAM …`
 * runs a client program where the server is.
 * @param own the default image, and what a container of the run's own is started with: words before and after the image
 */
export async function start(
  run: DatabaseRun,
  kind: Kind,
  own: { image: string; flags: string[]; args: string[] },
): Promise<void> {
  const { container: named, uri, engine } = run.options
  oneServer({ container: named, uri, engine })
  if (uri) uriClient(kind, uri)
  if (!uri) await engineReady(run, engine)
  if (!run.dry) await needDatabaseSpace(run)
  if (uri) {
    const client = uriClient(kind, uri)
    for (const [name, value] of Object.entries(client.env)) if (/PASS|PWD/.test(name)) run.secret(name, value)
    // In the file and not in the run's environment: what the next run clears up after a kill -9 must reach the same server.
    const there = Object.entries(client.env).filter(([name]) => !/PASS|PWD/.test(name))
    await onHost(there, client.args)
    return
  }
  if (named) await running(engine, named)
  else {
    await image(run, engine, run.options.image ?? own.image, kind, run.options.image !== undefined)
    await container(engine, 'db', kind, ['--network', 'none', ...own.flags], own.args)
  }
  const client = containerClient(kind, engine, '', named && !run.dry ? await containerEnvironment(engine, named) : {})
  for (const [name, value] of Object.entries(client.env)) run.secret(name, value)
  await wrapper(engine, 'db', client.exec.slice(3, -1))
}

/**
 * Makes `in-db`: a client program of this host, with these variables and with these words before its own.
 * @param more bash for further words
 */
export async function onHost(env: [name: string, value: string][], words: readonly string[], more = ''): Promise<void> {
  const lines = [
    '#!/bin/bash',
    ...env.map(([name, value]) => `export ${name}=${quote(value)}`),
    'program=$1; shift',
    `exec "$program" ${words.map((word) => `${quote(word)} `).join('')}${more}"$@"`,
  ]
  await $`printf '%s\n' ${lines} > bin/in-db && chmod +x bin/in-db`
}

/** The id of a container that the user named goes to `db.cid`. Throws UsageError where it is not there or does not run. */
export async function running(engine: string, named: string): Promise<void> {
  const absent = `--container ${named}: ${engine} has no such container`
  const stopped = `--container ${named} is not running: ${engine} start ${named}`
  await $({
    otherwise: UsageError,
  })`${engine} container inspect -f '{{.Id}}' ${named} > db.cid || { echo ${absent} >&2; exit 1; }`
  await $({
    otherwise: UsageError,
  })`test "$(${engine} container inspect -f '{{.State.Running}}' $(<db.cid))" = true || { echo ${stopped} >&2; exit 1; }`
}

/** The words by which the generator finds the server, without a password; raw, since the container's id is in a file. */
export function serverWords(
  { uri, engine }: { uri?: string; engine: string },
  schemes: string[],
  port: string,
): { raw: string } {
  if (!uri) return { raw: `--engine ${engine} --container $(<db.cid)` }
  const { host, port: at, user } = serverUri(uri, schemes, port)
  return {
    raw: `--uri ${schemes[0]}://${user && `${encodeURIComponent(user)}@`}${host.includes(':') ? `[${host}]` : host}:${at}`,
  }
}

/** On a server that stays, both databases go again when the run has passed; `bash` tells whether one is there. */
export function takeAway(database: string, there: string, drop: string): void {
  undo({ keep: `database ${database}`, there })`${{ raw: drop }}`
}

/**
 * Source and restored database on the server's disk; repository and dump where the run works: 2.2 times the size each; of a repository as S3
 * keeps it there is a copy, too.
 */
export async function needDatabaseSpace(run: DatabaseRun): Promise<void> {
  const { uri, engine } = run.options
  const size = run.options['target-gib'] * 2 ** 30
  const local = localDir(run.plan.sample.repository(run.repos[0]!).url)
  const needs = [run.runtime, local ?? run.runtime].map((dir) => ({ dir, bytes: size * 1.1 }))
  if (run.repos.includes('s3')) needs.push({ dir: run.runtime, bytes: size * 1.1 })
  const data = uri ? '' : await engineRoot(engine)
  if (data) needs.push({ dir: data, bytes: size * 2.2 + 2 * 2 ** 30 })
  needSpace(needs, `--target-gib ${run.options['target-gib']}`, 'take a smaller --target-gib')
}

/**
 * The dump must be done before vykar ends the hook (300 s in 0.19.1), with a fifth of the time to spare.
 * @param sample the finished dump of a part into /dev/null, which is `share` of the whole
 */
export async function fitsHook(sample: Output, share: number, gib: number): Promise<void> {
  await check('# vykar ends a hook after 300 s: the dump fits', () => {
    const predicted = sample.seconds / share
    const said = `the dump is predicted to take ${duration(predicted)}`
    const largest = Math.floor((gib * 240 * 100) / predicted) / 100
    if (predicted > 240)
      throw new Blocked(`${said}, and vykar ends a hook after 300 s: --target-gib ${largest} would fit`)
    fact('time limit', said)
  })
}

/**
 * Makes `noted`: `noted PROGRAM …` is PROGRAM with the sha256 of what it prints in dumped.sha256. A dump is another each time it is
 * made: only of the one that vykar was given can be said what it was.
 */
export async function noted(): Promise<void> {
  await $`cat > bin/noted <<'EOF'
#!/bin/bash
set -o pipefail
"$@" | tee >(sha256sum > dumped.sha256)
EOF`
  await $`chmod +x bin/noted`
}

/** The dump that was restored, whose sha256 is in NAME.sha256, is the one that vykar was given, byte for byte. */
export async function sameDump(name: string): Promise<void> {
  await check(`diff <(cut -c 1-64 dumped.sha256) <(cut -c 1-64 ${name}.sha256)`, () => {
    const made = existsSync(join(scope().dir, 'dumped.sha256'))
    const [given, restored] = ['dumped', name].map((file) => made && read(`${file}.sha256`).slice(0, 64))
    if (!given) throw new Mismatch('the dump was not made: nothing is known of what vykar was given')
    if (given !== restored)
      throw new Mismatch(`the restored dump is not what vykar was given: ${restored} and ${given}`)
  })
}

/** A random word goes to `planted`: the database gets it in a place that its dump does not compress. */
export async function plant(): Promise<void> {
  await $`head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' > planted && echo >> planted`
}

/** The word of `plant` is in the dump, and cannot be read in the repository. */
export async function wordHidden(repo: string, dump: string): Promise<void> {
  await $`grep -qaF -f ../planted ${dump}`
  await unreadable(repo, '../planted')
}

/** The only file of a snapshot must be the dump, under this name. */
export async function onlyDump(list: string, path: string): Promise<void> {
  const dir = path.includes('/') ? `|${path.split('/')[0]}` : ''
  await check(`grep -qx ${path} ${list} && test -z "$(grep -vxE '${path}${dir}' ${list} || true)"`, () => {
    const shown = read(list).split('\n').filter(Boolean)
    if (!shown.includes(path)) throw new Mismatch(`snapshot list does not show ${path}`)
    const other = shown.find((line) => line !== path && !path.startsWith(`${line}/`))
    if (other) throw new Mismatch(`snapshot list shows more than the dump: ${other}`)
  })
}

/** The restored dump is there and has seven tenths of the database's bytes, whose payloads are random. */
export async function wholeDump(restored: string, path: string): Promise<void> {
  const hand = `test $(stat -c %s ${restored}/${path}) -ge $(($(sed -n 's/^target_bytes=//p' ../figures) * 7 / 10))`
  await check(hand, () => {
    const dir = join(scope().dir, restored)
    if (!existsSync(join(dir, path)))
      throw new Mismatch(`restore made no ${path}, but ${readdirSync(dir).join(', ') || 'nothing'}`)
    const least = Number(/^target_bytes=(\d+)$/m.exec(read('../figures'))?.[1]) * 0.7
    const { size } = statSync(join(dir, path))
    if (size < least)
      throw new Mismatch(
        `the restored dump has ${bytes(size)}: less than ${bytes(least)}, seven tenths of --target-gib`,
      )
  })
}

/** What the two files say of every table (rows, and a sum over all rows that does not depend on their order) must be the same. */
export async function sameContent(source: string, restored: string): Promise<void> {
  await check(`test -s ${source} && diff ${source} ${restored}`, () => {
    const parse = (file: string) => new Map(read(file).split('\n').filter(Boolean).map((line) => {
      const [table, rows, sum] = line.split(/[|\t]/)
      return [table!, { rows, sum }]
    })) // biome-ignore format: one expression
    const [was, is] = [parse(source), parse(restored)]
    if (!was.size) throw new Mismatch('the source database has no tables: there is nothing to compare')
    for (const [table, { rows, sum }] of was) {
      const other = is.get(table)
      if (!other) throw new Mismatch(`table ${table} is missing in the restored database`)
      if (other.rows !== rows) throw new Mismatch(`table ${table}: ${rows} rows in the source, ${other.rows} restored`)
      if (other.sum !== sum) throw new Mismatch(`table ${table}: ${rows} rows in both, but their content differs`)
    }
  })
}

/** Rows that are of no one moment: `odd` holds the table and id of each, and must be empty. */
export async function oneMoment(odd: string): Promise<void> {
  await check(`test ! -s ${odd}  # rows that are of no one moment`, () => {
    const [first] = read(odd).split('\n')
    if (first) throw new Mismatch(`not one moment: ${first.replace(/[|\t]/, ' ')} has not the children that it counts`)
  })
}

/** The restored database holds a moment while writes went on: some of the rounds counted in `rounds.*`, and not the last. */
export async function whileWritten(): Promise<void> {
  const hand = '(($(<rounds.restored) >= $(<rounds.before) && $(<rounds.restored) < $(<rounds.after)))'
  await check(hand, () => {
    const [before, held, after] = ['before', 'restored', 'after'].map((when) => Number(read(`rounds.${when}`))) as [
      number,
      number,
      number,
    ]
    fact('rounds of writes', `${before} before the backup, ${held} restored, ${after} after it`)
    if (held < before) throw new Mismatch(`${held} rounds of writes restored, ${before} were there before the dump`)
    if (held >= after) throw new Blocked('no write came after the moment of the dump: nothing was shown about it')
  })
}

/**
 * A backup of second.yaml that goes again, and the same once more, as a cache that remembers what was deleted would get it wrong: the last is
 * in renewed.id, restored with an empty cache into `restored-renewed`, and its content is in renewed.sha256.
 */
export async function secondBackup(repo: string, label: string, path: string): Promise<void> {
  for (const name of ['second', 'renewed']) {
    // What an earlier backup was given is not what this one is.
    await $`rm -f dumped.sha256`
    await $({ limit: '1h' })`vykar --config second.yaml backup -R ${repo} > ${name}.out`
    await $`sed -n 's/^Snapshot created: //p' ${name}.out > ${name}.id`
    await released('backup')
    // `finally` has removed it each time.
    if (!path.includes('/')) await $`test -z "$(ls dumps)"`
    await $`vykar --config config.yaml list -R ${repo} > ${name}.list`
    await listed(label, `${name}.out`, `${name}.list`)
    await shows(2, `${name}.list`, 'there are two snapshots')
    await $`vykar --config config.yaml snapshot list -R ${repo} $(<${{ raw: name }}.id) > ${name}.listing`
    await onlyDump(`${name}.listing`, path)
    const tree = `restored-${name}`
    await $({
      limit: '1h',
    })`rm -rf lost && mkdir lost ${tree} && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<${{ raw: name }}.id) ${tree} > ${tree}.out`
    await numbers(tree, `${name}.out`, `${name}.list`, `${tree}.out`)
    await $`test -s ${tree}/${path}`
    await witnessed(tree, name)
    await sameDump(name)
    if (name === 'renewed') continue
    await $({
      limit: '30m',
    })`vykar --config config.yaml snapshot delete -R ${repo} $(<second.id) && vykar --config config.yaml compact -R ${repo} > second.compact && rm -r restored-second`
  }
}
