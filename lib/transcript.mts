// commands.sh: the run as a bash script that can be run again by hand, in a directory of its own.
import { appendFileSync, writeFileSync } from 'node:fs'
import { quote as ansi } from 'zx'
import type { CommandOptions } from './sh.mts'

/** What is written instead of a real value, so that the script works elsewhere: a path prefix or a learned value. */
interface Variable {
  value: string
  name: string
  prefix: boolean
}

/** A word quoted for bash: plain single quotes where they do, ANSI-C quoting (`$'…'`) for the rest. */
export function quote(word: string): string {
  const quoted = ansi(word)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what needs the other form
  return quoted.startsWith('$') && !/['\x00-\x1f]/.test(word) ? `'${word}'` : quoted
}

/** Writes `commands.sh` line by line as the run goes; in a dry run it prints instead. */
export class Transcript {
  private variables: Variable[] = []
  private row = ''
  private servers = false
  constructor(
    private readonly file: string | undefined,
    header: string,
    work: string,
  ) {
    this.variables.push({ value: work, name: 'work', prefix: true })
    this.row = work
    if (file) writeFileSync(file, header, { mode: 0o755 })
  }

  /** Adds a line as it is. */
  line(text: string): void {
    if (this.file) appendFileSync(this.file, `${text}\n`)
    else console.log(`    ${text}`)
  }

  /** A server in the background, ended when the script ends; `env` is shell text before the command. */
  server(argv: string[], env = ''): void {
    if (!this.servers) this.line(`servers=(); trap 'kill "\${servers[@]}" 2>/dev/null' EXIT`)
    this.servers = true
    const command = argv.map((word) => this.quote(word)).join(' ')
    this.line(`${env && `${env} `}${command} > server.log 2>&1 & servers+=($!); sleep 2`)
  }

  /** A secret that the run made up: the script makes one up too, unless the environment has it. */
  secret(name: string): void {
    this.line(`export ${name}=\${${name}:-$(openssl rand -hex 16)}`)
  }

  /** A heading for a step. */
  step(where: string, name: string): void {
    this.line(this.file ? `\n# ${where}: ${name}` : `# ${where}: ${name}`)
  }

  /** A row begins: its directory is made, and what earlier rows learned (snapshot ids) is forgotten. */
  beginRow(where: string, dir: string): void {
    this.row = dir
    this.variables = this.variables.filter((variable) => variable.prefix)
    this.line(`\n# ---- ${where} ----`)
    this.line(`mkdir -p ${this.quote(dir)} && cd ${this.quote(dir)}`)
  }

  /** From now on paths below `path` are written as `"$work"/name`. */
  relocate(path: string, name: string): void {
    this.variables.push({ value: path, name: `work/${name}`, prefix: true })
  }

  /** `value` was learned from output: `$name` from now on, set by the bash expression `from`. */
  bind(name: string, value: string, from: string): void {
    this.line(`${name}=$(${from})`)
    this.variables.unshift({ value, name, prefix: false })
  }

  /** A word as the script writes it: a variable where it is one, else quoted for bash. */
  quote(word: string): string {
    for (const { value, name, prefix } of this.variables) {
      if (!prefix && word === value) return `"$${name}"`
      if (!prefix || (word !== value && !word.startsWith(`${value}/`))) continue
      const tail = name.replace(/^work/, '') + word.slice(value.length)
      return `"$work"${tail ? quote(tail) : ''}`
    }
    // A dry run's placeholder for a value that is not known yet.
    return word.startsWith('‹') ? word : quote(word)
  }

  /** A command with what is expected of it; commands that may fail are written so that `set -e` does not end the script. */
  command(text: string, options: CommandOptions): void {
    const env = Object.entries(options.env ?? {}).map(([name, value]) =>
      value === undefined ? `-u ${name}` : `${name}=${this.quote(value)}`,
    )
    // env(1) needs a program after it: shell syntax goes through bash -c.
    let line = env.length
      ? `env ${env.join(' ')} ${/[|;&<>(){]|^!/.test(text) ? `bash -c ${quote(text)}` : text}`
      : text
    if (options.cwd && options.cwd !== this.row) line = `(cd ${this.quote(options.cwd)} && ${line})`
    if (options.out) line += ` | tee ${this.quote(`${this.row}/${options.out}`)}`
    if (options.expect === 'any') line += ' || true'
    else if (options.expect && (options.expect.length > 1 || options.expect[0] !== 0))
      line = `rc=0; ${line} || rc=$?; [[ $rc =~ ^(${options.expect.join('|')})$ ]]  # expected exit: ${options.expect.join(' or ')}`
    this.line(line)
  }

  /** The last lines: whoever runs it sees that it came to its end. */
  end(): void {
    this.line('\necho "every command held; the directory $work can go now"')
  }

  /** Writes a file as a here-document, path relocated and values replaced by variables that bash expands. */
  write(file: string, text: string): void {
    // Every $ that is meant for vykar or for a hook stays; only the run's own directory becomes $work.
    let body = text.replaceAll('\\', '\\\\').replaceAll('`', '\\`').replaceAll('$', '\\$')
    for (const { value, name, prefix } of this.variables) if (prefix) body = body.replaceAll(value, `$${name}`)
    this.line(`cat > ${this.quote(file)} <<EOF\n${body.trimEnd()}\nEOF`)
  }
}

/** The head of `commands.sh`. */
export function transcriptHeader(scenario: string, runId: string, environment: string[]): string {
  return `#!/usr/bin/env bash
# ${scenario}, run ${runId}: every command of the run in order.
# Run it again with: bash commands.sh [EMPTY-DIRECTORY]
set -euo pipefail
${environment.join('\n')}
work=\${1:-$(mktemp -d /var/tmp/vykar-e2e.XXXXXX)}
mkdir -p "$work"
cd "$work"
echo "working in $work"
`
}
