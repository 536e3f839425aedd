// npm run demo: one honest backup and restore, then three lying vykars, each caught. Uses vykar from PATH, else the
// stand-in. Passes when the honest run held and every lie was caught.
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { vykarInstall, which } from '#lib/host.mts'
import { lock } from '#lib/lock.mts'
import type { RunReport } from '#lib/report.mts'
import { root, standin } from './helpers.mts'

const lies = {
  'restore-drops-file': 'restore leaves one file out',
  'restore-flips-byte': 'restore flips one bit in the largest file and keeps its date',
  'check-counts-errors': 'check prints 3 errors and exits 0',
} as const

const started = Date.now()
const loader = ['--import', join(root, 'node_modules/tsx/dist/loader.mjs')]
const say = (text = '') => console.log(text)

// What is missing is installed by the script that every machine is set up with.
const setup = spawnSync(process.execPath, [...loader, join(root, 'scripts/setup.mts'), 'local', '--packages-only'], {
  stdio: 'inherit',
})
if (setup.status !== 0) {
  say(`${setup.status === 77 ? 'SKIPPED' : 'FAIL'} demo: the programs named above are missing`)
  process.exit(setup.status ?? 1)
}

const vykar = which('vykar')
const dir = join(homedir(), 'runtime', 'demo')
await lock(dir, 'the demo')
// What the last demo left to look at makes room for this one.
rmSync(dir, { recursive: true, force: true })
mkdirSync(dir, { recursive: true })
// The corpus must not lie inside the runtime directory of the scenario, so both get a place of their own here.
const [corpus, results] = [join(dir, 'corpus'), join(dir, 'results')]
const sample = join(dir, 'sample.yaml')
writeFileSync(sample, `repositories:\n  - label: local\n    url: ${dir}/repository\n`)

/** Runs a script and shows its lines, indented. Returns exit code, last line and report. */
function show(file: string, args: string[], filter = (line: string) => line.startsWith('  ')) {
  const child = spawn(process.execPath, [...loader, join(root, file), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let text = ''
  let open = ''
  child.stdout.on('data', (piece) => {
    text += piece
    const lines = (open + piece).split('\n')
    open = lines.pop() ?? ''
    for (const line of lines.filter(filter)) say(`  ${line}`)
  })
  return new Promise<{ code: number | null; last: string; report?: RunReport; page: string }>((done) =>
    child.on('close', (code) => {
      const page = /^report (.*)$/m.exec(text)?.[1] ?? ''
      const report = page ? (JSON.parse(readFileSync(page.replace(/md$/, 'json'), 'utf8')) as RunReport) : undefined
      done({ code, last: text.trimEnd().split('\n').at(-1) ?? '', report, page })
    }),
  )
}

const common = ['--vykar', vykar ?? standin(), '--sample', sample, '--runtime', results, '--source', corpus]
say(vykar ? `vykar: ${vykar}` : 'vykar is not on PATH: its stand-in plays it, and this says nothing about vykar')
say('\n1. A corpus of 64 MiB with awkward names, links, modes, holes, attributes')
const made = await show('data-gen/corpus.mts', ['--out', corpus, '--gib', '0.0625'], (line) =>
  /^(files|seconds)=/.test(line),
)
say('\n2. An honest backup and restore: scripts/backends/local.mts')
const honest = made.code === 0 ? await show('scripts/backends/local.mts', common) : made
const gaps = honest.report?.rows[0]?.gaps ?? []
if (honest.code === 0) {
  const count = spawnSync('bash', ['-c', `find '${corpus}' | wc -l`], { encoding: 'utf8' }).stdout.trim()
  say(`  compared ${count} names: content equal (diff), metadata equal (rsync, both directions)`)
  for (const gap of gaps)
    say(`  known gap ${gap.id}: ${gap.why} (${gap.count} difference${gap.count === 1 ? '' : 's'})`)
} else say(`  ${honest.last}`)

say('\n3. The same with three vykars that lie')
let caught = 0
for (const [lie, what] of Object.entries(lies)) {
  const begun = Date.now()
  const lying = await show('scripts/backends/local.mts', [...common, '--sabotage', lie, '--quiet'], () => false)
  const step = lying.report?.rows[0]?.steps.find((s) => s.verdict === 'FAIL')
  const good = lying.code === 1 && step !== undefined
  if (good) caught++
  say(`  ${good ? 'caught' : 'MISSED'}  ${what}  (${((Date.now() - begun) / 1000).toFixed(1)} s)`)
  say(`          by step "${step?.name}": ${step?.reason?.replaceAll(dir, '…').slice(0, 160) ?? lying.last}`)
}

const held = honest.code === 0 && caught === Object.keys(lies).length
const report = honest.page
say(`\nreport   ${report}\nby hand  ${honest.report?.transcript ?? 'none'}`)
say('next     npx tsx scripts/backends/local.mts          the same on a corpus of 1 GiB, kept in ~/corpus-local')
say('         npx tsx scripts/backends/local.mts --help   its options; ./e2e lists all scripts')
// What the lying vykars left is of no use; the corpus stays, so that commands.sh can be run.
for (const left of ['repository', 'results/work']) rmSync(join(dir, left), { recursive: true, force: true })
const seconds = Math.round((Date.now() - started) / 1000)
const words = `an honest run ${honest.code === 0 ? 'held' : 'FAILED'}, ${caught} of ${Object.keys(lies).length} lies were caught, ${seconds} s`
say(
  `${!held ? 'FAIL' : vykar ? 'PASS' : 'DEMO'} demo: ${words}${vykar ? '' : `; with the stand-in. Install vykar: ${vykarInstall}`}`,
)
process.exit(held ? 0 : 1)
