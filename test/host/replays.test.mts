// What the real vykar was run with can be run again by hand, and fails where that vykar lies.
import { describe } from 'node:test'
import { lacking, noReal, real } from '../helpers.mts'
import { lies, replays } from '../replays.mts'

const skip = noReal || lacking('rsync', 'setfattr', 'setfacl', 'setcap', 'flock')
describe('commands.sh, with the real vykar', { skip, concurrency: 2 }, () => {
  for (const name of ['backends/local', 'backends/local-none']) replays(name, () => real!, Object.keys(lies))
})
describe('commands.sh on servers', { skip: skip || lacking('vykar-server', 'sshd', 'curl') }, () => {
  const few = ['restore leaves a file out', 'check counts errors']
  replays('backends/rest', () => real!, few, '--services', 'managed')
  replays('backends/sftp', () => real!, few, '--services', 'managed')
})
