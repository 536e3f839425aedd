// The source of the backend scenarios: the user's tree, or the default corpus, made where it is missing.
import { existsSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { diskUsage } from './cleanup.mts'
import { localDir } from './config.mts'
import { dataGen } from './prepare.mts'
import type { Run } from './run.mts'
import { $ } from './sh.mts'
import { needSpace } from './space.mts'
import { bytes } from './terminal.mts'
import { Mismatch } from './verdict.mts'

/** `--source` and what goes with it; `which` is the corpus's name: large for local disks, small for remote ones. */
export function sourceOptions(which: 'local' | 'remote') {
  return {
    source: {
      kind: 'dir',
      help: 'tree to back up; a missing default is made',
      default: join(homedir(), `corpus-${which}`),
    },
    manifest: { kind: 'file', help: 'sha256sum manifest of the source, checked on the restored tree' },
    'corpus-gib': { kind: 'number', help: 'size of a default corpus that has to be made', default: 1, above: true },
  } as const
}

/** A run whose script takes a source. */
type Corpus = Run & { options: { source: string | undefined; 'corpus-gib': number } }

/**
 * The tree to back up. A default corpus that is missing, or was left half-made, is generated and kept for the next run.
 * @param source the tree, `--source` unless told
 * @returns its path
 * @throws UsageError where the disk cannot hold a repository and a restored copy of it
 */
export async function corpus(run: Corpus, source = run.options.source!): Promise<string> {
  const gib = run.options['corpus-gib']
  const { seed } = run.common
  const marker = join(source, 'corpus.json')
  const unfinished = existsSync(marker) && JSON.parse(readFileSync(marker, 'utf8')).complete !== true
  if (!existsSync(source) || unfinished) {
    await $({ limit: '2h' })`${dataGen('corpus')} --out ${source} --gib ${gib} --seed ${seed}`
    if (run.dry) return source
    run.report.notes.push(`made the corpus ${source} (${gib} GiB, seed ${seed}); it is kept for the next run`)
  }
  const size = diskUsage(source)
  if (size === 0) throw new Mismatch(`${source} is empty: there is nothing to prove with it`)
  needSpaceFor(run, size)
  return source
}

/** A repository and a restored copy must fit; both on one disk need twice the size. */
function needSpaceFor(run: Run, size: number): void {
  const repositories = run.repos.map((label) => localDir(run.plan.sample.repository(label).url))
  const dirs = [run.runtime, ...repositories.filter((dir) => dir !== undefined)]
  // Holes of sparse files are restored as data, packs carry a little more than the content: 10 % on top.
  const needs = dirs.map((dir) => ({ dir, bytes: size * 1.1 }))
  needSpace(needs, `a source of ${bytes(size)}`, 'take a smaller --source')
}
