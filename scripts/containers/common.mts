// What the container scenarios share: options, space, and what the engine's events and the records must say.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { diskUsage } from '#lib/cleanup.mts'
import type { OptionSpecs, Values } from '#lib/options.mts'
import type { Run } from '#lib/run.mts'
import { $, check, fact, read, scope } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'
import { engineRoot } from '#scripts/engine.mts'
import { needSpace } from '#scripts/space.mts'

/** The three patterns: a static volume, a volume whose container is stopped by hooks, a dump through exec. */
export const patterns = ['volume', 'downtime', 'dump'] as const

/** The options of the container scenarios. */
export const containerOptions = {
  pattern: { kind: 'list', help: 'patterns to try, all unless told', choices: patterns },
  image: { kind: 'string', help: 'an image with a shell and coreutils; default debian:stable-slim' },
  'database-image': { kind: 'string', help: 'an image with PostgreSQL; default postgres:16' },
  source: { kind: 'dir', help: 'tree to fill the static volume with; default one of 0.1 GiB that is made' },
  'target-gib': { kind: 'number', help: 'size of the database in GiB', default: 0.25, min: 0.02 },
  'ballast-mib': { kind: 'number', help: 'size of the file that makes a backup last, in MiB', default: 256, min: 16 },
} as const satisfies OptionSpecs
export type ContainerRun = Run & { options: Values<typeof containerOptions> }

/** The patterns that the user chose, all unless told. */
export const chosenPatterns = ({ options }: ContainerRun) =>
  patterns.filter((name) => !options.pattern.length || options.pattern.includes(name))

/**
 * What the volumes and databases take on the engine's disk, and repository and restored tree where the run works.
 * @throws UsageError where one of the disks has less
 */
export async function needContainerSpace(run: ContainerRun, engine: string): Promise<void> {
  if (run.dry) return
  const { 'target-gib': gib, 'ballast-mib': mib } = run.options
  const [database, ballast] = [gib * 2 ** 30, mib * 2 ** 20]
  // A volume with a copy of the user's tree, and one that it is restored to; its repository and two trees where the run works.
  const tree = run.options.source ? await diskUsage(run.options.source, true) : 2 ** 28
  const needs = [
    { dir: await engineRoot(engine), bytes: database * 2.2 + ballast + tree * 2.2 + 2 ** 29 },
    { dir: run.runtime, bytes: database * 2.2 + ballast * 2 + tree * 3.3 + 2 ** 29 },
  ]
  const why = `--target-gib ${gib} --ballast-mib ${mib}${run.options.source ? ` and ${run.options.source}` : ''}`
  needSpace(needs, why, 'take less of either')
}

/**
 * From the engine's events: the container was stopped once, before the copy, and started once, after it.
 * @param events lines of nanoseconds since 1970 and what happened
 * @param died what the engine calls the end of a container's process
 * @param stopped, starting when `before` was done and when `finally` began, in nanoseconds since 1970
 * @returns the downtime in seconds
 */
export function downtimeOf(events: string, died: string, stopped: bigint, starting: bigint): number {
  const seen = events.split('\n').flatMap((line) => {
    const [, at, what] = /^(\d+) (\w+)$/.exec(line) ?? []
    return at && (what === died || what === 'start') ? [{ at: BigInt(at), what }] : []
  })
  const [end, start] = [seen.find(({ what }) => what === died), seen.find(({ what }) => what === 'start')]
  const after = (ns: bigint) => `${(Number(ns) / 1e9).toFixed(2)} s`
  if (!end) throw new Mismatch('the container was not stopped for the backup: the engine saw no end of its process')
  if (end.at > stopped) throw new Mismatch(`the container ended only ${after(end.at - stopped)} after \`before\``)
  if (!start) throw new Mismatch('the container was not started again: the engine saw no start')
  if (start.at < starting)
    throw new Mismatch(
      `the container was started behind the hook's back, ${after(starting - start.at)} before \`finally\`: the copy is of no single moment`,
    )
  if (seen.length !== 2)
    throw new Mismatch(`the container was stopped or started ${seen.length} times instead of twice`)
  return Number(start.at - end.at) / 1e9
}

/**
 * What `events.out` says of the downtime, with the times that the hooks left in `stopped` and `starting`.
 * @param of the backup, for the figure's name
 */
export async function downtime(died: string, of: string): Promise<void> {
  const hand = `test -e stopped && test -e starting && awk -v from=$(<stopped) -v to=$(<starting) '
  $2 == "${died}" {n++; d = $1} $2 == "start" {n++; s = $1} END {exit !(n == 2 && d <= from && s >= to)}' events.out`
  await check(hand, () => {
    const { dir } = scope()
    if (!existsSync(join(dir, 'stopped'))) throw new Mismatch('`before` was not run to its end')
    if (!existsSync(join(dir, 'starting'))) throw new Mismatch('`finally` was not run')
    const at = (name: string) => BigInt(read(name).trim() || 0)
    fact(
      `downtime of a backup ${of}`,
      `${downtimeOf(read('events.out'), died, at('stopped'), at('starting')).toFixed(2)} s`,
    )
  })
}

/** The container runs. Throws Mismatch where it does not. */
export async function runs(engine: string, cid: string, when: string): Promise<void> {
  await $`test "$(${engine} container inspect -f '{{.State.Running}}' $(<${cid}))" = true || { echo ${`the container does not run after ${when}`} >&2; exit 1; }`
}

/** The records of the writer: no torn one, every file with its checksum, as many as there were at the stop. */
export async function wholeRecords(restored: string): Promise<void> {
  await $({ limit: '30m' })`(cd ${restored} && sha256sum --check --quiet --strict SHA256SUMS)`
  await $`test "$(ls ${restored} | grep -c '^[0-9]')" = "$(wc -l < ${restored}/SHA256SUMS)"`
  await $`test "$(wc -l < ${restored}/SHA256SUMS)" = "$(<records)"`
}
