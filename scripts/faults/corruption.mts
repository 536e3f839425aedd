#!/usr/bin/env -S npx tsx
// Corruption: objects of a repository, the journal of an interrupted backup, and files of the local cache, get a flipped bit, a zeroed block, a cut end, are deleted, swapped or
// put back from an earlier time; encrypted and not.
// Passes when no restore out of a damaged copy exits 0 with wrong or missing data, check --verify-data says so wherever restore fails,
// check --repair harms no snapshot that could be restored, and damage to the cache, which is no part of the repository, harms nothing.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import { seeded } from '#data-gen/random.mts'
import { background } from '#lib/background.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { Blocked } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { copyOf } from '#scripts/damage.mts'
import {
  acknowledged,
  conclude,
  drawnOptions,
  faultOptions,
  rowsWith,
  stillShown,
  within,
} from '#scripts/faults/common.mts'
import { allThere, at, lastOf, others, restoredAs, violated } from '#scripts/faults/oracle.mts'
import { witnessed } from '#scripts/witnessed.mts'

/** What can be damaged: bash that prints the candidates below `damaged`, or below the cache. */
const objects: Record<string, string> = {
  pack: 'find damaged/packs -type f -size +0',
  index: 'ls damaged/index',
  'index generation': 'ls damaged/index.gen',
  snapshot: 'find damaged/snapshots -type f',
  key: 'find damaged/keys -type f',
  config: 'ls damaged/config',
  'session journal': "find damaged/sessions -name '*.index'",
  ...Object.fromEntries(
    ['dedup_cache', 'filecache', 'full_index_cache', 'index_blob', 'pin*', 'restore_cache', 'snapshot_list'].map(
      (name) => [`cache ${name.replace('*', '')}`, `find lived -name '${name}' -type f`],
    ),
  ),
}
/** Each kind of damage as bash on "$file"; `$other` is another object of the same kind, `old` the repository before the last backup. */
const kinds: Record<string, string> = {
  bit: `n=$(stat -c %s "$file"); o=$((n * SHARE / 1000)); b=$(od -An -tu1 -j $o -N1 "$file"); printf "\\\\x$(printf %02x $((b ^ 1)))" | dd of="$file" bs=1 seek=$o conv=notrunc status=none`,
  zeroed: `n=$(stat -c %s "$file"); o=$((n * SHARE / 1000)); head -c $((n - o < 4096 ? n - o : 4096)) /dev/zero | dd of="$file" bs=1 seek=$o conv=notrunc status=none`,
  cut: `truncate -s $(($(stat -c %s "$file") * SHARE / 1000)) "$file"`,
  deleted: 'rm "$file"',
  swapped:
    'test -n "$other" && cp "$other" other.before && echo "$other" > other.path && rm "$other" && cp before "$other" && cp other.before "$file"',
  older: 'cp "old/${file#*/}" "$file"',
}

const spec = { needs: standardNeeds, repos: ['local'], options: { ...drawnOptions, ...faultOptions } } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { rounds: asked, round: only, 'corpus-mib': mib, seed } = run.options
  const rows: unknown[][] = []
  for (const repo of run.repos)
    for (const mode of ['auto', 'none'] as const)
      await row({ repo, variant: mode === 'none' ? 'unencrypted' : 'encrypted' }, async () => {
        // What repository and cache were before the last backup.
        const ids = await acknowledged(repo, 2, mib, mode, () => $`cp -a "$REPO_LOCAL" old && cp -a cache/. old`)
        await copyOf(repo)
        // A backup that TERM ends leaves what it has uploaded to the next one, which reads of it in a journal.
        await $`cp -a source cut-source && head -c 96M /dev/urandom > cut-source/more && sed 's|path: source|path: cut-source|; s|^cache_dir: .*|cache_dir: cut-cache|' config.yaml > cut.yaml && cp -al copy interrupted`
        await witnessed('cut-source', 'cut')
        const cut = await background(
          'cut',
        )`env ${at(repo, '$PWD/interrupted')} vykar --config cut.yaml backup -R ${repo}`
        await $({
          limit: '60s',
        })`until compgen -G 'interrupted/sessions/*.index' > /dev/null || ! kill -0 $(<cut.pid) 2> /dev/null; do :; done; kill -TERM $(<cut.pid) 2> /dev/null || true`
        await cut.done([0, 130, 143])
        await $({
          otherwise: Blocked,
        })`rm -rf damaged && cp -al interrupted damaged && ${at(repo, '$PWD/damaged')} vykar --config cut.yaml backup -R ${repo} > resumed.out 2>&1 && grep -q 'recovered pending index' resumed.out || { echo 'the interrupted backup left no journal that the next one reads' >&2; exit 1; }`
        const plan = Object.keys(objects)
          .flatMap((object) => Object.keys(kinds).map((kind) => ({ object, kind })))
          // Of which there is one alone cannot be swapped; what is never written again has no older copy.
          .filter(({ object, kind }) => kind !== 'swapped' || /^(pack|snapshot)$/.test(object))
          .filter(({ object, kind }) => kind !== 'older' || (/^(index|cache)/.test(object) && object !== 'cache pin'))
          .filter(({ object }) => object !== 'key' || mode === 'auto')
        const times = asked || 1
        let fired = 0
        let tried = 0
        const missed: string[] = []
        const said = new Map<
          string,
          Record<'check' | 'verify' | 'restore' | 'restore --verify' | 'next' | 'of', number>
        >()
        for (let n = 0; n < times; n++)
          for (const { object, kind } of plan) {
            const name = `${object} ${kind} ${n}`
            if (only && only !== name) continue
            const random = seeded(`corruption ${seed} ${mode} ${name}`)
            const share = 50 + Math.floor(random() * 900)
            step(name)
            const journal = object === 'session journal'
            const whole = journal ? 'interrupted' : 'copy'
            await $`rm -rf damaged lost lived && cp -al ${whole} damaged && cp -a cache lived`
            const pick = `${objects[object]} 2> /dev/null | LC_ALL=C sort | shuf -n 2 --random-source=<(yes ${Math.floor(random() * 1e6)})`
            // A file of its own first: copies share theirs. Without a second object there is nothing to swap, without an older one nothing to put back.
            const made = await $({
              expect: 'any',
            })`SHARE=${share}; rm -rf hurt other.path; { read -r file; read -r other || true; } < <(${{ raw: pick }}); echo "$file" > damaged.path; test -n "$file" && cp "$file" before && cp "$file" own && mv own "$file" && ${{ raw: kinds[kind]! }} && ! cmp -s before "$file" && cp -al damaged hurt`
            tried++
            if (made.code) {
              missed.push(name)
              continue
            }
            fired++
            const there = at(repo, '$PWD/damaged')
            const cache = object.startsWith('cache')
            await $`sed 's|^cache_dir: .*|cache_dir: ${{ raw: cache ? 'lived' : 'lost' }}|' ${{ raw: journal ? 'cut' : 'config' }}.yaml > with.yaml`
            const results: Record<string, number> = {}
            for (const [command, words] of [
              ['check', 'check'],
              ['verify', 'check --verify-data'],
            ] as const) {
              if (!cache) await $`rm -rf lost`
              const done = await $({
                limit: '5m',
                expect: 'any',
              })`${there} vykar --config with.yaml ${{ raw: words }} -R ${repo} > ${command}.out 2>&1`
              results[command] = done.code
              if (done.code > 2) violated('7: ends well', `${words} ended with exit ${done.code}`, `vykar ${words}`)
            }
            const how = new Map<string, string>()
            for (const id of ids) {
              how.set(id, await restoredAs(repo, id, there, '', cache ? 'with.yaml' : 'lost.yaml'))
              if (how.get(id) !== 'wrong') continue
              const bit = mode === 'none' && object === 'pack' && ['bit', 'zeroed'].includes(kind)
              violated(
                '3: no wrong data with exit 0',
                `${mode === 'none' ? 'unencrypted: ' : ''}restore of ${id} exits 0 with wrong data: ${read('wrong.out').split('\n')[0]}`,
                `vykar restore ${id}`,
                bit && others(kind === 'bit' ? 3 : 40) === '' ? 'none-restore-unverified' : '',
              )
              // Where --verify is asked for, it must see it.
              if ((await restoredAs(repo, id, there, '--verify')) === 'wrong')
                violated(
                  '3: no wrong data with exit 0',
                  `restore --verify of ${id} exits 0 with wrong data`,
                  `vykar restore --verify ${id}`,
                )
            }
            const verified = await restoredAs(repo, ids.at(-1)!, there, '--verify', cache ? 'with.yaml' : 'lost.yaml')
            if (verified === 'wrong')
              violated('3: no wrong data with exit 0', `restore --verify exits 0 with wrong data: ${read('wrong.out').split('\n')[0]}`, 'vykar restore --verify') // biome-ignore format: one line
            const failed = [...how.values()].some((word) => word !== 'right')
            // Of a snapshot that is gone, or is another one, nothing tells that it was there; config and key, check itself needs.
            const untold = ['config', 'key'].includes(object) || /snapshot (deleted|swapped|older)/.test(name)
            if (failed && results.verify === 0 && !untold)
              violated(
                '3: check agrees with restore',
                `restore fails or is wrong, but check --verify-data exits 0`,
                'vykar check --verify-data',
                object === 'snapshot' ? 'damaged-snapshot-unseen' : '',
              )
            if (cache && failed)
              violated(
                '1: the cache is no part of it',
                `a damaged ${object} makes a restore ${[...how.values()].join()}`,
                'vykar restore',
                mode === 'none' && object === 'cache snapshot_list' ? 'damaged-snapshot-list-hides' : '',
              )
            // With the cache that it has, the next backup must not make a snapshot that lacks something.
            const next = await $({
              limit: '5m',
              expect: 'any',
            })`${there} timeout -k 5 ${within(60)} vykar --config with.yaml backup -R ${repo} > next.out 2>&1`
            const seen = said.get(object) ?? { check: 0, verify: 0, restore: 0, 'restore --verify': 0, next: 0, of: 0 }
            said.set(object, {
              check: seen.check + Number(results.check !== 0),
              verify: seen.verify + Number(results.verify !== 0),
              restore: seen.restore + Number(failed),
              'restore --verify': seen['restore --verify'] + Number(verified === 'refused'),
              next: seen.next + Number(next.code !== 0),
              of: seen.of + 1,
            })
            rows.push([mode, object, kind, n, results.check, results.verify, ...ids.map((id) => how.get(id)), verified, next.code]) // biome-ignore format: one line
            const dedup = object === 'cache dedup_cache'
            // Without encryption nothing says that an entry of the file cache or of a journal is another one.
            const trusted: Record<string, string> = {
              'cache filecache bit': 'filecache-unverified',
              'session journal bit': 'session-journal-unverified',
            }
            const unverified = (mode === 'none' && trusted[`${object} ${kind}`]) || ''
            if (next.code === 124 || next.code === 137)
              violated(
                '7: everything ends',
                `with a damaged ${object} the next backup does not end`,
                'vykar backup',
                dedup ? 'damaged-dedup-cache-hangs' : '',
              )
            else if (next.code > 3)
              violated(
                '7: ends well',
                `with a damaged ${object} the next backup ends with exit ${next.code}`,
                'vykar backup',
              )
            else if ((cache || journal) && next.code)
              violated(
                '4: works again',
                `a damaged ${object} makes the next backup exit ${next.code}: ${lastOf('next.out')}`,
                'vykar backup',
                dedup ? 'damaged-dedup-cache-refused' : next.code === 1 ? unverified : '',
              )
            if (next.code === 0) {
              await $`sed -n 's/^Snapshot created: //p' next.out > next.id && cp ${journal ? 'cut' : ids.at(-1)!}.sha256 next.sha256 && cp ${journal ? 'cut' : ids.at(-1)!}.tree next.tree`
              const became = await restoredAs(repo, 'next', there)
              how.set('next', became)
              // An unencrypted chunk that is another one is so in every snapshot that has it.
              const bit = mode === 'none' && object === 'pack' && ['bit', 'zeroed'].includes(kind) && others(kind === 'bit' ? 3 : 40) === '' // biome-ignore format: one line
              const known = failed && object === 'pack' ? 'backup-builds-on-damage' : unverified
              if (became !== 'right')
                violated(
                  '2: exit 0 means complete',
                  `the next backup exits 0, but is ${became} when restored`,
                  'vykar backup',
                  became === 'refused' ? known : bit ? 'none-restore-unverified' : '',
                )
            }
            if (cache) continue
            // Repair and compact take nothing that could still be had, or can be had again once the damaged object has been put back:
            // compact nothing at all, repair nothing whose data is there without an index.
            for (const [words, known] of [
              ['check --repair --yes', 'repair-trusts-index'],
              ['compact', 'compact-trusts-index'],
            ] as const) {
              const verb = words.split(' --yes')[0]!
              if (verb === 'compact') await $`rm -rf damaged && cp -al hurt damaged`
              const done = await $({
                limit: '5m',
                expect: 'any',
              })`rm -rf lost; ${there} vykar --config with.yaml ${{ raw: words }} -R ${repo} > repair.out 2>&1`
              if (done.code === 124 || done.code === 137)
                violated('7: everything ends', `${verb} does not end`, `vykar ${words}`)
              else if (done.code > 3)
                violated('7: ends well', `${verb} ends with exit ${done.code}: ${lastOf('repair.out')}`, `vykar ${words}`) // biome-ignore format: one line
              // What says that it has repaired leaves a repository that check finds nothing wrong with.
              if (verb !== 'compact' && done.code === 0 && !['config', 'key'].includes(object)) {
                const sound = await $({
                  limit: '5m',
                  expect: 'any',
                })`rm -rf lost; ${there} vykar --config with.yaml check -R ${repo} > repaired.out 2>&1`
                if (sound.code)
                  violated('5: repair repairs', `${verb} exits 0, and check complains: ${lastOf('repaired.out')}`, `vykar ${words}`) // biome-ignore format: one line
                // Then the next backup is whole, but for chunks that only check --verify-data could have seen.
                const after = await $({
                  limit: '5m',
                  expect: 'any',
                })`rm -rf lost; ${there} vykar --config with.yaml backup -R ${repo} > after.out 2>&1 && sed -n 's/^Snapshot created: //p' after.out > after.id`
                await $`cp ${journal ? 'cut' : ids.at(-1)!}.sha256 after.sha256 && cp ${journal ? 'cut' : ids.at(-1)!}.tree after.tree`
                if (after.code)
                  violated('4: works again', `after ${verb} the next backup exits ${after.code}: ${lastOf('after.out')}`, `vykar ${words}; vykar backup`) // biome-ignore format: one line
                else if (!(failed && object === 'pack') && (await restoredAs(repo, 'after', there)) !== 'right')
                  violated('4: works again', `after ${verb} the next backup exits 0, and is not right when restored`, `vykar ${words}; vykar backup`) // biome-ignore format: one line
              }
              for (const id of verb === 'compact' ? ids : how.keys())
                if (how.get(id) === 'right' && (await restoredAs(repo, id, there)) !== 'right')
                  violated('5: repair harms nothing', `after ${verb} ${id} cannot be restored, and could before`, `vykar ${words}`) // biome-ignore format: one line
              if (verb !== 'compact' && object !== 'index') continue
              await $`cp --remove-destination before "$(<damaged.path)" && { test ! -e other.path || cp --remove-destination other.before "$(<other.path)"; }`
              for (const id of ids)
                if ((await restoredAs(repo, id, there)) !== 'right')
                  violated(
                    '5: repair harms nothing',
                    `${verb} (exit ${done.code}) beside the damaged object, and it is put back: ${id} cannot be restored`,
                    `vykar ${words}`,
                    object === 'index' ? known : '',
                  )
            }
          }
        for (const [object, { check, verify, restore, 'restore --verify': verified, next, of }] of said)
          fact(
            `${object}: seen by`,
            `check ${check}, check --verify-data ${verify}, restore ${restore}, restore --verify ${verified}, the next backup ${next} of ${of}`,
          )
        await $`rm -rf damaged hurt copy interrupted old lived cut-source`
        await conclude(fired, tried, missed)
      })
  for (const repo of run.repos)
    await row({ repo, variant: 'one-file' }, async () => {
      const name = 'a pack of one file'
      const ids = await acknowledged(repo, 1, Math.min(mib, 4))
      await $`find "$REPO_LOCAL"/packs -type f -size +0 | sort > packs.before && head -c 12M /dev/urandom > source/large`
      await witnessed('source', 'large')
      await $`vykar --config config.yaml backup -R ${repo} > large.out && sed -n 's/^Snapshot created: //p' large.out > large.id`
      await copyOf(repo)
      step(name)
      const there = at(repo, '$PWD/damaged')
      await $`cp -al copy damaged && rm "damaged/packs/$(find "$REPO_LOCAL"/packs -type f -size +500k | sort | comm -13 packs.before - | sed 's|.*/packs/||' | head -n 1)"`
      const repaired = await $({
        expect: 'any',
      })`${there} vykar --config config.yaml check -R ${repo} --repair --yes > repair.out 2>&1`
      await $`rm -rf lost tree && mkdir lost tree && ${there} vykar --config config.yaml list -R ${repo} > after.list`
      const restored = await $({
        expect: 'any',
      })`${there} HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<large.id) tree > restore.out 2>&1`
      // All but the one file is there, and of it nothing that is not right.
      await $`grep -v '  \./large$' large.sha256 > rest.sha256 || true`
      const rest = await $({
        expect: 'any',
      })`grep -q "^ *$(<large.id) " after.list && (cd tree && sha256sum --check --quiet --strict ../rest.sha256 > ../wrong.out 2>&1 && { test ! -e large || cmp -s large ../source/large; })`
      fact(name, `repair: exit ${repaired.code}, restore: exit ${restored.code}`)
      if (rest.code)
        violated('5: repair harms nothing', `of a snapshot of which one file is lost, repair takes more: ${lastOf('wrong.out')}`, 'vykar check --repair --yes; vykar restore') // biome-ignore format: one line
      await check('grep -q "^ *- large " repair.out', () => {
        if (!/^ *- large /m.test(read('repair.out')))
          violated('5: repair says what it could not save', `a file is lost, and repair does not name it: ${lastOf('repair.out')}`, 'vykar check --repair --yes') // biome-ignore format: one line
      })
      await allThere(repo, ids, there)
      await $`rm -rf damaged copy`
      await conclude(1, 1)
    })
  if (!run.dry)
    writeFileSync(
      join(run.dirs.reports, 'corruption.csv'),
      stringify([
        [
          'mode',
          'object',
          'damage',
          'round',
          'check',
          'verify_data',
          'ack_1',
          'ack_2',
          'restore_verify',
          'next_backup',
        ],
        ...rows,
      ]),
    )
  stillShown(run)
})
