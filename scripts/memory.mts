// A limit of memory for what a line runs.
import { existsSync } from 'node:fs'
import { $, undo } from '#lib/sh.mts'
import { Skipped } from '#lib/verdict.mts'

/**
 * A cgroup with a memory limit, of version 1 or 2 as the host has it; it goes with the run.
 * @param mib the limit in MiB
 * @param what who needs it, for the message
 * @returns its directory, as bash
 * @throws Skipped where none can be made
 */
export async function memoryCgroup(mib: number, what: string): Promise<string> {
  const unified = existsSync('/sys/fs/cgroup/cgroup.controllers')
  const dir = `/sys/fs/cgroup${unified ? '' : '/memory'}/vykar-e2e-$VYKAR_E2E_RUN`
  const limit = unified ? 'memory.max' : 'memory.limit_in_bytes'
  undo`rmdir ${{ raw: dir }} 2> /dev/null || true`
  if (unified) await $({ expect: 'any' })`echo +memory > /sys/fs/cgroup/cgroup.subtree_control`
  await $({
    otherwise: Skipped,
  })`mkdir ${{ raw: dir }} && echo ${Math.round(mib * 2 ** 20)} > ${{ raw: dir }}/${limit} || { echo ${`${what}: no cgroup can be made: run as root, with the memory controller`} >&2; exit 1; }`
  return dir
}
