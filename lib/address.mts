// Addresses, read once and as vykar reads them: repository URLs, and the URIs of database servers.
import { homedir } from 'node:os'
import { isAbsolute, resolve } from 'node:path'
import { UsageError } from './verdict.mts'

/**
 * A repository URL as vykar resolves it (0.19.1): `~` is the home directory, a text without `://` a path that may be relative,
 * the path of a `file://` URL is taken as it stands, `%20` and all.
 * @param where names the place in the base config, for the message
 * @returns an absolute path, or a URL with the scheme http, https, s3, s3+http or sftp
 * @throws UsageError on what vykar would not understand
 */
export function resolveUrl(url: string, where: string): string {
  const text = url.trim()
  if (!text) throw new UsageError(`${where}: the URL is empty`)
  const home = text === '~' || text.startsWith('~/') ? `${process.env.HOME || homedir()}${text.slice(1)}` : text
  if (/^(\/|\.{1,2}(\/|$))/.test(home) || !home.includes('://')) return resolve(home)
  if (!URL.canParse(text)) throw new UsageError(`${where}: ${maskUri(text)} is no URL`)
  const { protocol, pathname, hostname } = new URL(text)
  if (protocol === 'file:') {
    if (!isAbsolute(pathname) || pathname === '/') throw new UsageError(`${where}: ${text} has no path`)
    return resolve(pathname)
  }
  const scheme = protocol.slice(0, -1)
  if (!['http', 'https', 's3', 's3+https', 's3+http', 'sftp'].includes(scheme) || !hostname)
    throw new UsageError(
      `${where}: ${maskUri(text)}: vykar knows paths, file://, http(s)://, s3://, s3+http:// and sftp://`,
    )
  return text.replace(/^s3\+https:/, 's3:')
}

/** A URI with whatever stands between `://` and its last @ masked, and passwords in its query. */
export const maskUri = (text: string): string =>
  text.replace(/(:\/\/)[^\s]*@/g, '$1***@').replace(/([?&]pass(?:word|wd)?=)[^&\s]*/gi, '$1***')

/** The parts of a server's URI; the password is in none of the others. */
export interface ServerUri {
  host: string
  port: string
  user: string
  password: string
}

/**
 * Takes a server's URI apart.
 * @param schemes such as `postgresql`; the first is named in the message
 * @param port the default
 * @throws UsageError in one line, without the password
 */
export function serverUri(uri: string, schemes: readonly string[], port: string): ServerUri {
  const form = `${schemes[0]}://USER:PASSWORD@HOST:PORT is needed`
  const [, scheme = '', account, host = '', rest = ''] = /^(\w+):\/\/(?:(.*)@)?([^@/?]*)(.*)$/s.exec(uri) ?? []
  const encode = () =>
    new UsageError('--uri: percent-encode the user and password in it: @ is %40, / is %2F, : is %3A, % is %25')
  const [user = '', password = ''] = (account ?? '').split(/:(.*)/s)
  if (/[@/?#\s]/.test(account ?? '') || password.includes(':') || (rest.includes('@') && account === undefined))
    throw encode()
  const address = URL.canParse(`http://${host}`) ? new URL(`http://${host}`) : undefined
  if (!schemes.includes(scheme) || !address?.hostname || !/^(\/[\w-]*)?$/.test(rest))
    throw new UsageError(`--uri: ${form}`)
  try {
    const given = /:\d+$/.exec(host)?.[0].slice(1)
    return {
      host: address.hostname.replace(/^\[|\]$/g, ''),
      port: given ?? port,
      user: decodeURIComponent(user),
      password: decodeURIComponent(password),
    }
  } catch {
    throw encode()
  }
}

/** The variable that holds a label's URL. */
export const variableOf = (label: string): string => `REPO_${label.toUpperCase().replace(/\W/g, '_')}`

/** Where a label's repository is. */
export interface Endpoint {
  url: string
  /** The directory in which its files can be seen, and the variable that names it in commands. */
  files?: string
  seen?: string
  /** More keys for the config. */
  keys?: Record<string, string | number | boolean>
  /** The repository as an rclone path, for what vykar leaves there. */
  remote?: string
  /** Bash that prints a line for each of its objects. */
  objects?: string
  /** Started by this run. */
  managed?: boolean
  /** After a failure: whose fault it was, in sentences. */
  blame?: () => Promise<string[]>
}
