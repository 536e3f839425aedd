// What every repository goes through before and after a script's own procedure; scripts/backends/local.mts types it out.
import { parse } from 'yaml'
import { background } from '#lib/background.mts'
import { $, check, fact, note, read, rowScope, step, undo } from '#lib/sh.mts'
import { bytes } from '#lib/terminal.mts'
import { quote } from '#lib/transcript.mts'
import { Blocked, Mismatch, Refused, Skipped } from '#lib/verdict.mts'
import { sameTree } from '#lib/verify.mts'
import {
  emptied,
  freed,
  listed,
  nothingHeld,
  numbers,
  packBytes,
  released,
  says,
  shows,
  sound,
  stored,
  storedFirst,
  torn,
} from '#scripts/checks.mts'
import { stillAs, untouched } from '#scripts/corpus.mts'
import { copyOf, damaged, reclaimed } from '#scripts/damage.mts'
import { deleted, made, mayDelete } from '#scripts/guard.mts'
import { parseBackup } from '#scripts/printed.mts'
import { witnessed } from '#scripts/witnessed.mts'

/** Needs of scripts whose repositories may be on servers, which scripts/servers.mts starts. */
export const serverWants = ['vykar-server', 's3-server', 'curl', 'sshd', 'ssh-keygen', 'sftp', 'rclone'] as const

/** Whether the row's config asks for encryption: `mode: none` in the script or in the user's base config does not. */
export function encrypted(repo: string): boolean {
  const { encryption, repositories } = parse(rowScope().config ?? '{}') as {
    encryption?: { mode?: string }
    repositories: { label: string; encryption?: { mode?: string } }[]
  }
  const own = repositories.find(({ label }) => label === repo)?.encryption
  return (own ?? encryption)?.mode !== 'none'
}

/**
 * No .gitignore lies above the row's directory: vykar 0.19.1 obeys it, which is a finding of its own (gitignore-above-source).
 * @throws Skipped naming it
 */
export async function noIgnoreAbove(): Promise<void> {
  await $`d=$PWD; while [[ $d != / ]]; do d=$(dirname "$d"); if test -e "$d"/.gitignore; then echo "$d/.gitignore"; fi; done > ignores`
  const [above] = read('ignores').split('\n').filter(Boolean)
  if (above)
    throw new Skipped(`${above} lies above the files that are backed up: name another directory with --runtime`)
}

/** What a repository is made of, below its prefix; minio keeps markers of its own. */
const ownObjects = '^(config|index|index\\.gen|(keys|snapshots|packs|locks|sessions)/.*|\\.tmp.*|.*__XLDIR__.*)$'

/**
 * Bash that removes what lies behind an rclone path; on a server that is not ours nothing, where anything is no part of a repository, or
 * where that cannot be told.
 * @param objects bash that lists what is there; none where all may go
 */
const swept = (objects: string | undefined, remote: string): { raw: string } => ({
  raw: `${objects ? `rc=0; ${objects} > there 2> there.err || rc=$?; [[ $rc == [03] ]] || { echo "what is left there cannot be listed: $(tail -n 1 there.err)" >&2; exit 1; }; if grep -vE '${ownObjects}' there > strangers; then echo "it holds what is no part of a repository, and is not removed: $(head -n 1 strangers)" >&2; exit 1; fi; ` : ''}rclone delete --rmdirs ${remote}`,
})

/** `list`, the guard, `delete`, `init`, `info`, `claims`; config.yaml is there already. The repository goes again when the row has passed. */
export async function fresh(repo: string): Promise<void> {
  const { run } = rowScope()
  const { remote, objects, url, managed } = run.endpoint(repo)
  const theirs = managed || run.common['wipe-repo'].includes(repo) ? undefined : objects
  await $({ expect: [0, 1] })`vykar --config config.yaml list -R ${repo} > before.out 2>&1`
  // On somebody else's server there may be anything where no repository is; 3 and 22 are what rclone and curl say where nothing is.
  if (objects && !managed) await $({ expect: [0, 3, 22] })`${{ raw: objects }} > objects.were`
  await mayDelete('before.out', objects && !managed ? 'objects.were' : undefined)
  // 3 is rclone's "directory not found"; what `delete` left is looked at before. Never later: then it may be somebody else's.
  if (remote)
    undo({
      expect: [0, 3],
      keep: `objects of ${remote}`,
      later: false,
    })`${swept(theirs, remote)}`
  await $({ expect: [0, 1] })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo > deleted.out 2>&1`
  await deleted('deleted.out')
  if (remote) await $({ expect: [0, 3], ...(theirs ? { otherwise: Refused } : {}) })`${swept(theirs, remote)}`
  // Judged after vykar's own delete, and before anybody else clears up; a server that does not delete is on record.
  if (objects)
    undo({
      keep: `objects of ${url}`,
      later: false,
    })`grep -qE 'HTTP 40[04]' deleted.out || ! { ${{ raw: objects }} || true; } | grep -E '(packs/../|snapshots/|keys/)[0-9a-z]|config|index' || exit 1`
  undo({
    keep: `repository ${url}`,
  })`vykar --config config.yaml delete -R ${repo} --yes-delete-this-repo > deleted.out 2>&1 || grep -qE 'HTTP 40[04]|(no repository|repository not) found' deleted.out`
  await $({ limit: repo === 'sftp' ? '120s' : '10m' })`vykar --config config.yaml init -R ${repo}`
  await made()
  if (objects) await $`${{ raw: objects }} > objects.fresh && ! grep packs/../ objects.fresh || exit 1`
  await claims(repo)
}

/**
 * The repository is what its config asks for: `info` names the encryption; a wrong passphrase is refused and so is none, asked with a
 * cache that knows nothing; the key lies in the repository. Leaves lost.yaml: the same config with an empty cache.
 */
export async function claims(repo: string): Promise<void> {
  const { seen } = rowScope().run.endpoint(repo)
  await $`sed 's|^cache_dir: .*|cache_dir: lost|' config.yaml > lost.yaml`
  await $({ expect: [1] })`vykar --config config.yaml init -R ${repo} > init-again.out 2>&1`
  await says('init-again.out', /repository already exists/, 'a second init was not refused')
  await $`vykar --config config.yaml info -R ${repo} > info.out`
  if (!encrypted(repo)) {
    await says('info.out', /^\s*Encryption\s+none\s*$/m, 'info does not say that the repository is unencrypted')
    if (seen) await $`test -z "$(find ${{ raw: `"$${seen}"` }}/keys -type f 2> /dev/null)"  # there is no key`
    return
  }
  await says('info.out', /^\s*Encryption\s+(aes256gcm|chacha20poly1305)\s*$/m, 'info does not name the encryption')
  // A passphrase in the config goes before the one in the environment.
  await $`sed -E '/^ *pass(phrase|command): /d' lost.yaml > asked.yaml && rm -rf lost`
  const refused = 'was not refused'
  await $({
    expect: [1],
  })`VYKAR_PASSPHRASE=wrong vykar --config asked.yaml list -R ${repo} > wrong.out 2>&1`
  await says('wrong.out', /wrong passphrase/, `a wrong passphrase ${refused}`)
  await $({
    expect: [1],
  })`env -u VYKAR_PASSPHRASE vykar --config asked.yaml list -R ${repo} > none.out 2>&1 < /dev/null`
  await says('none.out', /passphrase/, `the missing passphrase ${refused}`)
  if (seen) await $`test -n "$(find ${{ raw: `"$${seen}"` }}/keys -type f)"  # the key is in the repository`
}

/**
 * Words that were planted in what is backed up are nowhere in the repository's files or the cache; without encryption they are, so the
 * search is able to find them.
 * @param words a file with one on each line
 */
export async function unreadable(repo: string, words: string | { raw: string }): Promise<void> {
  const { seen } = rowScope().run.endpoint(repo)
  const where = `${seen ? `"$${seen}" ` : ''}cache $(ls -d lost 2> /dev/null || true)`
  if (encrypted(repo))
    await $({
      expect: [1],
    })`grep -raF -m 1 -f ${words} ${{ raw: where }}  # words of the source can be read`
  else if (seen) await $`grep -rqaF -f ${words} ${{ raw: where }}  # they can be read, and so be found`
}

/** bash in front of a command that must not see a tree of the user's: an empty directory lies over it, for this command alone. */
export function hidden(source: string | { raw: string }, named: boolean): { raw: string } {
  if (!named) return { raw: '' }
  const word = typeof source === 'string' ? quote(source) : source.raw
  if (process.getuid?.() === 0)
    return { raw: `unshare --mount bash -c 'mount -t tmpfs none "$0" && exec "$@"' ${word}` }
  note('the source was in sight of restore: only root can hide it')
  return { raw: '' }
}

/**
 * The first backup is in backup.out, its id in first.id, and `source` has been changed by a stated amount, or not at all where it is the
 * user's own: a second backup; both snapshots restored with the source out of sight and an empty cache, and compared; the newest
 * deleted and its space given back; backed up once more, restored and compared. Leaves first.id and fourth.id.
 * @param was the tree as it was at the first backup
 * @param named whether the source is the user's own, which is not changed
 */
export async function again(repo: string, source: string, was: string, named: boolean): Promise<void> {
  const { seed } = rowScope().run.common
  await released('backup')
  await storedFirst('backup.out', !named)
  await $`test -z "$(find cache \( -name filecache -o -name snapshot_list \) -perm /077)"  # nobody else reads what there is`
  step('second backup')
  const packs = packBytes()
  if (!named) {
    await stillAs(source, 'first.witness')
    await $({ limit: '30m' })`e2e data-gen/change --dir ${source} --percent 2 --each --seed ${seed} > change.out`
    await written(source, 'second.witness')
  }
  await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > second.out`
  await $`sed -n 's/^Snapshot created: //p' second.out > second.id`
  await storedChange('second.out', named ? undefined : 'change.out', packs)
  await $`vykar --config config.yaml list -R ${repo} > second.list`
  await listed('corpus', 'second.out', 'second.list')
  await shows(2, 'second.list', 'two backups were made')

  step('restore all lost')
  await bothRestored(repo, source, named)
  if (encrypted(repo)) await wrongRestore(repo)
  await sameTree(was, 'restored')
  await numbers(was, 'backup.out', 'list.out', 'restored.out')
  await sameTree(source, 'restored-second')
  await numbers(source, 'second.out', 'second.list', 'restored-second.out')
  await witnessed('restored', 'first')
  await $`chmod -R u+rwX restored-second && rm -r restored-second`
  await released('restore')

  step('newest deleted')
  await $`vykar --config config.yaml snapshot delete -R ${repo} $(<second.id)`
  await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compacted.out`
  await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > third.out`
  await $`sed -n 's/^Snapshot created: //p' third.out > third.id`
  await $`vykar --config config.yaml list -R ${repo} > third.list`
  await listed('corpus', 'third.out', 'third.list')
  await $`rm -rf lost && mkdir lost restored-third`
  await $({
    limit: '1h',
  })`HOME=$PWD/lost ${hidden(source, named)} vykar --config lost.yaml restore -R ${repo} $(<third.id) restored-third > restored-third.out`
  await sameTree(source, 'restored-third')
  await numbers(source, 'third.out', 'third.list', 'restored-third.out')
  await witnessed('restored-third', 'third')
  await $`chmod -R u+rwX restored-third && rm -r restored-third`
  if (!named) await stillAs(source, 'second.witness')

  step('unchanged backup')
  // What bash has read after `wait` is what its children have read.
  await $({
    limit: '1h',
  })`bash -c 'vykar --config config.yaml backup -R ${repo} > fourth.out && cat /proc/$$/io' | sed -n 's/^rchar: //p' > fourth.read`
  await $`sed -n 's/^Snapshot created: //p' fourth.out > fourth.id`
  await readLittle('fourth.read', 'first.read', 'fourth.out', 'third.out')
  await $`vykar --config config.yaml list -R ${repo} > fourth.list`
  await listed('corpus', 'fourth.out', 'fourth.list')
  await $`vykar --config config.yaml snapshot list -R ${repo} $(<fourth.id) > fourth.listing`
  await $`diff <(find ${source} -mindepth 1 \( -type f -o -type d -o -type l \) -printf '%P\n' | sort) <(sort fourth.listing)`
  if (!named) await unreadable(repo, `${source}/awkward/planted`)
  // What it has stored is held against the third's witness.
  await $`vykar --config config.yaml snapshot delete -R ${repo} $(<third.id) && mv third.sha256 fourth.sha256 && mv third.tree fourth.tree && mv restored-third.count restored-fourth.count`
}

/**
 * A backup that a signal ends while it copies, after its hook has said so in a file.
 * @param mark the file that the hook makes
 * @param had snapshots that the repository holds already
 * @returns the exit code
 */
export async function cutShort(
  repo: string,
  signal: 'TERM' | 'INT' | 'KILL',
  mark: string,
  had: number,
): Promise<number> {
  await $`rm -f ${mark}`
  const backup = await background(signal)`vykar --config config.yaml backup -R ${repo}`
  // The hook's shell is about to end: a TERM that comes inside the hook is ignored.
  await $`until test -e ${mark} || ! kill -0 $(<${signal}.pid); do sleep 0.01; done; while pgrep -x -P $(<${signal}.pid) 'sh|bash' > /dev/null; do sleep 0.01; done; sleep 0.1`
  const { code, by } = await backup.end(signal)
  const right = signal === 'KILL' ? 137 : 130
  await check(`# ${signal} ends it with exit ${right}`, () => {
    if (signal !== 'KILL' && by === 'KILL')
      throw new Mismatch(`${signal} did not end the backup within its grace, KILL was needed`)
    if (by === 'none' && code !== 0) throw new Mismatch(`the backup failed by itself, before ${signal}: exit ${code}`)
    if (by !== 'none' && code !== right && code !== 0)
      throw new Mismatch(`${signal} ended the backup with exit ${code} instead of ${right}`)
  })
  if (signal === 'KILL') await torn()
  await $`vykar --config config.yaml list -R ${repo} > ${signal}.list`
  await shows(
    had,
    `${signal}.list`,
    `${signal} came too late, the backup was done: take a larger --corpus-gib or --ballast-mib`,
    Blocked,
  )
  // With a snapshot more that came too late.
  await check(`# ${signal} met it at work`, () => {
    if (code === 0)
      throw new Mismatch(`${signal} ended the backup with exit 0 instead of ${right}, and there is no snapshot of it`)
  })
  return code
}

/**
 * A backup whose `finally` fails before it has done anything: vykar 0.19.1 exits 0 and warns. The snapshot holds what it should all
 * the same; it is restored, compared and deleted.
 * @param compare holds the restored tree against what was backed up, which what the hook has left is still there for
 */
export async function finallyFails(repo: string, compare: (tree: string) => Promise<unknown>): Promise<void> {
  await $`sed -E 's/^( *finally: )/\1exit 7; /' config.yaml > failing-finally.yaml`
  await $({
    limit: '1h',
    warns: /^Hook warning: /,
  })`vykar --config failing-finally.yaml backup -R ${repo} > warned.out 2>&1`
  await says('warned.out', /WARN Hook warning/, '`finally` failed, and backup said nothing of it')
  fact('failing finally', 'exit 0 and a warning')
  await $`sed -n 's/^Snapshot created: //p' warned.out | grep . > warned.id && mkdir warned`
  await $({ limit: '1h' })`vykar --config config.yaml restore -R ${repo} $(<warned.id) warned`
  await compare('warned')
  await $`chmod -R u+rwX warned && rm -r warned && vykar --config config.yaml snapshot delete -R ${repo} $(<warned.id)`
}

/** A restore with a wrong passphrase and an empty cache is refused, and gives nothing. */
export async function wrongRestore(repo: string): Promise<void> {
  await $`rm -rf lost && mkdir stolen`
  await $({
    expect: [1],
  })`VYKAR_PASSPHRASE=wrong vykar --config asked.yaml restore -R ${repo} $(<first.id) stolen > stolen.out 2>&1`
  await says('stolen.out', /wrong passphrase/, 'a restore with a wrong passphrase was not refused')
  await $`rmdir stolen`
}

/** Both snapshots, with an empty cache and home, the source out of sight. */
async function bothRestored(repo: string, source: string, named: boolean): Promise<void> {
  const out = hidden(source, named)
  if (!named) await $`mv ${source} away`
  await $`rm -rf lost && mkdir lost restored restored-second`
  await $({
    limit: '1h',
  })`HOME=$PWD/lost ${out} vykar --config lost.yaml restore -R ${repo} $(<first.id) restored > restored.out`
  await $({
    limit: '1h',
  })`HOME=$PWD/lost ${out} vykar --config lost.yaml restore -R ${repo} $(<second.id) restored-second > restored-second.out`
  if (!named) await $`mv away ${source}`
}

/** The witness of a tree: everything that find(1) sees of it but the top directory's own times, into a file. */
export async function written(source: string | { raw: string }, file: string): Promise<void> {
  await $({
    limit: '30m',
  })`find ${source} -mindepth 1 -printf '/%P /%y %m %U:%G %s %T@ %C@ %l\0' | LC_ALL=C sort -z > ${file}`
}

/** How much more than what changed a backup may store: the metadata of the whole tree, which it writes anew, and rounding. */
const slack = (whole: number) => 2 * 2 ** 20 + whole / 100

/**
 * A backup stored about what had changed: no less than the new bytes, which no compression makes smaller, and no more than the files
 * that were touched; of an unchanged tree next to nothing.
 * @param changed what data-gen/change printed; undefined where nothing was changed
 * @param packs bytes in packs before, 0 where they cannot be seen
 */
export async function storedChange(backup: string, changed: string | undefined, packs: number): Promise<void> {
  await check(`# ${backup}: it stored what had changed`, () => {
    const [created] = parseBackup(read(backup))
    if (!created) throw new Mismatch('the second backup exited 0 but printed no created snapshot')
    const of = (name: string) =>
      Number(new RegExp(`^${name}=(\\d+)$`, 'm').exec(changed ? read(changed) : '')?.[1] ?? 0)
    const least = of('fresh_bytes')
    const most = of('touched_bytes') + slack(created.original)
    const stored = packs ? packBytes() - packs : created.deduplicated
    const said = `the second backup stored ${stored} bytes`
    if (stored < least) throw new Mismatch(`${said}, but ${least} new bytes had been written to the source`)
    if (stored > most) throw new Mismatch(`${said}, but at most ${Math.round(most)} had changed`)
    if (Math.abs(stored - created.deduplicated) > slack(created.original))
      throw new Mismatch(`${said}, but said ${created.deduplicated}`)
  })
}

/**
 * A backup of an unchanged tree has read next to nothing of it and stored nothing: at most a tenth of what the first backup read, or
 * 16 MiB of caches and index and 400 bytes for each file.
 * @param now, first files with the bytes that the two backups have read
 * @param backup what the unchanged one printed
 * @param like what a backup of the same tree has printed before
 */
export async function readLittle(now: string, first: string, backup: string, like: string): Promise<void> {
  await check(
    `(($(<${now}) < $(<${first}) / 10 || $(<${now}) < 16777216 + 400 * $(sed -nE 's/^ *Files: ([0-9]+).*/\\1/p' ${backup})))`,
    () => {
      const [read1, read2] = [Number(read(first)), Number(read(now))]
      const [created] = parseBackup(read(backup))
      if (!created) throw new Mismatch('the unchanged backup exited 0 but printed no created snapshot')
      if (read1 < created.original / 2)
        throw new Mismatch(
          `the first backup has read ${read1} of ${created.original} bytes: nothing can be said of the next`,
        )
      const [before] = parseBackup(read(like))
      if (created.files !== before?.files || created.original !== before.original)
      throw new Mismatch(`a backup of an unchanged tree counted ${created.files} files of ${created.original} bytes, the one before ${before?.files} of ${before?.original}`) // biome-ignore format: one line
      fact('read by an unchanged backup', `${bytes(read2)} of ${bytes(created.original)}`)
      fact('unchanged: read (bytes)', read2)
      if (!(read2 < Math.max(read1 / 10, 2 ** 24 + 400 * created.files)))
        throw new Mismatch(`a backup of an unchanged tree has read ${read2} bytes, the first one ${read1}`)
      if (created.deduplicated > slack(created.original))
        throw new Mismatch(`a backup of an unchanged tree stored ${created.deduplicated} bytes`)
    },
  )
}

/**
 * `check` and `check --verify-data`; in copies of the repository: damage is seen, and reclaiming space harms no snapshot; then all
 * snapshots go, and with them all that they took; the sources are as they were.
 * @param ids files NAME.id of the snapshots that the repository holds; what each must restore to is in NAME.sha256 and NAME.tree
 */
export async function retire(repo: string, ids: readonly string[] = ['snapshot']): Promise<void> {
  // What interrupted backups have left goes first: then every pack that is there belongs to a snapshot.
  await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compacted.out`
  await $({ limit: '30m' })`vykar --config config.yaml check -R ${repo} > check.out 2>&1`
  // What `numbers` has counted in the restored trees.
  const counts = ids.map((id) => (/^(first|snapshot)$/.test(id) ? 'restored.count' : `restored-${id}.count`))
  await sound('check.out', { snapshots: ids.length, counts })
  await $({ limit: '1h' })`vykar --config config.yaml check -R ${repo} --verify-data > verify.out 2>&1`
  await sound('verify.out', { snapshots: ids.length, all: true, asIn: 'check.out' })
  await released('check')
  await $`vykar --config config.yaml info -R ${repo} > counted.out && vykar --config config.yaml list -R ${repo} > counted.list`
  await says('counted.out', new RegExp(`^\\s*Snapshots\\s+${ids.length}\\s*$`, 'm'), 'info counts other snapshots')
  await stored('counted.out', 'check.out', 'counted.list')
  if (await copyOf(repo)) {
    await damaged(repo, ids[0]!)
    await reclaimed(repo, ids)
    await $`rm -r copy`
  }
  step('retire')
  const { objects } = rowScope().run.endpoint(repo)
  if (objects) await $`${{ raw: objects }} > objects.before && grep -q packs/../ objects.before`
  const packs = packBytes()
  for (const id of ids) await $`vykar --config config.yaml snapshot delete -R ${repo} $(<${{ raw: id }}.id)`
  await $({ limit: '30m' })`vykar --config config.yaml compact -R ${repo} > compact.out`
  await freed('compact.out', packs)
  await emptied()
  if (objects)
    await $`${{ raw: objects }} > objects.after && ! grep packs/../ objects.after || exit 1  # no pack is left`
  await $`vykar --config config.yaml list -R ${repo} > gone.out`
  await says('gone.out', /^No snapshots found\.$/m, 'the snapshot was deleted, but list still shows one')
  await $`vykar --config config.yaml break-lock -R ${repo} > locks.out`
  await nothingHeld('locks.out')
  await untouched()
}
