// What the scripts about odd sources and about choices share: one backup and one restore under a name.
import { $ } from '#lib/sh.mts'

/** One backup of what the config says: what it printed in NAME.out, the snapshot's id in NAME.id, the list after it in NAME.list. */
export async function backup(repo: string, name: string): Promise<void> {
  await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > ${name}.out`
  await $`sed -n 's/^Snapshot created: //p' ${name}.out > ${name}.id`
  await $`vykar --config config.yaml list -R ${repo} > ${name}.list`
}

/** NAME.id, with an empty cache and home, into `restored-NAME`. */
export async function restore(repo: string, name: string): Promise<void> {
  await $`rm -rf lost && mkdir lost restored-${{ raw: name }}`
  await $({
    limit: '1h',
  })`HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<${{ raw: name }}.id) restored-${{ raw: name }}`
}
