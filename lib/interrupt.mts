// A backup whose `before` hook has done its work, and that a signal ends while it copies.
import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { sleep } from 'zx'
import { background, until } from './background.mts'
import type { Row } from './row.mts'
import { $, scope } from './sh.mts'
import { Blocked } from './verdict.mts'
import { parseList } from './vykar.mts'

/**
 * Starts a backup, waits for the file by which its `before` hook says that it is done, and signals vykar.
 * @param mark name of that file in the row's directory
 * @param had snapshots that the repository holds already
 * @param larger the option that makes the copy last longer, for the message
 * @returns the exit code; 0 in a dry run
 * @throws Blocked when the backup was done before the signal came
 */
export async function interruptedCopy(
  { config, repository, dir }: Row,
  signal: 'TERM' | 'KILL',
  mark: string,
  had: number,
  larger: string,
): Promise<number> {
  const { transcript, dry } = scope()
  const quoted = transcript.quote(config)
  transcript.line(`rm -f ${mark}; vykar --config ${quoted} backup -R ${repository.label} & pid=$!`)
  transcript.line(`until test -e ${mark}; do sleep 0.05; done; sleep 0.1; kill -${signal} $pid; wait $pid || true`)
  if (dry) return 0
  rmSync(join(dir, mark), { force: true })
  const backup = background(['vykar', '--config', config, 'backup', '-R', repository.label], `${signal}.out`)
  await until('`before` to end', () => existsSync(join(dir, mark)) || !backup.running())
  // The hook's shell is about to end: a TERM that comes inside the hook is ignored.
  await sleep(100)
  const { rc } = await backup.interrupt(signal, 60)
  const list = await $({ limit: '10m', out: `${signal}.list` })`vykar --config ${config} list -R ${repository.label}`
  if (rc === 0 || parseList(list.stdout).length > had)
    throw new Blocked(`${signal} came too late, the backup was done: take a larger ${larger}`)
  return rc
}
