// What every repository goes through before and after a script's own procedure; scripts/backends/local.mts types it out.

import { $, rowScope, undo } from '#lib/sh.mts'
import { deleted, freed, made, mayDelete, nothingHeld, packBytes, says, sound } from '#scripts/checks.mts'
import { untouched } from '#scripts/corpus.mts'

/** Needs of scripts whose repositories may be on servers, which scripts/servers.mts starts. */
export const serverWants = ['vykar-server', 's3-server', 'curl', 'sshd', 'ssh-keygen', 'sftp', 'rclone'] as const

/** `list`, the guard, `delete`, `init`; config.yaml is there already. The repository goes again when the row has passed. */
export async function fresh(repo: string): Promise<void> {
  const { run } = rowScope()
  const { remote, url } = run.endpoint(repo)
  // 3 is rclone's "directory not found"; what `delete` left is looked at before.
  if (remote) undo({ expect: [0, 3], keep: `objects of ${remote}` })`rclone delete --rmdirs ${{ raw: remote }}`
  await $({ expect: [0, 1] })`vykar --config config.yaml list -R ${repo} > before.out 2>&1`
  await mayDelete('before.out')
  await $({ expect: [0, 1] })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo > deleted.out 2>&1`
  await deleted('deleted.out')
  if (remote) await $({ expect: [0, 3] })`rclone delete --rmdirs ${{ raw: remote }}`
  undo({
    keep: `repository ${url}`,
  })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo > deleted.out 2>&1 || grep -qE 'HTTP 40[04]' deleted.out`
  await $({ limit: repo === 'sftp' ? '120s' : '10m' })`vykar --config config.yaml init -R ${repo}`
  await made()
}

/** `check` and `check --verify-data`; the only snapshot goes, and with it all that it took; the source is as it was. */
export async function retire(repo: string): Promise<void> {
  await $({ limit: '30m' })`vykar --config config.yaml check -R ${repo} > check.out 2>&1`
  await sound('check.out')
  await $({ limit: '1h' })`vykar --config config.yaml check -R ${repo} --verify-data > verify.out 2>&1`
  await sound('verify.out', true)
  const packs = packBytes()
  await $`vykar --config config.yaml snapshot delete -R ${repo} $(<snapshot.id)`
  await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compact.out`
  await freed('compact.out', packs)
  await $`vykar --config config.yaml list -R ${repo} > gone.out`
  await says('gone.out', /^No snapshots found\.$/m, 'the snapshot was deleted, but list still shows one')
  await $`vykar --config config.yaml break-lock -R ${repo} > locks.out`
  await nothingHeld('locks.out')
  await untouched()
}
