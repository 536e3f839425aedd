// One table over all scenarios: help, dry run, copies, bad input, and running again what was written down.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { copyFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, test } from 'node:test'
import { commonOptions } from '#lib/prepare.mts'
import { scenarioNames } from '#scripts/suite/scenarios.mts'
import { cleanEnv, lacking, root, type Sandbox, sandbox, standin } from './helpers.mts'
import { finished, replays } from './replays.mts'

const skip = lacking('flock', 'diff', 'rsync', 'setfattr', 'setfacl', 'setcap')

const e2e = (box: Sandbox, script: string, ...words: string[]) => finished(box, [join(root, 'e2e'), script, ...words])
const words = (box: Sandbox) => ['--vykar', standin(), '--runtime', box.runtime, '--sample', box.sample]

/** What a script and the scripts that it imports read of the options, without what declares them. */
function optionsRead(file: string, seen = new Set<string>()): string {
  if (seen.has(file)) return ''
  seen.add(file)
  const text = readFileSync(file, 'utf8').replace(/const \w*[oO]ptions\b[^=]*= \{[\s\S]*?\} as const/g, '')
  const imported = [...text.matchAll(/from '#scripts\/(.*\.mts)'/g)].map(([, name]) => join(root, 'scripts', name!))
  return [text, ...imported.map((name) => optionsRead(name, seen))].join('\n')
}

describe('each scenario', { skip, concurrency: 3 }, () => {
  for (const name of scenarioNames()) {
    const file = join(root, 'scripts', `${name}.mts`)

    test(`${name}: --help says what it is, as the first line of its header does`, async () => {
      const { code, out } = await e2e(sandbox(), name, '--help')
      assert.equal(code, 0)
      const [, purpose] = /^\/\/ (.*)$/m.exec(readFileSync(file, 'utf8'))!
      assert.ok(out.startsWith(`${name}\n\n${purpose}`), out.slice(0, 200))
      assert.match(out, /Passes (when|never)/)
      assert.match(out, /--dry-run/)
    })

    test(`${name}: each option that it takes is read`, async () => {
      const { out } = await e2e(sandbox(), name, '--describe')
      const own = Object.keys(JSON.parse(out).options).filter((option) => !(option in commonOptions))
      const text = optionsRead(file)
      for (const option of own) {
        const key = /^\w+$/.test(option) ? option : `'${option}'`
        const taken = `\\{[^{}]*(?<![\\w'-])${key}(?![\\w'-])[^{}]*\\} = (run\\.|plan\\.)?options`
        const listed = `\\{[^{}]*\\b${key}: '[^{}]*\\} as const[^]*options\\[name\\]`
        const asked = `\\b(options|o|asked)(\\.${option}\\b|\\['${option}'\\])`
        assert.ok(
          new RegExp(`${taken}|${asked}|${listed}`).test(text),
          `${name} takes --${option} and does nothing with it`,
        )
      }
    })

    test(`${name}: --dry-run prints a procedure that bash can read, and makes nothing`, async () => {
      const box = sandbox()
      const { code, out, err } = await e2e(box, name, '--dry-run', ...words(box))
      assert.equal(code, 0, err + out.slice(-400))
      assert.ok((name === 'benchmarks' ? /^vykar |\$SHELL|vykar/gm : /vykar --config config\.yaml/g).test(out), out)
      assert.equal(spawnSync('bash', ['-n'], { input: out, encoding: 'utf8' }).stderr, '')
      assert.deepEqual(
        readdirSync(box.dir).filter((entry) => entry !== 'sample.yaml' && entry !== 'standin'),
        [],
      )
    })

    test(`${name}: a copy runs in its folder, and outside of the clone`, async () => {
      const box = sandbox()
      const beside = join(dirname(file), `copy-of-${process.pid}-${name.split('/').at(-1)}.mts`)
      const outside = join(box.dir, 'mine.mts')
      try {
        for (const copy of [beside, outside]) {
          copyFileSync(file, copy)
          const { code, out, err } = await e2e(box, copy, '--dry-run', ...words(box))
          assert.equal(code, 0, err)
          assert.match(out, /^# .*, run .*: everything that was run/m)
        }
      } finally {
        rmSync(beside, { force: true })
      }
    })

    test(`${name}: bad input is one line, exit 2, and makes nothing`, async () => {
      const box = sandbox()
      const broken = join(box.dir, 'broken.yaml')
      writeFileSync(broken, 'repositories: [\n')
      for (const [args, message] of [
        // What all scripts refuse alike, frame.test.mts has once.
        [['--sede', '3'], /unknown option --sede; did you mean --seed\?/],
        [['--sample', broken], /broken\.yaml/],
      ] as const) {
        const given = words(box).filter((_, i, all) => all[i - (i % 2)] !== args[0])
        const { code, out, err } = await e2e(box, name, ...given, ...args)
        assert.equal(code, 2, `${args}: ${out}${err}`)
        const said = err.trim() || out.trim()
        assert.match(said, message)
        assert.doesNotMatch(err, /^ +at /m)
        assert.ok(err.trim().split('\n').length <= 1, err)
      }
    })
  }
})

test('a long --dry-run comes whole through a pipe that is slow to be read', { skip }, () => {
  const line = '"$1" faults/corruption --dry-run --vykar "$2" --runtime "$3" --sample "$4" | (sleep 3; tail -n 1)'
  const box = sandbox()
  const words = ['-c', line, 'bash', join(root, 'e2e'), standin(), box.runtime, box.sample]
  const { stdout } = spawnSync('bash', words, { encoding: 'utf8', env: cleanEnv(box) })
  assert.match(stdout, /delete -R local --yes-delete-this-repo/)
})

describe('commands.sh, with the stand-in', { skip, concurrency: 2 }, () => {
  for (const name of ['backends/local', 'backends/local-none'])
    replays(name, standin, ['restore leaves a file out', 'check counts errors'])
})
