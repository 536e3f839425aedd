#!/usr/bin/env -S npx tsx
// Crash: backup, restore, snapshot delete, prune, compact and check --repair are killed outright (KILL) at seeded moments of their work,
// and as soon as the repository shows a state: a session, a lock, the first pack, the journal, the new index, the new snapshot.
// Passes when after each every acknowledged snapshot is still restored to what it was, what was made meanwhile is absent or complete, the
// next backup, check and restore succeed, and no file is left that nothing will ever remove.
import { seeded } from '#data-gen/random.mts'
import { background } from '#lib/background.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { copyOf } from '#scripts/damage.mts'
import { acknowledged, conclude, drawnOptions, faultOptions, rowsWith, stillShown } from '#scripts/faults/common.mts'
import { afterwards, allThere, at, nothingForEver, violated } from '#scripts/faults/oracle.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const all = ['ack-1', 'ack-2', 'extra']
/**
 * What is killed, what comes before it so that there is work to do, states that it goes through, and the snapshots that it must leave;
 * lines see the copy of the repository.
 */
const commands: Record<
  string,
  { before: string; line: string; through: (keyof typeof states)[]; kept: string[]; finish?: string }
> = {
  backup: {
    before: 'head -c 12M /dev/urandom > source/fresh',
    line: 'backup',
    through: ['session', 'index', 'pack', 'journal', 'snapshot'],
    kept: all,
  },
  restore: { before: 'true', line: 'restore $(<ack-1.id) killed-tree', through: ['session'], kept: all },
  'snapshot delete': {
    before: 'true',
    line: 'snapshot delete $(<extra.id)',
    through: ['lock', 'index'],
    kept: ['ack-1', 'ack-2'],
  },
  prune: {
    before: "printf 'retention:\\n  keep_last: 1\\n' >> killed.yaml",
    line: 'prune',
    through: ['lock', 'index'],
    kept: ['extra'],
  },
  // Of a repository that lacks a pack: whatever was saved before, a second one comes to its end.
  'check --repair': {
    before: 'rm $(<lone) && rm -f source/extra extra.sha256',
    line: 'check --repair --yes',
    through: ['lock', 'index'],
    kept: ['ack-1', 'ack-2'],
    finish: 'check --repair --yes',
  },
  // Its packs are needed in part, so that they are written anew.
  compact: {
    before: 'DELETE',
    line: 'compact --threshold 0',
    through: ['lock', 'pack', 'index'],
    kept: ['ack-1', 'ack-2', 'half'],
  },
}
/** What the repository shows, as bash that succeeds then; `stamp` is from before the command. */
const states = {
  session: 'test -n "$(compgen -G damaged/sessions/\\*.json)"',
  lock: 'test -n "$(compgen -G damaged/locks/0\\*.json)"',
  pack: 'test -n "$(find damaged/packs -type f -cnewer stamp -print -quit)"',
  journal: 'test -n "$(compgen -G damaged/sessions/\\*.index)"',
  index: 'test damaged/index -nt stamp',
  snapshot: 'test damaged/snapshots -nt stamp',
}
/** Rounds for each command unless told: fewer where every command derives a key anew, which takes longer than all the rest. */
const usual = { auto: 5, none: 45 }

const spec = {
  needs: standardNeeds,
  wants: serverWants,
  repos: ['local'],
  options: { ...drawnOptions, ...faultOptions },
} as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { rounds: asked, round: only, 'corpus-mib': mib, seed } = run.options
  await servers()
  for (const repo of run.repos)
    for (const [command, { before, line, through, kept, finish }] of Object.entries(commands))
      for (const mode of ['auto', 'none'] as const) {
        if (only && !only.startsWith(`${command} `)) continue
        const variant = `${command.replaceAll(' ', '-')}${mode === 'none' ? '-unencrypted' : ''}`
        await row({ repo, variant }, async () => {
          await acknowledged(repo, 2, mib, mode)
          // One more, which may go.
          await $`head -c 4M /dev/urandom > source/extra && find "$REPO_LOCAL"/packs -type f | sort > packs.before`
          if (command === 'compact')
            await $`mkdir source/mixed && for n in $(seq 200); do for part in keep drop; do head -c 40K /dev/urandom > source/mixed/$part-$n; done; done`
          await witnessed('source', 'extra')
          await $`vykar --config config.yaml backup -R ${repo} > extra.out && sed -n 's/^Snapshot created: //p' extra.out > extra.id`
          await $`find "$REPO_LOCAL"/packs -type f -size +500k | sort | comm -13 packs.before - | sed 's|.*/packs/|damaged/packs/|' | head -n 1 > lone`
          if (command === 'compact') {
            await $`rm source/mixed/drop-*`
            await witnessed('source', 'half')
            await $`vykar --config config.yaml backup -R ${repo} > half.out && sed -n 's/^Snapshot created: //p' half.out > half.id`
          }
          await copyOf(repo)
          const there = at(repo, '$PWD/damaged')
          const rounds = asked || usual[mode]
          let [fired, tried, whole] = [0, 0, 0]
          const seen: Partial<Record<keyof typeof states, number>> = {}
          for (let n = 0; n < rounds; n++) {
            const name = `${command} ${n}`
            if (only && only !== name) continue
            tried++
            step(name)
            await $`rm -rf damaged killed-tree cache && cp -al copy damaged && mkdir killed-tree && cp config.yaml killed.yaml`
            if (before === 'DELETE')
              await $`${there} vykar --config killed.yaml snapshot delete -R ${repo} $(<extra.id)`
            else await $`${{ raw: before }}`
            // How long it takes when nobody kills it: the first time it is let go.
            if (!whole && !run.dry) {
              await $`rm -rf timed && cp -a damaged timed && sed 's|^cache_dir: .*|cache_dir: timed-cache|' killed.yaml > timed.yaml`
              const timed = await $({
                limit: '5m',
              })`${at(repo, '$PWD/timed')} vykar --config timed.yaml ${{ raw: line.replace(/^(snapshot delete|\S+)/, `$1 -R ${repo}`) }} > timed.out 2>&1`
              whole = timed.seconds
              await $`rm -rf timed timed-cache killed-tree && mkdir killed-tree`
            }
            const moment = whole * (0.05 + 0.9 * seeded(`crash ${seed} ${name}`)())
            const words = line.replace(/^(snapshot delete|\S+)/, `$1 -R ${repo}`)
            // Every other round waits for a state that shows, and not for a moment.
            const state = n % 2 ? through[(n >> 1) % through.length]! : undefined
            await $`touch stamp && sleep 0.01`
            const started = performance.now()
            const going = await background('killed')`env ${there} vykar --config killed.yaml ${{ raw: words }}`
            if (state)
              await $({
                limit: '5m',
              })`until ${{ raw: states[state] }} || ! kill -0 $(<killed.pid) 2> /dev/null; do :; done; kill -KILL $(<killed.pid) 2> /dev/null || true`
            else await $({ expect: 'any' })`timeout ${moment.toFixed(3)} tail --pid=$(<killed.pid) -f /dev/null`
            const ended = await going.end('KILL')
            const died = ended.code === 137
            if (state) seen[state] = (seen[state] ?? 0) + (died ? 1 : 0)
            if (!died && !state) whole = Math.max(0.02, ((performance.now() - started) / 1000) * 0.8)
            if (died) fired++
            await $`(cd damaged && find . -name '.tmp*') > torn.list`
            if (finish) await allThere(repo, kept, there)
            // Of a file that was half written it warns: killed-write-left, which is looked for below.
            if (finish)
              await $({
                limit: '5m',
                warns: /invalid ID \.tmp/,
              })`${there} vykar --config config.yaml ${{ raw: finish }} -R ${repo} > finish.out 2>&1`
            // A new pack that a killed compact has left is taken away as garbage by the next one, which has just written it again.
            if (command === 'compact') await $`find damaged/packs -type f -cnewer stamp -printf '%f\n' > left.packs`
            const destroys = died && command === 'compact' ? 'killed-compact-destroys' : ''
            const known = [...new Set([...all, ...kept])]
            await afterwards(repo, kept, undefined, there, known, '', false, destroys)
            await nothingForEver(repo, there, `kill -9 vykar ${command}`, died ? 'killed-write-left' : '')
            await allThere(repo, kept, there, destroys)
            if (command !== 'backup' || state !== 'index') continue
            // What the index names and no snapshot has is given back once it was repaired.
            await $({
              warns: /invalid ID \.tmp/,
            })`${there} vykar --config config.yaml list -R ${repo} | grep -oE '^ *[0-9a-f]{8} ' | ${there} xargs vykar --config config.yaml snapshot delete -R ${repo} && ${there} vykar --config config.yaml check -R ${repo} --repair --yes > repair.out 2>&1 && ${there} vykar --config config.yaml compact -R ${repo} > last.out && find damaged/packs -type f -size +0 > orphans`
            await check('test ! -s orphans', () => {
              const [orphan] = read('orphans').split('\n')
              if (orphan)
                violated('7: nothing is left for ever', `no snapshot is left, check --repair and compact have run, and ${orphan} is there`, 'vykar check --repair --yes; vykar compact') // biome-ignore format: one line
            })
          }
          fact('killed in mid-work', `${fired} of ${tried}`)
          for (const [state, times] of Object.entries(seen)) fact(`killed as the repository showed: ${state}`, times)
          await $`rm -rf damaged copy killed-tree source`
          await conclude(
            fired,
            tried,
            through.filter((state) => seen[state] === 0).map((state) => `${command}, ${state}`),
          )
        })
      }
  stillShown(run)
})
