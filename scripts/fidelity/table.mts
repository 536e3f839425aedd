// What became of each class in each tool, and the table of it: fidelity.md, fidelity.json, fidelity.html.
import { writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { xml } from '#lib/report.mts'

/** `refused`: the entry itself did not come back, and the tool said so; `not here`: this host cannot have it. */
export type Word = 'kept' | 'lost, said' | 'lost in silence' | 'refused' | 'not here'
/** What became of one class: how many of its bearers did not come back as they were, and what the first of them and each became. */
export interface Fate {
  word: Word
  lost: number
  of: number
  example?: string
  became?: string[]
}

/** The longest part of a name that no tool escapes in its messages. */
const plain = (path: string) =>
  (basename(path).match(/[A-Za-z0-9_.-]+/g) ?? []).reduce((best, part) => (part.length > best.length ? part : best), '')

/**
 * What became of a class.
 * @param before, after its lines in the source and in what was restored: path, tab, value
 * @param said what the tool printed at backup and restore
 * @param there whether a path exists in what was restored
 */
export function fateOf(
  before: readonly string[],
  after: readonly string[],
  said: string,
  there: (path: string) => boolean,
): Fate {
  const [left, right] = [new Set(before), new Set(after)]
  const changed = [...before.filter((line) => !right.has(line)), ...after.filter((line) => !left.has(line))]
  const paths = [...new Set(changed.map((line) => line.slice(0, line.lastIndexOf('\t'))))]
  const of = before.length
  if (!of && !paths.length) return { word: 'not here', lost: 0, of }
  if (!paths.length) return { word: 'kept', lost: 0, of }
  const spoken = paths.every((path) => /[a-z]{3}/i.test(plain(path)) && said.includes(plain(path)))
  const gone = paths.every((path) => !there(path))
  const word = !spoken ? 'lost in silence' : gone ? 'refused' : 'lost, said'
  const value = (line: string | undefined) => line?.slice(line.lastIndexOf('\t') + 1).trim() || 'nothing'
  const became = paths.map((path) => {
    const [was, is] = [before, after].map((lines) => value(lines.find((line) => line.startsWith(`${path}\t`))))
    return `${path}: ${was} became ${is}`
  })
  return { word, lost: paths.length, of, example: became[0], became }
}

/** The result: classes by tools. */
export interface Fidelity {
  schema: 'vykar-e2e/fidelity/1'
  started: string
  versions: Record<string, string>
  classes: { name: string; fates: Record<string, Fate> }[]
}

const cell = (fate: Fate | undefined) =>
  !fate
    ? ''
    : fate.word === 'kept' || fate.word === 'not here'
      ? fate.word
      : `${fate.word}${fate.lost < fate.of ? ` (${fate.lost} of ${fate.of})` : ''}`

/** Writes the table in its three forms. Returns the path of the page. */
export function writeFidelity(dir: string, result: Fidelity): string {
  const names = Object.keys(result.versions)
  const heads = names.map((name) => `${name} ${result.versions[name]}`)
  const kept = names.map((name) => result.classes.filter(({ fates }) => fates[name]?.word === 'kept').length)
  const summary = `Of ${result.classes.length} classes are kept: ${names.map((name, i) => `${name} ${kept[i]}`).join(', ')}.`
  const how =
    'As root, on this file system, each tool called as its documentation begins: options such as --sparse are not given. Kept: every bearer came back as it was. Lost, said: the tool named each that it lost. Refused: the entry itself is missing, and the tool said so.'
  const rows = result.classes.map(({ name, fates }) => [name, ...names.map((tool) => cell(fates[tool]))])
  const examples = result.classes.flatMap(({ name, fates }) =>
    Object.entries(fates).flatMap(([tool, { example }]) => (example ? [[name, tool, example]] : [])),
  )
  const pipe = (words: string[]) => `| ${words.map((word) => word.replaceAll('|', '\\|')).join(' | ')} |`
  const md = (head: string[], body: string[][]) =>
    [pipe(head), pipe(head.map(() => '---')), ...body.map(pipe)].join('\n')
  writeFileSync(join(dir, 'fidelity.json'), `${JSON.stringify(result, null, 1)}\n`)
  writeFileSync(
    join(dir, 'fidelity.md'),
    `# What each tool keeps\n\n${summary}\n\n${md(['class', ...heads], rows)}\n\n${how}\n\n## Examples\n\n${md(['class', 'tool', 'what'], examples)}\n`,
  )
  const table = (head: string[], body: string[][]) =>
    `<div><table><tr>${head.map((text) => `<th>${xml(text)}`).join('')}</tr>\n${body
      .map(
        (row) =>
          `<tr>${row.map((text, i) => `<td${i ? ` class="${text.split(/[ ,]/)[0] === 'kept' ? 'kept' : text.startsWith('lost in') ? 'silent' : ''}"` : ''}>${xml(text)}`).join('')}</tr>`,
      )
      .join('\n')}</table></div>`
  const page = join(dir, 'fidelity.html')
  writeFileSync(
    page,
    `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What each tool keeps</title><style>
:root{color-scheme:light dark}body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:75rem;padding:0 1rem}
div{overflow-x:auto}table{border-collapse:collapse}th,td{text-align:left;padding:.2rem .7rem;border-bottom:1px solid #8884;vertical-align:top}
th+th,td+td{white-space:nowrap}
.kept{color:light-dark(#0a6b2e,#6fd38f)}.silent{color:light-dark(#b3261e,#ff8a80);font-weight:600}p{max-width:60rem}
</style><h1>What each tool keeps</h1><p>${xml(summary)}</p>
${table(['class', ...heads], rows)}
<p>${xml(how)}</p><h2>Examples</h2>${table(['class', 'tool', 'what'], examples)}</html>\n`,
  )
  return page
}
