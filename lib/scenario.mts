// The frame of every script: from its command line to its last line and exit code.
import { hangupIgnored, needProcess } from './environment.mts'
import type { OptionSpecs, Values } from './options.mts'
import { type commonOptions, type Description, describe, prepare, type ScenarioSpec, scenarioName } from './prepare.mts'
import { Run } from './run.mts'
import { allowLostOutput } from './terminal.mts'
import { Blocked, exitCodes, Mismatch, messageOf, Refused, Skipped, UsageError, verdictOf } from './verdict.mts'

/** A run as the script sees it, with its own options typed. */
export type ScenarioRun<O extends OptionSpecs> = Run & { options: Values<typeof commonOptions & O> }

/** Scripts that are imported while `into` is there say what they are and do not run: all are asked in one process. */
export const asked: { into?: Description[] } = {}

/** What a user's signal makes of the exit code: 128 and its number. */
const signalCodes: Partial<Record<NodeJS.Signals, number>> = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }

/** Runs the procedure, prints the end. Returns the exit code. */
async function carryOut(run: Run, body: () => Promise<void>): Promise<number> {
  if (run.dry) {
    await run.rehearse(body)
    return 0
  }
  const signals: NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP']
  for (const name of signals)
    process.on(name, () => {
      // What nohup asked for stays so.
      if (name !== 'SIGHUP' || !hangupIgnored()) run.onSignal(name)
    })
  const { verdict, page, ended } = await run.execute(body)
  const { report, terminal, plan } = run
  for (const note of report.notes) terminal.line(`note: ${note}`)
  for (const row of report.rows) {
    for (const note of row.notes) terminal.line(`note: ${row.repo}: ${note}`)
    for (const kept of row.kept) terminal.line(`kept: ${kept}`)
  }
  console.log(`by hand ${report.transcript}`)
  console.log(`report ${page}`)
  console.log(`${verdict} ${plan.scenario} ${report.reason}`.trim())
  if (run.interrupted) return signalCodes[run.interrupted] ?? 1
  const untouched = report.rows.every((row) => row.verdict === 'FAIL')
  return ended instanceof UsageError || (ended instanceof Refused && untouched) ? 2 : exitCodes[verdict]
}

/**
 * Runs a script's procedure as a scenario and ends the process with the verdict's exit code.
 * @param meta the script's `import.meta`
 * @param spec what it needs and which options it takes
 * @param body the procedure
 */
export async function scenario<const O extends OptionSpecs = Record<never, never>>(
  meta: ImportMeta,
  spec: ScenarioSpec<O>,
  body: (run: ScenarioRun<O>) => Promise<void>,
): Promise<void> {
  if (asked.into) return void asked.into.push(describe(meta.filename, spec))
  const name = scenarioName(meta.filename)
  let ended = false
  allowLostOutput()
  // Failure is the initial state: a run that ends without its verdict (a promise that never settles, a crash) failed.
  process.exitCode = 1
  process.once('exit', () => {
    if (!ended) console.log(`FAIL ${name} ended without a verdict`)
  })
  try {
    needProcess()
    const plan = await prepare(meta.filename, process.argv.slice(2), spec)
    const run = plan && (Object.assign(new Run(plan, spec), { options: plan.options }) as ScenarioRun<O>)
    process.exitCode = run ? await carryOut(run, () => body(run)) : 0
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`${name}: ${error.message}`)
      process.exitCode = 2
    } else {
      const verdict = verdictOf(error)
      if (!(error instanceof Skipped || error instanceof Blocked || error instanceof Mismatch)) console.error(error)
      console.log(`${verdict} ${name} ${messageOf(error)}`)
      process.exitCode = exitCodes[verdict]
    }
  }
  ended = true
  // What is still on its way into a pipe goes first; a socket or timer somebody forgot must not keep a finished run alive.
  await new Promise((gone) => process.stdout.write('', gone))
  process.exit()
}
