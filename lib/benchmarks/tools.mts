// The command lines of the tools that are compared. All of them are here, so that a reader can see and dispute each flag.
//
// Encryption is on, with the tool's default; compression is the closest that the tool has to what --compression asks for;
// pack and chunk sizes, threads and caches are as each defaults. Every command runs with `umask 077` and no network but
// the repository's.
import { quote } from '../transcript.mts'

/** What is timed, in the order in which it is run in each round. */
export const operations = [
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
export interface Endpoint {
  kind: 'local' | 'rest' | 's3' | 'sftp'
  /** vykar's URL of a repository of this name. */
  url: (name: string) => string
  /** A directory on this host, for local. */
  dir: (name: string) => string
  /** Its key and secret are in the environment, as VYKAR_E2E_S3_KEY and VYKAR_E2E_S3_SECRET. */
  s3?: { endpoint: string; bucket: string; prefix: string; region: string }
  sftp?: { host: string; port: string; user: string; key: string; knownHosts: string; dir: string }
  /** More keys of vykar's own entry. */
  set?: Record<string, unknown>
}

/** One tool's repository in one round: where it is, and everything the tool may write. */
export interface Place {
  /** Program to run. */
  program: string
  name: string
  endpoint: Endpoint
  /** A directory of this tool's in this round: cache, config, restored tree. */
  dir: string
  source: string
  compression: Compression
}

/** A tool: `init` is not timed; a command is a line of bash. */
export interface Tool {
  program: string
  version: string[]
  backends: readonly Endpoint['kind'][]
  /** What stands for the compression that was asked for, said in the report. */
  compression: Record<Compression, string>
  env: (place: Place) => Record<string, string>
  /** Names under which it takes the S3 key and secret. */
  s3Names?: [key: string, secret: string]
  init: (place: Place) => string
  commands: (place: Place, restored: string) => Record<Operation, string>
  /** Removes a repository from a server, where the tool has a command for that. */
  remove?: (place: Place) => string
  /** Where the source's content is in the restored directory. */
  restoredAt: (place: Place, restored: string) => string
}

/** The passphrase of every repository: its strength is nobody's concern here. */
const passphrase = 'vykar-e2e-benchmark'
const q = quote

/** vykar's config for one place; a retention of one snapshot is what `prune` then keeps. */
export function vykarConfig({ endpoint, name, dir, compression }: Place): string {
  const more = Object.entries(endpoint.set ?? {}).map(([key, value]) => `    ${key}: ${JSON.stringify(value)}\n`)
  return `repositories:
  - label: bench
    url: ${JSON.stringify(endpoint.url(name))}
${more.join('')}hostname: vykar-e2e
cache_dir: ${JSON.stringify(`${dir}/cache`)}
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
  init: ({ program, dir }) => `${q(program)} --config ${q(dir)}/vykar.yaml init -R bench`,
  commands: ({ program, dir, source }, restored) => {
    const it = `${q(program)} --config ${q(dir)}/vykar.yaml`
    const backup = `${it} backup -R bench -l bench ${q(source)}`
    return {
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `${it} restore -R bench latest ${q(restored)}`,
      check: `${it} check -R bench`,
      'check data': `${it} check -R bench --verify-data`,
      prune: `${it} prune -R bench && ${it} compact -R bench`,
    }
  },
  remove: ({ program, dir }) => `${q(program)} --config ${q(dir)}/vykar.yaml delete -R bench --yes-delete-this-repo`,
  restoredAt: (_, restored) => restored,
}

/** restic's URL; its SFTP goes through ssh(1), which is given key and port by `sftp.args`. */
function resticUrl({ endpoint, name }: Place): string {
  const { s3, sftp } = endpoint
  if (endpoint.kind === 's3') return `s3:${s3!.endpoint}/${s3!.bucket}/${s3!.prefix}/${name}`
  if (endpoint.kind === 'sftp') return `sftp:${sftp!.user}@${sftp!.host}:${sftp!.dir}/${name}`
  return endpoint.dir(name)
}

const restic: Tool = {
  program: 'restic',
  version: ['version'],
  backends: ['local', 's3', 'sftp'],
  compression: { zstd: 'auto (zstd)', lz4: 'auto (zstd: it has no lz4)', none: 'off' },
  env: (place) => ({
    RESTIC_REPOSITORY: resticUrl(place),
    RESTIC_PASSWORD: passphrase,
    RESTIC_CACHE_DIR: `${place.dir}/cache`,
    RESTIC_COMPRESSION: place.compression === 'none' ? 'off' : 'auto',
    ...(place.endpoint.s3 ? { AWS_DEFAULT_REGION: place.endpoint.s3.region } : {}),
  }),
  s3Names: ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'],
  init: (place) => `${resticWords(place)} init`,
  commands: (place, restored) => {
    const it = resticWords(place)
    const backup = `${it} backup ${q(place.source)}`
    return {
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `${it} restore latest:${q(place.source)} --target ${q(restored)}`,
      check: `${it} check`,
      'check data': `${it} check --read-data`,
      prune: `${it} forget --keep-last 1 --prune`,
    }
  },
  restoredAt: (_, restored) => restored,
}
function resticWords({ program, endpoint: { sftp } }: Place): string {
  if (!sftp) return q(program)
  const ssh = `-p ${sftp.port} -i ${sftp.key} -o UserKnownHostsFile=${sftp.knownHosts}`
  return `${q(program)} -o sftp.args=${q(ssh)}`
}

const rustic: Tool = {
  program: 'rustic',
  version: ['--version'],
  backends: ['local', 's3'],
  compression: { zstd: 'zstd 3', lz4: 'zstd 1 (it has no lz4)', none: 'zstd 0, which is none' },
  env: ({ endpoint, name, dir }) => {
    const { s3 } = endpoint
    const common = { RUSTIC_PASSWORD: passphrase, RUSTIC_CACHE_DIR: `${dir}/cache`, RUSTIC_NO_PROGRESS: 'true' }
    if (!s3) return { ...common, RUSTIC_REPOSITORY: endpoint.dir(name) }
    return {
      ...common,
      RUSTIC_REPOSITORY: 'opendal:s3',
      OPENDAL_BUCKET: s3.bucket,
      OPENDAL_ROOT: `/${s3.prefix}/${name}`,
      OPENDAL_ENDPOINT: s3.endpoint,
      OPENDAL_REGION: s3.region,
    }
  },
  s3Names: ['OPENDAL_ACCESS_KEY_ID', 'OPENDAL_SECRET_ACCESS_KEY'],
  init: ({ program, compression }) =>
    `${q(program)} init --set-compression ${{ zstd: 3, lz4: 1, none: 0 }[compression]}`,
  commands: ({ program, source }, restored) => {
    const backup = `${q(program)} backup ${q(source)}`
    return {
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `${q(program)} restore latest:${q(source)} ${q(restored)}`,
      check: `${q(program)} check`,
      'check data': `${q(program)} check --read-data`,
      // Without --instant-delete packs stay for 23 hours, marked: the others delete at once.
      prune: `${q(program)} forget --keep-last 1 --prune --instant-delete`,
    }
  },
  restoredAt: (_, restored) => restored,
}

const borg: Tool = {
  program: 'borg',
  version: ['--version'],
  backends: ['local'],
  compression: { zstd: 'zstd,3', lz4: 'lz4', none: 'none' },
  env: ({ endpoint, name, dir }) => ({
    BORG_REPO: endpoint.dir(name),
    BORG_PASSPHRASE: passphrase,
    BORG_BASE_DIR: `${dir}/borg`,
    BORG_DISPLAY_PASSPHRASE: 'no',
  }),
  // Of its encryptions the one with BLAKE2b is the faster here and on any processor without SHA extensions.
  init: ({ program }) => `${q(program)} init --encryption repokey-blake2`,
  commands: ({ program, source, compression }, restored) => {
    const how = { zstd: 'zstd,3', lz4: 'lz4', none: 'none' }[compression]
    const backup = `${q(program)} create --compression ${how} "::$(date +%s%N)" ${q(source)}`
    return {
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `cd ${q(restored)} && ${q(program)} extract "::$(${q(program)} list --short --last 1)"`,
      check: `${q(program)} check`,
      'check data': `${q(program)} check --verify-data`,
      prune: `${q(program)} prune --keep-last 1 && ${q(program)} compact`,
    }
  },
  restoredAt: ({ source }, restored) => `${restored}${source}`,
}

const kopia: Tool = {
  program: 'kopia',
  version: ['--version'],
  backends: ['local'],
  compression: { zstd: 'zstd', lz4: 'lz4', none: 'none' },
  env: ({ dir }) => ({
    KOPIA_PASSWORD: passphrase,
    KOPIA_CONFIG_PATH: `${dir}/kopia.config`,
    KOPIA_CACHE_DIRECTORY: `${dir}/cache`,
    KOPIA_LOG_DIR: `${dir}/kopia-logs`,
    KOPIA_CHECK_FOR_UPDATES: 'false',
  }),
  init: ({ program, endpoint, name, compression }) =>
    `mkdir -p ${q(endpoint.dir(name))} && ${q(program)} repository create filesystem --path ${q(endpoint.dir(name))} && ${q(program)} policy set --global --compression=${compression} --keep-latest 1 --keep-hourly 0 --keep-daily 0 --keep-weekly 0 --keep-monthly 0 --keep-annual 0`,
  commands: ({ program, source }, restored) => {
    const backup = `${q(program)} snapshot create ${q(source)}`
    return {
      'first backup': backup,
      'unchanged backup': backup,
      'changed backup': backup,
      restore: `${q(program)} snapshot restore "$(${q(program)} snapshot list --json ${q(source)} | grep -oE '"id":"[0-9a-f]+"' | tail -1 | cut -d'"' -f4)" ${q(restored)}`,
      check: `${q(program)} snapshot verify`,
      'check data': `${q(program)} snapshot verify --verify-files-percent=100`,
      // Without --safety=none it waits a day between marking and deleting: the others delete at once.
      prune: `${q(program)} snapshot expire --delete ${q(source)} && ${q(program)} maintenance run --full --safety=none`,
    }
  },
  restoredAt: (_, restored) => restored,
}

/** The tools by name; `baseline` is another build of vykar. */
export const tools: Record<string, Tool> = { vykar, baseline: vykar, restic, rustic, borg, kopia }
