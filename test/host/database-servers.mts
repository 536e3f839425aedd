// Database servers for the tests: from the host's Debian packages, on loopback, in a directory of their own.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { MongoClient } from 'mongodb'
import { sleep } from 'zx'
import { which } from '#lib/host.mts'
import { freePort } from '#scripts/provide.mts'

/** A server under test, by its URI; `password` is in the URI too. */
export interface TestServer {
  uri: string
  password: string
  port: number
  /** Names of all databases that it has. */
  names: () => string[] | Promise<string[]>
  /** Drops the databases of the scenario. */
  clear: () => void | Promise<void>
  stop: () => void
}

const root = process.getuid?.() === 0
/** Servers refuse to run as root: as root they run as their package's user. */
const as = (user: string, words: string[]) =>
  root ? ['setpriv', '--reuid', user, '--regid', user, '--init-groups', ...words] : words

async function started(argv: string[], dir: string, ready: () => boolean): Promise<() => void> {
  const child = spawn(argv[0]!, argv.slice(1), { stdio: 'ignore', cwd: dir })
  const stop = () => {
    if (child.exitCode === null)
      spawnSync('bash', [
        '-c',
        `kill -INT ${child.pid}; for i in $(seq 100); do kill -0 ${child.pid} 2>/dev/null || exit; sleep 0.1; done; kill -KILL ${child.pid}`,
      ])
    rmSync(dir, { recursive: true, force: true })
  }
  process.on('exit', stop)
  for (let i = 0; i < 150 && !ready(); i++) await sleep(200)
  return stop
}

/** A PostgreSQL that asks for a password; `durable` as it comes, else fast. */
export async function postgresServer(durable = false): Promise<TestServer> {
  const dir = mkdtempSync('/var/tmp/vykar-e2e-test-pg-')
  const [data, password, port] = [join(dir, 'data'), 'pg-secret-of-the-tests', await freePort(0)]
  writeFileSync(join(dir, 'password'), password)
  if (root) execFileSync('chown', ['-R', 'postgres:', dir])
  const [program, ...init] = as('postgres', [
    which('initdb')!,
    '-D',
    data,
    '-U',
    'postgres',
    '-A',
    'scram-sha-256',
    '--pwfile',
    join(dir, 'password'),
    '-E',
    'UTF8',
    '--locale=C.UTF-8',
  ])
  execFileSync(program!, init, { stdio: 'ignore' })
  const argv = as('postgres', [
    which('postgres')!,
    '-D',
    data,
    '-p',
    String(port),
    '-k',
    dir,
    ...(durable ? ['-c', 'max_wal_size=2GB'] : ['-c', 'fsync=off']),
  ])
  const stop = await started(
    argv,
    dir,
    () => spawnSync('pg_isready', ['-q', '-h', '127.0.0.1', '-p', String(port)]).status === 0,
  )
  const uri = `postgresql://postgres:${password}@127.0.0.1:${port}`
  const clear = () => {
    const drop = ['vykar_pg_test', 'vykar_pg_restore_test'].map(
      (name) => `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`,
    )
    execFileSync('psql', ['-q', `${uri}/postgres`, ...drop.flatMap((sql) => ['-c', sql])], { stdio: 'ignore' })
  }
  const names = () =>
    execFileSync('psql', ['-At', `${uri}/postgres`, '-c', 'SELECT datname FROM pg_database ORDER BY 1'], {
      encoding: 'utf8',
    })
      .trim()
      .split('\n')
  return { uri, password, port, names, clear, stop }
}

/** A MariaDB that asks for a password; `durable` as it comes, else fast. */
export async function mariadbServer(durable = false): Promise<TestServer> {
  const dir = mkdtempSync('/var/tmp/vykar-e2e-test-maria-')
  const [data, password, port] = [join(dir, 'data'), 'maria-secret-of-the-tests', await freePort(0)]
  const user = root ? ['--user=mysql'] : []
  if (root) execFileSync('chown', ['mysql:', dir])
  execFileSync(
    'mariadb-install-db',
    ['--no-defaults', ...user, `--datadir=${data}`, '--auth-root-authentication-method=normal'],
    { stdio: 'ignore' },
  )
  const first = join(data, 'first.sql')
  writeFileSync(
    first,
    `CREATE USER 'tester'@'127.0.0.1' IDENTIFIED BY '${password}';\nGRANT ALL ON *.* TO 'tester'@'127.0.0.1';\n`,
    { mode: 0o644 },
  )
  const argv = [
    'mariadbd',
    '--no-defaults',
    ...user,
    `--datadir=${data}`,
    `--init-file=${first}`,
    `--socket=${dir}/sock`,
    '--bind-address=127.0.0.1',
    `--port=${port}`,
    '--skip-name-resolve',
    ...(durable
      ? ['--innodb-buffer-pool-size=512M', '--innodb-log-file-size=512M']
      : ['--innodb-flush-log-at-trx-commit=0']),
    `--pid-file=${dir}/pid`,
  ]
  const asked = (text: string) =>
    spawnSync('mariadb', ['--no-defaults', '--protocol=tcp', '-h127.0.0.1', `-P${port}`, '-utester', '-NBe', text], {
      env: { ...process.env, MYSQL_PWD: password },
      encoding: 'utf8',
    })
  const sql = (text: string) => asked(text).status === 0
  const names = () => asked('SHOW DATABASES').stdout.trim().split('\n').sort()
  const stop = await started(argv, dir, () => sql('SELECT 1'))
  const clear = () =>
    void sql('DROP DATABASE IF EXISTS vykar_maria_test; DROP DATABASE IF EXISTS vykar_maria_restore_test')
  return { uri: `mariadb://tester:${password}@127.0.0.1:${port}`, password, port, names, clear, stop }
}

/** A MongoDB, or where there is none FerretDB, which speaks its protocol and asks for a password. */
export async function mongodbServer(): Promise<TestServer> {
  const dir = mkdtempSync('/var/tmp/vykar-e2e-test-mongo-')
  const port = await freePort(0)
  const mongod = which('mongod')
  const password = mongod ? '' : `mongo-'secret" of the tests`
  const ferret = [
    '--handler=sqlite',
    `--sqlite-url=file:${dir}/`,
    `--listen-addr=127.0.0.1:${port}`,
    `--state-dir=${dir}`,
  ]
  ferret.push('--telemetry=disable', '--debug-addr=-', '--test-enable-new-auth', '--setup-database=admin')
  ferret.push('--setup-username=tester', `--setup-password=${password}`)
  const argv = mongod
    ? [mongod, '--dbpath', dir, '--bind_ip', '127.0.0.1', '--port', String(port)]
    : [which('ferretdb')!, ...ferret]
  const uri = `mongodb://${password && `tester:${encodeURIComponent(password)}@`}127.0.0.1:${port}`
  const driver = new MongoClient(uri, { serverSelectionTimeoutMS: 30_000 })
  const stop = await started(argv, dir, () => spawnSync('bash', ['-c', `: < /dev/tcp/127.0.0.1/${port}`]).status === 0)
  const names = async () => {
    await driver.connect()
    const { databases } = await driver.db('admin').admin().listDatabases({ nameOnly: true })
    await driver.close()
    return databases.map(({ name }) => name).sort()
  }
  const clear = async () => {
    await driver.connect()
    for (const name of ['vykar_mongo_test', 'vykar_mongo_restore_test']) await driver.db(name).dropDatabase()
    await driver.close()
  }
  return { uri, password, port, names, clear, stop }
}
