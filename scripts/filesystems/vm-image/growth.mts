// How a repository grew with an image: a table and a chart.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import type { Run } from '#lib/run.mts'
import { svgOf } from '#scripts/benchmarks/chart.mts'

/** What one round came to in one repository. */
export interface Growth {
  repo: string
  round: number
  packages: string
  /** Bytes changed in the image. */
  changed: number
  /** Bytes that the repository grew by. */
  added: number
  /** Time of the backup. */
  seconds: number
}

/** Writes the table as CSV and the chart into the report's directory; the report shows the chart. */
export async function drawGrowth(run: Run, growths: Growth[]): Promise<void> {
  const dir = run.dirs.reports
  const columns = ['repo', 'round', 'packages', 'bytes_changed', 'bytes_added', 'ratio', 'backup_seconds']
  const rows = growths.map((g) => [
    g.repo,
    g.round,
    g.packages,
    g.changed,
    g.added,
    g.changed ? (g.added / g.changed).toFixed(4) : '',
    g.seconds.toFixed(2),
  ])
  writeFileSync(join(dir, 'vm-image.csv'), stringify([columns, ...rows]))
  const values = growths.flatMap(({ repo, round, packages, changed, added }) => [
    { repo, round: `${round}: ${packages}`, what: 'changed in the image', gib: changed / 2 ** 30 },
    { repo, round: `${round}: ${packages}`, what: 'added to the repository', gib: added / 2 ** 30 },
  ])
  const chart = await svgOf({
    title: 'What changed in the image, and what the repository grew by',
    data: { values },
    facet: { row: { field: 'repo', title: null, header: { labelOrient: 'top', labelAnchor: 'start' } } },
    spec: {
      width: 520,
      height: { step: 18 },
      mark: 'bar',
      encoding: {
        x: { field: 'gib', type: 'quantitative', title: 'GiB' },
        y: { field: 'round', type: 'nominal', title: null, sort: null, axis: { labelLimit: 220 } },
        yOffset: { field: 'what', sort: null },
        color: { field: 'what', type: 'nominal', title: null, sort: null, legend: { labelLimit: 0 } },
      },
    },
  })
  writeFileSync(join(dir, 'growth.svg'), chart)
  run.report.charts.push({ title: 'Growth per round', file: 'growth.svg' })
}
