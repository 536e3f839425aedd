#!/usr/bin/env -S npx tsx
// Full backup and restore of the large corpus on a local repository.
// Passes when list and snapshot list show what was backed up, the restored tree equals the source in content and
// metadata (known gaps apart), check and check --verify-data find no error, and nothing is left after delete and compact.
import { corpus, sourceOptions } from '#lib/corpus.mts'
import { scenario } from '#lib/run.mts'
import { expectFiles, expectSnapshot, freshRepository, restored, retire, standardNeeds } from '#lib/standard.mts'
import { sameAsManifest, sameTree } from '#lib/verify.mts'

await scenario(
  import.meta,
  { needs: standardNeeds, repos: ['local'], options: sourceOptions('local') },
  async (run) => {
    const { manifest } = run.options
    const source = await run.step('corpus', () => corpus(run))

    for (const repo of run.repos)
      await run.row({ repo, values: { SOURCE: source } }, async ({ $, step, config }) => {
        await step('init', () => freshRepository(config, repo))
        const backup = await step(
          'backup',
          () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
        )
        const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'corpus' }))
        await step('snapshot list', () => expectFiles(config, repo, id, source))
        const dir = await step('restore', () => restored(config, repo, id))
        await step('compare', () => sameTree(source, dir))
        if (manifest) await step('manifest', () => sameAsManifest(manifest, dir))
        await step('retire', () => retire(config, repo, id))
      })
  },
)
