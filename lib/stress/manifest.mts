// What a snapshot must hold: written down when it is made, and compared with every restore of it.
import { $ } from '../sh.mts'

/**
 * Writes down what a tree holds: content, metadata, extended attributes.
 * @param stem path of the three files without their endings
 */
export async function manifest(tree: string, stem: string): Promise<void> {
  const $in = $({ limit: '1h', cwd: tree, unlisted: true })
  await $in`find . -type f -print0 | sort -z | xargs -0 -r sha256sum > ${stem}.sha256`
  await $in`find . -mindepth 1 \( -type d -printf '%y %m %U %G %T@ %p\0' -o -printf '%y %m %U %G %n %s %T@ %p %l\0' \) | sort -z | tr '\0' '\n' > ${stem}.tree`
  await $in`find . -mindepth 1 ! -type l -print0 | sort -z | xargs -0 -r getfattr -d -m - -e hex > ${stem}.xattr`
}

/** Requires that a restored tree is what was written down. Throws CommandFailed with the last line that differs. */
export async function sameAsWritten(stem: string, restored: string): Promise<void> {
  await manifest(restored, restored)
  for (const part of ['sha256', 'tree', 'xattr']) await $({ limit: '1h' })`diff -a ${stem}.${part} ${restored}.${part}`
}

/** Writes down the checksum and size of every file of a source of which the manifest is there. */
export async function contents(tree: string, stem: string): Promise<void> {
  const sizes = $({ cwd: tree, unlisted: true })
  await sizes`paste -d ' ' <(sed -E 's/^.?([0-9a-f]{64}) .*/\1/' ${stem}.sha256) <(find . -type f -print0 | sort -z | xargs -0 -r stat -c %s) > ${stem}.content`
}
