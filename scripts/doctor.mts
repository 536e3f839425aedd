#!/usr/bin/env -S npx tsx
// Which scripts can run on this host: ready, partly (some rows are SKIPPED), or what they lack, and the command that installs it.
// Exits 0 when every script can run, 77 when something is missing.
import { aptLine } from '#lib/host.mts'
import { optionHelp, parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { allowLostOutput } from '#lib/terminal.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { type Readiness, readiness } from '#scripts/suite/ready.mts'

/** One line a script; with --verbose one a tool, too. */
function print(scripts: readonly Readiness[], verbose: boolean): void {
  const width = Math.max(...scripts.map(({ scenario }) => scenario.length))
  for (const { scenario, word, without, tools } of scripts) {
    console.log(`${word.padEnd(6)}  ${without ? `${scenario.padEnd(width)}  without ${without}` : scenario}`)
    if (!verbose) continue
    for (const { name, path, version, why, remedy } of tools)
      console.log(
        `          ${name.padEnd(14)} ${path ? `${version ?? 'present'} (${path})` : `MISSING: ${why}; ${remedy}`}`,
      )
  }
  const missing = scripts.flatMap(({ tools }) => tools.filter((tool) => !tool.path))
  const line = aptLine(missing)
  if (line) console.log(`all missing packages at once: ${line}`)
  const others = new Map(missing.filter(({ remedy }) => !remedy.startsWith('apt-get')).map((tool) => [tool.name, tool]))
  for (const { name, remedy } of others.values()) console.log(`${name}: ${remedy}`)
}

allowLostOutput()
try {
  const specs = {
    help: { kind: 'flag', help: 'this text' },
    verbose: { kind: 'flag', help: 'each tool, with its version' },
    json: { kind: 'flag', help: 'the same as JSON' },
  } as const
  const options = parseOptions(process.argv.slice(2), specs)
  if (options.help) {
    console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  } else {
    const scripts = await readiness()
    if (options.json) console.log(JSON.stringify(scripts, null, 2))
    else print(scripts, options.verbose)
    process.exitCode = scripts.every(({ tools }) => tools.every((tool) => tool.path)) ? 0 : 77
  }
} catch (error) {
  console.error(`doctor: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
