#!/usr/bin/env -S npx tsx
// What is kept: the awkward corpus through vykar, restic, rustic, borg and kopia, whichever are installed, each called as its documentation
// begins, as root; then a table of attributes and names by tool: kept, lost and said, lost in silence, refused.
// Passes when what vykar loses is what configs/known-gaps.yaml and known-findings.yaml say, no more and no less. It is a comparison, and no
// verdict on the others. The table: fidelity.md, .json and .html beside the report.
import { lstatSync } from 'node:fs'
import { join } from 'node:path'
import { ask, lastLine } from '#lib/ask.mts'
import { config } from '#lib/config.mts'
import { gapsOf, unexplainedWarnings } from '#lib/gaps.mts'
import { which } from '#lib/host.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, note, read, rowScope, step } from '#lib/sh.mts'
import { Mismatch, UsageError } from '#lib/verdict.mts'
import { type Place, tools } from '#scripts/benchmarks/tools.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { fresh } from '#scripts/common.mts'
import { classes } from '#scripts/fidelity/classes.mts'
import { type Fate, fateOf, writeFidelity } from '#scripts/fidelity/table.mts'
import { needRoot } from '#scripts/filesystems/device.mts'
import { finding } from '#scripts/findings.mts'

const names = ['vykar', 'restic', 'rustic', 'borg', 'kopia'] as const
const options = {
  tools: { kind: 'list', help: 'tools to compare; default those installed', choices: names },
  'corpus-mib': { kind: 'number', help: 'plain files beside the awkward ones, in MiB', default: 5, above: true },
} as const

await scenario(import.meta, { needs: standardNeeds, repos: ['local'], options }, async (run) => {
  needRoot(run, 'giving owners, devices and capabilities')
  const { tools: chosen, 'corpus-mib': mib } = run.options
  const absent = chosen.filter((name) => name !== 'vykar' && !which(name))
  if (absent.length) throw new UsageError(`named in --tools, but not installed: ${absent.join(', ')}`)
  const able = names.filter((name) => name === 'vykar' || ((!chosen.length || chosen.includes(name)) && which(name)))
  step('source')
  await $({ limit: '10m' })`e2e data-gen/corpus --out corpus --gib ${mib / 1024} --churn 0 --seed ${run.common.seed}`
  // The corpus has no name that is not UTF-8, since vykar ends with exit 3 for one.
  await $`mv corpus/snapshot-1 source && printf x > source/awkward/$'latin-\xe9' && touch source/awkward/flag`
  await $`touch -d '2001-02-03 04:05:06.789 UTC' source`
  await $`cat > classes.sh <<'EOF'
${{ raw: classes.map(({ shows }, n) => `class_${n}() { ${shows}; }`).join('\n') }}
EOF`
  const last = { raw: String(classes.length - 1) }

  const fates: Record<string, Fate>[] = classes.map(() => ({}))
  for (const tool of able)
    await run.row({ repo: 'local', variant: tool }, async () => {
      step('source')
      await $`cp -a ../source source && { chattr +d source/awkward/flag || true; }`
      await $({
        limit: '30m',
      })`mkdir before after && (. ../classes.sh && cd source && for n in {0..${last}}; do class_$n | LC_ALL=C sort > ../before/$n; done)`
      await check('! find before -type f -empty | grep .  # each class has a bearer', () => {
        for (const [n, { name, optional }] of classes.entries())
          if (!read(`before/${n}`) && !optional) throw new Mismatch(`nothing in the source has ${name}`)
      })
      let restored = 'restored'
      let code = 0
      if (tool === 'vykar') {
        step('init')
        await config`
sources:
  - path: source
    label: fidelity
`
        await fresh('local')
        step('backup')
        const backup = await $({
          limit: '1h',
          expect: [0, 3],
        })`vykar --config config.yaml backup -R local > backup.out 2>&1`
        await $`sed -n 's/^Snapshot created: //p' backup.out | grep . > snapshot.id`
        await $`find source -name 'latin-*' -type f | wc -l > latin.count`
        code = backup.code
        await check('# with exit 3 it warns of names that are not UTF-8 alone, and counts them', () => {
          const own = /latin-|^\d+ file\(s\) could not be read|\bErrors: [1-9]/
          const said = unexplainedWarnings(read('backup.out'), run.plan.vykar.version, read('config.yaml'))
          const other = said.find((line) => !own.test(line))
          if (other) throw new Mismatch(`vykar exited ${code} and warned: ${other}`)
          const errors = /\bErrors: (\d+)/.exec(read('backup.out'))?.[1] ?? '0'
          if (errors !== (code === 3 ? read('latin.count') : '0')) throw new Mismatch(`${errors} errors, exit ${code}, of ${read('latin.count')} names that are not UTF-8`) // biome-ignore format: one line
        })
        step('restore')
        await $({
          limit: '1h',
        })`mv source away && mkdir lost restored && HOME=$PWD/lost vykar --config lost.yaml restore -R local $(<snapshot.id) restored > restore.out 2>&1`
      } else {
        const { env, commands, restored: inside, version } = tools[tool]!
        const place: Place = { program: tool, name: 'own', backend: { kind: 'local' }, compression: 'zstd' }
        if (!run.dry) {
          const asked = await ask([which(tool)!, ...version])
          run.report.versions[tool] = /\d+(\.\d+)+\S*/.exec(`${asked.stdout}${asked.stderr}`)?.[0] ?? 'unknown'
        }
        step('init')
        await $`mkdir -p own/restored repositories && cat > own/env.sh <<'EOF'
${{
  raw: Object.entries(env(place))
    .map(([key, value]) => `export ${key}=${value}`)
    .join('\n'),
}}
EOF`
        await $({ limit: '1h', expect: 'any' })`(. own/env.sh; ${{ raw: commands(place).init }}) > init.out 2>&1`
        step('backup')
        const words = commands(place)
        const backup = await $({
          limit: '1h',
          expect: 'any',
        })`(. own/env.sh; ${{ raw: words['first backup'] }}) > backup.out 2>&1`
        step('restore')
        await $`mv source away`
        const back = await $({
          limit: '1h',
          expect: 'any',
        })`(. own/env.sh; ${{ raw: words.restore }}) > restore.out 2>&1`
        fact('exit codes', `backup ${backup.code}, restore ${back.code}`)
        restored = inside(place)
        const there = await $({ expect: 'any' })`test -n "$(ls -A ${{ raw: restored }})"`
        if (there.code && !run.dry)
          return note(`${tool} restored nothing, so its column is empty: ${lastOf('backup.out')}`)
      }
      step('compare')
      await $({
        limit: '30m',
      })`(. ../classes.sh && out=$PWD/after && cd ${{ raw: restored }} && for n in {0..${last}}; do class_$n | LC_ALL=C sort > $out/$n; done)`
      const must = classes.flatMap(({ known }, n) => (known ? [] : [n])).join(' ')
      const hand =
        tool === 'vykar'
          ? `for n in ${must}; do diff before/$n after/$n; done  # what vykar is known to keep`
          : '! diff -rq before after  # what this one has lost'
      await check(hand, () => {
        const top = join(rowScope().dir, restored.replace('"$PWD"', rowScope().dir))
        const lines = (file: string) => read(file).split('\n').filter(Boolean)
        const said = `${read('backup.out')}\n${read('restore.out')}`
        const there = (path: string) => lstatSync(join(top, path), { throwIfNoEntry: false }) !== undefined
        for (const n of classes.keys()) fates[n]![tool] = fateOf(lines(`before/${n}`), lines(`after/${n}`), said, there)
        const kept = fates.filter((fate) => fate[tool]?.word === 'kept').length
        fact('kept', `${kept} of ${classes.length} classes`)
        if (tool === 'vykar') agrees(fates, code)
      })
    })
  if (run.dry) return
  const versions: Record<string, string> = { ...run.report.versions, vykar: run.plan.vykar.version }
  const page = writeFidelity(run.dirs.reports, {
    schema: 'vykar-e2e/fidelity/1',
    started: run.report.started,
    versions: Object.fromEntries(able.map((tool) => [tool, versions[tool]!])),
    classes: classes.map(({ name }, n) => ({ name, fates: fates[n]! })),
  })
  note(`table: ${page}`)
})

/** The last line that a command printed. */
const lastOf = (file: string) => lastLine(read(file)) || lastLine(read('init.out'))

/**
 * What vykar loses is on record as a gap or a finding, in that way, and what is on record is lost.
 * @param code how the backup ended: 3 where a name was skipped
 * @throws Mismatch where it is not so
 */
function agrees(fates: Record<string, Fate>[], code: number): void {
  const { run, report } = rowScope()
  const gaps = gapsOf(run.plan.vykar.version)
  const odd: string[] = []
  for (const [n, { name, known: [id, like, becomes] = [] }] of classes.entries()) {
    const { word, lost, example = '', became = [] } = fates[n]!.vykar!
    if (word === 'not here') continue
    const gap = gaps.find((one) => one.id === id)
    const seen = word !== 'kept'
    if (gap && !report.gaps.some((had) => had.id === id))
      report.gaps.push({ id: gap.id, state: seen ? 'seen' : 'fixed', count: lost, why: gap.why })
    else if (!gap && id) finding(id, seen ? `${name}: ${word}` : undefined)
    // Of each of its bearers.
    const other = becomes && became.find((one) => !becomes.test(one))
    if (seen && (word !== like || other)) odd.push(`${name}: ${word}: ${other ?? example}`)
    if (id === 'names-not-utf8-skipped' && (code === 3) !== seen)
      odd.push(`backup exits ${code}, and ${name} are ${word}`)
    if (gap && !seen && run.common['strict-gaps'])
      odd.push(`${name} is kept: remove ${gap.id} from configs/known-gaps.yaml`)
  }
  if (odd.length) throw new Mismatch(`vykar, and no known gap says so: ${odd.join('; ')}`)
}
