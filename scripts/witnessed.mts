// What a tree is, in files that later copies are held against, by well-known tools.
import { $, check, read } from '#lib/sh.mts'
import { Mismatch } from '#lib/verdict.mts'

/** bash that prints all of a tree but its content: types, modes, owners, sizes, times and links, then extended attributes and ACLs. */
export const listing = `{ find . -mindepth 1 \\( -type d -printf '%y %m %U %G %T@ %p\\0' -o -printf '%y %m %U %G %n %s %T@ %p %l\\0' \\) | sort -z | tr '\\0' '\\n'; find . -mindepth 1 -print0 | sort -z | xargs -0 -r getfattr -h -d -m - -e hex --; }`

/** The sha256 of every file of a tree, into NAME.sha256. */
export async function contents(tree: string | { raw: string }, name: string): Promise<void> {
  await $({
    limit: '2h',
  })`(cd ${tree} && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum) > ${name}.sha256`
}

/** The same, and all else that the tree is, into NAME.tree. Dumps, whose times are those of the backup, have their content alone. */
export async function witnessed(tree: string | { raw: string }, name: string): Promise<void> {
  await contents(tree, name)
  await $({ limit: '1h' })`(cd ${tree} && ${{ raw: listing }}) > ${name}.tree`
}

/**
 * A restored tree is, beside its content, what NAME.tree says, where there is one.
 * @throws Mismatch with the first line in which it differs
 */
export async function alikeTo(name: string, tree: string): Promise<void> {
  await $({
    limit: '1h',
  })`if test -e ${name}.tree; then (cd ${tree} && ${{ raw: listing }}) | diff -a ${name}.tree - > ${tree}.differ || true; else : > ${tree}.differ; fi`
  await check(`test ! -s ${tree}.differ`, () => {
    const lines = read(`${tree}.differ`).split('\n').filter((line) => /^[<>]/.test(line)) // biome-ignore format: one line
    if (lines.length) throw new Mismatch(`${tree} is not what ${name} was: ${lines.slice(0, 2).join(', ')}`)
  })
}
