// A running VM: booted by QEMU, changed over SSH, frozen through its guest agent while vykar copies its disk.

import { background } from '#lib/background.mts'
import { config } from '#lib/config.mts'
import { aptLine, find } from '#lib/host.mts'
import type { Run } from '#lib/run.mts'
import { $, check, fact, read, step } from '#lib/sh.mts'
import { duration } from '#lib/terminal.mts'
import { Blocked, Mismatch, Skipped } from '#lib/verdict.mts'
import { listed, numbers, says } from '#scripts/checks.mts'
import { cutShort, fresh, retire } from '#scripts/common.mts'
import { freePort } from '#scripts/provide.mts'
import { witnessed } from '#scripts/witnessed.mts'
import { loop, unloop } from './image.mts'

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

/** What booting needs on the host. Throws Skipped naming what is missing. */
export async function needBoot(): Promise<void> {
  const found = await Promise.all((['qemu', 'socat', 'sftp'] as const).map(find))
  const lacks = found.filter((tool) => !tool.path)
  if (lacks.length) throw new Skipped(`${lacks.map((tool) => tool.name).join(', ')} missing: ${aptLine(lacks)}`)
}

/** A bash function that asks the guest agent: its answer, one line of JSON, is printed. */
const asking = `ask() {
  coproc socat - UNIX-CONNECT:agent.sock
  local pid=$COPROC_PID answer
  echo "{\\"execute\\":\\"$1\\"}" >&"\${COPROC[1]}"
  read -r -t 60 answer <&"\${COPROC[0]}" || answer='no answer within 60 s'
  kill "$pid"; wait "$pid" 2>/dev/null || true
  echo "$answer"
}`

/**
 * The row: the VM runs, installs and writes; its disk is backed up frozen, and restored as it was then, with a file system
 * that fsck finds clean. It is thawed afterwards, also when the backup failed or was terminated.
 */
export async function booted(run: Run, repo: string, packages: readonly string[], tcg: boolean): Promise<void> {
  const thawed = (when: string) =>
    $({ limit: '2m' })`bash status.sh || { echo ${`the guest is still frozen after ${when}`} >&2; exit 1; }`

  step('init')
  await config`
sources:
  - path: vm
    label: vm-image
    hooks:
      before: bash before.sh
      finally: bash finally.sh
`
  await fresh(repo)

  step('prepare')
  // Lets root in by a key, gives the VM a network, and takes kernel and initial RAM disk out of it.
  await $({ limit: '1h' })`mkdir vm && cp --sparse=always ../disk.raw vm/disk.raw`
  await $`ssh-keygen -q -t ed25519 -N '' -C vykar-e2e -f key`
  await loop('vm/disk.raw', 'mnt')
  await $({
    otherwise: Skipped,
  })`ls mnt/boot/vmlinuz-* mnt/boot/initrd.img-* mnt/usr/sbin/qemu-ga > /dev/null || { echo ${`the image has no kernel, initial RAM disk or qemu-guest-agent: --mutate boot needs ${bootPackages.join(', ')} in it`} >&2; exit 1; }`
  await $`chroot mnt sh -c 'umask 077 && mkdir -p ~root/.ssh && cat > ~root/.ssh/authorized_keys' < key.pub`
  await $`ssh-keygen -A -f mnt`
  await $`printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' > mnt/etc/systemd/network/all.network`
  await $`chroot mnt systemctl enable systemd-networkd ssh`
  await $`version=$(ls -v mnt/boot/vmlinuz-* | tail -n 1 | sed 's/.*vmlinuz-//') && cp mnt/boot/vmlinuz-$version vmlinuz && cp mnt/boot/initrd.img-$version initrd.img`
  // The resolver of QEMU's own network.
  await $`rm -f mnt/etc/resolv.conf && echo 'nameserver 10.0.2.3' > mnt/etc/resolv.conf`
  await unloop('mnt')

  step('boot')
  const port = run.dry ? 2222 : await freePort(0)
  const accelerator = tcg ? ['-accel', 'tcg,thread=multi', '-cpu', 'max'] : ['-accel', 'kvm', '-cpu', 'host']
  const machine = ['-m', '1024', '-smp', '2', '-display', 'none', '-monitor', 'none', '-serial', 'stdio']
  const network = ['-netdev', `user,id=net,hostfwd=tcp:127.0.0.1:${port}-:22`, '-device', 'virtio-net,netdev=net']
  await background('vm', {
    service: true,
  })`qemu-system-x86_64 ${accelerator} ${machine} -drive file=vm/disk.raw,if=virtio,format=raw -kernel vmlinuz -initrd initrd.img -append 'root=/dev/vda rw console=ttyS0' ${network} -device virtio-serial -chardev socket,path=agent.sock,server=on,wait=off,id=agent -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 < /dev/null`
  // Its key was made a moment ago and is reached over loopback only: there is no host key to know beforehand.
  const options = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'ConnectTimeout=10', 'LogLevel=ERROR']
  const ssh = ['ssh', '-n', '-i', 'key', '-p', String(port), ...options.flatMap((o) => ['-o', o]), 'root@127.0.0.1']
  await $({
    limit: '10m',
    otherwise: Blocked,
  })`until ${ssh} true; do kill -0 $(<vm.pid) || { tail -n 5 vm.out >&2; exit 1; }; sleep 2; done`
  // \`before\` freezes and takes the disk's checksum; \`finally\` thaws, whatever happened.
  await $`cat > before.sh <<'EOF'
set -e
${{ raw: asking }}
answer=$(ask guest-fsfreeze-freeze)
[[ $answer == *'"return": '[1-9]* ]] || { echo "the guest cannot be frozen: $answer" >&2; exit 1; }
date +%s%N > frozen
sha256sum < vm/disk.raw > frozen.sha256
cp frozen taken
EOF`
  await $`cat > finally.sh <<'EOF'
set -e
${{ raw: asking }}
answer=$(ask guest-fsfreeze-thaw)
[[ $answer == *'"return": '* ]] || { echo "the guest cannot be thawed: $answer" >&2; exit 1; }
date +%s%N > thawed
EOF`
  await $`cat > status.sh <<'EOF'
${{ raw: asking }}
ask guest-fsfreeze-status | grep thawed
EOF`

  step('install')
  const apt = 'env DEBIAN_FRONTEND=noninteractive apt-get -q -y'
  await $({
    limit: '2h',
  })`${ssh} ${`${apt} update && ${apt} --no-install-recommends install ${packages.join(' ')}`} > apt.out`
  // Records with their checksums, each flushed, until the VM ends.
  await $`${ssh} ${"systemd-run --unit=records bash -c 'mkdir -p /var/records && cd /var/records && n=0; while :; do n=$((n + 1)); head -c 20000 /dev/urandom > $n; sha256sum $n >> SHA256SUMS; sync; done'"}`
  await $({ limit: '5m' })`until ${ssh} 'test -s /var/records/SHA256SUMS'; do sleep 1; done`

  step('backup')
  await $({ limit: '1h' })`vykar --config config.yaml backup -R ${repo} > backup.out`
  await $`sed -n 's/^Snapshot created: //p' backup.out > snapshot.id`

  step('thawed')
  await thawed('the backup')
  await check('(($(<thawed) > $(<frozen)))', () => {
    const [from, to] = [Number(read('frozen')), Number(read('thawed'))]
    if (!from || to < from) throw new Mismatch('the hooks were not both run')
    fact('frozen', duration((to - from) / 1e9))
  })
  // It went on: what was restored is the frozen moment and not a later one.
  await $({ limit: '5m' })`${ssh} sync && ! sha256sum < vm/disk.raw | cmp -s - frozen.sha256`
  await $`cp frozen.sha256 backup.sha256`

  step('list')
  await $`vykar --config config.yaml list -R ${repo} > list.out`
  await listed('vm-image')

  step('restore')
  await $({
    limit: '1h',
  })`rm -rf lost && mkdir lost restored && HOME=$PWD/lost vykar --config lost.yaml restore -R ${repo} $(<snapshot.id) restored > restored.out`
  await numbers('restored', 'backup.out', 'list.out', 'restored.out')
  await witnessed('restored', 'snapshot')

  step('compare')
  await $({ limit: '1h' })`sha256sum < restored/disk.raw | diff - backup.sha256`
  await $({ limit: '1h' })`e2fsck -fn restored/disk.raw`
  // Mounting would replay a journal, which a frozen file system has no need of: norecovery proves it.
  await loop('restored/disk.raw', 'frozen.mnt', ['-o', 'ro,norecovery'])
  await $`(cd frozen.mnt/var/records && head -n -1 SHA256SUMS | sha256sum --check --quiet --strict)`
  await $`wc -l < frozen.mnt/var/records/SHA256SUMS > records`
  fact('records in the frozen image', read('records'))
  await unloop('frozen.mnt')

  step('failing before')
  await $`sed 's/^\( *before: .*\)$/\1; exit 7/' config.yaml > failing.yaml`
  await $({ limit: '1h', expect: [1] })`vykar --config failing.yaml backup -R ${repo} > failing.out 2>&1`
  await says('failing.out', /^Error: hook error: .* exited with 7$/m, 'the backup failed, but not for its hook')
  await thawed('a backup whose `before` failed')

  step('terminated')
  const code = await cutShort(repo, 'TERM', 'taken', 1)
  await thawed('a backup that was ended by TERM')
  fact('after TERM', `exit ${code}, the guest is thawed`)

  step('retire')
  await retire(repo)
}
