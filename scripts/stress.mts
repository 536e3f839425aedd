#!/usr/bin/env -S npx tsx
// Hours of change, backup, list, restore, snapshot delete, prune, compact, check and interruption, in an order drawn
// from the seed, by one or more clients on one repository, against a model that remembers what must be there.
// Passes when after every step the list is the model's, no lock or session is held and the size is explained by what is
// retained, every restore equals the manifest made at its backup, nothing grows from step to step, and the repository
// is empty after its last snapshot went. A failure stops the walk, keeps everything and prints how to repeat it.
import { existsSync, readdirSync, realpathSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { type Background, background, type Ended } from '#lib/background.mts'
import { diskUsage } from '#lib/cleanup.mts'
import { config, localDir } from '#lib/config.mts'
import { apart, root } from '#lib/prepare.mts'
import { busySeconds } from '#lib/report.mts'
import { type ScenarioRun, scenario } from '#lib/scenario.mts'
import { $, type CommandRecord, check, endStep, inside, read, rowScope, seconds, step, within } from '#lib/sh.mts'
import { bytes, duration } from '#lib/terminal.mts'
import { Blocked, Mismatch, UsageError } from '#lib/verdict.mts'
import { nothingHeld, packBytes, says, sound, standardNeeds } from '#scripts/checks.mts'
import { fresh, serverWants } from '#scripts/common.mts'
import { copyOf, reclaimed } from '#scripts/damage.mts'
import { parseBackup, parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'
import { needSpace } from '#scripts/space.mts'
import { explained, liveKiB, noGrowth } from '#scripts/stress/growth.mts'
import { disagreement, type Kept, survivors } from '#scripts/stress/model.mts'
import { figuresOf, Series, type Spent } from '#scripts/stress/series.mts'
import {
  type Action,
  beginTrace,
  described,
  isMaintenance,
  overlap,
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
type Stress = ScenarioRun<typeof options>
/** What vykar says when maintenance and another client meet. */
const refusal = /active sessions prevent maintenance|repository is locked by/
/** Steps that went well and of which the logs stay. */
const keptLogs = 50

/** A walk under way; every client has a directory below the row's, with its config, cache and source. */
interface Walk {
  run: Stress
  repo: string
  options: WalkOptions
  /** Bytes of each client's source at the beginning, and the seconds of its last backup. */
  sizes: number[]
  last: number[]
  /** What must be in the repository, oldest first. */
  model: Kept[]
  series: Series
  spent: Spent
  counts: Record<string, number>
  /** Serials of snapshots that have been restored and compared. */
  restored: Set<string>
}

/** What was done, or happened, once more. */
function count({ counts }: Walk, what: string): void {
  counts[what] = (counts[what] ?? 0) + 1
}

const source = 'corpus/snapshot-1'

/** Writes down what a tree holds: content, metadata, extended attributes; `stem` is the path of the files without endings. */
async function manifest(tree: string, stem: string): Promise<void> {
  const limit = '1h'
  await $({ limit })`(cd ${tree} && find . -type f -print0 | sort -z | xargs -0 -r sha256sum) > ${stem}.sha256`
  await $({
    limit,
  })`(cd ${tree} && find . -mindepth 1 \( -type d -printf '%y %m %U %G %T@ %p\0' -o -printf '%y %m %U %G %n %s %T@ %p %l\0' \) | sort -z | tr '\0' '\n') > ${stem}.tree`
  await $({
    limit,
  })`(cd ${tree} && find . -mindepth 1 ! -type l -print0 | sort -z | xargs -0 -r getfattr -d -m - -e hex) > ${stem}.xattr`
}

/** A snapshot that a backup made is remembered under the step's serial, with the manifest of its source. */
async function remember(walk: Walk, client: number, serial: string, out: string): Promise<void> {
  await $`sed -n 's/^Snapshot created: //p' ${out} | grep . > ../model/${serial}.id`
  const made = { id: read(`../model/${serial}.id`), files: 0 }
  await check('# one snapshot was made, without an error', () => {
    const [created, ...more] = parseBackup(read(out))
    if (!created || more.length)
      throw new Mismatch(`backup exited 0 but printed ${more.length + (created ? 1 : 0)} created snapshots`)
    if (created.errors) throw new Mismatch(`backup exited 0 but counted ${created.errors} errors`)
    made.files = created.files
  })
  await manifest(source, `../model/${serial}`)
  // Checksum and size of every file: what a repository without compression may at most hold.
  await $`paste -d ' ' <(sed -E 's/^.?([0-9a-f]{64}) .*/\1/' ../model/${serial}.sha256) <(cd ${source} && find . -type f -print0 | sort -z | xargs -0 -r stat -c %s) > ../model/${serial}.content`
  walk.model.push({ serial, ...made, label: `client-${client}`, hour: '' })
}

async function dropCaches(walk: Walk): Promise<void> {
  if (walk.run.options['drop-caches']) await $({ limit: '10m' })`sync; echo 3 > /proc/sys/vm/drop_caches`
}

/** What is to be done for an action: the command, run by `go` in the client's directory, and what must hold afterwards. */
interface Deed {
  line: { raw: string }
  limit: string
  out: string
  before?: () => Promise<unknown>
  after?: () => Promise<unknown>
}

function deed(walk: Walk, action: Action, serial: string): Deed {
  const { repo } = walk
  const { kind, client, target, policy, threshold } = action
  const vykar = (words: string, limit: string, more: Partial<Deed> = {}, config = 'config.yaml'): Deed => ({
    line: { raw: `vykar --config ${config} ${words}` },
    limit,
    out: kind,
    ...more,
  })
  // What was restored before maintenance may be damaged by it.
  const forget = (model: Kept[]) => async () => {
    walk.model = model
    walk.restored.clear()
  }
  if (kind === 'backup')
    return vykar(`backup -R ${repo}`, '1h', { after: () => remember(walk, client, serial, 'backup.out') })
  if (kind === 'restore')
    return vykar(`restore -R ${repo} $(<../model/${target}.id) restored`, '1h', {
      before: async () => {
        await dropCaches(walk)
        await $`mkdir restored`
      },
      after: async () => {
        await manifest('restored', 'restored')
        for (const part of ['sha256', 'tree', 'xattr'])
          await $({ limit: '1h' })`diff -a ../model/${target!}.${part} restored.${part}`
        await $({ limit: '1h' })`rm -rf restored/`
        walk.restored.add(target!)
      },
    })
  if (kind === 'list') return vykar(`list -R ${repo} --last 5`, '10m')
  if (kind === 'delete')
    return vykar(`snapshot delete -R ${repo} $(<../model/${target}.id)`, '30m', {
      before: () => proven(walk, client, [target!]),
      after: forget(walk.model.filter((kept) => kept.serial !== target)),
    })
  if (kind === 'prune') {
    const rules = Object.entries(policy!).map(([name, n]) => `  ${name}: ${n}`)
    return vykar(`prune -R ${repo}`, '30m', {
      before: async () => {
        const left = survivors(walk.model, policy!)
        const going = walk.model.filter((kept) => !left.includes(kept))
        await proven(walk, client, going.map(({ serial }) => serial))
        await $`{ cat config.yaml; printf '%s\n' retention: ${rules}; } > prune.yaml`
      },
      after: () => forget(survivors(walk.model, policy!))(),
    }, 'prune.yaml') // biome-ignore format: one call
  }
  if (kind === 'compact') {
    const flag = threshold === undefined ? '' : ` --threshold ${threshold}`
    return vykar(`compact -R ${repo}${flag}`, '30m', {
      after: async () => {
        walk.restored.clear()
        await says('compact.out', /^Compaction complete: /m, 'compact printed no result')
      },
    })
  }
  const all = kind === 'verify'
  return vykar(`check -R ${repo}${all ? ' --verify-data' : ''}`, '1h', {
    before: () => dropCaches(walk),
    after: async () => {
      await sound(`${kind}.out`, { all })
      await check(`grep -q '^Check complete: ${walk.model.length} snapshots' ${kind}.out || true`, () => {
        const seen = Number(/^Check complete: (\d+) snapshots/m.exec(read(`${kind}.out`))?.[1])
        if (seen < walk.model.length) throw new Mismatch(`check looked at ${seen} snapshots of ${walk.model.length}`)
      })
    },
  })
}

/** A snapshot that goes has been restored and compared before: those of the serials that were not yet are, in the client's directory. */
async function proven(walk: Walk, client: number, serials: readonly string[]): Promise<void> {
  for (const target of serials.filter((serial) => !walk.restored.has(serial))) {
    const { line, limit, before, after } = deed(walk, { kind: 'restore', client, target }, '')
    await before?.()
    await $({ limit })`${line} > restore.out`
    await after?.()
    count(walk, 'restored before it went')
  }
}

/** TERM at some moment of a backup. */
async function cut(walk: Walk, { client, moment = 0.5 }: Action): Promise<Cut> {
  const wait = moment * walk.last[client - 1]!
  const begun = await background('interrupted')`vykar --config config.yaml backup -R ${walk.repo}`
  await $`sleep ${wait.toFixed(3)}`
  return { ...(await begun.end('TERM')), wait }
}
type Cut = Ended & { wait: number }

/** What was interrupted is made again, when no other client is at work. An interrupt that came late has made a whole snapshot, which goes. */
async function resume(walk: Walk, { client }: Action, serial: string, { code, by, wait }: Cut): Promise<void> {
  const { repo } = walk
  await $`vykar --config config.yaml list -R ${repo} > late.list`
  await $`sed -nE 's/^ *([0-9a-f]{8}) .*/\1/p' late.list | grep -vxFf <(cat ../model/*.id) > late.ids || true`
  await check(`[[ $rc == 130 || $rc == 143 || -s late.ids ]]`, () => {
    if (by === 'KILL') throw new Mismatch('TERM did not end the backup within 60 s, KILL was needed')
    // A program that has not yet begun to listen for TERM ends as every program does: 128 + 15.
    if (code !== 0 && code !== 130 && !(code === 143 && wait < 0.5))
      throw new Mismatch(`the interrupted backup ended with exit ${code} instead of 130`)
    const late = read('late.ids')
    if (code === 0 && !late) throw new Mismatch('the interrupted backup exited 0, but list shows no snapshot of it')
    if (late) count(walk, 'interrupted, came too late')
  })
  await $({
    limit: '1h',
  })`while read -r id; do mkdir late && vykar --config config.yaml restore -R ${repo} $id late && diff -r --no-dereference ${source} late && rm -r late && vykar --config config.yaml snapshot delete -R ${repo} $id; done < late.ids`
  const again = deed(walk, { kind: 'backup', client }, serial)
  await $({ limit: '1h' })`${again.line} > backup.out`
  await again.after?.()
}

/** An action by itself. */
async function alone(walk: Walk, action: Action, serial: string): Promise<void> {
  const { kind, client } = action
  const { line, limit, out, before, after } = deed(walk, action, serial)
  await before?.()
  const done = await $({ limit })`${line} > ${out}.out 2> ${out}.err`
  if (kind === 'backup' && !walk.run.dry) walk.last[client - 1] = done.seconds
  if (kind === 'check' || kind === 'verify') await $`cat ${out}.err >> ${out}.out`
  await after?.()
}

/**
 * The actions of a step: changes first, then the rest side by side where there are several. Maintenance that meets another
 * client may be refused, as may what meets maintenance; what was refused to a client is done again, alone.
 */
async function act(walk: Walk, n: number, actions: readonly Action[]): Promise<void> {
  const at = <T,>({ client }: Action, fn: () => Promise<T>) => inside(`client-${client}`, fn)
  const serialOf = ({ client }: Action) => `${n}.${client}`
  for (const action of actions) count(walk, action.kind)
  const todo = actions.filter(({ kind }) => kind !== 'change')
  for (const action of actions.filter(({ kind }) => kind === 'change'))
    await at(
      action,
      () =>
        $({
          limit: '1h',
        })`e2e data-gen/change --dir ${source} --percent ${walk.options.churn} --size ${walk.sizes[action.client - 1]!} --seed ${`${walk.options.seed} ${serialOf(action)}`} > changes.out`,
    )
  if (todo.length < 2) {
    for (const action of todo)
      await at(action, async () => {
        const serial = serialOf(action)
        if (action.kind !== 'interrupt') return alone(walk, action, serial)
        await resume(walk, action, serial, await cut(walk, action))
      })
    return
  }
  const excluded = todo.some(({ kind }) => isMaintenance(kind))
  const going: { action: Action; doing: Deed; task: Background; at: number }[] = []
  for (const action of todo.filter(({ kind }) => kind !== 'interrupt'))
    await at(action, async () => {
      const doing = deed(walk, action, serialOf(action))
      await doing.before?.()
      going.push({ action, doing, at: performance.now(), task: await background(doing.out)`${doing.line}` })
    })
  const cuts = new Map<Action, Cut>()
  for (const action of todo.filter(({ kind }) => kind === 'interrupt'))
    cuts.set(action, await at(action, () => cut(walk, action)))
  const again: Action[] = []
  const done = []
  const spans: [from: number, to: number][] = []
  for (const { action, doing, task, at: from } of going) {
    const ended = await at(action, () => task.done(excluded ? [0, 1] : [0]))
    spans.push([from, from + ended.seconds * 1000])
    done.push({ action, doing, ended })
  }
  if (overlap(spans)) count(walk, 'clients overlapped')
  for (const { action, doing, ended } of done)
    await at(action, async () => {
      if (ended.code === 0) {
        if (action.kind === 'backup' && !walk.run.dry) walk.last[action.client - 1] = ended.seconds
        return doing.after?.()
      }
      await says(
        `${doing.out}.out`,
        refusal,
        `${action.kind} failed beside another client, but not since it was refused`,
      )
      count(walk, `${action.kind}, refused beside another client`)
      if (!isMaintenance(action.kind)) again.push(action)
      if (action.kind === 'restore') await $`rm -rf restored/`
    })
  for (const [action, how] of cuts) await at(action, () => resume(walk, action, serialOf(action), how))
  for (const action of again) await at(action, () => alone(walk, action, serialOf(action)))
}

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
async function goOn(walk: Walk, trace: Trace | undefined): Promise<void> {
  const { run, repo, series, options: o } = walk
  const file = join(run.dirs.logs, `${repo}.trace.jsonl`)
  const record = run.dry ? () => {} : beginTrace(file, repo, o)
  const until =
    run.options.duration && !run.dry
      ? performance.now() + seconds(run.options.duration) * 1000
      : Number.POSITIVE_INFINITY
  const endless = run.options.duration && !run.dry ? Number.POSITIVE_INFINITY : 200
  const most = trace?.steps.length ?? run.options.iterations ?? endless
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
      if (run.options['time-v']) series.addCommands(n, commands)
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
      async (id, tree) => {
        await manifest(tree, 'reclaimed-is')
        for (const part of ['sha256', 'tree', 'xattr'])
          await $({ limit: '1h' })`diff -a ${id}.${part} reclaimed-is.${part}`
      },
    )
    await $`rm -r copy`
  }
  step('drain')
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

await scenario(import.meta, { needs: [...standardNeeds, 'getfattr'], wants: serverWants, options }, async (run) => {
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
      }
      try {
        step('walk')
        await goOn(walk, trace)
      } finally {
        if (!run.dry) {
          Object.assign(rowScope().report.facts, { seed }, figuresOf(walk.series, walk.counts, walk.spent))
          await walk.series.draw()
        }
      }

      step('restore what was not yet')
      await drain(walk)
      if (concurrency > 1 && walk.series.steps >= 20 && !walk.counts['clients overlapped'])
        throw new Blocked('no two clients were at work at the same moment: give a larger --corpus-gib')
    })
})
