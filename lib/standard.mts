// The validation standard, once: what every scenario does to every repository besides its own procedure.
import { join } from 'node:path'
import { suiteHost } from './config.mts'
import { nothingHeld } from './repository.mts'
import { rowScope } from './row.mts'
import { $, type Output, scope } from './sh.mts'
import { Mismatch } from './verdict.mts'
import { checkLine, compactLine, parseBackup, parseList } from './vykar.mts'

export { freshRepository } from './repository.mts'

/** What the validation standard itself needs on the host. */
export const standardNeeds = ['vykar', 'diff', 'rsync', 'timeout', 'flock', 'setfattr', 'setfacl', 'setcap'] as const

/**
 * The backup's own words and `list` must agree: one new snapshot, under this label, with this id.
 * @param backup the finished `vykar backup`, its stdout kept as `out`
 * @param out the name under which the backup's stdout was kept
 * @returns the snapshot's id
 */
export async function expectSnapshot(
  config: string,
  repo: string,
  backup: Output,
  { label, out = 'backup.out' }: { label: string; out?: string },
): Promise<string> {
  const { transcript, dry, dir } = scope()
  const created = dry ? [] : parseBackup(backup.stdout)
  if (!dry && created.length !== 1)
    throw new Mismatch(`backup exited 0 but printed ${created.length} created snapshots instead of one`)
  const id = created[0]?.id ?? '‹snapshot›'
  transcript.bind('snapshot', id, `sed -n 's/^Snapshot created: //p' ${transcript.quote(join(dir, out))}`)
  const list = await $({ limit: '10m', out: 'list.out' })`vykar --config ${config} list -R ${repo}`
  transcript.line(`grep -q "^ *$snapshot " ${transcript.quote(join(dir, 'list.out'))}`)
  if (dry) return id
  const found = parseList(list.stdout)
  const mine = found.find((snapshot) => snapshot.id === id)
  if (!mine)
    throw new Mismatch(`backup said ${id}, but list shows ${found.map((s) => s.id).join(', ') || 'no snapshot'}`)
  if (mine.label !== label) throw new Mismatch(`list shows ${id} under the label ${mine.label} instead of ${label}`)
  if (mine.host !== suiteHost) throw new Mismatch(`list shows ${id} of host ${mine.host} instead of ${suiteHost}`)
  return id
}

/**
 * `snapshot list` must name every path of the source and no other. A name with a newline breaks the line there, in both
 * listings alike; FIFOs, sockets and devices are left to the comparison of the trees.
 */
export async function expectFiles(config: string, repo: string, id: string, source: string): Promise<void> {
  await $({ limit: '10m' })`vykar --config ${config} snapshot list -R ${repo} ${id} > snapshot.list`
  await $({ limit: '10m' })`find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' > source.list`
  await $({ limit: '10m' })`diff <(sort source.list) <(sort snapshot.list)`
}

/** `restore` into an empty directory, which goes again on PASS. Returns the directory. */
export async function restored(config: string, repo: string, id: string, name = 'restored'): Promise<string> {
  const dir = join(scope().dir, name)
  await $`mkdir ${dir}`
  await $({ limit: '3600s' })`vykar --config ${config} restore -R ${repo} ${id} ${dir}`
  return dir
}

/** `check` and `check --verify-data`: exit 0, no errors, and data that was really read. */
export async function checked(config: string, repo: string): Promise<void> {
  const quick = await $({ limit: '1800s', out: 'check.out' })`vykar --config ${config} check -R ${repo}`
  const full = await $({ limit: '3600s', out: 'verify.out' })`vykar --config ${config} check -R ${repo} --verify-data`
  for (const output of [quick, full]) {
    const [, snapshotCount, , packs, chunks, verified] = output.must(checkLine, 'check printed no result')
    output.must(/, 0 errors$/m, 'check exited 0 but counted errors')
    if (snapshotCount === undefined) continue
    if (snapshotCount === '0' || packs === '0')
      throw new Mismatch(`check looked at ${snapshotCount} snapshots and ${packs} packs`)
    // Chunks that several packs hold are verified once or more, never less than once each.
    if (output === full && Number(verified) < Number(chunks))
      throw new Mismatch(`check --verify-data verified ${verified} of ${chunks} chunks`)
    if (/^\s*(error|corrupt|missing)\b/im.test(output.stderr))
      throw new Mismatch(
        `check exited 0 but complained: ${output.stderr.match(/^.*\b(error|corrupt|missing)\b.*$/im)?.[0]}`,
      )
  }
}

/** Bytes in the pack files, a hard link once; directories, which stay, and minio's markers for them do not count. */
export async function packBytes(packs: string): Promise<number> {
  const files = $({
    unlisted: true,
  })`find ${packs} -type f ! -path '*__XLDIR__*' -printf '%i %s\n' | sort -u | awk '{s += $2} END {print s + 0}'`
  return Number((await files).stdout)
}

/**
 * The end of a row: check, check --verify-data, `snapshot delete`, `compact`, the snapshot is gone, nothing is left.
 * @param id the only snapshot of the repository
 */
export async function retire(config: string, repo: string, id: string): Promise<void> {
  const { row, dry } = rowScope()
  await checked(config, repo)
  const packs = row.files && join(row.files, 'packs')
  const before = packs && !dry ? await packBytes(packs) : 0
  await $({ limit: '600s' })`vykar --config ${config} snapshot delete -R ${repo} ${id}`
  const compact = await $({ limit: '1800s', out: 'compact.out' })`vykar --config ${config} compact -R ${repo}`
  const [, , , freed] = compact.must(compactLine, 'compact printed no result')
  compact.must(/, [1-9]\d* empty packs deleted, /, 'compact deleted no pack after the only snapshot went')
  const after = packs && !dry ? await packBytes(packs) : 0
  if (packs && !dry && after > before / 2)
    throw new Mismatch(
      `compact said it freed ${freed}, but the files in ${packs} went from ${before} to ${after} bytes`,
    )
  const list = await $({ limit: '10m', out: 'gone.out' })`vykar --config ${config} list -R ${repo}`
  list.must(/^No snapshots found\.$/m, `snapshot ${id} was deleted, but list still shows one`)
  await nothingHeld(config, repo)
}
