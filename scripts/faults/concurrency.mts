#!/usr/bin/env -S npx tsx
// Concurrency: several clients on one repository, maintenance while a backup, a restore or a check goes on, and locks and sessions of
// other hosts: live, stale, malformed, with clocks ahead and behind.
// Passes when what must exclude each other does (proven by time stamps: the refused command began and ended while the other was at work), what
// may go on together succeeds, whatever is stale is cleared, and every acknowledged snapshot is still restored to what it was.
import { background } from '#lib/background.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, type Output, read } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import {
  acknowledged,
  conclude,
  faultOptions,
  more,
  roundsOf,
  rowsWith,
  stillShown,
  within,
} from '#scripts/faults/common.mts'
import { afterwards, allThere, at, clearOthers, inTheEnd, lastOf, violated } from '#scripts/faults/oracle.mts'
import { ownServer } from '#scripts/guard.mts'
import { servers } from '#scripts/servers.mts'
import { contents, listing, witnessed } from '#scripts/witnessed.mts'

const spec = {
  needs: standardNeeds,
  wants: [...serverWants, 'faketime'],
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
    /** The repository's own directory, in which locks and sessions are looked at and planted. */
    const files = { raw: `"$${seen}"` }
    let fired = 0
    const { chosen, tried } = roundsOf(only)
    const vykar = (words: string, client = 'config.yaml', clock = ''): Promise<Output> =>
      $({
        limit: '5m',
        expect: 'any',
      })`date +%s%N > met.begun; rc=0; timeout -k 5 ${within(120)} ${{ raw: clock }} vykar --config ${client} ${{ raw: words }} > met.out 2>&1 || rc=$?; date +%s%N > met.ended; exit $rc`
    /** Commands that need the repository for themselves, and those that do not. */
    const excluded = { prune: `prune -R ${repo}`, compact: `compact -R ${repo}`, 'snapshot delete': `snapshot delete -R ${repo} $(<extra.id)`, 'check --repair': `check --repair --yes -R ${repo}` } // biome-ignore format: one line
    const shared = { list: `list -R ${repo}`, check: `check -R ${repo}`, restore: `restore -R ${repo} $(<ack-1.id) tree`, backup: `backup -R ${repo}` } // biome-ignore format: one line

    /** A long command and, while it goes on, each of the others; what was at work all the time is proven by its process. */
    const beside = async (name: string, long: string, going: Record<string, string>, right: 'refused' | 'work') => {
      for (const [other, words] of Object.entries(going)) {
        const what = `${other} during ${name}`
        if (!chosen(what)) continue
        await $`rm -rf tree slow-tree stop && mkdir tree slow-tree && ${{ raw: more(repo) }}`
        await witnessed('source', 'extra')
        await $`{ sed '/^sources:/,/^[a-z]/{/^sources:/d; /^ /d}' config.yaml; printf 'retention:\n  keep_last: 1\nsources:\n  - label: slow\n    command_dumps:\n      - {name: slow, command: "touch started; until test -e stop; do sleep 0.05; done; echo end"}\n'; } > slow.yaml`
        await $`{ cat config.yaml; printf 'retention:\n  keep_last: 9\n'; } > other.yaml && rm -f started`
        const task = await background('slow')`vykar --config slow.yaml ${{ raw: long }}`
        if (long.startsWith('backup'))
          await $({ limit: '60s' })`until test -e started || ! kill -0 $(<slow.pid) 2> /dev/null; do sleep 0.01; done`
        // A restore or a check is stopped in the middle of its work, so that it lasts as long as is needed.
        else
          await $({
            limit: '60s',
          })`until test -n "$(find ${files}/sessions -name '*.json' 2> /dev/null; find slow-tree -mindepth 1 -print -quit)" || ! kill -0 $(<slow.pid) 2> /dev/null; do :; done; kill -STOP $(<slow.pid) 2> /dev/null || true`
        await $`find ${files}/sessions -name '*.json' > sessions.before; kill -0 $(<slow.pid) 2> /dev/null && echo yes > at.begin || echo no > at.begin`
        const met = await vykar(words, 'other.yaml')
        await $`kill -0 $(<slow.pid) 2> /dev/null && echo yes > at.end || echo no > at.end; kill -CONT $(<slow.pid) 2> /dev/null || true; touch stop`
        const ended = await task.done([0, 1])
        await $`sed -n 's/^Snapshot created: //p' slow.out > slow.id; rm -rf slow-is && mkdir -p slow-is/vykar-dumps && echo end > slow-is/vykar-dumps/slow; find ${files}/sessions ${files}/locks -type f > sessions.after 2> /dev/null || true`
        await check('# both were at work at the same time', () => {
          const overlapped = read('at.begin') === 'yes' && read('at.end') === 'yes'
          if (overlapped) fired++
          fact(
            what,
            `${overlapped ? 'overlapped' : 'no overlap'}, exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 90)}` : ''}`,
          )
          if (overlapped && !read('sessions.before'))
            violated('mutual exclusion', `${name} is at work and has registered no session`, `vykar ${name}`)
          if (read('sessions.after'))
            violated(
              '7: nothing is left for ever',
              `both have ended and left ${read('sessions.after').split('\n')[0]}`,
              `vykar ${name}`,
            )
          if (met.code === 124) violated('7: everything ends', `${other} did not end within 120 s`, `vykar ${other}`)
          if (met.code === 0 && words.startsWith('list') && !read('met.out').includes(read('ack-1.id')))
            violated('1: acknowledged snapshots restore', `list during ${name} does not show ack-1`, 'vykar list')
          if (overlapped && right === 'refused' && met.code === 0)
            violated('mutual exclusion', `${other} was let in while ${name} was at work`, `vykar ${other}`)
          if (overlapped && right === 'refused' && met.code && !/active session|locked by/.test(read('met.out')))
            violated('what excludes is said', `${other}: ${lastOf('met.out')}`, `vykar ${other}`)
          if (right === 'work' && met.code)
            violated(
              'what may go on together succeeds',
              `${other} exits ${met.code}: ${lastOf('met.out')}`,
              `vykar ${other}`,
            )
          if (ended.code)
            violated('what was at work goes on', `${name} exits ${ended.code}: ${lastOf('slow.out')}`, `vykar ${name}`)
        })
        // What was restored meanwhile, and by the one that was held, is right.
        const trees = [...(met.code === 0 && words.startsWith('restore') ? [['tree', 'ack-1']] : []), ...(ended.code === 0 && long.startsWith('restore') ? [['slow-tree', 'ack-2']] : [])] // biome-ignore format: one line
        for (const [tree, id] of trees) {
          const same = await $({
            expect: 'any',
          })`(cd ${tree!} && sha256sum --check --quiet --strict ../${id!}.sha256 > ../wrong.out 2>&1) && test "$(find ${tree!} -type f -printf x | wc -c)" = "$(wc -l < ${id!}.sha256)" && (cd ${tree!} && ${{ raw: listing }}) | diff -a ${id!}.tree - > wrong.out`
          if (same.code)
            violated('3: exit 0 means right', `restore exits 0 with wrong data: ${lastOf('wrong.out')}`, 'vykar restore') // biome-ignore format: one line
        }
        await contents('slow-is', 'slow')
        const there = ended.code === 0 && long.startsWith('backup') ? ['ack-1', 'ack-2', 'slow'] : ['ack-1', 'ack-2']
        // What was refused has done nothing.
        if (right === 'refused' && met.code) there.push('extra')
        await afterwards(repo, there, words.startsWith('backup') ? met : undefined, here, [
          'ack-1',
          'ack-2',
          'extra',
          'slow',
        ])
        await clearOthers(repo, ['ack-1', 'ack-2'])
      }
    }

    await row({ repo, variant: 'maintenance' }, async () => {
      if (repo !== 'local') ownServer()
      const ids = await acknowledged(repo, 2, Math.min(mib, 8))
      await beside('backup', `backup -R ${repo}`, excluded, 'refused')
      await beside('backup', `backup -R ${repo}`, shared, 'work')
      await beside('restore', `restore -R ${repo} $(<ack-2.id) slow-tree`, excluded, 'refused')
      await beside('check', `check -R ${repo} --verify-data`, excluded, 'refused')

      if (chosen('four clients at once')) {
        await $`for n in 1 2 3 4; do mkdir -p client-$n && cp -a source/. client-$n && head -c 4M /dev/urandom > client-$n/own && sed "s|path: source|path: client-$n|; s|label: faults|label: client-$n|; s|^cache_dir: .*|cache_dir: cache-$n|" config.yaml > client-$n.yaml; done`
        await $({
          limit: '5m',
        })`pids=; for n in 1 2 3 4; do (date +%s%N > client-$n.begun; rc=0; vykar --config client-$n.yaml backup -R ${repo} > client-$n.out 2>&1 || rc=$?; echo $rc > client-$n.rc; date +%s%N > client-$n.ended) & pids="$pids $!"; done; wait $pids`
        await check('# all of them at the same time, and all of them whole', () => {
          const at = [1, 2, 3, 4].map(
            (n) => [BigInt(read(`client-${n}.begun`)), BigInt(read(`client-${n}.ended`))] as const,
          )
          const [last, first] = [at.map(([begun]) => begun).sort().at(-1)!, at.map(([, ended]) => ended).sort()[0]!] // biome-ignore format: one line
          if (last < first) fired++
          fact(
            'four clients at once',
            `${last < first ? 'overlapped' : 'no overlap'}, exit ${[1, 2, 3, 4].map((n) => read(`client-${n}.rc`)).join(' ')}`,
          )
          for (const n of [1, 2, 3, 4])
            if (read(`client-${n}.rc`) !== '0')
              violated(
                'what may go on together succeeds',
                `one of four backups ends with exit ${read(`client-${n}.rc`)}: ${lastOf(`client-${n}.out`)}`,
                'vykar backup',
              )
        })
        for (const n of ['1', '2', '3', '4']) {
          await $`sed -n 's/^Snapshot created: //p' client-${n}.out > client-${n}.id`
          await witnessed(`client-${n}`, `client-${n}`)
        }
        await allThere(repo, [...ids, 'client-1', 'client-2', 'client-3', 'client-4'], here)
        await clearOthers(repo, ['ack-1', 'ack-2'])
      }

      if (chosen('four compacts at once')) {
        await $`${{ raw: more(repo) }} && vykar --config config.yaml snapshot delete -R ${repo} $(<extra.id)`
        await $({
          limit: '5m',
        })`pids=; for n in 1 2 3 4; do (date +%s%N > compact-$n.begun; rc=0; vykar --config config.yaml compact -R ${repo} --threshold 0 > compact-$n.out 2>&1 || rc=$?; echo $rc > compact-$n.rc; date +%s%N > compact-$n.ended) & pids="$pids $!"; done; wait $pids`
        await $`cat compact-?.rc | sort | uniq -c | tr -s ' ' > codes`
        await $`test "$(sort -n compact-?.begun | tail -n 1)" -lt "$(sort -n compact-?.ended | head -n 1)" && echo yes > at.once || echo no > at.once`
        if (read('at.once') === 'yes') fired++
        if (!run.dry && ![1, 2, 3, 4].some((n) => read(`compact-${n}.rc`) === '0'))
          violated('what excludes lets one in', 'none of four compacts was let in', 'vykar compact') // biome-ignore format: one line
        fact('four compacts at once', `exit codes (count, code): ${read('codes').split('\n').map((line) => line.trim()).join(', ')}`) // biome-ignore format: one line
        await $`grep -L 'locked by\|active session\|Compaction complete' compact-?.out > odd || true`
        if (read('odd'))
          violated(
            'what excludes is said',
            `${read('odd').split('\n')[0]}: ${lastOf(read('odd').split('\n')[0]!)}`,
            'vykar compact',
          )
        await afterwards(repo, ids, undefined, here)
        await clearOthers(repo, ['ack-1', 'ack-2'])
      }
      await inTheEnd(repo, ['ack-1', 'ack-2'])
      await $`rm -rf source corpus tree slow-tree client-?`
      await conclude(fired, tried.length)
    })
    fired = tried.length = 0

    await row({ repo, variant: 'other-hosts' }, async () => {
      if (repo !== 'local') ownServer()
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      // A lock's name begins with its time in microseconds; a session's file is named by its id.
      const lock = (ago: string, host = 'elsewhere') =>
        `t=$(date -d '${ago}' +%s) && printf '{"hostname":"${host}","pid":4711,"time":"%s","boot_id":"other"}' "$(date -u -d @$t +%Y-%m-%dT%H:%M:%S.000000000+00:00)" > ${files.raw}/locks/$(printf %014d $t)000000-0123456789abcdef0123456789abcdef.json`
      const session = (ago: string, host = 'elsewhere') =>
        `t=$(date -u -d '${ago}' +%Y-%m-%dT%H:%M:%S.000000000+00:00) && printf '{"hostname":"${host}","pid":4711,"registered_at":"%s","last_refresh":"%s"}' "$t" "$t" > ${files.raw}/sessions/0123456789abcdef0123456789abcdef.json`
      const planted: [name: string, line: string, right: 'refused' | 'work' | 'any', clock?: string][] = [
        ['live lock', lock('1 minute ago'), 'refused'],
        ['lock of 5 hours', lock('5 hours ago'), 'refused'],
        ['stale lock', lock('7 hours ago'), 'work'],
        ['lock of a clock that is 30 s ahead', lock('30 seconds'), 'refused'],
        ['lock from tomorrow', lock('1 day'), 'refused'],
        ['live lock, and a clock of ours that is 7 hours ahead', lock('1 minute ago'), 'refused', 'faketime -f +7h'],
        ['live lock, and a clock of ours that is 7 hours behind', lock('1 minute ago'), 'refused', 'faketime -f -7h'],
        [
          'live session, and a clock of ours that is 50 minutes ahead',
          session('1 minute ago'),
          'refused',
          'faketime -f +50m',
        ],
        [
          'malformed lock',
          `echo '{"hostname"' > ${files.raw}/locks/00001795000000000000-0123456789abcdef0123456789abcdef.json`,
          'any',
        ],
        ['empty lock', `: > ${files.raw}/locks/00001795000000000000-0123456789abcdef0123456789abcdef.json`, 'any'],
        ['live session', session('1 minute ago'), 'refused'],
        // Another machine, or a container, of the same name: its process is in nobody else's list.
        ['live lock of a machine of this name', lock('1 minute ago', `'"$(uname -n)"'`), 'refused'],
        ['live session of a machine of this name', session('1 minute ago', `'"$(uname -n)"'`), 'refused'],
        ['session of 40 minutes', session('40 minutes ago'), 'refused'],
        ['stale session', session('50 minutes ago'), 'work'],
        ['session from tomorrow', session('1 day'), 'any'],
        [
          'malformed session',
          `echo '{"hostname"' > ${files.raw}/sessions/0123456789abcdef0123456789abcdef.json`,
          'any',
        ],
      ]
      for (const [name, line, right, clock] of planted) {
        if (!run.dry && clock && !which('faketime')) {
          note(`${name}: not tried, faketime is missing`)
          continue
        }
        if (!chosen(name)) continue
        await $`mkdir -p ${files}/locks ${files}/sessions && ${{ raw: line }}`
        const met = await vykar(`compact -R ${repo}`, 'config.yaml', clock)
        await $`find ${files}/locks ${files}/sessions -type f > still.list`
        fired++
        fact(
          name,
          `compact: exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 90)}` : ''}; ${read('still.list') ? 'still there' : 'gone'}`,
        )
        if (met.code === 124) violated('7: everything ends', 'compact did not end within 120 s', 'vykar compact')
        if (right === 'refused' && met.code === 0)
          violated(
            'mutual exclusion',
            `compact was let in beside a ${name}`,
            'vykar compact',
            clock?.includes('+')
              ? 'fast-clock-clears-live'
              : clock || /ahead|tomorrow/.test(name)
                ? 'lock-clock-ahead'
                : /this name/.test(name)
                  ? 'same-hostname-taken-for-dead'
                  : '',
          )
        if (right === 'refused' && met.code && !/active session|locked by/.test(read('met.out')))
          violated('what excludes is said', `compact: ${lastOf('met.out')}`, 'vykar compact')
        if (right === 'refused' && met.code && !read('still.list'))
          violated('mutual exclusion', 'compact was refused, and took the lock or the session away', 'vykar compact') // biome-ignore format: one line
        if (right === 'work' && met.code)
          violated('whatever is stale is cleared', `compact exits ${met.code}: ${lastOf('met.out')}`, 'vykar compact')
        if (right === 'work' && read('still.list'))
          violated('whatever is stale is cleared', 'it is still there', 'vykar compact')
        // A backup and a restore need no repository for themselves, whoever is at work.
        await $`rm -rf tree && mkdir tree`
        const reading = await vykar(`restore -R ${repo} $(<ack-1.id) tree`)
        if (reading.code && !name.includes('lock'))
          violated(
            'what may go on together succeeds',
            `restore exits ${reading.code}: ${lastOf('met.out')}`,
            'vykar restore',
          )
        const broken = await vykar(`break-lock -R ${repo}`)
        if (broken.code)
          violated(
            '7: nothing is left for ever',
            `break-lock exits ${broken.code}: ${lastOf('met.out')}`,
            'vykar break-lock',
          )
        await $`find ${files}/locks -type f > still.list`
        if (read('still.list')) violated('7: nothing is left for ever', 'break-lock left the lock', 'vykar break-lock')
        await $`rm -f ${files}/sessions/0123456789abcdef0123456789abcdef.json`
        await afterwards(repo, ids, undefined, here)
        await clearOthers(repo, ids)
      }
      await inTheEnd(repo, ids)
      await $`rm -rf source corpus tree`
      await conclude(fired, tried.length)
    })
  }
  stillShown(run)
})
