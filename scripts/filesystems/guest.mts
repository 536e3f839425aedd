// A scenario in a QEMU guest, where this host's kernel lacks what it is about: ZFS.
import { cpSync, existsSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { readJson } from '#lib/files.mts'
import { root } from '#lib/prepare.mts'
import type { RowReport, RunReport } from '#lib/report.mts'
import type { Run } from '#lib/run.mts'
import { $, check, rowScope, step } from '#lib/sh.mts'
import { Blocked, Mismatch, Skipped } from '#lib/verdict.mts'

const scripts = join(root, 'scripts/filesystems/guest')

/** Whether a guest with ZFS was built; its disk is the last that the build makes. */
export const guestBuilt = (): boolean => existsSync(join(homedir(), '.cache/vykar-e2e/guest/disk.raw'))

/** Whether this host's kernel has ZFS at hand. */
export const kernelHasZfs = (): boolean => existsSync('/sys/module/zfs') || existsSync('/dev/zfs')

/**
 * Runs the scenario in the guest, a row for each repository: its report and logs lie beside the row's logs.
 * @param words the options that it gets there
 */
export async function inGuest(run: Run, words: readonly string[]): Promise<void> {
  const { 'strict-gaps': strict, sabotage, seed, 'time-scale': scale } = run.common
  const common = ['--seed', String(seed), '--time-scale', String(scale), ...(strict ? ['--strict-gaps'] : [])]
  if (sabotage) common.push('--sabotage', sabotage)
  const { scenario } = run.plan
  for (const repo of run.repos)
    await run.row(repo, async () => {
      step('guest')
      // Nothing where it is there already.
      await $({ limit: '1h', otherwise: Blocked })`${join(scripts, 'build')} > guest.dir`
      step('in the guest')
      const { code } = await $({
        limit: '2h',
        expect: 'any',
      })`${join(scripts, 'run')} --fetch guest --vykar ${run.plan.vykar.path} ./e2e ${scenario} --repo ${repo} ${[...common, ...words]} > guest.out`
      await check('test $rc = 0  # PASS in the guest', () => {
        const { dir, where, report } = rowScope()
        if (existsSync(join(dir, 'guest'))) cpSync(join(dir, 'guest'), join(run.dirs.logs, where), { recursive: true })
        const seen = readJson<RunReport>(join(dir, 'guest/reports', run.plan.name, 'latest/report.json'))
        Object.assign(run.report.versions, { 'zfs in the guest': seen?.versions.zfs })
        adopt(report, seen, code)
      })
    })
}

/**
 * What the guest came to becomes the row's.
 * @param code exit code of the scenario there
 * @throws by its verdict, where that is not PASS, or the exit code is another's
 */
export function adopt(row: RowReport, seen: RunReport | undefined, code: number): void {
  if (!seen) throw new Blocked(`the guest came to no report (exit ${code}): guest.out says why`)
  const there = seen.rows[0]
  if (there) Object.assign(row, { gaps: there.gaps, findings: there.findings, facts: there.facts })
  row.notes.push(
    ...seen.notes,
    ...(there?.notes ?? []),
    ...(seen.reason && seen.verdict === 'PASS' ? [seen.reason] : []),
  )
  const said = `in the guest: ${seen.reason || `${seen.verdict}, exit ${code}`}`
  if (seen.verdict === 'SKIPPED') throw new Skipped(said)
  if (seen.verdict === 'BLOCKED') throw new Blocked(said)
  if (seen.verdict !== 'PASS' || code !== 0) throw new Mismatch(said)
  if (!there) throw new Blocked('the guest has run no row')
}
