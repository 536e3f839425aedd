// Whether the disks can hold what a scenario is about to make, asked before it makes anything.
import { existsSync, statfsSync } from 'node:fs'
import { dirname } from 'node:path'
import { bytes } from '#lib/terminal.mts'
import { UsageError } from '#lib/verdict.mts'

/** Bytes that will be needed below a directory, which need not exist yet. */
export interface Need {
  dir: string
  bytes: number
}

const nearestExisting = (path: string): string => (existsSync(path) ? path : nearestExisting(dirname(path)))

/**
 * Adds the needs up by disk.
 * @param why what is to be held, for the message
 * @param remedy what the user can do
 * @throws UsageError naming the disk that cannot hold them
 */
export function needSpace(needs: Need[], why: string, remedy: string): void {
  const perDisk = new Map<string, { need: number; free: number; dir: string }>()
  for (const { dir, bytes: need } of needs) {
    const { bavail, bsize, blocks, files } = statfsSync(nearestExisting(dir))
    const disk = `${blocks}/${files}/${bavail}`
    const entry = perDisk.get(disk) ?? { need: 0, free: bavail * bsize, dir }
    entry.need += need
    perDisk.set(disk, entry)
  }
  for (const { need, free, dir } of perDisk.values())
    if (need > free)
      throw new UsageError(
        `${dir} has ${bytes(free)} free, ${bytes(need)} are needed for ${why}: free some, or ${remedy}`,
      )
}
