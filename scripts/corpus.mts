// The source of the backend scenarios: the user's tree, or the default corpus.
import { existsSync, realpathSync, statfsSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { corpusFormat } from '#data-gen/awkward.mts'
import { ask } from '#lib/ask.mts'
import { diskUsage } from '#lib/cleanup.mts'
import { localDir } from '#lib/config.mts'
import { statedEnvironment } from '#lib/environment.mts'
import { readJson } from '#lib/files.mts'
import { isOurs } from '#lib/ours.mts'
import { apart } from '#lib/prepare.mts'
import { sourceChanged, witnessFormat } from '#lib/row.mts'
import { $, check, look, note, scope } from '#lib/sh.mts'
import { bytes } from '#lib/terminal.mts'
import { quote } from '#lib/transcript.mts'
import { Blocked, Mismatch, UsageError } from '#lib/verdict.mts'
import { needSpace } from '#scripts/space.mts'

/** `--source` and what goes with it. */
export const sourceOptions = {
  source: { kind: 'dir', help: 'tree to back up, which is never changed; default ~/corpus-local or ~/corpus-remote' },
  manifest: { kind: 'file', help: 'sha256sum manifest of the source, checked on the restored tree' },
  'corpus-gib': {
    kind: 'number',
    help: 'size of the default corpus; another one than 1 is kept beside it, in ~/corpus-…-GIB',
    default: 1,
    above: true,
  },
} as const

/**
 * The tree to back up: the one that the user named, or the default corpus, which is made where it is missing, and made anew
 * where this suite left it half-made. A directory that the user named never reaches the generator.
 * @param which the default corpus: large for local disks, small for remote ones
 * @param named what --source says
 * @param gib its size in GiB; each size but the usual one has a directory of its own, so that nobody's figure is passed over
 * @returns its path
 * @throws UsageError where the default is neither a whole corpus nor the suite's own
 */
export async function corpus(which: 'local' | 'remote', named: string | undefined, gib: number): Promise<string> {
  const { run } = scope()
  if (named) {
    // What vykar could not read it would leave out, and a restore of it could not be compared.
    const closed = run.dry ? '' : (await ask(['find', named, '!', '-type', 'l', '!', '-readable', '-print', '-quit'], { env: statedEnvironment(), seconds: 3600 })).stdout // biome-ignore format: one line
    if (closed.trim()) throw new UsageError(`--source: ${closed.trim()} cannot be read: run as its owner or as root, or name another tree`) // biome-ignore format: one line
    return named
  }
  const dir = join(homedir(), `corpus-${which}${gib === sourceOptions['corpus-gib'].default ? '' : `-${gib}`}`)
  const made = () => readJson<{ complete?: boolean; format?: number }>(join(dir, 'corpus.json'))
  const whole = () => made()?.complete === true
  const current = () => whole() && made()?.format === corpusFormat
  if (!run.dry && existsSync(dir) && !whole() && !isOurs(run.runtime, dir))
    throw new UsageError(
      `${dir} is no whole corpus, and not known to be this suite's: move it away, or name it with --source`,
    )
  if (!run.dry && existsSync(dir)) apart(dir, 'the runtime directory', run.runtime)
  if (!run.dry && existsSync(dir) && !current() && !isOurs(run.runtime, dir))
    throw new UsageError(`${dir} was made by an older version of this suite: move it away, or name it with --source`)
  const missing = run.dry || !existsSync(dir) || !current()
  // Two scripts that begin at once make one corpus: the home directory itself is the lock.
  await $({
    limit: '2h',
  })`grep -qs '"format": ${{ raw: String(corpusFormat) }}' ${dir}/corpus.json || flock ${homedir()} bash -c 'grep -qs "\"format\": ${{ raw: String(corpusFormat) }}" "$0"/corpus.json || e2e data-gen/corpus --out "$0" --gib "$1" --seed "$2"' ${dir} ${gib} ${run.common.seed}`
  if (missing) note(`made the corpus ${dir} (${gib} GiB, seed ${run.common.seed}); it is kept for the next run`)
  return run.dry ? dir : realpathSync(dir)
}

/**
 * Writes down what the source is before anything is done, so that a change is noticed later: in the user's own tree that is
 * BLOCKED, since nothing can be said then, in the suite's a FAIL.
 * @param named whether the user named it
 */
export async function witness(source: string, named: boolean): Promise<void> {
  const { run } = scope()
  const file = `source-${run.watched.length}`
  await $({
    limit: '30m',
  })`find ${source} -printf '/%P /%y %m %U:%G %s %T@ %C@ %l\0' | LC_ALL=C sort -z > ${file}`
  run.watched.push({ path: source, named })
}

/** The sources are what they were before. Throws Blocked or Mismatch naming the first entry that is not. */
export async function untouched(): Promise<void> {
  const { run } = scope()
  for (const [n, { path }] of run.watched.entries())
    await check(`find ${quote(path)} ${witnessFormat} | LC_ALL=C sort -z | cmp - "$top"/source-${n}`, async () => {
      const changed = n === 0 ? await sourceChanged(run) : undefined
      if (changed) throw new (changed.named ? Blocked : Mismatch)(changed.text)
    })
}

/**
 * What the row backs up: a copy of the corpus's first snapshot, `source`, which is changed between two backups while the corpus stays as
 * it was; or the user's own tree, where it is.
 * @param tree the corpus, or what the user named
 */
export async function changing(tree: string, named: string | undefined): Promise<{ source: string; was: string }> {
  if (named) return { source: named, was: named }
  await $({ limit: '1h' })`cp -a --reflink=auto ${tree}/snapshot-1 source`
  return { source: 'source', was: `${tree}/snapshot-1` }
}

/** A tree of the row is what its witness says: nothing but the suite has touched it. Throws Mismatch naming the first entry that differs. */
export async function stillAs(tree: string | { raw: string }, witness: string): Promise<void> {
  const list = `find ${typeof tree === 'string' ? quote(tree) : tree.raw} -mindepth 1 ${witnessFormat} | LC_ALL=C sort -z`
  await check(`${list} | cmp - ${witness}`, async () => {
    const { stdout } = await look({
      limit: '30m',
    })`${{ raw: list }} | LC_ALL=C comm -z3 ${witness} - | head -z -n 1 | tr -d '\t\0'`
    const entry = /^\/(.*) \/[a-z] /s.exec(stdout)?.[1]
    if (entry !== undefined) throw new Mismatch(`something has changed the source, and it was not this suite: ${entry}`)
  })
}

/** Longest path that Linux takes, with its end (limits.h, PATH_MAX), and room for the row's directory and `restored-…/`. */
const [longest, room] = [4096, 64]

/**
 * There is something in the tree to back up, and the disks hold a repository and a restored copy of it: bytes as large as the
 * files say, since holes are restored as data; inodes; and the length of names and paths, which grow by the run's directory.
 * @throws UsageError with the figures
 */
export async function fits(source: string): Promise<void> {
  const { run } = scope()
  await check(`test -n "$(find ${quote(source)} -mindepth 1 -print -quit)"  # it is not empty`, async () => {
    const measured = await look({
      limit: '30m',
    })`find ${source} -mindepth 1 -printf '%P\0%f\0' | tr '\n\0' '_\n' | LC_ALL=C awk 'NR % 2 {n++; if (length > p) p = length; next} length > f {f = length} END {print n + 0, p + 0, f + 0}'`
    const [entries, path, name] = measured.stdout.split(' ').map(Number) as [number, number, number]
    if (entries === 0) throw new Mismatch(`${source} is empty: there is nothing to prove with it`)
    const prefix = run.dirs.work.length + room
    if (prefix + path >= longest)
      throw new UsageError(
        `the longest path of ${source} has ${path} bytes, ${prefix} of a restored copy come before it, and ${longest} is the limit: name a shorter --runtime`,
      )
    const most = Number((await look`stat -f -c %l ${run.dirs.work}`).stdout)
    if (name > most)
      throw new UsageError(
        `a name in ${source} has ${name} bytes, and ${run.runtime} holds ${most} at most: name another --runtime`,
      )
    const { ffree, files } = statfsSync(run.dirs.work)
    if (files > 0 && ffree < entries * 1.1)
      throw new UsageError(
        `${source} has ${entries} files, and ${run.runtime} has ${ffree} inodes free: free some, or name another --runtime`,
      )
    const size = await diskUsage(source, true)
    const repositories = run.repos.map((label) => localDir(run.plan.sample.repository(label).url))
    const dirs = [run.runtime, ...repositories.filter((dir) => dir !== undefined)]
    // Packs carry a little more than the content: 10 % on top.
    const needs = dirs.map((dir) => ({ dir, bytes: size * 1.1 }))
    needSpace(needs, `a source of ${bytes(size)}, holes filled`, 'take a smaller --source')
  })
}
