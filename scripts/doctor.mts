#!/usr/bin/env -S npx tsx
// What each script needs on this host: a table, present with version or missing with the command that installs it.
// Exits 0 when every script can run, 77 when something is missing.
import { aptLine, type Found, find } from '#lib/host.mts'
import { parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { allowLostOutput } from '#lib/terminal.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { type Description, describeAll } from '#scripts/suite/scenarios.mts'

function print(scripts: (Description & { tools: Found[] })[]): void {
  for (const { scenario, tools } of scripts) {
    const missing = tools.filter((tool) => !tool.path)
    console.log(`${missing.length ? 'lacks' : 'ready'}  ${scenario}`)
    for (const { name, path, version, why, remedy } of tools)
      console.log(
        `         ${name.padEnd(14)} ${path ? `${version ?? 'present'} (${path})` : `MISSING: ${why}; ${remedy}`}`,
      )
  }
  const line = aptLine(scripts.flatMap(({ tools }) => tools.filter((tool) => !tool.path)))
  if (line) console.log(`all missing packages at once: ${line}`)
}

allowLostOutput()
try {
  const specs = { help: { kind: 'flag', help: 'this text' }, json: { kind: 'flag', help: 'the same as JSON' } } as const
  const options = parseOptions(process.argv.slice(2), specs)
  if (options.help) {
    console.log(`${headerOf(import.meta.filename)}\n\n  --json   the same as JSON`)
  } else {
    const described = await describeAll()
    const names = [...new Set(described.flatMap(({ needs, wants }) => [...needs, ...wants]))]
    const known = new Map(await Promise.all(names.map(async (name) => [name, await find(name)] as const)))
    const scripts = described.map((script) => ({
      ...script,
      tools: [...script.needs, ...script.wants].map((name) => known.get(name)!),
    }))
    if (options.json) console.log(JSON.stringify(scripts, null, 2))
    else print(scripts)
    process.exitCode = scripts.every(({ tools }) => tools.every((tool) => tool.path)) ? 0 : 77
  }
} catch (error) {
  console.error(`doctor: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
