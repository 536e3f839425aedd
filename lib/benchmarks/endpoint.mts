// Where the compared tools put their repositories: below one place on the backend that a run provides.
import { join } from 'node:path'
import type { Run } from '../run.mts'
import { parseS3 } from '../services/s3.mts'
import { Skipped } from '../verdict.mts'
import type { Endpoint } from './tools.mts'

/**
 * The backend as every tool is told of it.
 * @param dir where local repositories go
 * @throws Skipped for a server that is not the run's own: what the others would leave there is not ours to clear
 */
export function endpointOf(run: Run, label: string, dir: string): Endpoint {
  const kind = label as Endpoint['kind']
  const local = (name: string) => join(dir, name)
  if (kind === 'local' || run.dry) return { kind, url: local, dir: local }
  const service = run.services.get(label)
  if (!service?.managed || !service.files)
    throw new Skipped(`${label}: benchmarks run on servers of their own: --services managed`)
  const set = { ...service.set }
  // vykar-server serves one repository, at its root.
  const url = (name: string) => (kind === 'rest' ? service.url : `${service.url}/${name}`)
  const endpoint: Endpoint = { kind, url, dir: local, set }
  if (kind === 's3') {
    const { endpoint: address, bucket, prefix } = parseS3(service.url)
    endpoint.s3 = { endpoint: address, bucket, prefix, region: 'us-east-1' }
  }
  if (kind === 'sftp') {
    const { hostname, port, username, pathname } = new URL(service.url.replace(/^sftp:/, 'http:'))
    const [identity, knownHosts] = [String(set.sftp_key), String(set.sftp_known_hosts)]
    endpoint.sftp = { host: hostname, port, user: username, key: identity, knownHosts, dir: pathname }
  }
  return endpoint
}
