// What the tests share: the stand-in as one bundled file, a small corpus, a sandbox of its own for every run of a script.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { buildSync } from 'esbuild'
import { which } from '#lib/host.mts'
import type { RunReport } from '#lib/report.mts'

export const root = resolve(import.meta.dirname, '..')
const tsx = join(root, 'node_modules/.bin/tsx')

/** Tests make their files here, on a real disk; gone when the test process ends. */
export const scratch = mkdtempSync(join(process.env.VYKAR_E2E_TMP ?? tmpdir(), 'vykar-e2e-test-'))
process.on('exit', () => {
  spawnSync('chmod', ['-R', 'u+rwX', scratch])
  rmSync(scratch, { recursive: true, force: true })
})

let standinFile: string | undefined
/** The stand-in as an executable: bundled once, since tsx takes 0.3 s to start. */
export function standin(): string {
  if (standinFile) return standinFile
  const dir = join(scratch, 'standin')
  mkdirSync(dir)
  buildSync({
    entryPoints: [join(root, 'test/standin/vykar.mts')],
    bundle: true,
    platform: 'node',
    format: 'esm',
    outfile: join(dir, 'vykar.mjs'),
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  })
  standinFile = join(dir, 'vykar')
  writeFileSync(standinFile, `#!/bin/sh\nexec '${process.execPath}' '${join(dir, 'vykar.mjs')}' "$@"\n`, {
    mode: 0o755,
  })
  return standinFile
}

/** The real vykar where there is one on PATH. */
export const real = spawnSync('sh', ['-c', 'command -v vykar'], { encoding: 'utf8' }).stdout.trim() || undefined
/** Reason to skip a test that needs the real vykar; false where it is. */
export const noReal = real ? false : 'vykar is not on PATH'

/** Reason to skip a test that needs these programs; false where all are there. */
export function lacking(...programs: string[]): string | false {
  const gone = programs.filter((program) => !which(program))
  return gone.length ? `missing: ${gone.join(', ')} (scripts/setup.mts installs them)` : false
}

/** Where generators that a test runs itself write down what is theirs. */
const generatorEnv = { ...process.env, VYKAR_E2E_RUNTIME: join(scratch, 'generators') }

let corpusDir: string | undefined
/** A corpus of a few MiB with the awkward cases, made once for a test file. */
export function smallCorpus(): string {
  if (corpusDir) return corpusDir
  corpusDir = join(scratch, 'corpus')
  execFileSync(tsx, [join(root, 'data-gen/corpus.mts'), '--out', corpusDir, '--gib', '0.01', '--seed', '7'], {
    env: generatorEnv,
  })
  return corpusDir
}

/** Makes the small corpus the default one of a sandbox, and that of the smoke profile, so that its scripts back up a copy of their own, and change it. */
export function ownCorpus(box: Sandbox): string[] {
  for (const name of ['corpus-local', 'corpus-remote', 'corpus-local-0.25', 'corpus-remote-0.25'])
    if (!existsSync(join(box.dir, name))) symlinkSync(smallCorpus(), join(box.dir, name))
  return []
}

let mediumDir: string | undefined
/** A few hundred MiB, so that a backup takes long enough to be interrupted. */
export function mediumCorpus(): string {
  if (mediumDir) return join(mediumDir, 'snapshot-1')
  mediumDir = join(scratch, 'medium')
  const corpus = [join(root, 'data-gen/corpus.mts'), '--out', mediumDir, '--gib', '0.3', '--churn', '0']
  execFileSync(tsx, corpus, { env: generatorEnv })
  return join(mediumDir, 'snapshot-1')
}

/** A directory with a sample config and a runtime directory, that nothing else uses. */
export interface Sandbox {
  dir: string
  runtime: string
  sample: string
}
let sandboxes = 0
export function sandbox(sample?: string): Sandbox {
  const dir = join(scratch, `sandbox-${++sandboxes}`)
  mkdirSync(dir)
  const box = { dir, runtime: join(dir, 'runtime'), sample: join(dir, 'sample.yaml') }
  writeFileSync(box.sample, sample ?? `repositories:\n  - label: local\n    url: ${dir}/repos\n`)
  return box
}

/** Takes away what a test that has passed made: the works of rows that failed, as they are to, add up to more than a disk has. */
export function discard(box: Sandbox): void {
  // What is mounted there is somebody's failure to undo it, and keeps the directory.
  spawnSync('chmod', ['-R', 'u+rwX', box.dir])
  spawnSync('rm', ['-rf', '--one-file-system', box.dir])
}

/** A script that has ended: exit code, output, its last line and its report. */
export interface Finished {
  code: number | null
  stdout: string
  stderr: string
  last: string
  report?: RunReport
  seconds: number
}

/** Environment of a script under test: a home of its own, nothing of an outer run. */
export function cleanEnv(box: Sandbox, env: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const { VYKAR_PASSPHRASE, VYKAR_E2E_RUN, VYKAR_E2E_RUNTIME, CI, ...rest } = process.env
  const standinDir = join(box.dir, 'standin')
  // Whoever runs the tests under nohup has asked so for them, and not for what they try.
  const hangup = { VYKAR_E2E_NOHUP: '0' }
  return { ...rest, ...hangup, HOME: box.dir, VYKAR_STANDIN_DIR: standinDir, SABOTEUR_DIR: box.dir, ...env }
}

/** Starts a script in a sandbox. `ended` settles when it has ended; `child` can be signalled. */
export function start(box: Sandbox, script: string, args: string[], env: NodeJS.ProcessEnv = {}) {
  const begun = Date.now()
  const file = script.startsWith('/') ? script : join(root, 'scripts', `${script}.mts`)
  const common = ['--runtime', box.runtime, '--sample', box.sample]
  // node itself, not the tsx launcher in front of it: signals must reach the script.
  const child = spawn(
    process.execPath,
    ['--import', join(root, 'node_modules/tsx/dist/loader.mjs'), file, ...common, ...args],
    {
      env: cleanEnv(box, env),
      cwd: box.dir,
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (text) => {
    stdout += text
  })
  child.stderr.on('data', (text) => {
    stderr += text
  })
  const ended = new Promise<Finished>((settle) => {
    child.on('close', (code) => {
      // A usage error is one line on stderr, and no verdict.
      const last = ((code === 2 && stderr.trimEnd()) || stdout.trimEnd()).split('\n').at(-1) ?? ''
      settle({ code, stdout, stderr, last, report: reportIn(stdout), seconds: (Date.now() - begun) / 1000 })
    })
  })
  return { child, ended, printed: () => stdout }
}

/** The report that a script's output names. */
function reportIn(stdout: string): RunReport | undefined {
  const page = /^report (.*)$/m.exec(stdout)?.[1]
  return page && existsSync(page) ? JSON.parse(readFileSync(page.replace(/\.md$/, '.json'), 'utf8')) : undefined
}

/** Runs a script to its end. */
export const run = (box: Sandbox, script: string, args: string[], env: NodeJS.ProcessEnv = {}): Promise<Finished> =>
  start(box, script, args, env).ended

/** Processes that carry this sandbox in their environment. */
export function processesIn(box: Sandbox): string[] {
  const found = spawnSync('bash', ['-c', `grep -lz '^HOME=${box.dir}$' /proc/[0-9]*/environ 2>/dev/null`], {
    encoding: 'utf8',
  })
  return found.stdout
    .split('\n')
    .filter(Boolean)
    .map((file) => file.replace(/\/proc\/(\d+)\/environ/, '$1'))
}

/**
 * The last line of an honest run that kills vykar: what a killed 0.19.1 was writing just then may stay, which is a
 * known finding and depends on the moment.
 */
export const passes = (name: string) => new RegExp(`^PASS ${name}(?: 1 known finding: killed-write-left)?$`)
