#!/usr/bin/env -S npx tsx
// Full backup and restore of the small corpus over SFTP; every step is bounded, since SFTP can hang.
// Passes when backends/local would, and a server whose host key is not known is refused. A step that runs out of time is
// BLOCKED, and a plain sftp right after it says whether the server or vykar was at fault.
import { corpus, sourceOptions } from '#lib/corpus.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { expectFiles, expectSnapshot, freshRepository, restored, retire, standardNeeds } from '#lib/standard.mts'
import { sameAsManifest, sameTree } from '#lib/verify.mts'

const spec = {
  needs: [...standardNeeds, 'ssh-keygen'],
  wants: ['sshd', 'sftp', 'rclone'],
  repos: ['sftp'],
  options: sourceOptions('remote'),
} as const

await scenario(import.meta, spec, async (run) => {
  const { manifest } = run.options
  const source = await run.step('corpus', () => corpus(run))
  await run.step('server', () => startServices(run))

  for (const repo of run.repos)
    await run.row({ repo, values: { SOURCE: source } }, async ({ $, step, config }) => {
      await step('unknown host key', async () => {
        await $`ssh-keygen -q -t ed25519 -N '' -f another_key`
        await $`sed "s|sftp_known_hosts:.*|sftp_known_hosts: $PWD/another_hosts|" ${config} > another.yaml`
        await $`grep -oE 'sftp://[^ /]+' ${config} | sed -E "s|sftp://([^@]*@)?([^:]+):([0-9]+)|[\2]:\3 $(cat another_key.pub)|" > another_hosts`
        const refused = await $({ limit: '120s', expect: [1] })`vykar --config another.yaml init -R ${repo}`
        refused.complained(/host key|known.?hosts/i)
      })
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
})
