// From the user's sample and a scenario's fragment to the config file of a run. The sample itself is never changed.
import { existsSync, readFileSync } from 'node:fs'
import { type Document, isMap, isSeq, LineCounter, parseDocument, type YAMLMap } from 'yaml'
import { messageOf, UsageError } from './verdict.mts'

/** The order in which repositories are tried. */
export const matrixOrder = ['local', 'rest', 's3', 'sftp'] as const

/** A repository of the sample: its label and expanded URL. */
export interface Repository {
  label: string
  url: string
}

/**
 * Expands `${VAR}` and `${VAR:-default}` as vykar does, anywhere in the text.
 * @throws UsageError when a variable without default is unset
 */
export function expand(text: string, env: NodeJS.ProcessEnv, file: string): string {
  return text.replace(/\$\{(\w+)(?::-([^}]*))?\}/g, (_, name: string, fallback?: string) => {
    const value = env[name] || fallback
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
  const top = doc.contents
  if (!isMap(top)) throw new UsageError(`${file}:1:1: a YAML mapping with \`repositories:\` is needed`)
  return doc
}

/** The user's base config, parsed. */
export class Sample {
  private constructor(
    readonly file: string,
    private readonly text: string,
    readonly repositories: Repository[],
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
    const doc = parse(text, file)
    const lines = new LineCounter()
    parseDocument(text, { lineCounter: lines })
    const list = doc.get('repositories', true)
    const at = (node: unknown) => {
      const range = (node as { range?: [number, number, number] } | undefined)?.range
      const { line, col } = lines.linePos(range?.[0] ?? 0)
      return `${file}:${Math.max(line, 1)}:${Math.max(col, 1)}`
    }
    if (!isSeq(list)) throw new UsageError(`${at(list)}: \`repositories:\` must be a list of label and url`)
    const repositories = list.items.map((item) => {
      const [label, url] = isMap(item) ? [item.get('label'), item.get('url')] : []
      if (typeof label !== 'string' || typeof url !== 'string')
        throw new UsageError(`${at(item)}: a repository needs \`label:\` and \`url:\`, both text`)
      return { label, url: expand(url, env, file) }
    })
    return new Sample(file, text, repositories)
  }

  /** The repository with this label. Throws UsageError naming the labels there are. */
  repository(label: string): Repository {
    const found = this.repositories.find((r) => r.label === label)
    if (!found)
      throw new UsageError(
        `${this.file}: no repository labelled ${label}; it has ${this.repositories.map((r) => r.label).join(', ') || 'none'}`,
      )
    return found
  }

  /** Adds a repository that the sample does not have. */
  adopt(repository: Repository): void {
    if (!this.repositories.some((r) => r.label === repository.label)) this.repositories.push(repository)
  }

  /** A text value of a repository's entry, expanded; undefined where it has none. */
  value(label: string, key: string): string | undefined {
    const list = parse(this.text, this.file).get('repositories')
    const items = isSeq(list) ? list.items.filter(isMap) : []
    const found = items.find((item) => item.get('label') === label)?.get(key)
    return found === undefined ? undefined : expand(String(found), process.env, this.file)
  }

  /**
   * A run's config: the sample with the chosen repositories at their own URLs, the fragment's keys laid over it.
   * Comments and keys of the sample that are not replaced stay as they are.
   * @param repositories the rows' repositories with the URLs to write, and more keys for each
   * @param fragment YAML text of configs/<scenario>.yaml, `${NAME}` already filled in
   * @param cacheDir the run's own cache directory
   */
  compose(
    repositories: (Repository & { set?: Record<string, unknown> })[],
    fragment: string,
    fragmentFile: string,
    cacheDir: string,
  ): string {
    const doc = parse(this.text, this.file)
    const over = parse(fragment, fragmentFile).contents as YAMLMap
    const list = doc.get('repositories')
    if (!isSeq(list)) throw new UsageError(`${this.file}: \`repositories:\` must be a list`)
    list.items = list.items.filter((item) => isMap(item) && repositories.some((r) => r.label === item.get('label')))
    for (const { label, url } of repositories)
      if (!list.items.some((item) => isMap(item) && item.get('label') === label))
        list.add(doc.createNode({ label, url }))
    for (const item of list.items as YAMLMap[]) {
      const wanted = repositories.find((r) => r.label === item.get('label'))!
      // One key a line, so that a script can change one with sed.
      item.flow = false
      item.set('url', wanted.url)
      for (const [key, value] of Object.entries(wanted.set ?? {})) item.set(key, value)
      // A fragment that sets the encryption means it for every repository.
      if (over.has('encryption')) item.delete('encryption')
    }
    doc.delete('sources')
    doc.set('hostname', suiteHost)
    doc.set('cache_dir', cacheDir)
    for (const { key } of over.items) doc.set(String(key), over.get(key, true))
    // One value a line, however long: hooks and dump commands are to be read, and changed with sed.
    return doc.toString({ lineWidth: 0 })
  }
}

/** The host name under which the suite's snapshots are recorded: how they are told from someone's backups. */
export const suiteHost = 'vykar-e2e'

/**
 * The URL of a scenario's own repository: the scenario's name appended, except for REST, which serves one repository
 * at its root.
 */
export function scenarioUrl(url: string, scenario: string): string {
  return /^https?:/.test(url) ? url : `${url.replace(/\/+$/, '')}/${scenario}`
}

/** The directory behind a local repository URL; undefined for the other backends. */
export function localDir(url: string): string | undefined {
  if (url.startsWith('file://')) return decodeURIComponent(new URL(url).pathname)
  return /^[\w+]+:\/\//.test(url) ? undefined : url
}

/**
 * Fills `${NAME}` of a fragment from `values`, other `${…}` stay for vykar. Values are written as quoted YAML text,
 * so that a path with a colon or a quote stays one value.
 */
export function fill(fragment: string, values: Record<string, string>): string {
  return fragment.replace(/\$\{(\w+)\}/g, (whole, name: string) =>
    name in values ? JSON.stringify(values[name]) : whole,
  )
}

const secretKey = /pass(phrase|word|command)|secret|token|access_key/i
/**
 * Config text fit for a report or transcript: values of secret keys are replaced by `${VYKAR_E2E_KEY}`, which vykar
 * expands from the environment.
 */
export function masked(config: string): string {
  return config.replace(
    /^([ \t]*-?[ \t]*)(\w+)([ \t]*:[ \t]*)(\S.*)$/gm,
    (line, indent: string, key: string, colon: string) =>
      // A reference to a variable is no secret.
      secretKey.test(key) && !/\$\{\w+\}/.test(line)
        ? `${indent}${key}${colon}\${VYKAR_E2E_${key.toUpperCase()}}`
        : line,
  )
}
