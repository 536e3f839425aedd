// The walk: which actions a step has, drawn from the seed and the model, and the trace from which it is repeated.
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { seeded } from '#data-gen/random.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import type { Kept, Policy } from './model.mts'

/** What a client does by itself, whatever others do. */
const clientKinds = ['change', 'backup', 'list', 'restore', 'interrupt'] as const
/** What needs the repository for itself. */
const maintenanceKinds = ['delete', 'prune', 'compact', 'check', 'verify'] as const
/** The kinds of action, and how often each is drawn unless --weights says otherwise. */
export const defaultWeights: Record<Kind, number> = {
  change: 6,
  backup: 6,
  list: 1,
  restore: 5,
  interrupt: 1,
  delete: 2,
  prune: 1,
  compact: 2,
  check: 1,
  verify: 0.5,
}
export type Kind = (typeof clientKinds)[number] | (typeof maintenanceKinds)[number]

/** One action of one client. */
export interface Action {
  kind: Kind
  /** From 1. */
  client: number
  /** Serial of the snapshot to restore or delete. */
  target?: string
  policy?: Policy
  /** Percent of unused space from which compact rewrites a pack; vykar's default unless told. */
  threshold?: number
  /** When an interrupt comes, as a share of the time that the last backup took. */
  moment?: number
}

/** What a walk is made of; in the trace, so that a replay has the same. */
export interface WalkOptions {
  seed: number
  retain: number
  checkEvery: number
  verifyDataEvery: number
  churn: number
  concurrency: number
  corpusGib: number
  weights: Record<Kind, number>
  /** Encryption of the repository; traces of older walks have none. */
  mode?: string
  /** The user's tree of which each client has a copy. */
  source?: string
}

/** Parses `--weights backup=3,restore=10`: kinds that are not named keep their default, 0 leaves one out. */
export function parseWeights(words: readonly string[]): Record<Kind, number> {
  const weights = { ...defaultWeights }
  for (const word of words) {
    const [, kind, weight] = /^(\w+)=(\d+(?:\.\d+)?)$/.exec(word) ?? []
    if (!kind || !(kind in weights))
      throw new UsageError(`--weights ${word}: KIND=NUMBER is needed, of ${Object.keys(weights).join(', ')}`)
    weights[kind as Kind] = Number(weight)
  }
  if (clientKinds.every((kind) => weights[kind] === 0)) throw new UsageError('--weights: nothing is left to be done')
  return weights
}

function draw(kinds: readonly Kind[], weights: Record<Kind, number>, random: () => number): Kind {
  const total = kinds.reduce((sum, kind) => sum + weights[kind], 0)
  let at = random() * total
  for (const kind of kinds) {
    at -= weights[kind]
    if (at < 0) return kind
  }
  return kinds.find((kind) => weights[kind] > 0) ?? 'backup'
}

/** Steps that have a kind of their own, so that a short walk has each at least once. */
const tour: Record<number, Kind> = {
  2: 'interrupt',
  5: 'change',
  6: 'restore',
  8: 'delete',
  11: 'prune',
  14: 'compact',
  17: 'verify',
  19: 'check',
  22: 'list',
}

/**
 * The actions of a step, to be done side by side. Maintenance is mostly alone; with several clients it sometimes meets
 * a backup or a restore, and may then be refused.
 * @param step from 1
 * @param snapshots what the repository holds, oldest first
 */
export function plan(step: number, snapshots: readonly Kept[], options: WalkOptions): Action[] {
  const random = seeded(`stress ${options.seed} step ${step}`)
  const pick = <T,>(values: readonly T[]) => values[Math.floor(random() * values.length)]!
  const { weights, concurrency, retain } = options
  const clients = Array.from({ length: concurrency }, (_, i) => i + 1)
  if (!snapshots.length) return clients.map((client) => ({ kind: 'backup', client }))
  const client = pick(clients)
  if (step % options.verifyDataEvery === 0) return [{ kind: 'verify', client }]
  if (step % options.checkEvery === 0) return [{ kind: 'check', client }]
  const remove = (): Action =>
    random() < 0.3 && weights.prune > 0 ? prune() : { kind: 'delete', client, target: pick(snapshots).serial }
  const prune = (): Action => {
    const last = 1 + Math.floor((random() * retain) / concurrency)
    const policies: Policy[] = [
      { keep_last: last },
      { keep_hourly: 1 + Math.floor(random() * 2) },
      { keep_last: last, keep_hourly: 1 },
    ]
    return { kind: 'prune', client, policy: pick(policies) }
  }
  const full = snapshots.length >= retain
  const drawn = draw([...clientKinds, ...maintenanceKinds], weights, random)
  const due = tour[step]
  const kind = due && weights[due] > 0 ? due : drawn
  if (full && (kind === 'backup' || kind === 'interrupt' || snapshots.length > retain)) return [remove()]
  if (!isMaintenance(kind)) {
    const room = retain - snapshots.length
    const allowed = clientKinds.filter((word) => room >= concurrency || (word !== 'backup' && word !== 'interrupt'))
    return clients.map((number) => {
      const mine = number === client ? kind : draw(allowed, weights, random)
      return clientAction(mine, number, pick(snapshots).serial, random)
    })
  }
  const action: Action =
    kind === 'prune'
      ? prune()
      : {
          kind,
          client,
          ...(kind === 'delete' && { target: pick(snapshots).serial }),
          ...(kind === 'compact' && random() < 0.5 && { threshold: 1 }),
        }
  const alone = random() < 0.6
  // Those that a short walk has once meet another client.
  if (kind === 'prune' || concurrency === 1 || (alone && due !== kind)) return [action]
  const others = snapshots.filter((snapshot) => snapshot.serial !== action.target)
  const beside = clients
    .filter((number) => number !== client)
    .map((number) =>
      clientAction(
        others.length && random() < 0.5 ? 'restore' : 'backup',
        number,
        others.length ? pick(others).serial : '',
        random,
      ),
    )
  return [action, ...beside]
}

function clientAction(kind: Kind, client: number, target: string, random: () => number): Action {
  if (kind === 'restore') return { kind, client, target }
  if (kind === 'interrupt') return { kind, client, moment: Number(random().toFixed(3)) }
  return { kind, client }
}

/** Whether an action is one that vykar may refuse while another client is at work. */
export const isMaintenance = (kind: Kind): boolean => (maintenanceKinds as readonly string[]).includes(kind)

/** Whether it is one that vykar must refuse then: `check` reads only. */
export const isExclusive = (kind: Kind): boolean => isMaintenance(kind) && kind !== 'check' && kind !== 'verify'

/** Whether two of these spans of time have a moment in common. */
export const overlap = (spans: readonly (readonly [from: number, to: number])[]): boolean =>
  spans.some(([from, to], i) => spans.slice(i + 1).some(([other, end]) => other < to && from < end))

/** An action in a line of progress: `2 restore 17.1`. */
export function described({ kind, client, target, policy, threshold }: Action): string {
  const what =
    target ??
    (policy &&
      Object.entries(policy)
        .map(([name, n]) => `${name}=${n}`)
        .join(' ')) ??
    threshold
  return `${client} ${kind}${what === undefined ? '' : ` ${what}`}`
}

const schema = 'vykar-e2e/stress-trace/1'
/** A walk that was recorded. */
export interface Trace {
  repo: string
  options: WalkOptions
  steps: Action[][]
}

/** Begins a trace file: what the walk is made of, then a line for each step, written before the step is done. */
export function beginTrace(file: string, repo: string, options: WalkOptions): (actions: Action[]) => void {
  writeFileSync(file, `${JSON.stringify({ schema, repo, options })}\n`)
  return (actions) => appendFileSync(file, `${JSON.stringify(actions)}\n`)
}

/** Reads a trace. Throws UsageError on a file that is none. */
export function readTrace(file: string): Trace {
  try {
    const [head, ...steps] = readFileSync(file, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    if (head.schema === schema && steps.length) return { repo: head.repo, options: head.options, steps }
    if (head.schema === schema) throw new Error('it has no step')
  } catch (error) {
    throw new UsageError(`--replay ${file} is no trace of a stress walk: ${messageOf(error)}`)
  }
  throw new UsageError(`--replay ${file} is no trace of a stress walk: its first line is not of ${schema}`)
}
