#!/usr/bin/env -S npx tsx
// Full backup and restore of the small corpus through vykar-server.
// Passes when backends/local would, and a wrong token is refused (401) and writes nothing, and a URL with a path is
// refused (400).
import { corpus, sourceOptions } from '#lib/corpus.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { expectFiles, expectSnapshot, freshRepository, restored, retire, standardNeeds } from '#lib/standard.mts'
import { sameAsManifest, sameTree } from '#lib/verify.mts'

const spec = {
  needs: standardNeeds,
  wants: ['vykar-server'],
  repos: ['rest'],
  options: sourceOptions('remote'),
} as const

await scenario(import.meta, spec, async (run) => {
  const { manifest } = run.options
  const source = await run.step('corpus', () => corpus(run))
  await run.step('server', () => startServices(run))

  for (const repo of run.repos)
    await run.row({ repo, values: { SOURCE: source } }, async ({ $, step, config, files, repository }) => {
      await step('wrong token', async () => {
        await $`sed 's/access_token:.*/access_token: wrong/' ${config} > wrong-token.yaml`
        const refused = await $({ expect: [1] })`vykar --config wrong-token.yaml init -R ${repo}`
        refused.complained(/HTTP 401/)
        if (files) await $`test -z "$(find ${files} -type f)"`
      })
      await step('URL with a path', async () => {
        await $`sed 's|${repository.url}|&/sub|' ${config} > with-path.yaml`
        const refused = await $({ expect: [1] })`vykar --config with-path.yaml init -R ${repo}`
        refused.complained(/HTTP 400/)
      })
      await step('init', () => freshRepository(config, repo))
      const backup = await step(
        'backup',
        () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
      )
      const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'corpus' }))
      await step('wrong token reads nothing', async () => {
        const refused = await $({ expect: [1] })`vykar --config wrong-token.yaml list -R ${repo}`
        refused.complained(/HTTP 401/)
      })
      await step('snapshot list', () => expectFiles(config, repo, id, source))
      const dir = await step('restore', () => restored(config, repo, id))
      await step('compare', () => sameTree(source, dir))
      if (manifest) await step('manifest', () => sameAsManifest(manifest, dir))
      await step('retire', () => retire(config, repo, id))
    })
})
