#!/usr/bin/env -S npx tsx
// Daemon: `vykar daemon`, as a service manager runs it: its cycles, its status page, ended in mid-backup, restarted again and again, told a config
// that is new or broken, with repositories that are not there, a schedule that cannot be, and a clock that was ahead when it began.
// Passes when what is due is backed up and restores, the status says what has happened, everything ends when it is told to, nothing is left
// held, and every acknowledged snapshot is still restored to what it was.
import { background } from '#lib/background.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, read } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { acknowledged, conclude, faultOptions, roundsOf, rowsWith, stillShown } from '#scripts/faults/common.mts'
import {
  afterwards,
  at,
  clearOthers,
  inTheEnd,
  lastOf,
  nothingForEver,
  restoredAs,
  violated,
} from '#scripts/faults/oracle.mts'
import { freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const wants = [...serverWants, 'curl', 'faketime'] as const

await scenario(import.meta, { needs: standardNeeds, wants, repos: ['local'], options: faultOptions }, async (run) => {
  const row = await rowsWith(run)
  await servers()
  for (const repo of run.repos)
    await row(repo, async () => {
      const ids = await acknowledged(repo, 1, Math.min(run.options['corpus-mib'], 4))
      const here = at(repo, `"$REPO_${repo.toUpperCase()}"`, `"$REPO_${repo.toUpperCase()}"`)
      const { chosen, tried } = roundsOf(run.options.round)
      const missed: string[] = []
      const port = run.dry ? 17575 : await freePort(0)
      const page = `http://127.0.0.1:${port}`
      const status = { raw: `${page}/api/status.json` }
      /** daemon.yaml with this schedule; HOME holds the lock of the scheduler. */
      const scheduled = (schedule: string) =>
        $`mkdir -p home && { cat config.yaml; printf 'retention: {keep_last: 90}\nschedule: {enabled: true, %s}\n' ${schedule}; } > daemon.yaml`
      const daemon = (name: string) =>
        background(
          name,
        )`HOME=$PWD/home XDG_CONFIG_HOME=$PWD/home vykar --config daemon.yaml daemon --http-listen 127.0.0.1:${port}`
      /** Waits until so many cycles have ended well, or as `how` says, or the daemon has, or 40 s are over. */
      const cycled = (name: string, count: string, how = 'cycle finished successfully') => ({
        raw: `for n in $(seq 200); do test "$(grep -c '${how}' ${name}.out)" -ge ${count} && break; kill -0 $(<${name}.pid) 2> /dev/null || break; sleep 0.2; done`,
      })
      /** Snapshots beside the acknowledged ones, as a file of the row counts them. */
      const counted = async () => {
        await $`vykar --config config.yaml list -R ${repo} > met.list && grep -cE '^ *[0-9a-f]{8} ' met.list > met.count`
        return Number(read('met.count')) - ids.length
      }
      const ends = ({ by, code }: { by: string; code: number }) => {
        if (by === 'KILL') violated('7: everything ends', 'TERM does not end the daemon within 20 s', 'vykar daemon')
        else if (by === 'none' || ![0, 130, 143].includes(code))
          violated('7: ends well', `the daemon ends ${by === 'none' ? 'by itself' : 'on TERM'} with exit ${code}`, 'vykar daemon') // biome-ignore format: one line
      }
      const ended = async (end: { by: string; code: number }) => {
        ends(end)
        await nothingForEver(repo, here, 'vykar daemon')
        await afterwards(repo, ids, undefined, here)
        await clearOthers(repo, ids)
      }

      const cycles = 'every second'
      if (chosen(cycles)) {
        await scheduled('every: 1s, on_startup: true')
        const going = await daemon('cycles')
        await $({ limit: '60s' })`${cycled('cycles', '1')}; head -c 100K /dev/urandom > source/fresh`
        await witnessed('source', 'newest')
        // The one under way may have come by before.
        await $({
          limit: '60s',
        })`more=$(($(grep -c 'cycle finished' cycles.out || true) + 2)); ${cycled('cycles', '$more')}`
        await $`curl -fsS ${status} > status.json && curl -fsS ${page}/ > page.html && for method in POST PUT DELETE; do curl -s -o /dev/null -w '%{http_code}\n' -X $method ${page}/; done > methods`
        const end = await going.end('TERM', '20s')
        const made = await counted()
        await check('# three cycles, a snapshot each, and the status says so', () => {
          fact(cycles, `${made} snapshots`)
          if (made < 3) violated('what is due is backed up', `three cycles have made ${made} snapshots`, 'vykar daemon') // biome-ignore format: one line
          if (!/"outcome": *"ok"/.test(read('status.json')))
            violated('the status is true', 'three cycles went well, and the status does not say ok', 'vykar daemon') // biome-ignore format: one line
          if (/^2/m.test(read('methods')))
            violated('the status page only shows', 'a POST, PUT or DELETE is answered with 2xx', 'vykar daemon')
        })
        await $`grep -oE '^ *[0-9a-f]{8} ' met.list | tail -n 1 | tr -d ' ' > newest.id`
        const how = await restoredAs(repo, 'newest', here)
        if (how !== 'right')
          violated('2: absent or complete', `the newest snapshot is ${how} when it is restored`, 'vykar daemon')
        // Those of before the change are no snapshots of the source as it is.
        await clearOthers(repo, ids)
        await ended(end)
      }

      const middle = 'TERM in the middle of a backup'
      if (chosen(middle)) {
        await scheduled('every: 1h, on_startup: true')
        await $`rm -f begun && sed -i 's|^\( *\)label: faults$|&\n\1command_dumps: [{name: slow, command: "touch begun; sleep 4; echo end"}]|' daemon.yaml`
        const going = await daemon('middle')
        await $({ limit: '60s' })`until test -e begun || ! kill -0 $(<middle.pid); do sleep 0.05; done`
        const end = await going.end('TERM', '20s')
        const made = await counted()
        fact(middle, `exit ${end.code} after ${end.seconds.toFixed(1)} s, ${made} snapshots`)
        await $`test -e begun`
        if (made > 0)
          violated('2: absent or complete', 'a backup that TERM has ended in its dump has made a snapshot', 'vykar daemon') // biome-ignore format: one line
        await clearOthers(repo, ids)
        await ended(end)
      }

      const broken = 'HUP with a config that is broken'
      if (chosen(broken)) {
        await scheduled('every: 1s, on_startup: true')
        const going = await daemon('broken')
        await $({
          limit: '60s',
        })`${cycled('broken', '1')}; echo 'sources: {' > daemon.yaml; grep -c 'cycle finished successfully' broken.out > before.count || true; kill -HUP $(<broken.pid)`
        await $({
          limit: '60s',
        })`${cycled('broken', '$(($(<before.count) + 3))')}; grep -c 'cycle finished successfully' broken.out > after.count || true`
        await check('# it goes on with the config that it had, and says so', () => {
          if (Number(read('after.count')) <= Number(read('before.count')) + 2)
            violated('what is due is backed up', 'after a HUP with a broken config it makes no more backups', 'kill -HUP') // biome-ignore format: one line
          if (!/WARN|ERROR/.test(read('broken.out')))
            violated('what is odd is said', 'a config that cannot be read, and not a word of it', 'kill -HUP')
        })
        await ended(await going.end('TERM', '20s'))
      }

      const reloaded = 'HUP with a config that has changed'
      if (chosen(reloaded)) {
        await scheduled('every: 1s, on_startup: true')
        const going = await daemon('reloaded')
        await $({
          limit: '60s',
        })`${cycled('reloaded', '1')}; sed -i 's/label: faults$/label: reloaded/' daemon.yaml; grep -c 'cycle finished successfully' reloaded.out > before.count || true; kill -HUP $(<reloaded.pid)`
        await $({ limit: '60s' })`${cycled('reloaded', '$(($(<before.count) + 3))')}`
        await $`vykar --config config.yaml list -R ${repo} > reloaded.list`
        await check('grep -q " reloaded " reloaded.list', () => {
          if (!/ reloaded /.test(read('reloaded.list')))
            violated('what is due is backed up', 'after a HUP it goes on with the config that was', 'kill -HUP')
        })
        await ended(await going.end('TERM', '20s'))
      }

      const restarted = 'restarted more often than it is due'
      if (chosen(restarted)) {
        // As a laptop that is never up for a whole day, with `every: 24h`.
        await scheduled('every: 6s')
        await $({
          limit: '5m',
        })`for n in 1 2 3 4; do rc=0; HOME=$PWD/home XDG_CONFIG_HOME=$PWD/home timeout -s TERM -k 10 4 vykar --config daemon.yaml daemon > restarted-$n.out 2>&1 || rc=$?; done`
        const made = await counted()
        fact(restarted, `16 s of running with every: 6s: ${made} snapshots`)
        if (!made && !run.dry)
          violated('what is due is backed up', 'it was up for 16 s in four parts, is due every 6 s, and has made no backup', 'vykar daemon', 'daemon-forgets-schedule') // biome-ignore format: one line
        await clearOthers(repo, ids)
      }

      const missing = 'repositories that are missing'
      if (chosen(missing)) {
        await $`mkdir -p home && printf 'repositories: [{label: one, url: ./no-one/repository}, {label: two, url: ./no-two/repository}]\nencryption: {mode: none}\ncache_dir: cache\nsources: [{path: source, label: faults}]\nschedule: {enabled: true, every: 2s, on_startup: true}\n' > daemon.yaml`
        const going = await daemon('missing')
        await $({
          limit: '60s',
        })`${cycled('missing', '1', 'cycle finished')}; curl -sS ${status} > status.json 2> status.err || ! kill -0 $(<missing.pid) 2> /dev/null || exit 1`
        ends(await going.end('TERM', '20s'))
        await check('# a cycle that has backed up nothing is not ok', () => {
          if (/"outcome": *"ok"/.test(read('status.json')))
            violated('the status is true', 'no repository is there, nothing is backed up, and the status says ok', 'vykar daemon', 'daemon-hides-missing') // biome-ignore format: one line
        })
      }

      const never = 'a schedule that cannot be'
      if (chosen(never)) {
        await scheduled('every: 0s')
        const met = await $({
          expect: 'any',
        })`rc=0; HOME=$PWD/home XDG_CONFIG_HOME=$PWD/home timeout -s TERM -k 10 3 vykar --config daemon.yaml daemon > never.out 2>&1 || rc=$?; exit $rc`
        await check('# of its only repository: refused', () => {
          fact(never, `exit ${met.code}: ${lastOf('never.out').slice(0, 100)}`)
          if (met.code > 2 && met.code !== 124)
            violated('7: ends well', `with \`every: 0s\` it ends with exit ${met.code}`, 'vykar daemon')
          if (met.code === 124 || met.code === 0)
            violated('what cannot work is refused', 'with `every: 0s` for its only repository it goes on, and will never back up', 'vykar daemon', 'daemon-schedules-nothing') // biome-ignore format: one line
        })
      }

      const ahead = 'a clock that was ahead'
      if (chosen(ahead)) {
        await scheduled('every: 3s')
        await $`echo +400d > clock.is; find /usr/lib /usr/lib64 -name libfaketimeMT.so.1 -print -quit > preload 2> /dev/null || true`
        if (!read('preload') && !run.dry) {
          missed.push(ahead)
          note(`${ahead} was not tried: faketime is missing: apt-get install -y faketime`)
        } else {
          const going = await background(
            'ahead',
          )`HOME=$PWD/home XDG_CONFIG_HOME=$PWD/home LD_PRELOAD=$(<preload) FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_NO_CACHE=1 FAKETIME_TIMESTAMP_FILE=$PWD/clock.is vykar --config daemon.yaml daemon`
          await $`for n in $(seq 100); do if grep -q "^$(date -d '+400 days' +%Y)" ahead.out; then break; fi; sleep 0.1; done; sleep 1.5; echo +0 > clock.is; sleep 12; grep -c "^$(date -d '+400 days' +%Y)" ahead.out > was.ahead || true`
          if (read('was.ahead') === '0') missed.push(ahead)
          ends(await going.end('TERM', '20s'))
          const made = await counted()
          fact(ahead, `12 s with every: 3s: ${made} snapshots`)
          if (!made && !run.dry)
            violated('what is due is backed up', 'its clock was 400 days ahead when it began; put right, it makes no backup', 'vykar daemon', 'daemon-waits-for-clock') // biome-ignore format: one line
          await clearOthers(repo, ids)
        }
      }
      await inTheEnd(repo, ids)
      await $`rm -rf source corpus tree home`
      await conclude(tried.length - missed.length, tried.length)
    })
  stillShown(run)
})
