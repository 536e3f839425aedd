#!/usr/bin/env -S npx tsx
// Network: a proxy on loopback (scripts/faults/proxy.mts) in front of REST, S3 and SFTP resets connections, answers 401 to 507, delays, loses,
// doubles, shortens and withholds.
// Passes when a fault that goes away costs nothing, one that stays is said with an exit code within the limit, every acknowledged snapshot
// is still restored to what it was, and all works again.
import { background } from '#lib/background.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, note, read, step } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { acknowledged, conclude, faultOptions, judge, rowsWith, stillShown, within } from '#scripts/faults/common.mts'
import { afterwards, at, clearOthers, inTheEnd, lastOf, violated } from '#scripts/faults/oracle.mts'
import { ownServer } from '#scripts/guard.mts'
import { addressOf, answering, freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'
import { listing, witnessed } from '#scripts/witnessed.mts'

/** A fault: what runs into it, the proxy's rules, and whether vykar must come through, must fail, or may do either. */
type Fault = [
  name: string,
  verb: 'backup' | 'restore' | 'check' | 'delete' | 'compact' | 'repair',
  rule: string,
  must: 'work' | 'fail' | 'any',
]
const http: Fault[] = [
  ['reset while a pack is sent', 'backup', 'PUT /packs/ 2+1 reset 100000', 'work'],
  ['pack stored, answer lost', 'backup', 'PUT /packs/ 2+1 unheard', 'work'],
  ['pack stored twice', 'backup', 'PUT /packs/ 2+1 twice', 'work'],
  ['pack stored late', 'backup', 'PUT /packs/ 1+1 late 2000', 'work'],
  ['index stored, answer lost', 'backup', 'PUT /index(\\?|$) 1+1 unheard', 'any'],
  ['index stored late', 'backup', 'PUT /index(\\?|$) 1+1 late 2000', 'work'],
  ['snapshot stored twice', 'backup', 'PUT /snapshots/ 1+1 twice', 'work'],
  ['snapshot stored late', 'backup', 'PUT /snapshots/ 1+1 late 2000', 'any'],
  ['snapshot stored, answer lost', 'backup', 'PUT /snapshots/ 1+1 unheard', 'any'],
  ['500 once', 'backup', 'PUT /packs/ 1+1 status 500', 'work'],
  ['503 once', 'backup', 'PUT /packs/ 1+1 status 503', 'work'],
  ['429 once', 'backup', 'PUT /packs/ 1+1 status 429', 'work'],
  ['401 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 401', 'fail'],
  ['403 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 403', 'fail'],
  ['507 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 507', 'fail'],
  ['503 from the third pack', 'backup', 'PUT /packs/ 3+9999 status 503', 'fail'],
  ['503 for every snapshot', 'backup', 'PUT /snapshots/ 1+9999 status 503', 'fail'],
  ['503 for every index', 'backup', 'PUT /index(\\?|$) 1+9999 status 503', 'fail'],
  ['index short', 'backup', 'GET /index(\\?|$) 1+9999 short 100', 'any'],
  ['slow', 'backup', '* . 1+99999 delay 20', 'work'],
  ['4 MB a second', 'backup', '* . 1+99999 rate 4000000', 'work'],
  ['one second without network', 'backup', 'PUT /packs/ 2+1 outage 1000', 'work'],
  ['503 once', 'restore', 'GET /packs/ 1+1 status 503', 'work'],
  ['404 for a pack', 'restore', 'GET /packs/ 1+1 status 404', 'any'],
  ['answer cut', 'restore', 'GET /packs/ 1+1 cut 1000', 'work'],
  ['answer short', 'restore', 'GET /packs/ 1+1 short 1000', 'any'],
  ['every answer short', 'restore', 'GET /packs/ 1+9999 short 1000', 'fail'],
  ['reset', 'restore', 'GET /packs/ 1+1 reset 1000', 'work'],
  ['503 for every pack', 'check', 'GET /packs/ 1+9999 status 503 | POST verify 1+9999 status 503', 'fail'],
  ['500 once', 'check', 'GET /packs/ 1+1 status 500 | POST verify 1+1 status 500', 'work'],
  ['LIST short', 'compact', 'GET list 1+9999 short 200', 'any'],
  ['deleted, answer lost', 'delete', 'DELETE . 1+1 unheard', 'any'],
  ['deleted twice', 'delete', 'DELETE . 1+1 twice', 'work'],
  ['deleted late', 'delete', 'DELETE . 1+1 late 2000', 'any'],
  ['pack deleted late', 'compact', 'DELETE /packs/ 1+1 late 2000 | POST (repack|delete) 1+1 late 2000', 'any'],
  ['503 once', 'delete', 'DELETE . 1+1 status 503', 'work'],
  ['403', 'delete', 'DELETE . 1+9999 status 403', 'fail'],
  ['503 for every delete', 'compact', 'DELETE . 1+9999 status 503', 'any'],
  // A REST server is told to repack; from S3 packs are deleted, one by one or many at once.
  ['done, answer lost', 'compact', 'POST (repack|delete) 1+1 unheard | DELETE /packs/ 1+1 unheard', 'any'],
  ['reset', 'compact', 'POST (repack|delete) 1+1 reset 20 | DELETE /packs/ 1+1 reset 0', 'any'],
  ['503 for every pack', 'repair', 'GET /packs/ 1+9999 status 503', 'any'],
]
const tcp: Fault[] = [
  ['reset once', 'backup', 'TCP . 1+1 reset 300000', 'any'],
  ['every connection reset', 'backup', 'TCP . 1+9999 reset 300000', 'fail'],
  ['slow', 'backup', 'TCP . 1+9999 delay 5', 'work'],
  ['4 MB a second', 'backup', 'TCP . 1+9999 rate 4000000', 'work'],
  ['reset once', 'restore', 'TCP . 1+1 reset 30000', 'any'],
  ['every connection reset', 'restore', 'TCP . 1+9999 reset 300000', 'fail'],
  ['silent after 1 MB', 'backup', 'TCP . 1+1 hole 1000000', 'any'],
  ['reset', 'compact', 'TCP . 1+1 reset 5000', 'any'],
  ['every connection reset', 'repair', 'TCP . 1+9999 reset 300000', 'any'],
]
/** Only with --long: vykar's own limits are 5 minutes for each body. */
const long: Fault[] = [
  ['no answer', 'backup', 'PUT /packs/ 2+1 hole 600', 'any'],
  ['no answer', 'restore', 'GET /packs/ 1+1 hole 600', 'any'],
]

/** A second server on the files of the row's, and bash that kills what it has begun for its clients. */
const again: Record<string, { start: string; sessions: string }> = {
  s3: {
    start:
      'env ROOT_ACCESS_KEY=$VYKAR_E2E_S3_KEY ROOT_SECRET_KEY=$VYKAR_E2E_S3_SECRET versitygw --port 127.0.0.1:PORT posix --versioning-dir "$PWD"/../server-s3.versions "$PWD"/../server-s3',
    sessions: 'true',
  },
  sftp: {
    start: '/usr/sbin/sshd -D -e -p PORT -f "$PWD"/../server-sftp/sshd_config',
    sessions: 'kill -KILL $(pgrep -P $(<first-server.pid)) || true',
  },
}

const options = {
  ...faultOptions,
  long: { kind: 'flag', help: 'a server that does not answer, too: 10 minutes each' },
} as const
const spec = { needs: standardNeeds, wants: serverWants, repos: ['rest', 's3', 'sftp'], options } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { round: only, 'corpus-mib': mib } = run.options
  await servers()
  const rows = run.repos.flatMap((repo) =>
    (['auto', 'none'] as const).filter((mode) => repo !== 'sftp' || mode === 'auto').map((mode) => ({ repo, mode })),
  )
  for (const { repo, mode } of rows) {
    await row({ repo, variant: mode === 'none' ? 'unencrypted' : 'proxy' }, async () => {
      ownServer()
      const ids = await acknowledged(repo, 2, Math.min(mib, 12), mode)
      const { host, port: up } = addressOf(run.endpoint(repo).url)
      const port = run.dry ? 18586 : await freePort(0)
      const variable = `REPO_${repo.toUpperCase()}`
      const [here, there] = [at(repo, `"$${variable}"`), at(repo, `"\${${variable}/:${up}/:${port}}"`)]
      // It tries again four times within a second, and takes a silent SFTP server for dead after five.
      await $`sed 's|^\( *\)max_pack_size:.*|&\n\1retry: {max_retries: 4, retry_delay_ms: 100, retry_max_delay_ms: 1000}|; s|^\( *\)sftp_known_hosts:.*|\1sftp_known_hosts: proxied.hosts\n\1sftp_timeout: 5|' config.yaml > proxied.yaml`
      if (repo === 'sftp')
        await $`sed 's|\]:[0-9]*|]:${{ raw: String(port) }}|' ../server-sftp/known_hosts > proxied.hosts`
      let [fired, tried] = [0, 0]
      const missed: string[] = []
      const every = [...(repo === 'sftp' ? tcp : http), ...(run.options.long && repo !== 'sftp' ? long : [])]
      // Without encryption nothing is sealed: what changes content, or loses some of it, is tried on that, too.
      const all = every.filter(([, , rule]) => mode === 'auto' || / (short|cut|twice|late|unheard|reset) ?/.test(rule))
      const meet = async ([what, verb, rule, must]: Fault) => {
        const name = `${verb}: ${what}`
        if (only && only !== name) return
        tried++
        step(name)
        await $`head -c 12M /dev/urandom > source/fresh && rm -rf hits met-tree && mkdir met-tree`
        if (verb === 'delete' || verb === 'compact') {
          await $`vykar --config config.yaml backup -R ${repo} > extra.out && sed -n 's/^Snapshot created: //p' extra.out > extra.id`
          await witnessed('source', 'extra')
          if (verb === 'compact') await $`vykar --config config.yaml snapshot delete -R ${repo} $(<extra.id)`
        }
        const proxy = await background(
          'proxy',
        )`e2e faults/proxy --listen ${port} --to ${host}:${up} --hits hits ${{ raw: repo === 'sftp' ? '--tcp' : '' }} ${rule.split(' | ')}`
        await $({ limit: '30s' })`until grep -q → proxy.out; do sleep 0.05; done`
        const words = {
          backup: `backup -R ${repo}`,
          restore: `restore -R ${repo} $(<ack-1.id) met-tree`,
          check: `check -R ${repo} --verify-data`,
          delete: `snapshot delete -R ${repo} $(<extra.id)`,
          compact: `compact -R ${repo} --threshold 0`,
          repair: `check --repair --verify-data --yes -R ${repo}`,
        }[verb]
        const met = await $({
          limit: '20m',
          expect: 'any',
        })`rm -rf lost && mkdir lost && HOME=$PWD/lost ${there} timeout -k 5 ${within(rule.includes('hole 600') ? 900 : repo === 'sftp' ? 60 : 180)} vykar --config proxied.yaml ${{ raw: words }} > met.out 2>&1`
        // What comes late comes after all is over, too.
        if (/ late /.test(rule) && !run.dry)
          await $({ limit: '30s', expect: 'any' })`until grep -q ' delivered ' hits; do sleep 0.1; done`
        await proxy.end('TERM')
        // What breaks off within a request has done so where its bytes were reached.
        const hit = / late /.test(rule)
          ? "' delivered '"
          : / (reset|cut|short|hole|unheard)( |$)/.test(rule)
            ? "' reached '"
            : "-v ' reached '"
        await $`grep -c ${{ raw: hit }} hits > hits.count || true`
        if (read('hits.count') !== '0') fired++
        else missed.push(name)
        fact(
          name,
          `${read('hits.count')} hits, exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`,
        )
        judge(
          verb,
          met,
          must,
          repo === 'sftp' && /backup|repair/.test(verb) && /reset|silent/.test(what) ? 'sftp-reset-hangs' : '',
        )
        if (verb === 'restore' && met.code === 0) {
          const same = await $({
            expect: 'any',
          })`(cd met-tree && sha256sum --check --quiet --strict ../ack-1.sha256 > ../wrong.out 2>&1) && test "$(find met-tree -type f -printf x | wc -c)" = "$(wc -l < ack-1.sha256)" && (cd met-tree && ${{ raw: listing }}) | diff -a ack-1.tree - > wrong.out`
          if (same.code)
            violated(
              '3: exit 0 means right',
              `restore exits 0 with wrong data: ${lastOf('wrong.out')}`,
              `vykar ${verb}`,
            )
        }
        // What has succeeded has been done.
        if ((verb === 'delete' || verb === 'compact') && met.code === 0) {
          await $`vykar --config config.yaml list -R ${repo} > deleted.list`
          if (!run.dry && read('deleted.list').includes(read('extra.id')))
            violated('exit 0 means done', 'snapshot delete exits 0, and list shows the snapshot', 'vykar snapshot delete') // biome-ignore format: one line
        }
        await afterwards(
          repo,
          ids,
          verb === 'backup' ? met : undefined,
          here,
          verb === 'delete' ? [...ids, 'extra'] : ids,
          verb === 'repair' ? 'repair-deletes-on-read-error' : '',
        )
        await clearOthers(repo, ids)
      }
      for (const one of all.filter(([, verb]) => verb !== 'repair')) await meet(one)
      const name = 'compact: stale LIST'
      if (repo !== 'sftp' && mode === 'auto' && (!only || only === name)) {
        tried++
        step(name)
        // Every listing is answered as it was the first time: a snapshot that has been made since is in none.
        await $`rm -f hits`
        const proxy = await background(
          'proxy',
        )`e2e faults/proxy --listen ${port} --to ${host}:${up} --hits hits 'GET list 1+99999 stale'`
        await $({ limit: '30s' })`until grep -q → proxy.out; do sleep 0.05; done`
        await $`rm -rf lost && mkdir lost && HOME=$PWD/lost ${there} vykar --config proxied.yaml list -R ${repo} > stale.list && head -c 4M /dev/urandom > source/stale`
        await witnessed('source', 'stale')
        await $`vykar --config config.yaml backup -R ${repo} > stale.out && sed -n 's/^Snapshot created: //p' stale.out > stale.id`
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`HOME=$PWD/lost ${there} timeout -k 5 ${within(180)} vykar --config proxied.yaml compact -R ${repo} --threshold 0 > met.out 2>&1`
        await proxy.end('TERM')
        await $`grep -c snapshots hits > hits.count || true`
        if (Number(read('hits.count')) > 1) fired++
        fact(
          name,
          `${read('hits.count')} stale listings of snapshots, exit ${met.code}${met.code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`,
        )
        judge('compact', met, 'any')
        await afterwards(repo, [...ids, 'stale'], undefined, here)
        await clearOthers(repo, ids)
      }
      const restart = 'backup: server killed and restarted'
      // minio keeps objects in a form that versitygw does not know.
      const minio = repo === 's3' && run.report.versions['s3 server'] === 'minio'
      if (minio) note(`${restart}: not tried on minio`)
      const line = minio ? undefined : again[repo]
      if (line && mode === 'auto' && (!only || only === restart)) {
        tried++
        step(restart)
        // A server of its own on the same files, so that the row's goes on; versitygw prints its key.
        const start = async (name: string) => {
          const server = await background(name)`${{ raw: line.start.replaceAll('PORT', String(port)) }}`
          await $({
            limit: '30s',
          })`until ${{ raw: answering(repo as 's3' | 'sftp', run.endpoint(repo).url.replace(`:${up}`, `:${port}`)) }}; do sleep 0.05; done; rm ${name}.out`
          return server
        }
        const files = { raw: `"$${run.endpoint(repo).seen}"` }
        const first = await start('first-server')
        await $`head -c 48M /dev/urandom > source/fresh && find ${files} -type f -path '*/packs/*' | wc -l > packs.before`
        await witnessed('source', 'going')
        const going = await background(
          'going',
        )`env ${there} timeout -k 5 ${within(repo === 'sftp' ? 60 : 180)} vykar --config proxied.yaml backup -R ${repo}`
        await $`until (($(find ${files} -type f -path '*/packs/*' | wc -l) > $(<packs.before) + 2)) || ! kill -0 $(<going.pid) 2> /dev/null; do sleep 0.01; done`
        if (going.running()) fired++
        else missed.push(restart)
        await $`${{ raw: line.sessions }}`
        await first.end('KILL')
        await $`sleep 0.5`
        const second = await start('again-server')
        const ended = await going.done([0, 1, 124, 137])
        await second.end('TERM')
        fact(restart, `exit ${ended.code}${ended.code ? `: ${lastOf('going.out').slice(0, 100)}` : ''}`)
        await $`cp going.out met.out && sed -n 's/^Snapshot created: //p' going.out > going.id`
        judge('backup', ended, 'any', repo === 'sftp' ? 'sftp-reset-hangs' : '')
        if (ended.code === 1)
          violated('a fault that goes away costs nothing', `the server was away for a second, the backup exits 1: ${lastOf('going.out')}`, 'vykar backup', /Connection refused/.test(read('going.out')) ? 'refused-not-retried' : '') // biome-ignore format: one line
        await afterwards(repo, ended.code ? ids : [...ids, 'going'], undefined, here)
        await clearOthers(repo, ids)
      }
      await inTheEnd(repo, ids)
      await clearOthers(repo, ids)
      // Last: 0.19.1 leaves no snapshot for others to look at.
      for (const one of all.filter(([, verb]) => verb === 'repair')) await meet(one)
      await $`rm -rf source corpus met-tree tree`
      await conclude(fired, tried, missed)
    })
  }
  stillShown(run)
})
