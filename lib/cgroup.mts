// A memory limit for the commands of a run: a cgroup that they join.
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Run } from './run.mts'
import { messageOf, Skipped } from './verdict.mts'

/**
 * Makes a cgroup with a memory limit, of version 1 or 2 as the host has it; it goes with the run.
 * @param mib the limit in MiB
 * @returns its directory
 * @throws Skipped where cgroups cannot be used
 */
export function memoryCgroup(run: Run, mib: number): string {
  const unified = existsSync('/sys/fs/cgroup/cgroup.controllers')
  const dir = join(unified ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory', `vykar-e2e-${run.id}`)
  try {
    if (unified) writeFileSync('/sys/fs/cgroup/cgroup.subtree_control', '+memory')
    mkdirSync(dir)
    run.cleanup.add(`cgroup ${dir}`, () => rmdirSync(dir))
    writeFileSync(join(dir, unified ? 'memory.max' : 'memory.limit_in_bytes'), String(Math.round(mib * 2 ** 20)))
  } catch (error) {
    throw new Skipped(
      `--memory-limit: no cgroup can be made (${messageOf(error)}): run as root, with the memory controller`,
    )
  }
  return dir
}
