// reports/index.html: one sentence of verdict, the failures, what was not tested, the matrix, then everything else.
// It needs no other file and no network.
import { existsSync, readFileSync } from 'node:fs'
import { basename, dirname, relative } from 'node:path'
import { matrixOrder } from '#lib/config.mts'
import { type RowReport, xml } from '#lib/report.mts'
import { duration } from '#lib/terminal.mts'
import { fold, type Verdict } from '#lib/verdict.mts'
import { difference, lookedAt, rowName, type Stored, standing } from './collect.mts'
import { byHand, faultsOf, sightsOf } from './results.mts'

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

/**
 * What says nothing.
 * @param names scenarios that were never run
 * @param runs those that stand
 */
function untested(names: readonly string[], runs: readonly Stored[]): string[] {
  const never = names.map((name) => `<li><b>${escaped(name)}</b>: never run here; <code>./e2e ${escaped(name)}</code>`)
  const partly = runs.flatMap(({ report }) => {
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

/** Calls by repositories; a verdict that the run before did not have is marked. */
function matrix(calls: ReadonlyMap<string, Stored[]>, before: (now: Stored) => Stored | undefined, link: Link): string {
  const rows = [...calls.entries()].map(([call, runs]) => {
    const [now] = runs as [Stored, ...Stored[]]
    const earlier = before(now)
    const changed = earlier
      ? difference(earlier.report, now.report, 1).verdicts.filter(
          ({ from, to }) => from !== 'not run' && to !== 'not run',
        )
      : []
    const cells = matrixOrder.map((label) => {
      const mine = runs.flatMap(({ report }) => report.rows.filter((row) => row.repo === label))
      if (!mine.length) return '<span class="none">–</span>'
      const was = changed.filter((change) => change.row === label || change.row.startsWith(`${label} `))
      const mark = was.length
        ? ` <small title="${escaped(was.map((c) => `${c.row}: was ${c.from}`).join('; '))}">was ${escaped(was[0]!.from)}</small>`
        : ''
      return `${badge(fold(mine.map((row) => row.verdict)))}${mine.length > 1 ? ` <small>${mine.length} variants</small>` : ''}${mark}`
    })
    return [
      `<a href="${escaped(link(now.dir))}/report.md">${escaped(call)}</a>`,
      badge(worstOf(runs)),
      ...cells,
      escaped(duration(now.report.seconds)),
      escaped(buildsOf(runs).join(', ')),
      escaped(now.report.started.slice(0, 16).replace('T', ' ')),
    ]
  })
  return tableOf(['scenario', 'verdict', ...matrixOrder, 'took', 'vykar', 'run (UTC)'], rows)
}

/** The worst of what stands of a call. */
const worstOf = (runs: readonly Stored[]) => fold(runs.map(({ report }) => report.verdict))
const buildsOf = (runs: readonly Stored[]) => [...new Set(runs.map(({ report }) => report.versions.vykar ?? 'unknown'))]

/** The answer: the worst of all, how many of each, what is missing or cannot be read, and whether it is of one build. */
function sentence(calls: ReadonlyMap<string, Stored[]>, missing: number, torn: number): string {
  const verdicts = [...calls.values()].map(worstOf)
  const count = (verdict: Verdict) => verdicts.filter((one) => one === verdict).length
  const parts = (['PASS', 'DEMO', 'FAIL', 'BLOCKED', 'SKIPPED'] as const)
    .filter(count)
    .map((verdict) => `${count(verdict)} ${verdict}`)
  const whole = torn ? 'FAIL' : fold(verdicts)
  const builds = buildsOf([...calls.values()].flat())
  return [
    `${badge(whole)} ${words(calls.size, 'call')}: ${parts.join(', ') || 'nothing was run'}`,
    missing ? `${missing} more scenarios were never run` : 'no scenario is missing',
    ...(torn ? [`${words(torn, 'report')} cannot be read`] : []),
    ...(builds.length > 1 ? [`of ${builds.length} builds of vykar: ${escaped(builds.join(', '))}`] : []),
  ].join('; ')
}

/**
 * The page of a runtime directory.
 * @param stored its reports, the newest first
 * @param names all scenarios there are, in matrix order
 * @param dir where the page will lie; its links are relative to it
 * @param torn directories whose report cannot be read
 */
export function indexPage(
  stored: readonly Stored[],
  names: readonly string[],
  dir: string,
  torn: readonly string[] = [],
): string {
  const link: Link = (to) => relative(dir, to)
  const stands = standing(stored)
  const place = ([{ report }]: [Stored, ...Stored[]]) => {
    const at = names.indexOf(report.scenario)
    return at < 0 ? names.length : at
  }
  const sorted = [...stands].sort(([, a], [, b]) => place(a as [Stored]) - place(b as [Stored]))
  const calls = new Map(sorted)
  const now = sorted.flatMap(([, runs]) => runs)
  // A report that cannot be read may have been of any call of its scenario: only a later run of each says more.
  const unread = torn.filter((one) => {
    const of = now.filter(({ dir: where }) => dirname(where) === dirname(one))
    return !of.length || of.some(({ report }) => report.runId < basename(one))
  })
  const bad = [
    ...unread.map(
      (one) =>
        `<article><h3>${badge('FAIL')} ${escaped(link(one))}</h3><p>The report is missing or torn: run it again.</p></article>`,
    ),
    ...failures(now, link),
  ]
  const ran = new Set(now.map(({ report }) => report.scenario))
  const missing = untested(
    names.filter((name) => !ran.has(name)),
    now,
  )
  const before = (one: Stored) =>
    stored.find(({ report }) => report.runId < one.report.runId && lookedAt(report) === lookedAt(one.report))
  const gaps = new Map(
    now.flatMap(({ report }) =>
      report.rows.flatMap((row) => row.gaps.map((gap) => [gap.id, { ...gap, where: report.scenario }] as const)),
    ),
  )
  const rows = now.flatMap(({ report }) => report.rows.map((row) => ({ ...row, scenario: report.scenario })))
  const findings = new Map(rows.flatMap((row) => row.findings.map(({ id, seen }) => [id, seen] as const)))
  const [faults, sights] = [faultsOf(rows), sightsOf(rows)].map((table) => table.map((cells) => cells.map(escaped))) as [string[][], string[][]] // biome-ignore format: one line
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
<title>vykar-e2e: ${escaped(unread.length ? 'FAIL' : fold(now.map(({ report }) => report.verdict)))}</title>
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
<h1>${sentence(calls, names.filter((name) => !ran.has(name)).length, unread.length)}.</h1>
<h2>Failures</h2>
${bad.join('\n') || '<p>None.</p>'}
<h2>Not tested</h2>
${missing.length ? `<ul>${missing.join('\n')}</ul>` : '<p>Everything was run.</p>'}
<h2>Scenarios and repositories</h2>
${matrix(calls, before, link)}
<h2>Known gaps seen</h2>
${gaps.size ? `<ul>${[...gaps.values()].map((gap) => `<li><b>${escaped(gap.id)}</b> (${escaped(gap.state)}, last in ${escaped(gap.where)}): ${escaped(gap.why)}`).join('\n')}</ul>` : '<p>None.</p>'}
<h2>Known findings seen</h2>
${findings.size ? `<ul>${[...findings].map(([id, seen]) => `<li><b>${escaped(id)}</b>: ${escaped(seen)}`).join('\n')}</ul>` : '<p>None.</p>'}
<h2>Faults</h2>
${faults.length ? tableOf(['scenario', 'row', 'rounds', 'fired', 'verdict', 'known findings'], faults) : '<p>None was tried.</p>'}
${sights.length ? `<h3>What saw the damage</h3>\n${tableOf(['scenario', 'row', 'object', 'seen by'], sights)}` : ''}
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
