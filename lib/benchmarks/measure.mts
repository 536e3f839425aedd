// One round of one tool: each operation timed alone, from the same state of source and caches, its result looked at
// before anything is wiped.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { removeBelow } from '../cleanup.mts'
import { end, processesOf } from '../process.mts'
import { $, bash, type CommandRecord, scope } from '../sh.mts'
import { Interrupted, messageOf } from '../verdict.mts'
import { type Operation, operations, type Place, tools, vykarConfig } from './tools.mts'

/** One timed operation. A failed one has a reason and enters no figure. */
export interface Sample {
  repo: string
  tool: string
  /** 0 is the warm-up, which enters no figure either. */
  round: number
  operation: Operation
  reason?: string
  seconds: number
  userSeconds?: number
  systemSeconds?: number
  peakKiB?: number
  readBytes?: number
  writtenBytes?: number
  /** Size of the repository afterwards, where it can be seen. */
  repositoryBytes?: number
}

/** How commands are measured. */
export interface Method {
  cache: 'cold' | 'warm'
  /** Limit of each command, in zx's notation. */
  limit: string
  /** A directory of cgroupfs that every timed command joins; undefined without --memory-limit. */
  cgroup?: string
  /** The source in its two states. */
  states: [first: string, second: string]
}

/** Brings the source into a state: only what differs is touched, so that the rest keeps its inodes and times. */
export const bringSource = (state: string, source: string) =>
  $({ limit: '2h' })`mkdir -p ${source} && rsync -aHAXS --delete ${state}/ ${source}/`

/** Empties the page cache, where that was asked for and may be done. */
async function prepareCaches({ cache }: Method): Promise<void> {
  await $({ limit: '30m', unlisted: true })`sync`
  if (cache === 'cold') await $({ limit: '10m' })`echo 3 > /proc/sys/vm/drop_caches`
}

/**
 * Times one command line, with a sync of what it wrote inside the clock: unwritten data is no gift.
 * @param syncOn a directory of the file system that it writes to
 */
export async function timed(
  method: Method,
  line: string,
  syncOn: string,
  env: NodeJS.ProcessEnv,
): Promise<CommandRecord> {
  await prepareCaches(method)
  const enter = method.cgroup ? `echo $$ > ${method.cgroup}/cgroup.procs; ` : ''
  const done = await bash({ limit: method.limit, env }, `${enter}${line} && sync -f ${syncOn}`)
  return done.record
}

async function bytesOf(dir: string): Promise<number> {
  if (scope().dry) return 0
  return Number((await $({ limit: '30m', unlisted: true })`du -s --block-size=1 ${dir} | cut -f1`).stdout)
}

/** The figures of a finished command. */
export const figuresOf = ({ seconds, cpuSeconds, systemSeconds, peakKiB, readBytes, writtenBytes }: CommandRecord) => ({
  seconds,
  userSeconds: cpuSeconds === undefined ? undefined : cpuSeconds - systemSeconds!,
  systemSeconds,
  peakKiB,
  readBytes,
  writtenBytes,
})

/**
 * All operations of one tool in one round. After one that fails the rest of the round cannot be compared and is left out;
 * what the tool made is kept then, and goes otherwise.
 */
export async function roundOf(
  method: Method,
  tool: string,
  round: number,
  repo: string,
  place: Place,
): Promise<Sample[]> {
  const { env, s3Names, init, commands, remove, restoredAt } = tools[tool]!
  const { dir, endpoint, source, name } = place
  const restored = join(dir, 'restored')
  const samples: Sample[] = []
  const fail = (operation: Operation, error: unknown) => {
    if (error instanceof Interrupted || scope().dry) throw error
    samples.push({ repo, tool, round, operation, reason: messageOf(error), seconds: 0 })
  }
  const environment = env(place)
  const lines = commands(place, restored)
  // By reference: what a secret is stands in no command line.
  const secrets =
    endpoint.s3 && s3Names ? `export ${s3Names[0]}="$VYKAR_E2E_S3_KEY" ${s3Names[1]}="$VYKAR_E2E_S3_SECRET"; ` : ''
  const seen = endpoint.kind === 'local' ? endpoint.dir(name) : undefined
  let operation: Operation = 'first backup'
  try {
    await $`mkdir -p ${restored} ${endpoint.dir('')}`
    const config = vykarConfig(place)
    scope().transcript.write(join(dir, 'vykar.yaml'), config)
    if (!scope().dry) writeFileSync(join(dir, 'vykar.yaml'), config, { mode: 0o600 })
    await bringSource(method.states[0], source)
    await bash({ limit: method.limit, env: environment }, `${secrets}${init(place)}`)
    for (operation of operations) {
      if (operation === 'changed backup') await bringSource(method.states[1], source)
      const syncOn = operation === 'restore' ? restored : (seen ?? dir)
      const record = await timed(method, `${secrets}${lines[operation]}`, syncOn, environment)
      const sample: Sample = { repo, tool, round, operation, ...figuresOf(record) }
      if (seen) sample.repositoryBytes = await bytesOf(seen)
      if (operation === 'restore')
        await $({ limit: '2h' })`diff -qr --no-dereference ${source} ${restoredAt(place, restored)}`
      samples.push(sample)
    }
    if (!seen && remove) await bash({ limit: method.limit, env: environment }, remove(place))
    if (scope().dry) return samples
    removeBelow(join(dir, '..'), dir)
    if (seen) removeBelow(join(seen, '..'), seen)
  } catch (error) {
    fail(operation, error)
    // What a tool that hangs has started goes with it.
    await end(() => processesOf(scope().runId))
  }
  return samples
}
