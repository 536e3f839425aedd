#!/usr/bin/env -S npx tsx
// Hours of change, backup, list, restore, snapshot delete, prune, compact, check and interruption, in an order drawn
// from the seed, by one or more clients on one repository, against a model that remembers what must be there.
// Passes when after every step the list is the model's, no lock or session is held and the size is explained by what is
// retained, every restore equals the manifest made at its backup, nothing grows from step to step, and the repository
// is empty after its last snapshot went. A failure stops the walk, keeps everything and prints how to repeat it.
import { existsSync, readdirSync, realpathSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { diskUsage } from '#lib/cleanup.mts'
import { config, localDir } from '#lib/config.mts'
import { apart, root } from '#lib/prepare.mts'
import { busySeconds } from '#lib/report.mts'
import { type ScenarioRun, scenario } from '#lib/scenario.mts'
import { $, type CommandRecord, check, endStep, inside, read, rowScope, seconds, step, within } from '#lib/sh.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { Blocked, Mismatch, UsageError } from '#lib/verdict.mts'
import { nothingHeld, packBytes, says, standardNeeds } from '#scripts/checks.mts'
import { fresh, serverWants } from '#scripts/common.mts'
import { copyOf, reclaimed } from '#scripts/damage.mts'
import { parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'
import { needSpace } from '#scripts/space.mts'
import { act, count, proven, source, type Walk } from '#scripts/stress/actions.mts'
import { explained, liveKiB, noGrowth } from '#scripts/stress/growth.mts'
import { disagreement } from '#scripts/stress/model.mts'
import { figuresOf, Series } from '#scripts/stress/series.mts'
import {
  type Action,
  beginTrace,
  described,
  parseWeights,
  plan,
  readTrace,
  type Trace,
  type WalkOptions,
} from '#scripts/stress/walk.mts'

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
  source: { kind: 'dir', help: 'tree of yours: each client walks on a copy of it' },
  mode: { kind: 'string', help: 'encryption of the repository', choices: ['auto', 'none'], default: 'auto' },
  'time-v': { kind: 'flag', help: 'figures of each vykar command, in stress.REPO.commands.csv' },
  replay: { kind: 'file', help: 'repeat the walk that this trace records' },
} as const
type Options = ScenarioRun<typeof options>['options']
/** Steps that went well and of which the logs stay. */
const keptLogs = 50

/** A step and everything that must hold after it. */
async function stepOf(walk: Walk, n: number, actions: readonly Action[]) {
  const { repo, run } = walk
  // In a replay an interrupt may come earlier or later than it did: then a target of the trace may not be there.
  const able = actions.filter(({ target }) => !target || walk.model.some((kept) => kept.serial === target))
  if (able.length < actions.length) count(walk, 'left out in the replay')
  await act(walk, n, able)
  // Serials order what was made side by side, in a replay too.
  walk.model.sort((a, b) => a.serial.localeCompare(b.serial, 'en', { numeric: true }))
  await $`vykar --config config.yaml list -R ${repo} > list.out`
  await check(`test "$(grep -cE '^ *[0-9a-f]{8} ' list.out || true)" = ${walk.model.length}`, () => {
    const listed = parseList(read('list.out'))
    const wrong = disagreement(walk.model, listed)
    if (wrong) throw new Mismatch(wrong)
    for (const kept of walk.model) kept.hour ||= listed.find((s) => s.id === kept.id)!.date.slice(0, 13)
  })
  await $`vykar --config config.yaml break-lock -R ${repo} > locks.out`
  await nothingHeld('locks.out')
  if (run.dry || !run.endpoint(repo).files) return { packBytes: undefined, explainedBytes: undefined }
  const packs = packBytes()
  const tidy = actions.length === 1 && actions[0]!.threshold !== undefined && walk.model.length > 0
  return { packBytes: packs, explainedBytes: tidy ? await explained(walk.model, packs) : undefined }
}

/**
 * A step with a log of its own; the part under way is told of the time only, and of a step that fails gets the commands too.
 * A walk has thousands of steps: the logs of the last ones stay.
 */
async function logged<T>(walk: Walk, n: number, words: string, fn: () => Promise<T>) {
  const outer = rowScope()
  const scope = { ...outer, steps: [] as typeof outer.steps, quiet: true }
  const name = (number: number) => `step-${String(number).padStart(6, '0')}`
  const start = performance.now()
  const commands = (): CommandRecord[] => scope.steps.flatMap((part) => part.commands)
  try {
    const value = await within(scope, async () => {
      step(`${name(n)} ${words}`)
      return fn()
    })
    const part = outer.steps.at(-1)!
    part.busySeconds = (part.busySeconds ?? 0) + busySeconds(commands())
    if (n > keptLogs && !outer.dry)
      for (const file of readdirSync(outer.run.dirs.logs).filter((log) =>
        log.startsWith(`${outer.where}.01-${name(n - keptLogs)}`),
      ))
        rmSync(join(outer.run.dirs.logs, file))
    return { value, commands: commands(), took: (performance.now() - start) / 1000 }
  } catch (error) {
    outer.steps.at(-1)?.commands.push(...commands())
    throw error
  } finally {
    endStep(scope)
    walk.spent.wall += (performance.now() - start) / 1000
    walk.spent.busy += busySeconds(commands())
    walk.spent.vykar += busySeconds(commands().filter(({ command }) => command.startsWith('vykar ')))
  }
}

/** Goes on until the steps or the time are over. Any failure says how the walk can be repeated. */
async function goOn(walk: Walk, asked: Options, trace: Trace | undefined): Promise<void> {
  const { run, repo, series, options: o } = walk
  const file = join(run.dirs.logs, `${repo}.trace.jsonl`)
  const record = run.dry ? () => {} : beginTrace(file, repo, o)
  const until =
    asked.duration && !run.dry ? performance.now() + seconds(asked.duration) * 1000 : Number.POSITIVE_INFINITY
  const endless = asked.duration && !run.dry ? Number.POSITIVE_INFINITY : 200
  const most = trace?.steps.length ?? asked.iterations ?? endless
  const start = performance.now()
  let live = 0
  for (let n = 1; n <= most && performance.now() < until; n++) {
    const actions = trace?.steps[n - 1] ?? plan(n, walk.model, o)
    const words = actions.map(described).join(', ')
    record(actions)
    try {
      const { value, commands, took } = await logged(walk, n, words, () => stepOf(walk, n, actions))
      if (run.dry) continue
      // A collection takes a moment: one in ten steps is enough to see what grows.
      if (n % 10 === 1) live = liveKiB()
      if (asked['time-v']) series.addCommands(n, commands)
      const vykarKiB = Math.max(0, ...commands.filter((c) => c.command.startsWith('vykar ')).map((c) => c.peakKiB ?? 0))
      series.add({
        step: n,
        action: words,
        seconds: took,
        snapshots: walk.model.length,
        ...value,
        vykarKiB,
        harnessKiB: live,
      })
      if (value.explainedBytes !== undefined) noGrowth(series.samples)
      const rate = n / ((performance.now() - start) / 1000)
      const size = value.packBytes === undefined ? '' : `, ${bytes(value.packBytes)}`
      run.terminal.line(
        `  ${`${repo} #${n}`.padEnd(14)} ${words.padEnd(34)} ${duration(took).padStart(8)}  ${walk.model.length} snapshots${size}, ${rate.toFixed(2)} steps/s`,
      )
    } catch (error) {
      const again = `${join(root, 'e2e')} stress --repo ${repo} --replay ${file}${run.common.sabotage ? ` --sabotage ${run.common.sabotage}` : ''}`
      if (error instanceof Error)
        error.message = `step ${n} of seed ${o.seed} (${words}): ${error.message.split('\n')[0]}; to repeat: ${again}`
      throw error
    }
  }
  if (!run.dry) noGrowth(series.samples)
}

/** The last snapshots go, and with them every byte in the packs: what a walk has leaked is left over now. */
async function drain(walk: Walk): Promise<void> {
  const { repo, model, run } = walk
  await inside('client-1', () =>
    proven(
      walk,
      1,
      model.map(({ serial }) => serial),
    ),
  )
  // Space that is reclaimed harms no snapshot: each that the walk holds, in a copy in which it is the only one left.
  if (model.length && (await copyOf(repo))) {
    await reclaimed(
      repo,
      model.map(({ serial }) => `model/${serial}`),
    )
    await $`rm -r copy`
  }
  step('drain')
  // The size is explained once at least, whatever was drawn.
  if (model.length && run.endpoint(repo).files) {
    await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} --threshold 1`
    if (!run.dry) await explained(model, packBytes())
  }
  const ids = { raw: model.map((kept) => `$(<model/${kept.serial}.id)`).join(' ') }
  if (model.length) await $({ limit: '30m' })`vykar --config config.yaml snapshot delete -R ${repo} ${ids}`
  await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} --threshold 1`
  await $`vykar --config config.yaml list -R ${repo} > gone.out`
  await says('gone.out', /^No snapshots found\.$/m, 'all snapshots were deleted, but list still shows one')
  await $`vykar --config config.yaml break-lock -R ${repo} > locks.out`
  await nothingHeld('locks.out')
  const { seen } = run.endpoint(repo)
  if (!seen) return
  await check(
    `test -z "$(find "$${seen}"/packs -type f -size +0 ! -path '*__XLDIR__*')"  # nothing is left in the packs`,
    () => {
      const left = packBytes()
      if (left > 0) throw new Mismatch(`${bytes(left)} are left in the packs although no snapshot is`)
    },
  )
}

await scenario(import.meta, { needs: standardNeeds, wants: serverWants, options }, async (run) => {
  const { options: o } = run
  if (o.duration && !(seconds(o.duration) > 0)) throw new UsageError(`--duration ${o.duration}: nothing would be done`)
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
    mode: o.mode,
    ...(o.source ? { source: o.source } : {}),
  }
  if (trace && !run.repos.includes(trace.repo))
    throw new UsageError(`--replay: the walk was on ${trace.repo}, which --repo leaves out`)
  const { concurrency, seed, mode } = walkOptions
  if (walkOptions.source && !existsSync(walkOptions.source))
    throw new UsageError(`no such directory: ${walkOptions.source}`)
  const theirs = walkOptions.source && realpathSync(walkOptions.source)
  if (theirs) apart(theirs, 'the runtime directory', run.runtime)
  const corpusGib = theirs && !run.dry ? (await diskUsage(theirs, true)) / 2 ** 30 : walkOptions.corpusGib
  // The sources, what they change by, what has not been compacted yet, and a restored tree for each client.
  const places = [run.runtime, ...run.repos.map((label) => localDir(run.plan.sample.repository(label).url))]
  const needs = places
    .filter((dir) => dir !== undefined)
    .map((dir) => ({ dir, bytes: concurrency * corpusGib * 2 ** 32 }))
  if (!run.dry) needSpace(needs, `${concurrency} sources of ${corpusGib.toFixed(3)} GiB`, 'take a smaller source')
  await servers()

  for (const repo of trace ? [trace.repo] : run.repos)
    await run.row(repo, async () => {
      const sizes: number[] = []
      step('clients')
      await $`mkdir model`
      // Packs of 1 to 8 MiB instead of 32 to 192: a small repository has many of them too. Nothing is compressed, so that the
      // size of the repository can be explained by the content of the snapshots that it holds.
      const written = (label: string) => config`
sources:
  - path: ${source}
    label: ${label}
encryption:
  mode: ${mode ?? 'auto'}
compression:
  algorithm: none
repositories:
  - min_pack_size: 1048576
    max_pack_size: 8388608
`
      await written('client')
      for (let n = 1; n <= concurrency; n++)
        await inside(`client-${n}`, async () => {
          await written(`client-${n}`)
          // Keys lie beside the row's directory, which is one level up from here.
          await $`sed -i 's|: \.\./server|: ../../server|' config.yaml`
          if (theirs) {
            // Without what vykar is known not to keep, which the model does not excuse.
            await $({
              limit: '2h',
              otherwise: Blocked,
            })`mkdir -p ${source} && cp -a --sparse=never ${theirs}/. ${source}`
            await $`find ${source} \( -type p -o -type s -o -type b -o -type c -o -type l -links +1 \) -delete`
            await $`(cd ${source} && find . -depth -print0 | { grep -zaxv '.*' || true; } | xargs -0 -r rm -rf)  # names that are not UTF-8`
          } else {
            await $({ limit: '1h' })`e2e data-gen/corpus --out corpus --gib ${corpusGib} --seed ${seed + n} --churn 0`
            await $`(cd ${source}/awkward && rm -f special/* mtime-2300 links/hard-symlink-2 xattr-name-not-utf8)`
            // Holes are content for sha256sum and nothing for a repository.
            await $`rm ${source}/awkward/sparse`
            // Clients share content, in other places.
            if (n > 1) await $`cp -a ../client-1/${source}/awkward ${source}/shared`
          }
          sizes.push(Math.round(corpusGib * 2 ** 30))
        })

      step('init')
      await fresh(repo)
      const walk: Walk = {
        run,
        repo,
        options: walkOptions,
        sizes,
        last: sizes.map(() => 1),
        model: [],
        series: new Series(run, repo),
        spent: { wall: 0, busy: 0, vykar: 0 },
        counts: {},
        restored: new Set(),
        dropCaches: o['drop-caches'],
      }
      try {
        step('walk')
        await goOn(walk, o, trace)
      } finally {
        if (!run.dry) {
          Object.assign(rowScope().report.facts, { seed }, figuresOf(walk.series, walk.counts, walk.spent))
          await walk.series.draw()
        }
      }

      step('restore what was not yet')
      await drain(walk)
      const { interrupt = 0, 'interrupted, came too late': late = 0 } = walk.counts
      if (interrupt >= 5 && late >= interrupt)
        throw new Blocked(`${interrupt} interrupts, and all came too late: take a larger --corpus-gib`)
      if (concurrency > 1 && walk.series.steps >= 20 && !walk.counts['clients overlapped'])
        throw new Blocked('no two clients were at work at the same moment: give a larger --corpus-gib')
      const { 'maintenance beside another client': beside = 0 } = walk.counts
      if (beside >= 5 && !Object.keys(walk.counts).some((what) => /^(delete|compact), refused/.test(what)))
        throw new Blocked(`maintenance met another client ${beside} times and was never refused: larger --corpus-gib`)
    })
})
