// The one way to run a program and look at what it says: bounded by coreutils timeout, in a session of its own.
import { quote, $ as zx } from 'zx'

/** A finished program: exit code (124 or 137 out of time, 127 not there) and its two outputs. */
export interface Answer {
  code: number
  stdout: string
  stderr: string
}

/** Where the programs of a system are, also for a user or a cron job whose PATH lacks them. */
const systemPath = '/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin'

/**
 * Runs a program to its end.
 * @param words program and arguments; nothing in them is the shell's
 * @param seconds time limit, 60 unless told
 */
export async function ask(
  words: readonly string[],
  {
    input = '',
    env = process.env,
    cwd = '/',
    seconds = 60,
  }: { input?: string; env?: NodeJS.ProcessEnv; cwd?: string; seconds?: number } = {},
): Promise<Answer> {
  const settings = { nothrow: true, quiet: true, detached: true, cwd, input, shell: '/bin/bash', quote }
  const path = { PATH: `${env.PATH ?? ''}:${systemPath}` }
  const child = await zx({ ...settings, env: { ...env, ...path } })`timeout -k 5s ${seconds}s ${words}`
  return { code: child.exitCode ?? 128, stdout: child.stdout, stderr: child.stderr }
}

/** The last line that says something. */
export const lastLine = (text: string): string => text.trim().split('\n').at(-1)?.trim() ?? ''
