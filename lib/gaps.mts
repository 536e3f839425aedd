// Known gaps: which differences between source and restored tree vykar is known to make (configs/known-gaps.yaml).
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'
import { root } from './prepare.mts'
import type { GapSeen } from './report.mts'
import { inRange } from './version.mts'

/**
 * How differences are found: diff for content, rsync for metadata, stat for allocated blocks, lsattr for inode flags;
 * `leftover` is a file that `delete` leaves in the repository, `resume` how much a resumed backup reused, `warning` a line of level WARN.
 */
export type Probe = 'diff' | 'rsync' | 'blocks' | 'flags' | 'leftover' | 'resume' | 'warning'

/** One difference: the line that shows it, the path it is about, relative to the tree, and in words. */
export interface Difference {
  probe: Probe
  line: string
  path: string
  /** What of the attribute differs. */
  detail?: string
}

/** An entry of known-gaps.yaml. */
export interface Gap {
  id: string
  versions: string
  /** Bash that prints the paths of the source that have the case; none where the case does not depend on the source. */
  trigger?: string
  shows: Partial<Record<Probe, string>>
  /** A regular expression over the difference in words: what the attribute becomes, where that is known. */
  becomes?: string
  why: string
}

/** The gaps that a vykar version has. Throws Error where the file is malformed. */
export function gapsOf(version: string, file = join(root, 'configs/known-gaps.yaml')): Gap[] {
  const gaps = parse(readFileSync(file, 'utf8')) as Gap[]
  for (const gap of gaps) {
    const alone = gap?.shows?.leftover || gap?.shows?.resume || gap?.shows?.warning
    if (!gap?.id || !gap.versions || !gap.why || !gap.shows || (!gap.trigger && !alone))
      throw new Error(`${file}: gap ${gap?.id ?? '?'} lacks one of id, versions, trigger, shows, why`)
  }
  return gaps.filter((gap) => inRange(version, gap.versions))
}

/**
 * Sets differences against known gaps.
 * @param affected for each gap id the paths of the source that have its case
 * @param words a difference in words
 * @returns the differences that no gap explains, and each gap whose case the source has: seen, or fixed
 */
export function explain(
  differences: Difference[],
  gaps: Gap[],
  affected: Map<string, Set<string>>,
  words: (difference: Difference) => string = ({ line }) => line,
): { unexplained: Difference[]; seen: GapSeen[] } {
  const counts = new Map<string, number>()
  const days = [-1, 0, 1].map((n) => new Date(Date.now() + n * 86_400_000).toISOString().slice(0, 10)).join('|')
  const unexplained = differences.filter((difference) => {
    const { probe, line, path } = difference
    const gap = gaps.find(
      (g) =>
        g.shows[probe] &&
        affected.get(g.id)?.has(path) &&
        new RegExp(g.shows[probe]!).test(line) &&
        (!g.becomes || new RegExp(g.becomes.replace('{now}', days)).test(words(difference))),
    )
    if (gap) counts.set(gap.id, (counts.get(gap.id) ?? 0) + 1)
    return !gap
  })
  const seen = gaps
    .filter((gap) => affected.get(gap.id)?.size)
    .map((gap): GapSeen => {
      const count = counts.get(gap.id) ?? 0
      return { id: gap.id, state: count ? 'seen' : 'fixed', count, why: gap.why }
    })
  return { unexplained, seen }
}

/** A line of what vykar prints that is more than information: a warning, or an error of whatever form. */
const warned =
  /^(?:(?:\d{4}-\d\d-\d\dT\S+\s+WARN\s+|Warning: )(?<warning>.*)|\d{4}-\d\d-\d\dT\S+\s+ERROR\s+(.*)|(Error: .*|thread '.*' .*panicked at .*|.*\bErrors: [1-9].*))$/gm
/** What 0.19.1 says in every command of a repository whose config asks for it, word for word. */
const asked = {
  'allow_insecure_http: true':
    /^repository(\.\w+ uses plaintext HTTP; repository\.allow_insecure_http=true enables this unsafe mode| '.*' uses non-HTTPS REST URL 'http:\S+'\. Transport is not TLS-protected\.)$/,
  'mode: none': /^repository '.*' uses REST with plaintext mode \(encryption\.mode=none\)\.$/,
}

/**
 * Warnings and errors in what a command of vykar printed that nothing explains.
 * @param text stdout and stderr
 * @param version of vykar, whose known gaps explain some
 * @param config the row's config, which may ask for plain HTTP
 */
export function unexplainedWarnings(text: string, version: string, config: string): string[] {
  const found = [...text.matchAll(warned)]
  if (!found.length) return []
  const known = gapsOf(version).flatMap(({ shows }) => (shows.warning ? [new RegExp(shows.warning)] : []))
  for (const [words, warning] of Object.entries(asked)) if (config.includes(words)) known.push(warning)
  return found
    .filter(({ groups }) => !known.some((pattern) => groups?.warning !== undefined && pattern.test(groups.warning)))
    .map(([line, message, error, other]) => message ?? error ?? other ?? line)
}
