#!/usr/bin/env -S npx tsx
// Full backup and restore of the small corpus through vykar-server.
// Passes when backends/local would, and a wrong token is refused (401) for every kind of request and writes nothing, a URL with a path is
// refused (400), nothing is said over plain HTTP that was not asked for, nor to a server whose certificate nobody has signed, an object that is
// not what its hash says is refused, and the server's own check sees a pack that is damaged, cut or missing.
import { background } from '#lib/background.mts'
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, read, step, undo } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'
import { listed, says, sound, standardNeeds } from '#scripts/checks.mts'
import { again, fresh, retire, unreadable, written } from '#scripts/common.mts'
import { changing, corpus, fits, sourceOptions, witness } from '#scripts/corpus.mts'
import { freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'

const spec = {
  needs: standardNeeds,
  wants: ['vykar-server', 'curl', 'openssl'],
  repos: ['rest'],
  options: sourceOptions,
} as const

await scenario(import.meta, spec, async (run) => {
  const { options } = run
  const { manifest } = options
  const own = options.source === undefined

  step('corpus')
  const tree = await corpus('remote', options.source, options['corpus-gib'])
  await fits(tree)
  await witness(tree, !own)
  await servers()

  for (const repo of run.repos)
    await run.row(repo, async () => {
      step('wrong token')
      const { source, was } = await changing(tree, options.source)
      if (own) await written(source, 'first.witness')
      await config`
sources:
  - path: ${source}
    label: corpus
`
      await $`sed 's/access_token:.*/access_token: wrong/' config.yaml > wrong-token.yaml`
      await $({ expect: [1] })`vykar --config wrong-token.yaml init -R ${repo} > wrong-token.out 2>&1`
      await says('wrong-token.out', /HTTP 401/, 'init with a wrong token was not refused with 401')
      if (run.endpoint(repo).managed) await $`test -z "$(find "$FILES_REST" -type f)"  # nothing was written`

      step('URL with a path')
      await $`sed 's|url: .*|url: '"$REPO_REST"'/sub|' config.yaml > with-path.yaml`
      await $({ expect: [1] })`vykar --config with-path.yaml init -R ${repo} > with-path.out 2>&1`
      await says('with-path.out', /HTTP 400/, 'init at a URL with a path was not refused with 400')

      step('init')
      await fresh(repo)

      step('backup')
      await $({
        limit: '1h',
      })`bash -c 'vykar --config config.yaml backup -R ${repo} > backup.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > first.read`
      await $`sed -n 's/^Snapshot created: //p' backup.out > first.id`
      if (own) await unreadable(repo, `${source}/awkward/planted`)

      step('list')
      await $`vykar --config config.yaml list -R ${repo} > list.out`
      await listed('corpus')

      // Nobody who listens may read the token: plain HTTP is asked for, and a server whose certificate nobody has signed is none.
      step('only where it is safe')
      await $`sed 's/allow_insecure_http: true/allow_insecure_http: false/' config.yaml > secure.yaml && rc=0 && { timeout 60 vykar --config secure.yaml list -R ${repo} > secure.out 2>&1 || rc=$?; } && case $REPO_REST in http://*) [[ $rc == 1 ]] || exit 1; grep -qi insecure secure.out || exit 1;; esac`
      const tls = run.dry ? 18443 : await freePort(0)
      await $`sed 's/access_token:.*/access_token: made-up/' secure.yaml > made-up.yaml && mkfifo tls.in && openssl req -x509 -newkey rsa:2048 -nodes -keyout tls.key -out tls.crt -days 2 -subj /CN=127.0.0.1 -addext basicConstraints=critical,CA:FALSE 2> /dev/null`
      const impostor = await background(
        'tls',
      )`openssl s_server -accept 127.0.0.1:${tls} -key tls.key -cert tls.crt -quiet <> tls.in`
      await $({ limit: '30s' })`until (: < /dev/tcp/127.0.0.1/${tls}) 2> /dev/null; do sleep 0.1; done`
      await $({
        expect: [1],
      })`REPO_REST=https://127.0.0.1:${tls} timeout 60 vykar --config made-up.yaml list -R ${repo} > impostor.out 2>&1`
      await impostor.end('TERM')
      await $`! grep -aqE 'HTTP/1|Bearer' tls.out || exit 1  # not a word was said to it`
      await $`rm tls.key tls.in`

      step('wrong token reads nothing')
      await $({ expect: [1] })`vykar --config wrong-token.yaml list -R ${repo} > wrong-token.out 2>&1`
      await says('wrong-token.out', /HTTP 401/, 'list with a wrong token was not refused with 401')

      step('every kind of request')
      // Without the right token each is refused, whether it reads, lists, writes or deletes: the header wrong, empty, malformed, missing, and
      // of the token the last character missing, or one more. curl reads it from a file, where no process list has it.
      await $`(umask 077; header() { printf 'header = "%s"\n' "$2" > $1.curl; }; header wrong 'Authorization: Bearer wrong'; header empty 'Authorization: Bearer '; header malformed 'Authorization: wrong'; header missing 'X-Nothing: at all'; header cut "Authorization: Bearer $(echo "$VYKAR_E2E_REST_TOKEN" | sed 's/.$//')"; header more "Authorization: Bearer $VYKAR_E2E_REST_TOKEN"x)`
      await $`cat > requests <<'EOF'
GET /config
PUT /config
GET /index
PUT /index
GET /packs?list
PUT /locks/00001795000000000000-0123456789abcdef0123456789abcdef.json
DELETE /index
GET /?list
GET /?stats
GET /?verify-structure
POST /?init
POST /?verify-packs
POST /?repack
POST /?batch-delete
EOF`
      // Objects of each kind are read, and what is not there is written and deleted.
      await $`${{ raw: run.endpoint(repo).managed ? `(cd "$FILES_REST" && for kind in packs snapshots keys; do one=$(find $kind -type f -size +0 -print -quit) && printf '%s\\n' "GET /$one" "HEAD /$one" "PUT /$one.new" "DELETE /$one.new"; done)` : 'true' }} >> requests`
      await $`while read -r method path; do
  for header in wrong empty malformed missing cut more; do
    if [[ $method == HEAD ]]; then how=-I; else how="-X $method -d @/dev/null"; fi
    code=$(curl -sS -o requests.out -w '%{http_code}' $how -K $header.curl "$REPO_REST$path")
    echo "$code $method $path, token $header"
  done
done < requests > refused.out; rm *.curl`
      await check(`! grep -v '^401 ' refused.out || exit 1  # every one of them`, () => {
        const granted = read('refused.out')
          .split('\n')
          .find((line) => !line.startsWith('401 '))
        if (granted) throw new Mismatch(`a request without the right token was answered with ${granted}`)
      })

      step('snapshot list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<first.id) > snapshot.list`
      await $`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      await again(repo, source, was, !own)
      if (manifest) await $({ limit: '2h' })`(cd restored && sha256sum --check --quiet --strict ${manifest})`

      // Which the server does by itself, unless it is not trusted: both must see a flipped bit, and none when it has gone.
      step('check on the server')
      if (run.endpoint(repo).managed) {
        undo`test ! -e whole || cp -p whole "$(<pack.path)"`
        await $`find "$FILES_REST"/packs -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2 > pack.path && cp -p "$(<pack.path)" whole`
        await $`o=$(($(stat -c %s whole) / 2)); b=$(od -An -tu1 -j $o -N1 whole); printf "\\x$(printf %02x $((b ^ 1)))" | dd of="$(<pack.path)" bs=1 seek=$o conv=notrunc status=none`
        for (const flag of ['', '--distrust-server']) {
          await $({
            limit: '1h',
            expect: [1],
          })`vykar --config config.yaml check -R ${repo} --verify-data ${{ raw: flag }} > flipped.out 2>&1`
          await says('flipped.out', /, [1-9]\d* errors$/m, `check --verify-data ${flag} saw no flipped bit`)
        }
        for (const [name, harm] of [
          ['missing', 'rm "$(<pack.path)"'],
          ['cut', 'cp -p whole "$(<pack.path)" && truncate -s -1000 "$(<pack.path)"'],
        ] as const) {
          await $`${{ raw: harm }}`
          await $({
            limit: '1h',
            expect: [1],
          })`vykar --config config.yaml check -R ${repo} --verify-data > ${name}.out 2>&1`
          await says(`${name}.out`, /, [1-9]\d* errors$/m, `check --verify-data on the server saw no ${name} pack`)
        }
        await $`cp -p whole "$(<pack.path)" && rm whole`
        await $({
          limit: '1h',
        })`vykar --config config.yaml check -R ${repo} --verify-data --distrust-server > distrusted.out 2>&1`
        await sound('distrusted.out', { all: true })

        step('what is damaged on its way')
        // An object comes with the hash of what it is to be: another one is refused, and so is one without.
        undo`rm -f token.curl`
        await $`printf 'header = "Authorization: Bearer %s"\n' "$VYKAR_E2E_REST_TOKEN" > token.curl && chmod 600 token.curl`
        const pack = `packs/00/${'0'.repeat(64)}`
        for (const [answer, header] of [
          [409, `X-Content-BLAKE2b: ${'0'.repeat(64)}`],
          [400, 'X-Nothing: at all'],
        ] as const)
          await $`code=$(curl -sS -o damaged.out -w '%{http_code}' -K token.curl -X PUT -H ${header} --data-binary junk "$REPO_REST"/${pack}) && test $code = ${answer} && test ! -e "$FILES_REST"/${pack}`
        await $`rm token.curl`
      }

      step('check')
      await retire(repo, ['first', 'fourth'])
    })
})
