// What the user sees while a run goes: one updated line on a terminal, one line per finished step elsewhere.

/** Seconds as `0.4 s`, `12 s`, `3 min 05 s`. */
export function duration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 120) return `${Math.round(seconds)} s`
  return `${Math.floor(seconds / 60)} min ${String(Math.round(seconds % 60)).padStart(2, '0')} s`
}

/** Bytes as `12.3 MiB`. */
export function bytes(count: number): string {
  const unit = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let i = 0
  let value = count
  for (; value >= 1024 && i < unit.length - 1; i++) value /= 1024
  return `${i === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${unit[i]}`
}

/** Prints steps as they go. */
export class Terminal {
  private readonly live = process.stdout.isTTY === true && !process.env.CI
  private timer: NodeJS.Timeout | undefined
  private doing = ''
  constructor(private readonly level: 'quiet' | 'normal' | 'verbose') {}

  /** A line of its own, above the live one. */
  line(text: string): void {
    if (this.level === 'quiet') return
    this.clear()
    console.log(text)
  }

  /**
   * What goes on from now on.
   * @param more asked twice a second, once it takes more than three seconds: what else there is to say
   * @param start when it began, in milliseconds since 1970
   */
  begin(where: string, step: string, more: () => string = () => '', start = Date.now()): void {
    this.doing = `${where.padEnd(14)} ${step}`
    if (!this.live || this.level === 'quiet') return
    this.timer = setInterval(() => {
      const width = process.stdout.columns || 80
      const seconds = (Date.now() - start) / 1000
      const text = `  ${this.doing}  … ${duration(seconds)}${seconds < 3 ? '' : more()}`
      console.log(`\r\x1b[K${text.slice(0, width - 1)}\x1b[A`)
    }, 500)
    this.timer.unref()
  }

  /** Nothing goes on any more. */
  stop(): void {
    clearInterval(this.timer)
    if (this.level !== 'quiet') this.clear()
  }

  /** The step is over; `commands` are shown with --verbose. */
  end(verdict: string, seconds: number, reason: string, commands: string[]): void {
    clearInterval(this.timer)
    if (this.level === 'verbose') for (const command of commands) this.line(`    $ ${command}`)
    this.line(
      `  ${this.doing.padEnd(34)} ${verdict.padEnd(7)} ${duration(seconds).padStart(8)}${reason && `  ${reason}`}`,
    )
  }

  private clear(): void {
    if (this.live) console.log('\r\x1b[K\x1b[A')
  }
}

/**
 * What happens to the output ends nothing: a reader that went away (EPIPE), a full disk (ENOSPC), a terminal that is gone (EIO).
 * Results are in files too.
 */
export function allowLostOutput(): void {
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})
}
