// What a step of a stress walk does: the command line of each action, what must hold after it, and several side by side.
import { type Background, background, type Ended } from '#lib/background.mts'
import type { Run } from '#lib/run.mts'
import { $, check, inside, read } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'
import { says, sound } from '#scripts/checks.mts'
import { parseBackup, parseList, resumes } from '#scripts/printed.mts'
import { listing, witnessed } from '#scripts/witnessed.mts'
import { type Kept, survivors } from './model.mts'
import type { Series, Spent } from './series.mts'
import { type Action, isExclusive, isMaintenance, overlap, type WalkOptions } from './walk.mts'

/** What vykar says when maintenance and another client meet. */
const refusal = /active sessions prevent maintenance|repository is locked by/
/** A walk under way; every client has a directory below the row's, with its config, cache and source. */
export interface Walk {
  run: Run
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
  /** The page cache is dropped before each restore and check. */
  dropCaches: boolean
}

/** What was done, or happened, once more. */
export function count({ counts }: Walk, what: string): void {
  counts[what] = (counts[what] ?? 0) + 1
}

export const source = 'corpus/snapshot-1'

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
  await witnessed(source, `../model/${serial}`)
  // Checksum and size of every file: what a repository without compression may at most hold.
  await $`paste -d ' ' <(sed -E 's/^.?([0-9a-f]{64}) .*/\1/' ../model/${serial}.sha256) <(cd ${source} && find . -type f -print0 | sort -z | xargs -0 -r stat -c %s) > ../model/${serial}.content`
  walk.model.push({ serial, ...made, label: `client-${client}`, hour: '' })
}

async function dropCaches(walk: Walk): Promise<void> {
  if (walk.dropCaches) await $({ limit: '10m' })`sync; echo 3 > /proc/sys/vm/drop_caches`
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
        await witnessed('restored', 'restored')
        for (const part of ['sha256', 'tree'])
          await $({ limit: '1h' })`diff -a ../model/${target!}.${part} restored.${part}`
        await $({ limit: '1h' })`chmod -R u+rwX restored && rm -rf restored/`
        walk.restored.add(target!)
      },
    })
  if (kind === 'list') return vykar(`list -R ${repo} --last 3`, '10m')
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
export async function proven(walk: Walk, client: number, serials: readonly string[]): Promise<void> {
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
  const ended = await begun.end('TERM')
  // What ends beside it has an exit code, too.
  await check('echo $rc > interrupted.rc', () => {})
  return { ...ended, wait }
}
type Cut = Ended & { wait: number }

/** What was interrupted is made again, when no other client is at work. An interrupt that came late has made a whole snapshot, which goes. */
async function resume(walk: Walk, { client }: Action, serial: string, { code, by, wait }: Cut): Promise<void> {
  const { repo } = walk
  // Its own alone: another client's that came too late is for that one to look at.
  await $`vykar --config config.yaml list -R ${repo} -S client-${client} > late.list`
  await $`sed -nE 's/^ *([0-9a-f]{8}) .*/\1/p' late.list | grep -vxFf <(cat ../model/*.id) > late.ids || true`
  await check('[[ $(<interrupted.rc) == 1@(30|43) || -s late.ids ]]', () => {
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
  })`while read -r id; do mkdir late && vykar --config config.yaml restore -R ${repo} $id late && diff -r --no-dereference ${source} late && diff -a <(cd ${source} && ${{ raw: listing }}) <(cd late && ${{ raw: listing }}) && rm -r late && vykar --config config.yaml snapshot delete -R ${repo} $id || exit 1; done < late.ids`
  const again = deed(walk, { kind: 'backup', client }, serial)
  await $({ limit: '1h', warns: resumes })`${again.line} > backup.out`
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
  if (kind === 'list') await newest(walk)
}

/** `list --last 3`, when nothing else is under way: the newest snapshots, of which those of one step may come in any order. */
async function newest({ model }: Walk): Promise<void> {
  const stepOf = (kept: Kept | undefined) => Number(kept?.serial.split('.')[0] ?? 0)
  const least = Math.min(3, model.length)
  const bound = stepOf(model.at(-least))
  const ids = (some: readonly Kept[]) =>
    `<(${some.length ? `cat ${some.map((kept) => `../model/${kept.serial}.id`).join(' ')}` : ':'})`
  const [may, must] = [model.filter((kept) => stepOf(kept) >= bound), model.filter((kept) => stepOf(kept) > bound)]
  const hand = `grep -oE '^ *[0-9a-f]{8} ' list.out | tr -d ' ' | sort > list.ids || true; test $(wc -l < list.ids) = ${least} && test -z "$(comm -23 list.ids <(sort ${ids(may)}))$(comm -13 list.ids <(sort ${ids(must)}))"`
  await check(hand, () => {
    const shown = new Set(parseList(read('list.out')).map(({ id }) => id))
    const wrong =
      [...shown].find((id) => !may.some((kept) => kept.id === id)) ?? must.find(({ id }) => !shown.has(id))?.id
    if (wrong || shown.size !== least)
      throw new Mismatch(
        `list --last 3 shows ${shown.size} of ${model.length} snapshots${wrong ? `, and ${wrong} is of the wrong ones` : ''}`,
      )
  })
}

/**
 * Maintenance beside other clients: begun once one of them has registered its session, where sessions can be seen. Those that were there
 * before and after are written down: of a session that was there all the time it had to keep away.
 */
function besideSessions({ run, repo }: Walk, line: { raw: string }): { raw: string } {
  const { seen } = run.endpoint(repo)
  if (!seen) return line
  // Of a bucket the directory is there while it holds something.
  const sessions = `{ find "$${seen}"/sessions -ignore_readdir_race -name '*.json' 2> /dev/null || true; }`
  const wait = `for _ in {1..200}; do test -z "$(${sessions})" || break; sleep 0.01; done`
  return {
    raw: `{ ${wait}; ${sessions} | sort > sessions.before; rc=0; ${line.raw} || rc=$?; ${sessions} | sort > sessions.after; exit $rc; }`,
  }
}

/** Maintenance that went well was beside no session. */
async function keptAway({ kind }: Action): Promise<void> {
  await check('test -z "$(comm -12 sessions.before sessions.after)"', () => {
    const after = read('sessions.after').split('\n')
    const held = read('sessions.before')
      .split('\n')
      .find((session) => session && after.includes(session))
    if (held) throw new Mismatch(`${kind} was let in while another client's session was registered: ${held}`)
  })
}

/**
 * The actions of a step: changes first, then the rest side by side where there are several. Maintenance that meets another
 * client is refused, and what meets maintenance may be; what was refused to a client is done again, alone.
 */
export async function act(walk: Walk, n: number, actions: readonly Action[]): Promise<void> {
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
  // Maintenance is begun last, so that it meets the others at work.
  const first = todo.filter(({ kind }) => kind !== 'interrupt' && !isMaintenance(kind))
  for (const action of [...first, ...todo.filter(({ kind }) => isMaintenance(kind))])
    await at(action, async () => {
      const doing = deed(walk, action, serialOf(action))
      await doing.before?.()
      const line = isExclusive(action.kind) ? besideSessions(walk, doing.line) : doing.line
      going.push({ action, doing, at: performance.now(), task: await background(doing.out)`${line}` })
    })
  const cuts = new Map<Action, Cut>()
  for (const action of todo.filter(({ kind }) => kind === 'interrupt'))
    cuts.set(action, await at(action, () => cut(walk, action)))
  const again: Action[] = []
  const done = []
  // What maintenance leaves is told before what came beside it.
  going.sort((a, b) => todo.indexOf(a.action) - todo.indexOf(b.action))
  const spans: [from: number, to: number][] = []
  for (const { action, doing, task, at: from } of going) {
    // A reader warns of the snapshot that another client is writing at this moment.
    const ended = await at(action, () =>
      task.done(
        excluded ? [0, 1] : [0],
        action.kind === 'list' ? /listed but not found|invalid ID \.tmp/ : /invalid ID \.tmp/,
      ),
    )
    spans.push([from, from + ended.seconds * 1000])
    done.push({ action, doing, ended })
  }
  if (overlap(spans)) count(walk, 'clients overlapped')
  for (const { action, doing, ended } of done)
    await at(action, async () => {
      if (isExclusive(action.kind) && walk.run.endpoint(walk.repo).seen && read('sessions.before'))
        count(walk, 'maintenance beside another client')
      if (ended.code === 0) {
        if (isExclusive(action.kind) && walk.run.endpoint(walk.repo).seen) await keptAway(action)
        if (action.kind === 'backup' && !walk.run.dry) walk.last[action.client - 1] = ended.seconds
        return doing.after?.()
      }
      if (isMaintenance(action.kind) && !todo.some(({ kind }) => isExclusive(kind)))
        throw new Mismatch(`${action.kind} only reads, and was refused beside another client`)
      await says(
        `${doing.out}.out`,
        refusal,
        `${action.kind} failed beside another client, but not since it was refused`,
      )
      count(walk, `${action.kind}, refused beside another client`)
      if (!isMaintenance(action.kind)) again.push(action)
      if (action.kind === 'restore') await $`chmod -R u+rwX restored && rm -rf restored/`
    })
  for (const [action, how] of cuts) await at(action, () => resume(walk, action, serialOf(action), how))
  for (const action of again) await at(action, () => alone(walk, action, serialOf(action)))
}
