#!/usr/bin/env -S npx tsx
// Full backup and restore on a local repository without encryption, with no passphrase anywhere.
// Passes when backends/local would, and neither the environment, the config nor the repository holds a passphrase or
// key, `info` says that the repository is not encrypted, and `list` works without a passphrase.
import { corpus, sourceOptions } from '#lib/corpus.mts'
import { scenario } from '#lib/run.mts'
import { expectFiles, expectSnapshot, freshRepository, restored, retire, standardNeeds } from '#lib/standard.mts'
import { sameAsManifest, sameTree } from '#lib/verify.mts'

const spec = { needs: standardNeeds, repos: ['local'], options: sourceOptions('local'), passphrase: false } as const

await scenario(import.meta, spec, async (run) => {
  const { manifest } = run.options
  const source = await run.step('corpus', () => corpus(run))

  for (const repo of run.repos)
    await run.row({ repo, values: { SOURCE: source } }, async ({ $, step, config, repository }) => {
      await step('no passphrase', async () => {
        await $({ expect: [1] })`printenv VYKAR_PASSPHRASE`
        await $({ expect: [1] })`grep -inE '^[^#]*pass(phrase|command)' ${config}`
      })
      await step('init', () => freshRepository(config, repo))
      const backup = await step(
        'backup',
        () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
      )
      const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'corpus' }))
      await step('not encrypted', async () => {
        const info = await $`vykar --config ${config} info -R ${repo}`
        info.must(/^\s*Encryption\s+none\s*$/m, 'info does not say that the repository is unencrypted')
        await $`test -z "$(find ${repository.url}/keys -type f 2>/dev/null)"`
      })
      await step('snapshot list', () => expectFiles(config, repo, id, source))
      const dir = await step('restore', () => restored(config, repo, id))
      await step('compare', () => sameTree(source, dir))
      if (manifest) await step('manifest', () => sameAsManifest(manifest, dir))
      await step('retire', () => retire(config, repo, id))
    })
})
