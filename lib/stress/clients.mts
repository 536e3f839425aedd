// The machines that back up to one repository in a walk.
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { diskUsage } from '../cleanup.mts'
import { localDir } from '../config.mts'
import { dataGen } from '../prepare.mts'
import type { Row } from '../row.mts'
import type { Run } from '../run.mts'
import { $ } from '../sh.mts'
import { needSpace } from '../space.mts'
import type { WalkOptions } from './walk.mts'

/** A machine that backs up to the repository: its directory, config, cache and source. */
export interface Client {
  label: string
  dir: string
  config: string
  source: string
  /** Bytes of the source at the beginning. */
  size: number
  /** How long its last backup took, in seconds. */
  last: number
}

/** The clients: directory, source, and the row's config with the client's own source, label and cache. */
export async function makeClients(row: Row, { concurrency, corpusGib, seed }: WalkOptions): Promise<Client[]> {
  mkdirSync(join(row.dir, 'model'))
  const clients: Client[] = []
  for (let n = 1; n <= concurrency; n++) {
    const [label, dir] = [`client-${n}`, join(row.dir, `client-${n}`)]
    const [config, source] = [join(dir, 'config.yaml'), join(dir, 'corpus/snapshot-1')]
    mkdirSync(dir)
    await $({ limit: '1h' })`${dataGen('corpus')} --out ${dir}/corpus --gib ${corpusGib} --seed ${seed + n} --churn 0`
    // Holes are content for sha256sum and nothing for a repository.
    await $`rm ${source}/awkward/sparse`
    await $`sed "s|path: .*|path: ${source}|; s|label: .LABEL.|label: ${label}|; s|^cache_dir: .*|cache_dir: ${dir}/cache|" ${row.config} > ${config} && chmod 600 ${config}`
    clients.push({ label, dir, config, source, size: diskUsage(source), last: 1 })
  }
  return clients
}

/**
 * The sources, what they change by, what has not been compacted yet, and a restored tree for each client: four times the
 * sources, where the run works and where local repositories are.
 * @throws UsageError where a disk has less
 */
export function needWalkSpace(run: Run, { concurrency, corpusGib }: WalkOptions): void {
  const local = run.repos.map((label) => localDir(run.plan.sample.repository(label).url))
  const dirs = [run.runtime, ...local.filter((dir) => dir !== undefined)]
  const needs = dirs.map((dir) => ({ dir, bytes: concurrency * corpusGib * 2 ** 30 * 4 }))
  needSpace(needs, `${concurrency} sources of ${corpusGib} GiB`, 'take a smaller --corpus-gib')
}
