// The cases that backup tools get wrong: names, links, modes, owners, times, attributes, holes, special files. Every attribute that
// the suite compares has a bearer here that differs from the default.
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { ask, lastLine } from '#lib/ask.mts'

/** Goes up when a corpus of the same size and seed becomes another one: an older one of the suite's own is then made anew. */
export const corpusFormat = 4

const MiB = 2 ** 20
/** Levels of the longest path, with names of 200 bytes: Linux takes 4096 bytes, and a restored copy has a longer prefix. */
const longestLevels = 17

/** Runs a program. Throws Error with its last line where it fails. */
export async function run(...words: string[]): Promise<void> {
  const done = await ask(words, { seconds: 7200 })
  if (done.code !== 0) throw new Error(`${words[0]}: ${lastLine(done.stderr) || `exit ${done.code}`}`)
}

const root = process.getuid?.() === 0

/** What one part of the corpus writes into: paths below `awkward/`. */
interface Place {
  at: (name: string) => string
  put: (name: string, text?: string | Buffer) => void
  key: Buffer
}

/**
 * Writes `awkward/` below a tree, and gives the tree's own top directory a mode, an owner, an ACL and an attribute. Needs setfattr and
 * setfacl; owners, devices, capabilities and some attributes need root.
 * @param key random bytes that follow the seed
 * @param crowded whether there is a directory of 20,000 names, too
 */
export async function writeAwkward(top: string, key: Buffer, crowded: boolean): Promise<void> {
  const dir = join(top, 'awkward')
  const at = (name: string) => join(dir, name)
  fs.mkdirSync(dir, { recursive: true })
  const contentOf = (name: string) => `${createHash('sha512').update(key).update(name).digest('hex')}\n`
  const put = (name: string, text: string | Buffer = contentOf(name)) => {
    fs.mkdirSync(dirname(at(name)), { recursive: true })
    fs.writeFileSync(at(name), text)
  }
  const place = { at, put, key }
  writeNames(place, crowded)
  writeLinks(place)
  writeContent(place)
  writeModes(place)
  await writeAttributes(place)
  if (root) await writeOwned(place)
  await writeSpecial(place)
  await settle(dir)
  await writeTimes(place)
  await writeTop(top)
}

function writeNames({ at, put, key }: Place, crowded: boolean): void {
  for (const name of [
    'with space',
    ' leading',
    'trailing ',
    'ünïcödé-日本語-🗄',
    // The same letter twice: composed, and as a letter and its accent.
    'nfc-\u00e9',
    'nfd-e\u0301',
    'nfc-nfd-\u00fc',
    'nfc-nfd-u\u0308',
    'CaseOnly',
    'caseonly',
    "quote'single",
    'quote"double',
    'back\\slash',
    'star*',
    'question?',
    '[a-z]',
    '{a,b}',
    '!bang',
    '#hash',
    '~tilde',
    'tab\there',
    'escape\u001b[31m',
    'carriage\rreturn',
    '.dotfile',
    '.dotdir/file',
    '..two dots',
    '-dash',
    '$dollar `tick`',
    '%20',
    'new\nline',
    'directory\nnewline/file',
    'n'.repeat(255),
    `${'deep/'.repeat(60)}file`,
  ])
    put(name)
  const long = Array.from({ length: longestLevels }, (_, n) => `${n}-`.padEnd(200, 'long')).join('/')
  put(`longest/${long}/file`)
  // Words that are looked for in the repository: they are random, so that no compression hides them.
  const word = (n: number) => createHash('sha256').update(key).update(`planted ${n}`).digest('hex')
  // The last of them is a name.
  put(word(4), '')
  put('planted', `${word(1)}\n${word(2)}\n${word(3)}\n${word(4)}\n`)
  if (!crowded) return
  fs.mkdirSync(at('crowd'))
  for (let n = 0; n < 20_000; n++) fs.writeFileSync(at(`crowd/${n}`), `${n}\n`)
}

function writeLinks({ at, put, key }: Place): void {
  put('hard-1', key)
  fs.mkdirSync(at('links'))
  fs.linkSync(at('hard-1'), at('hard-2'))
  fs.linkSync(at('hard-1'), at('links/hard-3'))
  put('twin-1', 'same content, two files\n')
  put('twin-2', 'same content, two files\n')
  fs.symlinkSync('hard-1', at('links/to-file'))
  fs.symlinkSync('../awkward', at('links/to-dir'))
  fs.symlinkSync('/nowhere/at all', at('links/dangling'))
  fs.symlinkSync('t'.repeat(1000), at('links/long-target'))
  fs.symlinkSync('hard-1', at('links/hard-symlink-1'))
  fs.linkSync(at('links/hard-symlink-1'), at('links/hard-symlink-2'))
}

function writeContent({ at, put, key }: Place): void {
  put('empty', '')
  fs.mkdirSync(at('empty-dir'))
  put('sparse', '')
  fs.truncateSync(at('sparse'), 24 * MiB)
  const handle = fs.openSync(at('sparse'), 'r+')
  fs.writeSync(handle, key, 0, 16, 12 * MiB)
  fs.closeSync(handle)
  put('hole-only', '')
  fs.truncateSync(at('hole-only'), 5 * MiB + 1)
  // The same 64 KiB many times over in one file, and again in another.
  const block = Buffer.concat(Array.from({ length: 64 }, (_, n) => [n % 7, n % 11, n % 13].map((m) => createHash('sha512').update(key).update(String(m)).digest())).flat()) // biome-ignore format: one line
  put('repeated', Buffer.concat(Array.from({ length: 48 }, () => block)))
  put('repeated-too', Buffer.concat([Buffer.from('shifted'), ...Array.from({ length: 16 }, () => block)]))
  for (const size of [1, 511, 512, 4095, 4096, 4097, 65535, 65536, 65537, 2 * MiB])
    put(`size-${size}`, Buffer.alloc(size, createHash('sha256').update(key).update(String(size)).digest()))
}

function writeModes({ at, put }: Place): void {
  // A plain user could not read a file of mode 000, and so not back it up.
  for (const mode of [...(root ? [0o000] : []), 0o400, 0o777, 0o4755, 0o2755, 0o1644]) {
    put(`mode-${mode.toString(8)}`)
    fs.chmodSync(at(`mode-${mode.toString(8)}`), mode)
  }
  for (const mode of [...(root ? [0o000] : []), 0o555, 0o700, 0o1777, 0o2775]) {
    const name = `dir-${mode.toString(8)}`
    put(`${name}/file`)
    fs.chmodSync(at(name), mode)
  }
}

/** Sets `user.largest` on a file: as many bytes as it takes, and a temporary file does; 64 KiB are Linux's own limit. */
const largestXattr = `set -e
probe=$(mktemp -t xattr-XXXXXX); trap 'rm -f "$probe"' EXIT
set_to() { setfattr -n user.largest -v "$(head -c "$1" /dev/zero | tr '\\0' v)" "$2"; }
plain='' least=1 most=65537
set_to 1 "$probe" 2> /dev/null || plain=1  # a tmpfs may take none
while ((most - least > 1)); do
  n=$(((least + most) / 2))
  if { set_to $n "$0" && { [[ $plain ]] || set_to $n "$probe"; }; } 2> /dev/null; then least=$n; else most=$n; fi
done
set_to $least "$0"`

async function writeAttributes({ at, put }: Place): Promise<void> {
  put('xattr')
  await run('setfattr', '-n', 'user.vykar-e2e', '-v', 'a value', at('xattr'))
  await run('setfattr', '-n', 'user.binary', '-v', '0x00ff10', at('xattr'))
  put('xattr-empty')
  await run('setfattr', '-n', 'user.empty', at('xattr-empty'))
  put('xattr-3072')
  await run('setfattr', '-n', 'user.large', '-v', 'v'.repeat(3072), at('xattr-3072'))
  await run('setfattr', '-n', 'user.on-dir', '-v', 'dir', at('empty-dir'))
  // The largest value that the file system of the source takes, and that of TMPDIR, which in a run is the one that restores go to.
  put('xattr-largest')
  const largest = await ask(['bash', '-c', largestXattr, at('xattr-largest')])
  if (largest.code !== 0) throw new Error(`xattr-largest: ${lastLine(largest.stderr)}`)
  put('xattr-name-not-utf8')
  await run('setfattr', '-n', 'user.beside', '-v', 'kept', at('xattr-name-not-utf8'))
  // A name that is not UTF-8 is no argument that Node can pass on.
  await run('bash', '-c', 'setfattr -n $\'user.\\xff\' -v value "$0"', at('xattr-name-not-utf8'))
  put('acl')
  await run('setfacl', '-m', 'u:12345:rw,g:54321:r', at('acl'))
  // Not every file system has flags.
  put('flag-no-dump')
  await ask(['chattr', '+d', at('flag-no-dump')])
  put('acl-default/file')
  await run('setfacl', '-m', 'd:u:12345:rwx,d:g:54321:rx,u:12345:rwx', at('acl-default'))
}

/** What only root can set; some of it not in a container, where it is left out. */
async function writeOwned({ at, put }: Place): Promise<void> {
  put('owner')
  fs.chownSync(at('owner'), 12345, 54321)
  put('owner-large')
  fs.chownSync(at('owner-large'), 2_000_000_000, 2_000_000_001)
  fs.mkdirSync(at('owner-dir'))
  fs.chownSync(at('owner-dir'), 12345, 54321)
  fs.lchownSync(at('links/dangling'), 12345, 54321)
  put('setuid-owner')
  fs.chownSync(at('setuid-owner'), 12345, 54321)
  fs.chmodSync(at('setuid-owner'), 0o6755)
  put('capability')
  await run('setcap', 'cap_net_bind_service=ep', at('capability'))
  put('capability-owner')
  fs.chownSync(at('capability-owner'), 12345, 54321)
  await run('setcap', 'cap_net_raw=ep', at('capability-owner'))
  put('xattr-trusted')
  put('xattr-security')
  for (const words of [
    ['setfattr', '-n', 'trusted.vykar-e2e', '-v', 'a value', at('xattr-trusted')],
    ['setfattr', '-n', 'security.vykar-e2e', '-v', 'a value', at('xattr-security')],
    ['setfattr', '-h', '-n', 'trusted.on-symlink', '-v', 'a value', at('links/to-file')],
  ])
    await ask(words)
}

/** FIFO, socket, device: nothing that holds content, but something that a tool can stumble over. */
async function writeSpecial({ at }: Place): Promise<void> {
  fs.mkdirSync(at('special'))
  await run('mkfifo', at('special/fifo'))
  fs.linkSync(at('special/fifo'), at('special/fifo-link'))
  // The block device is none that exists: whoever reads it is told so, and reads nobody's disk. A container may allow neither.
  if (root)
    for (const [name, ...kind] of [
      ['null', 'c', '1', '3'],
      ['disk', 'b', '240', '255'],
    ])
      await ask(['mknod', at(`special/${name}`), ...kind])
  // A socket's path must be short: it is made elsewhere, as a name that close() does not find any more.
  const made = fs.mkdtempSync('/tmp/vykar-e2e-')
  const server = createServer().listen(join(made, 'socket'))
  await once(server, 'listening')
  try {
    await run('mv', join(made, 'socket'), at('special/socket'))
  } finally {
    server.close()
    fs.rmdirSync(made)
  }
}

/** One modification time for all that has none of its own: repeatable, and twins differ in nothing but their inode. */
async function settle(dir: string): Promise<void> {
  await run('find', dir, '-exec', 'touch', '-h', '-d', '@1600000000.25', '{}', '+')
}

/** Times last: whatever is made in a directory changes its own. */
async function writeTimes({ at, put }: Place): Promise<void> {
  for (const [name, date] of [
    ['mtime-ns', '2021-05-06 07:08:09.123456789 UTC'],
    ['mtime-1969', '1969-07-20 20:17:40.000000001 UTC'],
    ['mtime-1901', '1901-12-24 00:00:00.5 UTC'],
    ['mtime-1970', '@0'],
    ['mtime-2038', '2040-02-29 12:00:00 UTC'],
    ['mtime-2261', '2261-12-31 23:59:59.999999999 UTC'],
    ['mtime-2300', '2300-01-01 00:00:00 UTC'],
  ] as const) {
    put(name)
    await run('touch', '-d', date, at(name))
  }
  await run('touch', '-h', '-d', '1969-07-20 20:17:40.000000001 UTC', at('links/dangling'))
  // Those of directories follow chance (corpus.mts), but for these.
  for (const [name, date] of [
    ['mtime-dir-1969', '1969-07-20 20:17:40.000000001 UTC'],
    ['mtime-dir-2040', '2040-02-29 12:00:00.000000007 UTC'],
  ] as const) {
    fs.mkdirSync(at(name))
    await run('touch', '-d', date, at(name))
  }
}

/** The tree's own top directory is no exception. */
async function writeTop(top: string): Promise<void> {
  fs.chmodSync(top, 0o751)
  await run('setfattr', '-n', 'user.vykar-e2e-top', '-v', 'top', top)
  await run('setfacl', '-m', 'u:12345:rx', top)
  if (root) fs.chownSync(top, 0, 54321)
}
