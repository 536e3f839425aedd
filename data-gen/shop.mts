// The data of the database scenarios: a shop's customers, products, orders and order events, the same for every server.
// A row depends on the seed, its table and its id alone, so that neither jobs nor the order of writing show in it.
import { createCipheriv, createHash } from 'node:crypto'
import { seeded } from '#data-gen/random.mts'
import { bytes } from '#lib/terminal.mts'
import { UsageError } from '#lib/verdict.mts'

/** A column's type, which each server spells its own way; `id` is a 64-bit integer, `bytes` random bytes. */
export interface Column {
  name: string
  type: 'id' | 'int' | 'text' | 'time' | 'bytes'
}
export type Cell = number | string | Date | Buffer

const column = (type: Column['type'], ...names: string[]): Column[] => names.map((name) => ({ name, type }))

/** Tables in the order in which they are filled, parents first. `id` is each one's primary key. */
export const tables = {
  customers: [
    ...column('id', 'id'),
    ...column('text', 'name', 'email', 'city'),
    ...column('time', 'created_at'),
    ...column('int', 'order_count'),
  ],
  products: [
    ...column('id', 'id'),
    ...column('text', 'sku', 'name'),
    ...column('int', 'price_cents'),
    ...column('bytes', 'image'),
  ],
  orders: [
    ...column('id', 'id', 'customer_id', 'product_id'),
    ...column('int', 'quantity'),
    ...column('time', 'placed_at'),
    ...column('int', 'event_count'),
  ],
  order_events: [
    ...column('id', 'id', 'order_id'),
    ...column('text', 'kind'),
    ...column('time', 'at'),
    ...column('bytes', 'payload'),
  ],
} as const satisfies Record<string, Column[]>
export type Table = keyof typeof tables
export const tableNames = Object.keys(tables) as Table[]

/** References from one table to another, as foreign keys and as what a consistent moment must satisfy. */
export const references = [
  { table: 'orders', column: 'customer_id', parent: 'customers', counted: 'order_count' },
  { table: 'orders', column: 'product_id', parent: 'products', counted: undefined },
  { table: 'order_events', column: 'order_id', parent: 'orders', counted: 'event_count' },
] as const

/** How a server stores payloads: sizes are whole pieces, so that the size on disk can be said beforehand. */
export interface Storage {
  /** Bytes of payload that one piece holds. */
  piece: number
  /** Bytes that a piece takes on disk, its share of indexes included. */
  pieceOnDisk: number
  /** Bytes that the rest of an order event takes on disk, with its share of its order and customer and of indexes. */
  eventOnDisk: number
  /** Bytes that the rest of a product takes. */
  productOnDisk: number
  /** Fewest and most pieces of an order event's payload and of a product's image. */
  event: readonly [number, number]
  image: readonly [number, number]
}

/** Orders of a customer and events of an order, by turns: 5 and 4 on average, and every count is known without a look. */
const ordersPerCustomer = [3, 9, 1, 7, 5] as const
const eventsPerOrder = [4, 1, 7, 3, 5, 2, 6] as const
const turn = { customers: 35, orders: 175, order_events: 700 } as const

const mean = ([low, high]: readonly [number, number]) => (low + high) / 2

/**
 * Rows of each table for a target in bytes: three quarters of it order events, what is then missing product images.
 * @throws UsageError where the target is too small for customers of every kind
 */
export function planRows(targetBytes: number, storage: Storage): Record<Table, number> {
  const { pieceOnDisk, eventOnDisk, productOnDisk, event, image } = storage
  const perTurn = turn.order_events * (mean(event) * pieceOnDisk + eventOnDisk)
  const turns = Math.floor((targetBytes * 0.75) / perTurn)
  if (turns < 1)
    throw new UsageError(
      `--target-gib is too small: ${bytes(perTurn / 0.75)} of rows are the least, besides an empty database`,
    )
  const perProduct = mean(image) * pieceOnDisk + productOnDisk
  const products = Math.max(1, Math.round((targetBytes - turns * perTurn) / perProduct))
  return {
    customers: turn.customers * turns,
    products,
    orders: turn.orders * turns,
    order_events: turn.order_events * turns,
  }
}

/** Which parent the n-th child has, and the counts by turns: [parent, count of its children]. */
function parentOf(n: number, counts: readonly number[]): number {
  const sum = counts.reduce((a, b) => a + b, 0)
  let rest = n % sum
  let parent = Math.floor(n / sum) * counts.length
  for (const count of counts) {
    if (rest < count) break
    rest -= count
    parent++
  }
  return parent
}

/** Rows in a block: it has a key stream of its own, and is the least that a writer is given. */
export const blockRows = 32
const kinds = ['placed', 'paid', 'packed', 'shipped', 'delivered', 'returned', 'reviewed']
const cities = ['Aarhus', 'Bergen', 'Córdoba', 'Dresden', 'Évora', 'Łódź', 'Malmö', 'Nantes', '東京', 'Zürich']
/** Times lie in the ten years after 2014-01-01. */
const oldest = Date.UTC(2014, 0, 1)
const decade = 315_360_000

/**
 * The rows of one block.
 * @param first ids begin after these, by table: the rows that were there before
 * @param plan rows that are made in this go
 */
export function* block(
  table: Table,
  index: number,
  plan: Record<Table, number>,
  first: Record<Table, number>,
  storage: Storage,
  seed: number,
): Generator<Cell[]> {
  const name = `shop ${seed} ${table} ${first[table] + index * blockRows}`
  const random = seeded(name)
  const hash = createHash('sha256').update(name).digest()
  const stream = createCipheriv('aes-128-ctr', hash.subarray(0, 16), hash.subarray(16))
  // The key stream itself: what is encrypted is always the same zeros.
  const zeros = Buffer.alloc(storage.piece * Math.max(storage.event[1], storage.image[1]))
  const payload = ([low, high]: readonly [number, number]) =>
    stream.update(zeros.subarray(0, storage.piece * (low + Math.floor(random() * (high - low + 1)))))
  const time = () => new Date(oldest + Math.floor(random() * decade) * 1000)
  const end = Math.min(plan[table], (index + 1) * blockRows)
  for (let n = index * blockRows; n < end; n++) {
    const id = first[table] + n + 1
    if (table === 'customers') {
      const city = cities[Math.floor(random() * cities.length)]!
      yield [id, `Customer ${id}`, `customer-${id}@example.org`, city, time(), ordersPerCustomer[n % 5]!]
    } else if (table === 'products') {
      yield [id, `SKU-${id}`, `Product ${id}`, 100 + Math.floor(random() * 99_900), payload(storage.image)]
    } else if (table === 'orders') {
      const customer = first.customers + parentOf(n, ordersPerCustomer) + 1
      const product = first.products + Math.floor(random() * plan.products) + 1
      yield [id, customer, product, 1 + Math.floor(random() * 9), time(), eventsPerOrder[n % 7]!]
    } else {
      const order = first.orders + parentOf(n, eventsPerOrder) + 1
      yield [id, order, kinds[Math.floor(random() * kinds.length)]!, time(), payload(storage.event)]
    }
  }
}
