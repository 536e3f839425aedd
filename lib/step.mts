// A step: a named part of the procedure with one log, one line of progress and its commands on record.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DryEnd, type Scope, type StepRecord, within } from './sh.mts'
import type { Terminal } from './terminal.mts'
import { Interrupted, messageOf, verdictOf } from './verdict.mts'

/** A value that a dry run does not know: prints as `‹step›` wherever it is used. */
function placeholder<T>(name: string): T {
  const text = `‹${name}›`
  const proxy: unknown = new Proxy(() => proxy, {
    get: (_, key) => {
      if (key === 'then' || key === Symbol.iterator) return undefined
      if (key === Symbol.toPrimitive || key === 'toString') return () => text
      return proxy
    },
  })
  return proxy as T
}

/**
 * Runs `fn` as a step of `scope` and puts it on record in `steps`.
 * @param aborted rejects when the user interrupts the run
 * @returns what `fn` gives; in a dry run a placeholder where it depends on output
 * @throws whatever `fn` throws, Interrupted after a signal
 */
export async function runStep<T>(
  scope: Scope,
  steps: StepRecord[],
  terminal: Terminal,
  aborted: Promise<never>,
  name: string,
  fn: () => Promise<T>,
): Promise<T> {
  const signal = scope.interrupted()
  if (signal) throw new Interrupted(signal)
  const file = `${scope.where}.${String(steps.length + 1).padStart(2, '0')}-${name.replace(/[^\w.-]+/g, '-')}.log`
  const record: StepRecord = { name, log: join(scope.logDir, file), seconds: 0, commands: [] }
  scope.transcript.step(scope.where, name)
  if (scope.dry)
    return within({ ...scope, step: record }, fn).catch((error) => {
      if (error instanceof DryEnd) return placeholder<T>(name)
      throw error
    })
  steps.push(record)
  writeFileSync(record.log, '')
  terminal.begin(scope.where, name)
  const start = performance.now()
  try {
    const value = await Promise.race([within({ ...scope, step: record }, fn), aborted])
    record.verdict = 'PASS'
    return value
  } catch (error) {
    record.verdict = verdictOf(error)
    record.reason = messageOf(error)
    throw error
  } finally {
    record.seconds = (performance.now() - start) / 1000
    const commands = record.commands.map((c) => c.command)
    terminal.end(
      record.verdict === 'PASS' ? 'ok' : (record.verdict ?? ''),
      record.seconds,
      record.reason ?? '',
      commands,
    )
  }
}
