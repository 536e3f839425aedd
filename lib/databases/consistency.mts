// One consistent moment: what must hold in every restored database, and the writes that would break it.
import { type Background, background } from '../background.mts'
import { rowScope } from '../row.mts'
import { scope } from '../sh.mts'
import { Blocked, Mismatch } from '../verdict.mts'
import { references } from './shop.mts'

/** Runs SQL in a database and returns what it prints, without the last newline. */
export type Query = (database: string, sql: string) => Promise<string>

/** Every order has the events that it says, every customer the orders: true at any moment, and never of a torn dump. */
export async function oneMoment(query: Query, database: string): Promise<void> {
  for (const { table, column, parent, counted } of references) {
    if (!counted) continue
    const sql = `SELECT count(*) FROM ${parent} p WHERE ${counted} <> (SELECT count(*) FROM ${table} c WHERE c.${column} = p.id)`
    const odd = await query(database, sql)
    if (!scope().dry && odd !== '0')
      throw new Mismatch(`not one moment: ${odd} rows of ${parent} whose ${counted} is not the count of their ${table}`)
  }
}

/** How a server is written to in a loop. */
export interface Writer {
  /** The database that is written to. */
  database: string
  query: Query
  /** A client that writes rounds of one customer, one order and two events, each a transaction, until `end`. */
  argv: string[]
  end: () => Promise<void>
}

const rounds = "SELECT count(*) FROM customers WHERE name = 'churn'"
/** Takes out what the rounds wrote, children first. */
const undo = [
  "DELETE FROM order_events WHERE payload = 'churn'",
  "DELETE FROM orders WHERE customer_id IN (SELECT id FROM customers WHERE name = 'churn')",
  "DELETE FROM customers WHERE name = 'churn'",
]

/** Writes that go on while a dump is made. */
export class Churn {
  private before = 0
  private after = 0
  private running: Background | undefined
  constructor(private readonly writer: Writer) {}

  private async count(database: string): Promise<number> {
    return Number(await this.writer.query(database, rounds))
  }

  /** Starts writing; it is ended when the row is. Throws Blocked where nothing arrives in the database. */
  async start(): Promise<void> {
    const { argv, database } = this.writer
    const { transcript, dry } = scope()
    transcript.line(
      `# in the background until the dump is done: ${argv
        .slice(0, -1)
        .map((word) => transcript.quote(word))
        .join(' ')} …`,
    )
    if (dry) return
    rowScope().row.cleanup.add('writers', () => this.stop())
    this.running = background(argv, 'churn.out')
    for (let i = 0; i < 100 && this.before === 0; i++) this.before = await this.count(database)
    if (!this.before) throw new Blocked('nothing was written to the database: see churn.out')
  }

  /** Ends the writing and takes what it wrote out of the source again, which is then as it was. */
  async stop(): Promise<void> {
    if (!this.running) return
    const { database, query, end } = this.writer
    this.running = undefined
    this.after = await this.count(database)
    await end()
    for (const sql of undo) await query(database, sql)
  }

  /** The restored database must hold a moment while writes went on: some of them, and not the last. */
  async within(database: string): Promise<void> {
    if (scope().dry) return
    const held = await this.count(database)
    rowScope().row.report.facts['rounds of writes'] =
      `${this.before} before the backup, ${held} restored, ${this.after} after it`
    if (held < this.before)
      throw new Mismatch(`${held} rounds of writes restored, ${this.before} were there before the dump`)
    if (held >= this.after) throw new Blocked('no write came after the moment of the dump: nothing was shown about it')
  }
}
