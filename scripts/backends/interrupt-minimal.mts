#!/usr/bin/env -S npx tsx
// A backup that is interrupted and resumed, on local, rest, s3 and sftp.
// Each: start a backup, signal it when it has read a seeded 25 to 75 % of the source, KILL it if it still lives after the
// grace time, then back up again, list, snapshot list, restore, compare, check. An interrupt counts only if `list` shows no
// snapshot of it; one that came too late is tried again sooner, then with a larger source, and only then BLOCKED.
// Passes when TERM ended the backup with 130 within the grace time, the resumed backup restores exactly what the source holds,
// and nine tenths of what had been uploaded were not uploaded again. After KILL (137) vykar is known to reuse nothing.
import { writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import { seeded } from '#data-gen/random.mts'
import { background, type Ended } from '#lib/background.mts'
import { diskUsage } from '#lib/cleanup.mts'
import { config } from '#lib/config.mts'
import { gapsOf } from '#lib/gaps.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, read, rowScope, seconds, step } from '#lib/sh.mts'
import { bytes } from '#lib/terminal.mts'
import { Blocked, Mismatch } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { listed, numbers, packBytes, says, shows, standardNeeds, torn } from '#scripts/checks.mts'
import { fresh, hidden, retire, serverWants } from '#scripts/common.mts'
import { corpus, fits, sourceOptions, witness } from '#scripts/corpus.mts'
import { explainLines } from '#scripts/findings.mts'
import { parseBackup, parseList, parseSize, resumes } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

const options = {
  source: { kind: 'dir', help: 'tree to back up; default ~/corpus-local/snapshot-1, ~/corpus-remote/snapshot-1' },
  'corpus-gib': sourceOptions['corpus-gib'],
  signal: { kind: 'string', help: 'what interrupts the backup', choices: ['TERM', 'KILL'], default: 'TERM' },
  after: { kind: 'string', help: 'wait this long (1s to 5s) instead of for a share of the source' },
  grace: { kind: 'number', help: 'seconds from TERM to KILL', default: 60 },
} as const
const repos = ['local', 'rest', 's3', 'sftp'] as const
const spec = { needs: standardNeeds, wants: serverWants, repos, options } as const

await scenario(import.meta, spec, async (run) => {
  const { signal, after, grace, source: named, seed } = run.options
  if (after) seconds(after)
  const sources = new Map<string, string>()
  for (const which of ['local', 'remote'] as const) {
    const labels = run.repos.filter((repo) => (repo === 'local') === (which === 'local'))
    if (!labels.length || (named && sources.size)) {
      for (const label of labels) sources.set(label, named!)
      continue
    }
    step(named ? 'source' : `corpus-${which}`)
    const source = named ?? join(await corpus(which, undefined, run.options['corpus-gib']), 'snapshot-1')
    await fits(source)
    await witness(source, named !== undefined)
    for (const label of labels) sources.set(label, source)
  }
  await servers()

  for (const repo of run.repos)
    await run.row({ repo, variant: signal }, async () => {
      let source = sources.get(repo)!
      // Packs of 1 to 8 MiB instead of 32 to 192, so that a small source has many of them.
      const written = () => config`
sources:
  - path: ${source}
    label: corpus
repositories:
  - min_pack_size: 1048576
    max_pack_size: 8388608
`
      const share = 0.25 + 0.5 * seeded(`interrupt ${seed} ${repo}`)()
      let cut = { code: 0, by: 'none', seconds: 0 }
      let uploaded = 0
      let young = false
      for (const [n, attempt] of ['mid-run', 'sooner', 'larger source', 'larger source, sooner'].entries()) {
        if (attempt === 'larger source') {
          step('larger source')
          await $({ limit: '30m' })`cp -a ${source} larger && head -c 512M /dev/urandom > larger/vykar-e2e-filler`
          source = 'larger'
        }
        step(`init (${attempt})`)
        await written()
        await fresh(repo)

        step(`interrupt (${attempt})`)
        const whole = run.dry ? 0 : await diskUsage(resolve(rowScope().dir, source), true)
        const target = Math.round(whole * (n % 2 ? Math.max(0.25, share / 2) : share))
        // A fast disk is read ahead of the first upload: without a pack in the repository nothing could be reused.
        const { files, seen } = run.endpoint(repo)
        const arrived =
          files && seen
            ? `find "$${seen}"/packs -type f -size +0 ! -path '*__XLDIR__*' ! -name '.tmp*' 2> /dev/null | grep -q .`
            : 'true'
        const started = performance.now()
        const backup = await background('interrupted')`vykar --config config.yaml backup -R ${repo}`
        if (after) await $`sleep ${after}`
        else
          await $({
            limit: '10m',
            expect: 'any',
          })`while kill -0 $(<interrupted.pid) 2> /dev/null; do for p in $(<interrupted.pid) $(pgrep -P $(<interrupted.pid)); do cat /proc/$p/io; done 2> /dev/null | awk '/^rchar/ {n += $2} END {exit n < ${{ raw: String(target) }}}' && ${{ raw: arrived }} && break; sleep 0.01; done  # bytes that vykar has read`
        young = performance.now() - started < 500
        cut = await backup.end(signal as 'TERM' | 'KILL', `${grace}s`)
        uploaded = packBytes()
        const early = files && !uploaded && !run.dry
        if (signal === 'KILL') await torn()

        step('list')
        await $`vykar --config config.yaml list -R ${repo} --last 5 > late.list`
        const [late] = run.dry ? [] : parseList(read('late.list'))
        if (!late && early) throw new Blocked('nothing had been uploaded when the signal came: give a larger --source')
        if (!late) break
        // A snapshot that an interrupted backup has made after all must be a whole one, and the backup have ended as it must.
        step('late snapshot')
        await ends(cut, signal, grace, young, true)
        await $({ limit: '1h' })`mkdir late-${n} && vykar --config config.yaml restore -R ${repo} ${late.id} late-${n}`
        await sameTree(source, `late-${n}`)
        note(`${attempt}: the interrupt came too late (exit ${cut.code}, snapshot ${late.id})`)
        if (n === 3) throw new Blocked('every interrupt came too late: give a larger --source')
      }
      await shows(0, 'late.list', 'the backup was interrupted')
      fact('interrupt_rc', cut.code)
      fact('ended by', `${cut.by} ${cut.seconds.toFixed(2)} s after the signal, grace ${grace} s`)
      fact('uploaded when interrupted', bytes(uploaded))
      await ends(cut, signal, grace, young, false)

      step('resume')
      fact('resume_rc', '')
      const resumed = await $({
        limit: '1h',
        expect: [0, 1, 2, 3],
        warns: resumes,
      })`vykar --config config.yaml backup -R ${repo} > backup.out 2> backup.err`
      fact('resume_rc', resumed.code)
      await $`sed -n 's/^Snapshot created: //p' backup.out | grep . > snapshot.id || { tail -n 1 backup.err >&2; exit 1; }`
      if (resumed.code) throw new Mismatch(`the resumed backup ended with exit ${resumed.code}`)

      step('list')
      await $`vykar --config config.yaml list -R ${repo} --last 5 > list.out`
      await listed('corpus')
      fact('snapshot_id', read('snapshot.id'))

      step('snapshot list')
      await $`vykar --config config.yaml snapshot list -R ${repo} $(<snapshot.id) > snapshot.list`
      await $`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
      await $`diff <(sort source.list) <(sort snapshot.list)`

      step('restore')
      await $({
        limit: '1h',
      })`rm -rf lost && mkdir lost restored && HOME=$PWD/lost ${hidden(source, true)} vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) restored > restored.out`
      await numbers('restored', 'backup.out', 'list.out', 'restored.out')
      await witnessed('restored', 'snapshot')

      step('compare')
      await sameTree(source, 'restored')

      step('reuse')
      const resumedBytes = packBytes()
      // What no snapshot needs goes: then the packs hold what the snapshot takes, by their own size and not by what vykar says.
      await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compacted.out`
      await $`vykar --config config.yaml info -R ${repo} > info.out`
      await says('info.out', /^\s*Unique stored\s+\S/m, 'info does not say what is stored')
      await check('# nine tenths of what had been uploaded were not uploaded again', () => {
        const unique = packBytes() || parseSize(/^\s*Unique stored\s+(.*?)\s*$/m.exec(read('info.out'))![1]!)
        const stored = parseBackup(read('backup.out'))[0]!.deduplicated
        // Where the packs cannot be seen, the backup's own word has to do.
        const again = uploaded ? resumedBytes - uploaded : stored
        const reused = Math.max(0, unique - again)
        fact(
          'reused by the resume',
          `${bytes(reused)} of ${bytes(uploaded || unique)} uploaded, ${bytes(again)} more for ${bytes(unique)}`,
        )
        if (reused >= 0.9 * uploaded && reused > 0) return
        const line = `${cut.by} reused ${reused < 0.1 * uploaded ? 'nothing' : bytes(reused)}`
        const { unexplained, seen } = explainLines('resume', [line], gapsOf(run.plan.vykar.version))
        rowScope().report.gaps.push(...seen)
        if (unexplained.length)
          throw new Mismatch(`${line} of ${bytes(uploaded)} that had been uploaded: nine tenths are needed`)
      })

      step('retire')
      await retire(repo, ['snapshot'])
    })

  if (run.dry) return
  const columns = ['backend', 'status', 'reason', 'interrupt_rc', 'resume_rc', 'snapshot_id', 'log_dir', 'report_path']
  const rows = run.report.rows.map(({ repo, verdict, reason, facts }) => [
    repo,
    verdict,
    reason,
    facts.interrupt_rc ?? '',
    facts.resume_rc ?? '',
    facts.snapshot_id ?? '',
    run.dirs.logs,
    join(run.dirs.reports, 'report.md'),
  ])
  writeFileSync(join(run.dirs.reports, 'interrupt-minimal.csv'), stringify([columns, ...rows]))
})

/** A backup that got the signal has ended as it must: by it, in time, with its exit code; with 0 only where it had made its snapshot already. */
async function ends(
  { code, by }: Pick<Ended, 'code' | 'by'>,
  signal: string,
  grace: number,
  young: boolean,
  late: boolean,
): Promise<void> {
  const right = signal === 'KILL' ? 137 : 130
  const hand = late ? `[[ $rc == 0 || $rc == ${right} ]]` : `[[ $(<late.list) == *'No snapshots found'* ]]`
  await check(`${hand}  # exit ${right}`, () => {
    if (by === 'KILL' && signal === 'TERM')
      throw new Mismatch(`TERM did not end the backup within ${grace} s, KILL was needed`)
    if (code === 0 && late) return
    if (code === 0) throw new Mismatch(`the backup ended with exit 0 on ${signal}, but list shows no snapshot`)
    // A program that has not yet begun to listen for TERM ends as every program does.
    if (code !== right && !(code === 143 && young))
      throw new Mismatch(`${signal} ended the backup with exit ${code} instead of ${right}`)
  })
}
