// The server of a database scenario: a container of the run's own, or one that is there; and what all servers share.
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { localDir } from '../config.mts'
import { engineRoot, needEngine, startContainer } from '../engine.mts'
import type { OptionSpecs, Values } from '../options.mts'
import { dataGen } from '../prepare.mts'
import type { Run } from '../run.mts'
import { $, type Output, scope } from '../sh.mts'
import { needSpace } from '../space.mts'
import { bytes, duration } from '../terminal.mts'
import { Blocked, Mismatch } from '../verdict.mts'
import { type Client, clientOf, containerClient, type Kind, oneServer, serverOptions } from './client.mts'

export const variants = ['hooks', 'command_dumps'] as const

/** The options of every database scenario, with its own default image and size in GiB. */
export function databaseOptions(image: string, gib = 10) {
  return {
    ...serverOptions,
    image: { kind: 'string', help: 'image to start a container from', default: image },
    'target-gib': { kind: 'number', help: 'size of the database in GiB', default: gib, above: true },
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
export const chosen = (run: DatabaseRun) =>
  variants.filter((name) => !run.options.variant.length || run.options.variant.includes(name))

/** What a database scenario needs on the host besides its engine. */
export const databaseNeeds = ['vykar', 'diff', 'timeout', 'flock'] as const

/** What kind of container serves, where the run starts one. */
export interface OwnContainer {
  name: string
  environment: Record<string, string>
  args: string[]
  healthy: string[]
}

/** Puts a client's environment into the run's, and into the transcript, where a secret is only named. */
export function exportEnv(run: Run, env: Record<string, string>): void {
  Object.assign(run.env, env)
  for (const [name, value] of Object.entries(env))
    run.transcript.line(
      `export ${name}=${/PASS|PWD/.test(name) ? `"\${${name}:?export it first}"` : run.transcript.quote(value)}`,
    )
}

/**
 * The server: a container started for this run, or the one that --container or --uri names.
 * @returns the client's words: `exec` before a program's name, `args` after it
 */
export async function server(run: DatabaseRun, kind: Kind, own: OwnContainer): Promise<Client> {
  const { container, uri, engine, image } = run.options
  const choice = { container, uri, engine }
  oneServer(choice)
  needDatabaseSpace(run)
  let client: Client
  if (container || uri) {
    if (container && !run.dry) needEngine(run, engine)
    client = clientOf(kind, choice)
  } else {
    run.report.versions.image = await startContainer(run, { engine, image, build: kind, ...own }, own.healthy)
    client = containerClient(kind, engine, own.name, own.environment)
  }
  exportEnv(run, client.env)
  return client
}

/**
 * Source and restored database on the server's disk; repository and dump where the run works: 2.2 times the size each,
 * and 2 GiB of the server's own log.
 */
export function needDatabaseSpace(run: DatabaseRun): void {
  const { uri, engine } = run.options
  const size = run.options['target-gib'] * 2 ** 30
  const needs = [{ dir: run.runtime, bytes: size * 1.1 }]
  const local = localDir(run.plan.sample.repository(run.repos[0]!).url)
  needs.push({ dir: local ?? run.runtime, bytes: size * 1.1 })
  const data = uri ? '' : engineRoot(engine)
  if (data) needs.push({ dir: data, bytes: size * 2.2 + 2 * 2 ** 30 })
  needSpace(needs, `--target-gib ${run.options['target-gib']}`, 'take a smaller --target-gib')
}

/** The words of this script's own server choice, for a program that takes the same options. */
export function generator(run: DatabaseRun, kind: string, container: string): string[] {
  const { uri, engine, jobs } = run.options
  // The password is in the environment already, and must not be in a command line.
  const which = uri
    ? ['--uri', uri.replace(/:[^:@/]*@/, '@')]
    : ['--container', run.options.container ?? container, '--engine', engine]
  const size = ['--target-gib', String(run.options['target-gib']), '--seed', String(run.common.seed)]
  return [...dataGen(kind), ...which, ...size, ...(jobs ? ['--jobs', String(jobs)] : [])]
}

/** The `key=value` lines that a generator ends with. */
export function figures(output: Output): Record<string, number> {
  const pairs = [...output.stdout.matchAll(/^(\w+)=(\d+(?:\.\d+)?)$/gm)]
  return Object.fromEntries(pairs.map(([, name, value]) => [name!, Number(value)]))
}

/** Content of one table: how many rows, and a sum over all rows that does not depend on their order. */
export interface Content {
  [table: string]: { rows: string; sum: string }
}

/** Parses `table|rows|sum` lines. */
export function parseContent(text: string): Content {
  const lines = text.split('\n').filter(Boolean)
  return Object.fromEntries(
    lines.map((line) => {
      const [table, rows, sum] = line.split(/[|\t]/)
      return [table!, { rows: rows!, sum: sum! }]
    }),
  )
}

/** Throws Mismatch naming the first table that is missing, has other rows or other content. */
export function sameContent(source: Content, found: Content): void {
  if (scope().dry) return
  if (!Object.keys(source).length) throw new Mismatch('the source database has no tables: there is nothing to compare')
  for (const [table, { rows, sum }] of Object.entries(source)) {
    const other = found[table]
    if (!other) throw new Mismatch(`table ${table} is missing in the restored database`)
    if (other.rows !== rows) throw new Mismatch(`table ${table}: ${rows} rows in the source, ${other.rows} restored`)
    if (other.sum !== sum) throw new Mismatch(`table ${table}: ${rows} rows in both, but their content differs`)
  }
}

/** vykar ends a hook after this many seconds (0.19.1; not configurable). */
export const hookLimit = 300

/**
 * Whether the dump will be done before vykar ends the hook, with a fifth of the time to spare.
 * @param sample the finished dump of one table into /dev/null
 * @param share that table's share of the whole, 0 to 1
 * @throws Blocked with the largest target that would fit
 */
export function fitsHook(run: DatabaseRun, sample: Output, share: number): string {
  if (run.dry) return ''
  const predicted = sample.record.seconds / share
  const limit = hookLimit * 0.8
  const said = `the dump is predicted to take ${duration(predicted)}`
  if (predicted <= limit) return said
  const largest = Math.floor((run.options['target-gib'] * limit * 100) / predicted) / 100
  throw new Blocked(`${said}, and vykar ends a hook after ${hookLimit} s: --target-gib ${largest} would fit`)
}

/**
 * The only file of a snapshot must be the dump, under this name.
 * @param name path in the snapshot, such as `vykar-dumps/shop.dump`
 */
export async function expectDump(config: string, repo: string, id: string, name: string): Promise<void> {
  const list = await $({ limit: '10m', out: 'snapshot.list' })`vykar --config ${config} snapshot list -R ${repo} ${id}`
  list.must(new RegExp(`^${name.replaceAll('.', '\\.')}$`, 'm'), `snapshot list does not show ${name}`)
  if (scope().dry) return
  const others = list.stdout.split('\n').filter((line) => line && line !== name && !name.startsWith(`${line}/`))
  if (others.length) throw new Mismatch(`snapshot list shows more than the dump: ${others[0]}`)
}

/**
 * The restored dump: not empty, and not smaller than random payloads allow.
 * @param least bytes that it must have, seven tenths of the database
 * @returns its path
 */
export function restoredDump(dir: string, name: string, least: number): string {
  const file = join(dir, name)
  if (scope().dry) return file
  if (!existsSync(file)) throw new Mismatch(`restore made no ${name}, but ${readdirSync(dir).join(', ') || 'nothing'}`)
  const { size } = statSync(file)
  if (size < least)
    throw new Mismatch(`the restored dump has ${bytes(size)}: less than ${bytes(least)}, seven tenths of --target-gib`)
  return file
}
