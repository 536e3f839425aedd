// A proxy on loopback that brings faults into what passes through it: HTTP for REST and S3, any TCP for SFTP.
//   e2e faults/proxy --listen PORT --to HOST:PORT --hits FILE [--tcp] RULE...
// RULE is `METHOD PATTERN FROM+COUNT ACTION [VALUE]`, such as 'PUT ^/packs/ 2+1 status 503': the second request that fits, and none
// after it. With --tcp a connection is what is counted: '* . 1+1 reset 65536'. Every hit is a line of FILE: time, action, request.
// Actions: status CODE (the server sees nothing), reset BYTES (of what is sent on, then the connection is reset), cut BYTES (of the answer,
// with the length of the whole), short BYTES (of the answer, with a length that fits), hole SECONDS (no answer), delay MS, rate BYTES (a second), twice (sent
// twice, the second answer counts), unheard (done, and the connection is reset instead of the answer), late MS (answered with 503, and
// done that much later), stale (the answer that was given to the same request before), outage MS (all connections are reset, and for so
// long new ones are). Dialects of S3 servers: pages N (a LIST in pages of so many keys), encoded (its keys percent-encoded, slashes
// too), digest (a PUT must have a Content-MD5, and the right one).
import { createHash } from 'node:crypto'
import { appendFileSync } from 'node:fs'
import {
  Agent,
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  request,
  type ServerResponse,
} from 'node:http'
import { connect, createServer as createTcpServer, type Socket } from 'node:net'
import minimist from 'minimist'
import { sleep } from 'zx'

/** A rule, and how many requests have met its method and pattern. */
interface Rule {
  method: string
  pattern: RegExp
  from: number
  count: number
  action: string
  value: number
  met: number
}
const actions = ['status', 'reset', 'cut', 'short', 'hole', 'delay', 'rate', 'twice', 'unheard', 'late', 'stale', 'outage', 'pages', 'encoded', 'digest'] // biome-ignore format: one line

/** Reads a rule. Throws Error where it is none. */
function parseRule(text: string): Rule {
  const [, method, pattern, from, count, action, value = '0'] =
    /^(\S+) (\S+) (\d+)\+(\d+) (\w+)(?: (\d+))?$/.exec(text) ?? []
  if (!method || !action || !actions.includes(action))
    throw new Error(
      `proxy: ${text}: no rule; METHOD PATTERN FROM+COUNT ACTION [VALUE] is one, of ${actions.join(', ')}`,
    )
  return {
    method,
    pattern: new RegExp(pattern!),
    from: Number(from),
    count: Number(count),
    action,
    value: Number(value),
    met: 0,
  }
}

const {
  listen,
  to,
  hits,
  tcp,
  _: words,
} = minimist(process.argv.slice(2), { string: ['listen', 'to', 'hits'], boolean: ['tcp'] })
const rules = words.map(parseRule)
const [host, port] = [to.split(':')[0], Number(to.split(':')[1])]
const open = new Set<Socket>()
let deaf = 0

/** The rule that a request meets, if any; it is put on record. */
function ruleOf(method: string, path: string): Rule | undefined {
  for (const rule of rules) {
    if ((rule.method !== '*' && rule.method !== method) || !rule.pattern.test(path)) continue
    rule.met++
    if (rule.met < rule.from || rule.met >= rule.from + rule.count) continue
    appendFileSync(hits, `${new Date().toISOString()} ${rule.action} ${method} ${path}\n`)
    return rule
  }
  return undefined
}

/** What a rule was to break is broken: the bytes at which it does so have been reached. */
const reached = (action: string, what: string) =>
  appendFileSync(hits, `${new Date().toISOString()} reached ${action} ${what}\n`)

/** A whole answer of the server. */
interface Answer {
  status: number
  headers: IncomingHttpHeaders
  body: Buffer
}
const agent = new Agent({ keepAlive: true })
const answers = new Map<string, Answer>()

/** Asks the server; after `most` bytes of the body the connection is reset. */
function ask({ method, url, headers }: IncomingMessage, body: Buffer, most = Infinity): Promise<Answer> {
  return new Promise((settle, reject) => {
    const asked = request(
      // Unpacked, so that what is changed in an answer can be read.
      {
        host,
        port,
        method,
        path: url,
        headers: { ...headers, 'accept-encoding': 'identity' },
        agent: most < Infinity ? false : agent,
      },
      (answer) => {
        const parts: Buffer[] = []
        answer.on('data', (part) => parts.push(part))
        answer.on('end', () =>
          settle({ status: answer.statusCode!, headers: answer.headers, body: Buffer.concat(parts) }),
        )
        answer.on('error', reject)
      },
    )
    asked.on('error', reject)
    if (most < body.length) asked.write(body.subarray(0, most), () => asked.destroy())
    else asked.end(body)
  })
}

/** Gives an answer on; `length` is what its header says, and the connection is reset where less is sent. */
function give(res: ServerResponse, { status, headers, body }: Answer, length = body.length, sent = body.length): void {
  // What is sent in one piece has a length and no chunks; HEAD has the length of what is not sent.
  const { 'transfer-encoding': _, ...rest } = headers
  res.writeHead(status, { ...rest, ...(body.length ? { 'content-length': String(length) } : {}) })
  if (sent < length) res.write(body.subarray(0, sent), () => res.destroy())
  else res.end(body.subarray(0, sent))
}

/** Keys of a listing as a server gives them that encodes what `encoding-type=url` asks for, slashes too. */
const encoded = (xml: string) =>
  xml
    .replace(/<EncodingType>.*?<\/EncodingType>/g, '')
    .replace(
      /<(Key|Prefix)>([^<]*)<\/\1>/g,
      (_, tag, text) => `<${tag}>${encodeURIComponent(decodeURIComponent(text))}</${tag}>`,
    )
    .replace('</Name>', '</Name><EncodingType>url</EncodingType>')

/** A page of a listing, out of the whole of it; its continuation token is where it goes on, and which listing it is of. */
const listings: string[] = []
function page(serial: number, from: number, size: number): Answer {
  const whole = listings[serial]!
  const all = whole.match(/<Contents>.*?<\/Contents>/gs) ?? []
  const more = from + size < all.length
  const body = whole
    .replace(/<Contents>.*<\/Contents>/s, all.slice(from, from + size).join(''))
    .replace(
      /<IsTruncated>\w+<\/IsTruncated>/,
      `<IsTruncated>${more}</IsTruncated>${more ? `<NextContinuationToken>page-${serial}-${from + size}</NextContinuationToken>` : ''}`,
    )
    .replace(/<KeyCount>\d+<\/KeyCount>/, `<KeyCount>${Math.min(size, all.length - from)}</KeyCount>`)
  return { status: 200, headers: { 'content-type': 'application/xml' }, body: Buffer.from(body) }
}

async function serve(req: IncomingMessage, res: ServerResponse, body: Buffer): Promise<void> {
  const rule = ruleOf(req.method!, req.url!)
  const key = `${req.method} ${req.url}`
  const { action = '', value = 0 } = rule ?? {}
  if (action === 'outage') {
    deaf = Date.now() + value
    for (const socket of open) socket.resetAndDestroy()
    return
  }
  if (action === 'status') {
    give(res, { status: value, headers: {}, body: Buffer.from(`proxy: ${value}\n`) })
    return
  }
  if (action === 'hole') {
    reached(action, key)
    await sleep(value * 1000)
    res.destroy()
    return
  }
  if (action === 'late') {
    give(res, { status: 503, headers: {}, body: Buffer.from('proxy: late\n') })
    await sleep(value)
    await ask(req, body)
    appendFileSync(hits, `${new Date().toISOString()} delivered ${req.method} ${req.url}\n`)
    return
  }
  if (action === 'digest') {
    const [said, right] = [req.headers['content-md5'], createHash('md5').update(body).digest('base64')]
    if (said !== right) {
      give(res, {
        status: 400,
        headers: {},
        body: Buffer.from(
          `<Error><Code>${said ? 'BadDigest' : 'InvalidRequest'}</Code><Message>Content-MD5</Message></Error>`,
        ),
      })
      return
    }
  }
  const [, serial, from] = /continuation-token=page-(\d+)-(\d+)/.exec(req.url!) ?? []
  if (serial) {
    give(res, page(Number(serial), Number(from), value))
    return
  }
  if (action === 'delay') await sleep(value)
  if (action === 'rate') await sleep((body.length / value) * 1000)
  if (action === 'twice') await ask(req, body)
  if (action === 'stale' && answers.has(key)) {
    give(res, answers.get(key)!)
    return
  }
  const upload = action === 'reset' && body.length > value
  const answer = await ask(req, body, upload ? value : Infinity).catch((error) => {
    if (!upload) throw error
    return undefined
  })
  // An answer too short to be cut is not given at all.
  if (!answer || action === 'unheard' || (action === 'reset' && answer.body.length <= value)) {
    reached(action, key)
    req.socket.resetAndDestroy()
    return
  }
  if (/list/.test(req.url!)) answers.set(key, answer)
  if (action === 'encoded') answer.body = Buffer.from(encoded(answer.body.toString()))
  if (action === 'pages') {
    listings.push(answer.body.toString())
    give(res, page(listings.length - 1, 0, value))
    return
  }
  if (/^(cut|reset|short)$/.test(action) && answer.body.length > value) reached(action, key)
  if (action === 'cut' || action === 'reset') give(res, answer, answer.body.length, Math.min(value, answer.body.length))
  else if (action === 'short') give(res, { ...answer, body: answer.body.subarray(0, value) })
  else give(res, answer)
}

const http = () =>
  createServer((req, res) => {
    const parts: Buffer[] = []
    req.on('data', (part) => parts.push(part))
    req.on('error', () => {})
    req.on('end', () => serve(req, res, Buffer.concat(parts)).catch(() => req.socket.resetAndDestroy()))
  })

/** Bytes in both directions, and what a rule does to a connection. */
const plain = () =>
  createTcpServer((client) => {
    const { action = '', value = 0 } = ruleOf('TCP', '.') ?? {}
    const server = connect(port, host)
    open.add(server)
    const ends = () => {
      client.destroy()
      server.destroy()
      open.delete(server)
    }
    for (const side of [client, server]) side.on('error', ends).on('close', ends)
    let passed = 0
    let broken = false
    const pass = (from: Socket, into: Socket) =>
      from.on('data', async (part) => {
        passed += part.length
        if (/^(hole|reset)$/.test(action) && passed > value && !broken) {
          broken = true
          reached(action, 'TCP')
        }
        if (action === 'hole' && passed > value) return
        if (action === 'reset' && passed > value) {
          client.resetAndDestroy()
          return
        }
        if (action === 'delay' || action === 'rate') {
          from.pause()
          await sleep(action === 'delay' ? value : (part.length / value) * 1000)
          from.resume()
        }
        into.write(part)
      })
    pass(client, server)
    pass(server, client)
  })

const proxy = tcp ? plain() : http()
proxy.on('connection', (socket: Socket) => {
  if (Date.now() < deaf) {
    socket.resetAndDestroy()
    return
  }
  open.add(socket)
  socket.on('close', () => open.delete(socket))
})
appendFileSync(hits, '')
proxy.listen(Number(listen), '127.0.0.1', () =>
  console.log(`proxy ${listen} → ${to}: ${words.join('; ') || 'no rules'}`),
)
