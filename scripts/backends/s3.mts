#!/usr/bin/env -S npx tsx
// Full backup and restore of the small corpus on S3, and of one 64 MiB incompressible file in a multipart upload.
// Passes when backends/local would, the large file comes back the same (cmp), and the server's listing shows objects that came in parts.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { Blocked } from '#lib/verdict.mts'
import { listed, standardNeeds } from '#scripts/checks.mts'
import { again, fresh, retire, unreadable, written } from '#scripts/common.mts'
import { changing, corpus, fits, sourceOptions, witness } from '#scripts/corpus.mts'
import { parseS3 } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'

const spec = {
  needs: standardNeeds,
  wants: ['s3-server', 'curl', 'rclone'],
  repos: ['s3'],
  options: sourceOptions,
} as const

await scenario(import.meta, spec, async (run) => {
  const { options } = run
  const { manifest } = options
  const own = options.source === undefined

  step('corpus')
  const tree = await corpus('remote', options.source, options['corpus-gib'])
  await fits(tree)
  await witness(tree, !own)
  await servers()

  for (const repo of run.repos)
    await run.row(repo, async () => {
      step('init')
      const { source, was } = await changing(tree, options.source)
      if (own) await written(source, 'first.witness')
      await config`
sources:
  - path: ${source}
    label: corpus
`
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

      step('snapshot list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<first.id) > snapshot.list`
      await $`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      await again(repo, source, was, !own)
      if (manifest) await $({ limit: '2h' })`(cd restored && sha256sum --check --quiet --strict ${manifest})`

      // vykar uploads packs above 16 MiB in parts; 64 MiB that do not compress are sure to make such packs.
      step('multipart')
      // The ETag of an object that came in parts ends in their number.
      const { endpoint, bucket, prefix } = parseS3(run.endpoint(repo).url)
      const listing = `${endpoint}/${bucket}?list-type=2&prefix=${encodeURIComponent(`${prefix}/packs/`)}`
      const inParts = {
        raw: `curl -sS --fail -K ../s3.curl -H "x-amz-content-sha256: $(sha256sum < /dev/null | cut -c -64)" '${listing}' | { grep -oE -e '-[0-9]+(&#34;|&quot;|")?</ETag>' || true; } | wc -l`,
      }
      await $`${inParts} > parts.before`
      await $`mkdir big && head -c 64M /dev/urandom > big/file`
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} -l multipart big > big.out`
      await $`sed -n 's/^Snapshot created: //p' big.out > big.id`
      await $`${inParts} > parts.after`
      await check('(($(<parts.after) > $(<parts.before)))', () => {
        const more = Number(read('parts.after')) - Number(read('parts.before'))
        if (!(more > 0)) throw new Blocked('64 MiB were backed up, and the listing shows no object that came in parts')
        fact('objects that came in parts', more)
      })
      await $`vykar --config config.yaml list -R ${repo} > big.list`
      await listed('multipart', 'big.out', 'big.list')
      await $({
        limit: '1h',
      })`mkdir restored-big && vykar --config config.yaml restore -R ${repo} $(<big.id) restored-big`
      await $`cmp big/file restored-big/file`
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<big.id)`

      step('check')
      await retire(repo, ['first', 'fourth'])
    })
})
