#!/usr/bin/env -S npx tsx
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, step } from '#lib/sh.mts'
import { sameTree } from '#lib/verify.mts'
// Full backup and restore on a local repository without encryption, with no passphrase anywhere.
// Passes when backends/local would, and neither the environment, the config nor the repository holds a passphrase or
// key, `info` says that the repository is not encrypted, and `list` works without a passphrase.
import { listed, says, standardNeeds } from '#scripts/checks.mts'
import { fresh, retire } from '#scripts/common.mts'
import { corpus, fits, sourceOptions, witness } from '#scripts/corpus.mts'

const spec = { needs: standardNeeds, repos: ['local'], options: sourceOptions, passphrase: false } as const

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
encryption:
  mode: none
sources:
  - path: ${source}
    label: corpus
`
      await $({ expect: [1] })`printenv VYKAR_PASSPHRASE`
      await $({ expect: [1] })`grep -inE '^[^#]*pass(phrase|command)' config.yaml`
      await fresh(repo)

      step('backup')
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
      await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`

      step('list')
      await $`vykar --config config.yaml list -R ${repo} > list.out`
      await listed('corpus')

      step('not encrypted')
      await $`vykar --config config.yaml info -R ${repo} > info.out`
      await says('info.out', /^\s*Encryption\s+none\s*$/m, 'info does not say that the repository is unencrypted')
      await $`test -z "$(find "$REPO_LOCAL"/keys -type f 2> /dev/null)"`

      step('snapshot list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<snapshot.id) > snapshot.list`
      await $`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      step('restore')
      await $({ limit: '1h' })`mkdir restored && vykar --config config.yaml restore -R ${repo} $(<snapshot.id) restored`

      step('compare')
      await sameTree(source, 'restored')
      if (manifest) await $({ limit: '2h' })`(cd restored && sha256sum --check --quiet --strict ${manifest})`

      step('retire')
      await retire(repo)
    })
})
