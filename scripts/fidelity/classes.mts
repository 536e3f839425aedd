// The classes of what a file system holds, and the line that shows each: bash, run at the top of a tree, that prints a line for each
// bearer: its path, a tab, and the value. What a tool has kept prints the same line at the top of what it has restored.

import type { Word } from './table.mts'

/** A class of attributes or names. */
export interface Class {
  name: string
  shows: string
  /** The known gap or finding of vykar that says it is not kept, what becomes of it, and the value that comes instead. */
  known?: [id: string, word: Word, becomes?: RegExp]
  /** Not every host can have it: some file systems, containers. */
  optional?: boolean
}

/** Names may hold newlines: a line ends with NUL until then. */
const lines = "tr '\\n\\0' '?\\n'"
/** Prints path and SHA-256 of the files that find's words select. */
const content = (words: string) =>
  `find . -type f \\( ${words} \\) -print0 | xargs -0 -r sha256sum --zero | sed -z 's/^\\([0-9a-f]*\\)  \\(.*\\)/\\2\\t\\1/' | ${lines}`
/** Prints path and what find's format says of it. */
const found = (words: string, format: string, depth = '-mindepth 1') =>
  `find . ${depth} \\( ${words} \\) -printf '%p\\t${format}\\0' | ${lines}`
/** Prints path and what a line of bash says of `$f`, where it says anything. */
const each = (words: string, line: string, depth = '-mindepth 1') =>
  `find . ${depth} ! -path '*/crowd/*' \\( ${words} \\) -print0 | while IFS= read -rd '' f; do a=$(${line}) || true; [[ ! $a ]] || printf '%s\\t%s\\n' "$f" "$a"; done`
const xattr = (words: string, pattern: string, depth?: string) =>
  each(
    words,
    `getfattr -h -d -e hex -m '${pattern}' -- "$f" 2> /dev/null | sed 1d | LC_ALL=C sort | tr '\\n' ' '`,
    depth,
  )
const acl = (words: string, kind: string) =>
  each(words, `getfacl -cpn -- "$f" 2> /dev/null | grep -E '${kind}' | tr '\\n' ' '`)

const odd = [
  '* *',
  "*'*",
  '*"*',
  '*[*]*',
  '*[?]*',
  '*[[]*',
  '*{*',
  '*$*',
  '*`*',
  '*[\\\\]*',
  '-*',
  '#*',
  '~*',
  '!*',
  '%*',
]
  .map((pattern) => `-name ${pattern.includes("'") ? `"${pattern}"` : `'${pattern}'`}`)
  .join(' -o ')

/** The first digits of the seconds since 1970 that a run of up to eleven hours has: ten thousand seconds are one number. */
const seconds = Array.from({ length: 5 }, (_, n) => Math.floor(Date.now() / 1e7) + n)

/** All classes, in the order of the table. */
export const classes: Class[] = [
  { name: 'content of files', shows: content("! -name 'latin-*'") },
  { name: 'names and types', shows: found("! -name 'latin-*' ! -type p ! -type s ! -type c ! -type b", '%y') },
  { name: 'empty files', shows: found('-type f -empty', '%s') },
  { name: 'empty directories', shows: found("-type d -empty -name '*empty*'", '%y') },
  { name: 'dot files and directories', shows: found("-path '*/.*'", '%y') },
  { name: 'names with space, quote, glob character, backslash', shows: content(odd) },
  { name: 'names with tab, CR, ESC, newline', shows: content("-name '*[[:cntrl:]]*' -o -path '*newline/*'") },
  { name: 'names in NFC and in NFD, in upper and lower case', shows: content("-name 'nf[cd]-*' -o -iname caseonly") },
  { name: 'names that are not UTF-8', shows: content("-name 'latin-*'"), known: ['names-not-utf8-skipped', 'refused'] },
  { name: 'names of 255 bytes', shows: content("-name 'nnnnn*'") },
  { name: 'paths of 3,400 bytes', shows: content("-path './awkward/longest/*'") },
  { name: 'permission bits', shows: found("\\( -type f -o -type d \\) ! -name 'latin-*'", '%m') },
  { name: 'setuid, setgid, sticky', shows: found('-perm /7000', '%m') },
  { name: 'owner and group', shows: found('! -type l \\( ! -uid 0 -o ! -gid 0 \\)', '%U %G') },
  { name: 'owner and group of a symlink', shows: found('-type l \\( ! -uid 0 -o ! -gid 0 \\)', '%U %G') },
  { name: 'ACL', shows: acl('! -type l', '^(user|group):[0-9]') },
  { name: 'default ACL of a directory', shows: acl('-type d', '^default:') },
  { name: 'xattr user.* of a file', shows: xattr("-type f ! -name 'xattr-name*'", '^user\\.') },
  { name: 'xattr user.* of a directory', shows: xattr('-type d', '^user\\.') },
  {
    name: 'xattr whose name is not UTF-8',
    shows: xattr("-name 'xattr-name*'", '^user\\.'),
    known: ['xattr-name-not-utf8', 'lost, said', /became user\.beside=\S+$/],
  },
  { name: 'xattr of the largest size', shows: xattr('-name xattr-largest', '^user\\.largest') },
  { name: 'xattr trusted.*', shows: xattr('-type f', '^trusted\\.'), optional: true },
  { name: 'xattr of a symlink', shows: xattr('-type l', '^trusted\\.'), optional: true },
  { name: 'xattr security.*', shows: xattr("-name 'xattr-security'", '^security\\.vykar'), optional: true },
  { name: 'capabilities', shows: xattr('-type f', '^security\\.capability'), optional: true },
  { name: 'targets of symlinks', shows: found('-type l', '%l') },
  {
    name: 'hard links',
    shows: `find . -type f -links +1 -printf '%D:%i\\t%p\\n' | LC_ALL=C sort -k2 | awk -F'\\t' '{if (!($1 in first)) first[$1] = $2; print $2 "\\t" first[$1]}'`,
  },
  {
    name: 'hard links of a symlink',
    shows: found('-type l -links +1', '%n'),
    known: ['hardlinked-symlinks', 'lost in silence'],
  },
  { name: 'FIFO', shows: found('-type p', '%m'), known: ['special-files', 'refused'] },
  { name: 'socket', shows: found('-type s', '%m'), known: ['special-files', 'refused'] },
  { name: 'device', shows: found('-type c -o -type b', '%y %m'), known: ['special-files', 'refused'], optional: true },
  {
    name: 'holes',
    shows: `find . -type f -size +1M -printf '%p\\t%s\\t%b\\n' | awk -F'\\t' '$2 > 2 * $3 * 512 {print $1 "\\tsparse"}'`,
    known: ['sparse-allocated', 'lost in silence'],
  },
  { name: 'mtime of a file', shows: found("-type f ! -name 'mtime-*' ! -name 'latin-*'", '%T@') },
  { name: 'mtime: nanoseconds', shows: found('-name mtime-ns', '%T@') },
  { name: 'mtime of a symlink', shows: found('-type l', '%T@') },
  { name: 'mtime of a directory', shows: found('-type d', '%T@') },
  { name: 'mtime 1970-01-01', shows: found('-name mtime-1970', '%T@') },
  { name: 'mtime 1969', shows: found("-name 'mtime*-1969'", '%T@') },
  { name: 'mtime 1901', shows: found('-name mtime-1901', '%T@') },
  { name: 'mtime 2040 to 2261', shows: found("-name mtime-2038 -o -name 'mtime-dir-2040' -o -name mtime-2261", '%T@') },
  {
    name: 'mtime 2300',
    shows: found('-name mtime-2300', '%T@'),
    known: ['mtime-after-2262', 'lost in silence', /became -2147483648/],
  },
  {
    name: 'top directory: mode, owner',
    shows: found('-type d', '%m %U %G', '-maxdepth 0'),
    // What the directory was that restore was given.
    known: [
      'top-directory-attributes',
      'lost in silence',
      new RegExp(`became 7[57]5 ${process.getuid?.()} ${process.getgid?.()}$`),
    ],
  },
  {
    name: 'top directory: xattr',
    shows: xattr('-type d', '^user\\.', '-maxdepth 0'),
    known: ['top-directory-attributes', 'lost in silence', /became nothing$/],
  },
  {
    name: 'top directory: mtime',
    shows: found('-type d', '%T@', '-maxdepth 0'),
    // The time of the restore, which is now.
    known: ['top-directory-mtime', 'lost in silence', new RegExp(`became (${seconds.join('|')})\\d{4}(\\.\\d+)?$`)],
  },
  {
    name: 'inode flags (chattr)',
    shows: `find . -name 'flag*' -print0 | { xargs -0 -r lsattr -d 2> /dev/null || true; } | awk '{gsub(/[-eIN]/, "", $1); if ($1) print $2 "\\t" $1}'`,
    known: ['inode-flags', 'lost in silence', /became nothing$/],
    optional: true,
  },
]
