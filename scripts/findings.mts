// What is vykar's fault: listed in configs/known-findings.yaml for its version, or a FAIL.
import { findingsOf } from '#lib/gaps.mts'
import { note, rowScope } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'

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
