// What a stress walk remembers: the snapshots that must be there, and which of them a retention policy must leave.

/** A snapshot that the repository must hold. */
export interface Kept {
  /** Step and client that made it: the same in a replay, where ids are others. */
  serial: string
  id: string
  label: string
  files: number
  /** Its hour, as `vykar list` shows it: `2026-11-25 17`. */
  hour: string
}

/** A retention policy, as vykar's config has it. */
export interface Policy {
  keep_last?: number
  keep_hourly?: number
}

/**
 * The snapshots that a policy keeps, by each label for itself: the newest `keep_last`, and the newest one of each of
 * the newest `keep_hourly` hours in which there are any.
 * @param snapshots oldest first
 */
export function survivors(snapshots: readonly Kept[], policy: Policy): Kept[] {
  const keep = new Set<Kept>()
  for (const label of new Set(snapshots.map((snapshot) => snapshot.label))) {
    const newestFirst = snapshots.filter((snapshot) => snapshot.label === label).reverse()
    for (const snapshot of newestFirst.slice(0, policy.keep_last ?? 0)) keep.add(snapshot)
    const hours = [...new Set(newestFirst.map((snapshot) => snapshot.hour))].slice(0, policy.keep_hourly ?? 0)
    for (const hour of hours) keep.add(newestFirst.find((snapshot) => snapshot.hour === hour)!)
  }
  return snapshots.filter((snapshot) => keep.has(snapshot))
}

/** A row of `vykar list`, as far as the model knows better. */
interface Listed {
  id: string
  label: string
  files: number
}

/** The first thing in which a list differs from what must be there; undefined where it does not. */
export function disagreement(expected: readonly Kept[], listed: readonly Listed[]): string | undefined {
  for (const { id, label, files, serial } of expected) {
    const row = listed.find((snapshot) => snapshot.id === id)
    if (!row) return `list lacks snapshot ${id} (made in step ${serial}), which nothing removed`
    if (row.label !== label) return `list shows ${id} under the label ${row.label} instead of ${label}`
    if (row.files !== files) return `list shows ${row.files} files in ${id}, backup counted ${files}`
  }
  const known = new Set(expected.map((snapshot) => snapshot.id))
  const extra = listed.find((snapshot) => !known.has(snapshot.id))
  if (extra) return `list shows ${extra.id} (${extra.label}), which was removed or never made`
  return listed.length === expected.length
    ? undefined
    : `list shows a snapshot twice: ${listed.map((s) => s.id).join(', ')}`
}
