// What is vykar's fault: listed in configs/known-findings.yaml for its version, or a FAIL; and known gaps that show elsewhere than in a tree.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parse } from 'yaml'
import type { Gap } from '#lib/gaps.mts'
import { root } from '#lib/prepare.mts'
import type { GapSeen } from '#lib/report.mts'
import { note, rowScope } from '#lib/sh.mts'
import { Mismatch, messageOf } from '#lib/verdict.mts'
import { inRange } from '#lib/version.mts'

/** An entry of known-findings.yaml: a fault of vykar, and no limit that its documentation names. */
export interface Finding {
  id: string
  versions: string
  what: string
  /** Commands that show it. */
  shown_by: string
  /** Whether it shows by chance: a moment decides. */
  chance?: boolean
  /** The script that shows it at each run of all its rounds, where there is one. */
  shows_in?: string
}

const knownFindings = join(root, 'configs/known-findings.yaml')

function entries(file: string): Finding[] {
  try {
    return parse(readFileSync(file, 'utf8'))
  } catch (error) {
    throw new Error(`${file}: ${messageOf(error)}`)
  }
}

/** Ids of the findings that show by chance, whatever the version. */
export const chanceFindings = (): string[] => entries(knownFindings).flatMap(({ id, chance }) => (chance ? [id] : []))

/** The findings that a vykar version has. Throws Error where the file is malformed. */
export function findingsOf(version: string, file = knownFindings): Finding[] {
  const findings = entries(file)
  for (const one of findings)
    if (!one?.id || !one.versions || !one.what || !one.shown_by)
      throw new Error(`${file}: finding ${one?.id ?? '?'} lacks one of id, versions, what, shown_by`)
  return findings.filter(({ versions }) => inRange(version, versions))
}

/**
 * A case that shows a fault of vykar, or does not.
 * @param id of its entry in known-findings.yaml
 * @param seen what was seen, in a sentence; undefined where the case was tried and vykar did what is right
 * @throws Mismatch where it shows and is not listed, and under --strict-gaps where it is listed and does not show
 */
export function finding(id: string, seen: string | undefined): void {
  const { run, report } = rowScope()
  const known = findingsOf(run.plan.vykar.version).some((one) => one.id === id)
  if (seen && !known) throw new Mismatch(`${seen} (finding ${id})`)
  if (seen && !report.findings.some((one) => one.id === id)) report.findings.push({ id, seen })
  if (seen || !known) return
  const fixed = `known finding fixed, remove it from configs/known-findings.yaml: ${id}`
  if (run.common['strict-gaps']) throw new Mismatch(fixed)
  note(fixed)
}

/**
 * Sets lines that show something other than a tree (what `delete` left, how a resume went) against known gaps.
 * @returns the lines that no gap explains, and the gaps that were seen
 */
export function explainLines(
  probe: 'leftover' | 'resume',
  lines: string[],
  gaps: Gap[],
): { unexplained: string[]; seen: GapSeen[] } {
  const known = gaps.filter((gap) => gap.shows[probe])
  const matching = (gap: Gap) => lines.filter((line) => new RegExp(gap.shows[probe]!).test(line))
  const seen = known.flatMap((gap): GapSeen[] => {
    const count = matching(gap).length
    return count ? [{ id: gap.id, state: 'seen', count, why: gap.why }] : []
  })
  return { unexplained: lines.filter((line) => !known.some((gap) => matching(gap).includes(line))), seen }
}
