#!/usr/bin/env -S npx tsx
// A backup that is interrupted and resumed, on local, rest, s3 and sftp.
// Each: start a backup, signal it once its first pack is in the repository, KILL it if it still lives after the grace
// time, then back up again, list, snapshot list, restore, compare, check. An interrupt counts only if the backup did
// not end well and `list` shows no snapshot of it; one that came too late is tried again sooner, then with a larger
// source, and only then BLOCKED.
// Passes when the resumed backup restores exactly what the source holds and, after TERM, stored less than a full one.
// After KILL vykar is known to reuse nothing: that is a known gap, reported with its reason.
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import { sleep } from 'zx'
import { background, type Ended, until } from '#lib/background.mts'
import { diskUsage } from '#lib/cleanup.mts'
import { corpus } from '#lib/corpus.mts'
import { explainLines, gapsOf } from '#lib/gaps.mts'
import type { Row } from '#lib/row.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $, seconds } from '#lib/sh.mts'
import { expectFiles, expectSnapshot, freshRepository, restored, retire, standardNeeds } from '#lib/standard.mts'
import { bytes } from '#lib/terminal.mts'
import { Blocked, Mismatch } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import { parseBackup, parseList, parseSize } from '#lib/vykar.mts'

const options = {
  source: { kind: 'dir', help: 'tree to back up; default ~/corpus-local/snapshot-1, ~/corpus-remote/snapshot-1' },
  'corpus-gib': { kind: 'number', help: 'size of a default corpus that has to be made', default: 1, above: true },
  signal: { kind: 'string', help: 'what interrupts the backup', choices: ['TERM', 'KILL'], default: 'TERM' },
  after: { kind: 'string', help: 'wait this long (1s to 5s) instead of for the first pack' },
  grace: { kind: 'number', help: 'seconds from TERM to KILL; default 2, on sftp 60' },
} as const
const repos = ['local', 'rest', 's3', 'sftp'] as const
/** Packs of 1 to 8 MiB instead of 32 to 192: the first one is there early, and the journal that a resume needs too. */
const smallPacks = { min_pack_size: 1 << 20, max_pack_size: 8 << 20 }

/** Packs that the repository shows; -1 where its files cannot be seen. */
function packsIn(files: string | undefined): number {
  const dir = files && join(files, 'packs')
  if (!dir || !existsSync(dir)) return files ? 0 : -1
  const shards = readdirSync(dir).filter((name) => /^[0-9a-f]{2}$/.test(name))
  return shards.reduce(
    (sum, shard) => sum + readdirSync(join(dir, shard)).filter((name) => /^[0-9a-f]{64}$/.test(name)).length,
    0,
  )
}

const sessionsIn = (files: string | undefined, kind: string) =>
  files && existsSync(join(files, kind))
    ? readdirSync(join(files, kind)).filter((name) => !name.endsWith('XLDIR__'))
    : []

/** The source, at least 256 MiB of it, so that the backup lasts longer. */
async function larger(source: string, row: Row): Promise<string> {
  const copy = join(row.dir, 'larger')
  await $({ limit: '30m' })`cp -a ${source} ${copy} && head -c 512M /dev/urandom > ${copy}/vykar-e2e-filler`
  await $`sed -i "s|path: .*|path: ${copy}|" ${row.config}`
  return copy
}

/** One attempt: a backup in the background and its interruption. */
async function interrupted(
  row: Row,
  run: { signal: string; after?: string; grace: number },
  sooner: boolean,
): Promise<Ended> {
  const { config, files, repository } = row
  const argv = ['vykar', '--config', config, 'backup', '-R', repository.label]
  const before = packsIn(files)
  const backup = background(argv, 'interrupted.out')
  if (run.after) await sleep(seconds(run.after) * 1000)
  else if (before < 0) await sleep(sooner ? 1000 : 2000)
  else {
    const seen = () => (sooner ? sessionsIn(files, 'sessions').length > 0 : packsIn(files) > before)
    await until(
      sooner ? 'a session' : 'the first pack',
      () => seen() || !backup.running(),
      '600s',
      () => `${packsIn(files)} packs`,
    )
  }
  return backup.interrupt(run.signal as 'TERM' | 'KILL', run.grace)
}

/** The transcript's version of an attempt. */
function byHand(
  row: Row,
  transcript: { line: (text: string) => void; quote: (word: string) => string },
  signal: string,
  grace: number,
): void {
  const packs = row.files
    ? `until find ${transcript.quote(join(row.files, 'packs'))} -type f -size +0 2>/dev/null | grep -q .; do sleep 0.05; done`
    : 'sleep 2'
  transcript.line(
    `vykar --config ${transcript.quote(row.config)} backup -R ${row.repository.label} > interrupted.out 2>&1 & pid=$!`,
  )
  transcript.line(packs)
  transcript.line(
    `kill -${signal} $pid; (sleep ${grace}; kill -KILL $pid 2>/dev/null) & rc=0; wait $pid || rc=$?; test $rc -ne 0`,
  )
}

/** A snapshot that an interrupted backup has made after all must be a whole one. */
async function completeAlthoughLate(row: Row, id: string, source: string): Promise<void> {
  const dir = await restored(row.config, row.repository.label, id, `late-${id}`)
  await sameTree(source, dir)
}

const wants = ['vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const

await scenario(import.meta, { needs: [...standardNeeds, 'curl', 'ssh-keygen'], wants, repos, options }, async (run) => {
  const { signal, after, source: named } = run.options
  if (after) seconds(after)
  const sources = new Map<string, string>()
  for (const repo of run.repos) {
    const which = repo === 'local' ? 'corpus-local' : 'corpus-remote'
    const whole = named ?? join(homedir(), which)
    if (![...sources.values()].some((path) => path.startsWith(whole)))
      await run.step(basename(whole), () => corpus(run, whole))
    sources.set(repo, named ?? join(whole, 'snapshot-1'))
  }
  await run.step('servers', () => startServices(run))

  for (const repo of run.repos) {
    const grace = run.options.grace ?? (repo === 'sftp' ? 60 : 2)
    let source = sources.get(repo)!
    await run.row({ repo, variant: signal, values: { SOURCE: source }, repository: smallPacks }, async (row) => {
      const { step, config, files, report } = row
      const { facts } = report
      let cut: Ended | undefined
      for (const attempt of ['first pack', 'sooner', 'larger source', 'larger source, sooner'] as const) {
        if (attempt === 'larger source') source = await step('larger source', () => larger(source, row))
        await step(`init (${attempt})`, () => freshRepository(config, repo))
        cut = await step(`interrupt (${attempt})`, async () => {
          byHand(row, run.transcript, signal, grace)
          return run.dry ? undefined : interrupted(row, { signal, after, grace }, attempt.endsWith('sooner'))
        })
        const list = await step('list', () => $({ limit: '10m' })`vykar --config ${config} list -R ${repo} --last 5`)
        if (run.dry) break
        const [late] = parseList(list.stdout)
        if (cut!.rc === 0 && !late)
          throw new Mismatch(`the backup ended with exit 0 on ${signal}, but list shows no snapshot`)
        if (!late) break
        await step('late snapshot', () => completeAlthoughLate(row, late.id, source))
        report.notes.push(`${attempt}: the interrupt came too late (exit ${cut!.rc}, snapshot ${late.id})`)
        cut = undefined
      }
      if (!run.dry && !cut) throw new Blocked('every interrupt came too late: give a larger --source')
      facts.interrupt_rc = cut?.rc ?? ''
      facts['ended by'] = `${cut?.by} ${cut?.seconds.toFixed(2)} s after the signal, grace ${grace} s`
      if (files) {
        facts['packs at the interrupt'] = `${packsIn(files)}, ${bytes(diskUsage(join(files, 'packs')))}`
        facts['locks and sessions left'] =
          `${sessionsIn(files, 'locks').length} and ${sessionsIn(files, 'sessions').length}`
      }

      facts.resume_rc = ''
      const resume = await step('resume', async () => {
        const done = await $({
          limit: '3600s',
          expect: 'any',
          out: 'backup.out',
        })`vykar --config ${config} backup -R ${repo}`
        facts.resume_rc = done.code
        if (done.code !== 0)
          throw new Mismatch(
            `the resumed backup ended with exit ${done.code}: ${done.stderr.trim().split('\n').at(-1)}`,
          )
        return done
      })
      const id = await step('list', () => expectSnapshot(config, repo, resume, { label: 'corpus' }))
      facts.snapshot_id = id
      await step('last five', () => $`vykar --config ${config} list -R ${repo} --last 5`)
      await step('snapshot list', () => expectFiles(config, repo, id, source))
      const dir = await step('restore', () => restored(config, repo, id))
      await step('compare', () => sameTree(source, dir))
      await step('reuse', async () => {
        const info = await $({ limit: '10m', out: 'info.out' })`vykar --config ${config} info -R ${repo}`
        const [, unique] = info.must(/^\s*Unique stored\s+(.*?)\s*$/m, 'info does not say what is stored')
        if (unique === undefined) return
        const stored = parseBackup(resume.stdout)[0]!.deduplicated
        const chunks = Number(/recovered_chunks=(\d+)/.exec(resume.stderr)?.[1] ?? 0)
        // Sizes are printed with two decimals: a hundredth is more than their last digits hide.
        const saved = parseSize(unique) - stored
        const reused = chunks > 0 || saved > parseSize(unique) / 100
        facts['reused by the resume'] = `${bytes(reused ? saved : 0)} of ${unique}, ${chunks} chunks recovered`
        const line = `${cut!.by} reused ${chunks} chunks`
        const { unexplained, seen } = explainLines('resume', reused ? [] : [line], gapsOf(run.plan.vykar.version))
        report.gaps.push(...seen)
        if (unexplained.length)
          throw new Mismatch(
            `the resumed backup stored as much as a full one: ${line}, stored ${bytes(stored)} of ${unique}`,
          )
      })
      await step('retire', () => retire(config, repo, id))
      if (cut && cut.by !== signal)
        throw new Blocked(
          `${signal} did not end the backup within ${grace} s, KILL was needed: resuming after ${signal} was not tested; give a longer --grace`,
        )
    })
  }

  const page = join(run.runtime, 'reports', run.plan.name, run.id, 'report.md')
  const columns = ['backend', 'status', 'reason', 'interrupt_rc', 'resume_rc', 'snapshot_id', 'log_dir', 'report_path']
  const rows = run.report.rows.map(({ repo, verdict, reason, facts }) => [
    repo,
    verdict,
    reason,
    facts.interrupt_rc ?? '',
    facts.resume_rc ?? '',
    facts.snapshot_id ?? '',
    run.dirs.logs,
    page,
  ])
  if (!run.dry) writeFileSync(join(dirname(page), 'interrupt-minimal.csv'), stringify([columns, ...rows]))
})
