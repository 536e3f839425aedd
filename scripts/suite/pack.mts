// An archive of results that is small enough to be kept with a CI run.
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'
import { ask, lastLine } from '#lib/ask.mts'
import { bytes } from '#lib/terminal.mts'
import { UsageError } from '#lib/verdict.mts'
import { collect, newest } from './collect.mts'

/** An archive is at most so large. */
const most = 20 * 2 ** 20

/** Files of a directory, without what lies below it. */
const filesIn = (dir: string) =>
  existsSync(dir)
    ? readdirSync(dir, { withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => join(dir, entry.name))
    : []

/**
 * Packs the newest report of each scenario, the page, the runs of all.mts, and the logs, those of failures first; what does
 * not fit is left out, the last first.
 * @param out the archive, .tar.gz
 * @param chosen directories of the reports to pack, instead of the newest
 * @returns how many files are in it, how many were left out, and its bytes
 * @throws UsageError where there is nothing to pack or `out` cannot be written
 */
export async function pack(
  runtime: string,
  out: string,
  chosen?: readonly string[],
): Promise<{ packed: number; left: number; size: number }> {
  const stored = collect(runtime)
  const runs = chosen
    ? stored.filter(({ dir }) => chosen.includes(dir))
    : [...newest(stored).values()].map(({ now }) => now)
  const reports = join(runtime, 'reports')
  const all = join(reports, 'all')
  const suites = existsSync(all)
    ? readdirSync(all).filter((name) => existsSync(join(all, name, 'run.json')) && name !== 'latest')
    : []
  const logs = (bad: boolean) =>
    runs
      .filter(({ report }) => ['FAIL', 'BLOCKED'].includes(report.verdict) === bad)
      .flatMap(({ dir, report }) => filesIn(join(runtime, 'logs', basename(dirname(dir)), report.runId)))
  const wanted = [
    ...filesIn(reports),
    ...runs.flatMap(({ dir }) => filesIn(dir)),
    ...(suites.length ? filesIn(join(all, suites.sort().at(-1)!)) : []),
    ...logs(true),
    ...logs(false),
  ]
  if (!runs.length) throw new UsageError(`nothing to pack: ${reports} holds no report`)
  for (let count = wanted.length; count > 0; count = Math.floor(count / 2)) {
    const names = wanted.slice(0, count).map((file) => relative(runtime, file))
    const words = ['tar', '-C', runtime, '-czf', out, '--null', '-T', '-']
    const done = await ask(words, { input: names.join('\0'), seconds: 600 })
    // 1: a file changed as it was read, as the log of another run does; the archive is there.
    if (done.code > 1) throw new UsageError(`${out} cannot be written: ${lastLine(done.stderr)}`)
    const { size } = statSync(out)
    if (size <= most) return { packed: count, left: wanted.length - count, size }
  }
  rmSync(out)
  throw new UsageError(`no file of ${runtime} fits into an archive of ${bytes(most)}`)
}
