#!/usr/bin/env -S npx tsx
// Hooks: `before`, `after`, `failed`, `finally` and command_dumps in the documented order, and those that fail, die by a signal, fail late,
// print much or nothing, or leave a child behind.
// Passes when each runs when the documentation says so and the exit code tells what failed; no dump that failed becomes a snapshot; a
// source whose own dumps are well is complete; everything ends; and every acknowledged snapshot is still restored to what it was.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, type Output, read, step } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { contents, fresh, serverWants } from '#scripts/common.mts'
import { conclude, faultOptions, roundsOf, rowsWith, within } from '#scripts/faults/common.mts'
import { allThere, at, clearOthers, lastOf, restoredAs, violated, witness } from '#scripts/faults/oracle.mts'
import { parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'

const kinds = ['before', 'after', 'failed', 'finally'] as const
/** In which order hooks of the levels run: the documentation's "Execution order". */
const inward = ['global', 'repo', 'global_CMD', 'repo_CMD']
const outward = ['repo_CMD', 'global_CMD', 'repo', 'global']

/** The config without its sources, to which others are added. */
const withoutSources = "sed '/^sources:/,/^[a-z]/{/^sources:/d; /^ /d}'"

const options = {
  round: faultOptions.round,
  long: { kind: 'flag', help: 'hooks that hang, too: vykar ends a hook after 5 minutes' },
} as const
const spec = { needs: standardNeeds, wants: serverWants, repos: ['local'], options } as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { round: only } = run.options
  await servers()
  for (const repo of run.repos) {
    const here = at(repo, `"$REPO_${repo.toUpperCase()}"`)

    /** A repository with one acknowledged snapshot, and a source for the rounds. */
    const begin = async () => {
      step('acknowledged')
      await $`mkdir source other && head -c 200K /dev/urandom > source/file && echo other > other/file`
      await config`
sources:
  - path: source
    label: ack
`
      await fresh(repo)
      await witness('source', 'ack-1')
      await $`vykar --config config.yaml backup -R ${repo} > ack-1.out && sed -n 's/^Snapshot created: //p' ack-1.out > ack-1.id`
    }
    const { chosen, tried } = roundsOf(only)
    /** Runs a command with case.yaml; what it printed is in met.out. */
    const meet = async (words: string, limit = 120): Promise<Output> => {
      const met = await $({
        limit: '20m',
        expect: 'any',
      })`timeout -k 5 ${within(limit)} vykar --config case.yaml ${{ raw: words }} > met.out 2>&1`
      if (met.code === 124 || met.code === 137)
        violated('7: everything ends', tried.at(-1)!, `did not end within ${limit} s`, `vykar ${words}`)
      return met
    }
    /** Labels of the snapshots that `list` shows beside the acknowledged one. */
    const labels = async (): Promise<string[]> => {
      await $`vykar --config config.yaml list -R ${repo} > met.list`
      if (run.dry) return []
      return parseList(read('met.list')).map(({ label }) => label).filter((label) => label !== 'ack').sort() // biome-ignore format: one line
    }
    /** Exit code and snapshots that a round must lead to; those that it made go again. */
    const expects = async (name: string, { code }: Output, right: 'work' | 'fail', wanted: string[]) => {
      const made = await labels()
      await check(
        `# ${name}: ${right === 'work' ? 'exit 0' : 'an exit code'}, snapshots: ${wanted.join(', ') || 'none'}`,
        () => {
          fact(name, `exit ${code}${code ? `: ${lastOf('met.out').slice(0, 100)}` : ''}`)
          if ((code === 0) !== (right === 'work'))
            violated('the exit code tells what failed', name, `exit ${code}: ${lastOf('met.out')}`, 'vykar backup')
          if (made.join() !== wanted.join())
            violated(
              '2: absent or complete',
              name,
              `list shows ${made.join(', ') || 'no snapshot'} instead of ${wanted.join(', ') || 'none'}`,
              'vykar backup',
            )
        },
      )
    }
    /** The snapshot that a backup beside an odd hook has made holds the whole source. */
    const whole = async (name: string) => {
      await $`sed -nE 's/^ *([0-9a-f]{8}) .* hooked .*/\1/p' met.list > hooked.id && cp ack-1.sha256 hooked.sha256 && cp ack-1.tree hooked.tree`
      const how = read('hooked.id') || run.dry ? await restoredAs(repo, 'hooked', here) : 'refused'
      if (how !== 'right')
        violated('2: exit 0 means complete', name, `the snapshot is ${how} when it is restored`, 'vykar backup')
    }
    const clear = () => clearOthers(repo, ['ack-1'])

    await row({ repo, variant: 'order' }, async () => {
      await begin()
      // Every hook of every level writes its name down; FAIL-name makes the one of that name fail.
      await $`cat > hook.sh <<'EOF'
echo "$1" >> hooks.log
test ! -e "FAIL-$1"
EOF`
      const level = (name: string, commands: string[], indent: string) =>
        [...kinds.map((kind) => `${indent}${kind}: bash hook.sh ${name}-${kind}`), ...kinds.flatMap((kind) => commands.map((command) => `${indent}${kind}_${command}: bash hook.sh ${name}_${command}-${kind}`))].join('\n') // biome-ignore format: two lists
      await $`{ sed 's|label: ack|label: hooked|' config.yaml; echo hooks:; cat <<'EOF'
${{ raw: level('global', ['backup', 'check'], '  ') }}
EOF
} > case.yaml`
      await $`sed -i 's|^\( *\)\(- \)\?label: ${{ raw: repo }}$|&\n    hooks:\n${{ raw: level('repo', ['backup', 'check'], '      ').replaceAll('\n', '\\n') }}|; s|^\( *\)label: hooked$|&\n    hooks:\n${{ raw: kinds.map((kind) => `      ${kind}: bash hook.sh source-${kind}`).join('\\n') }}|' case.yaml`
      const of = (order: string[], kind: string, command: string) =>
        order.map((name) => `${name.replace('CMD', command)}-${kind}`)
      const ran = async (name: string, wanted: string[]) => {
        await check(`# ${name}: the documented order`, () => {
          const log = read('hooks.log').split('\n')
          // Where a source's own hooks stand among the others is not documented: only that they run, and in which order.
          const [own, outer] = [
            log.filter((word) => word.startsWith('source-')),
            log.filter((word) => !word.startsWith('source-')),
          ]
          const [ownWanted, outerWanted] = [
            wanted.filter((word) => word.startsWith('source-')),
            wanted.filter((word) => !word.startsWith('source-')),
          ]
          for (const [seen, right] of [[own, ownWanted], [outer, outerWanted]] as const) // biome-ignore format: a table
            if (seen.join(' ') !== right.join(' '))
              violated(
                'hooks run in the documented order',
                name,
                `ran ${seen.join(', ') || 'none'} instead of ${right.join(', ') || 'none'}`,
                'vykar backup',
              )
        })
      }
      const ends = (kind: string, command: string) => [
        ...of(outward, kind, command),
        ...of(outward, 'finally', command),
      ]

      if (chosen('a backup that works')) {
        await $`rm -f hooks.log FAIL-*`
        await expects('a backup that works', await meet(`backup -R ${repo}`), 'work', ['hooked'])
        await ran('a backup that works', [
          ...of(inward, 'before', 'backup'),
          'source-before',
          'source-after',
          'source-finally',
          ...ends('after', 'backup'),
        ])
        await clear()
      }
      if (chosen('the before of a source fails')) {
        await $`rm -f hooks.log && touch FAIL-source-before`
        await expects('the before of a source fails', await meet(`backup -R ${repo}`), 'fail', [])
        await ran('the before of a source fails', [
          ...of(inward, 'before', 'backup'),
          'source-before',
          'source-failed',
          'source-finally',
          ...ends('failed', 'backup'),
        ])
      }
      if (chosen('the before of the repository fails')) {
        await $`rm -f hooks.log FAIL-* && touch FAIL-repo-before`
        await expects('the before of the repository fails', await meet(`backup -R ${repo}`), 'fail', [])
        await ran('the before of the repository fails', ['global-before', 'repo-before', ...ends('failed', 'backup')])
      }
      for (const kind of ['after', 'finally'])
        if (chosen(`${kind} fails everywhere`)) {
          await $`rm -f hooks.log FAIL-* && touch FAIL-global-${kind} FAIL-repo-${kind} FAIL-source-${kind}`
          await expects(`${kind} fails everywhere`, await meet(`backup -R ${repo}`), 'work', ['hooked'])
          await whole(`${kind} fails everywhere`)
          await $({ expect: 'any' })`grep -c 'WARN Hook warning' met.out > said`
          if (read('said') === '0')
            violated(
              'what fails is said',
              `${kind} fails everywhere`,
              'a hook failed and not a word was said',
              'vykar backup',
            )
          await clear()
        }
      if (chosen('check')) {
        await $`rm -f hooks.log FAIL-*`
        const met = await meet(`check -R ${repo}`)
        if (met.code)
          violated('the exit code tells what failed', 'check', `exit ${met.code}: ${lastOf('met.out')}`, 'vykar check')
        await ran('check', [...of(inward, 'before', 'check'), ...ends('after', 'check')])
      }
      if (chosen('list runs none')) {
        await $`rm -f hooks.log && touch hooks.log`
        await meet(`list -R ${repo}`)
        await ran('list runs none', [])
      }
      await allThere(repo, ['ack-1'], 'all', here)
      await conclude(tried.length, tried.length)
    })

    tried.length = 0
    await row({ repo, variant: 'failing' }, async () => {
      await begin()
      const cases: [name: string, hook: string, script: string, right: 'work' | 'fail'][] = [
        ['before exits 1', 'before', 'exit 1', 'fail'],
        ['before exits 137', 'before', 'exit 137', 'fail'],
        ['before dies by KILL', 'before', 'kill -9 $$', 'fail'],
        ['before is missing', 'before', 'exec ./no-such-program', 'fail'],
        ['before prints 300 MB', 'before', "head -c 300M /dev/zero | tr '\\0' x", 'work'],
        ['before leaves a child', 'before', 'sleep 45 & echo $! > child.pid', 'work'],
        ['before reads its input', 'before', 'cat > read.in', 'work'],
        ['finally dies by KILL', 'finally', 'kill -9 $$', 'work'],
        ['after exits 1', 'after', 'exit 1', 'work'],
      ]
      if (run.options.long) cases.push(['before hangs', 'before', 'sleep 900', 'fail'])
      for (const [name, hook, script, right] of cases) {
        if (!chosen(name)) continue
        await $`printf '%s\n' ${script} > odd.sh && { sed 's|label: ack|label: hooked|' config.yaml; printf 'hooks:\n  %s: bash odd.sh\n' ${hook}; } > case.yaml`
        const met = await meet(`backup -R ${repo}`, name === 'before hangs' ? 400 : 30)
        await expects(name, met, right, right === 'work' ? ['hooked'] : [])
        if (right === 'work') await whole(name)
        if (met.cost.peakKiB) fact(`${name}: memory`, `${Math.round(met.cost.peakKiB / 1024)} MiB`)
        await $`test ! -e child.pid || kill $(<child.pid) 2> /dev/null || true; rm -f child.pid`
        await clear()
      }
      await allThere(repo, ['ack-1'], 'all', here)
      await conclude(tried.length, tried.length)
    })

    tried.length = 0
    await row({ repo, variant: 'dumps' }, async () => {
      await begin()
      await $`head -c 24M /dev/urandom > data && head -c 300M /dev/zero | tr '\0' d > much && : > nothing`
      const cases: [name: string, dump: string, right: 'work' | 'fail', size?: string][] = [
        ['dump that works', 'cat data', 'work', 'data'],
        ['dump exits 1 at once', 'exit 1', 'fail'],
        ['dump exits 1 after 8 MB', 'head -c 8M data; exit 1', 'fail'],
        ['dump exits 1 after all of it', 'cat data; exit 1', 'fail'],
        ['dump exits 137', 'head -c 8M data; exit 137', 'fail'],
        ['dump dies by KILL', 'head -c 8M data; kill -9 $$', 'fail'],
        ['dump dies by TERM', 'head -c 8M data; kill $$', 'fail'],
        ['dump is missing', './no-such-program', 'fail'],
        ['dump of 300 MB', 'cat much', 'work', 'much'],
        ['dump that writes nothing', 'true', 'work', 'nothing'],
        ['dump whose child lives on', 'cat data; sleep 20 > /dev/null 2>&1 & echo $! > child.pid', 'work', 'data'],
        ['dump that prints errors', 'cat data; head -c 20M /dev/zero | tr "\\0" e >&2', 'work', 'data'],
      ]
      for (const [name, dump, right, is] of cases) {
        if (!chosen(name)) continue
        await $`printf '%s\n' ${dump} > dump.sh && { ${{ raw: withoutSources }} config.yaml; printf 'sources:\n  - label: dumped\n    command_dumps:\n      - {name: dump, command: bash dump.sh}\n      - {name: second, command: echo second}\n'; } > case.yaml`
        const met = await meet(`backup -R ${repo}`)
        await expects(name, met, right, right === 'work' ? ['dumped'] : [])
        if (met.cost.peakKiB) fact(`${name}: memory`, `${Math.round(met.cost.peakKiB / 1024)} MiB`)
        if (is && met.code === 0) {
          await $`sed -n 's/^Snapshot created: //p' met.out > dumped.id && rm -rf dumps && mkdir -p dumps/vykar-dumps && cp ${is} dumps/vykar-dumps/dump && echo second > dumps/vykar-dumps/second`
          await contents('dumps', 'dumped')
          if ((await restoredAs(repo, 'dumped', here)) !== 'right')
            violated(
              '2: exit 0 means complete',
              name,
              'exit 0, but the dump in the snapshot is another',
              'vykar backup; vykar restore',
            )
        }
        if (name === 'dump that works' && met.code === 0) {
          await $`rm -rf tree && mkdir tree && (umask 077; vykar --config config.yaml restore -R ${repo} $(<dumped.id) tree > restore.out) && find tree -mindepth 1 -perm /077 -printf '%m %P\n' > open.list`
          const [first] = read('open.list').split('\n')
          if (first)
            violated(
              'what is private stays private',
              name,
              `restored with umask 077 a dump has mode ${first}`,
              'umask 077; vykar restore',
              'restored-dump-readable',
            )
        }
        await $`test ! -e child.pid || kill $(<child.pid) 2> /dev/null || true; rm -f child.pid`
        if (is === 'nothing' && !/WARN .*empty output/.test(read('met.out')))
          violated('what is odd is said', name, 'a dump of no byte, and not a word of it', 'vykar backup')
        await clear()
      }
      if (chosen('one of two sources fails')) {
        await $`{ ${{ raw: withoutSources }} config.yaml; cat <<'EOF'
sources:
  - label: bad
    path: other
    command_dumps:
      - {name: dump, command: head -c 8M data; exit 1}
  - label: good
    path: source
    command_dumps:
      - {name: dump, command: cat data}
EOF
} > case.yaml`
        const met = await meet(`backup -R ${repo}`)
        const made = await labels()
        fact('one of two sources fails', `exit ${met.code}, snapshots: ${made.join(', ') || 'none'}`)
        if (met.code === 0)
          violated(
            'the exit code tells what failed',
            'one of two sources fails',
            'exit 0 although a dump failed',
            'vykar backup',
          )
        if (made.includes('bad'))
          violated(
            '2: absent or complete',
            'one of two sources fails',
            'there is a snapshot of the source whose dump failed',
            'vykar backup',
          )
        if (made.includes('good')) {
          await $`vykar --config config.yaml list -R ${repo} | sed -nE 's/^ *([0-9a-f]{8}) .* good .*/\1/p' | head -n 1 > good.id && rm -rf dumps && mkdir -p dumps/vykar-dumps && cp data dumps/vykar-dumps/dump && cp source/file dumps/`
          await contents('dumps', 'good')
          if ((await restoredAs(repo, 'good', here)) !== 'right')
            violated(
              '2: absent or complete',
              'one of two sources fails',
              'the snapshot of the other source is not complete',
              'vykar restore',
            )
        }
        await clear()
      }
      await allThere(repo, ['ack-1'], 'all', here)
      await $`rm -rf data much dumps tree source other`
      await conclude(tried.length, tried.length)
    })
    tried.length = 0
  }
})
