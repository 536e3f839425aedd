// reports/index.html: one sentence of verdict, the failures, what was not tested, the matrix, then everything else.
// It needs no other file and no network.
import { existsSync, readFileSync } from 'node:fs'
import { relative } from 'node:path'
import { matrixOrder } from '#lib/config.mts'
import { type RowReport, xml } from '#lib/report.mts'
import { duration } from '#lib/terminal.mts'
import { fold, type Verdict } from '#lib/verdict.mts'
import { difference, newest, rowName, type Stored } from './collect.mts'
import { byHand } from './results.mts'

const escaped = (text: unknown) => xml(String(text))
const badge = (word: string) => `<b class="v ${escaped(word.toLowerCase().replace(/\W+/g, '-'))}">${escaped(word)}</b>`
const tableOf = (head: string[], rows: string[][]) =>
  `<div class="wide"><table><thead><tr>${head.map((cell) => `<th>${escaped(cell)}</th>`).join('')}</tr></thead><tbody>\n${rows.map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join('')}</tr>`).join('\n')}\n</tbody></table></div>`
const words = (n: number, what: string) => `${n} ${what}${n === 1 ? '' : 's'}`

/** The path to a report's directory, as the page links it. */
type Link = (dir: string) => string

/** How many lines of a failing step's log are shown. */
const logLines = 12
function tail(file: string): string {
  return existsSync(file) ? readFileSync(file, 'utf8').trimEnd().split('\n').slice(-logLines).join('\n') : ''
}

/** What failed, with its reason, how to run it again and the end of its log. */
function failures(runs: readonly Stored[], link: Link): string[] {
  return runs.flatMap(({ dir, report }) => {
    const bad = report.rows.filter((row) => row.verdict === 'FAIL' || row.verdict === 'BLOCKED')
    const shown: Pick<RowReport, 'repo' | 'variant' | 'verdict' | 'reason' | 'steps' | 'kept'>[] = [...bad]
    if (!bad.length && (report.verdict === 'FAIL' || report.verdict === 'BLOCKED'))
      shown.push({
        repo: '',
        variant: '',
        verdict: report.verdict,
        reason: report.reason,
        steps: report.steps,
        kept: [],
      })
    return shown.map((row) => {
      const step = row.steps.find((s) => s.verdict && s.verdict !== 'PASS')
      const log = step ? tail(step.log) : ''
      return `<article><h3>${badge(row.verdict)} ${escaped(report.scenario)} ${escaped(rowName(row))}</h3>
<p>${escaped(row.reason)}</p>
<p>Again: <code>${escaped(byHand({ scenario: report.scenario, args: report.argv }))}</code></p>
${row.kept.map((what) => `<p>Kept: <code>${escaped(what)}</code></p>`).join('')}
${log ? `<p>End of <code>${escaped(step!.log)}</code>:</p><pre>${escaped(log)}</pre>` : ''}
<p><a href="${escaped(link(dir))}/report.md">report</a></p></article>`
    })
  })
}

/** What the newest runs say nothing about. */
function untested(names: readonly string[], runs: ReadonlyMap<string, { now: Stored }>): string[] {
  const never = names
    .filter((name) => !runs.has(name))
    .map((name) => `<li><b>${escaped(name)}</b>: never run here; <code>./e2e ${escaped(name)}</code>`)
  const partly = [...runs.values()].flatMap(({ now: { report } }) => {
    const skipped = report.rows
      .filter((row) => row.verdict === 'SKIPPED')
      .map((row) => `<li><b>${escaped(report.scenario)} ${escaped(rowName(row))}</b>: ${escaped(row.reason)}`)
    if (!report.rows.length && report.verdict === 'SKIPPED')
      skipped.push(`<li><b>${escaped(report.scenario)}</b>: ${escaped(report.reason)}`)
    if (report.standin)
      skipped.push(`<li><b>${escaped(report.scenario)}</b>: ran with the stand-in, which says nothing about vykar`)
    return skipped
  })
  return [...never, ...partly]
}

/** Scenarios by repositories; a verdict that the run before did not have is marked. */
function matrix(runs: ReadonlyMap<string, { now: Stored; before: Stored | undefined }>, link: Link): string {
  const rows = [...runs.entries()].map(([scenario, { now, before }]) => {
    const changed = before
      ? difference(before.report, now.report, 1).verdicts.filter(
          ({ from, to }) => from !== 'not run' && to !== 'not run',
        )
      : []
    const cells = matrixOrder.map((label) => {
      const mine = now.report.rows.filter((row) => row.repo === label)
      if (!mine.length) return '<span class="none">–</span>'
      const was = changed.filter((change) => change.row === label || change.row.startsWith(`${label} `))
      const mark = was.length
        ? ` <small title="${escaped(was.map((c) => `${c.row}: was ${c.from}`).join('; '))}">was ${escaped(was[0]!.from)}</small>`
        : ''
      return `${badge(fold(mine.map((row) => row.verdict)))}${mine.length > 1 ? ` <small>${mine.length} variants</small>` : ''}${mark}`
    })
    return [
      `<a href="${escaped(link(now.dir))}/report.md">${escaped(scenario)}</a>`,
      badge(now.report.verdict),
      ...cells,
      escaped(duration(now.report.seconds)),
      escaped(now.report.versions.vykar ?? ''),
      escaped(now.report.started.slice(0, 16).replace('T', ' ')),
    ]
  })
  return tableOf(['scenario', 'verdict', ...matrixOrder, 'took', 'vykar', 'run (UTC)'], rows)
}

function sentence(runs: readonly Stored[], missing: number): string {
  const count = (verdict: Verdict) => runs.filter(({ report }) => report.verdict === verdict).length
  const parts = (['PASS', 'DEMO', 'FAIL', 'BLOCKED', 'SKIPPED'] as const)
    .filter(count)
    .map((verdict) => `${count(verdict)} ${verdict}`)
  const whole = fold(runs.map(({ report }) => report.verdict))
  return `${badge(whole)} ${words(runs.length, 'scenario')}: ${parts.join(', ') || 'nothing was run'}; ${missing ? `${missing} more were never run` : 'none is missing'}.`
}

/**
 * The page of a runtime directory.
 * @param stored its reports, the newest first
 * @param names all scenarios there are, in matrix order
 * @param dir where the page will lie; its links are relative to it
 */
export function indexPage(stored: readonly Stored[], names: readonly string[], dir: string): string {
  const link: Link = (to) => relative(dir, to)
  const found = newest(stored)
  const runs = new Map(
    [...names, ...[...found.keys()].filter((name) => !names.includes(name))]
      .filter((name) => found.has(name))
      .map((name) => [name, found.get(name)!]),
  )
  const now = [...runs.values()].map(({ now }) => now)
  const bad = failures(now, link)
  const missing = untested(names, runs)
  const gaps = new Map(
    now.flatMap(({ report }) =>
      report.rows.flatMap((row) => row.gaps.map((gap) => [gap.id, { ...gap, where: report.scenario }] as const)),
    ),
  )
  const last = now.toSorted((a, b) => (a.report.runId < b.report.runId ? 1 : -1))[0]?.report
  const facts = last ? [...Object.entries(last.versions), ['seed', last.seed], ...Object.entries(last.host)] : []
  const history = stored
    .slice(0, 40)
    .map(({ dir: where, report }) => [
      `<a href="${escaped(link(where))}/report.md">${escaped(report.runId)}</a>`,
      escaped(report.scenario),
      badge(report.verdict),
      escaped(duration(report.seconds)),
      escaped(report.versions.vykar ?? ''),
      escaped(report.reason),
    ])
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>vykar-e2e: ${escaped(fold(now.map(({ report }) => report.verdict)))}</title>
<style>
:root { color-scheme: light dark; --line: #8885; --pass: #0a6b3d; --fail: #b3261e; --blocked: #8a5a00; --skipped: #555 }
@media (prefers-color-scheme: dark) { :root { --pass: #5fd39a; --fail: #ff8a80; --blocked: #ffc46b; --skipped: #aaa } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem; line-height: 1.3 } h2 { margin-top: 2.5rem; border-bottom: 2px solid var(--line) } h3 { margin: 0 }
article { border-left: 4px solid var(--fail); padding: .2rem 1rem; margin: 1rem 0 } article p { margin: .4rem 0 }
code { overflow-wrap: anywhere } pre { overflow-x: auto; font-size: 13px; padding: .5rem; border: 1px solid var(--line) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px } th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
.v { white-space: nowrap } .pass, .demo { color: var(--pass) } .fail { color: var(--fail) } .blocked { color: var(--blocked) } .skipped, .none { color: var(--skipped) }
li { margin: .3rem 0; overflow-wrap: anywhere }
@media print { body { max-width: none; font-size: 11px } a { color: inherit; text-decoration: none } article, tr { break-inside: avoid } pre { white-space: pre-wrap } }
</style>
<h1>${sentence(now, names.filter((name) => !runs.has(name)).length)}</h1>
<h2>Failures</h2>
${bad.join('\n') || '<p>None.</p>'}
<h2>Not tested</h2>
${missing.length ? `<ul>${missing.join('\n')}</ul>` : '<p>Everything was run.</p>'}
<h2>Scenarios and repositories</h2>
${matrix(runs, link)}
<h2>Known gaps seen</h2>
${gaps.size ? `<ul>${[...gaps.values()].map((gap) => `<li><b>${escaped(gap.id)}</b> (${escaped(gap.state)}, last in ${escaped(gap.where)}): ${escaped(gap.why)}`).join('\n')}</ul>` : '<p>None.</p>'}
<h2>Versions, seed, host of the newest run</h2>
${tableOf(
  ['what', 'value'],
  facts.map(([name, value]) => [escaped(name), escaped(value)]),
)}
<h2>History</h2>
${tableOf(['run', 'scenario', 'verdict', 'took', 'vykar', 'reason'], history)}
</html>
`
}
