// A running VM: booted by QEMU, changed over SSH, frozen through its guest agent while vykar copies its disk.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { aptLine, find } from '../host.mts'
import { interruptedCopy } from '../interrupt.mts'
import { attach, mount } from '../loop.mts'
import type { Row } from '../row.mts'
import type { Run } from '../run.mts'
import { freePort, serve } from '../services/service.mts'
import { $, scope } from '../sh.mts'
import { expectSnapshot, freshRepository, restored, retire } from '../standard.mts'
import { duration } from '../terminal.mts'
import { Mismatch, Skipped } from '../verdict.mts'
import { withMounted } from './image.mts'

/** What an image needs to boot, to be reached over SSH and to be frozen. */
export const bootPackages = [
  'linux-image-amd64',
  'systemd-sysv',
  'udev',
  'dbus',
  'iproute2',
  'openssh-server',
  'qemu-guest-agent',
] as const

/** A VM that runs: words before a command that is run in it, its guest agent's socket, its disk. */
interface Vm {
  ssh: string[]
  agent: string
  disk: string
}

/** Lets root in by a key, gives the VM a network, and takes kernel and initial RAM disk out of it. */
async function prepareImage(run: Run, disk: string, dir: string): Promise<void> {
  await $`ssh-keygen -q -t ed25519 -N '' -C vykar-e2e -f ${dir}/key`
  await withMounted(run, disk, { how: 'loop', tcg: false }, async (at) => {
    const has = (pattern: string) => spawnSync('bash', ['-c', `ls ${at}${pattern}`], { stdio: 'ignore' }).status === 0
    if (!run.dry && !['/boot/vmlinuz-*', '/boot/initrd.img-*', '/usr/sbin/qemu-ga'].every(has))
      throw new Skipped(
        `the image has no kernel, initial RAM disk or qemu-guest-agent: --mutate boot needs ${bootPackages.join(', ')} in it`,
      )
    await $`chroot ${at} sh -c 'umask 077 && mkdir -p ~root/.ssh && cat > ~root/.ssh/authorized_keys' < ${dir}/key.pub`
    await $`ssh-keygen -A -f ${at}`
    await $`printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' > ${at}/etc/systemd/network/all.network`
    await $`chroot ${at} systemctl enable systemd-networkd ssh`
    await $`cp ${at}/boot/vmlinuz-* ${dir}/vmlinuz && cp ${at}/boot/initrd.img-* ${dir}/initrd.img`
    // The resolver of QEMU's own network.
    await $`rm -f ${at}/etc/resolv.conf && echo 'nameserver 10.0.2.3' > ${at}/etc/resolv.conf`
  })
}

/** Boots the disk and waits for SSH. */
async function boot(run: Run, disk: string, dir: string, tcg: boolean): Promise<Vm> {
  const port = await freePort(0)
  const agent = join(dir, 'agent.sock')
  const accelerator = tcg ? ['-accel', 'tcg,thread=multi', '-cpu', 'max'] : ['-accel', 'kvm', '-cpu', 'host']
  const argv = ['qemu-system-x86_64', ...accelerator, '-m', '1024', '-smp', '2', '-display', 'none', '-monitor', 'none']
  argv.push('-serial', 'stdio', '-drive', `file=${disk},if=virtio,format=raw`)
  argv.push('-kernel', join(dir, 'vmlinuz'), '-initrd', join(dir, 'initrd.img'))
  argv.push('-append', 'root=/dev/vda rw console=ttyS0')
  argv.push('-netdev', `user,id=net,hostfwd=tcp:127.0.0.1:${port}-:22`, '-device', 'virtio-net,netdev=net')
  argv.push('-device', 'virtio-serial', '-chardev', `socket,path=${agent},server=on,wait=off,id=agent`)
  argv.push('-device', 'virtserialport,chardev=agent,name=org.qemu.guest_agent.0')
  // Its key was made a moment ago and is reached over loopback only: there is no host key to know beforehand.
  const options = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'ConnectTimeout=10', 'LogLevel=ERROR']
  const ssh = [
    'ssh',
    '-n',
    '-i',
    join(dir, 'key'),
    '-p',
    String(port),
    ...options.flatMap((o) => ['-o', o]),
    'root@127.0.0.1',
  ]
  run.transcript.server(argv)
  if (!run.dry)
    await serve(
      run,
      'vm',
      argv,
      {},
      async () => spawnSync(ssh[0]!, [...ssh.slice(1), 'true'], { stdio: 'ignore', timeout: 20_000 }).status === 0,
      600_000 * run.common['time-scale'],
    )
  return { ssh, agent, disk }
}

/** A bash function that asks the guest agent: its answer, one line of JSON, is printed. */
const askAgent = (agent: string) => `ask() {
  coproc socat - UNIX-CONNECT:${agent}
  local pid=$COPROC_PID answer
  echo "{\\"execute\\":\\"$1\\"}" >&"\${COPROC[1]}"
  read -r -t 60 answer <&"\${COPROC[0]}" || answer='no answer within 60 s'
  kill "$pid"; wait "$pid" 2>/dev/null || true
  echo "$answer"
}
`

/** `before` freezes and takes the disk's checksum; `finally` thaws, whatever happened. */
function writeHooks({ agent, disk }: Vm, dir: string): void {
  const hooks = {
    'before.sh': `set -e
cd ${dir}
${askAgent(agent)}
answer=$(ask guest-fsfreeze-freeze)
[[ $answer == *'"return": '[1-9]* ]] || { echo "the guest cannot be frozen: $answer" >&2; exit 1; }
date +%s%N > frozen
sha256sum < ${disk} > frozen.sha256
cp frozen taken
`,
    'finally.sh': `set -e
cd ${dir}
${askAgent(agent)}
answer=$(ask guest-fsfreeze-thaw)
[[ $answer == *'"return": '* ]] || { echo "the guest cannot be thawed: $answer" >&2; exit 1; }
date +%s%N > thawed
`,
    'status.sh': `${askAgent(agent)}\nask guest-fsfreeze-status | grep thawed\n`,
  }
  for (const [name, text] of Object.entries(hooks)) {
    scope().transcript.write(join(dir, name), text)
    if (!scope().dry) writeFileSync(join(dir, name), text)
  }
}

/** Writes records with their checksums, each flushed, until the VM ends. */
const writing = `mkdir -p /var/records && cd /var/records && n=0; while :; do n=$((n + 1))
  head -c 20000 /dev/urandom > $n; sha256sum $n >> SHA256SUMS; sync; done`

/** The values of configs/vm-image-boot.yaml. */
export const bootHooks = (dir: string, source: string): Record<string, string> => ({
  SOURCE: source,
  BEFORE: `bash ${dir}/before.sh`,
  FINALLY: `bash ${dir}/finally.sh`,
})

/**
 * The row: the VM runs, installs and writes; its disk is backed up frozen, and restored as it was then, with a file system
 * that fsck finds clean. It is thawed afterwards, also when the backup failed or was terminated.
 */
export async function bootedRow(
  run: Run,
  row: Row,
  image: string,
  packages: readonly string[],
  tcg: boolean,
): Promise<void> {
  const { step, config, repository, report, dir } = row
  const repo = repository.label
  const source = join(dir, 'vm')
  const disk = join(source, 'disk.raw')
  const thawed = (when: string) =>
    $({ limit: '2m' })`bash ${dir}/status.sh || { echo ${`the guest is still frozen after ${when}`} >&2; exit 1; }`
  await step('init', () => freshRepository(config, repo))
  await step('prepare', async () => {
    await $({ limit: '1h' })`mkdir ${source} && cp --sparse=always ${image} ${disk}`
    await prepareImage(run, disk, dir)
  })
  const vm = await step('boot', () => boot(run, disk, dir, tcg))
  if (!run.dry) writeHooks(vm, dir)
  await step('install', async () => {
    const apt = 'env DEBIAN_FRONTEND=noninteractive apt-get -q -y'
    await $({
      limit: '2h',
    })`${vm.ssh} ${`${apt} update && ${apt} --no-install-recommends install ${packages.join(' ')}`}`
    await $`${vm.ssh} ${`systemd-run --unit=records bash -c '${writing}'`}`
    await $({ limit: '5m' })`until ${vm.ssh} ${'test -s /var/records/SHA256SUMS'}; do sleep 1; done`
  })
  const backup = await step(
    'backup',
    () => $({ limit: '3600s', out: 'backup.out' })`vykar --config ${config} backup -R ${repo}`,
  )
  await step('thawed', async () => {
    await thawed('the backup')
    if (run.dry) return
    const at = (name: string) => (existsSync(join(dir, name)) ? Number(readFileSync(join(dir, name), 'utf8')) : 0)
    if (!at('frozen') || at('thawed') < at('frozen')) throw new Mismatch('the hooks were not both run')
    report.facts.frozen = duration((at('thawed') - at('frozen')) / 1e9)
    // It went on: what was restored is the frozen moment and not a later one.
    await $({ limit: '5m' })`${vm.ssh} sync && ! sha256sum < ${disk} | cmp -s - frozen.sha256`
  })
  const id = await step('list', () => expectSnapshot(config, repo, backup, { label: 'vm-image' }))
  const tree = await step('restore', () => restored(config, repo, id))
  await step('compare', async () => {
    await $({ limit: '1h' })`sha256sum < ${tree}/disk.raw | diff - frozen.sha256`
    await $({ limit: '1h' })`e2fsck -fn ${tree}/disk.raw`
    // Mounting would replay a journal, which a frozen file system has no need of: norecovery proves it.
    const at = join(dir, 'restored.mnt')
    await mount(run, await attach(run, `${tree}/disk.raw`, row.cleanup), at, ['-o', 'ro,norecovery'], row.cleanup)
    await $({ cwd: `${at}/var/records` })`head -n -1 SHA256SUMS | sha256sum --check --quiet --strict`
    report.facts['records in the frozen image'] = (await $`wc -l < ${at}/var/records/SHA256SUMS`).stdout.trim()
  })
  await step('failing before', async () => {
    await $`sed -E 's/^( *before: ".*)"$/\1; exit 7"/' ${config} > failing.yaml`
    const refused = await $({ limit: '3600s', expect: [1] })`vykar --config failing.yaml backup -R ${repo}`
    refused.complained(/^Error: hook error: .* exited with 7$/m)
    await thawed('a backup whose `before` failed')
  })
  await step('terminated', async () => {
    const rc = await interruptedCopy(row, 'TERM', 'taken', 1, '--image')
    await thawed('a backup that was ended by TERM')
    report.facts['after TERM'] = `exit ${rc}, the guest is thawed`
  })
  await step('retire', () => retire(config, repo, id))
}

/** What booting needs on the host. Throws Skipped naming what is missing. */
export function needBoot(): void {
  const lacks = (['qemu', 'socat', 'sftp'] as const).map(find).filter((tool) => !tool.path)
  if (lacks.length) throw new Skipped(`${lacks.map((tool) => tool.name).join(', ')} missing: ${aptLine(lacks)}`)
}
