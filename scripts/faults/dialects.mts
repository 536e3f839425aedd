#!/usr/bin/env -S npx tsx
// Dialects: servers that keep to the letter of their protocol and are unlike the one that was tested with. S3 that lists two keys at a time,
// encodes the keys it lists, wants a Content-MD5, keeps every version (Object Lock); sshd that allows one session; repositories below a symlink.
// Passes when backup, restore, check, snapshot delete and compact do there what they do elsewhere, every acknowledged snapshot is restored to
// what it was, and the server is proven to be as it is said to be.
import { background } from '#lib/background.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, type Output, read } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import {
  acknowledged,
  conclude,
  faultOptions,
  judge,
  roundsOf,
  rowsWith,
  stillShown,
  within,
} from '#scripts/faults/common.mts'
import { afterwards, at, clearOthers, inTheEnd, type Place, violated } from '#scripts/faults/oracle.mts'
import { ownServer } from '#scripts/guard.mts'
import { addressOf, freePort, parseS3 } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'

/** What the proxy makes of an S3 server. */
const dialects: Record<string, string> = {
  'LIST in pages of two': 'GET list-type 1+99999 pages 2',
  'LIST with encoded keys': 'GET list-type 1+99999 encoded',
  'Content-MD5 required': 'PUT . 1+99999 digest',
}

const spec = {
  needs: standardNeeds,
  wants: serverWants,
  repos: ['local', 's3', 'sftp'],
  options: faultOptions,
} as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { round: only, 'corpus-mib': mib } = run.options
  await servers()
  for (const repo of run.repos)
    await row({ repo }, async () => {
      if (repo !== 'local') ownServer()
      const ids = await acknowledged(repo, 2, Math.min(mib, 12))
      const variable = `REPO_${repo.toUpperCase()}`
      const { chosen, tried } = roundsOf(only)
      let fired = 0
      /** All that a client does, with a server that must be no obstacle; what it is told apart by has been seen before or after. */
      const everything = async (there: Place) => {
        const limit = { limit: '5m', expect: 'any' } as const
        const works = (verb: string, met: Output) => judge(verb, met, 'work')
        await $`head -c 9M /dev/urandom > source/fresh`
        works(
          'backup',
          await $(
            limit,
          )`${there} timeout -k 5 ${within(240)} vykar --config config.yaml backup -R ${repo} > met.out 2>&1`,
        )
        await $`sed -n 's/^Snapshot created: //p' met.out > gone.id`
        works(
          'list',
          await $(
            limit,
          )`${there} timeout -k 5 ${within(240)} vykar --config config.yaml list -R ${repo} > met.out 2>&1`,
        )
        works(
          'check',
          await $(
            limit,
          )`${there} timeout -k 5 ${within(240)} vykar --config config.yaml check -R ${repo} --verify-data > met.out 2>&1`,
        )
        works(
          'snapshot delete',
          await $(
            limit,
          )`${there} timeout -k 5 ${within(240)} vykar --config config.yaml snapshot delete -R ${repo} $(<gone.id) > met.out 2>&1`,
        )
        await $`${there} vykar --config config.yaml list -R ${repo} > met.list`
        if (!run.dry && read('met.list').includes(read('gone.id')))
          violated('exit 0 means done', 'snapshot delete exits 0, and list shows the snapshot', 'vykar snapshot delete')
        const files = there.files ?? '/nowhere'
        const held = { raw: `{ du -sb ${files}/packs 2> /dev/null || echo 0; } | cut -f1` }
        await $`${held} > held.before`
        works(
          'compact',
          await $(
            limit,
          )`${there} timeout -k 5 ${within(240)} vykar --config config.yaml compact -R ${repo} --threshold 0 > met.out 2>&1`,
        )
        // What was new in that snapshot were 9 MiB that nothing compresses.
        await $`${held} > held.after`
        if (there.files && Number(read('held.before')) - Number(read('held.after')) < 9 * 2 ** 20)
          violated('exit 0 means done', 'compact exits 0, and the space of a deleted snapshot is not given back', 'vykar compact') // biome-ignore format: one line
        await afterwards(repo, ids, undefined, there)
      }

      if (repo !== 's3' && chosen('repository below a symlink')) {
        await $`ln -sfn "$(dirname "$(readlink -f ${{ raw: repo === 'local' ? '"$REPO_LOCAL"' : '"$FILES_SFTP"' }})")" linked`
        const path = {
          raw: repo === 'local' ? '$PWD/linked/$(basename "$REPO_LOCAL")' : '$PWD/linked/$(basename "$FILES_SFTP")',
        }
        await $`test -L linked && test -f ${path}/config`
        fired++
        await everything(at(repo, repo === 'local' ? path.raw : `"\${REPO_SFTP%"$FILES_SFTP"}"${path.raw}`, path.raw))
        await clearOthers(repo, ids)
      }

      if (repo === 's3')
        for (const [name, rule] of Object.entries(dialects)) {
          if (!chosen(name)) continue
          const { host, port: up } = addressOf(run.endpoint(repo).url)
          const port = run.dry ? 18586 : await freePort(0)
          await $`rm -f hits`
          const proxy = await background(
            'proxy',
          )`e2e faults/proxy --listen ${port} --to ${host}:${up} --hits hits ${rule}`
          await $({ limit: '30s' })`until grep -q → proxy.out; do sleep 0.05; done`
          await everything(at(repo, `"\${${variable}/:${up}/:${port}}"`))
          await proxy.end('TERM')
          await $`grep -c . hits > hits.count || true`
          fact(name, `${read('hits.count')} requests`)
          if (Number(read('hits.count')) > 0) fired++
          await clearOthers(repo, ids)
        }

      if (repo === 's3' && chosen('Object Lock')) {
        const { endpoint, bucket, prefix } = parseS3(run.endpoint(repo).url)
        const curl = { raw: `curl -sS -K ../s3.curl -H "x-amz-content-sha256: $(sha256sum < lock.xml | cut -c -64)"` }
        // Every version is kept for a day, whatever a client deletes.
        await $`printf '<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>' > rule.xml && : > lock.xml`
        await $`${curl} -o made.out -w '%{http_code}\n' -H 'x-amz-bucket-object-lock-enabled: true' -X PUT ${endpoint}/locked > locked.code`
        await $`cp rule.xml lock.xml && ${curl} -o rule.out -w '%{http_code}\n' -H "Content-MD5: $(openssl md5 -binary < lock.xml | base64)" --data-binary @lock.xml -X PUT ${endpoint}/locked?object-lock= >> locked.code; : > lock.xml`
        if (!run.dry && read('locked.code') !== '200\n200')
          note(`Object Lock was not tried: this server answers ${read('locked.code').replace('\n', ', ')}`)
        else {
          // Not by rclone: versitygw knows one of its headers not.
          await $`rclone copy e2es3:${bucket}/${prefix} unlocked`
          await $`(cd unlocked && find . -type f -printf '%P\n') | while read -r key; do cp unlocked/"$key" lock.xml && ${curl} -f -o put.out -H "Content-MD5: $(openssl md5 -binary < lock.xml | base64)" --data-binary @lock.xml -X PUT ${endpoint}/locked/${prefix}/"$key" || exit 1; done; : > lock.xml`
          await everything({
            ...at(repo, `s3+${endpoint}/locked/${prefix}`),
            remote: `e2es3:locked/${prefix}`,
          })
          // It is locked indeed: a version cannot be deleted.
          await $`${curl} ${endpoint}/locked?versions= > versions.xml; tr -d '\n' < versions.xml | sed 's|</Version>.*||; s|.*<Version>||' > version.xml; key=$(grep -oE '<Key>[^<]*' version.xml | sed 's/.*>//') && id=$(grep -oE '<VersionId>[^<]*' version.xml | sed 's/.*>//') && ${curl} -o gone.out -w '%{http_code}\n' -X DELETE "${{ raw: endpoint }}/locked/$key?versionId=$id" > gone.code`
          await check('grep -q "^4" gone.code', () => {
            fact('Object Lock', `deleting a version is answered with ${read('gone.code')}`)
            if (/^4/.test(read('gone.code')) && /protected|locked|AccessDenied/i.test(read('gone.out'))) fired++
          })
        }
      }

      if (repo === 'sftp' && chosen('MaxSessions 1')) {
        const { port: up } = addressOf(run.endpoint(repo).url)
        const port = run.dry ? 18587 : await freePort(0)
        await $`sed 's/^Port .*/Port ${{ raw: String(port) }}/; s/^MaxStartups.*/&\nMaxSessions 1/' ../server-sftp/sshd_config > one.conf && sed 's|\]:[0-9]*|]:${{ raw: String(port) }}|' ../server-sftp/known_hosts > one.hosts && sed 's|^\( *\)sftp_known_hosts:.*|\1sftp_known_hosts: one.hosts|' config.yaml > one.yaml`
        await $`$(command -v sshd) -T -f "$PWD"/one.conf > one.said && grep -qx 'maxsessions 1' one.said`
        const server = await background('one-sshd')`$(command -v sshd) -D -e -f "$PWD"/one.conf`
        await $({ limit: '30s' })`until (: < /dev/tcp/127.0.0.1/${port}) 2> /dev/null; do sleep 0.05; done`
        fired++
        await $`cp lost.yaml lost.kept && sed 's|^\( *\)sftp_known_hosts:.*|\1sftp_known_hosts: one.hosts|' -i lost.yaml config.yaml`
        await everything(at(repo, `"\${${variable}/:${up}/:${port}}"`))
        await $`grep -c 'Accepted publickey' one-sshd.out > logins || true`
        fact('MaxSessions 1', `${read('logins')} logins`)
        await $`mv lost.kept lost.yaml && sed 's|^\( *\)sftp_known_hosts:.*|\1sftp_known_hosts: ../server-sftp/known_hosts|' -i config.yaml`
        await server.end('TERM')
        await clearOthers(repo, ids)
      }
      await inTheEnd(repo, ids)
      await $`rm -rf source corpus tree`
      await conclude(fired, tried.length)
    })
  stillShown(run)
})
