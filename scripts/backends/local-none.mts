#!/usr/bin/env -S npx tsx
// Full backup and restore on a local repository without encryption, with no passphrase anywhere.
// Passes when backends/local would, and neither the environment, the config nor the repository holds a passphrase or
// key, `info` says that the repository is not encrypted, and `list` works without a passphrase.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, step } from '#lib/sh.mts'
import { listed, says, standardNeeds } from '#scripts/checks.mts'
import { again, fresh, retire, unreadable, written } from '#scripts/common.mts'
import { changing, corpus, fits, sourceOptions, witness } from '#scripts/corpus.mts'

const spec = { needs: standardNeeds, repos: ['local'], options: sourceOptions, passphrase: false } as const

await scenario(import.meta, spec, async ({ options, repos, row }) => {
  const { manifest } = options
  const own = options.source === undefined

  step('corpus')
  const tree = await corpus('local', options.source, options['corpus-gib'])
  await fits(tree)
  await witness(tree, !own)

  for (const repo of repos)
    await row(repo, async () => {
      step('init')
      const { source, was } = await changing(tree, options.source)
      if (own) await written(source, 'first.witness')
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
      await $({
        limit: '1h',
      })`bash -c 'vykar --config config.yaml backup -R ${repo} > backup.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > first.read`
      await $`sed -n 's/^Snapshot created: //p' backup.out > first.id`
      if (own) await unreadable(repo, `${source}/awkward/planted`)

      step('list')
      await $`vykar --config config.yaml list -R ${repo} > list.out`
      await listed('corpus')

      step('not encrypted')
      await $`vykar --config config.yaml info -R ${repo} > info.out`
      await says('info.out', /^\s*Encryption\s+none\s*$/m, 'info does not say that the repository is unencrypted')
      await $`test -z "$(find "$REPO_LOCAL"/keys -type f 2> /dev/null)"`

      step('snapshot list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<first.id) > snapshot.list`
      await $`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      await again(repo, source, was, !own)
      if (manifest) await $({ limit: '2h' })`(cd restored && sha256sum --check --quiet --strict ${manifest})`

      step('check')
      await retire(repo, ['first', 'fourth'])
    })
})
