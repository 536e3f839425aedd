// Strict options: whatever is not declared, lacks its value or is out of range is refused with the nearest valid name.
import minimist from 'minimist'
import { UsageError } from './verdict.mts'

/** One declared option. `flag` takes no value; `dir` and `file` must exist when the user names one. */
export interface OptionSpec {
  kind: 'flag' | 'string' | 'number' | 'list' | 'dir' | 'file' | 'path'
  help: string
  default?: string | number
  /** `number`: the smallest value accepted (0 unless told); `above` refuses that value itself. */
  min?: number
  above?: boolean
  choices?: readonly string[]
}
export type OptionSpecs = Record<string, OptionSpec>

/** What a spec's option becomes: its value, the default, or undefined. */
export type Values<S extends OptionSpecs> = {
  [K in keyof S]: S[K]['kind'] extends 'flag'
    ? boolean
    : S[K]['kind'] extends 'number'
      ? S[K] extends { default: number }
        ? number
        : number | undefined
      : S[K]['kind'] extends 'list'
        ? string[]
        : S[K] extends { default: string }
          ? string
          : string | undefined
}

/** Levenshtein distance, for "did you mean". */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
    row = next
  }
  return row[b.length]!
}

/** The end of a message about a word that is none of `names`: `; did you mean …?` where one of them is near. */
export function meant(word: string, names: readonly string[], before = ''): string {
  const [best = ''] = [...names].sort((a, b) => distance(word, a) - distance(word, b))
  return best && distance(word, best) <= Math.max(2, word.length / 2) ? `; did you mean ${before}${best}?` : ''
}

function convert(name: string, spec: OptionSpec, raw: string): string | number | string[] {
  if (spec.kind === 'number') {
    const value = Number(raw)
    const min = spec.min ?? 0
    if (!Number.isFinite(value) || value < min || (spec.above && value === min))
      throw new UsageError(`--${name} ${raw}: a number ${spec.above ? 'above' : 'of at least'} ${min} is needed`)
    return value
  }
  const words = spec.kind === 'list' ? raw.split(',').filter(Boolean) : [raw]
  for (const word of words)
    if (spec.choices && !spec.choices.includes(word))
      throw new UsageError(`--${name} ${word}: not one of ${spec.choices.join(', ')}${meant(word, spec.choices)}`)
  return spec.kind === 'list' ? words : raw
}

/**
 * Parses a command line against the declared options.
 * @param argv the arguments without node and script
 * @param positional whether words that are no options are allowed; they come back under `_`
 * @throws UsageError on an unknown option, a missing or repeated value, a bad number, a word that is not a choice
 */
export function parseOptions<S extends OptionSpecs>(
  argv: string[],
  specs: S,
  positional = false,
): Values<S> & { _: string[] } {
  const names = Object.keys(specs)
  const flags = names.filter((name) => specs[name]!.kind === 'flag')
  // A negative number is the option's value, and to be refused as one; minimist would take it for an option.
  const joined: string[] = []
  for (const word of argv)
    if (/^-\d/.test(word) && /^--[^=]+$/.test(joined.at(-1) ?? '')) joined.push(`${joined.pop()}=${word}`)
    else joined.push(word)
  const parsed = minimist(joined, {
    string: [...names.filter((name) => !flags.includes(name)), '_'],
    boolean: flags,
    unknown: (word) => {
      const name = word.replace(/^-+/, '').replace(/=.*/s, '')
      if (word.startsWith('-'))
        throw new UsageError(
          `unknown option ${word.replace(/=.*/s, '')}${meant(name, names, '--') || ': --help lists them'}`,
        )
      if (!positional) throw new UsageError(`unexpected argument ${word}; options begin with --`)
      return true
    },
  })
  const values: Record<string, unknown> = { _: parsed._ }
  for (const [name, spec] of Object.entries(specs)) {
    const raw: unknown = parsed[name]
    if (spec.kind === 'flag') {
      const given = argv.find((word) => word.startsWith(`--${name}=`))
      if (given) throw new UsageError(`--${name} takes no value (${given})`)
      values[name] = raw === true
      continue
    }
    if (Array.isArray(raw)) throw new UsageError(`--${name} is given more than once`)
    // minimist hands a missing value over as ''
    if (raw === '') throw new UsageError(`--${name} needs a value`)
    values[name] =
      raw === undefined ? (spec.default ?? (spec.kind === 'list' ? [] : undefined)) : convert(name, spec, String(raw))
  }
  return values as Values<S> & { _: string[] }
}

/** The `--help` lines of the declared options. */
export function optionHelp(specs: OptionSpecs): string {
  const left = (name: string, spec: OptionSpec) =>
    `  --${name}${spec.kind === 'flag' ? '' : ` ${spec.kind === 'number' ? 'N' : spec.kind.toUpperCase()}`}`
  const width = Math.max(...Object.entries(specs).map(([name, spec]) => left(name, spec).length)) + 2
  return Object.entries(specs)
    .map(([name, spec]) => {
      const extra = [
        spec.choices ? spec.choices.join('|') : '',
        spec.default === undefined ? '' : `default ${spec.default}`,
      ]
      return `${left(name, spec).padEnd(width)}${[spec.help, ...extra.filter(Boolean)].join('; ')}`
    })
    .join('\n')
}
