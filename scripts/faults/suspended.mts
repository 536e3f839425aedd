#!/usr/bin/env -S npx tsx
// Suspended: a client that is stopped in the middle of its work, as a laptop that is shut, while another client works on the same repository, and
// that goes on later: before it has the lock, while it uploads, repacks, commits, or writes the index, and while it inits.
// Passes when whatever is stale by then is cleared for the others, the late one fails or does no harm, and every acknowledged snapshot is still
// restored to what it was.
import { background } from '#lib/background.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, type Output } from '#lib/sh.mts'
import { Skipped } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import {
  acknowledged,
  conclude,
  faultOptions,
  held,
  more,
  roundsOf,
  rowsWith,
  stillShown,
  within,
} from '#scripts/faults/common.mts'
import { afterwards, at, inTheEnd, lastOf, restoredAs, violated } from '#scripts/faults/oracle.mts'
import { ownServer } from '#scripts/guard.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const spec = {
  needs: standardNeeds,
  wants: [...serverWants, 'strace'],
  repos: ['local', 'rest'],
  options: faultOptions,
} as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { round: only, 'corpus-mib': mib } = run.options
  await servers()
  for (const repo of run.repos) {
    const variable = `REPO_${repo.toUpperCase()}`
    const here = at(repo, `"$${variable}"`)
    const { seen = variable } = run.endpoint(repo)
    /** The repository's own directory, in which locks and sessions are looked at and made older. */
    const files = { raw: `"$${seen}"` }
    let fired = 0
    const { chosen, tried } = roundsOf(only)
    /** What a round may damage, for `asBefore`. */
    const keep = () => $`rm -rf whole cache-whole && cp -a ${files} whole && cp -a cache cache-whole`
    /** Each round begins with the repository, and this client's cache, as they were before the one that may have damaged both. */
    const asBefore = () =>
      $`rsync -a --ignore-times --delete whole/ ${files}/ && rm -rf cache && cp -a cache-whole cache`
    /** What the other client does meanwhile. */
    const meanwhile = (words: string): Promise<Output> =>
      $({
        limit: '5m',
        expect: 'any',
      })`timeout -k 5 ${within(120)} vykar --config meanwhile.yaml ${{ raw: words }} > met.out 2>&1`

    if (repo === 'local')
      await row({ repo, variant: 'late' }, async () => {
        if (!run.dry && !which('strace')) throw new Skipped('strace is missing: apt-get install -y strace')
        const ids = await acknowledged(repo, 1, Math.min(mib, 8))
        await keep()
        const inits = 'two inits at once'
        if (chosen(inits)) {
          // The first is stopped when it looks whether there is a repository already.
          const place = at(repo, '$PWD/raced')
          await $`rm -rf raced cache-b calls && sed 's|^cache_dir: .*|cache_dir: cache-b|' config.yaml > raced.yaml && sed 's|^cache_dir: .*|cache_dir: cache-c|' config.yaml > second.yaml`
          const first = await background(
            'first',
          )`env ${place} strace -f -qq -o calls -P "$PWD"/raced/config -e trace=statx -e inject=statx:signal=SIGSTOP:when=1 vykar --config raced.yaml init -R ${repo}`
          const stopped = await held('first', first)
          await $`${place} vykar --config second.yaml init -R ${repo} > init.out 2>&1 && ${place} vykar --config second.yaml backup -R ${repo} > raced.out && sed -n 's/^Snapshot created: //p' raced.out > raced.id; kill -CONT $(<traced.pid) 2> /dev/null || true`
          await witnessed('source', 'raced')
          const ended = await first.done([0, 1])
          if (stopped) fired++
          fact(inits, `the late one: exit ${ended.code}: ${lastOf('first.out').slice(0, 100)}`)
          const how = await restoredAs(repo, 'raced', place)
          if (how !== 'right' || ended.code === 0)
            violated(
              '1: acknowledged snapshots restore',
              `both exit ${ended.code}, and what was backed up after one of them is ${how} when restored`,
              'vykar init',
              how !== 'wrong' ? 'second-init-replaces' : '',
            )
          await $`rm -rf raced cache-b cache-c`
        }
        // strace stops maintenance when it first looks for locks: it has opened the repository, and does not hold it yet.
        for (const [verb, words] of Object.entries({
          compact: `compact -R ${repo}`,
          'snapshot delete': `snapshot delete -R ${repo} $(<extra.id)`,
          'check --repair': `check --repair --yes -R ${repo}`,
        })) {
          const name = `${verb} that is late to lock`
          if (!chosen(name)) continue
          await $`rm -rf cache-b meanwhile && cp -a source meanwhile && head -c 3M /dev/urandom > meanwhile/own && sed 's|path: source|path: meanwhile|; s|label: faults|label: meanwhile|; s|^cache_dir: .*|cache_dir: cache-b|' config.yaml > meanwhile.yaml && ${{ raw: more(repo) }}`
          await witnessed('source', 'extra')
          await $`mkdir -p ${files}/locks && rm -f calls`
          const late = await background(
            'late',
          )`strace -f -qq -o calls -P ${files}/locks/ -e trace=openat -e inject=openat:signal=SIGSTOP:when=1 vykar --config config.yaml ${{ raw: words }}`
          await held('late', late)
          await witnessed('meanwhile', 'meanwhile')
          const made = await meanwhile(`backup -R ${repo}`)
          await $`sed -n 's/^Snapshot created: //p' met.out > meanwhile.id; kill -CONT $(<traced.pid) 2> /dev/null || true`
          const working = late.running()
          const ended = await late.done([0, 1])
          if (working && made.code === 0) fired++
          fact(name, `a backup meanwhile: exit ${made.code}; it goes on: exit ${ended.code}`)
          const there = made.code === 0 ? [...ids, 'meanwhile'] : [...ids]
          if (ended.code) there.push('extra')
          await afterwards(repo, there, undefined, here, [...there, 'extra'], 'maintenance-reads-index-unlocked')
          await asBefore()
        }
        await inTheEnd(repo, ids)
        await $`rm -rf source corpus meanwhile whole cache-whole`
        await conclude(fired, tried.length)
      })
    fired = tried.length = 0

    await row({ repo, variant: 'stopped' }, async () => {
      if (repo !== 'local') ownServer()
      const ids = await acknowledged(repo, 2, Math.min(mib, 8))
      await keep()
      /** Who is stopped (a suspended laptop), at which moment of its work, and what comes before. */
      const stopped: [name: string, words: string, before: string, moment: string, under?: string][] = [
        [
          'a backup that is stopped while it uploads',
          `backup -R ${repo}`,
          'true',
          '(($(find FILES/packs -type f | wc -l) > $(<packs.before) + 2))',
        ],
        [
          'a backup that is stopped while it commits',
          `backup -R ${repo}`,
          'true',
          '{ (($(find FILES/packs -type f | wc -l) > $(<packs.before) + 2)) && test -n "$(find FILES/locks -name "0*.json")"; }',
        ],
        // Every pack holds files that are gone and files that are not: there is much to repack.
        [
          'a compact that is stopped while it repacks',
          `compact -R ${repo} --threshold 0`,
          `for n in $(seq 80); do head -c 150K /dev/urandom > source/keep-$n; head -c 150K /dev/urandom > source/drop-$n; done; ${more(repo)} && rm source/drop-* && vykar --config config.yaml backup -R ${repo} > kept.out && vykar --config config.yaml snapshot delete -R ${repo} $(<extra.id)`,
          'test -n "$(find FILES/packs -type f -newer packs.before)"',
        ],
        // strace holds the rename that puts the new index in its place, and is stopped itself meanwhile.
        [
          'a backup that is stopped before it writes the index',
          `backup -R ${repo}`,
          'true',
          '{ test -n "$(find FILES -maxdepth 1 -name ".tmp*")" && test -n "$(find FILES/locks -name "0*.json")"; }',
          `strace -f -qq -o calls -P ${files.raw}/index -e trace=rename,renameat -e inject=rename,renameat:delay_enter=3000000 `,
        ],
      ]
      for (const [name, words, before, moment, under = ''] of stopped) {
        if (under && (repo !== 'local' || (!run.dry && !which('strace')))) continue
        if (!chosen(name)) continue
        await $`rm -rf cache-b meanwhile source/fresh && cp -a source meanwhile && head -c 96M /dev/urandom > source/fresh && head -c 3M /dev/urandom > meanwhile/own && sed 's|path: source|path: meanwhile|; s|label: faults|label: meanwhile|; s|^cache_dir: .*|cache_dir: cache-b|' config.yaml > meanwhile.yaml`
        await $`${{ raw: before }}; sleep 0.01; find ${files}/packs -type f | wc -l > packs.before`
        await witnessed('source', 'going')
        const going = await background('going')`${{ raw: under }}vykar --config config.yaml ${{ raw: words }}`
        await $({
          limit: '60s',
        })`until ${{ raw: moment.replaceAll('FILES', files.raw) }} || ! kill -0 $(<going.pid) 2> /dev/null; do :; done; kill -STOP $(<going.pid) 2> /dev/null || true`
        const working = going.running()
        // Nobody waits for hours here: the lock and the session of the one that is stopped are made older, and another host's.
        await $`t=$(date -d '7 hours ago' +%s); at=$(date -u -d @$t +%Y-%m-%dT%H:%M:%S.000000000+00:00); old="s/(\"(time|registered_at|last_refresh)\": *)\"[^\"]*\"/\\1\"$at\"/g; s/(\"hostname\": *)\"[^\"]*\"/\\1\"elsewhere\"/; s/(\"boot_id\": *)\"[^\"]*\"/\\1\"other\"/"; for f in $(find ${files}/sessions -name '*.json'); do sed -i -E "$old" $f; done; for f in $(find ${files}/locks -name '0*.json'); do sed -E "$old" $f > ${files}/locks/$(printf %014d $t)000000-$(basename $f | cut -d- -f2) && rm $f; done; find ${files}/locks ${files}/sessions -type f > held.list`
        // Another client makes a backup and reclaims what it takes for garbage.
        const made = await meanwhile(`backup -R ${repo}`)
        await $`sed -n 's/^Snapshot created: //p' met.out > meanwhile.id`
        const reclaimed = await meanwhile(`compact -R ${repo} --threshold 0`)
        await $`kill -CONT $(<going.pid) 2> /dev/null || true`
        const ended = await going.done([0, 1])
        if (working && reclaimed.code === 0) fired++
        fact(
          name,
          `${working ? '' : 'had ended; '}backup meanwhile: exit ${made.code}, compact meanwhile: exit ${reclaimed.code}${reclaimed.code ? ` (${lastOf('met.out').slice(0, 60)})` : ''}; it goes on: exit ${ended.code}${ended.code ? ` (${lastOf('going.out').slice(0, 80)})` : ''}`,
        )
        if (made.code) violated('whatever is stale is cleared', `a backup meanwhile exits ${made.code}`, 'vykar backup')
        if (reclaimed.code)
          violated('whatever is stale is cleared', `compact meanwhile exits ${reclaimed.code}`, 'vykar compact')
        const there = [...ids]
        await witnessed('meanwhile', 'meanwhile')
        if (made.code === 0) there.push('meanwhile')
        if (ended.code === 0 && words.startsWith('backup')) {
          await $`sed -n 's/^Snapshot created: //p' going.out > going.id`
          there.push('going')
        }
        // On a server the same moment is met by chance, while a backup commits.
        const late = /commits|index/.test(name) ? 'stopped-backup-destroys' : ''
        const known = words.startsWith('compact') ? 'stopped-compact-destroys' : late
        if (words.startsWith('compact')) {
          await $`sed -n 's/^Snapshot created: //p' kept.out > kept.id && cp going.sha256 kept.sha256 && cp going.tree kept.tree`
          there.push('kept')
        }
        await afterwards(repo, there, undefined, here, [...new Set([...there, 'ack-1', 'ack-2'])], known, known !== '')
        await asBefore()
      }
      await inTheEnd(repo, ids)
      await $`rm -rf source corpus meanwhile whole cache-whole`
      await conclude(fired, tried.length)
    })
  }
  stillShown(run)
})
