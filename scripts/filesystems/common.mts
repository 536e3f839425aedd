// What the file systems with snapshots share: files that churn, and backups that must fail, be right, or be cut short.

import { type Background, background } from '#lib/background.mts'
import type { Run } from '#lib/run.mts'
import { $, check, fact, read, when } from '#lib/sh.mts'
import { Blocked, UsageError } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { linesOf, listed, says, shows } from '#scripts/checks.mts'
import { needSpace } from '#scripts/space.mts'

/**
 * The file system has room for the files and what is changed in them; the host's disk for the image, which "no space" fills, the corpus,
 * the repository and the trees that are restored.
 * @param imageGib size of the file system
 * @param onDisk whether it lies on an image on the run's disk
 * @throws UsageError where one of them holds less
 */
export function fitsHost(run: Run, imageGib: number, corpusGib: number, onDisk: boolean): void {
  const least = Math.ceil(corpusGib * 20) / 10 + 0.5
  if (imageGib < least)
    throw new UsageError(`--image-gib ${imageGib} is too small for --corpus-gib ${corpusGib}: ${least} are the least`)
  const needs = [{ dir: run.runtime, bytes: ((onDisk ? imageGib : 0) + 6 * corpusGib) * 2 ** 30 }]
  if (!run.dry) needSpace(needs, `--image-gib ${imageGib} --corpus-gib ${corpusGib}`, 'take less of either')
}

/** Fills the live directory: a corpus with the awkward cases, 200 small files, which are churned. */
export async function fill(live: string, gib: number, seed: number): Promise<void> {
  await $({ limit: '30m' })`e2e data-gen/corpus --out corpus --gib ${gib} --churn 0 --seed ${seed}`
  await $({ limit: '30m' })`rsync -aHAXS corpus/snapshot-1/ ${live}/`
  await $`mkdir ${live}/churn && for n in $(seq 200); do echo "file $n" > ${live}/churn/file-$n; done && sync`
}

/** Writes, overwrites, grows, renames and deletes without a pause; the time of each round goes to `rounds`. */
export async function churning(live: string): Promise<Background> {
  const churn = await background('churn')`(cd ${live}/churn && for ((n = 1; ; n++)); do
  echo "round $n" > file-$((n % 200 + 1)); echo "round $n" >> grown; head -c 20000 /dev/urandom > new-$n
  mv new-$n moved-$((n % 50)); rm -f moved-$(((n + 25) % 50)); date +%s%N >> "$OLDPWD/rounds"; sleep 0.005
done)`
  await $({ limit: '2m' })`until test -s rounds; do sleep 0.01; done`
  return churn
}

/** Writes fell between the snapshot and its end, whose times the hooks left in `taken` and `dropping`. */
export async function writesBetween(): Promise<void> {
  await check(`awk -v from=$(<taken) -v to=$(<dropping) '$1 > from && $1 < to {n++} END {exit !n}' rounds`, () => {
    const [from, to] = [BigInt(read('taken')), BigInt(read('dropping'))]
    const rounds = linesOf('rounds').map(BigInt)
    const between = rounds.filter((at) => at > from && at < to).length
    if (!between) throw new Blocked('no write fell between the snapshot and its end: take a larger --corpus-gib')
    const seconds = (Number(to - from) / 1e9).toFixed(2)
    fact('writes while vykar copied', `${between} rounds of ${rounds.length}, in ${seconds} s`)
  })
}

/** A backup that must fail with this message and make no snapshot in the repository. */
export async function refused(repo: string, name: string, said: RegExp, config = 'config.yaml'): Promise<void> {
  await $({
    limit: '1h',
    expect: [1],
  })`vykar --config ${config} backup -R ${repo} > ${name}.out 2>&1`
  await says(`${name}.out`, said, 'the backup failed as it should, but said something else')
  await $`vykar --config config.yaml list -R ${repo} > ${name}.list`
  await shows(1, `${name}.list`, `${name}: the backup failed`)
}

/**
 * A backup that fails in its hook and makes no snapshot, or restores to the moment of its snapshot; none of the file system's is left.
 * @param had snapshots that the repository holds already
 */
export async function rightOrRefused(
  repo: string,
  name: string,
  witness: string,
  had: number,
  gone: () => Promise<unknown>,
): Promise<void> {
  const tried = await $({
    limit: '1h',
    expect: [0, 1],
  })`vykar --config config.yaml backup -R ${repo} > ${name}.out 2>&1`
  await gone()
  await when(tried, {
    0: async () => {
      await $`vykar --config config.yaml list -R ${repo} > ${name}.list`
      await listed('moment', `${name}.out`, `${name}.list`)
      await $`sed -n 's/^Snapshot created: //p' ${name}.out > ${name}.id && mkdir ${name}`
      await $({ limit: '1h' })`vykar --config config.yaml restore -R ${repo} $(<${name}.id) ${name}`
      await sameTree(witness, name)
      await $`rm -r ${name} && vykar --config config.yaml snapshot delete -R ${repo} $(<${name}.id)`
      fact(name, 'exit 0, and the restored tree is right')
    },
    1: async () => {
      await $`vykar --config config.yaml list -R ${repo} > ${name}.list`
      await shows(had, `${name}.list`, `${name}: the hook failed`)
      await says(`${name}.out`, /^Error: hook error: .* exited with \d+$/m, 'the backup failed, but not in its hook')
      fact(name, 'exit 1 in the hook')
    },
  })
}
