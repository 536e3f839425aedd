// Everything that can be refused before anything is made: options, needs, sample, paths.
import { accessSync, constants, existsSync, readFileSync, realpathSync, statfsSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { ask } from './ask.mts'
import { matrixOrder, Sample } from './config.mts'
import {
  aptInstall,
  aptLine,
  find,
  identifyVykar,
  type Tool,
  type ToolName,
  tools,
  type VykarBinary,
  which,
} from './host.mts'
import { meant, type OptionSpecs, optionHelp, parseOptions, type Values } from './options.mts'
import { bytes } from './terminal.mts'
import { Mismatch, Skipped, UsageError } from './verdict.mts'

/** The clone this code lives in. */
export const root = resolve(import.meta.dirname, '..')

/** The words that run a file of this clone with its tsx, from any directory: `data-gen/corpus`, `scripts/stress`. */
export const tsxWords = (file: string): string[] => [
  process.execPath,
  '--import',
  join(root, 'node_modules/tsx/dist/loader.mjs'),
  join(root, `${file}.mts`),
]

/** Options that every scenario takes. */
export const commonOptions = {
  help: { kind: 'flag', help: 'purpose, pass rule and options' },
  describe: { kind: 'flag', help: 'the same as JSON, with needs' },
  'dry-run': { kind: 'flag', help: 'print what commands.sh would say; run nothing' },
  repo: { kind: 'list', help: 'repositories to use, by label' },
  runtime: { kind: 'path', help: 'results and working directories; default ~/runtime or $VYKAR_E2E_RUNTIME' },
  sample: { kind: 'file', help: 'base config; default ~/vykar.sample.yaml, else the one of this clone' },
  services: {
    kind: 'string',
    help: 'who runs servers',
    choices: ['auto', 'managed', 'external'],
    default: 'auto',
  },
  vykar: { kind: 'path', help: 'the vykar to test; default the one on PATH' },
  seed: { kind: 'number', help: 'all random choices derive from it', default: 1 },
  keep: { kind: 'flag', help: 'leave repository and working directory also on PASS' },
  'time-scale': { kind: 'number', help: 'multiply every time limit; none is cut below 5 s', default: 1, above: true },
  'strict-gaps': { kind: 'flag', help: 'a known gap that no longer shows is a FAIL' },
  require: { kind: 'list', help: 'tools or repositories whose lack is a FAIL, not a skip; `all` for all' },
  'rest-data-dir': { kind: 'dir', help: 'data directory of an external REST server, which may be emptied' },
  'wipe-repo': { kind: 'list', help: 'labels whose repository may be deleted whatever it holds' },
  install: { kind: 'flag', help: 'install missing packages with apt-get' },
  sabotage: { kind: 'string', help: 'let vykar tell one named lie, to see it caught; `list` lists them' },
  quiet: { kind: 'flag', help: 'print the last lines only' },
  verbose: { kind: 'flag', help: 'print every command' },
} as const satisfies OptionSpecs

/** What a script declares about itself. */
export interface ScenarioSpec<O extends OptionSpecs> {
  needs: readonly ToolName[]
  /** What some of its repositories need besides; their rows are skipped where it is missing. */
  wants?: readonly ToolName[]
  /** Labels it can run on, all unless told. */
  repos?: readonly string[]
  options?: O
  /** Whether commands get VYKAR_PASSPHRASE. */
  passphrase?: boolean
}

/** The result of the preparation. */
export interface Plan<O extends OptionSpecs> {
  scenario: string
  name: string
  options: Values<typeof commonOptions & O>
  /** The options that every scenario takes, of the same command line. */
  common: Values<typeof commonOptions>
  repos: string[]
  runtime: string
  sample: Sample
  vykar: VykarBinary
  versions: Record<string, string>
  notes: string[]
}

/** The scenario's name from the place of its script: `backends/local`; the base name outside of `scripts/`. */
export function scenarioName(file: string): string {
  const inside = relative(join(root, 'scripts'), file)
  return (inside.startsWith('..') ? basename(file) : inside).replace(/\.mts$/, '')
}

/** The script's header comment: purpose and pass rule. */
export function headerOf(file: string): string {
  const lines = readFileSync(file, 'utf8').split('\n')
  const from = lines.findIndex((line) => line.startsWith('//'))
  const length = lines.slice(from).findIndex((line) => !line.startsWith('//'))
  return lines
    .slice(from, from + length)
    .map((line) => line.replace(/^\/\/ ?/, ''))
    .join('\n')
}

function help(file: string, spec: ScenarioSpec<OptionSpecs>): string {
  const needs = [...spec.needs, ...(spec.wants ?? [])]
    .map((name) => `  ${name.padEnd(14)}${tools[name].why}`)
    .join('\n')
  const own = spec.options ? `\nOptions of this script\n${optionHelp(spec.options)}\n` : ''
  return `${scenarioName(file)}\n\n${headerOf(file)}\n\nNeeds\n${needs}\n${own}\nOptions of every script\n${optionHelp(commonOptions)}`
}

/** Below this a run cannot even write its logs. */
const leastFree = 64 * 2 ** 20

/** Nearest existing directory of a path that may not exist yet. */
function existing(path: string): string {
  return existsSync(path) ? path : existing(dirname(path))
}

function checkRuntime(runtime: string): void {
  const dir = existing(runtime)
  if (/^\/((bin|boot|dev|etc|home|lib\w*|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)\/?)?$/.test(runtime))
    throw new UsageError(`runtime directory ${runtime} is the system's: name one below it with --runtime`)
  try {
    if (!statSync(dir).isDirectory()) throw new Error('not a directory')
    accessSync(dir, constants.W_OK | constants.X_OK)
  } catch {
    throw new UsageError(`runtime directory ${runtime} cannot be written: name another with --runtime`)
  }
  const { bavail, bsize } = statfsSync(dir)
  if (bavail * bsize < leastFree)
    throw new UsageError(
      `runtime directory ${runtime} has only ${bytes(bavail * bsize)} free: free some, or name another with --runtime`,
    )
}

/**
 * Refuses two directories of which one lies inside the other, symlinks resolved.
 * @throws UsageError naming both
 */
export function apart(source: string, what: string, other: string): void {
  const real = (path: string) => join(realpathSync(existing(path)), relative(existing(path), path))
  const [a, b] = [source, other].map((path) => `${real(path)}/`.replace('//', '/')) as [string, string]
  if (a.startsWith(b) || b.startsWith(a))
    throw new UsageError(`source ${source} and ${what} ${other} must not lie inside each other: choose another`)
}

function checkPaths(specs: OptionSpecs, values: Record<string, unknown>): void {
  for (const [name, spec] of Object.entries(specs)) {
    const value = values[name]
    if ((spec.kind !== 'dir' && spec.kind !== 'file') || typeof value !== 'string') continue
    const stat = existsSync(value) ? statSync(value) : undefined
    if (!stat || (spec.kind === 'dir' ? !stat.isDirectory() : !stat.isFile()))
      throw new UsageError(`--${name} ${value}: no such ${spec.kind === 'dir' ? 'directory' : 'file'}`)
    // A symlink means what it points to, for every tool alike.
    values[name] = realpathSync(value)
  }
}

async function checkTools(
  needs: readonly ToolName[],
  install: boolean,
  required: readonly string[],
): Promise<Record<string, string>> {
  const look = () => Promise.all(needs.filter((name) => name !== 'vykar').map(find))
  let found = await look()
  const absent = found.filter((tool) => !tool.path)
  if (absent.length && install) {
    await aptInstall(absent.map((tool) => (tools[tool.name as ToolName] as Tool).apt ?? tool.name))
    found = await look()
  }
  const missing = found.filter((tool) => !tool.path)
  if (missing.length) {
    const others = missing.map(({ remedy }) => remedy).filter((remedy) => !remedy.startsWith('apt-get'))
    const remedies = [aptLine(missing), ...others].filter(Boolean)
    const text = `${missing.map((tool) => `${tool.name} is missing (${tool.why})`).join(', ')}: ${remedies.join('; ')}`
    throw skipOrFail(text, missing.map((tool) => tool.name), required) // biome-ignore format: one line
  }
  return Object.fromEntries(found.map((tool) => [tool.name, tool.version ?? 'present']))
}

/** What a lack becomes: Skipped, or a failure where one of `names` is required. */
export function skipOrFail(text: string, names: string[], required: readonly string[]): Error {
  const hit = required.includes('all') || names.some((name) => required.includes(name))
  return hit ? new Mismatch(`required, but skipped: ${text}`) : new Skipped(text)
}

/** The names of the saboteur's lies, out of its own list. */
async function checkLie(lie: string | undefined): Promise<void> {
  if (lie === undefined) return
  const { stdout: lies } = await ask([join(root, 'scripts/sabotage/vykar'), 'lies'])
  const names = lies.split('\n').map((line) => line.split(' ')[0]!)
  if (lie === 'list') throw new UsageError(`the lies that --sabotage can tell:\n${lies}`)
  if (!names.includes(lie))
    throw new UsageError(`--sabotage ${lie}: no such lie${meant(lie, names)}; \`--sabotage list\` lists them`)
}

/** What a script says of itself. */
export type Description = ReturnType<typeof describe>
/** What a script is: its name, its header, what it needs and would like, the repositories that it runs on. */
export const describe = (file: string, spec: ScenarioSpec<OptionSpecs>) => ({
  scenario: scenarioName(file),
  header: headerOf(file),
  needs: spec.needs,
  wants: spec.wants ?? [],
  repos: spec.repos ?? matrixOrder,
})

/**
 * Options → host check → sample → repositories → paths. Nothing is made or deleted.
 * @returns the plan, or undefined when `--help` or `--describe` was answered
 * @throws UsageError (exit 2), Skipped (exit 77)
 */
export async function prepare<O extends OptionSpecs>(
  file: string,
  argv: string[],
  spec: ScenarioSpec<O>,
): Promise<Plan<O> | undefined> {
  const scenario = scenarioName(file)
  const specs = { ...commonOptions, ...spec.options } as typeof commonOptions & O
  const options = parseOptions(argv, specs) as Values<typeof commonOptions & O>
  const common = options as Values<typeof commonOptions>
  const allowed = spec.repos ?? matrixOrder
  if (common.help) console.log(help(file, spec as ScenarioSpec<OptionSpecs>))
  if (common.describe) console.log(JSON.stringify({ ...describe(file, spec), options: specs }))
  if (common.help || common.describe) return
  if (!Number.isInteger(common.seed)) throw new UsageError(`--seed ${common.seed}: a whole number is needed`)
  const known = ['all', ...matrixOrder, ...Object.keys(tools), ...(spec.wants ?? [])]
  for (const [option, words] of [['require', known], ['wipe-repo', matrixOrder]] as const) {
    const odd = common[option].find((word) => !(words as readonly string[]).includes(word))
    if (odd) throw new UsageError(`--${option} ${odd}: no such tool or repository${meant(odd, words)}`)
  } // biome-ignore format: one line
  const notes: string[] = []
  const runtime = resolve(common.runtime ?? process.env.VYKAR_E2E_RUNTIME ?? join(homedir(), 'runtime'))
  checkPaths(specs, options)
  const mine = join(homedir(), 'vykar.sample.yaml')
  const sampleFile = common.sample ?? (existsSync(mine) ? mine : join(root, 'configs/vykar.sample.yaml'))
  if (!common.sample && sampleFile !== mine) notes.push(`no ${mine}: ${sampleFile} is used`)
  const sample = Sample.load(sampleFile)
  for (const label of common.repo)
    if (!allowed.includes(label)) throw new UsageError(`--repo ${label}: ${scenario} runs on ${allowed.join(', ')}`)
  const repos = allowed.filter((label) => !common.repo.length || common.repo.includes(label))
  // A server's repository that the sample does not have is one of our own, at the default address.
  const builtIn = Sample.load(join(root, 'configs/vykar.sample.yaml'))
  const optional = common.services !== 'external' ? repos.filter((l) => l !== 'local' && !common.repo.includes(l)) : []
  for (const label of repos) if (optional.includes(label)) sample.adopt(builtIn.repository(label))
  for (const label of repos) sample.repository(label)
  checkRuntime(runtime)
  const source = (options as Record<string, unknown>).source
  if (typeof source === 'string') apart(source, 'the runtime directory', runtime)
  await checkLie(common.sabotage)
  if (!common.vykar && !which('vykar'))
    throw skipOrFail(`vykar is missing (the program under test): ${tools.vykar.install}`, ['vykar'], common.require)
  const vykar = await identifyVykar(common.vykar ?? 'vykar')
  const versions = common['dry-run'] ? {} : await checkTools(spec.needs, common.install, common.require)
  return { scenario, name: basename(scenario), options, common, repos, runtime, sample, vykar, versions, notes }
}
