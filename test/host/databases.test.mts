// databases/* on real servers: they pass when vykar is honest, catch every lie about a dump, refuse bad input in one line,
// and leave no database, container, volume or file behind.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { block, planRows, tableNames } from '#data-gen/shop.mts'
import { which } from '#lib/host.mts'
import { type Output, type Scope, within } from '#lib/sh.mts'
import { fitsHook, oneMoment, sameContent, whileWritten } from '#scripts/databases/common.mts'
import { needSpace } from '#scripts/space.mts'
import { discard, type Finished, lacking, noReal, processesIn, real, root, run, sandbox, scratch } from '../helpers.mts'
import { mariadbServer, mongodbServer, postgresServer, type TestServer } from './database-servers.mts'
import { noEngine, postgresImage } from './images.mts'

const tools = lacking('flock', 'diff')
const noPg = noReal || tools || lacking('initdb', 'psql', 'pg_dump')
const noMaria = noReal || tools || lacking('mariadbd', 'mariadb', 'mariadb-dump')
const noMongo =
  noReal ||
  tools ||
  (which('mongodump') && which('mongorestore') && (which('mongod') || which('ferretdb'))
    ? false
    : 'mongodump, mongorestore and a server (mongod or ferretdb) are in no Debian release')
const tsx = join(root, 'node_modules/.bin/tsx')
const generate = (kind: string, ...args: string[]) =>
  spawnSync(tsx, [join(root, `data-gen/${kind}.mts`), ...args], { encoding: 'utf8' })
const path = process.env.PATH!
const small = ['--target-gib', '0.03', '--repo', 'local']

/** A PATH on which the dump programs are of version 9. */
function oldClients(): string {
  const dir = join(scratch, 'old-clients')
  mkdirSync(dir, { recursive: true })
  writeFileSync(join(dir, 'pg_dump'), '#!/bin/sh\necho "pg_dump (PostgreSQL) 9.0"\n', { mode: 0o755 })
  const maria = 'mariadb-dump from 9.0.1-MariaDB, client 9.0 for debian-linux-gnu (x86_64)'
  writeFileSync(join(dir, 'mariadb-dump'), `#!/bin/sh\necho "${maria}"\n`, { mode: 0o755 })
  return `${dir}:${process.env.PATH}`
}

/** Runs a script on a server that is there, in a sandbox of its own. */
async function on(server: TestServer, script: string, PATH: string, ...args: string[]) {
  const box = sandbox()
  const words = ['--vykar', real!, '--uri', server.uri, ...small, ...args]
  const ended = await run(box, `databases/${script}`, words, { PATH })
  return { box, ended }
}
const said = (ended: Finished) => ended.stdout + ended.stderr

/** Every file below a directory that holds a text. */
const holding = (dir: string, text: string) =>
  spawnSync('grep', ['-rlF', text, dir], { encoding: 'utf8' }).stdout.split('\n').filter(Boolean)

/** What a lie must lead to, with more options where it needs them. */
const caught: Record<string, [reason: RegExp, ...options: string[]]> = {
  'dump-failure-hidden': [/failing dump: exit 0 instead of 1/],
  'dump-signal-hidden': [/failing dump: exit 0 instead of 1/],
  'dump-failed-unfinished': [/failing dump: exit 1: test -z/, '--variant', 'hooks'],
  'dump-truncated': [/load: exit 1:/],
  'dump-gains': [/the restored dump is not what vykar was given/],
  'dump-cut-short': [/restored dump has .* seven tenths/],
  'dump-empty': [/restored dump has 0 B|empty output/],
  'dump-other-name': [/snapshot list does not show vykar-dumps\/\w+/],
  'dump-renewed-cut': [/the restored dump is not what vykar was given/],
  'dump-left-later': [/second backup: exit 1: test -z/, '--variant', 'hooks'],
  'dump-renewed-again': [/the dump was not made/],
  'list-hides-older': [/there are two snapshots, but list shows 1/],
  'check-wrong-items': [/check looked at 7 items/],
  'dump-left': [/backup: exit 1: rmdir dumps/, '--variant', 'hooks'],
  'dump-lacks-row': [/table order_events: \d+ rows in the source, \d+ restored/],
  'dump-flips-byte': [/table order_events: \d+ rows in both, but their content differs/],
  'dump-lacks-table': [/compare: exit 1: diff .*schema/],
  'dump-lacks-index': [/compare: exit 1: diff .*schema/],
  'dump-torn': [/not one moment: orders \d+ has not the children that it counts/],
  'dump-dies': [/backup: exit 1:.*pg_dump: /],
}
const caughtInMariadb: typeof caught = {
  'dump-lacks-end': [/the restored dump is not what vykar was given/],
  'plaintext-leaks': [/words of the source can be read/],
  'dump-lacks-row': [/table \w+: \d+ rows in the source, \d+ restored/],
  'dump-flips-byte': [/table customers: \d+ rows in both, but their content differs/],
  'dump-lacks-table': [/compare: exit 1: diff .*schema/],
  'dump-empty': [/restored dump has 0 B|empty output/],
}

const caughtInMongodb: typeof caught = {
  'plaintext-leaks': [/words of the source can be read/],
  'dump-truncated': [/load: exit 1:/],
  'dump-empty': [/restored dump has 0 B|empty output/],
  'dump-flips-byte': [/load: exit 1:|their content differs/],
  'dump-lacks-table': [/compare: indexes differ|table customers is missing/],
  'dump-other-name': [/snapshot list does not show vykar-dumps\/\w+/],
}

for (const [script, skip, start, lies] of [
  ['postgres', noPg, postgresServer, caught],
  ['mariadb', noMaria, mariadbServer, caughtInMariadb],
  ['mongodb', noMongo, mongodbServer, caughtInMongodb],
] as const)
  describe(script, { skip }, () => {
    let server: TestServer
    before(async () => {
      server = await start()
    })
    after(() => server?.stop())

    test('honest, both variants, writes during one: PASS, nothing left, the password nowhere', async () => {
      // The names of a run's databases are its own: what is there is in no way, and stays.
      const again = generate(script, '--uri', server.uri, '--target-gib', '0.03')
      assert.equal(again.status, 0, again.stderr)
      const had = await server.names()
      const { box, ended } = await on(server, script, path)
      assert.equal(ended.code, 0, said(ended))
      assert.deepEqual(await server.names(), had, 'databases were left, or are gone')
      assert.equal(ended.last, `PASS databases/${script}`)
      assert.deepEqual(
        ended.report?.rows.map((row) => row.variant),
        ['hooks', 'command_dumps'],
      )
      if (script !== 'mongodb')
        assert.match(String(ended.report?.rows[1]?.facts['rounds of writes']), /^[1-9]\d* before/)
      else assert.match(ended.stdout, /note: (a standalone server|replica set).* is of no single moment/)
      if (server.password) assert.deepEqual(holding(box.runtime, server.password), [])
      assert.deepEqual(processesIn(box), [])
      assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
      const more = generate(script, '--uri', server.uri, '--target-gib', '0.03', '--append')
      assert.equal(more.status, 0, more.stderr)
      assert.ok(
        Number(/^order_events=(\d+)/m.exec(more.stdout)?.[1]) > Number(/^order_events=(\d+)/m.exec(again.stdout)?.[1]),
      )
      await server.clear()
    })

    for (const [lie, [reason, ...options]] of Object.entries(lies))
      test(`${lie} is FAIL`, async () => {
        const calm = script === 'mongodb' ? [] : ['--churn', 'none']
        const variant = options.length ? options : ['--variant', 'command_dumps']
        const { box, ended } = await on(server, script, path, '--sabotage', lie, ...calm, ...variant)
        // What a failed run made is kept, and would be in the next one's way.
        await server.clear()
        assert.match(ended.last, new RegExp(`^FAIL databases/${script} `), said(ended))
        assert.match(ended.last, reason)
        assert.equal(ended.code, 1)
        assert.ok(existsSync(join(box.runtime, 'logs', script, 'latest/sabotage.told')), 'the lie was not told')
        assert.deepEqual(processesIn(box), [])
        discard(box)
      })

    test('bad input is one line, the right exit code, and makes nothing', async () => {
      const wrong = { ...server, uri: server.uri.replace(/:[^:@]+@/, ':wrong@') }
      const dead = { ...server, uri: server.uri.replace(`:${server.port}`, ':1') }
      const cases: [TestServer, RegExp, string[]][] = [
        [dead, /the server cannot be asked: .*(connect|refused|accepting TCP)/i, []],
        [{ ...server, uri: 'nonsense' }, /--uri: \w+:\/\/USER:PASSWORD@HOST:PORT is needed/, []],
        [server, /--container and --uri name two servers/, ['--container', 'x']],
      ]
      if (server.password)
        cases.push([wrong, /the server cannot be asked: .*(password|Access denied|Authentication failed)/, []])
      if (script !== 'mongodb') cases.push([server, /dump 9(\.0)? is older than the server/, ['--old']])
      for (const [where, message, args] of cases) {
        const old = args[0] === '--old'
        const { box, ended } = await on(where, script, old ? oldClients() : path, ...(old ? [] : args))
        assert.equal(ended.code, 2, said(ended))
        assert.match(ended.last + ended.stderr, message)
        assert.deepEqual(readdirSync(join(box.runtime, 'work')), [])
      }
      for (const size of ['0', '-1', 'abc', '1000000']) {
        const box = sandbox()
        const ended = await run(box, `databases/${script}`, [
          '--vykar',
          real!,
          '--uri',
          server.uri,
          '--target-gib',
          size,
        ])
        assert.equal(ended.code, 2, said(ended))
        assert.match(
          said(ended),
          size === '1000000'
            ? /free, .* are needed for --target-gib 1000000/
            : /--target-gib .*: a number of at least 0.02 is needed/,
        )
        assert.equal(
          generate(script, '--uri', server.uri, '--target-gib', size === '1000000' ? '0.001' : size).status,
          2,
        )
      }
    })
  })

describe('MariaDB generator', { skip: noMaria }, () => {
  test('a load that a deadlock took back is made again, whole', async () => {
    const server = await mariadbServer()
    const dir = join(scratch, 'deadlock')
    mkdirSync(dir)
    // The first load of orders fails half-way, as InnoDB fails it.
    const script = `#!/bin/sh
case "$*" in *'INTO TABLE orders'*)
  if mkdir ${dir}/once 2> /dev/null; then
    head -c 20000 > /dev/null
    echo 'ERROR 1213 (40001) at line 1: Deadlock found when trying to get lock; try restarting transaction' >&2
    exit 1
  fi ;;
esac
exec ${which('mariadb')} "$@"
`
    writeFileSync(join(dir, 'mariadb'), script, { mode: 0o755 })
    try {
      const env = { ...process.env, PATH: `${dir}:${path}` }
      const words = [join(root, 'data-gen/mariadb.mts'), '--uri', server.uri, '--target-gib', '0.03']
      const made = spawnSync(tsx, words, { encoding: 'utf8', env })
      assert.equal(made.status, 0, made.stderr)
      assert.ok(existsSync(join(dir, 'once')), 'no load failed')
      const planned = /^orders=(\d+)$/m.exec(made.stdout)?.[1]
      const client = ['--no-defaults', '--protocol=tcp', '-h127.0.0.1', `-P${server.port}`, '-utester', '-N']
      const sql = 'SELECT count(*), count(DISTINCT id) FROM vykar_maria_test.orders'
      const counted = spawnSync('mariadb', [...client, '-e', sql], {
        encoding: 'utf8',
        env: { ...process.env, MYSQL_PWD: server.password },
      })
      assert.equal(counted.stdout.trim(), `${planned}\t${planned}`)
    } finally {
      server.stop()
    }
  })
})

const engine = lacking('podman') ? 'docker' : 'podman'
describe(`PostgreSQL in ${engine}, in an image built from Debian packages`, {
  skip: noReal || tools || noEngine(engine),
}, () => {
  let image = ''
  const volumes = () => spawnSync(engine, ['volume', 'ls', '-q'], { encoding: 'utf8' }).stdout
  const args = (...more: string[]) => ['--vykar', real!, '--engine', engine, '--image', image, ...small, ...more]
  before(() => {
    image = postgresImage(engine)
  })

  /** A PATH on which the engine reaches no registry, nor has what would come from one. */
  const withoutRegistry = () => {
    const dir = join(scratch, 'no-registry')
    mkdirSync(dir, { recursive: true })
    const lacks = `case "$1 $2 $3" in pull\\ *) echo 'no route to host' >&2; exit 1 ;; 'image inspect postgres:16') exit 1 ;; esac`
    writeFileSync(join(dir, engine), `#!/bin/sh\n${lacks}\nexec ${which(engine)} "$@"\n`, { mode: 0o755 })
    return `${dir}:${path}`
  }

  test('PASS without a registry: the image built from packages is used and named; no container or volume is left', async () => {
    const had = volumes()
    const words = ['--vykar', real!, '--engine', engine, ...small, '--variant', 'command_dumps']
    const ended = await run(sandbox(), 'databases/postgres', words, { PATH: withoutRegistry() })
    assert.equal(ended.code, 0, said(ended))
    assert.match(ended.report?.versions['postgres image'] ?? '', new RegExp(`^(localhost/)?${image}$`))
    assert.ok(
      ended.report?.notes.some((note) => note.startsWith('image postgres:16 cannot be pulled')),
      said(ended),
    )
    assert.match(ended.report?.versions.postgres ?? '', /^\d+\.\d+/)
    assert.notEqual(spawnSync(engine, ['container', 'inspect', `vykar-db-${ended.report!.runId}`]).status, 0)
    assert.equal(volumes(), had)
  })

  test('FAIL keeps the container and names it; it is in no other run’s way; it can be used once it runs', async () => {
    const failed = await run(
      sandbox(),
      'databases/postgres',
      args('--variant', 'command_dumps', '--churn', 'none', '--sabotage', 'dump-empty'),
    )
    const name = `vykar-db-${failed.report?.runId}`
    try {
      assert.equal(failed.code, 1, said(failed))
      assert.match(failed.stdout, new RegExp(`kept: container ${name} \\(stopped; ${engine} start brings it back\\)`))
      assert.equal(spawnSync(engine, ['container', 'inspect', name]).status, 0)
      const stopped = await run(sandbox(), 'databases/postgres', args('--container', name))
      assert.equal(stopped.code, 2, said(stopped))
      assert.match(stopped.last, new RegExp(`--container ${name} is not running`))
      const next = await run(sandbox(), 'databases/postgres', args('--variant', 'command_dumps'))
      assert.equal(next.last, 'PASS databases/postgres', said(next))
      assert.equal(spawnSync(engine, ['container', 'inspect', name]).status, 0)
    } finally {
      spawnSync(engine, ['rm', '-f', '-v', name])
    }
    const none = await run(sandbox(), 'databases/postgres', args('--container', 'nosuch'))
    assert.equal(none.code, 2, said(none))
    assert.match(none.last, /--container nosuch: \w+ has no such container/)
  })

  test('a server that does not come up is BLOCKED, with the last lines of its log', async () => {
    const ended = await run(sandbox(), 'databases/mariadb', args('--variant', 'hooks'))
    assert.equal(ended.code, 75, said(ended))
    assert.match(ended.last, /^BLOCKED .*the container did not come up; its log: .*innodb_buffer_pool_size/)
    assert.match(ended.stdout, /kept: container vykar-db-/)
    execFileSync(engine, ['rm', '-f', '-v', `vykar-db-${ended.report!.runId}`])
  })

  test('an image that is named and cannot be had is exit 2', async () => {
    const refused = await run(sandbox(), 'databases/postgres', [
      '--vykar',
      real!,
      '--engine',
      engine,
      '--image',
      'localhost:1/nosuch:1',
      ...small,
    ])
    assert.equal(refused.code, 2, said(refused))
    assert.match(refused.last, /image localhost:1\/nosuch:1 cannot be had .* scripts\/images\/build postgres/)
  })
})

describe('units', () => {
  const storage = {
    piece: 100,
    pieceOnDisk: 110,
    eventOnDisk: 50,
    productOnDisk: 50,
    event: [1, 3],
    image: [2, 4],
  } as const
  const plan = planRows(5 << 20, storage)
  const none = { customers: 0, products: 0, orders: 0, order_events: 0 }
  const rows = (table: 'orders' | 'order_events' | 'customers', seed = 1) =>
    Array.from({ length: Math.ceil(plan[table] / 32) }, (_, i) => [
      ...block(table, i, plan, none, storage, seed),
    ]).flat()

  test('the same seed gives the same rows, another seed others; counts are those of the children', () => {
    assert.deepEqual(rows('order_events'), rows('order_events'))
    assert.notDeepEqual(rows('order_events'), rows('order_events', 2))
    assert.equal(rows('order_events').length, plan.order_events)
    const events = new Map<unknown, number>()
    for (const [, order] of rows('order_events')) events.set(order, (events.get(order) ?? 0) + 1)
    for (const order of rows('orders')) assert.equal(events.get(order[0]), order[5])
    const orders = new Map<unknown, number>()
    for (const [, customer] of rows('orders')) orders.set(customer, (orders.get(customer) ?? 0) + 1)
    for (const customer of rows('customers')) assert.equal(orders.get(customer[0]), customer[5])
  })

  /** Makes a check in a directory with these files, outside of any run. */
  const checked = (files: Record<string, string>, check: () => Promise<void>) => {
    const dir = sandbox().dir
    for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, name), text)
    const report = { facts: {} }
    const run = { transcript: { add: () => undefined } }
    return within({ dir, run, report, repo: 'local', place: '' } as unknown as Scope, check)
  }

  test('a dump that cannot end within the hook is BLOCKED, with the target that would fit', async () => {
    await assert.rejects(
      checked({}, () => fitsHook({ seconds: 100 } as Output, 0.25, 10)),
      /predicted to take 6 min 40 s, and vykar ends a hook after 300 s: --target-gib 6 would fit/,
    )
    await checked({}, () => fitsHook({ seconds: 10 } as Output, 0.25, 10))
  })

  test('contents that differ are told apart', async () => {
    const same = (a: string, b: string) => checked({ a, b }, () => sameContent('a', 'b'))
    await same('t|3|7\n', 't|3|7\n')
    for (const [a, b, reason] of [
      ['t|3|7\n', '', /table t is missing/],
      ['t|3|7\n', 't|2|7\n', /3 rows in the source, 2 restored/],
      ['t|3|7\n', 't|3|8\n', /content differs/],
      ['', '', /nothing to compare/],
    ] as const)
      await assert.rejects(same(a, b), reason)
  })

  test('what is of no one moment, or from before the backup, is told', async () => {
    await checked({ odd: '' }, () => oneMoment('odd'))
    await assert.rejects(
      checked({ odd: 'orders|7\n' }, () => oneMoment('odd')),
      /not one moment: orders 7/,
    )
    const rounds = (before: string, restored: string, after: string) =>
      checked({ 'rounds.before': before, 'rounds.restored': restored, 'rounds.after': after }, whileWritten)
    await rounds('3', '4', '9')
    await assert.rejects(rounds('3', '2', '9'), /2 rounds of writes restored, 3 were there before/)
    await assert.rejects(rounds('3', '9', '9'), /no write came after the moment/)
  })

  test('needs on one disk add up', () => {
    needSpace([{ dir: scratch, bytes: 1 }], 'this', 'that')
    const most = Number(execFileSync('df', ['--output=avail', '-B1', scratch], { encoding: 'utf8' }).split('\n')[1])
    // Other tests fill the disk and free it meanwhile.
    const half = { dir: join(scratch, 'not/yet'), bytes: most * 0.6 }
    needSpace([half], 'this', 'that')
    assert.throws(() => needSpace(Array(5).fill(half), 'this', 'that'), /are needed for this: free some, or that/)
  })

  test('every table is filled, and every lie about a dump has its test', () => {
    assert.deepEqual(Object.keys(plan).sort(), [...tableNames].sort())
    const lies = execFileSync(join(root, 'scripts/sabotage/vykar'), ['lies'], { encoding: 'utf8' })
    const names = [...lies.matchAll(/^(dump-\S+)/gm)].map(([, name]) => name!)
    assert.deepEqual(
      names.filter((name) => !caught[name] && !caughtInMariadb[name]),
      [],
    )
  })
})
