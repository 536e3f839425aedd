#!/usr/bin/env -S npx tsx
// Network: a proxy on loopback (scripts/faults/proxy.mts) in front of REST, S3 and SFTP resets connections, answers 401 to 507, delays, loses,
// doubles, shortens and withholds; a server is killed and restarted in the middle of an upload, runs full, or takes no deletes.
// Passes when a fault that goes away costs nothing, one that stays is said with an exit code within the limit, every acknowledged snapshot
// is still restored to what it was, and all works again.
import { background } from '#lib/background.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, type Output, read, step, undo } from '#lib/sh.mts'
import { ownServer, standardNeeds } from '#scripts/checks.mts'
import { contents, serverWants } from '#scripts/common.mts'
import {
  acknowledged,
  afterwards,
  allThere,
  at,
  clearOthers,
  conclude,
  faultOptions,
  lastOf,
  restoredAs,
  violated,
} from '#scripts/faults/common.mts'
import { addressOf, freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'

/** A fault: what runs into it, the proxy's rule, and whether vykar must come through, must fail, or may do either. */
type Fault = [
  name: string,
  verb: 'backup' | 'restore' | 'delete' | 'compact',
  rule: string,
  must: 'work' | 'fail' | 'any',
]
const http: Fault[] = [
  ['reset while a pack is sent', 'backup', 'PUT /packs/ 2+1 reset 100000', 'work'],
  ['pack stored, answer lost', 'backup', 'PUT /packs/ 2+1 unheard', 'work'],
  ['pack stored twice', 'backup', 'PUT /packs/ 2+1 twice', 'work'],
  ['pack stored late', 'backup', 'PUT /packs/ 1+1 late 2000', 'work'],
  ['index stored, answer lost', 'backup', 'PUT /index 1+1 unheard', 'any'],
  ['index stored late', 'backup', 'PUT /index 1+1 late 2000', 'work'],
  ['snapshot stored, answer lost', 'backup', 'PUT /snapshots/ 1+1 unheard', 'any'],
  ['500 once', 'backup', 'PUT /packs/ 1+1 status 500', 'work'],
  ['503 once', 'backup', 'PUT /packs/ 1+1 status 503', 'work'],
  ['429 once', 'backup', 'PUT /packs/ 1+1 status 429', 'work'],
  ['401 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 401', 'fail'],
  ['403 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 403', 'fail'],
  ['507 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 507', 'fail'],
  ['503 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 503', 'fail'],
  ['503 for every snapshot', 'backup', 'PUT /snapshots/ 1+9999 status 503', 'fail'],
  ['503 for every index', 'backup', 'PUT /index 1+9999 status 503', 'fail'],
  ['index short', 'backup', 'GET /index 1+9999 short 100', 'any'],
  ['slow', 'backup', '* . 1+99999 delay 20', 'work'],
  ['one second without network', 'backup', 'PUT /packs/ 2+1 outage 1000', 'work'],
  ['503 once', 'restore', 'GET /packs/ 1+1 status 503', 'work'],
  ['404 for a pack', 'restore', 'GET /packs/ 1+1 status 404', 'any'],
  ['answer cut', 'restore', 'GET /packs/ 1+1 cut 1000', 'work'],
  ['answer short', 'restore', 'GET /packs/ 1+1 short 1000', 'any'],
  ['every answer short', 'restore', 'GET /packs/ 1+9999 short 1000', 'fail'],
  ['reset', 'restore', 'GET /packs/ 1+1 reset 1000', 'work'],
  ['deleted, answer lost', 'delete', 'DELETE . 1+1 unheard', 'any'],
  ['deleted twice', 'delete', 'DELETE . 1+1 twice', 'work'],
  ['503 once', 'delete', 'DELETE . 1+1 status 503', 'work'],
  ['403', 'delete', 'DELETE . 1+9999 status 403', 'fail'],
  ['503 for every delete', 'compact', 'DELETE . 1+9999 status 503', 'any'],
  ['done, answer lost', 'compact', '* . 4+1 unheard', 'any'],
  ['reset', 'compact', '* /packs 1+1 reset 100', 'any'],
]
const tcp: Fault[] = [
  ['reset once', 'backup', 'TCP . 1+1 reset 3000000', 'any'],
  ['every connection reset', 'backup', 'TCP . 1+9999 reset 300000', 'fail'],
  ['slow', 'backup', 'TCP . 1+9999 delay 5', 'work'],
  ['reset once', 'restore', 'TCP . 1+1 reset 1000000', 'any'],
  ['every connection reset', 'restore', 'TCP . 1+9999 reset 300000', 'fail'],
  ['silent after 1 MB', 'backup', 'TCP . 1+1 hole 1000000', 'any'],
  ['reset', 'compact', 'TCP . 1+1 reset 50000', 'any'],
]
/** Only with --long: vykar's own limits are 5 minutes for each body. */
const long: Fault[] = [
  ['no answer', 'backup', 'PUT /packs/ 2+1 hole 600', 'any'],
  ['no answer', 'restore', 'GET /packs/ 1+1 hole 600', 'any'],
]

const options = {
  ...faultOptions,
  long: { kind: 'flag', help: 'a server that does not answer, too: 10 minutes each' },
} as const
const spec = { needs: standardNeeds, wants: serverWants, repos: ['rest', 's3', 'sftp'], options } as const

await scenario(import.meta, spec, async (run) => {
  const { round: only, 'corpus-mib': mib } = run.options
  await servers()
  for (const repo of run.repos) {
    await run.row({ repo, variant: 'proxy' }, async () => {
      ownServer()
      const ids = await acknowledged(repo, 2, Math.min(mib, 12))
      const { host, port: up } = addressOf(run.endpoint(repo).url)
      const port = run.dry ? 18586 : await freePort(0)
      const variable = `REPO_${repo.toUpperCase()}`
      const [here, there] = [at(repo, `"$${variable}"`), at(repo, `"\${${variable}/:${up}/:${port}}"`)]
      // It tries again four times within a second, and takes a silent SFTP server for dead after five.
      await $`sed 's|^\( *\)max_pack_size:.*|&\n\1retry: {max_retries: 4, retry_delay_ms: 100, retry_max_delay_ms: 1000}|; s|^\( *\)sftp_known_hosts:.*|\1sftp_known_hosts: proxied.hosts\n\1sftp_timeout: 5|' config.yaml > proxied.yaml`
      if (repo === 'sftp')
        await $`sed 's|\]:[0-9]*|]:${{ raw: String(port) }}|' ../server-sftp/known_hosts > proxied.hosts`
      let [fired, tried] = [0, 0]
      for (const [what, verb, rule, must] of [
        ...(repo === 'sftp' ? tcp : http),
        ...(run.options.long && repo !== 'sftp' ? long : []),
      ]) {
        const name = `${verb}: ${what}`
        if (only && only !== name) continue
        tried++
        step(name)
        await $`head -c 12M /dev/urandom > source/fresh && rm -rf hits met-tree && mkdir met-tree`
        if (verb === 'delete' || verb === 'compact') {
          await $`vykar --config config.yaml backup -R ${repo} > extra.out && sed -n 's/^Snapshot created: //p' extra.out > extra.id`
          if (verb === 'compact') await $`vykar --config config.yaml snapshot delete -R ${repo} $(<extra.id)`
        }
        const proxy = await background(
          'proxy',
        )`e2e faults/proxy --listen ${port} --to ${host}:${up} --hits hits ${{ raw: repo === 'sftp' ? '--tcp' : '' }} ${rule}`
        await $({ limit: '30s' })`until grep -q → proxy.out; do sleep 0.05; done`
        const words = {
          backup: `backup -R ${repo}`,
          restore: `restore -R ${repo} $(<ack-1.id) met-tree`,
          delete: `snapshot delete -R ${repo} $(<extra.id)`,
          compact: `compact -R ${repo} --threshold 0`,
        }[verb]
        const met = await $({
          limit: '20m',
          expect: 'any',
        })`rm -rf lost && mkdir lost && HOME=$PWD/lost ${there} timeout -k 5 ${rule.includes('hole 600') ? 900 : repo === 'sftp' ? 60 : 180} vykar --config proxied.yaml ${{ raw: words }} > met.out 2>&1`
        await proxy.end('TERM')
        await $`cat hits | wc -l > hits.count`
        if (read('hits.count') !== '0') fired++
        fact(
          name,
          `${read('hits.count')} hits, exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`,
        )
        judge(name, verb, met, must, repo === 'sftp' ? 'sftp-reset-hangs' : '')
        if (verb === 'restore' && met.code === 0) {
          const same = await $({
            expect: 'any',
          })`(cd met-tree && sha256sum --check --quiet --strict ../ack-1.sha256 > ../wrong.out 2>&1) && test "$(find met-tree -type f -printf x | wc -c)" = "$(wc -l < ack-1.sha256)"`
          if (same.code)
            violated(
              '3: exit 0 means right',
              name,
              `restore exits 0 with wrong data: ${lastOf('wrong.out')}`,
              `vykar ${verb}`,
            )
        }
        await afterwards(
          repo,
          ids,
          name,
          verb === 'backup' ? met : undefined,
          here,
          verb === 'delete' ? [...ids, 'extra'] : ids,
        )
        await clearOthers(repo, ids)
      }
      const name = 'compact: stale LIST'
      if (repo !== 'sftp' && (!only || only === name)) {
        tried++
        step(name)
        // Every listing is answered as it was the first time: a snapshot that has been made since is in none.
        await $`rm -f hits`
        const proxy = await background(
          'proxy',
        )`e2e faults/proxy --listen ${port} --to ${host}:${up} --hits hits 'GET list 1+99999 stale'`
        await $({ limit: '30s' })`until grep -q → proxy.out; do sleep 0.05; done`
        await $`rm -rf lost && mkdir lost && HOME=$PWD/lost ${there} vykar --config proxied.yaml list -R ${repo} > stale.list && head -c 4M /dev/urandom > source/stale`
        await contents('source', 'stale')
        await $`vykar --config config.yaml backup -R ${repo} > stale.out && sed -n 's/^Snapshot created: //p' stale.out > stale.id`
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`HOME=$PWD/lost ${there} timeout -k 5 180 vykar --config proxied.yaml compact -R ${repo} --threshold 0 > met.out 2>&1`
        await proxy.end('TERM')
        await $`grep -c snapshots hits > hits.count || true`
        if (Number(read('hits.count')) > 1) fired++
        fact(
          name,
          `${read('hits.count')} stale listings of snapshots, exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`,
        )
        judge(name, 'compact', met, 'any')
        await afterwards(repo, [...ids, 'stale'], name, undefined, here)
        await clearOthers(repo, ids)
      }
      await $`rm -rf source corpus met-tree tree`
      await conclude(fired, tried)
    })
    if (repo === 'rest') await ofServer(repo, Math.min(mib, 12))
  }

  /** What a server itself does: it is killed and comes back, runs full, has a quota, takes no deletes. */
  async function ofServer(repo: string, mib: number): Promise<void> {
    await run.row({ repo, variant: 'server' }, async () => {
      ownServer()
      const ids = await acknowledged(repo, 2, mib)
      const port = run.dry ? 18587 : await freePort(0)
      const [here, second] = [at(repo, '"$REPO_REST"'), at(repo, `http://127.0.0.1:${port}`)]
      const start = async (name: string, words: string) => {
        const server = await background(
          name,
        )`env VYKAR_TOKEN=$VYKAR_E2E_REST_TOKEN vykar-server --listen 127.0.0.1:${port} ${{ raw: words }}`
        await $({ limit: '30s' })`until curl -fs -o /dev/null http://127.0.0.1:${port}/health; do sleep 0.05; done`
        return server
      }
      const tried: string[] = []
      const chosen = (name: string) => {
        if (only && only !== name) return false
        step(name)
        tried.push(name)
        return true
      }
      let fired = 0

      if (chosen('killed and restarted')) {
        await $`head -c 48M /dev/urandom > source/fresh`
        const first = await start('first-server', '--data-dir "$FILES_REST"')
        await $`sed 's|^\( *\)max_pack_size:.*|&\n\1retry: {max_retries: 5, retry_delay_ms: 500}|' config.yaml > retry.yaml`
        await $`find "$FILES_REST"/packs -type f | wc -l > packs.before`
        const going = await background('going')`env ${second} vykar --config retry.yaml backup -R ${repo}`
        await $`until (($(find "$FILES_REST"/packs -type f | wc -l) > $(<packs.before) + 2)) || ! kill -0 $(<going.pid) 2> /dev/null; do sleep 0.01; done`
        if (going.running()) fired++
        await first.end('KILL')
        await $`sleep 0.5`
        const again = await start('again-server', '--data-dir "$FILES_REST"')
        const ended = await going.done([0, 1])
        await again.end('TERM')
        fact('killed and restarted', `backup ended with exit ${ended.code}`)
        if (ended.code)
          violated(
            'a fault that goes away costs nothing',
            'killed and restarted',
            `the server was away for a second, the backup ended with exit ${ended.code}`,
            'vykar backup',
          )
        await afterwards(repo, ids, 'killed and restarted', undefined, here)
        await clearOthers(repo, ids)
        await $`rm -f source/fresh`
      }

      if (chosen('disk of the server full')) {
        await $`mkdir small`
        undo`! mountpoint -q small || umount small`
        // The server keeps 50 MiB of its file system free.
        await $`mount -t tmpfs -o size=100m tmpfs small && cp -a "$FILES_REST" small/data && head -c 64M /dev/urandom > source/fresh`
        const server = await start('full-server', '--data-dir small/data')
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`${second} vykar --config config.yaml backup -R ${repo} > full.out 2>&1`
        if (met.code) fired++
        fact('disk of the server full', `exit ${met.code}: ${lastOf('full.out').slice(0, 100)}`)
        judge('disk of the server full', 'backup', met, 'fail')
        await server.end('TERM')
        await $`dd if=/dev/zero of=small/filler bs=64k status=none 2> /dev/null || true`
        const fuller = await start('fuller-server', '--data-dir small/data')
        const how = await restoredAs(repo, 'ack-1', second)
        fact('restore from a full server', how)
        if (how !== 'right')
          violated(
            '1: acknowledged snapshots restore',
            'disk of the server full',
            `while the server's disk is full a restore is ${how}: ${lastOf('restore.out')}`,
            'vykar restore',
            'full-server-refuses-restore',
          )
        await fuller.end('TERM')
        await $`rm small/filler && mount -o remount,size=400m small`
        const roomy = await start('roomy-server', '--data-dir small/data')
        await afterwards(repo, ids, 'disk of the server full', met, second)
        await roomy.end('TERM')
        await $`umount small && rm -f source/fresh`
      }

      if (chosen('quota')) {
        await $`rm -rf data && cp -a "$FILES_REST" data && head -c 48M /dev/urandom > source/fresh`
        const server = await start('quota-server', '--data-dir data --quota 40M')
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`${second} vykar --config config.yaml backup -R ${repo} > quota.out 2>&1`
        await $`du -sm data | cut -f1 > data.size`
        if (met.code) fired++
        fact('quota', `exit ${met.code}: ${lastOf('quota.out').slice(0, 100)}; ${read('data.size')} MiB of 40`)
        judge('quota', 'backup', met, 'fail')
        if (Number(read('data.size')) > 44)
          violated(
            'a quota holds',
            'quota',
            `${read('data.size')} MiB are in a repository with a quota of 40M`,
            'vykar-server --quota 40M',
          )
        await server.end('TERM')
        const free = await start('free-server', '--data-dir data')
        await $`rm -f source/fresh`
        await afterwards(repo, ids, 'quota', met, second)
        await free.end('TERM')
      }

      if (chosen('a week on an append-only server')) {
        await $`rm -rf data && cp -a "$FILES_REST" data`
        const server = await start('append-server', '--data-dir data --append-only')
        const week = [...ids]
        for (let day = 1; day <= 7; day++) {
          const id = `day-${day}`
          await $`head -c 300K /dev/urandom > source/${id}`
          await contents('source', id)
          await $`${second} vykar --config config.yaml backup -R ${repo} > ${id}.out && sed -n 's/^Snapshot created: //p' ${id}.out > ${id}.id`
          week.push(id)
        }
        const refused = await $({
          expect: 'any',
        })`${second} vykar --config config.yaml snapshot delete -R ${repo} $(<day-1.id) > append.out 2>&1`
        fired++
        fact('delete on an append-only server', `exit ${refused.code}: ${lastOf('append.out').slice(0, 100)}`)
        if (refused.code === 0)
          violated(
            'append-only takes no delete',
            'append-only',
            'snapshot delete exits 0',
            'vykar-server --append-only; vykar snapshot delete',
          )
        await allThere(repo, week, 'append-only', second)
        const checked = await $({
          expect: 'any',
        })`${second} vykar --config config.yaml check -R ${repo} --verify-data > append.check 2>&1`
        if (checked.code)
          violated(
            '4: works again',
            'append-only',
            `check exits ${checked.code}: ${lastOf('append.check')}`,
            'vykar check',
          )
        await server.end('TERM')
      }
      await $`rm -rf data source corpus tree`
      await conclude(fired, tried.length)
    })
  }
})

/** What the fault itself must have led to. */
function judge(name: string, verb: string, { code }: Output, must: Fault[3], hangs = ''): void {
  if (code === 124 || code === 137)
    return violated('7: everything ends', name, `${verb} did not end within its limit`, `vykar ${verb}`, hangs)
  if (must === 'work' && code !== 0)
    violated(
      'a fault that goes away costs nothing',
      name,
      `${verb} exits ${code}: ${lastOf('met.out')}`,
      `vykar ${verb}`,
    )
  if (must === 'fail' && code === 0)
    violated('2: exit 0 means complete', name, `${verb} exits 0 although it could not be done`, `vykar ${verb}`)
}
