// What vykar prints and what it means: list, backup, check, compact.

/** A row of `vykar list`. */
export interface Snapshot {
  id: string
  date: string
  host: string
  label: string
  /** Source paths; several for a multi-path source. */
  sources: string[]
  files: number
  size: string
  added: string
}

/** A count as vykar prints it: `list` writes 2710 as `2,710`, `backup` does not. */
const count = (text: string) => Number(text.replaceAll(',', ''))

/**
 * Parses `vykar list`. A repeated host or label is left blank there and filled in here.
 * @throws Error when the text is neither a table nor `No snapshots found.`
 */
export function parseList(text: string): Snapshot[] {
  // Lines of its log, on stderr, may stand before.
  const lines = text
    .split('\n')
    .filter((line) => line.trim() && !/^(\d{4}-\d\d-\d\dT\S+\s+[A-Z]+ |Warning: )/.test(line))
  if (lines[0]?.trim() === 'No snapshots found.') return []
  const header = lines.findIndex((line) => /^\s*ID\s+Date\s+Host\s+Label\s+Source\s/.test(line))
  if (header < 0) throw new Error(`vykar list printed no table: ${lines[0] ?? 'nothing'}`)
  const starts = ['Date', 'Host', 'Label', 'Source'].map((name) => lines[header]!.indexOf(name))
  const snapshots: Snapshot[] = []
  for (const line of lines.slice(header + 1)) {
    const [date, host, label, source] = starts as [number, number, number, number]
    const id = line.slice(0, date).trim()
    const last = snapshots.at(-1)
    if (!id) {
      last?.sources.push(line.slice(source).trim())
      continue
    }
    const tail = /\s([\d,]+|-)\s+([\d.]+ \S+|-)\s+([\d.]+ \S+|-)\s*$/.exec(line.slice(source))
    if (!tail) throw new Error(`vykar list printed a row that is not understood: ${line}`)
    const hostCell = line.slice(host, label).trim()
    snapshots.push({
      id,
      date: line.slice(date, host).trim(),
      host: hostCell || (last?.host ?? ''),
      // Host and label are blanked together, as one group.
      label: hostCell ? line.slice(label, source).trim() : (last?.label ?? ''),
      sources: [line.slice(source, source + tail.index).trim()],
      files: count(tail[1]!),
      size: tail[2]!,
      added: tail[3]!,
    })
  }
  return snapshots
}

const units: Record<string, number> = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 }
/** Bytes of a size as vykar prints it (`50.20 MiB`; rounded to 2 decimals there). Throws Error on anything else. */
export function parseSize(text: string): number {
  const match = /^([\d.]+) (B|[KMGT]iB)$/.exec(text.trim())
  if (!match) throw new Error(`not a size: ${text}`)
  return Number(match[1]) * units[match[2]!]!
}

/** What `vykar backup` says about one snapshot; sizes in bytes, as exact as two decimals allow. */
export interface Created {
  id: string
  label: string
  /** Its paths, as one text. */
  sources: string
  files: number
  errors: number
  original: number
  compressed: number
  deduplicated: number
  /** The first line that follows the last block and is none of the log's; empty where none does. */
  after: string
}

/** Parses the blocks that `vykar backup` prints, one for each snapshot; hook output around them is passed over. */
export function parseBackup(text: string): Created[] {
  const block =
    /^Snapshot created: ([0-9a-f]{8,})\n {2}Source: (.*) \(label: (.*)\)\n {2}Files: (\d[\d,]*?)(?:, Errors: (\d[\d,]*?))?, Original: ([^,]+), Compressed: ([^,]+), Deduplicated: (.+)$/gm
  const blocks = [...text.matchAll(block)]
  const end = blocks.at(-1)
  const rest = end ? text.slice(end.index + end[0].length).split('\n') : []
  const after = rest.find((line) => line.trim() && !/^\d{4}-\d\d-\d\dT\S+\s+[A-Z]+ /.test(line)) ?? ''
  return blocks.map((m) => ({
    after,
    id: m[1]!,
    sources: m[2]!,
    label: m[3]!,
    files: count(m[4]!),
    errors: count(m[5] ?? '0'),
    original: parseSize(m[6]!),
    compressed: parseSize(m[7]!),
    deduplicated: parseSize(m[8]!),
  }))
}

/** The closing line of `vykar check`. */
export const checkLine =
  /^Check complete: (\d+) snapshots, (\d+) items, (\d+) packs existence-checked \((\d+) chunks\), (\d+) chunks data-verified, (\d+) errors$/m

/** The closing line of `vykar compact`: packs repacked, packs deleted, space freed. */
export const compactLine = /^Compaction complete: (\d+) packs repacked, (\d+) empty packs deleted, (.+) freed/m

/** What a backup says that takes up what an interrupted one has uploaded; no other may. */
export const resumes = /^recovered pending index entries from interrupted sessions recovered_chunks=\d+ journals=\d+$/
