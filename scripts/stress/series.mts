// The figures of a walk, step by step: a CSV that grows with the walk, and its charts.
import { appendFileSync, existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import type { Run } from '#lib/run.mts'
import type { CommandRecord } from '#lib/sh.mts'
import { bytes, duration } from '#lib/terminal.mts'

/** What the steps of a walk took together, in seconds. */
export interface Spent {
  wall: number
  /** Some command ran, of vykar or another. */
  busy: number
  /** vykar ran. */
  vykar: number
}

/** One step. */
export interface Sample {
  step: number
  action: string
  seconds: number
  snapshots: number
  /** Bytes in the repository's packs; undefined where its files cannot be seen. */
  packBytes: number | undefined
  /** Bytes of the distinct contents of the retained snapshots; known after a compact. */
  explainedBytes: number | undefined
  /** The largest peak memory of the step's vykar commands. */
  vykarKiB: number
  /** What this program holds, after a collection. */
  harnessKiB: number
}
const columns = [
  'step',
  'action',
  'seconds',
  'snapshots',
  'packBytes',
  'explainedBytes',
  'vykarKiB',
  'harnessKiB',
] as const

/** What is measured of a command; nothing of one that ran beside others. */
const costs = ['seconds', 'cpuSeconds', 'systemSeconds', 'peakKiB', 'readBytes', 'writtenBytes'] as const

/** More marks than this are no chart. */
const mostMarks = 1500

/** More samples than this are not held: a walk of days must not grow. */
const mostHeld = 4000

/** The samples of one walk. The CSV has all, memory holds all that follow a compact and, of a long walk, a share of the rest. */
export class Series {
  samples: Sample[] = []
  /** Steps so far. */
  steps = 0
  private readonly name: string
  private readonly dir: string
  constructor(
    private readonly run: Run,
    private readonly repo: string,
  ) {
    this.name = `stress.${repo}`
    this.dir = run.dirs.reports
    if (!run.dry) writeFileSync(join(this.dir, `${this.name}.csv`), stringify([columns]))
  }

  add(sample: Sample): void {
    this.steps++
    this.samples.push(sample)
    if (this.samples.length > mostHeld)
      this.samples = this.samples.filter((held, i) => i % 2 === 0 || held.explainedBytes !== undefined)
    const cells = columns.map((column) => sample[column] ?? '')
    appendFileSync(join(this.dir, `${this.name}.csv`), stringify([cells]))
  }

  /** Puts the figures of a step's vykar commands on record: what `time -v` says of each. */
  addCommands(step: number, commands: readonly CommandRecord[]): void {
    const file = join(this.dir, `${this.name}.commands.csv`)
    if (!existsSync(file)) writeFileSync(file, stringify([['step', 'command', 'exit', ...costs]]))
    const rows = commands
      .filter(({ command }) => command.startsWith('vykar '))
      .map((record) => [step, record.command, record.code, ...costs.map((cost) => record[cost] ?? '')])
    if (rows.length) appendFileSync(file, stringify(rows))
  }

  /** Draws repository size, step times and memory over the steps; the report shows the chart. */
  async draw(): Promise<void> {
    if (!this.samples.length) return
    const every = Math.ceil(this.samples.length / mostMarks)
    const values = this.samples
      .filter((sample, i) => i % every === 0 || sample.explainedBytes !== undefined)
      .map((sample) => ({
        step: sample.step,
        kind: sample.action.split(',')[0]!.split(' ')[1],
        seconds: sample.seconds,
        packs: (sample.packBytes ?? Number.NaN) / 2 ** 20,
        explained: sample.explainedBytes === undefined ? null : sample.explainedBytes / 2 ** 20,
        vykar: sample.vykarKiB / 1024,
        harness: sample.harnessKiB / 1024,
      }))
    const x = { field: 'step', type: 'quantitative', title: 'step' } as const
    const line = (name: string, field: string, title: string, mark: 'line' | 'point') => ({
      mark: { type: mark, ...(mark === 'point' && { filled: true, size: 18 }) } as const,
      encoding: {
        x,
        y: { field, type: 'quantitative', title },
        color: { datum: name, title: null, legend: { labelLimit: 0 } },
      } as const,
    })
    const shape = { width: 640, height: 180 }
    // Only now: the chart library takes 70 MiB, for which a walk of hours has no use.
    const { svgOf } = await import('#scripts/benchmarks/chart.mts')
    const chart = await svgOf({
      title: `Stress on ${this.repo}: ${this.steps} steps`,
      data: { values },
      resolve: { scale: { color: 'independent', shape: 'independent' } },
      vconcat: [
        {
          ...shape,
          title: 'Repository',
          layer: [
            line('packs', 'packs', 'MiB', 'line'),
            line('distinct content of the snapshots, after a compact', 'explained', 'MiB', 'point'),
          ],
          resolve: { scale: { color: 'shared' } },
        },
        {
          ...shape,
          title: 'Time of a step, by its first action',
          mark: { type: 'point', filled: true, size: 18 },
          encoding: {
            x,
            y: { field: 'seconds', type: 'quantitative', title: 's', scale: { type: 'log' } },
            color: { field: 'kind', type: 'nominal', title: null },
            // There are more kinds than colours.
            shape: { field: 'kind', type: 'nominal', title: null },
          },
        },
        {
          ...shape,
          title: 'Peak memory',
          layer: [
            line('vykar', 'vykar', 'MiB', 'point'),
            line('this suite, after a collection', 'harness', 'MiB', 'line'),
          ],
          resolve: { scale: { color: 'shared' } },
        },
      ],
    })
    writeFileSync(join(this.dir, `${this.name}.svg`), chart)
    this.run.report.charts.push({ title: `Steps on ${this.repo}`, file: `${this.name}.svg` })
  }
}

/**
 * The figures of a walk, for its row of the report.
 * @param counts how often each kind of action was done
 * @param spent what the steps took
 */
export function figuresOf(
  { samples, steps }: Series,
  counts: Record<string, number>,
  spent: Spent,
): Record<string, string | number> {
  const own = Math.max(0, spent.wall - spent.busy)
  return {
    steps,
    'steps per second': (steps / Math.max(spent.wall, 0.001)).toFixed(2),
    'snapshots at the end': samples.at(-1)?.snapshots ?? 0,
    ...counts,
    'largest packs': bytes(Math.max(0, ...samples.map((s) => s.packBytes ?? 0))),
    'peak memory of vykar': bytes(Math.max(0, ...samples.map((s) => s.vykarKiB)) * 1024),
    'memory of this suite': bytes(Math.round(samples.at(-1)?.harnessKiB ?? 0) * 1024),
    'time in vykar': duration(spent.vykar),
    'share of this suite': `${((100 * own) / Math.max(own + spent.vykar, 0.001)).toFixed(1)} % of its and vykar’s time`,
  }
}
