#!/usr/bin/env -S npx tsx
// Clock: one client whose clock is seconds to years ahead or behind (libfaketime), a jump in the middle of a backup, and what every rule of
// retention keeps of snapshots whose dates span years.
// Passes when backups are whole whatever the clock says, other clients can work with the repository before and after, prune keeps exactly
// what the documented rules keep, and every acknowledged snapshot is still restored to what it was.
import { seeded } from '#data-gen/random.mts'
import { background } from '#lib/background.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { quote } from '#lib/transcript.mts'
import { Skipped } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { copyOf } from '#scripts/damage.mts'
import { acknowledged, conclude, faultOptions, rowsWith, stillShown, within } from '#scripts/faults/common.mts'
import { afterwards, at, clearOthers, inTheEnd, lastOf, restoredAs, violated } from '#scripts/faults/oracle.mts'
import { kept, type Rules } from '#scripts/faults/retention.mts'
import { parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'
import { contents, witnessed } from '#scripts/witnessed.mts'

/** How far a client's clock is off. */
const offsets = ['-400d', '-40d', '-1d', '-1h', '-30s', '+30s', '+1h', '+1d', '+40d', '+400d']
/** Rules of retention, and combinations of them. */
const rules: Rules[] = [
  { keep_last: 1 },
  { keep_last: 7 },
  { keep_hourly: 5 },
  { keep_daily: 6 },
  { keep_weekly: 5 },
  { keep_monthly: 6 },
  { keep_yearly: 3 },
  { keep_within: '2d' },
  { keep_within: '8w' },
  { keep_within: '1y' },
  { keep_last: 2, keep_daily: 3, keep_weekly: 2, keep_monthly: 2, keep_yearly: 2 },
  { keep_hourly: 2, keep_within: '30d' },
]

/** Seconds since 1970 of the `Start` or `End` of a snapshot, from what `snapshot info` printed. */
const timeOf = (what: 'Start' | 'End') =>
  Date.parse(
    new RegExp(`^ *${what} time +(\\S+ \\S+)`, 'm').exec(read('info.out'))?.[1]?.replace(/ (.*)/, 'T$1Z') ?? '',
  ) / 1000
/** Seconds of an offset such as `-1d`. */
const secondsOf = (offset: string) =>
  Number(offset.slice(0, -1)) * { d: 86400, h: 3600, s: 1 }[offset.slice(-1) as 'd']!

const options = {
  ...faultOptions,
  snapshots: { kind: 'number', help: 'snapshots over three years that retention is tried on', default: 40, min: 5 },
} as const
const spec = { needs: standardNeeds, wants: [...serverWants, 'faketime'], repos: ['local'], options } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { round: only, 'corpus-mib': mib, snapshots, seed } = run.options
  await servers()
  for (const repo of run.repos) {
    const here = at(repo, `"$REPO_${repo.toUpperCase()}"`)
    const needFaketime = () => {
      if (!run.dry && !which('faketime')) throw new Skipped('faketime is missing: apt-get install -y faketime')
    }

    await row({ repo, variant: 'offset' }, async () => {
      needFaketime()
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      let [fired, tried] = [0, 0]
      for (const offset of offsets) {
        const name = `clock ${offset}`
        if (only && only !== name) continue
        tried++
        step(name)
        await $`head -c 1M /dev/urandom > source/fresh`
        await witnessed('source', 'faked')
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`date +%s > met.begun; faketime -f ${offset} timeout -k 5 ${within(120)} vykar --config config.yaml backup -R ${repo} > met.out 2>&1`
        await $`sed -n 's/^Snapshot created: //p' met.out > faked.id; test ! -s faked.id || vykar --config config.yaml snapshot info -R ${repo} $(<faked.id) > info.out`
        await check('# it was made at that time', () => {
          const shown = read('faked.id') ? timeOf('Start') : Number.NaN
          if (Math.abs(shown - Number(read('met.begun')) - secondsOf(offset)) < 15) fired++
          fact(
            name,
            `exit ${met.code}, shown as ${Number.isNaN(shown) ? 'nothing' : new Date(shown * 1000).toISOString()}${met.code ? `: ${lastOf('met.out').slice(0, 80)}` : ''}`,
          )
        })
        if (met.code)
          violated('a clock that is off costs nothing', `backup exits ${met.code}: ${lastOf('met.out')}`, `faketime -f ${offset} vykar backup`) // biome-ignore format: one line
        else if ((await restoredAs(repo, 'faked', here)) !== 'right')
          violated('2: exit 0 means complete', 'the snapshot is not complete', `faketime -f ${offset} vykar backup`)
        // Maintenance by the client that is off, and by one that is not.
        const pruned = await $({
          expect: 'any',
        })`faketime -f ${offset} timeout -k 5 ${within(120)} vykar --config config.yaml compact -R ${repo} > compact.out 2>&1`
        if (pruned.code) violated('a clock that is off costs nothing', `compact exits ${pruned.code}: ${lastOf('compact.out')}`, `faketime -f ${offset} vykar compact`) // biome-ignore format: one line
        await afterwards(repo, ids, undefined, here, [...ids, 'faked'])
        await clearOthers(repo, ids)
      }
      await inTheEnd(repo, ids)
      await conclude(fired, tried)
    })

    await row({ repo, variant: 'jump' }, async () => {
      needFaketime()
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      let [fired, tried] = [0, 0]
      for (const jump of ['-1d', '-1h', '+1h', '+7h', '+40d']) {
        const name = `jump ${jump}`
        if (only && only !== name) continue
        tried++
        step(name)
        await $`rm -f started stop stopped info.out && { sed '/^sources:/,/^[a-z]/{/^sources:/d; /^ /d}' config.yaml; printf 'sources:\n  - label: jump\n    command_dumps:\n      - {name: slow, command: "echo begin; date +%%s > started; until test -e stop; do sleep 0.05; done; date +%%s > stopped; echo end"}\n'; } > jump.yaml`
        // libfaketime reads the offset from a file, anew each time.
        await $`echo +0 > clock && find / -xdev -name 'libfaketime.so.1' -print -quit 2> /dev/null > faketime.path`
        const task = await background(
          'jump',
        )`env LD_PRELOAD=$(<faketime.path) FAKETIME_TIMESTAMP_FILE=$PWD/clock FAKETIME_NO_CACHE=1 timeout -k 5 ${within(120)} vykar --config jump.yaml backup -R ${repo}`
        await $({
          limit: '60s',
        })`until test -s started || ! kill -0 $(<jump.pid) 2> /dev/null; do sleep 0.01; done; echo ${jump} > clock; touch stop`
        const ended = await task.done([0, 1])
        fact(name, `exit ${ended.code}${ended.code ? `: ${lastOf('jump.out').slice(0, 100)}` : ''}`)
        await $`sed -n 's/^Snapshot created: //p' jump.out > jumped.id; rm -rf dumps && mkdir -p dumps/vykar-dumps && printf 'begin\nend\n' > dumps/vykar-dumps/slow`
        await contents('dumps', 'jumped')
        // Seen in the snapshot's own times; of a backup that failed in those of its dump.
        await $`test ! -s jumped.id || vykar --config config.yaml snapshot info -R ${repo} $(<jumped.id) > info.out`
        await check('# the clock has jumped in the middle', () => {
          const jumped = ended.code
            ? Number(read('stopped')) - Number(read('started'))
            : timeOf('End') - timeOf('Start')
          if (Math.abs(jumped - secondsOf(jump)) < 15) fired++
        })
        if (ended.code) violated('4: works', `a backup exits ${ended.code} where the clock jumps`, 'vykar backup')
        else if ((await restoredAs(repo, 'jumped', here)) !== 'right')
          violated('2: exit 0 means complete', 'the snapshot is not complete', 'vykar backup')
        await afterwards(repo, ids, undefined, here, ended.code === 0 ? [...ids, 'jumped'] : ids)
        await clearOthers(repo, ids)
      }
      await inTheEnd(repo, ids)
      await conclude(fired, tried)
    })

    if (repo !== 'local') continue
    await row({ repo, variant: 'retention' }, async () => {
      needFaketime()
      await acknowledged(repo, 1, 1)
      step('three years')
      const random = seeded(`clock ${seed}`)
      const now = Date.UTC(2026, 5, 15, 12)
      // Denser towards the end, as real ones are; some share an hour, a day, a week; some lie at the edges of a day, month and year.
      const dates = Array.from({ length: snapshots }, () => now - Math.floor(random() ** 3 * 3 * 365 * 86_400) * 1000)
      dates.push(Date.UTC(2024, 11, 31, 23, 59), Date.UTC(2025, 0, 1, 0, 1), Date.UTC(2024, 11, 29, 12), Date.UTC(2026, 5, 14, 23, 59), Date.UTC(2026, 5, 15, 0, 1)) // biome-ignore format: the edges
      dates.sort((a, b) => a - b)
      await $`vykar --config config.yaml snapshot delete -R ${repo} $(<ack-1.id)`
      await $`rm -rf source/* && echo retained > source/file && export TZ=UTC && for t in ${dates.map((date) => new Date(date).toISOString().slice(0, 19).replace('T', ' '))}; do faketime -f "@$t" vykar --config config.yaml backup -R ${repo} > one.out 2>&1 && echo "$(sed -n 's/^Snapshot created: //p' one.out) $t" || exit 1; done > made`
      await copyOf(repo)
      let tried = 0
      for (const rule of rules) {
        const name = Object.entries(rule).map(([key, value]) => `${key} ${value}`).join(', ') // biome-ignore format: one line
        if (only && only !== name) continue
        tried++
        step(name)
        await $`rm -rf damaged lost && cp -al copy damaged && mkdir lost && { cat config.yaml; printf '%s\n' retention: ${Object.entries(rule).map(([key, value]) => `  ${key}: ${value}`)}; } > prune.yaml`
        const moment = new Date(now + 3600_000).toISOString().slice(0, 19).replace('T', ' ')
        const there = at(repo, '$PWD/damaged')
        await $`export TZ=UTC && ${there} HOME=$PWD/lost faketime -f ${`@${moment}`} vykar --config prune.yaml prune -R ${repo} > prune.out 2>&1`
        await $`export TZ=UTC && ${there} HOME=$PWD/lost vykar --config lost.yaml list -R ${repo} > prune.list`
        const times = kept(dates.map((date, n) => ({ id: String(n), at: date })), rule, now + 3600_000).map((one) => quote(new Date(one.at).toISOString().slice(0, 19).replace('T', ' '))) // biome-ignore format: one line
        const hand = `diff <(printf '%s\\n' ${times.join(' ')} | sort) <(grep -oE '^ *[0-9a-f]{8} ' prune.list | tr -d ' ' | grep -Ff - made | cut -c 10- | sort)`
        await check(hand, () => {
          const made = read('made').split('\n').map((line) => ({ id: line.slice(0, 8), at: Date.parse(`${line.slice(9).replace(' ', 'T')}Z`) })) // biome-ignore format: one line
          const right = kept(made, rule, now + 3600_000)
          const there = new Set(parseList(read('prune.list')).map(({ id }) => id))
          const date = (id: string) => new Date(made.find((one) => one.id === id)?.at ?? 0).toISOString()
          const lost = right.filter(({ id }) => !there.has(id))
          const extra = [...there].filter((id) => !right.some((one) => one.id === id))
          fact(name, `${there.size} of ${made.length} kept`)
          const told = `Pruned ${made.length - there.size} snapshots (kept ${there.size})`
          if (!read('prune.out').includes(told)) violated('what prune says is what it did', `"${told}" is not what prune said: ${lastOf('prune.out')}`, 'vykar prune') // biome-ignore format: one line
          if (lost.length) violated('5: prune removes only what the rules do not keep', `${lost.length} snapshots are gone that must be kept, such as that of ${date(lost[0]!.id)}`, 'vykar prune') // biome-ignore format: one line
          if (extra.length) violated('prune removes what the rules do not keep', `${extra.length} snapshots are kept that no rule keeps, such as that of ${date(extra[0]!)}`, 'vykar prune') // biome-ignore format: one line
        })
        // What is kept can be restored.
        await $`if id=$(grep -oE -m 1 '^ *[0-9a-f]{8} ' prune.list); then rm -rf lost tree && mkdir lost tree && ${there} HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $id tree > restore.out && diff -r source tree; fi`
      }
      await $`rm -rf damaged copy`
      await conclude(tried, tried)
    })
  }
  stillShown(run)
})
