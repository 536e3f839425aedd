// What the container scenarios share: their options and names.
import { type Engine, engineRoot } from '../engine.mts'
import type { OptionSpecs, Values } from '../options.mts'
import type { Run } from '../run.mts'
import { needSpace } from '../space.mts'

/** The three patterns: a static volume, a volume whose container is stopped by hooks, a dump through exec. */
export const patterns = ['volume', 'downtime', 'dump'] as const

/** The options of the container scenarios. */
export const containerOptions = {
  pattern: { kind: 'list', help: 'patterns to try, all unless told', choices: patterns },
  image: { kind: 'string', help: 'an image with a shell and coreutils', default: 'debian:stable-slim' },
  'database-image': { kind: 'string', help: 'an image with PostgreSQL', default: 'postgres:16' },
  source: { kind: 'dir', help: 'tree to fill the static volume with; default one of 0.1 GiB that is made' },
  'target-gib': { kind: 'number', help: 'size of the database in GiB', default: 0.25, above: true },
  'ballast-mib': { kind: 'number', help: 'size of the file that makes a backup last, in MiB', default: 256, min: 16 },
} as const satisfies OptionSpecs
export type ContainerRun = Run & { options: Values<typeof containerOptions> }

/** The patterns that the user chose, all unless told. */
export const chosenPatterns = ({ options }: ContainerRun) =>
  patterns.filter((name) => !options.pattern.length || options.pattern.includes(name))

/** Names of the run's containers and volumes, which must all be free. */
export const namesOf = ({ name }: Engine) => ({
  /** A: the volume that is backed up, and the one that is restored into. */
  volume: `vykar-${name}-volume`,
  restored: `vykar-${name}-restored`,
  /** B: the container that writes, and its volume. */
  writer: `vykar-${name}-writer`,
  records: `vykar-${name}-records`,
  /** C: the database, and the one that the dump is loaded into. */
  database: `vykar-${name}-db`,
  fresh: `vykar-${name}-db-restored`,
})

/**
 * What the volumes and databases take on the engine's disk, and repository and restored tree where the run works.
 * @throws UsageError where one of the disks has less
 */
export function needContainerSpace(run: ContainerRun, engine: Engine): void {
  const { 'target-gib': gib, 'ballast-mib': mib } = run.options
  const [database, ballast] = [gib * 2 ** 30, mib * 2 ** 20]
  const needs = [
    { dir: engineRoot(engine.name), bytes: database * 2.2 + ballast + 2 ** 30 },
    { dir: run.runtime, bytes: database * 2.2 + ballast * 2 + 2 ** 30 },
  ]
  needSpace(needs, `--target-gib ${gib} --ballast-mib ${mib}`, 'take less of either')
}
