// Charts for the reports: a Vega-Lite specification as SVG and PNG, the same on every machine.
import { createRequire } from 'node:module'
import { Resvg } from '@resvg/resvg-js'
import * as vega from 'vega'
import { compile, type TopLevelSpec } from 'vega-lite'

/** Okabe and Ito's palette, which colour-blind readers can tell apart (jfly.uni-koeln.de/color). */
export const palette = ['#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#000000'] as const

/** A font of the package's own: a server has often none. */
const font = createRequire(import.meta.url).resolve('dejavu-fonts-ttf/ttf/DejaVuSans.ttf')

/** What all charts have in common. */
const config = {
  font: 'DejaVu Sans, sans-serif',
  background: 'white',
  axis: { labelFontSize: 11, titleFontSize: 11, titleFontWeight: 'normal' },
  header: { labelFontSize: 12, labelFontWeight: 'bold' },
  title: { fontSize: 14, anchor: 'start' },
  legend: { labelFontSize: 11, titleFontSize: 11 },
  range: { category: [...palette] },
} as const

/** Draws a chart. Throws Error where the specification is wrong. */
export async function svgOf(spec: TopLevelSpec): Promise<string> {
  const merged = { ...spec, config: { ...config, ...spec.config } } as TopLevelSpec
  return new vega.View(vega.parse(compile(merged).spec), { renderer: 'none' }).toSVG()
}

/** A chart as PNG, at twice the size of its SVG. */
export function pngOf(svg: string): Buffer {
  const fonts = { fontFiles: [font], loadSystemFonts: false, defaultFontFamily: 'DejaVu Sans' }
  return new Resvg(svg, { font: fonts, fitTo: { mode: 'zoom', value: 2 } }).render().asPng()
}
