#!/usr/bin/env -S npx tsx
import { join } from 'node:path'
// What runs in Docker, on every repository, in three patterns:
// volume: a named volume with awkward files, backed up by its directory, restored into a new volume, compared on the host
// and from inside a container;
// downtime: hooks stop a container that writes without a pause, and start it again: proven from the engine's events, also
// after a backup that failed, was terminated or was killed; no restored record is torn;
// dump: a database dumped through exec, loaded into a second container.
// Passes when everything restored equals its source and the container ran again after every backup but a killed one.
import { downtimeHooks, hooks, startWriter } from '#lib/containers/downtime.mts'
import { dumpCommand, dumpName, execDump, filledDatabase } from '#lib/containers/dump.mts'
import { chosenPatterns, containerOptions, needContainerSpace } from '#lib/containers/names.mts'
import { filledVolume, staticVolume } from '#lib/containers/volume.mts'
import { type Engine, needEngine } from '#lib/engine.mts'
import { scenario } from '#lib/run.mts'
import { startServices } from '#lib/services/start.mts'
import { standardNeeds } from '#lib/standard.mts'

/** docker's events tell their time in nanoseconds, and call the end of a process `die`. */
const engine: Engine = {
  name: 'docker',
  events: (now) => ['--until', now, '--format', '{{.TimeNano}} {{.Action}}'],
  died: 'die',
}
const wants = ['docker', 'vykar-server', 's3-server', 'sshd', 'sftp', 'rclone'] as const

await scenario(import.meta, { needs: standardNeeds, wants, options: containerOptions }, async (run) => {
  const chosen = chosenPatterns(run)
  await run.step('engine', async () => {
    if (run.dry) return
    needEngine(run, engine.name, true)
    needContainerSpace(run, engine)
  })
  const volume = chosen.includes('volume') ? await run.step('volume', () => filledVolume(run, engine)) : ''
  const records = chosen.includes('downtime') ? await run.step('writer', () => startWriter(run, engine)) : ''
  const filled = chosen.includes('dump') ? await run.step('database', () => filledDatabase(run, engine)) : undefined
  await run.step('servers', () => startServices(run))

  for (const repo of run.repos) {
    const spec = (variant: string, values: Record<string, string>) => ({
      repo,
      variant,
      fragment: `containers-${variant}`,
      values,
    })
    if (volume) await run.row(spec('volume', { SOURCE: volume }), (row) => staticVolume(run, engine, row, volume))
    const values = hooks(engine, records, join(run.dirs.work, `${repo}-downtime`))
    if (records) await run.row(spec('downtime', values), (row) => downtimeHooks(run, engine, row, records))
    const dump = { NAME: dumpName, COMMAND: dumpCommand(engine) }
    if (filled) await run.row(spec('dump', dump), (row) => execDump(engine, row, filled))
  }
})
