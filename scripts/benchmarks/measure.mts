// One round of one tool: each operation timed alone, from the same state of source and caches, its result looked at
// before anything is wiped.
import { end, processesOf } from '#lib/process.mts'
import { $, type CommandRecord, check, fact, look, notFull, read, rowScope, scope } from '#lib/sh.mts'
import { quote } from '#lib/transcript.mts'
import { Interrupted, Mismatch, messageOf, Refused } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
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
  /** Each command runs under this one, which slows it: its times enter no figure. What it says is in `traces/TOOL-OPERATION.txt`. */
  under?: Tracer
  /** The source in its two states. */
  states: [first: string, second: string]
}

/** Commands that say what another one did: system calls, counted and timed; the processor's counters. */
export const tracers = {
  strace: 'strace -f -c -q -o',
  perf: 'perf stat -e task-clock,context-switches,cpu-migrations,page-faults,cycles,instructions -o',
} as const
export type Tracer = keyof typeof tracers

/** A line as it is run under a tracer. */
const traced = ({ under }: Method, tool: string, operation: Operation, line: string): string =>
  under ? `${tracers[under]} traces/${tool}-${operation.replaceAll(' ', '-')}.txt bash -c ${quote(line)}` : line

/** Brings the source into a state: only what differs is touched, so that the rest keeps its inodes and times. */
export const bringSource = (state: string) =>
  $({ limit: '2h' })`mkdir -p source && rsync -aHAXS --no-specials --no-devices --delete ${state}/ source/`

/**
 * Times one command line, with a sync of what it wrote inside the clock: unwritten data is no gift.
 * @param syncOn a directory of the file system that it writes to, as bash
 */
export async function timed(method: Method, line: string, syncOn: string): Promise<CommandRecord> {
  await $({ limit: '30m' })`sync`
  if (method.cache === 'cold') await $({ limit: '10m' })`echo 3 > /proc/sys/vm/drop_caches`
  const enter = method.cgroup ? `echo $BASHPID > ${method.cgroup}/cgroup.procs; ` : ''
  // What a shell has read after its children have ended is what they have read.
  const done = await $({
    limit: method.limit,
  })`({ ${{ raw: `${enter}${line}` }}; } && grep rchar /proc/$BASHPID/io > read.io) && sync -f ${{ raw: syncOn }}`
  return done.cost
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

/** What was restored has the source's content; vykar's has its metadata too, and of the others the differences are counted. */
async function compared(tool: string, restored: string): Promise<void> {
  await $({ limit: '2h' })`diff -qr --no-dereference source ${{ raw: restored }}`
  if (tools[tool]!.program === 'vykar') return sameTree('source', restored, tool)
  await $({
    limit: '2h',
  })`rsync -naHAXi --modify-window=-1 --delete source/ ${{ raw: restored }}/ | wc -l > ${tool}.metadata`
  fact(`metadata, ${tool}`, `${read(`${tool}.metadata`)} differences`)
}

/** Snapshots that there are after each operation. */
const snapshotsAfter: Record<Operation, number> = {
  init: 0,
  'first backup': 1,
  'unchanged backup': 2,
  'changed backup': 3,
  restore: 3,
  check: 3,
  'check data': 3,
  prune: 1,
}

/**
 * An operation that has done nothing is fast: there are as many snapshots as there must be, the newest lists what the source holds, and
 * what reads all data, of the source or of the repository, has read them.
 */
async function didSomething(
  operation: Operation,
  { repositoryBytes = 0 }: Sample,
  count: string | undefined,
  listed: [line: string, of: string] | undefined,
  proof: string | undefined,
) {
  const n = snapshotsAfter[operation]
  if (listed && operation.endsWith('backup'))
    await $`was=$(${{ raw: listed[0] }}); is=$(find source ${{ raw: listed[1] }} -printf x | wc -c); test "$was" = "$is" || { echo "${operation}: the snapshot lists $was, and the source has $is" >&2; exit 1; }`
  if (proof) await $`${{ raw: proof }}  # what it has printed of itself`
  if (count)
    await $`test "$(${{ raw: count }})" = ${n} || { echo ${`${operation}: there are not ${n} snapshots`} >&2; exit 1; }`
  const first = operation === 'first backup'
  if (first)
    await $({
      limit: '30m',
    })`find source -type f -printf '%b %i\n' | sort -u | awk '{s += $1 * 512} END {printf "%.0f\n", s}' > all.bytes`
  const [all, of] = first ? [Number(read('all.bytes')), 'the source'] : [repositoryBytes, 'the repository']
  const least = first || operation === 'check data' || operation === 'restore' ? Math.round(all / 3) : 0
  await check(`(($(grep -oE '[0-9]+' read.io) >= ${least}))  # bytes that ${operation} has read`, () => {
    const bytes = Number(/\d+/.exec(read('read.io'))?.[0])
    if (!(bytes >= least)) throw new Mismatch(`${operation} has read ${bytes} bytes of ${of}, which has ${all}`)
  })
}

/**
 * All operations of one tool in one round. After one that fails the rest of the round cannot be compared and is left out;
 * what the tool made is kept then, and goes otherwise.
 */
export async function roundOf(method: Method, tool: string, round: number, place: Place): Promise<Sample[]> {
  const { repo, dry, run } = rowScope()
  const { env, commands, says, count, listed, proves, remove, restored } = tools[tool]!
  const { name, backend, lacks = {} } = place
  const samples: Sample[] = []
  const lines = commands(place)
  const seen = backend.kind === 'local' ? `repositories/${name}` : undefined
  const set = `. ${name}/env.sh; `
  let operation: Operation = 'init'
  const { remote, managed } = run.endpoint(repo)
  // What a tool leaves goes at the end: on somebody else's server only where nothing was before.
  if (backend.kind === 's3' && remote && !managed)
    await $({ otherwise: Refused })`test -z "$(rclone lsf ${{ raw: remote }}/${name} 2> /dev/null)"  # nobody else's`
  rowScope().mayDelete = true
  try {
    await $`mkdir -p ${name}/restored repositories`
    const exports = Object.entries(env(place)).map(([key, value]) => `export ${key}=${value}`)
    await $`cat > ${name}/env.sh <<'EOF'
${{ raw: exports.join('\n') }}
EOF`
    if (tools[tool]!.program === 'vykar')
      await $`cat > ${name}/vykar.yaml <<'EOF'
${{ raw: vykarConfig(place, `REPO_${repo.toUpperCase()}`) }}EOF`
    await bringSource(method.states[0])
    for (operation of operations.filter((one) => !lacks[one])) {
      if (operation === 'changed backup') await bringSource(method.states[1])
      const syncOn = operation === 'restore' ? `${name}/restored` : (seen ?? name)
      const record = await timed(method, traced(method, tool, operation, `${set}${lines[operation]}`), syncOn)
      const sample: Sample = { repo, tool, round, operation, ...figuresOf(record) }
      if (seen) sample.repositoryBytes = Number((await look`du -s --block-size=1 ${seen} | cut -f1`).stdout)
      if (operation === 'restore') await compared(tool, restored(place))
      const [line, of] = listed?.(place) ?? []
      await didSomething(
        operation,
        sample,
        count && `${set}${count(place)}`,
        line && of ? [set + line, of] : undefined,
        proves?.[operation],
      )
      samples.push(sample)
    }
    await $({ limit: method.limit })`${{ raw: `(${set}${says(place)})` }} > ${tool}.says`
    if (!seen && remove) await $({ limit: method.limit })`${{ raw: `${set}${remove(place)}` }}`
    await $({ limit: '1h' })`rm -rf ${name} ${seen ?? `repositories/${name}`}`
    // What a tool without a command for it leaves of its repository on a server of ours.
    if (backend.kind === 'sftp') await $({ limit: '10m' })`rm -rf "$FILES_SFTP"/${name}`
    // 3 is rclone's "directory not found".
    if (backend.kind === 's3' && remote)
      await $({ limit: '10m', expect: [0, 3] })`rclone delete --rmdirs ${{ raw: remote }}/${name}`
  } catch (error) {
    if (error instanceof Interrupted || dry) throw error
    // A disk that has run full says nothing of a tool.
    notFull(run.runtime)
    samples.push({ repo, tool, round, operation, reason: messageOf(error), seconds: 0 })
    // What a tool that hangs has started goes with it.
    await end(() => processesOf(scope().run.id))
  }
  return samples
}
