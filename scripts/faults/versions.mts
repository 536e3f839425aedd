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
import { $, check, fact, type Output, read, step } from '#lib/sh.mts'
import { Skipped } from '#lib/verdict.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { acknowledged, conclude, faultOptions, stillShown } from '#scripts/faults/common.mts'
import { allThere, at, inTheEnd, lastOf, restoredAs, violated } from '#scripts/faults/oracle.mts'
import { ownServer } from '#scripts/guard.mts'
import { freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const options = {
  baseline: { kind: 'path', help: 'the other build of vykar' },
  'corpus-mib': faultOptions['corpus-mib'],
} as const
const spec = { needs: standardNeeds, wants: serverWants, repos: ['local', 'rest'], options } as const

await scenario(import.meta, spec, async (run) => {
  const { baseline, 'corpus-mib': mib } = run.options
  const old = baseline && !run.dry ? await identifyVykar(baseline) : undefined
  if (old) run.report.versions.baseline = old.version
  await servers()
  for (const repo of run.repos)
    await run.row({ repo }, async () => {
      if (!baseline && !run.dry) throw new Skipped('versions: --baseline OLD names the other build')
      if (repo !== 'local') ownServer()
      const ids = await acknowledged(repo, 1, Math.min(mib, 8))
      // Each build is `vykar` in a directory of its own, and has a cache of its own.
      await $`mkdir bin-new bin-old && ln -s "$(command -v vykar)" bin-new/vykar && ln -s ${old?.path ?? 'OLD'} bin-old/vykar`
      for (const build of ['new', 'old'])
        await $`sed 's|^cache_dir: .*|cache_dir: cache-${{ raw: build }}|' config.yaml > ${build}.yaml`
      const as = (build: string) => ({ raw: `PATH=$PWD/bin-${build}:$PATH` })
      let tried = 0
      /** What a build did must have worked. */
      const must = (build: string, what: string, { code }: Output) => {
        tried++
        fact(`${build} ${what}`, `exit ${code}${code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`)
        if (code) violated('the builds understand each other', `the ${build} build: ${what} exits ${code}: ${lastOf('met.out')}`, `${build} vykar ${what}`) // biome-ignore format: one line
      }
      const any = { limit: '10m', expect: 'any' } as const
      for (let turn = 1; turn <= 4; turn++) {
        const [build, other] = turn % 2 ? ['old', 'new'] : ['new', 'old']
        step(`turn ${turn}: ${build}`)
        const id = `turn-${turn}`
        await $`e2e data-gen/change --dir source --percent 10 --each --seed ${run.common.seed + turn} > change.out`
        await witnessed('source', id)
        const made = await $(any)`${as(build)} vykar --config ${build}.yaml backup -R ${repo} > met.out 2>&1`
        must(build, `backup ${turn}`, made)
        if (made.code) continue
        await $`sed -n 's/^Snapshot created: //p' met.out > ${id}.id`
        ids.push(id)
        for (const reader of [build, other]) {
          const after = `after turn ${turn}`
          const listing = await $(any)`${as(reader)} vykar --config ${reader}.yaml list -R ${repo} > met.out 2>&1`
          must(reader, `list ${after}`, listing)
          await $`cat ${ids.map((one) => `${one}.id`)} | while read -r id; do grep -q "^ *$id " met.out || echo $id; done > unlisted`
          await check('test ! -s unlisted', () => {
            const [lacks] = read('unlisted').split('\n')
            if (lacks) violated('1: acknowledged snapshots restore', `list of the ${reader} build ${after} lacks ${lacks}`, 'vykar list') // biome-ignore format: one line
          })
          const checked = await $(
            any,
          )`${as(reader)} vykar --config ${reader}.yaml check -R ${repo} --verify-data > met.out 2>&1`
          must(reader, `check ${after}`, checked)
          for (const one of ids) {
            tried++
            const how = await restoredAs(repo, one, as(reader), '', `${reader}.yaml`)
            if (how !== 'right') violated('1: acknowledged snapshots restore', `${one} restored by the ${reader} build ${after} is ${how}: ${lastOf(how === 'wrong' ? 'wrong.out' : 'restore.out')}`, 'vykar restore') // biome-ignore format: one line
          }
        }
        const compacted = await $(
          any,
        )`${as(other)} vykar --config ${other}.yaml compact -R ${repo} --threshold 0 > met.out 2>&1`
        must(other, `compact after turn ${turn}`, compacted)
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
        const checked = await $(any)`${there} vykar --config new.yaml check -R ${repo} --verify-data > met.out 2>&1`
        must('new', 'check --verify-data on the old server', checked)
        const compacted = await $(any)`${there} vykar --config new.yaml compact -R ${repo} --threshold 0 > met.out 2>&1`
        must('new', 'compact on the old server', compacted)
        await allThere(repo, ids, there)
        await task.end('TERM')
      }
      await inTheEnd(repo, ids)
      await $`rm -rf source corpus tree`
      await conclude(tried, tried)
    })
  stillShown(run)
})
