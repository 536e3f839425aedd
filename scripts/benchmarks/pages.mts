// The outputs of a benchmark: table, Markdown, JSON, charts and a page that needs no other file.
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import type { TopLevelSpec } from 'vega-lite'
import { xml } from '#lib/report.mts'
import { bytes } from '#lib/terminal.mts'
import { palette, pngOf, svgOf } from '#scripts/benchmarks/chart.mts'
import type { Summary } from '#scripts/benchmarks/stats.mts'
import { type Benchmark, type Figures, ratioText, resultOf } from './summary.mts'
import { type Operation, operations, tools } from './tools.mts'

const columns = [
  ['repo', (f: Figures) => f.repo],
  ['operation', (f: Figures) => f.operation],
  ['tool', (f: Figures) => f.tool],
  ['n', (f: Figures) => f.seconds.n],
  ['failed', (f: Figures) => f.failed.length],
  ['seconds_median', (f: Figures) => f.seconds.median],
  ['seconds_mad', (f: Figures) => f.seconds.mad],
  ['seconds_min', (f: Figures) => f.seconds.min],
  ['seconds_max', (f: Figures) => f.seconds.max],
  ['outliers', (f: Figures) => f.seconds.outliers.length],
  ['bytes_per_second', (f: Figures) => f.throughput && Math.round(f.throughput.median)],
  ['cpu_seconds_median', (f: Figures) => f.cpuSeconds?.median],
  ['peak_bytes_median', (f: Figures) => f.peakBytes?.median],
  ['read_bytes_median', (f: Figures) => f.readBytes?.median],
  ['written_bytes_median', (f: Figures) => f.writtenBytes?.median],
  ['repository_bytes_median', (f: Figures) => f.repositoryBytes?.median],
  ['ratio_to_vykar', (f: Figures) => f.toVykar?.ratio],
  ['ratio_low', (f: Figures) => f.toVykar?.low],
  ['ratio_high', (f: Figures) => f.toVykar?.high],
] as const

const MiB = 2 ** 20
/** Operations that change what a repository takes: of the others its size says nothing. */
const changing: readonly Operation[] = ['first backup', 'changed backup', 'prune']
/** Operations that go through all of the source or of the repository. */
const reading: readonly Operation[] = ['first backup', 'restore', 'check data']
/** What is drawn: a title, its unit, and the figures in that unit. */
const metrics: [title: string, unit: string, of: (f: Figures) => Summary | undefined, scale: number][] = [
  ['time', 's', (f) => f.seconds, 1],
  ['throughput', 'MiB/s', (f) => (reading.includes(f.operation) ? f.throughput : undefined), MiB],
  ['CPU time', 's', (f) => f.cpuSeconds, 1],
  ['peak memory', 'MiB', (f) => f.peakBytes, MiB],
  ['repository', 'MiB', (f) => (changing.includes(f.operation) ? f.repositoryBytes : undefined), MiB],
]

/** A number with three digits that say something. */
const short = (value: number) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))

/** One panel: an operation's figure, a bar for each tool, a line from its smallest to its largest value. */
function panel(figures: Figures[], names: string[], operation: string, metric: (typeof metrics)[number]) {
  const [title, unit, of, scale] = metric
  const values = figures
    .filter((f) => f.operation === operation)
    .flatMap((f) => {
      const s = of(f)
      return s ? [{ tool: f.tool, middle: s.median / scale, low: s.min / scale, high: s.max / scale }] : []
    })
    .map((value) => ({ ...value, label: short(value.middle) }))
  const y = { field: 'tool', type: 'nominal', title: null, sort: names }
  const color = { field: 'tool', type: 'nominal', scale: { domain: names, range: [...palette] }, legend: null }
  const bar = { x: { field: 'middle', type: 'quantitative', title: null, axis: { tickCount: 3 } }, y, color }
  return {
    width: 125,
    height: { step: 17 },
    title: { text: `${operation}: ${title}, ${unit}`, fontSize: 11, anchor: 'start' },
    data: { values },
    layer: [
      { mark: { type: 'bar', height: 11 }, encoding: bar },
      {
        mark: { type: 'rule', strokeWidth: 1.5 },
        encoding: { x: { field: 'low', type: 'quantitative' }, x2: { field: 'high' }, y },
      },
      {
        mark: { type: 'text', align: 'left', dx: 4, fontSize: 10 },
        encoding: { x: { field: 'high', type: 'quantitative' }, y, text: { field: 'label' } },
      },
    ],
  }
}

/** One backend as a chart: a row for each operation, a column for each figure. */
export function chartOf({ figures, runs }: Benchmark, repo: string): TopLevelSpec {
  const mine = figures.filter((f) => f.repo === repo && f.seconds.n)
  const names = Object.keys(tools).filter((name) => mine.some((f) => f.tool === name))
  const shown = operations.filter((operation) => mine.some((f) => f.operation === operation))
  const drawn = (operation: Operation) =>
    metrics.filter(([, , of]) => mine.some((f) => f.operation === operation && of(f)))
  return {
    title: `Backup tools on ${repo}: median of ${runs} ${runs > 1 ? 'rounds' : 'round'}; the line goes from the smallest to the largest`,
    spacing: 30,
    vconcat: shown.map((operation) => ({
      bounds: 'flush',
      spacing: 85,
      hconcat: drawn(operation).map((metric) => panel(mine, names, operation, metric)),
    })),
  } as unknown as TopLevelSpec
}

const seconds = (s: Summary) =>
  `${s.median.toFixed(2)} ± ${s.mad.toFixed(2)} (${s.min.toFixed(2)} to ${s.max.toFixed(2)})`

/** What versions of tools cannot do on a backend that they have: backend, tool, operation, reason. */
const lackOf = ({ lacks = {}, figures }: Benchmark) =>
  [...new Set(figures.map((f) => f.repo))].flatMap((repo) =>
    Object.entries(lacks)
      .filter(([name]) => figures.some((f) => f.repo === repo && f.tool === name))
      .flatMap(([name, of]) => Object.entries(of).map(([operation, why]) => [repo, name, operation, why] as const)),
  )

/** Head and rows of the table that people read. */
function tableOf(b: Benchmark): string[][] {
  const { figures, sourceBytes } = b
  const head = [
    'backend',
    'operation',
    'tool',
    'n',
    'seconds: median ± MAD (range)',
    'throughput',
    'CPU',
    'peak memory',
    'repository (source ÷ it)',
    'time ÷ vykar (95 %)',
  ]
  const ratio = ({ operation, repositoryBytes }: Figures, text: string) =>
    operation === 'first backup' && repositoryBytes
      ? `${text} (${(sourceBytes / repositoryBytes.median).toFixed(2)})`
      : text
  const size = (s: Summary | undefined) => (s ? bytes(s.median) : '')
  return [
    head,
    ...figures.map((f) => [
      f.repo,
      f.operation,
      f.tool,
      `${f.seconds.n}${f.failed.length ? `, ${f.failed.length} failed` : ''}`,
      f.seconds.n
        ? `${seconds(f.seconds)}${f.seconds.outliers.length ? `, ${f.seconds.outliers.length} outlier kept` : ''}`
        : f.failed[0]!,
      f.seconds.n && f.throughput ? `${bytes(f.throughput.median)}/s` : '',
      f.cpuSeconds ? `${f.cpuSeconds.median.toFixed(2)} s` : '',
      size(f.peakBytes),
      ratio(f, size(f.repositoryBytes)),
      f.toVykar ? ratioText(f.toVykar) : '',
    ]),
    ...lackOf(b).map(([repo, name, operation, why]) => [repo, operation, name, 'n/a', why, '', '', '', '', '']),
  ]
}

/** How it was measured, in sentences: a figure is worth what its method is worth. */
function methodOf(b: Benchmark): string[] {
  const named = [...new Set(b.figures.map((f) => f.tool))]
  return [
    `${b.runs} rounds after one warm-up, source ${bytes(b.sourceBytes)}, the same path for every tool; the order of the tools is shuffled in each round from seed ${b.seed}.`,
    `Caches ${b.cache === 'cold' ? 'are dropped before each timed command' : 'are left as they are (warm)'}; a sync of what was written is inside the clock. Throughput is source bytes ÷ time, also where little of the source is read.`,
    'Every restore was compared with its source by diff, outside the clock; a failed command enters no figure.',
    'The interval is a percentile bootstrap over the rounds, tool and vykar measured side by side; where it includes 1, or there are fewer than five rounds, no difference is shown. Five rounds give a 94 % interval, six or more a 95 % one.',
    `Compression asked for: ${b.compression}; ${named.map((name) => `${name}: ${tools[name]!.compression[b.compression]}`).join('; ')}. Encryption on, pack and chunk sizes as each tool defaults; scripts/benchmarks/tools.mts has the command lines.`,
    ...b.ceilings.map((c) => `Ceiling: ${c.what} took ${seconds(c.seconds)} s, ${bytes(c.throughput)}/s.`),
    ...Object.entries(b.missing).map(([name, why]) => `Not measured: ${name}: ${why}.`),
    ...lackOf(b).map(([repo, name, operation, why]) => `Not measured: ${operation} by ${name} on ${repo}: ${why}.`),
  ]
}

/**
 * Writes all outputs into a directory.
 * @returns the path of the page
 */
export async function writeBenchmark(dir: string, b: Benchmark): Promise<string> {
  const reports = join(dir, 'reports')
  mkdirSync(reports, { recursive: true })
  const rows = b.figures.map((f) => columns.map(([, of]) => of(f) ?? ''))
  for (const [repo, name, operation] of lackOf(b))
    rows.push([repo, operation, name, 0, 0, ...columns.slice(5).map(() => '')])
  writeFileSync(join(reports, 'summary.tsv'), stringify([columns.map(([name]) => name), ...rows], { delimiter: '\t' }))
  writeFileSync(join(reports, 'summary.json'), `${JSON.stringify(b, null, 1)}\n`)
  const repos = [...new Set(b.figures.filter((f) => f.seconds.n).map((f) => f.repo))]
  const charts: string[] = []
  for (const repo of repos) {
    const svg = await svgOf(chartOf(b, repo))
    const name = repo === repos[0] ? 'benchmark.summary' : `benchmark.summary.${repo}`
    writeFileSync(join(reports, `${name}.svg`), svg)
    writeFileSync(join(reports, `${name}.png`), pngOf(svg))
    charts.push(svg)
  }
  const table = tableOf(b)
  const facts = [...Object.entries(b.versions), ...Object.entries(b.host)]
  const lines = (cells: string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`
  const markdown = [
    '# Benchmark',
    resultOf(b).join('\n'),
    methodOf(b)
      .map((text) => `- ${text}`)
      .join('\n'),
    [lines(table[0]!), lines(table[0]!.map(() => '---')), ...table.slice(1).map(lines)].join('\n'),
    repos.map((repo, i) => `![${repo}](benchmark.summary${i ? `.${repo}` : ''}.svg)`).join('\n'),
    facts.map(([name, value]) => `- ${name}: ${value}`).join('\n'),
  ]
  writeFileSync(join(reports, 'summary.md'), `${markdown.join('\n\n')}\n`)
  const cell = (kind: string) => (text: string) => `<${kind}>${xml(text)}</${kind}>`
  const page = join(reports, 'index.html')
  writeFileSync(
    page,
    `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Benchmark ${xml(b.started)}</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
figure, .wide { overflow-x: auto; margin: 1rem 0 } svg { background: white; max-width: none }
table { border-collapse: collapse; font-size: 13px } th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #8886; white-space: nowrap }
</style>
<h1>Benchmark of ${xml(b.started)}</h1>
${resultOf(b)
  .map((text) => `<p><strong>${xml(text)}</strong>`)
  .join('\n')}
<ul>${methodOf(b)
      .map((text) => `<li>${xml(text)}`)
      .join('\n')}</ul>
${charts.map((svg) => `<figure>${svg}</figure>`).join('\n')}
<div class="wide"><table><tr>${table[0]!.map(cell('th')).join('')}</tr>
${table
  .slice(1)
  .map((row) => `<tr>${row.map(cell('td')).join('')}</tr>`)
  .join('\n')}
</table></div>
<h2>What each tool says of its repository, at the end</h2>
${Object.entries(b.says ?? {})
  .map(([name, text]) => `<details><summary>${xml(name)}</summary><pre>${xml(text)}</pre></details>`)
  .join('\n')}
<h2>Where and what</h2>
<ul>${facts.map(([name, value]) => `<li>${xml(name)}: ${xml(value)}`).join('\n')}</ul>
</html>
`,
  )
  return page
}
