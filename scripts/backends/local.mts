#!/usr/bin/env -S npx tsx
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, step, undo } from '#lib/sh.mts'
import { sameTree } from '#lib/verify.mts'
// Full backup and restore of the large corpus on a local repository.
// Passes when list and snapshot list show what was backed up, the restored tree equals the source in content and
// metadata (known gaps apart), check and check --verify-data find no error, and nothing is left after delete and compact.
import {
  deleted,
  freed,
  listed,
  made,
  mayDelete,
  nothingHeld,
  packBytes,
  says,
  sound,
  standardNeeds,
} from '#scripts/checks.mts'
import { corpus, fits, sourceOptions, untouched, witness } from '#scripts/corpus.mts'

const spec = { needs: standardNeeds, repos: ['local'], options: sourceOptions } as const

await scenario(import.meta, spec, async ({ options, repos, row }) => {
  const { manifest } = options

  step('corpus')
  const source = await corpus('local', options.source, options['corpus-gib'])
  await fits(source)
  await witness(source, options.source !== undefined)

  for (const repo of repos)
    await row(repo, async () => {
      step('init')
      await config`
sources:
  - path: ${source}
    label: corpus
`
      await $({ expect: [0, 1] })`vykar --config config.yaml list -R ${repo} > before.out 2>&1`
      await mayDelete('before.out')
      await $({
        expect: [0, 1],
      })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo > deleted.out 2>&1`
      await deleted('deleted.out')
      undo({ keep: `repository ${repo}` })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo`
      await $`vykar --config config.yaml init -R ${repo}`
      await made()

      step('backup')
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
      await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`

      step('list')
      await $`vykar --config config.yaml list -R ${repo} > list.out`
      await listed('corpus')

      step('snapshot list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<snapshot.id) > snapshot.list`
      await $`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      step('restore')
      await $`mkdir restored`
      await $({ limit: '1h' })`vykar --config config.yaml restore -R ${repo} $(<snapshot.id) restored`

      step('compare')
      await sameTree(source, 'restored')
      if (manifest) await $({ limit: '2h' })`(cd restored && sha256sum --check --quiet --strict ${manifest})`

      step('check')
      await $({ limit: '30m' })`vykar --config config.yaml check -R ${repo} > check.out 2>&1`
      await sound('check.out')
      await $({ limit: '1h' })`vykar --config config.yaml check -R ${repo} --verify-data > verify.out 2>&1`
      await sound('verify.out', true)

      step('retire')
      const packs = packBytes()
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<snapshot.id)`
      await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compact.out`
      await freed('compact.out', packs)
      await $`vykar --config config.yaml list -R ${repo} > gone.out`
      await says('gone.out', /^No snapshots found\.$/m, 'the snapshot was deleted, but list still shows one')
      await $`vykar --config config.yaml break-lock -R ${repo} > locks.out`
      await nothingHeld('locks.out')
      await untouched()
    })
})
