// Same tree: content by diff, metadata by rsync in both directions, allocated blocks by stat, known gaps set apart.
import { readFileSync } from 'node:fs'
import { lstat } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { type Difference, explain, type Gap, gapsOf } from './gaps.mts'
import { rowScope } from './row.mts'
import { $, type Output, scope } from './sh.mts'
import { quote } from './transcript.mts'
import { Mismatch } from './verdict.mts'

/** Holes that come back a little larger are the file system's business: 64 KiB, or a tenth. */
const blockSlack = (bytes: number) => Math.max(64 * 1024, bytes / 10)

const items = (output: Output) => readFileSync(output.file, 'utf8').split('\0').filter(Boolean)
const lines = (output: Output) => readFileSync(output.file, 'utf8').split('\n').filter(Boolean)

/** The differences in what `diff -qr` printed; source and restored are written as SOURCE and RESTORED. */
export function parseDiff(text: string[], source: string, restored: string): Difference[] {
  return text.map((raw) => {
    const line = raw.replaceAll(restored, 'RESTORED').replaceAll(source, 'SOURCE')
    const only = /^Only in (SOURCE|RESTORED)(?:\/(.*?))?: (.*)$/.exec(line)
    const pair = /^(?:Files?|Symbolic links) SOURCE\/(.*?) (?:and RESTORED|is a )/.exec(line)
    return { probe: 'diff', line, path: only ? join(only[2] ?? '', only[3]!) : (pair?.[1] ?? '') }
  })
}

/** The differences in what `rsync -i` printed: eleven flags (or `*deleting`), a space, the path, ` -> ` for symlinks. */
export function parseRsync(text: string[]): Difference[] {
  return text.map((line) => {
    const path = line.slice(12).replace(/( -> | => ).*$/, '')
    return { probe: 'rsync', line, path: path.replace(/^\.\/$/, '.').replace(/\/$/, '') }
  })
}

/** Files with holes whose restored copy takes more disk than they do. `listing` holds `blocks path` items. */
async function grown(listing: string[], restored: string): Promise<Difference[]> {
  const found: Difference[] = []
  for (const item of listing) {
    const [, blocks, path] = /^(\d+) (.*)$/s.exec(item) ?? []
    const copy = await lstat(join(restored, path!)).catch(() => undefined)
    const [was, is] = [Number(blocks) * 512, (copy?.blocks ?? 0) * 512]
    if (is > was + blockSlack(was)) found.push({ probe: 'blocks', line: `blocks ${was} ${is} ${path}`, path: path! })
  }
  return found
}

async function affectedBy(gaps: Gap[], source: string): Promise<Map<string, Set<string>>> {
  const asked = gaps.map(async (gap) => {
    const output = await $({ cwd: source, unlisted: true })`bash -c ${gap.trigger ?? 'true'}`
    return [gap.id, new Set(items(output))] as const
  })
  return new Map(await Promise.all(asked))
}

/** The transcript's own check: nothing printed but the known gaps that this run saw. */
function expectByHand(gaps: Gap[], source: string): void {
  const { transcript } = scope()
  const known = gaps.flatMap(({ shows }) => [shows.diff?.replace('SOURCE', source), shows.rsync].filter(Boolean))
  transcript.line(`# nothing may be printed here but known gaps: ${gaps.map((gap) => gap.id).join(', ') || 'none'}`)
  const files = 'diff.out rsync-there.out rsync-back.out'
  transcript.line(
    `if grep -hvE ${quote(known.join('|') || '^$')} ${files}; then echo 'the trees differ' >&2; exit 1; fi`,
  )
}

/**
 * Requires that two trees are the same: content, names, types, mode, owner, mtime (ns), symlink targets, hardlink
 * groups, xattrs, ACLs, capabilities, allocated blocks. Known gaps of this vykar become notes of the row.
 * @throws Mismatch naming the first differences
 */
export async function sameTree(source: string, restored: string): Promise<void> {
  const { row, run, dry } = rowScope()
  const gaps = gapsOf(run.plan.vykar.version)
  const limit = '2h'
  // Both directions: one alone misses files that were wrongly hardlinked together.
  const [diff, there, back, sparse, affected] = await Promise.all([
    $({ limit, expect: [0, 1], out: 'diff.out' })`diff -qr --no-dereference ${source} ${restored}`,
    $({ limit, out: 'rsync-there.out' })`rsync -naHAXi --modify-window=-1 --delete ${source}/ ${restored}/`,
    $({ limit, out: 'rsync-back.out' })`rsync -naHAXi --modify-window=-1 --delete ${restored}/ ${source}/`,
    $({
      limit,
      cwd: source,
      unlisted: true,
    })`find . -type f -size +0 -printf '%S %b %P\0' | { grep -zE '^(0|0[.][0-9]+|[0-9.]+e-[0-9]+) ' || true; } | sed -z 's/^[^ ]* //'`,
    dry ? new Map<string, Set<string>>() : affectedBy(gaps, source),
  ])
  if (dry) return
  const differences = [
    ...parseDiff(lines(diff), source, restored),
    ...parseRsync([...new Set([...lines(there), ...lines(back)])]),
    ...(await grown(items(sparse), restored)),
  ]
  const { unexplained, seen } = explain(differences, gaps, affected)
  // A row that compares several trees shows each gap once.
  row.report.gaps.push(
    ...seen.filter((gap) => !row.report.gaps.some((had) => had.id === gap.id && had.state === gap.state)),
  )
  expectByHand(
    gaps.filter((gap) => seen.some((s) => s.id === gap.id && s.count)),
    source,
  )
  if (process.getuid?.() !== 0) row.report.notes.push('owners not compared: not run as root')
  if (unexplained.length)
    throw new Mismatch(
      `${unexplained.length} difference${unexplained.length > 1 ? 's' : ''} between ${source} and ${relative(run.runtime, restored)}: ${unexplained
        .slice(0, 3)
        .map((d) => d.line)
        .join('; ')}${unexplained.length > 3 ? '; …' : ''} (log: ${scope().step.log})`,
    )
  const fixed = seen.filter((gap) => gap.state === 'fixed').map((gap) => gap.id)
  if (fixed.length) {
    const text = `known gap fixed, remove it from configs/known-gaps.yaml: ${fixed.join(', ')}`
    if (run.common['strict-gaps']) throw new Mismatch(text)
    row.report.notes.push(text)
  }
}

/** Checks a sha256 manifest (as sha256sum writes it) against a tree. Throws CommandFailed on the first lines that differ. */
export async function sameAsManifest(manifest: string, restored: string): Promise<void> {
  await $({ limit: '2h', cwd: restored })`sha256sum --check --quiet --strict ${manifest}`
}
