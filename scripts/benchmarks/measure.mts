// One round of one tool: each operation timed alone, from the same state of source and caches, its result looked at
// before anything is wiped.
import { end, processesOf } from '#lib/process.mts'
import { $, type CommandRecord, look, rowScope, scope } from '#lib/sh.mts'
import { Interrupted, messageOf } from '#lib/verdict.mts'
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
  const done = await $({ limit: method.limit })`(${{ raw: `${enter}${line}` }}) && sync -f ${{ raw: syncOn }}`
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

/**
 * All operations of one tool in one round. After one that fails the rest of the round cannot be compared and is left out;
 * what the tool made is kept then, and goes otherwise.
 */
export async function roundOf(method: Method, tool: string, round: number, place: Place): Promise<Sample[]> {
  const { repo, dry, run } = rowScope()
  const { env, init, commands, remove, restored } = tools[tool]!
  const { name, backend } = place
  const samples: Sample[] = []
  const lines = commands(place)
  const seen = backend.kind === 'local' ? `repositories/${name}` : undefined
  const set = `. ${name}/env.sh; `
  let operation: Operation = 'first backup'
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
    await $({ limit: method.limit })`${{ raw: `${set}${init(place)}` }}`
    for (operation of operations) {
      if (operation === 'changed backup') await bringSource(method.states[1])
      const syncOn = operation === 'restore' ? `${name}/restored` : (seen ?? name)
      const record = await timed(method, `${set}${lines[operation]}`, syncOn)
      const sample: Sample = { repo, tool, round, operation, ...figuresOf(record) }
      if (seen) sample.repositoryBytes = Number((await look`du -s --block-size=1 ${seen} | cut -f1`).stdout)
      if (operation === 'restore')
        await $({ limit: '2h' })`diff -qr --no-dereference source ${{ raw: restored(place) }}`
      samples.push(sample)
    }
    if (!seen && remove) await $({ limit: method.limit })`${{ raw: `${set}${remove(place)}` }}`
    await $({ limit: '1h' })`rm -rf ${name} ${seen ?? `repositories/${name}`}`
    // What a tool without a command for it leaves of its repository on a server of ours.
    const { remote } = run.endpoint(repo)
    if (backend.kind === 'sftp') await $({ limit: '10m' })`rm -rf "$FILES_SFTP"/${name}`
    // 3 is rclone's "directory not found".
    if (backend.kind === 's3' && remote)
      await $({ limit: '10m', expect: [0, 3] })`rclone delete --rmdirs ${{ raw: remote }}/${name}`
  } catch (error) {
    if (error instanceof Interrupted || dry) throw error
    samples.push({ repo, tool, round, operation, reason: messageOf(error), seconds: 0 })
    // What a tool that hangs has started goes with it.
    await end(() => processesOf(scope().run.id))
  }
  return samples
}
