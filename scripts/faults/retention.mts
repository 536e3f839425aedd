// Which snapshots the documented rules of retention keep.

/** Rules as vykar's config has them; `keep_within` is a duration in h, d, w, m (30 days) or y (365 days). */
export interface Rules {
  keep_last?: number
  keep_hourly?: number
  keep_daily?: number
  keep_weekly?: number
  keep_monthly?: number
  keep_yearly?: number
  keep_within?: string
}

/** The day on which a moment's ISO 8601 week begins, UTC: Monday. */
function week(date: Date): string {
  const monday = new Date(date)
  monday.setUTCDate(date.getUTCDate() - ((date.getUTCDay() + 6) % 7))
  return monday.toISOString().slice(0, 10)
}
/** In which period of a kind a moment lies. */
const periods = {
  keep_hourly: (date: Date) => date.toISOString().slice(0, 13),
  keep_daily: (date: Date) => date.toISOString().slice(0, 10),
  keep_weekly: week,
  keep_monthly: (date: Date) => date.toISOString().slice(0, 7),
  keep_yearly: (date: Date) => date.toISOString().slice(0, 4),
} as const
const hours = { h: 1, d: 24, w: 7 * 24, m: 30 * 24, y: 365 * 24 } as const

/**
 * What the rules keep: the newest `keep_last`; of each of the newest so many hours, days, weeks, months, years in which there is any, the
 * newest; and all that are younger than `keep_within`. What one rule keeps is kept.
 * @param snapshots in any order; `at` in ms since 1970
 * @param now the moment of the prune, ms since 1970
 */
export function kept<T extends { at: number }>(snapshots: readonly T[], rules: Rules, now: number): T[] {
  const newestFirst = [...snapshots].sort((a, b) => b.at - a.at)
  const keep = new Set(newestFirst.slice(0, rules.keep_last ?? 0))
  for (const [rule, period] of Object.entries(periods)) {
    const seen = new Set<string>()
    for (const snapshot of newestFirst) {
      const key = period(new Date(snapshot.at))
      if (seen.has(key) || seen.size >= (rules[rule as keyof typeof periods] ?? 0)) continue
      seen.add(key)
      keep.add(snapshot)
    }
  }
  const [, count, unit] = /^(\d+)([hdwmy])$/.exec(rules.keep_within ?? '') ?? []
  const within = unit ? Number(count) * hours[unit as keyof typeof hours] * 3_600_000 : 0
  for (const snapshot of newestFirst) if (now - snapshot.at <= within) keep.add(snapshot)
  return newestFirst.filter((snapshot) => keep.has(snapshot))
}
