// The command lines of the tools that are compared. All of them are here, so that a reader can see and dispute each flag.
//
// Encryption is on, with the tool's default; compression is the closest that the tool has to what --compression asks for;
// pack and chunk sizes, threads and caches are as each defaults. Every command runs with `umask 077` and no network but
// the repository's.

/** What is timed, in the order in which it is run in each round. */
export const operations = [
  'init',
  'first backup',
  'unchanged backup',
  'changed backup',
  'restore',
  'check',
  'check data',
  'prune',
] as const
export type Operation = (typeof operations)[number]

export type Compression = 'zstd' | 'lz4' | 'none'

/** A backend as the tools are told of it. */
export interface Backend {
  kind: 'local' | 'rest' | 's3' | 'sftp'
  /** Its key and secret are in the environment, as VYKAR_E2E_S3_KEY and VYKAR_E2E_S3_SECRET. */
  s3?: { endpoint: string; bucket: string; prefix: string; region: string }
  sftp?: { host: string; port: string; user: string }
  /** More keys of vykar's own entry. */
  keys?: Record<string, unknown>
}

/** One tool's repository in one round; all of it is bash, seen from the row's directory. */
export interface Place {
  /** Program to run. */
  program: string
  /** The repository's name, and that of the tool's directory in this round: cache, config, restored tree. */
  name: string
  backend: Backend
  compression: Compression
  /** Operations that this version cannot do, and why. */
  lacks?: Lacks
}

/** Operations that a version of a tool cannot do, and why. */
export type Lacks = Partial<Record<Operation, string>>

/** A tool; a command is a line of bash. */
export interface Tool {
  program: string
  version: string[]
  backends: readonly Backend['kind'][]
  /** What stands for the compression that was asked for, said in the report. */
  compression: Record<Compression, string>
  /** Variables that it takes, as bash words. */
  env: (place: Place) => Record<string, string>
  commands: (place: Place) => Record<Operation, string>
  /** What a version's help must have for an operation to be possible: the words that print the help, and one of it. */
  knows?: Partial<Record<Operation, [help: string, word: string]>>
  /** What it says of the repository afterwards. */
  says: (place: Place) => string
  /** Prints how many snapshots there are, where the tool has been tried with it. */
  count?: (place: Place) => string
  /** Bash that succeeds where what it printed says that an operation was done. */
  proves?: Partial<Record<Operation, string>>
  /** Bash that prints how many entries the newest snapshot lists, and what find(1) is told to count of the source. */
  listed?: (place: Place) => [line: string, of: string]
  /** Removes a repository from a server, where the tool has a command for that. */
  remove?: (place: Place) => string
  /** Where the source's content is after a restore into `<name>/restored`. */
  restored: (place: Place) => string
}

/** The passphrase of every repository: its strength is nobody's concern here. */
const passphrase = 'vykar-e2e-benchmark'
/** The source, a local repository, and what a tool writes beside it: absolute, since some tools change directory. */
const source = '"$PWD"/source'
const local = ({ name }: Place) => `"$PWD"/repositories/${name}`
const own = ({ name }: Place, what: string) => `"$PWD"/${name}/${what}`
const into = ({ name }: Place) => `${name}/restored`

/** vykar's config for one place; a retention of one snapshot is what `prune` then keeps. */
export function vykarConfig({ backend, name, compression }: Place, variable: string): string {
  const more = Object.entries(backend.keys ?? {}).map(([key, value]) => `    ${key}: ${JSON.stringify(value)}\n`)
  // vykar-server serves one repository, at its root.
  const url =
    { local: `repositories/${name}`, rest: `\${${variable}}` }[backend.kind as 'rest'] ?? `\${${variable}}/${name}`
  return `repositories:
  - label: bench
    url: ${url}
${more.join('')}hostname: vykar-e2e
cache_dir: ${name}/cache
compression:
  algorithm: ${compression}
retention:
  keep_last: 1
`
}

const vykar: Tool = {
  program: 'vykar',
  version: ['--version'],
  backends: ['local', 'rest', 's3', 'sftp'],
  compression: { zstd: 'zstd', lz4: 'lz4', none: 'none' },
  env: () => ({ VYKAR_PASSPHRASE: passphrase }),
  commands: (place) => {
    const it = `${place.program} --config ${place.name}/vykar.yaml`
    const backup = `${it} backup -R bench -l bench ${source}`
    return {
      init: `${it} init -R bench`,
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `${it} restore -R bench latest ${into(place)}`,
      check: `${it} check -R bench > check.out`,
      'check data': `${it} check -R bench --verify-data > check.out`,
      prune: `${it} prune -R bench && ${it} compact -R bench`,
    }
  },
  says: ({ program, name }) => `${program} --config ${name}/vykar.yaml info -R bench`,
  proves: {
    check: `grep -qE '^Check complete: 3 snapshots, [1-9].* [1-9][0-9]* packs .* 0 errors' check.out`,
    'check data': `grep -qE '^Check complete: 3 snapshots.* [1-9][0-9]* chunks data-verified, 0 errors' check.out`,
  },
  count: ({ program, name }) =>
    `${program} --config ${name}/vykar.yaml list -R bench | { grep -cE '^ *[0-9a-f]{8} ' || true; }`,
  // Empty files are none to it.
  listed: ({ program, name }) => [
    `${program} --config ${name}/vykar.yaml list -R bench --last 1 | grep -E '^ *[0-9a-f]{8} ' | awk '{print $(NF - 4)}' | tr -d ,`,
    '-type f -size +0',
  ],
  remove: ({ program, name }) => `${program} --config ${name}/vykar.yaml delete -R bench --yes-delete-this-repo`,
  restored: into,
}

/** restic's URL; its SFTP goes through ssh(1), which is given key and port by `sftp.args`. */
function resticUrl(place: Place): string {
  const { backend: { kind, s3, sftp }, name } = place // biome-ignore format: one line
  if (kind === 's3') return `s3:${s3!.endpoint}/${s3!.bucket}/${s3!.prefix}/${name}`
  if (kind === 'sftp') return `sftp:${sftp!.user}@${sftp!.host}:"$FILES_SFTP"/${name}`
  return local(place)
}

const restic: Tool = {
  program: 'restic',
  version: ['version'],
  backends: ['local', 's3', 'sftp'],
  compression: { zstd: 'auto (zstd)', lz4: 'auto (zstd: it has no lz4)', none: 'off' },
  env: (place) => ({
    RESTIC_REPOSITORY: resticUrl(place),
    RESTIC_PASSWORD: passphrase,
    RESTIC_CACHE_DIR: own(place, 'cache'),
    RESTIC_COMPRESSION: place.compression === 'none' ? 'off' : 'auto',
    ...(place.backend.s3
      ? {
          AWS_DEFAULT_REGION: place.backend.s3.region,
          AWS_ACCESS_KEY_ID: '"$VYKAR_E2E_S3_KEY"',
          AWS_SECRET_ACCESS_KEY: '"$VYKAR_E2E_S3_SECRET"',
        }
      : {}),
  }),
  commands: (place) => {
    const it = resticWords(place)
    const backup = `${it} backup ${source}`
    return {
      init: `${it} init`,
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      // `latest:PATH` needs 0.16; Debian 12 has 0.14.
      restore: `${it} restore latest --target ${into(place)}`,
      check: `${it} check`,
      'check data': `${it} check --read-data`,
      prune: `${it} forget --keep-last 1 --prune`,
    }
  },
  knows: {
    init: ['--help', '--compression'],
    'check data': ['check --help', '--read-data'],
    prune: ['forget --help', '--prune'],
  },
  says: (place) => `${resticWords(place)} stats --mode raw-data`,
  count: (place) => `${resticWords(place)} snapshots --json | grep -o '"short_id"' | wc -l`,
  listed: (place) => [`${resticWords(place)} ls latest --json | grep -c '"type":"file"'`, '-type f'],
  restored: (place) => `${into(place)}${source}`,
}
function resticWords({ program, backend: { sftp } }: Place): string {
  if (!sftp) return program
  return `${program} -o "sftp.args=-p ${sftp.port} -i $PWD/../server-sftp/user_key -o UserKnownHostsFile=$PWD/../server-sftp/known_hosts"`
}

const rustic: Tool = {
  program: 'rustic',
  version: ['--version'],
  backends: ['local', 's3'],
  compression: { zstd: 'zstd 3', lz4: 'zstd 1 (it has no lz4)', none: 'zstd 0, which is none' },
  env: (place) => {
    const { s3 } = place.backend
    const common = { RUSTIC_PASSWORD: passphrase, RUSTIC_CACHE_DIR: own(place, 'cache'), RUSTIC_NO_PROGRESS: 'true' }
    if (!s3) return { ...common, RUSTIC_REPOSITORY: local(place) }
    return {
      ...common,
      RUSTIC_REPOSITORY: 'opendal:s3',
      OPENDAL_BUCKET: s3.bucket,
      OPENDAL_ROOT: `/${s3.prefix}/${place.name}`,
      OPENDAL_ENDPOINT: s3.endpoint,
      OPENDAL_REGION: s3.region,
      OPENDAL_ACCESS_KEY_ID: '"$VYKAR_E2E_S3_KEY"',
      OPENDAL_SECRET_ACCESS_KEY: '"$VYKAR_E2E_S3_SECRET"',
    }
  },
  commands: (place) => {
    const { program, compression } = place
    const backup = `${program} backup ${source}`
    return {
      init: `${program} init --set-compression ${{ zstd: 3, lz4: 1, none: 0 }[compression]}`,
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `${program} restore latest:${source} ${into(place)}`,
      check: `${program} check`,
      'check data': `${program} check --read-data`,
      // Without --instant-delete packs stay for 23 hours, marked: the others delete at once.
      prune: `${program} forget --keep-last 1 --prune --instant-delete`,
    }
  },
  knows: {
    init: ['init --help', '--set-compression'],
    'check data': ['check --help', '--read-data'],
    prune: ['forget --help', '--instant-delete'],
  },
  says: ({ program }) => `${program} repoinfo`,
  count: ({ program }) => `${program} snapshots --json | { grep -c '"program_version":' || true; }`,
  listed: ({ program }) => [`${program} ls latest --long | grep -c '^-'`, '-type f'],
  restored: into,
}

const borg: Tool = {
  program: 'borg',
  version: ['--version'],
  backends: ['local'],
  compression: { zstd: 'zstd,3', lz4: 'lz4', none: 'none' },
  env: (place) => ({
    BORG_REPO: local(place),
    BORG_PASSPHRASE: passphrase,
    BORG_BASE_DIR: own(place, 'borg'),
    BORG_DISPLAY_PASSPHRASE: 'no',
  }),
  commands: (place) => {
    const { program, compression } = place
    const how = { zstd: 'zstd,3', lz4: 'lz4', none: 'none' }[compression]
    const backup = `${program} create --compression ${how} "::$(date +%s%N)" ${source}`
    return {
      // Of its encryptions the one with BLAKE2b is the faster here and on any processor without SHA extensions.
      init: `${program} init --encryption repokey-blake2`,
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `(cd ${into(place)} && ${program} extract "::$(${program} list --short --last 1)")`,
      check: `${program} check`,
      'check data': `${program} check --verify-data`,
      prune: `${program} prune --keep-last 1 && ${program} compact`,
    }
  },
  knows: {
    // 2.0 has no `init`, and 1.1 no `compact`: what its prune frees is another thing.
    init: ['init --help', 'repokey-blake2'],
    'check data': ['check --help', '--verify-data'],
    prune: ['compact --help', 'compact'],
  },
  says: ({ program }) => `${program} info`,
  count: ({ program }) => `${program} list --short | wc -l`,
  listed: ({ program }) => [
    `${program} list "::$(${program} list --short --last 1)" --format '{mode}{NL}' | wc -l`,
    '! -type s',
  ],
  restored: (place) => `${into(place)}${source}`,
}

const kopia: Tool = {
  program: 'kopia',
  version: ['--version'],
  backends: ['local'],
  compression: { zstd: 'zstd', lz4: 'lz4', none: 'none' },
  env: (place) => ({
    KOPIA_PASSWORD: passphrase,
    KOPIA_CONFIG_PATH: own(place, 'kopia.config'),
    KOPIA_CACHE_DIRECTORY: own(place, 'cache'),
    KOPIA_LOG_DIR: own(place, 'kopia-logs'),
    KOPIA_CHECK_FOR_UPDATES: 'false',
  }),
  commands: (place) => {
    const { program } = place
    const backup = `${program} snapshot create ${source}`
    return {
      init: `mkdir -p ${local(place)} && ${program} repository create filesystem --path ${local(place)} && ${program} policy set --global --compression=${place.compression}`,
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `${program} snapshot restore ${newestOfKopia(place)} ${into(place)}`,
      check: `${program} snapshot verify`,
      'check data': `${program} snapshot verify --verify-files-percent=100`,
      // Its backups obey the policy at once: it comes last. Without --safety=none it waits a day between marking and deleting.
      prune: `${program} policy set --global --keep-latest 1 --keep-hourly 0 --keep-daily 0 --keep-weekly 0 --keep-monthly 0 --keep-annual 0 && ${program} snapshot expire --delete ${source} && ${program} maintenance run --full --safety=none`,
    }
  },
  knows: {
    'check data': ['snapshot verify --help', '--verify-files-percent'],
    prune: ['maintenance run --help', '--safety'],
  },
  says: ({ program }) => `${program} content stats`,
  count: ({ program }) => `${program} snapshot list --json ${source} | { grep -oE '[{]"id":' || true; } | wc -l`,
  // Its first letters say setuid, setgid and sticky of a file.
  listed: (place) => [`${place.program} ls -l -r ${newestOfKopia(place)} | grep -c '^[-ugt]'`, '-type f'],
  restored: into,
}
const newestOfKopia = ({ program }: Place) =>
  `"$(${program} snapshot list --json ${source} | grep -oE '"id":"[0-9a-f]+"' | tail -1 | cut -d'"' -f4)"`

/** The tools by name; `baseline` is another build of vykar. */
export const tools: Record<string, Tool> = { vykar, baseline: vykar, restic, rustic, borg, kopia }
