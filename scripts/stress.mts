#!/usr/bin/env -S npx tsx
// Hours of change, backup, list, restore, snapshot delete, prune, compact, check and interruption, in an order drawn
// from the seed, by one or more clients on one repository, against a model that remembers what must be there.
// Passes when after every step the list is the model's, no lock or session is held and the size is explained by what is
// retained, every restore equals the manifest made at its backup, nothing grows from step to step, and the repository
// is empty after its last snapshot went. A failure stops the walk, keeps everything and prints how to repeat it.
import { join } from 'node:path'
import { sleep } from 'zx'
import { background } from '#lib/background.mts'
import { root } from '#lib/prepare.mts'
import { nothingHeld } from '#lib/repository.mts'
import { type Row, rowScope } from '#lib/row.mts'
import { type ScenarioRun, scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { $, type Output, scope, seconds, within } from '#lib/sh.mts'
import { freshRepository, packBytes, standardNeeds } from '#lib/standard.mts'
import { type Client, makeClients, needWalkSpace } from '#lib/stress/clients.mts'
import { explained, liveKiB, noGrowth } from '#lib/stress/growth.mts'
import { contents, manifest, sameAsWritten } from '#lib/stress/manifest.mts'
import { disagreement, type Kept, survivors } from '#lib/stress/model.mts'
import { figuresOf, type Sample, Series } from '#lib/stress/series.mts'
import { change, shareOf } from '#lib/stress/source.mts'
import { type Spent, walkStep } from '#lib/stress/steps.mts'
import {
  type Action,
  beginTrace,
  described,
  isMaintenance,
  parseWeights,
  plan,
  readTrace,
  type Trace,
  type WalkOptions,
} from '#lib/stress/walk.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { Blocked, Mismatch, UsageError } from '#lib/verdict.mts'
import { checkLine, compactLine, parseBackup, parseList } from '#lib/vykar.mts'

const options = {
  iterations: { kind: 'number', help: 'steps on each repository; default 200 where no --duration is given', min: 1 },
  duration: { kind: 'string', help: 'go on for so long on each repository: 90s, 30m, 6h' },
  retain: { kind: 'number', help: 'snapshots kept at any time', default: 8, min: 2 },
  'check-every': { kind: 'number', help: 'steps from one `check` to the next', default: 20, min: 1 },
  'verify-data-every': {
    kind: 'number',
    help: 'steps from one `check --verify-data` to the next',
    default: 100,
    min: 1,
  },
  'drop-caches': { kind: 'flag', help: 'drop the page cache before each restore and check; needs root' },
  churn: { kind: 'number', help: 'percent of the files that a change touches', default: 5, above: true },
  concurrency: { kind: 'number', help: 'clients on one repository, each with its own source', default: 1, min: 1 },
  weights: { kind: 'list', help: 'how often an action is drawn: backup=6,restore=5,...; 0 leaves one out' },
  'corpus-gib': { kind: 'number', help: 'size of each client’s source', default: 0.1, above: true },
  replay: { kind: 'file', help: 'repeat the walk that this trace records' },
} as const
type Stress = ScenarioRun<typeof options>
/** Packs of 1 to 8 MiB instead of 32 to 192: a small repository has many of them too. */
const smallPacks = { min_pack_size: 1 << 20, max_pack_size: 8 << 20 }
/** What vykar says when maintenance and another client meet. */
const refusal = /active sessions prevent maintenance|repository is locked by/

/** A walk under way. */
interface Walk {
  run: Stress
  row: Row
  repo: string
  options: WalkOptions
  clients: Client[]
  /** What must be in the repository, oldest first. */
  model: Kept[]
  series: Series
  spent: Spent
  counts: Record<string, number>
}

/** What was done, or happened, once more. */
function count({ counts }: Walk, what: string): void {
  counts[what] = (counts[what] ?? 0) + 1
}

/** The exit codes that are right: alone 0 only, and beside another client 1 too, which must then be a refusal. */
const expected = (alone: boolean) => (alone ? [0] : [0, 1])

/** The snapshot that a backup says it made, with the manifest of its source. */
async function remember(
  walk: Walk,
  client: Client,
  serial: string,
  { id, files }: { id: string; files: number },
): Promise<void> {
  const stem = join(walk.row.dir, 'model', serial)
  await manifest(client.source, stem)
  await contents(client.source, stem)
  walk.model.push({ serial, id, label: client.label, files, hour: '', manifest: stem })
}

async function backup(walk: Walk, client: Client, serial: string, alone: boolean): Promise<Output> {
  const done = await $({
    limit: '3600s',
    expect: expected(alone),
    out: 'backup.out',
  })`vykar --config ${client.config} backup -R ${walk.repo}`
  if (done.code === 1) return done.complained(refusal)
  const [created, ...more] = parseBackup(done.stdout)
  if (!created || more.length)
    throw new Mismatch(`backup exited 0 but printed ${more.length + (created ? 1 : 0)} created snapshots`)
  if (created.errors) throw new Mismatch(`backup exited 0 but counted ${created.errors} errors`)
  client.last = done.record.seconds
  await remember(walk, client, serial, created)
  return done
}

/** TERM at some moment of a backup, which is then made again. An interrupt that came late has made a whole snapshot. */
async function interrupt(walk: Walk, client: Client, serial: string, moment: number): Promise<void> {
  const begun = background(['vykar', '--config', client.config, 'backup', '-R', walk.repo], 'interrupted.out')
  await sleep(moment * client.last * 1000)
  const { rc, by } = await begun.interrupt('TERM', 60)
  if (by === 'KILL') throw new Blocked('TERM did not end the backup within 60 s')
  // A program that has not yet begun to listen for TERM ends as any does: 128 + 15.
  const early = rc === 143 && moment * client.last < 0.5
  if (rc !== 0 && rc !== 130 && !early)
    throw new Mismatch(`the interrupted backup ended with exit ${rc} instead of 130`)
  const list = await $({ limit: '10m', out: 'late.out' })`vykar --config ${client.config} list -R ${walk.repo}`
  const late = parseList(list.stdout).find(
    (s) => s.label === client.label && !walk.model.some((kept) => kept.id === s.id),
  )
  if (rc === 0 && !late) throw new Mismatch('the interrupted backup exited 0, but list shows no snapshot of it')
  if (late) {
    count(walk, 'interrupted, came too late')
    await remember(walk, client, serial, late)
  }
  await backup(walk, client, `${serial}-resumed`, true)
}

async function restore(walk: Walk, client: Client, { manifest: stem, id }: Kept): Promise<void> {
  const restored = join(client.dir, 'restored')
  await dropCaches(walk)
  await $`mkdir ${restored}`
  await $({ limit: '3600s' })`vykar --config ${client.config} restore -R ${walk.repo} ${id} ${restored}`
  await sameAsWritten(stem, restored)
  await $({ limit: '1h', unlisted: true })`rm -rf ${restored}/`
}

async function check(walk: Walk, client: Client, alone: boolean, ...flags: string[]): Promise<Output> {
  await dropCaches(walk)
  const done = await $({
    limit: '3600s',
    expect: expected(alone),
    out: 'check.out',
  })`vykar --config ${client.config} check -R ${walk.repo} ${flags}`
  if (done.code === 1) return done.complained(refusal)
  const [, snapshots, , , chunks, verified] = done.must(checkLine, 'check printed no result')
  done.must(/, 0 errors$/m, 'check exited 0 but counted errors')
  if (alone && Number(snapshots) !== walk.model.length)
    throw new Mismatch(`check looked at ${snapshots} snapshots of ${walk.model.length}`)
  if (flags.length && Number(verified) < Number(chunks))
    throw new Mismatch(`check --verify-data verified ${verified} of ${chunks} chunks`)
  return done
}

/** Snapshots that the model must forget, unless the removal was refused. */
async function remove(walk: Walk, client: Client, { target, policy }: Action, alone: boolean): Promise<Output> {
  const expect = expected(alone)
  const gone = walk.model.find((kept) => kept.serial === target)
  const rules = Object.entries(policy ?? {}).map(([name, n]) => `  ${name}: ${n}`)
  const done = gone
    ? await $({ limit: '1800s', expect })`vykar --config ${client.config} snapshot delete -R ${walk.repo} ${gone.id}`
    : await $({
        limit: '1800s',
        expect,
      })`{ cat ${client.config}; printf '%s\n' retention: ${rules}; } > prune.yaml && vykar --config prune.yaml prune -R ${walk.repo}`
  if (done.code === 1) return done.complained(refusal)
  walk.model = gone ? walk.model.filter((kept) => kept !== gone) : survivors(walk.model, policy!)
  return done
}

async function compact(walk: Walk, client: Client, threshold: number | undefined, alone: boolean): Promise<Output> {
  const flags = threshold === undefined ? [] : ['--threshold', String(threshold)]
  const done = await $({
    limit: '1800s',
    expect: expected(alone),
    out: 'compact.out',
  })`vykar --config ${client.config} compact -R ${walk.repo} ${flags}`
  if (done.code === 1) return done.complained(refusal)
  done.must(compactLine, 'compact printed no result')
  return done
}

async function dropCaches(walk: Walk): Promise<void> {
  if (walk.run.options['drop-caches'])
    await $({ limit: '10m', unlisted: true })`sync; echo 3 > /proc/sys/vm/drop_caches`
}

/** One action. Returns false when vykar refused it because another client was at work. */
async function act(walk: Walk, step: number, action: Action, alone: boolean): Promise<boolean> {
  const client = walk.clients[action.client - 1]!
  const serial = `${step}.${action.client}`
  const kept = walk.model.find((snapshot) => snapshot.serial === action.target)
  const { kind } = action
  // In a replay an interrupt may come earlier or later than it did: then a target of the trace may not be there.
  if (action.target && !kept) {
    count(walk, 'left out in the replay')
    return true
  }
  count(walk, kind)
  const done = await within({ ...scope(), dir: client.dir }, async (): Promise<Output | undefined> => {
    if (kind === 'backup') return backup(walk, client, serial, alone)
    if (kind === 'restore') await restore(walk, client, kept!)
    else if (kind === 'interrupt') await interrupt(walk, client, serial, action.moment!)
    else if (kind === 'list') await $({ limit: '10m' })`vykar --config ${client.config} list -R ${walk.repo} --last 5`
    else if (kind === 'delete' || kind === 'prune') return remove(walk, client, action, alone)
    else if (kind === 'compact') return compact(walk, client, action.threshold, alone)
    else if (kind === 'check') return check(walk, client, alone)
    else if (kind === 'verify') return check(walk, client, alone, '--verify-data')
    else
      change(client.source, shareOf(client.source, walk.options.churn), client.size, `${walk.options.seed} ${serial}`)
    return undefined
  })
  if (done?.code !== 1) return true
  count(walk, `${kind}, refused beside another client`)
  return false
}

/** A step: its actions side by side, a refused backup again, then everything that must hold. */
async function stepOf(
  walk: Walk,
  step: number,
  actions: Action[],
): Promise<Pick<Sample, 'packBytes' | 'explainedBytes'>> {
  const { repo, row, clients } = walk
  const alone = actions.length === 1 || !actions.some((action) => isMaintenance(action.kind))
  const done = await Promise.allSettled(actions.map((action) => act(walk, step, action, alone)))
  for (const result of done) if (result.status === 'rejected') throw result.reason
  for (const [i, action] of actions.entries())
    if ((done[i] as PromiseFulfilledResult<boolean>).value === false && !isMaintenance(action.kind))
      await act(walk, step, action, true)
  // Serials order what was made side by side, in a replay too.
  walk.model.sort((a, b) => a.serial.localeCompare(b.serial, 'en', { numeric: true }))

  const list = await $({ limit: '10m', out: 'list.out' })`vykar --config ${clients[0]!.config} list -R ${repo}`
  const listed = parseList(list.stdout)
  const wrong = disagreement(walk.model, listed)
  if (wrong) throw new Mismatch(wrong)
  for (const kept of walk.model) kept.hour ||= listed.find((s) => s.id === kept.id)!.date.slice(0, 13)
  await nothingHeld(clients[0]!.config, repo)
  if (!row.files) return { packBytes: undefined, explainedBytes: undefined }
  const packs = await packBytes(join(row.files, 'packs'))
  const tidy = actions.length === 1 && actions[0]!.threshold !== undefined && walk.model.length > 0
  return { packBytes: packs, explainedBytes: tidy ? await explained(walk.model, packs) : undefined }
}

/** Goes on until the steps or the time are over. Any failure says how the walk can be repeated. */
async function goOn(walk: Walk, trace: Trace | undefined): Promise<void> {
  const { run, repo, series, options: o } = walk
  const file = join(run.dirs.logs, `${repo}.trace.jsonl`)
  const record = beginTrace(file, repo, o)
  const until = run.options.duration
    ? performance.now() + seconds(run.options.duration) * 1000
    : Number.POSITIVE_INFINITY
  const most = trace?.steps.length ?? run.options.iterations ?? (run.options.duration ? Number.POSITIVE_INFINITY : 200)
  const start = performance.now()
  let live = 0
  for (let step = 1; step <= most && performance.now() < until; step++) {
    const actions = trace?.steps[step - 1] ?? plan(step, walk.model, o)
    const words = actions.map(described).join(', ')
    record(actions)
    try {
      const { value, commands, seconds: took } = await walkStep(step, walk.spent, () => stepOf(walk, step, actions))
      // A collection takes a moment: one in ten steps is enough to see what grows.
      if (step % 10 === 1) live = liveKiB()
      const vykarKiB = Math.max(0, ...commands.filter((c) => c.command.startsWith('vykar ')).map((c) => c.peakKiB ?? 0))
      const figures = { seconds: took, snapshots: walk.model.length, ...value, vykarKiB, harnessKiB: live }
      series.add({ step, action: words, ...figures })
      if (value.explainedBytes !== undefined) noGrowth(series.samples)
      const rate = step / ((performance.now() - start) / 1000)
      const size = value.packBytes === undefined ? '' : `, ${bytes(value.packBytes)}`
      run.terminal.line(
        `  ${`${repo} #${step}`.padEnd(14)} ${words.padEnd(34)} ${duration(took).padStart(8)}  ${walk.model.length} snapshots${size}, ${rate.toFixed(2)} steps/s`,
      )
    } catch (error) {
      const again = `${join(root, 'e2e')} stress --repo ${repo} --replay ${file}${run.common.sabotage ? ` --sabotage ${run.common.sabotage}` : ''}`
      if (error instanceof Error)
        error.message = `step ${step} of seed ${o.seed} (${words}): ${error.message.split('\n')[0]}; to repeat: ${again}`
      throw error
    }
  }
  noGrowth(series.samples)
}

/** The last snapshots go, and with them every byte in the packs: what a walk has leaked is left over now. */
async function drain({ row, repo, model }: Walk): Promise<void> {
  const ids = model.map((kept) => kept.id)
  if (ids.length) await $({ limit: '1800s' })`vykar --config ${row.config} snapshot delete -R ${repo} ${ids}`
  await $({ limit: '1800s' })`vykar --config ${row.config} compact -R ${repo} --threshold 1`
  const list = await $({ limit: '10m', out: 'gone.out' })`vykar --config ${row.config} list -R ${repo}`
  list.must(/^No snapshots found\.$/m, 'all snapshots were deleted, but list still shows one')
  await nothingHeld(row.config, repo)
  if (!row.files || rowScope().dry) return
  const left = await packBytes(join(row.files, 'packs'))
  if (left > 0) throw new Mismatch(`${bytes(left)} are left in the packs although no snapshot is`)
}

const wants = ['vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const
await scenario(import.meta, { needs: [...standardNeeds, 'getfattr'], wants, options }, async (run) => {
  const { options: o } = run
  if (o.duration) seconds(o.duration)
  if (o.duration && o.iterations !== undefined)
    throw new UsageError('--iterations and --duration are both given: one is enough')
  if (o['drop-caches'] && process.getuid?.() !== 0) throw new UsageError('--drop-caches needs root')
  const trace = o.replay ? readTrace(o.replay) : undefined
  const walkOptions: WalkOptions = trace?.options ?? {
    seed: run.common.seed,
    retain: o.retain,
    checkEvery: o['check-every'],
    verifyDataEvery: o['verify-data-every'],
    churn: o.churn,
    concurrency: o.concurrency,
    corpusGib: o['corpus-gib'],
    weights: parseWeights(o.weights),
  }
  if (trace && !run.repos.includes(trace.repo))
    throw new UsageError(`--replay: the walk was on ${trace.repo}, which --repo leaves out`)
  const repos = trace ? [trace.repo] : run.repos
  needWalkSpace(run, walkOptions)
  await run.step('servers', () => startServices(run))

  for (const repo of repos)
    await run.row({ repo, values: { SOURCE: '/nowhere', LABEL: 'LABEL' }, repository: smallPacks }, async (row) => {
      const clients = await row.step('clients', () => makeClients(row, walkOptions))
      await row.step('init', () => freshRepository(row.config, repo))
      if (run.dry) return
      const walk: Walk = {
        run,
        row,
        repo,
        options: walkOptions,
        clients,
        model: [],
        series: new Series(run, repo),
        spent: { wall: 0, busy: 0, vykar: 0 },
        counts: {},
      }
      try {
        await row.step('walk', () => goOn(walk, trace))
      } finally {
        Object.assign(row.report.facts, { seed: walkOptions.seed }, figuresOf(walk.series, walk.counts, walk.spent))
        await walk.series.draw()
      }
      await row.step('drain', () => drain(walk))
    })
})
