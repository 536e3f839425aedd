// commands.sh: the run as a bash script. Only sh.mts writes to it, line by line as things are run.
import { appendFileSync, writeFileSync } from 'node:fs'
import { quote as ansi } from 'zx'
import { unsetBending } from './environment.mts'

/** A word quoted for bash: plain single quotes where they do, ANSI-C quoting (`$'…'`) for the rest. */
export function quote(word: string): string {
  const quoted = ansi(word)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what needs the other form
  return quoted.startsWith('$') && !/['\x00-\x1f]/.test(word) ? `'${word}'` : quoted
}

/** The file, or stdout in a dry run; it changes directory when the next line belongs to another one. */
export class Transcript {
  private place = ''
  private heading = ''
  constructor(
    private readonly file: string | undefined,
    header: string,
  ) {
    if (file) writeFileSync(file, header, { mode: 0o755 })
    else process.stdout.write(header)
  }

  /** A heading for the next line, if there is one. */
  head(text: string): void {
    this.heading = `\n# ${text}\n`
  }

  /** Adds lines that run in `place`, a directory below the run's own (`''` for that itself). */
  add(place: string, text: string): void {
    const at = place ? `"$top"/${quote(place)}` : '"$top"'
    const change = place === this.place ? '' : `${place ? `mkdir -p ${at} && ` : ''}cd ${at}\n`
    this.place = place
    const lines = `${this.heading}${change}${text}\n`
    this.heading = ''
    if (this.file) appendFileSync(this.file, lines)
    else process.stdout.write(lines)
  }
}

/**
 * The head of `commands.sh`: what the environment of all commands holds.
 * @param vykar the program that is called so
 * @param first lines that come before all variables that bend things are taken out
 * @param exports lines that set the environment
 */
export function transcriptHead(
  scenario: string,
  runId: string,
  vykar: string,
  first: string[],
  exports: string[],
): string {
  return `#!/usr/bin/env bash
# ${scenario}, run ${runId}: everything that was run, in order. Again, in an empty directory: bash commands.sh
set -euo pipefail
umask 022
top=$PWD
undo() { todo="(cd '$PWD' && $1) || true; \${todo-}"; }
trap 'eval "\${todo-}"; jobs=$(jobs -p); [[ -z $jobs ]] || { kill $jobs 2> /dev/null; wait 2> /dev/null; } || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
${[...first, unsetBending].join('\n')}
${exports.join('\n')}
mkdir bin && ln -s ${quote(vykar)} bin/vykar
`
}
