// Whether a figure grows from step to step: the slope of a least-squares line, with its standard error.

/** A line through points: how much `y` grows for each `x`, and the slope's standard error. */
export interface Trend {
  slope: number
  error: number
  /** What the line says `y` grew by, from the first `x` to the last. */
  growth: number
  mean: number
}

/** Fits a line; undefined for fewer than three points, which have no error. */
export function trend(points: readonly (readonly [x: number, y: number])[]): Trend | undefined {
  const n = points.length
  if (n < 3) return undefined
  const [x, y] = [0, 1].map((i) => points.reduce((sum, point) => sum + point[i as 0 | 1], 0) / n) as [number, number]
  const spread = points.reduce((sum, point) => sum + (point[0] - x) ** 2, 0)
  const slope = points.reduce((sum, point) => sum + (point[0] - x) * (point[1] - y), 0) / spread
  const rest = points.reduce((sum, point) => sum + (point[1] - y - slope * (point[0] - x)) ** 2, 0)
  const growth = slope * (points.at(-1)![0] - points[0]![0])
  return { slope, error: Math.sqrt(rest / (n - 2) / spread), growth, mean: y }
}

/** Fewer points than this say nothing about growth. */
const fewest = 12

/**
 * Whether the points grow: by more than `material`, and more surely than three standard errors.
 * @param material growth over all points that matters, in the unit of y
 */
export function grows(points: readonly (readonly [x: number, y: number])[], material: number): Trend | undefined {
  if (points.length < fewest) return undefined
  const line = trend(points)!
  return line.growth > material && line.slope > 3 * line.error ? line : undefined
}
