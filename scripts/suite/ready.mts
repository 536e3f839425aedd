// Which scripts can run on this host, and why others cannot: what doctor.mts prints, and setup.mts at its end.
import { type Found, find } from '#lib/host.mts'
import type { Description } from '#lib/prepare.mts'
import { describeAll, inTheGuest } from './scenarios.mts'

/** A script and its tools: `lacks` one that it needs, or runs `partly` without one that it would like. */
export interface Readiness extends Description {
  tools: Found[]
  word: 'ready' | 'partly' | 'lacks'
  /** What is missing, and what for; empty where nothing is. */
  without: string
}

/** Asks every script what it needs, and the host what is there. Throws Error where a script does not answer. */
export async function readiness(): Promise<Readiness[]> {
  // In the guest its tools are there.
  const described = (await describeAll()).map((script) =>
    inTheGuest(script.scenario) ? { ...script, needs: script.needs.filter((name) => name !== 'zpool') } : script,
  )
  const names = [...new Set(described.flatMap(({ needs, wants }) => [...needs, ...wants]))]
  const known = new Map(await Promise.all(names.map(async (name) => [name, await find(name)] as const)))
  return described.map((script) => {
    const missing = (of: typeof script.needs) => of.map((name) => known.get(name)!).filter((tool) => !tool.path)
    const all = [...missing(script.needs), ...missing(script.wants)]
    return {
      ...script,
      tools: [...script.needs, ...script.wants].map((name) => known.get(name)!),
      word: missing(script.needs).length ? 'lacks' : all.length ? 'partly' : 'ready',
      without: all.map((tool) => `${tool.name} (${tool.why})`).join(', '),
    }
  })
}
