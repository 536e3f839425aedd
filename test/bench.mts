// npm run bench [-- corpus databases stress benchmarks]: what the suite itself costs, as ratios from one run, each beside its goal. Takes about
// 40 minutes and 8 GiB of disk below $TMPDIR (databases below /var/tmp). Uses vykar from PATH, else the stand-in.
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { which } from '#lib/host.mts'
import { bytes } from '#lib/terminal.mts'
import { benchmarks } from './bench-benchmarks.mts'
import { databases } from './bench-databases.mts'
import { stress } from './bench-stress.mts'
import { root, run, type Sandbox, standin } from './helpers.mts'

const rounds = 5
const dir = mkdtempSync(join(process.env.VYKAR_E2E_TMP ?? tmpdir(), 'vykar-e2e-bench-'))
process.on('exit', () => rmSync(dir, { recursive: true, force: true }))

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!
let missed = 0
function result(what: string, value: string, goal: string, met: boolean): void {
  if (!met) missed++
  console.log(`${what.padEnd(54)} ${value.padStart(24)}   goal ${goal.padEnd(22)} ${met ? 'met' : 'MISSED'}`)
}

/** Seconds of a bash command; ends the benchmark when it fails. */
function seconds(command: string): number {
  const start = performance.now()
  const done = spawnSync('bash', ['-c', command], { encoding: 'utf8', maxBuffer: 1 << 28 })
  if (done.status !== 0) throw new Error(`${command}: exit ${done.status}: ${done.stderr}`)
  return (performance.now() - start) / 1000
}
const corpus = (out: string, ...args: string[]) =>
  `'${join(root, 'node_modules/.bin/tsx')}' '${join(root, 'data-gen/corpus.mts')}' --out '${join(dir, out)}' ${args.some((word) => word.includes('--churn')) ? '' : '--churn 0'} ${args.join(' ')}`

function box(name: string): Sandbox {
  const made = { dir: join(dir, name), runtime: join(dir, name, 'runtime'), sample: join(dir, name, 'sample.yaml') }
  mkdirSync(made.dir)
  writeFileSync(made.sample, `repositories:\n  - label: local\n    url: ${made.dir}/repos\n`)
  return made
}

function generator(): void {
  const gib = 2
  seconds(`head -c ${gib}G /dev/urandom > ${dir}/random`)
  const [ratios, rates]: [number[], string[]] = [[], []]
  // The first round is thrown away: memory that a virtual machine touches for the first time costs seconds.
  for (let i = 0; i <= rounds; i++) {
    seconds('sync')
    const copied = seconds(`dd if=${dir}/random of=${dir}/copy bs=1M conv=fsync status=none`)
    seconds(`rm ${dir}/copy; sync`)
    const made = seconds(corpus('large', '--mix large --plain --gib', String(gib)))
    seconds(`rm -r ${dir}/large; sync`)
    if (i === 0) continue
    ratios.push(copied / made)
    rates.push(`${bytes((gib * 2 ** 30) / made)}/s to ${bytes((gib * 2 ** 30) / copied)}/s`)
  }
  seconds(`rm ${dir}/random`)
  console.log(`  per round, corpus to dd: ${rates.join('; ')}`)
  result(
    'corpus.mts ÷ dd of a random file with fsync, 2 GiB',
    median(ratios).toFixed(2),
    '>= 0.8',
    median(ratios) >= 0.8,
  )
  const small = seconds(corpus('small', '--mix small --plain --gib', String((40_000 * 4096) / 2 ** 30)))
  result(
    'corpus.mts, files of 4 KiB',
    `${Math.round(40_000 / small)} files/s`,
    '>= 5000 files/s',
    40_000 / small >= 5000,
  )
}

/** Content and metadata together against diff alone, on copies that are in the page cache. */
function comparison(what: string, tree: string, goal: number): void {
  const [a, b] = [join(dir, tree, 'snapshot-1'), join(dir, 'copy')]
  seconds(`cp -a ${a} ${b} && diff -qr --no-dereference ${a} ${b}`)
  const diff = `diff -qr --no-dereference ${a} ${b}`
  const rsync = (x: string, y: string) => `rsync -naHAXi --modify-window=-1 --delete ${x}/ ${y}/`
  const ratios = Array.from({ length: rounds }, () => {
    const alone = seconds(diff)
    return (
      seconds(`${diff} & p=$!; ${rsync(a, b)} & q=$!; ${rsync(b, a)} & r=$!; wait $p && wait $q && wait $r`) / alone
    )
  })
  rmSync(b, { recursive: true, force: true })
  result(`content and metadata ÷ diff alone, ${what}`, median(ratios).toFixed(2), `<= ${goal}`, median(ratios) <= goal)
}

async function harness(): Promise<void> {
  const vykar = which('vykar') ?? standin()
  const two = await run(box('box-two'), 'backends/local', ['--vykar', vykar, '--source', join(dir, 'mixed')])
  if (two.code !== 0) throw new Error(`backends/local: ${two.last}`)
  const { seconds: wall, harness } = two.report!
  const allowed = (wall - harness.seconds) * 0.05 + 1
  const value = `${harness.seconds.toFixed(2)} s of ${wall.toFixed(1)} s`
  result(
    'harness: wall less the commands, 2 GiB',
    value,
    `<= ${allowed.toFixed(2)} s (5 % + 1 s)`,
    harness.seconds <= allowed,
  )
  const many = await run(box('box-many'), 'backends/local', ['--vykar', vykar, '--source', join(dir, 'many')])
  if (many.code !== 0) throw new Error(`backends/local: ${many.last}`)
  const { peakKiB } = many.report!.harness
  result('harness: own peak memory, 200,000 files', bytes(peakKiB * 1024), '<= 150 MiB', peakKiB <= 150 * 1024)
}

async function corpusAndHarness(): Promise<void> {
  generator()
  comparison('40,000 files of 4 KiB', 'small', 2.5)
  rmSync(join(dir, 'small'), { recursive: true })
  seconds(corpus('mixed', '--gib 2'))
  comparison('2 GiB', 'mixed', 1.5)
  seconds(corpus('many', '--mix small --plain --gib', String((200_000 * 4096) / 2 ** 30)))
  await harness()
}

const areas: Record<string, () => Promise<void>> = {
  corpus: corpusAndHarness,
  databases: () => databases({ dir, root, result, seconds, median }),
  stress: () => stress({ box, result }),
  benchmarks: () => benchmarks({ dir, box, result, seconds, corpus }),
}
const chosen = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(areas)
for (const area of chosen) {
  if (!areas[area]) throw new Error(`no area ${area}: ${Object.keys(areas).join(' or ')}`)
  await areas[area]()
}
console.log(missed ? `${missed} goals missed` : 'all goals met')
process.exit(missed ? 1 : 0)
