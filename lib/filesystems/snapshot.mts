// What the file systems with snapshots share: the honest backup of a moment while files churn, and the cases in which
// taking the snapshot, or what comes after it, goes wrong.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { background, until } from '../background.mts'
import { interruptedCopy } from '../interrupt.mts'
import { dataGen } from '../prepare.mts'
import type { Row } from '../row.mts'
import type { Run } from '../run.mts'
import { $, bash, scope } from '../sh.mts'
import { expectFiles, expectSnapshot, freshRepository, restored, retire } from '../standard.mts'
import { Blocked, Mismatch } from '../verdict.mts'
import { sameTree } from '../verify.mts'

/** A file system as the rows see it; all commands are bash. */
export interface Snapshots {
  /** The live directory that files churn in. */
  live: string
  /** The snapshot that vykar backs up: there only between `before` and `finally`. */
  source: string
  /** A second snapshot of the same moment, that stays: what the restored tree is compared with. */
  witness: string
  /** Takes the snapshot and its witness. */
  take: string
  /** Deletes the snapshot, or the witness. */
  drop: { snapshot: string; witness: string }
  /** Succeeds when there is a snapshot of this name. */
  exists: string
  /** Makes a snapshot of the same name, as if somebody else had. */
  collide: string
  /** Cases in which the snapshot cannot be reached: how to bring them about and how to undo that. */
  unreachable: { name: string; bring: string; undo: string; said: RegExp }[]
  /** Cases in which the backup may fail or be right, whatever the file system makes of them. */
  either: { name: string; bring: string; undo: string }[]
  /** A look at the restored tree, for what is reported as it comes out. */
  inspect?: (tree: string, row: Row) => Promise<void>
}

/** The name of every snapshot that vykar backs up. */
export const snapshotName = 'vykar-e2e'

/** Values for the scenario's fragment: the hooks are two scripts in the row's directory. */
export const snapshotHooks = ({ source }: Snapshots, dir: string): Record<string, string> => ({
  SOURCE: source,
  BEFORE: `bash ${dir}/before.sh`,
  FINALLY: `bash ${dir}/finally.sh`,
})

/**
 * Writes the hooks. `before` never takes a snapshot over one that is there, except one that an earlier, killed backup has
 * left: `mine` says so. `finally` deletes only what `before` made. Both leave the time behind.
 */
function writeHooks({ take, drop, exists, source }: Snapshots, dir: string): void {
  const hooks = {
    'before.sh': `set -e
cd ${dir}
# A snapshot that a killed backup has left is ours: it goes first.
if test -e mine && ${exists}; then ${drop.snapshot}; fi
rm -f mine
if ${exists}; then echo 'there is a snapshot of this name already: ${source}' >&2; exit 1; fi
${drop.witness}
${take}
date +%s%N > mine
cp mine taken
`,
    'finally.sh': `set -e
cd ${dir}
date +%s%N > dropping
# Only what \`before\` made.
if test -e mine; then ${drop.snapshot}; rm mine; fi
`,
  }
  for (const [name, text] of Object.entries(hooks)) {
    scope().transcript.write(join(dir, name), text)
    if (!scope().dry) writeFileSync(join(dir, name), text)
  }
}

/**
 * Fills the live directory: a corpus with the awkward cases, 200 small files, and what is churned.
 * @param gib size of the corpus
 */
export async function fillLive(run: Run, live: string, gib: number): Promise<void> {
  const corpus = join(run.dirs.work, 'corpus')
  await $({
    limit: '30m',
  })`${dataGen('corpus')} --out ${corpus} --gib ${String(gib)} --churn 0 --seed ${String(run.common.seed)}`
  await $({ limit: '30m' })`rsync -aHAXS ${corpus}/snapshot-1/ ${live}/ && rm -r ${corpus}`
  await $`mkdir ${live}/churn && for n in $(seq 200); do echo "file $n" > ${live}/churn/file-$n; done && sync`
}

/** Writes, overwrites, grows, renames and deletes without a pause; the time of each round goes to the log. */
const churning = `cd "$1/churn"; n=0; while :; do n=$((n + 1)); k=$((n % 200 + 1))
  echo "round $n" > file-$k; echo "round $n" >> grown; head -c 20000 /dev/urandom > new-$n
  mv new-$n moved-$((n % 50)); rm -f moved-$(((n + 25) % 50)); date +%s%N >> "$2/rounds"; sleep 0.005; done`

/** A backup while files churn; writes must have fallen between the snapshot and its end. */
async function churnedBackup(snapshots: Snapshots, { config, repository, dir, report }: Row) {
  const { transcript, dry } = scope()
  transcript.line(
    `(${churning.replaceAll('"$1', `"${transcript.quote(snapshots.live)}`).replace('"$2', '".')}) & churn=$!`,
  )
  const churn = dry ? undefined : background(['bash', '-c', churning, 'churn', snapshots.live, dir], 'churn.out')
  if (churn) await until('the churn to begin', () => existsSync(join(dir, 'rounds')) || !churn.running())
  const backup = await $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repository.label}`
  transcript.line('kill $churn')
  await churn?.interrupt('TERM', 10)
  if (dry) return backup
  const [taken, dropping] = ['taken', 'dropping'].map((name) =>
    existsSync(join(dir, name)) ? BigInt(readFileSync(join(dir, name), 'utf8')) : undefined,
  )
  if (!taken || !dropping) throw new Mismatch(`\`${taken ? 'finally' : 'before'}\` was not run to its end`)
  const rounds = readFileSync(join(dir, 'rounds'), 'utf8').split('\n').filter(Boolean).map(BigInt)
  const between = rounds.filter((at) => at > taken && at < dropping).length
  if (!between) throw new Blocked('no write fell between the snapshot and its end: take a larger --corpus-gib')
  report.facts['writes while vykar copied'] =
    `${between} rounds of ${rounds.length}, in ${(Number(dropping - taken) / 1e9).toFixed(2)} s`
  return backup
}

/** Throws Mismatch when the snapshot is still there, or is not. */
async function snapshotThere(snapshots: Snapshots, there: boolean, when: string): Promise<void> {
  const asked = await bash({ expect: [0, 1] }, `if ${snapshots.exists}; then exit 0; else exit 1; fi`)
  if (!scope().dry && (asked.code === 0) !== there)
    throw new Mismatch(`the snapshot ${there ? 'is gone' : 'is still there'} after ${when}`)
}

/** A backup that must fail with this message and make no snapshot in the repository. */
async function refused({ repository }: Row, config: string, said: RegExp, had: number, name: string): Promise<void> {
  const failed = await $({ limit: '3600s', expect: [1] })`vykar --config ${config} backup -R ${repository.label}`
  failed.complained(said)
  const out = `${name.replaceAll(' ', '-')}.list`
  const list = await $({ limit: '10m', out })`vykar --config ${config} list -R ${repository.label}`
  if (scope().dry) return
  const found = list.stdout.split('\n').filter((line) => /^\s*[0-9a-f]{8} /.test(line)).length
  if (found !== had)
    throw new Mismatch(`${name}: the backup failed, but list shows ${found} snapshots instead of ${had}`)
}

/** A backup that fails in its hook, or restores to the moment of its snapshot; returns which. */
async function rightOrRefused(snapshots: Snapshots, row: Row, name: string): Promise<string> {
  const { config, repository } = row
  const out = `${name.replaceAll(' ', '-')}.out`
  const tried = await $({
    limit: '3600s',
    expect: [0, 1],
    out,
  })`vykar --config ${config} backup -R ${repository.label}`
  await snapshotThere(snapshots, false, `the case ${name}`)
  if (scope().dry) return ''
  if (tried.code === 1) {
    tried.complained(/^Error: hook error: .* exited with \d+$/m)
    return `exit 1: ${tried.stderr.trim().split('\n').at(-2) ?? ''}`
  }
  const id = await expectSnapshot(config, repository.label, tried, { label: 'moment', out })
  const tree = await restored(config, repository.label, id, 'restored-odd')
  await sameTree(snapshots.witness, tree)
  await $`rm -r ${tree}`
  await $`vykar --config ${config} snapshot delete -R ${repository.label} ${id}`
  return 'exit 0, and the restored tree is right'
}

/** The cases that go wrong before or after the copy: each must fail clearly, or be right, and leave no snapshot. */
async function badCases(snapshots: Snapshots, row: Row): Promise<void> {
  const { step, config, repository, report } = row
  const { drop, collide, unreachable, either } = snapshots
  await step('name taken', async () => {
    await bash({}, collide)
    await refused(row, config, /^there is a snapshot of this name already: /m, 1, 'name taken')
    // It is somebody else's: `finally` must not have deleted it.
    await snapshotThere(snapshots, true, 'a backup that found its name taken')
    await bash({}, drop.snapshot)
  })
  for (const { name, bring, undo, said } of unreachable)
    await step(name, async () => {
      await bash({}, bring)
      try {
        await refused(row, config, said, 1, name)
      } finally {
        await bash({}, undo)
      }
      await snapshotThere(snapshots, false, `the case ${name}`)
    })
  await step('failing before', async () => {
    await $`sed -E 's/^( *before: ".*)"$/\1; exit 7"/' ${config} > failing-before.yaml`
    await refused(row, 'failing-before.yaml', /^Error: hook error: .* exited with 7$/m, 1, 'failing before')
    await snapshotThere(snapshots, false, 'a backup whose `before` failed after the snapshot')
  })
  await step('failing finally', async () => {
    // `finally` fails before it has deleted anything: vykar exits 0 and warns, the snapshot stays.
    await $`sed -E 's/^( *finally: ")/\1exit 7; /' ${config} > failing-finally.yaml`
    const warned = await $({
      limit: '3600s',
      out: 'warned.out',
    })`vykar --config failing-finally.yaml backup -R ${repository.label}`
    await snapshotThere(snapshots, true, 'a `finally` that failed')
    report.facts['failing finally'] = /WARN Hook warning: .* exited with 7$/m.test(warned.stderr)
      ? 'exit 0 and a warning; the snapshot stays until the next backup'
      : 'exit 0 without a warning; the snapshot stays until the next backup'
    const next = await $({ limit: '3600s', out: 'next.out' })`vykar --config ${config} backup -R ${repository.label}`
    await snapshotThere(snapshots, false, 'the backup after a `finally` that failed')
    for (const output of [warned, next]) {
      const id = scope().dry ? '‹id›' : /^Snapshot created: (\w+)/m.exec(output.stdout)?.[1]
      if (!id) throw new Mismatch('a backup exited 0 but created no snapshot')
      await $`vykar --config ${config} snapshot delete -R ${repository.label} ${id}`
    }
  })
  for (const { name, bring, undo } of either)
    await step(name, async () => {
      await bash({ limit: '30m' }, bring)
      try {
        report.facts[name] = await rightOrRefused(snapshots, row, name)
      } finally {
        await bash({ limit: '10m' }, undo)
      }
    })
  await step('terminated', async () => {
    const rc = await interruptedCopy(row, 'TERM', 'taken', 1, '--corpus-gib')
    await snapshotThere(snapshots, false, 'a backup that was ended by TERM')
    report.facts['after TERM'] = `exit ${rc}, the snapshot is gone`
  })
}

/** The row. */
export async function snapshotRow(snapshots: Snapshots, row: Row): Promise<void> {
  const { step, config, repository, report, dir } = row
  const repo = repository.label
  writeHooks(snapshots, dir)
  await step('init', () => freshRepository(config, repo))
  const backup = await step('backup', () => churnedBackup(snapshots, row))
  await snapshotThere(snapshots, false, 'the backup')
  const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'moment' }))
  await step('snapshot list', () => expectFiles(config, repo, id, snapshots.witness))
  const tree = await step('restore', () => restored(config, repo, id))
  await step('compare', async () => {
    await sameTree(snapshots.witness, tree)
    // The live files are others by now: what was restored is the moment and not its future.
    await $({ expect: [1] })`diff -qr --no-dereference ${snapshots.live} ${snapshots.witness} > churned`
    if (!scope().dry) await snapshots.inspect?.(tree, row)
  })
  await badCases(snapshots, row)
  await step('retire', () => retire(config, repo, id))
  // Last, since what a killed backup leaves in the repository goes with it.
  await step('killed', async () => {
    const rc = await interruptedCopy(row, 'KILL', 'taken', 0, '--corpus-gib')
    await snapshotThere(snapshots, true, 'a backup that was killed')
    const next = await $({ limit: '3600s', out: 'after-kill.out' })`vykar --config ${config} backup -R ${repo}`
    await snapshotThere(snapshots, false, 'the backup after one that was killed')
    const after = await expectSnapshot(config, repo, next, { label: 'moment', out: 'after-kill.out' })
    await sameTree(snapshots.witness, await restored(config, repo, after, 'restored-after-kill'))
    report.facts['after KILL'] = `exit ${rc}, the snapshot stays; the next backup deletes it and takes its own`
  })
}
