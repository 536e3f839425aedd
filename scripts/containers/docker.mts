#!/usr/bin/env -S npx tsx
// What runs in Docker, on every repository, in three patterns:
// volume: a named volume with awkward files, backed up by its directory, restored into a new volume, compared on the host
// and from inside a container;
// downtime: hooks stop a container that writes without a pause, and start it again: proven from the engine's events, also
// after a backup that failed, was terminated or was killed; no restored record is torn;
// dump: a database dumped through exec, loaded into a second container.
// Passes when everything restored equals its source and the container ran again after every backup but a killed one.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, read, step } from '#lib/sh.mts'
import { Blocked } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { listed, numbers, packBytes, says, shows, standardNeeds } from '#scripts/checks.mts'
import {
  cutShort,
  finallyFails,
  fresh,
  hidden,
  retire,
  serverWants,
  storedChange,
  unreadable,
  written,
} from '#scripts/common.mts'
import {
  chosenPatterns,
  containerOptions,
  downtime,
  needContainerSpace,
  runs,
  wholeRecords,
} from '#scripts/containers/common.mts'
import { databases, dumpRow } from '#scripts/containers/dump.mts'
import { stillAs } from '#scripts/corpus.mts'
import { container, engineReady, image, volume } from '#scripts/engine.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const wants = ['docker', ...serverWants] as const

await scenario(import.meta, { needs: standardNeeds, wants, options: containerOptions }, async (run) => {
  const { options: o, common: { seed } } = run // biome-ignore format: one line
  const patterns = chosenPatterns(run)

  step('engine')
  await engineReady(run, 'docker', true)
  await needContainerSpace(run, 'docker')
  await image(run, 'docker', o.image ?? 'debian:stable-slim', 'base', o.image !== undefined)

  if (patterns.includes('volume')) {
    step('volume')
    const name = await volume('docker', 'volume')
    if (!o.source) {
      await $({ limit: '30m' })`e2e data-gen/corpus --out corpus --gib 0.1 --churn 0 --seed ${seed}`
      await $({ limit: '30m' })`rsync -aHAXS corpus/snapshot-1/ "$(<volume.path)"/`
    } else await $({ limit: '1h' })`rsync -aHAXS ${o.source}/ "$(<volume.path)"/`
    // Owners that the host does not know, setuid, a hardlink and a symlink across directories, a hole.
    await $`docker run --rm --label vykar-e2e=$VYKAR_E2E_RUN --network none -v ${{ raw: name }}:/data --entrypoint sh $(<base.image) -c 'cd /data && mkdir -p app/etc app/var &&
  echo secret > app/etc/key && ln app/etc/key app/var/key && ln -s ../etc/key app/var/link && chown -R 70001:70002 app &&
  chmod 600 app/etc/key && echo run > app/tool && chown 70003:0 app/tool && chmod 6755 app/tool &&
  head -c 4096 /dev/urandom > app/sparse && truncate -s 64M app/sparse && chmod 1777 app/var'`
    await $`setfattr -n user.origin -v container "$(<volume.path)"/app/tool`
    run.setEnv('VYKAR_E2E_VOLUME', read('volume.path'), '$(<"$top"/volume.path)')
  }

  if (patterns.includes('downtime')) {
    step('writer')
    const name = await volume('docker', 'records')
    // A file of random bytes and its checksum, again and again. A stop waits for the end of a record, as a database would for
    // the end of a transaction.
    await $`cat > "$(<records.path)"/write.sh <<'EOF'
trap stop=1 TERM; cd /data; n=$(ls | grep -c "^[0-9]"); while [ -z "$stop" ]; do
  n=$((n + 1)); head -c 20000 /dev/urandom > $n; sha256sum $n >> SHA256SUMS; sleep 0.02; done
EOF`
    const flags = `--network none --stop-timeout 60 --entrypoint sh -v ${name}:/data`
    await container('docker', 'writer', 'base', { raw: flags }, ['/data/write.sh'])
    await $({ limit: '2m', otherwise: Blocked })`until test -s "$(<records.path)"/SHA256SUMS; do sleep 0.1; done`
    run.setEnv('VYKAR_E2E_RECORDS', read('records.path'), '$(<"$top"/records.path)')
  }

  if (patterns.includes('dump')) await databases(run, 'docker')
  await servers()

  for (const repo of run.repos) {
    if (patterns.includes('volume'))
      await run.row({ repo, variant: 'volume' }, async () => {
        step('init')
        await config`
sources:
  - path: \${VYKAR_E2E_VOLUME}
    label: volume
`
        await fresh(repo)
        const live = { raw: '"$VYKAR_E2E_VOLUME"', path: read('../volume.path') }
        await written(live, 'source.witness')

        step('backup')
        await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
        await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`
        if (!o.source) await unreadable(repo, { raw: '"$VYKAR_E2E_VOLUME"/awkward/planted' })

        step('list')
        await $`vykar --config config.yaml list -R ${repo} > list.out`
        await listed('volume')
        await $`vykar --config config.yaml snapshot list -R ${repo} $(<snapshot.id) > snapshot.list`
        await $`find "$VYKAR_E2E_VOLUME" -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
        await $`diff <(sort source.list) <(sort snapshot.list)`

        step('restore')
        const copy = await volume('docker', `restored-${repo}`)
        await $({
          limit: '1h',
        })`rm -rf lost && mkdir lost && HOME=$PWD/lost ${hidden({ raw: '"$VYKAR_E2E_VOLUME"' }, true)} vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) "$(<restored-${repo}.path)" > restored.out`
        await numbers({ raw: `"$(<restored-${repo}.path)"` }, 'backup.out', 'list.out', 'restored.out')
        await witnessed({ raw: `"$(<restored-${repo}.path)"` }, 'snapshot')

        step('compare on the host')
        const here = `restored-${repo}.path`
        await sameTree(live, { raw: `"$(<${here})"`, path: read(here) }, 'restored')

        step('compare in a container')
        const source = 'vykar-docker-volume-$VYKAR_E2E_RUN'
        for (const [name, file] of [[source, 'source'], [copy, 'restored']] as const) // biome-ignore format: one line
          await $({
            limit: '1h',
          })`docker run --rm --label vykar-e2e=$VYKAR_E2E_RUN --network none -v ${{ raw: name }}:/data:ro --entrypoint sh $(<../base.image) -c 'cd /data && find . -mindepth 1 ! -type p ! -type s ! -type c ! -type b -exec stat -c "%N %a %u %g %s %Y %h" {} + && find . -type f -exec sha256sum {} +' > ${file}.inside`
        await $`test -s source.inside && diff <(grep -vE '/(mtime-2300|hard-symlink-)' source.inside | sort) <(grep -vE '/(mtime-2300|hard-symlink-)' restored.inside | sort)  # known gaps, seen on the host`
        await stillAs(live, 'source.witness')

        step('second backup')
        await $`echo second > "$VYKAR_E2E_VOLUME"/second`
        await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > second.out`
        await $`sed -n 's/^Snapshot created: //p' second.out > second.id`
        await $`rm -rf lost && mkdir lost restored-second`
        await $({
          limit: '1h',
        })`HOME=$PWD/lost ${hidden({ raw: '"$VYKAR_E2E_VOLUME"' }, true)} vykar --config lost.yaml restore -R ${repo} $(<second.id) restored-second > restored-second.out`
        await $`vykar --config config.yaml list -R ${repo} > second.list`
        await listed('volume', 'second.out', 'second.list')
        await numbers('restored-second', 'second.out', 'second.list', 'restored-second.out')
        await sameTree(live, 'restored-second')
        await $`chmod -R u+rwX restored-second && rm -r restored-second && rm "$VYKAR_E2E_VOLUME"/second`

        step('newest deleted')
        // A cache that remembers what is gone would store nothing of it.
        await $`vykar --config config.yaml snapshot delete -R ${repo} $(<second.id)`
        await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compacted.out`
        const packs = packBytes()
        await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > renewed.out`
        await $`sed -n 's/^Snapshot created: //p' renewed.out > renewed.id`
        // What the first snapshot holds is stored already.
        await storedChange('renewed.out', undefined, packs)
        await $({
          limit: '1h',
        })`rm -rf lost && mkdir lost restored-renewed && HOME=$PWD/lost ${hidden({ raw: '"$VYKAR_E2E_VOLUME"' }, true)} vykar --config lost.yaml restore -R ${repo} $(<renewed.id) restored-renewed > restored-renewed.out`
        await $`vykar --config config.yaml list -R ${repo} > renewed.list`
        await listed('volume', 'renewed.out', 'renewed.list')
        await numbers('restored-renewed', 'renewed.out', 'renewed.list', 'restored-renewed.out')
        await sameTree(live, 'restored-renewed')
        await witnessed('restored-renewed', 'renewed')
        await $`chmod -R u+rwX restored-renewed && rm -r restored-renewed`

        step('retire')
        await retire(repo, ['snapshot', 'renewed'])
      })

    if (patterns.includes('downtime'))
      await run.row({ repo, variant: 'downtime' }, async () => {
        // podman's monitor keeps the environment of whoever started it: the mark says that it is not something left behind.
        const start = () => $`VYKAR_E2E_SERVICE=writer docker start $(<../writer.cid)`
        const ballast = () =>
          $({ limit: '10m' })`head -c ${o['ballast-mib']}M /dev/urandom > "$VYKAR_E2E_RECORDS"/ballast`
        /** The hooks of a backup leave times behind, and the engine its events: once stopped before the copy, once started after it. */
        const begun = () => $`rm -f stopped starting && date +%s.%N > from`
        const judged = async (of: string) => {
          await $`docker events --since $(<from) --until $(date +%s.%N) --filter container=$(<../writer.cid) --format '{{.TimeNano}} {{.Action}}' > events.out`
          await downtime('die', of)
        }

        step('init')
        await config`
sources:
  - path: \${VYKAR_E2E_RECORDS}
    label: records
    hooks:
      before: sh before.sh
      finally: sh finally.sh
`
        // Each leaves a time or a count behind, for the comparison.
        await $`cat > before.sh <<'EOF'
set -e
docker stop $(cat ../writer.cid)
wc -l < "$VYKAR_E2E_RECORDS"/SHA256SUMS > records
date +%s%N > stopped
EOF`
        await $`cat > finally.sh <<'EOF'
date +%s%N > starting
VYKAR_E2E_SERVICE=writer docker start $(cat ../writer.cid)
EOF`
        await fresh(repo)
        // A row that failed may have left the writer stopped.
        await start()
        await ballast()

        step('backup')
        await begun()
        await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
        await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`
        await runs('docker', '../writer.cid', 'the backup')
        await judged('that succeeded')

        step('list')
        await $`vykar --config config.yaml list -R ${repo} > list.out`
        await listed('records')

        step('restore')
        await $({
          limit: '1h',
        })`rm -rf lost && mkdir lost restored && HOME=$PWD/lost ${hidden({ raw: '"$VYKAR_E2E_RECORDS"' }, true)} vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) restored > restored.out`
        await numbers('restored', 'backup.out', 'list.out', 'restored.out')
        await witnessed('restored', 'snapshot')

        step('records')
        await wholeRecords('restored')
        await $({ limit: '30m' })`cmp "$VYKAR_E2E_RECORDS"/ballast restored/ballast`
        // The writer goes on where it was.
        await $({
          limit: '1m',
        })`until test "$(wc -l < "$VYKAR_E2E_RECORDS"/SHA256SUMS)" -gt "$(<records)"; do sleep 0.1; done`

        step('failing hook')
        await $`sed 's/^\( *before: .*\)$/\1; exit 1/' config.yaml > failing.yaml`
        await $({ limit: '1h', expect: [1] })`vykar --config failing.yaml backup -R ${repo} > failing.out 2>&1`
        await says('failing.out', /hook .* exited with 1\b/, 'the backup failed, but not for its hook')
        await $`vykar --config config.yaml list -R ${repo} > failing.list`
        await shows(1, 'failing.list', 'the hook failed')
        await runs('docker', '../writer.cid', 'a backup whose hook failed')

        step('failing backup')
        // A dump in the same source that fails: after \`before\`, before any snapshot.
        await $`sed 's/^\( *\)label: records$/&\n\1command_dumps: [{name: late, command: exit 7}]/' config.yaml > failing-late.yaml`
        await begun()
        await $({
          limit: '1h',
          expect: [1],
        })`vykar --config failing-late.yaml backup -R ${repo} > failing-late.out 2>&1`
        await says(
          'failing-late.out',
          /command_dump 'late' failed \(exit code 7\)/,
          'the backup failed, but not for its dump',
        )
        await $`vykar --config config.yaml list -R ${repo} > failing-late.list`
        await shows(1, 'failing-late.list', 'the dump failed')
        await runs('docker', '../writer.cid', 'a backup that failed')
        await judged('that failed')

        step('failing finally')
        await finallyFails(repo, async (tree) => {
          await $`test "$(docker container inspect -f '{{.State.Running}}' $(<../writer.cid))" = false  # nothing started it`
          await sameTree({ raw: '"$VYKAR_E2E_RECORDS"', path: read('../records.path') }, tree)
          await wholeRecords(tree)
        })
        await start()

        step('terminated backup')
        for (const signal of ['TERM', 'INT'] as const) {
          await ballast() // New bytes, so that there is something to copy.
          await begun()
          const ended = await cutShort(repo, signal, 'stopped', 1)
          await runs('docker', '../writer.cid', `a backup that was ended by ${signal}`)
          await judged(`ended by ${signal}`)
          fact(`after ${signal}`, `exit ${ended}, the container runs`)
        }

        step('retire')
        await retire(repo)

        // Last, since what a killed backup leaves in the repository goes with it.
        step('killed backup')
        await ballast()
        const killed = await cutShort(repo, 'KILL', 'stopped', 0)
        await $`docker container inspect -f '{{.State.Running}}' $(<../writer.cid) > running.out`
        const stays = read('running.out') !== 'true'
        fact(
          'after KILL',
          `exit ${killed}, the container ${stays ? 'stays stopped, since a killed vykar runs no hook: docker start it' : 'runs'}`,
        )
        await start()
        await runs('docker', '../writer.cid', 'it was started by hand')
      })

    if (patterns.includes('dump')) await dumpRow(run, repo)
  }
})
