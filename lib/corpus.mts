// The source of the backend scenarios: the user's tree, or the default corpus, made where it is missing.
import { existsSync, readFileSync, statfsSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { diskUsage } from './cleanup.mts'
import { localDir } from './config.mts'
import { root } from './prepare.mts'
import type { Run } from './run.mts'
import { $ } from './sh.mts'
import { bytes } from './terminal.mts'
import { Mismatch, UsageError } from './verdict.mts'

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

const nearestExisting = (path: string): string => (existsSync(path) ? path : nearestExisting(dirname(path)))

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
    const generator = [
      process.execPath,
      '--import',
      join(root, 'node_modules/tsx/dist/loader.mjs'),
      join(root, 'data-gen/corpus.mts'),
    ]
    await $({ limit: '2h' })`${generator} --out ${source} --gib ${gib} --seed ${seed}`
    if (run.dry) return source
    run.report.notes.push(`made the corpus ${source} (${gib} GiB, seed ${seed}); it is kept for the next run`)
  }
  const size = diskUsage(source)
  if (size === 0) throw new Mismatch(`${source} is empty: there is nothing to prove with it`)
  needSpace(run, size)
  return source
}

/** A repository and a restored copy must fit; both on one disk need twice the size. */
function needSpace(run: Run, size: number): void {
  const dirs = [run.runtime]
  for (const label of run.repos) {
    const dir = localDir(run.plan.sample.repository(label).url)
    if (dir) dirs.push(dir)
  }
  const perDisk = new Map<string, { need: number; free: number; dir: string }>()
  for (const dir of dirs) {
    const { bavail, bsize, blocks, files } = statfsSync(nearestExisting(dir))
    const disk = `${blocks}/${files}/${bavail}`
    const entry = perDisk.get(disk) ?? { need: 0, free: bavail * bsize, dir }
    // Holes of sparse files are restored as data, packs carry a little more than the content: 10 % on top.
    entry.need += size * 1.1
    perDisk.set(disk, entry)
  }
  for (const { need, free, dir } of perDisk.values())
    if (need > free)
      throw new UsageError(
        `${dir} has ${bytes(free)} free, ${bytes(need)} are needed for a source of ${bytes(size)}: free some, or take a smaller --source`,
      )
}
