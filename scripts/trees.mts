#!/usr/bin/env -S npx tsx
// Compares two directory trees as the scenarios do: content, metadata, holes, inode flags, known gaps of vykar set apart.
//   trees.mts SOURCE RESTORED                 after any restore
//   trees.mts --files NAME SOURCE RESTORED    by the files NAME.diff, NAME.there, … that a scenario's lines have written here
// Exits 0 where only known gaps show, 1 where the trees differ.
import { mkdtempSync, realpathSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { ask } from '#lib/ask.mts'
import { notHeld, statedEnvironment } from '#lib/environment.mts'
import { identifyVykar } from '#lib/host.mts'
import { optionHelp, parseOptions } from '#lib/options.mts'
import { headerOf } from '#lib/prepare.mts'
import { allowLostOutput } from '#lib/terminal.mts'
import { quote } from '#lib/transcript.mts'
import { messageOf, UsageError } from '#lib/verdict.mts'
import { judge, listings } from '#lib/verify.mts'

const specs = {
  help: { kind: 'flag', help: 'this text' },
  files: { kind: 'string', help: 'first part of the names of the listings, in the working directory' },
  vykar: { kind: 'path', help: 'whose known gaps count; default the one on PATH', default: 'vykar' },
} as const

const run = async (line: string, cwd: string, most = 0): Promise<string> => {
  const done = await ask(['bash', '-c', `set -euo pipefail\n${line}`], { cwd, env: statedEnvironment(), seconds: 7200 })
  if (done.code > most) throw new Error(`${line}: ${done.stderr.trim()}`)
  return done.stdout
}

allowLostOutput()
try {
  const options = parseOptions(process.argv.slice(2), specs, true)
  const [source, restored, ...more] = options._
  if (options.help) console.log(`${headerOf(import.meta.filename)}\n\n${optionHelp(specs)}`)
  else {
    if (!source || !restored || more.length) throw new UsageError('two directories are needed: SOURCE RESTORED')
    const missing = [source, restored].find(
      (tree) => !options.files && !statSync(tree, { throwIfNoEntry: false })?.isDirectory(),
    )
    if (missing) throw new UsageError(`${missing}: no such directory`)
    const dir = options.files ? process.cwd() : mkdtempSync(join(tmpdir(), 'vykar-e2e-trees-'))
    const [a, b] = options.files ? [source, restored] : [realpathSync(source), realpathSync(restored)]
    const name = options.files ?? 'trees'
    // A scenario leaves out what its file system cannot hold; of two trees of the user's all is said.
    const lacking = options.files ? await notHeld(dir) : []
    if (!options.files)
      for (const line of listings(quote(a), quote(b), name, lacking))
        await run(line, dir, line.startsWith('diff') ? 1 : 0)
    const { version } = await identifyVykar(options.vykar)
    const bash = (tree: string, line: string) => run(`bash -c ${quote(line)}`, resolve(dir, tree))
    const { unexplained, seen } = await judge({ source: a, restored: b, dir, name, version, lacking, bash })
    if (!options.files) await ask(['rm', '-r', dir])
    for (const gap of seen) if (gap.state === 'seen') console.log(`known gap ${gap.id}: ${gap.why} (${gap.count})`)
    for (const line of unexplained) console.log(line)
    if (process.getuid?.() !== 0) console.log('note: owners are not compared: only root can give them')
    process.exitCode = unexplained.length ? 1 : 0
  }
} catch (error) {
  console.error(`trees: ${messageOf(error)}`)
  process.exitCode = error instanceof UsageError ? 2 : 1
}
