#!/usr/bin/env -S npx tsx
// Full backup and restore of the small corpus over SFTP; every step is bounded, since SFTP can hang.
// Passes when backends/local would, a server whose host key is another than known_hosts says is refused, and one that no
// file knows is not accepted in silence. A step that runs out of time is BLOCKED, and a plain sftp right after it says
// whether the server or vykar was at fault.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'
import { listed, says, standardNeeds } from '#scripts/checks.mts'
import { again, fresh, retire, unreadable, written } from '#scripts/common.mts'
import { changing, corpus, fits, sourceOptions, witness } from '#scripts/corpus.mts'
import { servers } from '#scripts/servers.mts'

const spec = {
  needs: standardNeeds,
  wants: ['sshd', 'ssh-keygen', 'sftp', 'rclone'],
  repos: ['sftp'],
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
      step('config')
      const { source, was } = await changing(tree, options.source)
      if (own) await written(source, 'first.witness')
      await config`
sources:
  - path: ${source}
    label: corpus
`

      step('changed host key')
      await $`ssh-keygen -q -t ed25519 -N '' -f another_key`
      await $`grep -v sftp_known_hosts: config.yaml | sed 's|^\( *\)url: .*REPO_SFTP.*|&\n\1sftp_known_hosts: another_hosts|' > another.yaml && grep -q another_hosts another.yaml`
      await $`echo "$REPO_SFTP" | sed -E "s|sftp://([^@/]*@)?([^:/]+):([0-9]+).*|[\2]:\3 $(<another_key.pub)|; s|sftp://([^@/]*@)?([^:/]+)(/.*)?$|\2 $(<another_key.pub)|" > another_hosts`
      await $({
        limit: '120s',
        expect: [1],
      })`vykar --config another.yaml list -R ${repo} > another.out 2>&1`
      await says('another.out', /host key|known.?hosts/i, 'a changed host key was not refused')

      step('unknown host key')
      await $`: > no_hosts && sed 's|sftp_known_hosts:.*|sftp_known_hosts: no_hosts|' config.yaml > unknown.yaml`
      const unknown = await $({
        limit: '120s',
        expect: [0, 1],
      })`vykar --config unknown.yaml list -R ${repo} > unknown.out 2>&1`
      await $`wc -c < no_hosts > learned`
      // 0.19.1 trusts a server at first sight, as it documents: it writes its key down, and says so.
      await check(
        'if test "$(<learned)" = 0; then grep -qiE "host key|known.?hosts" unknown.out; else grep -q "WARN learned new SSH host key" unknown.out; fi',
        () => {
          const learned = Number(read('learned')) > 0
          if (!learned && !(unknown.code === 1 && /host key|known.?hosts/i.test(read('unknown.out'))))
            throw new Mismatch('a host key that no file has was neither refused nor written down')
          if (learned && !/WARN learned new SSH host key/.test(read('unknown.out')))
            throw new Mismatch('a host key that no file has was accepted, and not a word said')
          fact(
            'unknown host key',
            `${learned ? 'accepted at first use, with a warning' : 'refused'} (exit ${unknown.code})`,
          )
        },
      )

      step('init')
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

      step('check')
      await retire(repo, ['first', 'fourth'])
    })
})
