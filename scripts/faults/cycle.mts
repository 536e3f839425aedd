#!/usr/bin/env -S npx tsx
// Cycle: `vykar` without a command (backup, prune, compact, check, as a timer runs it) while a repository, a pack or the source is missing,
// while the source cannot be read, and after snapshots that a wrong clock has put into the future.
// Passes when exit 0 means that every repository of the config has got a snapshot which its retention keeps, a step that fails is in the
// exit code, and no backup that could not read its source displaces an acknowledged snapshot.
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, read } from '#lib/sh.mts'
import { shows, standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { copyOf } from '#scripts/damage.mts'
import {
  acknowledged,
  conclude,
  faultOptions,
  roundsOf,
  rowsWith,
  stillShown,
  within,
} from '#scripts/faults/common.mts'
import {
  afterwards,
  allThere,
  at,
  inTheEnd,
  lastOf,
  nothingForEver,
  restoredAs,
  violated,
} from '#scripts/faults/oracle.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const wants = [...serverWants, 'strace', 'faketime'] as const

await scenario(import.meta, { needs: standardNeeds, wants, repos: ['local'], options: faultOptions }, async (run) => {
  const row = await rowsWith(run)
  await servers()
  for (const repo of run.repos)
    await row(repo, async () => {
      const ids = await acknowledged(repo, 2, Math.min(run.options['corpus-mib'], 8))
      await copyOf(repo)
      const there = at(repo, '$PWD/damaged')
      const { chosen, tried } = roundsOf(run.options.round)
      const missed: string[] = []
      /** A copy of the repository, a source with something new, and cycle.yaml, which keeps so many snapshots. */
      const begin = async (keep: number) =>
        $`rm -rf damaged cache lost && cp -al copy damaged && head -c 100K /dev/urandom > source/fresh && { cat config.yaml; printf 'retention:\n  keep_last: %s\n' ${keep}; } > cycle.yaml`
      /** The cycle, with bash before it; what it printed is in met.out, and the id of its snapshot in met.id. */
      const cycle = async (name: string, before = '', config = `cycle.yaml -R ${repo}`) => {
        const met = await $({
          limit: '10m',
          expect: 'any',
        })`${there} ${{ raw: before }} timeout -k 5 ${within(240)} vykar --config ${{ raw: config }} > met.out 2>&1`
        await $`sed -n 's/^Snapshot created: //p' met.out > met.id`
        if (met.code === 124 || met.code === 137) violated('7: everything ends', 'the cycle does not end', 'vykar')
        fact(name, `exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`)
        return met.code
      }
      /** The snapshot of the last cycle is listed. */
      const kept = async () => {
        await $`${there} vykar --config cycle.yaml list -R ${repo} > met.list`
        const shown = await $({ expect: [0, 1] })`test -s met.id && grep -q "^ *$(<met.id) " met.list`
        return shown.code === 0
      }

      if (chosen('all is well')) {
        await begin(2)
        const code = await cycle('all is well')
        if (code || !(await kept()))
          violated('a cycle makes a snapshot', `exit ${code}, and list does not show it`, 'vykar')
        await witnessed('source', 'met')
        const how = await restoredAs(repo, 'met', there)
        if (how !== 'right') violated('2: exit 0 means complete', `its snapshot is ${how} when restored`, 'vykar')
        await shows(2, 'met.list', 'keep_last is 2')
        await $`for n in backup prune compact check; do grep -qE "^ +$n +ok" met.out || exit 1; done`
        const here = at(repo, '$PWD/damaged')
        await afterwards(repo, ['ack-2', 'met'], undefined, here, [...ids, 'met'])
        await nothingForEver(repo, here, 'vykar')
      }

      const missing = 'a pack that is missing'
      if (chosen(missing)) {
        await begin(9)
        await $`rm "$(find damaged/packs -type f -size +0 | LC_ALL=C sort | head -n 1)"`
        // What a check has found is no check that was done: the second cycle says it again.
        for (const nth of ['first', 'second'])
          if ((await cycle(missing)) === 0)
            violated('a step that fails is in the exit code', `the ${nth} cycle exits 0 although a pack is missing`, 'vykar') // biome-ignore format: one line
      }

      const nowhere = 'repositories that are missing'
      if (chosen(nowhere)) {
        await begin(9)
        await $`printf 'repositories: [{label: one, url: ./no-one/repository}, {label: two, url: ./no-two/repository}]\nencryption: {mode: none}\ncache_dir: cache\nretention: {keep_last: 9}\nsources: [{path: source, label: faults}]\n' > nowhere.yaml`
        const code = await cycle(nowhere, '', 'nowhere.yaml')
        await check('# exit 0 means that there is a backup', () => {
          if (code === 0)
            violated(
              '2: exit 0 means complete',
              'exit 0, and none of two repositories was there: no backup was made',
              'vykar',
              'cycle-skips-missing',
            )
        })
      }

      const gone = 'a source that is missing'
      if (chosen(gone)) {
        await begin(1)
        await $`mv source away`
        const code = await cycle(gone)
        await $`mv away source`
        if (code === 0) violated('2: exit 0 means complete', 'exit 0 although the source is not there', 'vykar')
        await allThere(repo, ids, there)
      }

      const unreadable = 'a source that cannot be read'
      if (!run.dry && !which('strace')) note(`${unreadable} was not tried: strace is missing`)
      else if (chosen(unreadable)) {
        await begin(2)
        const strace =
          'strace -f -qq -o calls -P "$PWD"/source -e trace=openat -e inject=openat:error=EACCES env HOME="$HOME"'
        const codes = [await cycle(unreadable, strace), await cycle(unreadable, strace)]
        await $`grep -c EACCES calls > hits || true`
        if (read('hits') === '0') missed.push(unreadable)
        if (codes.includes(0)) violated('2: exit 0 means complete', 'exit 0 although nothing could be read', 'vykar')
        await allThere(repo, ids, there, 'partial-backup-displaces')
      }

      const future = 'snapshots from the future'
      if (!run.dry && !which('faketime')) note(`${future} were not tried: faketime is missing`)
      else if (chosen(future)) {
        await begin(2)
        await $`for days in 400 401; do ${there} faketime -f "+$days"d vykar --config config.yaml backup -R ${repo} > future.out 2>&1; done; head -c 100K /dev/urandom > source/fresh`
        const code = await cycle(future)
        if (code === 0 && !(await kept()))
          violated(
            'what was just backed up is kept',
            'exit 0, and the snapshot that the cycle has made was pruned by it',
            'vykar',
            'future-snapshots-displace',
          )
      }
      const waits = 'a check that was made with a clock that was ahead'
      if (!run.dry && !which('faketime')) note(`${waits} was not tried: faketime is missing`)
      else if (chosen(waits)) {
        await begin(9)
        await $`printf 'check:\n  full_every: 1s\n' >> cycle.yaml`
        await cycle(waits, 'faketime -f +400d')
        await $`rm "$(find damaged/packs -type f -size +0 | LC_ALL=C sort | head -n 1)" && sleep 1`
        const code = await cycle(waits)
        // It is due every second.
        if (code === 0 && !run.dry)
          violated('what is due is checked', 'a pack is missing, and for 400 days no cycle looks', 'vykar', 'check-waits-for-clock') // biome-ignore format: one line
      }
      await inTheEnd(repo, ids)
      await $`rm -rf damaged copy source corpus tree`
      await conclude(tried.length - missed.length, tried.length)
    })
  stillShown(run)
})
