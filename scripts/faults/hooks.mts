#!/usr/bin/env -S npx tsx
// Hooks: `before`, `after`, `failed`, `finally` and command_dumps in the documented order, and those that fail, die by a signal, fail late,
// print much or nothing, or leave a child behind.
// Passes when each runs when the documentation says so and the exit code tells what failed; no dump that failed becomes a snapshot; a
// source whose own dumps are well is complete; everything ends; and every acknowledged snapshot is still restored to what it was.
import { config } from '#lib/config.mts'
import { scenario } from '#lib/scenario.mts'
import { $, check, fact, type Output, read, step } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { fresh, serverWants } from '#scripts/common.mts'
import { conclude, faultOptions, roundsOf, rowsWith, stillShown, within } from '#scripts/faults/common.mts'
import { at, clearOthers, inTheEnd, lastOf, restoredAs, violated } from '#scripts/faults/oracle.mts'
import { parseList } from '#scripts/printed.mts'
import { servers } from '#scripts/servers.mts'
import { contents, witnessed } from '#scripts/witnessed.mts'

/** Commands that have hooks of their own. */
const hooked = ['backup', 'check', 'prune', 'compact']
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
      await witnessed('source', 'ack-1')
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
        violated('7: everything ends', `did not end within ${limit} s`, `vykar ${words}`)
      else if (met.code > 3) violated('7: ends well', `exit ${met.code}: ${lastOf('met.out')}`, `vykar ${words}`)
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
            violated('the exit code tells what failed', `exit ${code}: ${lastOf('met.out')}`, 'vykar backup')
          if (made.join() !== wanted.join())
            violated(
              '2: absent or complete',
              `list shows ${made.join(', ') || 'no snapshot'} instead of ${wanted.join(', ') || 'none'}`,
              'vykar backup',
            )
        },
      )
    }
    /** The snapshot that a backup beside an odd hook has made holds the whole source. */
    const whole = async () => {
      await $`sed -nE 's/^ *([0-9a-f]{8}) .* hooked .*/\1/p' met.list > hooked.id && cp ack-1.sha256 hooked.sha256 && cp ack-1.tree hooked.tree`
      const how = read('hooked.id') || run.dry ? await restoredAs(repo, 'hooked', here) : 'refused'
      if (how !== 'right')
        violated('2: exit 0 means complete', `the snapshot is ${how} when it is restored`, 'vykar backup')
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
${{ raw: level('global', hooked, '  ') }}
retention: {keep_last: 9}
EOF
} > case.yaml`
      await $`sed -i 's|^\( *\)\(- \)\?label: ${{ raw: repo }}$|&\n    hooks:\n${{ raw: level('repo', hooked, '      ').replaceAll('\n', '\\n') }}|; s|^\( *\)label: hooked$|&\n    hooks:\n${{ raw: kinds.map((kind) => `      ${kind}: bash hook.sh source-${kind}`).join('\\n') }}|' case.yaml`
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
        await $`rm -f FAIL-* && : > hooks.log`
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
        await $`: > hooks.log && touch FAIL-source-before`
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
        await $`rm -f FAIL-* && : > hooks.log && touch FAIL-repo-before`
        await expects('the before of the repository fails', await meet(`backup -R ${repo}`), 'fail', [])
        await ran('the before of the repository fails', ['global-before', 'repo-before', ...ends('failed', 'backup')])
      }
      for (const kind of ['after', 'finally'])
        if (chosen(`${kind} fails everywhere`)) {
          await $`rm -f FAIL-* && : > hooks.log && touch FAIL-global-${kind} FAIL-repo-${kind} FAIL-source-${kind}`
          await expects(`${kind} fails everywhere`, await meet(`backup -R ${repo}`), 'work', ['hooked'])
          await whole()
          await $({ expect: 'any' })`grep -c 'WARN Hook warning' met.out > said`
          if (read('said') === '0')
            violated('what fails is said', 'a hook failed and not a word was said', 'vykar backup')
          await clear()
        }
      for (const command of hooked.slice(1)) {
        if (!chosen(command)) continue
        await $`rm -f FAIL-* && : > hooks.log`
        const met = await meet(`${command} -R ${repo}`)
        if (met.code)
          violated('the exit code tells what failed', `exit ${met.code}: ${lastOf('met.out')}`, `vykar ${command}`) // biome-ignore format: one line
        await ran(command, [...of(inward, 'before', command), ...ends('after', command)])
      }
      for (const command of hooked.slice(1)) {
        const name = `the before of ${command} fails`
        if (!chosen(name)) continue
        await $`rm -f FAIL-* && : > hooks.log && touch FAIL-repo-before`
        const met = await meet(`${command} -R ${repo}`)
        fact(name, `exit ${met.code}: ${lastOf('met.out').slice(0, 100)}`)
        if (!met.code && !run.dry)
          violated('the exit code tells what failed', `exit 0: ${lastOf('met.out')}`, `vykar ${command}`)
        await check('# it has not been done', () => {
          if (/complete|^Pruned/m.test(read('met.out')))
            violated('what `before` forbids is not done', lastOf('met.out'), `vykar ${command}`)
        })
        await ran(name, ['global-before', 'repo-before', ...ends('failed', command)])
      }
      await $`rm -f FAIL-*`
      if (chosen('two sources')) {
        await $`rm -f FAIL-* && : > hooks.log && { ${{ raw: withoutSources }} config.yaml; echo sources:; for name in one two; do printf '  - {path: source, label: %s, hooks: {before: bash hook.sh source-%s-before, after: bash hook.sh source-%s-after, finally: bash hook.sh source-%s-finally}}\n' $name $name $name $name; done; } > two.yaml && cp case.yaml case.kept && mv two.yaml case.yaml`
        await expects('two sources', await meet(`backup -R ${repo}`), 'work', ['one', 'two'])
        // One after the other: what a source stops is down for its own backup alone.
        await ran('two sources', ['one', 'two'].flatMap((name) => ['before', 'after', 'finally'].map((kind) => `source-${name}-${kind}`))) // biome-ignore format: one line
        await $`mv case.kept case.yaml`
        await clear()
      }
      if (chosen('list runs none')) {
        await $`rm -f hooks.log && touch hooks.log`
        await meet(`list -R ${repo}`)
        await ran('list runs none', [])
      }
      await inTheEnd(repo, ['ack-1'])
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
        if (right === 'work') await whole()
        if (met.cost.peakKiB) fact(`${name}: memory`, `${Math.round(met.cost.peakKiB / 1024)} MiB`)
        await $`test ! -e child.pid || kill $(<child.pid) 2> /dev/null || true; rm -f child.pid`
        await clear()
      }
      await inTheEnd(repo, ['ack-1'])
      await conclude(tried.length, tried.length)
    })

    tried.length = 0
    await row({ repo, variant: 'values' }, async () => {
      await begin()
      const told = 'what a hook is told'
      if (chosen(told)) {
        await $`{ sed 's|label: ack|label: hooked|' config.yaml; printf 'hooks:\n  before: "env | grep ^VYKAR_ > before.env"\n  failed: "env | grep ^VYKAR_ > failed.env; echo {error} > failed.said"\n'; } > case.yaml && sed -i 's@^\( *\)label: hooked$@&\n    hooks: {after: "env | grep ^VYKAR_ > source.env; echo {command} {source_label} {source_path} > source.said"}@' case.yaml`
        await expects(told, await meet(`backup -R ${repo}`), 'work', ['hooked'])
        await $`grep -qx VYKAR_COMMAND=backup before.env && grep -q '^VYKAR_REPOSITORY=.' before.env && grep -qx VYKAR_LABEL=${repo} before.env && grep -qx VYKAR_SOURCE_LABEL=hooked source.env && grep -qx VYKAR_SOURCE_PATH=source source.env && grep -qx 'backup hooked source' source.said`
        await $`sed -i 's|path: source|path: nowhere|' case.yaml`
        await expects(told, await meet(`backup -R ${repo}`), 'fail', ['hooked'])
        await $`grep -q '^VYKAR_ERROR=..' failed.env && grep -q nowhere failed.said`
        await clear()
      }
      const injected = 'an error that holds a command'
      if (chosen(injected)) {
        // A path that is too long to be opened is in the error, and so is what somebody else has called a directory in it.
        await $`mkdir -p 'injected/$(touch owned)' && (cd 'injected/$(touch owned)' && for n in $(seq 21); do mkdir dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd && cd d*; done && echo deep > file)`
        await $`{ sed 's|path: source|path: injected|; s|label: ack|label: hooked|' config.yaml; cat <<'EOF'
hooks:
  failed: 'echo "vykar {command} failed: {error}" >> failed.log'
EOF
} > case.yaml && rm -f owned`
        const met = await meet(`backup -R ${repo}`)
        await $`test -e owned && echo yes > owned.is || echo no > owned.is; cat failed.log > failed.is 2> /dev/null || true`
        await check('# a name in the source is no command', () => {
          fact(injected, `exit ${met.code}`)
          if (met.code && read('failed.is') && read('owned.is') === 'yes')
            violated('a value is no command', 'a directory named $(touch owned) in the source has run touch, through a hook as the documentation has it', 'vykar backup', 'hook-values-executed') // biome-ignore format: one line
        })
        await $`rm -rf injected owned`
        await clear()
      }
      const secret = 'the passphrase'
      if (chosen(secret)) {
        await $`head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' > pass && printf 'hostname: vykar-e2e\ncache_dir: cache-secret\nrepositories: [{label: r, url: ./secret}]\nencryption: {mode: auto, passphrase: %s}\nsources: [{label: hooked, command_dumps: [{name: env, command: "env | grep VYKAR_ || echo none"}], hooks: {before: "env | grep VYKAR_ > hook.env"}}]\n' "$(<pass)" > case.yaml`
        await $({
          warns: /^using plaintext encryption\.passphrase/,
        })`env -u VYKAR_PASSPHRASE vykar --config case.yaml init > init.out 2>&1 && VYKAR_PASSPHRASE=$(<pass) vykar --config case.yaml backup > met.out 2>&1 && rm -rf tree && mkdir tree && env -u VYKAR_PASSPHRASE vykar --config case.yaml restore latest tree > restore.out`
        await $`test -s hook.env && test -s tree/vykar-dumps/env && { grep -lF -f pass hook.env tree/vykar-dumps/env > leaked || true; }`
        await check('# neither a hook nor a dump is told the passphrase', () => {
          const leaked = read('leaked').split('\n').filter(Boolean)
          if (leaked.includes('hook.env'))
            violated('the passphrase stays with vykar', 'a hook has it in its environment', 'vykar backup')
          if (leaked.some((file) => file.startsWith('tree')))
            violated('the passphrase stays with vykar', 'a command_dump has VYKAR_PASSPHRASE in its environment', 'vykar backup', 'dump-told-passphrase') // biome-ignore format: one line
        })
        await $`rm -rf secret cache-secret pass tree hook.env`
      }
      await inTheEnd(repo, ['ack-1'])
      await $`rm -rf tree source other`
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
              `restored with umask 077 a dump has mode ${first}`,
              'umask 077; vykar restore',
              'restored-dump-readable',
            )
        }
        await $`test ! -e child.pid || kill $(<child.pid) 2> /dev/null || true; rm -f child.pid`
        if (is === 'nothing' && !/WARN .*empty output/.test(read('met.out')))
          violated('what is odd is said', 'a dump of no byte, and not a word of it', 'vykar backup')
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
        if (met.code === 0) violated('the exit code tells what failed', 'exit 0 although a dump failed', 'vykar backup')
        if (made.includes('bad'))
          violated('2: absent or complete', 'there is a snapshot of the source whose dump failed', 'vykar backup')
        if (!made.includes('good'))
          violated(
            'one source that fails stops no other',
            'the source whose dump works was not backed up',
            'vykar backup',
            'missing-source-stops-others',
          )
        else {
          await $`vykar --config config.yaml list -R ${repo} | sed -nE 's/^ *([0-9a-f]{8}) .* good .*/\1/p' | head -n 1 > good.id && rm -rf dumps && mkdir -p dumps/vykar-dumps && cp data dumps/vykar-dumps/dump && cp source/file dumps/`
          await contents('dumps', 'good')
          if ((await restoredAs(repo, 'good', here)) !== 'right')
            violated('2: absent or complete', 'the snapshot of the other source is not complete', 'vykar restore')
        }
        await clear()
      }
      await inTheEnd(repo, ['ack-1'])
      await $`rm -rf data much dumps tree source other`
      await conclude(tried.length, tried.length)
    })
    tried.length = 0
  }
  stillShown(run)
})
