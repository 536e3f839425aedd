// Versions of vykar, and ranges of them.

/** Compares dotted version numbers: negative, 0 or positive, as a sort function. Suffixes are not compared. */
export function compareVersions(a: string, b: string): number {
  const [x, y] = [a, b].map((v) => v.split(/[-+]/)[0]!.split('.').map(Number))
  for (let i = 0; i < 3; i++) if ((x![i] ?? 0) !== (y![i] ?? 0)) return (x![i] ?? 0) - (y![i] ?? 0)
  return 0
}

/** Whether a version lies in a range such as `<=0.19.1`, `>=0.17 <0.20` or `*`. Throws Error on a malformed range. */
export function inRange(version: string, range: string): boolean {
  return range.split(/\s+/).every((part) => {
    if (part === '*') return true
    const match = /^(<=|>=|<|>|=)(\d[\d.]*)$/.exec(part)
    if (!match) throw new Error(`not a version range: ${range}`)
    const order = compareVersions(version, match[2]!)
    return { '<=': order <= 0, '>=': order >= 0, '<': order < 0, '>': order > 0, '=': order === 0 }[match[1]!]!
  })
}
