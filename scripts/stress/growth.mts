// What may not grow in a walk: the repository beyond what its snapshots hold, and the memory of vykar and this suite.
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { look } from '#lib/sh.mts'
import { bytes } from '#lib/terminal.mts'
import { Mismatch } from '#lib/verdict.mts'
import type { Kept } from './model.mts'
import type { Sample } from './series.mts'
import { grows } from './trend.mts'

/**
 * Bytes of the distinct files of all retained snapshots: what a repository without compression may at most hold.
 * @param packs bytes in its packs after a compact
 * @throws Mismatch where they hold more
 */
export async function explained(model: readonly Kept[], packs: number): Promise<number> {
  const lists = model.map((kept) => `model/${kept.serial}.content`)
  const sum = await look({ limit: '10m' })`sort -u ${lists} | awk '{s += $2} END {print s + 0}'`
  // Entries without compression take about 200 bytes each, which counts where files are many and small.
  const entries = await look`cat ${model.map((kept) => `model/${kept.serial}.tree`)} | wc -l`
  const bound = Number(sum.stdout) + Math.max(0, Number(entries.stdout) - 20_000) * 200
  // A twentieth for pack headers and what lies below the threshold, 8 MiB for directory listings and the last pack.
  if (packs > bound * 1.05 + 8 * 2 ** 20)
    throw new Mismatch(
      `after compact the packs have ${bytes(packs)}, but the snapshots hold ${bytes(bound)} of distinct content`,
    )
  return bound
}

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/**
 * What this program holds in memory, in KiB: what is left after a collection. The memory that the kernel sees rises and
 * falls with when the runtime collects, and says little.
 */
export function liveKiB(): number {
  collect()
  const { heapUsed, external } = process.memoryUsage()
  return (heapUsed + external) / 1024
}

/**
 * What must not grow over the steps: what a compact leaves, the memory of vykar's backups, the memory of this suite.
 * @throws Mismatch naming what grows, and by how much
 */
export function noGrowth(samples: readonly Sample[]): void {
  const tidy = samples.filter((sample) => sample.explainedBytes !== undefined)
  const excess = tidy.map((s) => [s.step, s.packBytes! - s.explainedBytes!] as const)
  const size = tidy.at(-1)?.explainedBytes ?? 0
  const leak = grows(excess, size * 0.1)
  if (leak)
    throw new Mismatch(
      `the repository grows by ${bytes(Math.round(leak.slope))} ± ${bytes(Math.round(leak.error))} a step beyond what its snapshots hold, ${bytes(Math.round(leak.growth))} so far`,
    )
  // At first every program grows.
  const settled = samples.slice(Math.floor(samples.length / 4))
  const backups = settled.filter((sample) => /^\d+ backup/.test(sample.action))
  for (const [who, points] of [
    ['vykar backup', backups.map((s) => [s.step, s.vykarKiB] as const)],
    ['this suite', settled.map((s) => [s.step, s.harnessKiB] as const)],
  ] as const) {
    const most = Math.max(...points.map(([, kib]) => kib))
    const growing = points.length > 200 ? grows(points, Math.max(most * 0.3, 8 * 1024)) : undefined
    if (growing)
      throw new Mismatch(
        `the memory of ${who} grows: ${bytes(Math.round(growing.growth * 1024))} over ${points.length} steps`,
      )
  }
}
