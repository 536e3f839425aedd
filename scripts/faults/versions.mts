#!/usr/bin/env -S npx tsx
// Versions: two builds of vykar take turns on one repository, --vykar NEW and --baseline OLD, and, where they lie beside the programs, the
// old and the new vykar-server are paired with the other's client.
// Passes when no snapshot is lost: what one build has written the other lists, checks and restores to what it was, or refuses with an exit
// code and leaves alone.
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { background } from '#lib/background.mts'
import { identifyVykar } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, type Output, step } from '#lib/sh.mts'
import { quote } from '#lib/transcript.mts'
import { Skipped } from '#lib/verdict.mts'
import { ownServer, standardNeeds } from '#scripts/checks.mts'
import { contents, serverWants } from '#scripts/common.mts'
import { acknowledged, allThere, at, conclude, faultOptions, lastOf, violated } from '#scripts/faults/common.mts'
import { freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'

const options = { ...faultOptions, baseline: { kind: 'path', help: 'the other build of vykar' } } as const
const spec = { needs: standardNeeds, wants: serverWants, repos: ['local', 'rest'], options } as const

await scenario(import.meta, spec, async (run) => {
  const { baseline, 'corpus-mib': mib } = run.options
  const old = baseline && !run.dry ? await identifyVykar(baseline) : undefined
  if (old) run.report.versions.baseline = old.version
  await servers()
  for (const repo of run.repos)
    await run.row({ repo }, async () => {
      if (!baseline) throw new Skipped('versions: --baseline OLD names the other build')
      if (repo !== 'local') ownServer()
      const builds = { new: 'vykar', old: quote(old?.path ?? baseline) }
      const here = at(repo, `"$REPO_${repo.toUpperCase()}"`)
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      let tried = 0
      /** One command by one build, with a cache of its own. */
      const by = (build: 'new' | 'old', words: string, there = here): Promise<Output> => {
        tried++
        return $({
          limit: '10m',
          expect: 'any',
        })`sed 's|^cache_dir: .*|cache_dir: cache-${{ raw: build }}|' config.yaml > ${build}.yaml && ${there} ${{ raw: builds[build] }} --config ${build}.yaml ${{ raw: words }} > met.out 2>&1`
      }
      const must = (build: string, what: string, { code }: Output) => {
        fact(`${build} ${what}`, `exit ${code}${code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`)
        if (code) violated('the builds understand each other', `${build} ${what}`, `the ${build} build: ${what} exits ${code}: ${lastOf('met.out')}`, `${build} vykar ${what}`) // biome-ignore format: one line
      }
      for (let turn = 1; turn <= 4; turn++) {
        const build = turn % 2 ? 'old' : 'new'
        const other = turn % 2 ? 'new' : 'old'
        step(`turn ${turn}: ${build}`)
        const id = `turn-${turn}`
        await $`e2e data-gen/change --dir source --percent 10 --each --seed ${run.common.seed + turn} > change.out`
        await contents('source', id)
        const made = await by(build, `backup -R ${repo}`)
        must(build, `backup ${turn}`, made)
        if (made.code) continue
        await $`sed -n 's/^Snapshot created: //p' met.out > ${id}.id`
        ids.push(id)
        for (const reader of [build, other] as const) {
          must(reader, `list after ${build} backup ${turn}`, await by(reader, `list -R ${repo}`))
          must(reader, `check after ${build} backup ${turn}`, await by(reader, `check -R ${repo} --verify-data`))
          for (const one of ids) {
            await $`rm -rf tree && mkdir tree`
            must(
              reader,
              `restore of ${one} after turn ${turn}`,
              await by(reader, `restore -R ${repo} $(<${one}.id) tree`),
            )
            const same = await $({
              expect: 'any',
            })`(cd tree && sha256sum --check --quiet --strict ../${one}.sha256 > ../wrong.out 2>&1)`
            if (same.code) violated('1: acknowledged snapshots restore', `turn ${turn}`, `${one} restored by the ${reader} build is another: ${lastOf('wrong.out')}`, 'vykar restore') // biome-ignore format: one line
          }
        }
        must(other, `compact after ${build} backup ${turn}`, await by(other, `compact -R ${repo} --threshold 0`))
      }
      const server = old && join(dirname(old.path), 'vykar-server')
      if (repo === 'rest' && server && existsSync(server)) {
        step('old server')
        const port = await freePort(0)
        const task = await background(
          'old-server',
        )`env VYKAR_TOKEN=$VYKAR_E2E_REST_TOKEN ${server} --listen 127.0.0.1:${port} --data-dir "$FILES_REST"`
        await $({ limit: '30s' })`until curl -fs -o /dev/null http://127.0.0.1:${port}/health; do sleep 0.05; done`
        const there = at(repo, `http://127.0.0.1:${port}`)
        must('new', 'check --verify-data on the old server', await by('new', `check -R ${repo} --verify-data`, there))
        must('new', 'compact on the old server', await by('new', `compact -R ${repo} --threshold 0`, there))
        await allThere(repo, ids, 'old server', there)
        await task.end('TERM')
      }
      await allThere(repo, ids, 'all', here)
      await $`rm -rf source corpus tree`
      await conclude(tried, tried)
    })
})
