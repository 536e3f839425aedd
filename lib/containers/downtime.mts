// B: a container that writes without a pause is stopped by `before` and started by `finally`. What the engine's events
// say is what counts, since vykar exits 0 also where `finally` failed.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createVolume, type Engine, haveImage, startContainer } from '../engine.mts'
import { interruptedCopy } from '../interrupt.mts'
import type { Row } from '../row.mts'
import { $, scope } from '../sh.mts'
import { expectSnapshot, freshRepository, restored, retire } from '../standard.mts'
import { Mismatch } from '../verdict.mts'
import { type ContainerRun, namesOf } from './names.mts'

/**
 * The writer: a file of random bytes and its checksum, again and again. A stop waits for the end of a record, as a
 * database would for the end of a transaction.
 */
const writing = `trap stop=1 TERM; cd /data; n=$(ls | grep -c "^[0-9]"); while [ -z "$stop" ]; do
  n=$((n + 1)); head -c 20000 /dev/urandom > $n; sha256sum $n >> SHA256SUMS; sleep 0.02; done`

/** Starts the writer on a new volume. Returns the volume's directory on the host. */
export async function startWriter(run: ContainerRun, engine: Engine): Promise<string> {
  const { writer, records } = namesOf(engine)
  const image = await haveImage(run, { engine: engine.name, image: run.options.image, build: 'base' })
  run.report.versions.image = image
  const volume = await createVolume(run, run.cleanup, engine.name, records)
  const flags = ['-v', `${records}:/data`, '--stop-timeout', '60', '--entrypoint', 'sh']
  const spec = {
    engine: engine.name,
    name: writer,
    image,
    environment: {},
    flags,
    args: ['-c', writing],
    build: 'base',
  }
  await startContainer(run, spec, ['test', '-s', '/data/SHA256SUMS'])
  return volume
}

/** Values for the hooks of configs/containers-downtime.yaml; each leaves a time or a count behind, for the comparison. */
export function hooks(engine: Engine, volume: string, dir: string): Record<string, string> {
  const { writer } = namesOf(engine)
  const stopped = `${engine.name} stop ${writer} && wc -l < ${volume}/SHA256SUMS > ${dir}/records && date +%s%N > ${dir}/stopped`
  // The mark says that what the start leaves running, podman's monitor, is a service and not something left behind.
  const started = `date +%s%N > ${dir}/starting; VYKAR_E2E_SERVICE=${writer} ${engine.name} start ${writer}`
  return { SOURCE: volume, BEFORE: stopped, FINALLY: started }
}

/** Throws Mismatch where the writer does not run. */
async function runs(engine: Engine, when: string): Promise<void> {
  const state = await $({
    expect: 'any',
  })`${engine.name} container inspect -f ${'{{.State.Running}}'} ${namesOf(engine).writer}`
  if (!scope().dry && state.stdout.trim() !== 'true') throw new Mismatch(`the container does not run after ${when}`)
}

/**
 * From the engine's events since `from`: the container was stopped once, before the copy, and started once, after it.
 * @param from nanoseconds since 1970
 * @returns the downtime in seconds
 */
export function downtime(events: string, engine: Engine, stopped: bigint, starting: bigint): number {
  const seen = events.split('\n').flatMap((line) => {
    const [, at, what] = /^(\d+) (\w+)$/.exec(line) ?? []
    return at && (what === engine.died || what === 'start') ? [{ at: BigInt(at), what }] : []
  })
  const [died, start] = [seen.find(({ what }) => what === engine.died), seen.find(({ what }) => what === 'start')]
  const after = (ns: bigint) => `${(Number(ns) / 1e9).toFixed(2)} s`
  if (!died) throw new Mismatch('the container was not stopped for the backup: the engine saw no end of its process')
  if (died.at > stopped) throw new Mismatch(`the container ended only ${after(died.at - stopped)} after \`before\``)
  if (!start) throw new Mismatch('the container was not started again: the engine saw no start')
  if (start.at < starting)
    throw new Mismatch(
      `the container was started behind the hook's back, ${after(starting - start.at)} before \`finally\`: the copy is of no single moment`,
    )
  if (seen.length !== 2)
    throw new Mismatch(`the container was stopped or started ${seen.length} times instead of twice`)
  return Number(start.at - died.at) / 1e9
}

/** A backup that stops the container, with the proof from the engine's events. */
async function stoppedBackup(engine: Engine, { config, repository, dir, report }: Row) {
  const { writer } = namesOf(engine)
  const from = (await $`date +%s.%N`).stdout.trim()
  const backup = await $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repository.label}`
  await runs(engine, 'the backup')
  const now = (await $`date +%s.%N`).stdout.trim()
  const asked = await $`${engine.name} events --since ${from} --filter container=${writer} ${engine.events(now)}`
  if (scope().dry) return backup
  const at = (name: string) => BigInt(readFileSync(join(dir, name), 'utf8').trim() || 0)
  if (!existsSync(join(dir, 'stopped'))) throw new Mismatch('`before` was not run to its end')
  if (!existsSync(join(dir, 'starting'))) throw new Mismatch('`finally` was not run')
  report.facts.downtime = `${downtime(asked.stdout, engine, at('stopped'), at('starting')).toFixed(2)} s`
  return backup
}

/** No torn record: every restored file has its checksum, and there are as many as there were at the stop. */
async function wholeRecords(volume: string, dir: string, marks: string): Promise<void> {
  await $({ cwd: dir, limit: '30m' })`sha256sum --check --quiet --strict SHA256SUMS`
  await $({ cwd: dir })`test "$(ls | grep -c '^[0-9]')" = "$(wc -l < SHA256SUMS)"`
  await $({ cwd: dir })`test "$(wc -l < SHA256SUMS)" = "$(cat ${marks}/records)"`
  await $({ limit: '30m' })`cmp ${volume}/ballast ${dir}/ballast`
  // The writer goes on where it was.
  await $({
    limit: '60s',
  })`until test "$(wc -l < ${volume}/SHA256SUMS)" -gt "$(cat ${marks}/records)"; do sleep 0.1; done`
}

const ballast = (run: ContainerRun, volume: string) =>
  $({ limit: '10m' })`head -c ${run.options['ballast-mib']}M /dev/urandom > ${volume}/ballast`

/** A backup that is ended by a signal while it copies; what was seen must be that no snapshot of it is listed. */
async function ended(run: ContainerRun, row: Row, volume: string, signal: 'TERM' | 'KILL', had: number) {
  // New bytes, so that there is something to copy.
  await ballast(run, volume)
  return interruptedCopy(row, signal, 'stopped', had, '--ballast-mib')
}

/** The row: an honest backup and its proof, then backups that fail, are terminated and are killed. */
export async function downtimeHooks(run: ContainerRun, engine: Engine, row: Row, volume: string): Promise<void> {
  const { step, config, repository, dir, report } = row
  const repo = repository.label
  const { writer } = namesOf(engine)
  await step('init', () => freshRepository(config, repo))
  await step('ballast', async () => {
    // A row that failed may have left the writer stopped.
    await $({ env: { VYKAR_E2E_SERVICE: writer } })`${engine.name} start ${writer}`
    await ballast(run, volume)
  })
  const backup = await step('backup', () => stoppedBackup(engine, row))
  const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'records' }))
  const tree = await step('restore', () => restored(config, repo, id))
  await step('records', () => wholeRecords(volume, tree, dir))
  await step('failing hook', async () => {
    await $`sed -E 's/^( *before: ".*)"$/\1; exit 1"/' ${config} > failing.yaml`
    const refused = await $({ limit: '3600s', expect: [1] })`vykar --config failing.yaml backup -R ${repo}`
    refused.complained(/hook .* exited with 1\b/)
    await runs(engine, 'a backup whose hook failed')
  })
  await step('failing backup', async () => {
    // A dump in the same source that fails: after `before`, before any snapshot.
    const late = ['    command_dumps:', '      - name: late', '        command: exit 7']
    await $`(cat ${config}; printf '%s\n' ${late}) > failing-late.yaml`
    const refused = await $({ limit: '3600s', expect: [1] })`vykar --config failing-late.yaml backup -R ${repo}`
    refused.complained(/command_dump 'late' failed \(exit code 7\)/)
    await runs(engine, 'a backup that failed')
  })
  await step('terminated backup', async () => {
    const rc = await ended(run, row, volume, 'TERM', 1)
    await runs(engine, 'a backup that was ended by TERM')
    report.facts['after TERM'] = `exit ${rc}, the container runs`
  })
  await step('retire', () => retire(config, repo, id))
  // Last, since what a killed backup leaves in the repository goes with it.
  await step('killed backup', async () => {
    const rc = await ended(run, row, volume, 'KILL', 0)
    const state = await $`${engine.name} container inspect -f ${'{{.State.Running}}'} ${writer}`
    const stays = state.stdout.trim() !== 'true'
    report.facts['after KILL'] =
      `exit ${rc}, the container ${stays ? `stays stopped, since a killed vykar runs no hook: ${engine.name} start ${writer}` : 'runs'}`
    await $({ env: { VYKAR_E2E_SERVICE: writer } })`${engine.name} start ${writer}`
    await runs(engine, 'it was started by hand')
  })
}
