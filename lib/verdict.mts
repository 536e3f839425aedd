// Verdicts: the words, the errors that lead to them, how they add up and their exit codes.

/** A verdict; DEMO is what a PASS becomes when the stand-in played vykar. */
export type Verdict = 'PASS' | 'FAIL' | 'BLOCKED' | 'SKIPPED' | 'DEMO'

/** Exit codes: sysexits' EX_TEMPFAIL for "try again", automake's 77 for "skipped". */
export const exitCodes: Record<Verdict, number> = { PASS: 0, DEMO: 0, FAIL: 1, BLOCKED: 75, SKIPPED: 77 }

/** The command line or a named file is wrong; nothing was run (exit 2). */
export class UsageError extends Error {}

/** Going on would destroy what may be someone's backups (exit 2). */
export class Refused extends Error {}

/** Something differs from what it must be: FAIL. */
export class Mismatch extends Error {}

/** The condition under test could not be brought about, or a bounded step ran out of time: BLOCKED. */
export class Blocked extends Error {}

/** This host lacks something; the message names it and how to install it: SKIPPED. */
export class Skipped extends Error {}

/** The user ended the run with a signal. */
export class Interrupted extends Error {
  constructor(readonly signal: NodeJS.Signals) {
    super(`interrupted by ${signal}`)
  }
}

/** The verdict that an error means for its row; any error that is not known here is a FAIL. */
export function verdictOf(error: unknown): Verdict {
  if (error instanceof Blocked) return 'BLOCKED'
  if (error instanceof Skipped) return 'SKIPPED'
  return 'FAIL'
}

/**
 * Adds rows up to the run's verdict: FAIL wins over BLOCKED, BLOCKED over DEMO, DEMO over PASS, PASS over SKIPPED.
 * No rows at all is a FAIL: a run that tried nothing has shown nothing.
 */
export function fold(verdicts: Verdict[]): Verdict {
  for (const word of ['FAIL', 'BLOCKED', 'DEMO', 'PASS', 'SKIPPED'] as const) if (verdicts.includes(word)) return word
  return 'FAIL'
}

/** The first line of an error's message, or of whatever was thrown. */
export function messageOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0] ?? ''
}
