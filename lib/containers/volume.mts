// A: a static volume, backed up by its directory on the host, restored into a new volume, compared on the host and from
// inside a container.
import { join } from 'node:path'
import { createVolume, type Engine, haveImage } from '../engine.mts'
import { dataGen } from '../prepare.mts'
import type { Row } from '../row.mts'
import { $, scope } from '../sh.mts'
import { expectFiles, expectSnapshot, freshRepository, retire } from '../standard.mts'
import { sameTree } from '../verify.mts'
import { type ContainerRun, namesOf } from './names.mts'

/** Fills a new volume with a corpus and with what only a container makes. Returns its directory on the host. */
export async function filledVolume(run: ContainerRun, engine: Engine): Promise<string> {
  const { source } = run.options
  const names = namesOf(engine)
  const image = await haveImage(run, { engine: engine.name, image: run.options.image, build: 'base' })
  run.report.versions.image = image
  const volume = await createVolume(run, run.cleanup, engine.name, names.volume)
  const corpus = source ?? join(run.dirs.work, 'corpus')
  if (!source)
    await $({
      limit: '30m',
    })`${dataGen('corpus')} --out ${corpus} --gib 0.1 --churn 0 --seed ${run.common.seed}`
  await $({ limit: '1h' })`rsync -aHAXS ${source ? corpus : join(corpus, 'snapshot-1')}/ ${volume}/`
  // Owners that the host does not know, setuid, a hardlink and a symlink across directories, a hole.
  const awkward = [
    'cd /data && mkdir -p app/etc app/var && echo secret > app/etc/key && ln app/etc/key app/var/key && ln -s ../etc/key app/var/link',
    'chown -R 70001:70002 app && chmod 600 app/etc/key && echo run > app/tool && chown 70003:0 app/tool && chmod 6755 app/tool',
    'head -c 4096 /dev/urandom > app/sparse && truncate -s 64M app/sparse && chmod 1777 app/var',
  ].join(' && ')
  await $`${engine.name} run --rm --network none -v ${names.volume}:/data --entrypoint sh ${image} -c ${awkward}`
  await $`setfattr -n user.origin -v container ${volume}/app/tool`
  return volume
}

/** Every name with its mode, owner, size, time, links and target, and every file's checksum, as a container sees them. */
const inside =
  'cd /data && find . -mindepth 1 -exec stat -c "%N %a %u %g %s %Y %h" {} + && find . -type f -exec sha256sum {} +'

/** The row: backup of the volume's directory, restore into a new volume, comparison from both sides. */
export async function staticVolume(run: ContainerRun, engine: Engine, row: Row, volume: string): Promise<void> {
  const { step, config, repository, cleanup } = row
  const repo = repository.label
  const names = namesOf(engine)
  // A volume for each repository: where one row fails, its volume is kept.
  const copy = `${names.restored}-${repo}`
  const image = run.report.versions.image!
  await step('init', () => freshRepository(config, repo))
  const backup = await step(
    'backup',
    () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
  )
  const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'volume' }))
  await step('snapshot list', () => expectFiles(config, repo, id, volume))
  const fresh = await step('new volume', () => createVolume(run, cleanup, engine.name, copy))
  await step('restore', () => $({ limit: '3600s' })`vykar --config ${config} restore -R ${repo} ${id} ${fresh}`)
  await step('compare on the host', () => sameTree(volume, fresh))
  await step('compare in a container', async () => {
    for (const name of [names.volume, copy])
      await $({
        limit: '1h',
      })`${engine.name} run --rm --network none -v ${name}:/data:ro --entrypoint sh ${image} -c ${inside} > ${name}.inside`
    await $`diff <(sort ${names.volume}.inside) <(sort ${copy}.inside)`
    if (!scope().dry) await $({ unlisted: true })`test -s ${names.volume}.inside`
  })
  await step('retire', () => retire(config, repo, id))
}
