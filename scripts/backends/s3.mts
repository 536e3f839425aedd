#!/usr/bin/env -S npx tsx
// Full backup and restore of the small corpus on S3, and of one 64 MiB incompressible file in a multipart upload.
// Passes when backends/local would, and the large file comes back the same (cmp).
import { corpus, sourceOptions } from '#lib/corpus.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { expectFiles, expectSnapshot, freshRepository, restored, retire, standardNeeds } from '#lib/standard.mts'
import { sameAsManifest, sameTree } from '#lib/verify.mts'

const spec = {
  needs: [...standardNeeds, 'curl'],
  wants: ['s3-server', 'rclone'],
  repos: ['s3'],
  options: sourceOptions('remote'),
} as const

await scenario(import.meta, spec, async (run) => {
  const { manifest } = run.options
  const source = await run.step('corpus', () => corpus(run))
  await run.step('server and bucket', () => startServices(run))

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

      // vykar uploads packs above 16 MiB in parts; 64 MiB that do not compress are sure to make such packs.
      await step('multipart', async () => {
        await $`mkdir big && head -c 64M /dev/urandom > big/file`
        const upload = $({
          limit: '3600s',
          out: 'big.out',
        })`vykar --config ${config} backup -R ${repo} -l multipart big`
        const big = await expectSnapshot(config, repo, await upload, { label: 'multipart', out: 'big.out' })
        const back = await restored(config, repo, big, 'restored-big')
        await $`cmp big/file ${back}/file`
        await $`vykar --config ${config} snapshot delete -R ${repo} ${big}`
      })
      await step('retire', () => retire(config, repo, id))
    })
})
