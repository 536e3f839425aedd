// From the user's base config and what a script says to the config file of a row. The base config itself is never changed.
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type Document, isMap, isScalar, isSeq, LineCounter, parseDocument, visit, type YAMLMap } from 'yaml'
import { resolveUrl, variableOf } from './address.mts'
import { writeWhole } from './files.mts'
import { execute, scope } from './sh.mts'
import { messageOf, UsageError } from './verdict.mts'

/** The order in which repositories are tried. */
export const matrixOrder = ['local', 'rest', 's3', 'sftp'] as const

/** The host name under which the suite's snapshots are recorded: how they are told from someone's backups. */
export const suiteHost = 'vykar-e2e'

/** A repository of the base config: its label, its URL as vykar resolves it, and its other keys, expanded. */
export interface Repository {
  label: string
  url: string
  keys: Record<string, unknown>
}

/**
 * Expands `${VAR}` and `${VAR:-default}` as vykar does, anywhere in the text: an empty variable counts as unset where there is
 * a default.
 * @throws UsageError when a variable without default is unset
 */
export function expand(text: string, env: NodeJS.ProcessEnv, file: string): string {
  return text.replace(/\$\{(\w+)(:-([^}]*))?\}/g, (_, name: string, colon?: string, fallback = '') => {
    const value = colon ? env[name] || fallback : env[name]
    if (value === undefined)
      throw new UsageError(`${file}: \${${name}} is not set: export it, or write \${${name}:-default}`)
    return value
  })
}

function parse(text: string, file: string): Document {
  const lines = new LineCounter()
  const doc = parseDocument(text, { lineCounter: lines })
  const error = doc.errors[0]
  if (error) {
    const { line, col } = lines.linePos(error.pos[0])
    throw new UsageError(`${file}:${line}:${col}: ${error.message.split(' at line')[0]}`)
  }
  if (!isMap(doc.contents)) throw new UsageError(`${file}:1:1: a YAML mapping with \`repositories:\` is needed`)
  return doc
}

/** Keys whose values are nobody's business. */
const secretKey = /pass(phrase|word|command)|secret|token|access_key/i
/** What the base config of this clone and the documentation publish is no secret. */
export const published = new Set(['123', 'minioadmin', 'vykar-e2e'])

/** Every value of a secret key in a parsed document, aliases resolved, and passwords in URLs. */
function secretsOf(value: unknown, key = ''): string[] {
  if (Array.isArray(value)) return value.flatMap((item) => secretsOf(item, key))
  if (value !== null && typeof value === 'object')
    return Object.entries(value).flatMap(([name, inner]) => secretsOf(inner, secretKey.test(key) ? key : name))
  const text = String(value ?? '')
  if (key === 'url' && URL.canParse(text)) return [decodeURIComponent(new URL(text).password)].filter(Boolean)
  return secretKey.test(key) && text && !published.has(text) ? [text] : []
}

/** The user's base config, parsed. */
export class Sample {
  private constructor(
    readonly file: string,
    private readonly text: string,
    readonly repositories: Repository[],
    /** What in it is nobody's business, as vykar sees it. */
    readonly secrets: string[],
  ) {}

  /** Reads and checks it. Throws UsageError with file, line and column where it is malformed. */
  static load(file: string, env: NodeJS.ProcessEnv = process.env): Sample {
    if (!existsSync(file)) throw new UsageError(`${file}: no such file; name the base config with --sample`)
    let text: string
    try {
      text = readFileSync(file, 'utf8')
    } catch (error) {
      throw new UsageError(`${file}: cannot be read: ${messageOf(error)}`)
    }
    // vykar expands first and reads YAML then.
    const expanded = expand(text, env, file)
    const doc = parse(expanded, file)
    const lines = new LineCounter()
    parseDocument(expanded, { lineCounter: lines })
    const at = (node: unknown) => {
      const range = (node as { range?: [number, number, number] } | undefined)?.range
      const { line, col } = lines.linePos(range?.[0] ?? 0)
      return `${file}:${Math.max(line, 1)}:${Math.max(col, 1)}`
    }
    if (doc.has('env_file'))
      throw new UsageError(`${file}: \`env_file\` is not read by this suite: export its variables instead`)
    const list = doc.get('repositories', true)
    if (!isSeq(list)) throw new UsageError(`${at(list)}: \`repositories:\` must be a list of label and url`)
    const repositories = list.items.map((item): Repository => {
      const keys = isMap(item) ? (item.toJS(doc) as Record<string, unknown>) : {}
      const { label, url } = keys
      if (typeof label !== 'string' || typeof url !== 'string')
        throw new UsageError(`${at(item)}: a repository needs \`label:\` and \`url:\`, both text`)
      return { label, url: resolveUrl(url, at(item)), keys }
    })
    return new Sample(file, text, repositories, [...new Set(secretsOf(doc.toJS()))])
  }

  /** The repository with this label. Throws UsageError naming the labels there are. */
  repository(label: string): Repository {
    const found = this.repositories.find((r) => r.label === label)
    if (found) return found
    const labels = this.repositories.map((r) => r.label).join(', ') || 'none'
    throw new UsageError(`${this.file}: no repository labelled ${label}; it has ${labels}`)
  }

  /** Adds a repository that the base config does not have. */
  adopt(repository: Repository): void {
    if (!this.repositories.some((r) => r.label === repository.label)) this.repositories.push(repository)
  }

  /**
   * A row's config: the chosen repositories with their URLs as variables, the script's keys laid over the base config.
   * @param repositories labels, and more keys for each
   * @param over YAML text of the script; entries of its `repositories:` add keys to those of the same label, or to all where
   * they have none
   * @param hidden gives the name of the variable that stands for a secret
   */
  compose(
    repositories: { label: string; keys?: Record<string, unknown> }[],
    over: string,
    hidden: (key: string, value: string) => string,
  ): string {
    const base = parse(this.text, this.file)
    const own = parse(over || '{}', 'the config in the script').toJS() as Record<string, unknown>
    const more = (own.repositories ?? []) as Record<string, unknown>[]
    const list = base.get('repositories')
    const items = isSeq(list) ? list.items.filter((item): item is YAMLMap => isMap(item)) : []
    const entries = repositories.map(({ label, keys }) => {
      const item = items.find((one) => one.get('label') === label)
      const mine = more.filter((one) => one.label === undefined || one.label === label)
      // Commands of the user's own, in hooks, are none of the suite's business.
      const { hooks: _, ...kept } = (item?.toJS(base) ?? {}) as Record<string, unknown>
      const entry = Object.assign(kept, keys, ...mine, { label, url: `\${${variableOf(label)}}` })
      // An encryption that the script sets is meant for every repository.
      if (own.encryption) delete entry.encryption
      return entry
    })
    const { repositories: _, sources: __, hooks: ___, ...rest } = base.toJS() as Record<string, unknown>
    const whole = { ...rest, hostname: suiteHost, cache_dir: 'cache', ...own, repositories: entries }
    const doc = parse(JSON.stringify(whole), this.file)
    const hide = (key: string, value: string) => `\${${hidden(key, value)}}`
    visit(doc, {
      // vykar expands variables anywhere: a secret is in the environment, and in no file.
      Pair: (_, { key, value }) => {
        const name = String(isScalar(key) ? key.value : key)
        if (isScalar(value) && secretKey.test(name) && value.value && !/^\$\{\w+\}$/.test(String(value.value)))
          value.value = hide(name, expand(String(value.value), process.env, this.file))
      },
      Scalar: (_, node) => {
        const secret = this.secrets.find((text) => typeof node.value === 'string' && node.value === text)
        if (secret) node.value = hide('value', secret)
        node.type = undefined
      },
      Collection: (_, node) => {
        node.flow = false
      },
    })
    // One value a line, however long: hooks and dump commands are to be read, and changed with sed.
    return doc.toString({ lineWidth: 0 })
  }
}

/**
 * Writes the row's config.yaml: the repositories of the user's base config, and what the script says. Values put in with
 * `${…}` become quoted YAML; a variable for vykar itself is written `\${NAME}`.
 */
export async function config(pieces: TemplateStringsArray, ...values: (string | number)[]): Promise<void> {
  const s = scope()
  const { run } = s
  const over = pieces.map((piece, i) => piece + (i < values.length ? JSON.stringify(values[i]) : '')).join('')
  const repositories = run.repos.map((label) => ({ label, keys: run.endpoint(label).keys }))
  const text = run.plan.sample.compose(repositories, over, (key, value) => {
    let name = `VYKAR_E2E_${key.toUpperCase()}`
    while (run.env[name] !== undefined && run.env[name] !== value) name += '_'
    if (run.env[name] !== value && published.has(value)) run.setEnv(name, value)
    else if (run.env[name] !== value) run.secret(name, value)
    return name
  })
  s.config = text
  await execute(`cat > config.yaml <<'EOF'\n${text}EOF`)
  if (s.dry) return
  mkdirSync(join(run.runtime, 'configs'), { recursive: true })
  const file = join(run.runtime, 'configs', `config.${run.plan.name}.yaml`)
  writeWhole(file, standalone(text, s.dir, run.env), 0o600)
}

/** The same config for the user to go on with from any directory: variables of the run filled in, paths absolute. */
function standalone(text: string, dir: string, env: NodeJS.ProcessEnv): string {
  const doc = parse(text, 'config.yaml')
  visit(doc, {
    Scalar: (_, node) => {
      if (typeof node.value === 'string')
        node.value = node.value.replace(/\$\{((?:REPO|VYKAR_E2E)_\w+)\}/g, (whole, name: string) => env[name] ?? whole)
    },
    Pair: (_, { key, value }) => {
      if (/^(path|cache_dir|sftp_key|sftp_known_hosts)$/.test(String(key)) && isScalar(value))
        value.value = resolve(dir, String(value.value))
    },
  })
  return doc.toString({ lineWidth: 0 })
}

/**
 * The URL of a scenario's own repository: the scenario's name appended, except for REST, which serves one repository
 * at its root.
 */
export function scenarioUrl(url: string, scenario: string): string {
  return /^https?:/.test(url) ? url : `${url.replace(/\/+$/, '')}/${scenario}`
}

/** The directory of a local repository; undefined for the other backends. URLs are resolved when the base config is read. */
export const localDir = (url: string): string | undefined => (url.startsWith('/') ? url : undefined)
