// The scenario scripts as they describe themselves, in matrix order, and the fixed lists of them.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { matrixOrder } from '#lib/config.mts'
import { meant } from '#lib/options.mts'
import { type Description, root } from '#lib/prepare.mts'
import { asked } from '#lib/scenario.mts'
import { quote } from '#lib/transcript.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { guestBuilt, kernelHasZfs } from '#scripts/filesystems/guest.mts'

/** Folders and scripts in the order in which they are run; what is not named comes last. */
const order = [
  'backends/local',
  'backends/local-none',
  'backends/rest',
  'backends/s3',
  'backends/sftp',
  'backends/interrupt-minimal',
  'backends/',
  'databases/postgres',
  'databases/mariadb',
  'databases/',
  'containers/',
  'filesystems/btrfs',
  'filesystems/zfs',
  'filesystems/',
  'benchmarks',
  'fidelity',
  'stress',
  'faults/',
]

/** Names of the scenario scripts, in matrix order. */
export function scenarioNames(): string[] {
  const place = (name: string) => {
    const at = order.findIndex((word) => name === word || (word.endsWith('/') && name.startsWith(word)))
    return at < 0 ? order.length : at
  }
  return (
    readdirSync(join(root, 'scripts'), { recursive: true, encoding: 'utf8' })
      // A test's copy of a script, which it takes away again, is none.
      .filter((name) => name.endsWith('.mts') && !/(^|\/)copy-of-\d/.test(name))
      // The tools of the sandbox, and what scripts share, are no scenarios.
      .filter((name) => /^await scenario\(import\.meta/m.test(readFileSync(join(root, 'scripts', name), 'utf8')))
      .map((name) => name.replace(/\.mts$/, ''))
      .sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1))
  )
}

/** Asks scripts what they are. Throws Error where one does not answer. */
export async function describeAll(names = scenarioNames()): Promise<Description[]> {
  const described: Description[] = []
  asked.into = described
  try {
    for (const name of names) {
      const before = described.length
      await import(join(root, `scripts/${name}.mts`))
      if (described.length !== before + 1) throw new Error('it does not say what it is')
    }
  } catch (error) {
    throw new Error(`${names[described.length]}: ${messageOf(error)}`)
  } finally {
    asked.into = undefined
  }
  return described
}

/** One call of a script: how `e2e` is given it, and after how many seconds it is ended. */
export interface Entry {
  scenario: string
  args: string[]
  limit: number
}

/** A call as bash and `e2e` take it: `backends/local --repo local,rest`. */
export const callOf = (scenario: string, args: readonly string[]): string =>
  [scenario, ...args].map((word) => (/^[\w/.:=,@+-]+$/.test(word) ? word : quote(word))).join(' ')

/** A scenario in a profile: its options, its repositories (all of its own unless told), minutes it may take. */
type Fixed = [scenario: string, minutes: number, args?: string[], repos?: string[]]
const quick = ['local']
/**
 * Fixed lists, so that two runs of a profile have done the same. `smoke` takes about 10 minutes, `release` about an
 * hour, `soak` a night.
 */
export const profiles: Record<string, Fixed[]> = {
  smoke: [
    ['backends/local', 5, ['--corpus-gib', '0.25']],
    ['backends/local-none', 5, ['--corpus-gib', '0.25']],
    ['backends/rest', 5, ['--corpus-gib', '0.25']],
    ['backends/s3', 5, ['--corpus-gib', '0.25']],
    ['backends/sftp', 5, ['--corpus-gib', '0.25']],
    ['backends/interrupt-minimal', 8, ['--corpus-gib', '0.25']],
    ['backends/selection', 5, [], quick],
    ['backends/queries', 5, [], quick],
    ['backends/settings', 5, [], quick],
    ['backends/config-file', 5, [], quick],
    ['backends/shapes', 5, ['--large-mib', '300'], quick],
    ['databases/postgres', 10, ['--target-gib', '0.1'], quick],
    ['databases/mariadb', 10, ['--target-gib', '0.1'], quick],
    ['databases/mongodb', 10, ['--target-gib', '0.1'], quick],
    ['containers/docker', 8, [], quick],
    ['containers/podman', 8, [], quick],
    ['filesystems/btrfs', 5, ['--corpus-gib', '0.1'], quick],
    ['filesystems/zfs', 5, ['--corpus-gib', '0.1'], quick],
    ['stress', 5, ['--iterations', '40', '--corpus-gib', '0.02'], quick],
    ['stress', 5, ['--iterations', '30', '--corpus-gib', '0.05', '--concurrency', '2', '--mode', 'none'], quick],
  ],
  release: [
    ['backends/local', 15, ['--strict-gaps']],
    ['backends/local-none', 15, ['--strict-gaps']],
    ['backends/rest', 15, ['--strict-gaps']],
    ['backends/s3', 15, ['--strict-gaps']],
    ['backends/sftp', 15, ['--strict-gaps']],
    ['backends/interrupt-minimal', 15, ['--strict-gaps']],
    ['backends/selection', 10, ['--strict-gaps']],
    ['backends/queries', 5, ['--strict-gaps']],
    ['backends/settings', 5, ['--strict-gaps']],
    ['backends/config-file', 5, ['--strict-gaps']],
    ['backends/shapes', 15, ['--strict-gaps']],
    ['databases/postgres', 40, ['--target-gib', '0.5', '--strict-gaps']],
    ['databases/mariadb', 40, ['--target-gib', '0.5', '--strict-gaps']],
    ['databases/mongodb', 40, ['--target-gib', '0.5', '--strict-gaps']],
    ['containers/docker', 20, ['--strict-gaps']],
    ['containers/podman', 20, ['--strict-gaps']],
    ['filesystems/btrfs', 15, ['--strict-gaps']],
    ['filesystems/zfs', 15, ['--strict-gaps']],
    ['filesystems/vm-image', 30, ['--image-gib', '3', '--packages', 'htop jq,git python3', '--strict-gaps'], quick],
    ['fidelity', 10, ['--strict-gaps'], quick],
    ['stress', 15, ['--duration', '10m', '--strict-gaps'], quick],
  ],
  faults: [
    ['faults/corruption', 20],
    ['faults/crash', 45],
    ['faults/power-loss', 15],
    ['faults/syscalls', 10],
    ['faults/disk-full', 10],
    ['faults/targets', 5],
    ['faults/network', 30],
    ['faults/dialects', 10],
    ['faults/server', 10],
    ['faults/concurrency', 15],
    ['faults/suspended', 5],
    ['faults/hooks', 10],
    ['faults/cycle', 5],
    ['faults/daemon', 5],
    ['faults/churn', 10],
    ['faults/clock', 10],
    ['faults/limits', 15, [], quick],
  ],
  soak: [
    ['backends/local', 60],
    ['backends/local-none', 60],
    ['backends/rest', 60],
    ['backends/s3', 60],
    ['backends/sftp', 60],
    ['backends/interrupt-minimal', 60],
    ['databases/postgres', 240],
    ['databases/mariadb', 240],
    ['databases/mongodb', 120],
    ['containers/docker', 60],
    ['containers/podman', 60],
    ['filesystems/btrfs', 60],
    ['filesystems/zfs', 60],
    ['filesystems/vm-image', 240],
    ['benchmarks', 180, [], quick],
    ['stress', 300, ['--duration', '1h', '--concurrency', '2']],
  ],
}

/** Without a profile a script has its own defaults, and a day. */
const oneDay = 24 * 60

/** Whether a scenario is run in the guest: where this kernel has no ZFS, and the guest that has was built. */
export const inTheGuest = (scenario: string): boolean =>
  scenario === 'filesystems/zfs' && !kernelHasZfs() && guestBuilt()

/** Minutes that the guest may take more: without KVM its processor is emulated. */
const guestMinutes = 30

/** What was chosen, and what was not with the reason. */
export interface Choice {
  entries: Entry[]
  left: { scenario: string; why: string }[]
}

/**
 * The calls of a run.
 * @param words scenarios or folders; all when there are none
 * @param profile name of a fixed list; the scripts' own defaults when there is none
 * @param repos labels to use; each script's own when there are none
 * @param common options that every call gets
 * @throws UsageError on a word or profile that is not known, or a word of which nothing would be run
 */
export function choose(
  described: readonly Description[],
  words: readonly string[],
  profile: string | undefined,
  repos: readonly string[],
  common: readonly string[],
): Choice {
  const names = described.map(({ scenario }) => scenario)
  for (const word of words)
    if (!names.some((name) => name === word || name.startsWith(`${word.replace(/\/$/, '')}/`)))
      throw new UsageError(`no scenario ${word}${meant(word, names)}`)
  for (const label of repos)
    if (!(matrixOrder as readonly string[]).includes(label))
      throw new UsageError(`--repo ${label}: not one of ${matrixOrder.join(', ')}`)
  const fixed = profile === undefined ? names.map((name): Fixed => [name, oneDay]) : profiles[profile]!
  const choice: Choice = { entries: [], left: [] }
  for (const { scenario, repos: able } of described) {
    if (words.length && !words.some((word) => scenario === word || scenario.startsWith(`${word.replace(/\/$/, '')}/`)))
      continue
    const rows = fixed.filter(([name]) => name === scenario)
    if (!rows.length) {
      choice.left.push({ scenario, why: `not in the profile ${profile}` })
      continue
    }
    for (const [, minutes, args = [], own = able] of rows) {
      const wanted = repos.length ? own.filter((label) => repos.includes(label)) : own
      if (!wanted.length) {
        choice.left.push({ scenario, why: `none of its repositories (${own.join(', ')}) was chosen` })
        continue
      }
      // What the user has named must be there: then a repository that cannot be had is no SKIPPED row.
      const narrowed = repos.length || wanted.length < able.length ? ['--repo', wanted.join(',')] : []
      const guest = inTheGuest(scenario)
      choice.entries.push({
        scenario,
        args: [...args, ...narrowed, ...(guest ? ['--guest'] : []), ...common],
        limit: (minutes + (guest ? guestMinutes : 0)) * 60,
      })
    }
  }
  for (const word of words) {
    const of = ({ scenario }: { scenario: string }) =>
      scenario === word || scenario.startsWith(`${word.replace(/\/$/, '')}/`)
    const why = choice.left.find(of)?.why
    if (why && !choice.entries.some(of)) throw new UsageError(`${word}: nothing of it would be run: ${why}`)
  }
  return choice
}
