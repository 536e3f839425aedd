// Statistics of repeated measurements: few values, with outliers, from a machine that drifts.
import { seeded } from '#data-gen/random.mts'

/** The middle value; the mean of the two middle ones where their number is even. NaN for none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length / 2
  return sorted.length % 2 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** The median of the distances from the median: a spread that one outlier does not move. */
export function mad(values: readonly number[]): number {
  const centre = median(values)
  return median(values.map((value) => Math.abs(value - centre)))
}

/** What a set of measurements comes to; `outliers` are kept in all the others. */
export interface Summary {
  n: number
  median: number
  mad: number
  min: number
  max: number
  outliers: number[]
}

/**
 * Summarises measurements. An outlier lies more than 3.5 robust standard deviations from the median (Iglewicz and
 * Hoaglin, 1993; 1.4826 makes the MAD of normal values their standard deviation).
 */
export function summary(values: readonly number[]): Summary {
  const centre = median(values)
  const spread = mad(values)
  const far = values.filter((value) => spread > 0 && Math.abs(value - centre) > 3.5 * 1.4826 * spread)
  return {
    n: values.length,
    median: centre,
    mad: spread,
    min: Math.min(...values),
    max: Math.max(...values),
    outliers: far,
  }
}

/** A ratio with its 95 % interval; `shown` where the interval excludes 1, and there are rounds enough to say so. */
export interface Ratio {
  ratio: number
  low: number
  high: number
  shown: boolean
}

/** Resamples of a bootstrap. */
const resamples = 10_000

/**
 * Rounds below which no difference is shown: of two equal tools all n rounds fall on one side of 1 in one of 2^(n - 1) cases (sign test),
 * which is 1 in 16 of five, and 1 in 4 of three.
 */
export const leastRounds = 5

function interval(values: number[], ratio: number, rounds: number): Ratio {
  values.sort((a, b) => a - b)
  const low = values[Math.floor(0.025 * (values.length - 1))]!
  const high = values[Math.ceil(0.975 * (values.length - 1))]!
  return { ratio, low, high, shown: rounds >= leastRounds && (low > 1 || high < 1) }
}

/**
 * How many times `a` is of `b`, both measured in the same rounds: the median of the rounds' ratios, with a percentile
 * bootstrap over the rounds. With five rounds the interval reaches from the smallest to the largest ratio.
 * @param seed of the resampling, so that the same figures give the same interval
 */
export function pairedRatio(a: readonly number[], b: readonly number[], seed: number): Ratio {
  const ratios = a.map((value, i) => value / b[i]!)
  const next = seeded(String(seed))
  const pick = () => ratios[Math.floor(next() * ratios.length)]!
  const medians = Array.from({ length: resamples }, () => median(ratios.map(pick)))
  return interval(medians, median(ratios), ratios.length)
}

/** The same for measurements that were not made side by side: the ratio of the medians, each side resampled by itself. */
export function ratioOf(a: readonly number[], b: readonly number[], seed: number): Ratio {
  const next = seeded(String(seed))
  const sample = (values: readonly number[]) => median(values.map(() => values[Math.floor(next() * values.length)]!))
  return interval(
    Array.from({ length: resamples }, () => sample(a) / sample(b)),
    median(a) / median(b),
    Math.min(a.length, b.length),
  )
}

/** A copy in random order (Fisher and Yates), the same for the same generator. */
export function shuffled<T>(values: readonly T[], next: () => number): T[] {
  const mixed = [...values]
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1))
    ;[mixed[i], mixed[j]] = [mixed[j]!, mixed[i]!]
  }
  return mixed
}
