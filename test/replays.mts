// What a run writes down as bash is what a dry run prints, can be run again, and fails where the vykar that it is run with lies.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { cleanEnv, run, type Sandbox, sandbox, smallCorpus } from './helpers.mts'

/** Runs a program and returns its exit code and outputs. */
export const finished = (box: Sandbox, words: readonly string[], cwd = box.dir) =>
  new Promise<{ code: number | null; out: string; err: string }>((settle) => {
    const child = spawn(words[0]!, words.slice(1), { cwd, env: cleanEnv(box), stdio: ['ignore', 'pipe', 'pipe'] })
    let [out, err] = ['', '']
    child.stdout.on('data', (text) => {
      out += text
    })
    child.stderr.on('data', (text) => {
      err += text
    })
    child.on('close', (code) => settle({ code, out, err }))
  })

/** A vykar that is `vykar` but for what these lines of sh do. */
function lying(box: Sandbox, vykar: string, lie: string): string {
  mkdirSync(join(box.dir, 'lying'), { recursive: true })
  const file = join(box.dir, 'lying/vykar')
  writeFileSync(file, `#!/bin/sh\nreal='${vykar}'\ncase " $* " in\n${lie}\nesac\nexec "$real" "$@"\n`, { mode: 0o755 })
  return file
}
export const lies: Record<string, string> = {
  'restore leaves a file out': `*' restore '*) "$real" "$@" || exit; for last; do :; done; find "$last" -type f -name 'file-*' -print -quit | xargs rm -f; exit 0 ;;`,
  'restore changes a mode': `*' restore '*) "$real" "$@" || exit; for last; do :; done; find "$last" -type f -name 'file-*' -print -quit | xargs chmod o+w; exit 0 ;;`,
  'list hides': `*' list -R '*) case " $* " in *snapshot*) ;; *) echo 'No snapshots found.'; exit 0 ;; esac ;;`,
  'snapshot list shows less': `*' snapshot list '*) "$real" "$@" | sed 1d; exit 0 ;;`,
  'check counts errors': `*' check '*) "$real" "$@" | sed 's/, 0 errors/, 3 errors/'; exit 0 ;;`,
  'snapshot delete does nothing': `*' snapshot delete '*) echo done; exit 0 ;;`,
  'compact does nothing': `*' compact '*) echo done; exit 0 ;;`,
}

/**
 * Registers the test of a scenario whose commands.sh can be run as it stands.
 * @param vykar the one that the run and its repetition use
 * @param told lies of which each must make the repetition fail
 */
export function replays(name: string, vykar: () => string, told: readonly string[], ...options: string[]): void {
  test(`${name}: what ran is what a dry run prints, and bash runs it again; a lying vykar makes it fail`, async () => {
    const box = sandbox()
    const args = ['--vykar', vykar(), '--source', smallCorpus(), '--keep', ...options]
    const passed = await run(box, name, args)
    assert.equal(passed.code, 0, passed.stdout + passed.stderr)
    const written = readFileSync(passed.report!.transcript, 'utf8')
    const dry = await run(box, name, [...args, '--dry-run'])
    // Only a run can know its id, its secrets, and which port was free.
    const known = /^(#|$)|^by hand|RUN=|TOKEN=/
    const port = /(127\.0\.0\.1[\]:/]+|^Port |_PORT=|-P )\d+/gm
    const lines = (text: string) =>
      text
        .replaceAll(port, '$1N')
        .split('\n')
        .filter((line) => !known.test(line))
    assert.deepEqual(lines(dry.stdout), lines(written))
    // A repetition must not reach into the directory of the run that it repeats.
    assert.doesNotMatch(written, new RegExp(join(box.runtime, 'work')))
    let serial = 0
    const replay = (script: string) => {
      const dir = join(box.dir, `replay-${++serial}`)
      mkdirSync(dir)
      writeFileSync(join(dir, 'commands.sh'), script)
      return finished(box, ['bash', 'commands.sh'], dir)
    }
    const again = await replay(written)
    assert.equal(again.code, 0, again.err)
    const link = /^mkdir bin && ln -s .* bin\/vykar$/m
    assert.match(written, link)
    for (const lie of told) {
      const liar = lying(box, vykar(), lies[lie]!)
      const caught = await replay(written.replace(link, `mkdir bin && ln -s ${liar} bin/vykar`))
      assert.notEqual(caught.code, 0, `${lie}: bash commands.sh held`)
    }
  })
}
