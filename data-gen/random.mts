// Seeded randomness for choices (not for content or secrets): the same seed gives the same sequence everywhere.
import { createHash } from 'node:crypto'

/**
 * A generator of numbers in [0, 1): sfc32, in 32-bit integer arithmetic only, so that no machine differs.
 * Algorithm: Chris Doty-Humphrey, PractRand.
 * @param seed any text; it is hashed to the 96 bits of state
 */
export function seeded(seed: string): () => number {
  const hash = createHash('sha256').update(seed).digest()
  let [a, b, c, counter] = [hash.readInt32LE(0), hash.readInt32LE(4), hash.readInt32LE(8), 1]
  const next = () => {
    const t = (((a + b) | 0) + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = ((c << 21) | (c >>> 11)) + t
    c |= 0
    return (t >>> 0) / 2 ** 32
  }
  for (let i = 0; i < 12; i++) next()
  return next
}
