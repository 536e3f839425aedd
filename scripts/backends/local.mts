#!/usr/bin/env -S npx tsx
// Full backup and restore of the large corpus on a local repository, typed out: what the other scripts do through scripts/common.mts.
// Passes when the repository is encrypted and its key needed; two backups, between which the source changes, restore with the source
// gone and an empty cache to what it was at each, in content and metadata (known gaps apart); every figure that vykar prints is the
// one counted here; check sees damage in copies, and none in the repository; reclaiming space harms no snapshot; and nothing is left
// after delete and compact.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, step, undo } from '#lib/sh.mts'
import { sameTree } from '#lib/verify.mts'
import {
  emptied,
  freed,
  listed,
  nothingHeld,
  numbers,
  packBytes,
  released,
  says,
  shows,
  sound,
  standardNeeds,
  stored,
  storedFirst,
} from '#scripts/checks.mts'
import { hidden, readLittle, storedChange, unreadable, written, wrongRestore } from '#scripts/common.mts'
import { changing, corpus, fits, sourceOptions, stillAs, untouched, witness } from '#scripts/corpus.mts'
import { copyOf, damaged, reclaimed } from '#scripts/damage.mts'
import { deleted, made, mayDelete } from '#scripts/guard.mts'
import { witnessed } from '#scripts/witnessed.mts'

const spec = { needs: standardNeeds, repos: ['local'], options: sourceOptions } as const

await scenario(import.meta, spec, async ({ options, repos, row }) => {
  const { manifest, seed } = options
  const own = options.source === undefined

  step('corpus')
  const tree = await corpus('local', options.source, options['corpus-gib'])
  await fits(tree)
  await witness(tree, !own)

  for (const repo of repos)
    await row(repo, async () => {
      step('init')
      // `source` is a copy, which changes; `was` is what it was at the first backup. A tree of the user's is both.
      const { source, was } = await changing(tree, options.source)
      if (own) await written(source, 'first.witness')
      const out = hidden(source, !own)
      await config`
sources:
  - path: ${source}
    label: corpus
`
      await $`sed 's|^cache_dir: .*|cache_dir: lost|' config.yaml > lost.yaml`
      await $({ expect: [0, 1] })`vykar --config config.yaml list -R ${repo} > before.out 2>&1`
      await mayDelete('before.out')
      await $({
        expect: [0, 1],
      })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo > deleted.out 2>&1`
      await deleted('deleted.out')
      undo({ keep: `repository ${repo}` })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo`
      await $`vykar --config config.yaml init -R ${repo}`
      await made()

      await $({ expect: [1] })`vykar --config config.yaml init -R ${repo} > init-again.out 2>&1`
      await says('init-again.out', /repository already exists/, 'a second init was not refused')

      step('encryption')
      await $`vykar --config config.yaml info -R ${repo} > info.out`
      await says('info.out', /^\s*Encryption\s+(aes256gcm|chacha20poly1305)\s*$/m, 'info does not name the encryption')
      // A passphrase in the config goes before the one in the environment.
      await $`sed -E '/^ *pass(phrase|command): /d' lost.yaml > asked.yaml`
      await $({
        expect: [1],
      })`VYKAR_PASSPHRASE=wrong vykar --config asked.yaml list -R ${repo} > wrong.out 2>&1`
      await says('wrong.out', /wrong passphrase/, 'a wrong passphrase was not refused')
      await $({
        expect: [1],
      })`env -u VYKAR_PASSPHRASE vykar --config asked.yaml list -R ${repo} > none.out 2>&1 < /dev/null`
      await says('none.out', /passphrase/, 'the missing passphrase was not refused')
      await $`test -n "$(find "$REPO_LOCAL"/keys -type f)"  # the key is in the repository`

      step('backup')
      await $({
        limit: '1h',
      })`bash -c 'vykar --config config.yaml backup -R ${repo} > backup.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > first.read`
      await $`sed -n 's/^Snapshot created: //p' backup.out > first.id`
      if (own) await unreadable(repo, `${source}/awkward/planted`)
      await released('backup')
      await $`test -z "$(find "$REPO_LOCAL" ! -type l -perm /022; find "$REPO_LOCAL" cache \( -path '*/packs/*' -o -name filecache -o -name snapshot_list \) -type f -perm /077)"  # nobody else can write there, or read it`

      step('list')
      await $`vykar --config config.yaml list -R ${repo} > list.out`
      await listed('corpus')
      await storedFirst('backup.out', own)

      step('snapshot list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<first.id) > snapshot.list`
      await $`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      step('second backup')
      const before = packBytes()
      if (own) {
        await stillAs(source, 'first.witness')
        await $({ limit: '30m' })`e2e data-gen/change --dir ${source} --percent 2 --each --seed ${seed} > change.out`
        await written(source, 'second.witness')
      }
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > second.out`
      await $`sed -n 's/^Snapshot created: //p' second.out > second.id`
      await storedChange('second.out', own ? 'change.out' : undefined, before)
      await $`vykar --config config.yaml list -R ${repo} > second.list`
      await listed('corpus', 'second.out', 'second.list')
      await shows(2, 'second.list', 'two backups were made')

      step('restore')
      // As if all were lost: the source is away, the cache and the home are empty.
      if (own) await $`mv ${source} away`
      await $`rm -rf lost && mkdir lost restored restored-second`
      await $({
        limit: '1h',
      })`HOME=$PWD/lost ${out} vykar --config lost.yaml restore -R ${repo} $(<first.id) restored > restored.out`
      await $({
        limit: '1h',
      })`HOME=$PWD/lost ${out} vykar --config lost.yaml restore -R ${repo} $(<second.id) restored-second > restored-second.out`
      if (own) await $`mv away ${source}`
      await wrongRestore(repo)

      step('compare')
      await sameTree(was, 'restored')
      await numbers(was, 'backup.out', 'list.out', 'restored.out')
      if (manifest) await $({ limit: '2h' })`(cd restored && sha256sum --check --quiet --strict ${manifest})`
      await witnessed('restored', 'first')
      await sameTree(source, 'restored-second')
      await numbers(source, 'second.out', 'second.list', 'restored-second.out')
      await $`chmod -R u+rwX restored-second && rm -r restored-second`
      await released('restore')

      step('newest deleted')
      // A cache that remembers what has been deleted would now store files that point to nothing.
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<second.id)`
      await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compacted.out`
      await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > third.out`
      await $`sed -n 's/^Snapshot created: //p' third.out > third.id`
      await $`vykar --config config.yaml list -R ${repo} > third.list`
      await listed('corpus', 'third.out', 'third.list')
      await $`rm -rf lost && mkdir lost restored-third`
      await $({
        limit: '1h',
      })`HOME=$PWD/lost ${out} vykar --config lost.yaml restore -R ${repo} $(<third.id) restored-third > restored-third.out`
      await sameTree(source, 'restored-third')
      await numbers(source, 'third.out', 'third.list', 'restored-third.out')
      await witnessed('restored-third', 'third')
      await $`chmod -R u+rwX restored-third && rm -r restored-third`
      if (own) await stillAs(source, 'second.witness')

      step('unchanged backup')
      // What bash has read after `wait` is what its children have read.
      await $({
        limit: '1h',
      })`bash -c 'vykar --config config.yaml backup -R ${repo} > fourth.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > fourth.read`
      await $`sed -n 's/^Snapshot created: //p' fourth.out > fourth.id`
      await readLittle('fourth.read', 'first.read', 'fourth.out', 'third.out')
      await $`vykar --config config.yaml list -R ${repo} > fourth.list`
      await listed('corpus', 'fourth.out', 'fourth.list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<fourth.id) > fourth.listing`
      await $`diff <(find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' | sort) <(sort fourth.listing)`
      if (own) await unreadable(repo, `${source}/awkward/planted`)
      // What it has stored is held against the third's witness.
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<third.id) && mv third.sha256 fourth.sha256 && mv third.tree fourth.tree`

      step('check')
      // Then every pack that is there belongs to a snapshot.
      await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compacted.out`
      await $({ limit: '30m' })`vykar --config config.yaml check -R ${repo} > check.out 2>&1`
      await sound('check.out', { snapshots: 2, counts: ['restored.count', 'restored-second.count'] })
      await $({ limit: '1h' })`vykar --config config.yaml check -R ${repo} --verify-data > verify.out 2>&1`
      await sound('verify.out', { snapshots: 2, all: true, asIn: 'check.out' })
      await released('check')

      await $`vykar --config config.yaml info -R ${repo} > counted.out && vykar --config config.yaml list -R ${repo} > counted.list`
      await says('counted.out', /^\s*Snapshots\s+2\s*$/m, 'info counts other snapshots')
      await stored('counted.out', 'check.out', 'counted.list')

      await copyOf(repo)
      await damaged(repo, 'first')
      await reclaimed(repo, ['first', 'fourth'])
      await $`rm -r copy`

      step('retire')
      const packs = packBytes()
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<first.id)`
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<fourth.id)`
      await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compact.out`
      await freed('compact.out', packs)
      await emptied()
      await $`vykar --config config.yaml list -R ${repo} > gone.out`
      await says('gone.out', /^No snapshots found\.$/m, 'the snapshot was deleted, but list still shows one')
      await $`vykar --config config.yaml break-lock -R ${repo} > locks.out`
      await nothingHeld('locks.out')
      await untouched()
    })
})
