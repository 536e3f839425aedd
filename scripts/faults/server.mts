#!/usr/bin/env -S npx tsx
// The server: vykar-server is killed and restarted in the middle of an upload, its disk runs full, it has a quota, it takes no deletes for
// a week, a client with its token wants to destroy, and it cannot read a directory of its own.
// Passes when a restart costs nothing, a full server, a quota and what cannot be read are said with an exit code, what is deleted gives its room
// back, append-only refuses deletes and overwriting alone, every acknowledged snapshot is still restored to what it was, and all works again.
import { background } from '#lib/background.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, read, undo } from '#lib/sh.mts'
import { standardNeeds, torn } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { acknowledged, conclude, faultOptions, judge, roundsOf, rowsWith, stillShown } from '#scripts/faults/common.mts'
import {
  afterwards,
  allThere,
  at,
  clearOthers,
  inTheEnd,
  lastOf,
  nothingForEver,
  restoredAs,
  violated,
} from '#scripts/faults/oracle.mts'
import { ownServer } from '#scripts/guard.mts'
import { freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const spec = { needs: standardNeeds, wants: serverWants, repos: ['rest'], options: faultOptions } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { round: only, 'corpus-mib': mib } = run.options
  await servers()
  for (const repo of run.repos)
    await row({ repo }, async () => {
      ownServer()
      const ids = await acknowledged(repo, 2, Math.min(mib, 12))
      const port = run.dry ? 18587 : await freePort(0)
      const [here, second] = [at(repo, '"$REPO_REST"'), at(repo, `http://127.0.0.1:${port}`)]
      const start = async (name: string, words: string, under = '') => {
        const server = await background(
          name,
        )`env VYKAR_TOKEN=$VYKAR_E2E_REST_TOKEN ${{ raw: under }} vykar-server --listen 127.0.0.1:${port} ${{ raw: words }}`
        await $({ limit: '30s' })`until curl -fs -o /dev/null http://127.0.0.1:${port}/health; do sleep 0.05; done`
        return server
      }
      const { chosen, tried } = roundsOf(only)
      let fired = 0

      if (chosen('killed and restarted')) {
        await $`head -c 48M /dev/urandom > source/fresh`
        await witnessed('source', 'going')
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
        // The server was killed while it wrote.
        await torn()
        fact('killed and restarted', `backup ended with exit ${ended.code}`)
        if (ended.code)
          violated(
            'a fault that goes away costs nothing',
            `the server was away for a second, the backup ended with exit ${ended.code}`,
            'vykar backup',
            /Connection refused/.test(read('going.out')) ? 'refused-not-retried' : '',
          )
        await $`sed -n 's/^Snapshot created: //p' going.out > going.id`
        const there = ended.code ? ids : [...ids, 'going']
        await afterwards(repo, there, undefined, here)
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
        })`${second} vykar --config config.yaml backup -R ${repo} > met.out 2>&1`
        if (met.code) fired++
        fact('disk of the server full', `exit ${met.code}: ${lastOf('met.out').slice(0, 100)}`)
        judge('backup', met, 'fail')
        await server.end('TERM')
        await $`dd if=/dev/zero of=small/filler bs=64k status=none 2> /dev/null || true`
        const fuller = await start('fuller-server', '--data-dir small/data')
        const how = await restoredAs(repo, 'ack-1', second)
        fact('restore from a full server', how)
        if (how !== 'right')
          violated(
            '1: acknowledged snapshots restore',
            `while the server's disk is full a restore is ${how}: ${lastOf('restore.out')}`,
            'vykar restore',
            how === 'refused' && /\b413\b/.test(read('restore.out')) ? 'full-server-refuses-restore' : '',
          )
        await fuller.end('TERM')
        await $`rm small/filler && mount -o remount,size=400m small`
        const roomy = await start('roomy-server', '--data-dir small/data')
        await afterwards(repo, ids, met, { ...second, files: 'small/data' })
        await nothingForEver(repo, { ...second, files: 'small/data' }, 'vykar backup')
        await roomy.end('TERM')
        await $`umount small && rm -f source/fresh`
      }

      if (chosen('quota')) {
        await $`rm -rf data && cp -a "$FILES_REST" data`
        const server = await start('quota-server', '--data-dir data --quota 40M')
        // What is deleted is given back, on a server that goes on: four times 10 MiB beside the 20 that are there.
        const back = await $({
          limit: '5m',
          expect: 'any',
        })`for n in 1 2 3 4; do head -c 10M /dev/urandom > source/fresh && ${second} vykar --config config.yaml backup -R ${repo} > back.out 2>&1 && sed -n 's/^Snapshot created: //p' back.out > back.id && ${second} vykar --config config.yaml snapshot delete -R ${repo} $(<back.id) >> back.out 2>&1 && ${second} vykar --config config.yaml compact -R ${repo} >> back.out 2>&1 || exit; done`
        if (back.code)
          violated('4: works again', `what was deleted is not given back: ${lastOf('back.out')}`, 'vykar backup; vykar snapshot delete; vykar compact') // biome-ignore format: one line
        await $`head -c 48M /dev/urandom > source/fresh`
        const met = await $({
          limit: '5m',
          expect: 'any',
        })`${second} vykar --config config.yaml backup -R ${repo} > met.out 2>&1`
        await $`du -sm data | cut -f1 > data.size`
        if (met.code) fired++
        fact('quota', `exit ${met.code}: ${lastOf('met.out').slice(0, 100)}; ${read('data.size')} MiB of 40`)
        judge('backup', met, 'fail')
        if (Number(read('data.size')) > 44)
          violated(
            'a quota holds',
            `${read('data.size')} MiB are in a repository with a quota of 40M`,
            'vykar-server --quota 40M',
          )
        await server.end('TERM')
        const free = await start('free-server', '--data-dir data')
        await $`rm -f source/fresh`
        await afterwards(repo, ids, met, { ...second, files: 'data' })
        await nothingForEver(repo, { ...second, files: 'data' }, 'vykar backup')
        await free.end('TERM')
      }

      if (chosen('a week on an append-only server')) {
        await $`rm -rf data && cp -a "$FILES_REST" data`
        const server = await start('append-server', '--data-dir data --append-only')
        const week = [...ids]
        for (let day = 1; day <= 7; day++) {
          const id = `day-${day}`
          await $`head -c 300K /dev/urandom > source/${id}`
          await witnessed('source', id)
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
            'snapshot delete exits 0',
            'vykar-server --append-only; vykar snapshot delete',
          )
        await allThere(repo, week, second)
        const checked = await $({
          expect: 'any',
        })`${second} vykar --config config.yaml check -R ${repo} --verify-data > append.check 2>&1`
        if (checked.code)
          violated('4: works again', `check exits ${checked.code}: ${lastOf('append.check')}`, 'vykar check')
        await server.end('TERM')
      }

      if (chosen('files of the server')) {
        await $`rm -rf data && mkdir data`
        const server = await start('open-server', '--data-dir data')
        await $`rm -rf cache lost && ${second} vykar --config lost.yaml init -R ${repo} > open.out && ${second} vykar --config lost.yaml backup -R ${repo} > open.out`
        await $`find data -type f -perm /044 -printf '%m %P\n' > open.list; find data -type f -printf x | wc -c > open.files`
        if (Number(read('open.files'))) fired++
        const open = read('open.list').split('\n').filter(Boolean)
        const first = open.find((line) => !line.startsWith('644 ')) ?? open[0]
        if (first)
          violated(
            'what is private stays private',
            `vykar-server writes files that every user of its machine can read: ${first}`,
            'vykar-server --data-dir data',
            first.startsWith('644 ') ? 'server-files-readable' : '',
          )
        await server.end('TERM')
      }

      const unread = 'a directory of the server that cannot be read'
      if (!run.dry && !which('strace')) note(`${unread} was not tried: strace is missing`)
      else if (chosen(unread)) {
        await $`rm -rf data && cp -a "$FILES_REST" data`
        const server = await start(
          'unread-server',
          '--data-dir data',
          'strace -D -f -qq -o calls -P "$PWD"/data/snapshots -e trace=getdents64 -e inject=getdents64:error=EIO',
        )
        const list = await $({ expect: 'any' })`${second} vykar --config config.yaml list -R ${repo} > unread.list 2>&1`
        const checked = await $({
          expect: 'any',
        })`rm -rf lost && ${second} vykar --config lost.yaml check -R ${repo} > unread.check 2>&1`
        await server.end('TERM')
        await $`{ grep -c EIO calls || true; } > hits`
        if (Number(read('hits'))) fired++
        fact(unread, `list: exit ${list.code}, check: exit ${checked.code}: ${lastOf('unread.check').slice(0, 80)}`)
        const hidden = list.code === 0 && !read('unread.list').includes(read('ack-1.id'))
        const sound = checked.code === 0 && /^Check complete: 0 snapshots/m.test(read('unread.check'))
        if (Number(read('hits')) && (hidden || sound))
          violated('3: what cannot be read is said', 'snapshots/ cannot be read by the server: list shows none or check finds none, exit 0', 'vykar list; vykar check', 'server-hides-unreadable') // biome-ignore format: one line
        const well = await start('well-server', '--data-dir data')
        await allThere(repo, ids, second)
        await well.end('TERM')
      }

      const itself = 'what a server says of itself'
      if (chosen(itself)) {
        await $`rm -rf data && mkdir data && sed -E 's/^( *mode: ).*/\1none/; s|^cache_dir: .*|cache_dir: plain-cache|' config.yaml > plain.yaml`
        await $`printf 'header = "Authorization: Bearer %s"\n' "$VYKAR_E2E_REST_TOKEN" > token.curl && chmod 600 token.curl`
        const asked = (name: string) =>
          $`for what in stats verify-structure; do curl -fsS -K token.curl "http://127.0.0.1:${port}/?$what" > ${name}.$what; done`
        const server = await start('asked-server', '--data-dir data')
        await $`${second} vykar --config plain.yaml init -R ${repo} && ${second} vykar --config plain.yaml backup -R ${repo} > plain.out && ${second} vykar --config plain.yaml info -R ${repo} > plain.info && grep -q 'Encryption  *none' plain.info`
        await asked('at-first')
        await server.end('TERM')
        const restarted = await start('asked-again', '--data-dir data')
        await asked('again')
        await $`rm token.curl`
        await restarted.end('TERM')
        fired++
        await check('grep -qE \'"last_backup_at": *"?[0-9]\' at-first.stats', () => {
          const [first, again] = ['at-first', 'again'].map((name) => /"last_backup_at": *("[^"]*"|\d+)/.exec(read(`${name}.stats`))?.[1]) // biome-ignore format: one line
          if (!first) violated('the status is true', 'a backup was made, and last_backup_at says nothing', 'curl "$URL/?stats"')
          else if (again !== first)
            violated('the status is true', `restarted, it says ${again ?? 'no'} last_backup_at instead of ${first}`, 'curl "$URL/?stats"', again ? '' : 'server-forgets-last-backup') // biome-ignore format: one line
          const sound = /"ok": *true/.test(read('again.verify-structure'))
          if (!sound)
            violated('3: check agrees with restore', `?verify-structure of an unencrypted repository: ${read('again.verify-structure').slice(0, 120)}`, 'curl "$URL/?verify-structure"', /keys\/repokey/.test(read('again.verify-structure')) ? 'server-misses-key-of-none' : '') // biome-ignore format: one line
        })
      }

      const hostile = 'a client that has the token of an append-only server'
      if (chosen(hostile)) {
        await $`rm -rf data && cp -a "$FILES_REST" data`
        const server = await start('hostile-server', '--data-dir data --append-only')
        // What it can do to what is there: write over one object of each kind, and delete it. It is answered 403 for what must last.
        await $`printf 'header = "Authorization: Bearer %s"\n' "$VYKAR_E2E_REST_TOKEN" > token.curl && chmod 600 token.curl`
        await $`(cd data && for kind in packs snapshots keys config; do find $kind -type f -size +0 -print -quit; done) > lasting && (cd data && xargs sha256sum) < lasting > lasting.was`
        await $`while read -r path; do for method in PUT DELETE; do echo "$(curl -sS -o /dev/null -w '%{http_code}' -K token.curl -X $method --data-binary junk http://127.0.0.1:${port}/$path) $method $path"; done; done < lasting > answers`
        await $`echo "$(curl -sS -o /dev/null -w '%{http_code}' -K token.curl -X POST -H 'Content-Type: application/json' --data-binary "[\"$(head -n 1 lasting)\"]" http://127.0.0.1:${port}/?batch-delete) POST batch-delete" >> answers`
        await $`echo "$(curl -sS -o /dev/null -w '%{http_code}' -K token.curl -X POST -H 'Content-Type: application/json' --data-binary "{\"operations\":[{\"source_pack\":\"$(head -n 1 lasting)\",\"keep_blobs\":[],\"delete_after\":true}]}" http://127.0.0.1:${port}/?repack) POST repack" >> answers`
        await $`(cd data && sha256sum --check --quiet ../lasting.was) > lasting.out 2>&1 || true`
        await $`echo "$(curl -sS -o /dev/null -w '%{http_code}' -K token.curl -X PUT --data-binary junk http://127.0.0.1:${port}/index) PUT index" > index.answer; rm token.curl`
        fired++
        fact(hostile, `overwrites and deletes of what must last: ${read('answers').split('\n').map((line) => line.slice(0, 3)).join(' ')}; index: ${read('index.answer').slice(0, 3)}`) // biome-ignore format: one line
        const granted = read('answers').split('\n').find((line) => !line.startsWith('403 ')) // biome-ignore format: one line
        if (granted && !run.dry)
          violated('append-only takes no delete', `answered with ${granted}`, 'vykar-server --append-only')
        // Whatever the answer was.
        await check('test ! -s lasting.out', () => {
          const [other] = read('lasting.out').split('\n')
          if (other)
            violated('append-only takes no delete', `refused, and done: ${other}`, 'vykar-server --append-only')
        })
        await server.end('TERM')
        // The owner's own server, without the flag: what can he still have?
        const owner = await start('owner-server', '--data-dir data')
        await $`rm -rf lost`
        const mended = await $({
          limit: '5m',
          expect: 'any',
        })`${second} vykar --config lost.yaml check -R ${repo} --repair --yes > mended.out 2>&1`
        fact(`${hostile}: check --repair`, `exit ${mended.code}: ${lastOf('mended.out').slice(0, 100)}`)
        await allThere(repo, ids, second, 'append-only-index-replaced')
        await owner.end('TERM')
      }
      await inTheEnd(repo, ids)
      await $`rm -rf data source corpus tree`
      await conclude(fired, tried.length)
    })
  stillShown(run)
})
