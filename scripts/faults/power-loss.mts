#!/usr/bin/env -S npx tsx
// Power loss: the repository lies on a file system of its own (ext4, xfs, btrfs on a loop image). At seeded moments, and right after a command
// that has succeeded, the image is copied as it is: what has not been written to it by then is lost, as when the power goes.
// Passes when on the copy every snapshot that was acknowledged is restored to what it was, also the one that a backup has just printed, what
// was under way is absent or complete, and the next backup, check and restore succeed.
import { seeded } from '#data-gen/random.mts'
import { background } from '#lib/background.mts'
import { scenario } from '#lib/scenario.mts'
import { $, fact, read, step, undo } from '#lib/sh.mts'
import { standardNeeds } from '#scripts/checks.mts'
import { serverWants } from '#scripts/common.mts'
import { acknowledged, conclude, drawnOptions, faultOptions, rowsWith, stillShown } from '#scripts/faults/common.mts'
import { afterwards, at, nothingForEver } from '#scripts/faults/oracle.mts'
import { needRoot } from '#scripts/filesystems/device.mts'
import { freePort } from '#scripts/provide.mts'
import { servers } from '#scripts/servers.mts'
import { witnessed } from '#scripts/witnessed.mts'

/** File systems by the program that makes them: the size of the image, which xfs does not want below 300 MiB, and how it is made. */
const systems: Record<string, string> = {
  ext4: 'truncate -s 160M base.img && mkfs.ext4 -q -F base.img',
  xfs: 'truncate -s 320M base.img && mkfs.xfs -q -f base.img',
  btrfs: 'truncate -s 256M base.img && mkfs.btrfs -q -f base.img',
}

/** Bash that waits until an image is in use no more: another process's mount namespace may hold a mount that is gone here. */
const free = (image: string) => `until test -z "$(losetup -j ${image})"; do sleep 0.1; done`

/** Commands that write: what comes before, so that there is work, and which of the acknowledged snapshots must be there afterwards. */
const commands: Record<string, { before: string; words: string; kept: string[] }> = {
  backup: { before: 'head -c 16M /dev/urandom > source/fresh', words: 'backup', kept: ['ack-1', 'ack-2', 'extra'] },
  'snapshot delete': { before: 'true', words: 'snapshot delete $(<extra.id)', kept: ['ack-1', 'ack-2'] },
  prune: {
    before: "printf 'retention:\\n  keep_last: 2\\n' >> lossy.yaml",
    words: 'prune',
    kept: ['ack-2', 'extra'],
  },
  compact: { before: 'DELETE', words: 'compact --threshold 0', kept: ['ack-1', 'ack-2'] },
}
/** Seeded moments of each command unless told. */
const usual = 3

const spec = {
  needs: [...standardNeeds, 'mkfs.xfs', 'mkfs.btrfs'],
  wants: serverWants,
  repos: ['local', 'rest'],
  options: { ...drawnOptions, ...faultOptions },
} as const

await scenario(import.meta, spec, async (run) => {
  const row = await rowsWith(run)
  const { rounds: asked, round: only, 'corpus-mib': mib, seed } = run.options
  needRoot(run, 'mounting file systems')
  await servers()
  // Encryption makes no difference to a file system, but to what can be told of a file that came back short: one row without.
  const rows = [...Object.entries(systems).map(([system, mkfs]) => ({ system, mkfs, mode: 'auto' as const })), { system: 'ext4', mkfs: systems.ext4!, mode: 'none' as const }] // biome-ignore format: one line
  for (const repo of run.repos)
    for (const { system, mkfs, mode } of rows) {
      // What a server does to its disk does not depend on its file system.
      if (repo !== 'local' && (system !== 'ext4' || mode === 'none')) continue
      await row({ repo, variant: mode === 'none' ? `${system}-unencrypted` : system }, async () => {
        await acknowledged(repo, 2, Math.min(mib, 12), mode)
        await $`head -c 4M /dev/urandom > source/extra`
        await witnessed('source', 'extra')
        await $`vykar --config config.yaml backup -R ${repo} > extra.out && sed -n 's/^Snapshot created: //p' extra.out > extra.id`
        const { seen = 'REPO_LOCAL' } = run.endpoint(repo)
        await $`mkdir disk`
        undo`! mountpoint -q disk || umount disk`
        await $`${{ raw: mkfs }} && mount -o loop base.img disk && cp -a ${{ raw: `"$${seen}"` }} disk/repository && umount disk && ${{ raw: free('base.img') }}`
        const port = run.dry ? 18588 : await freePort(0)
        const files = '$PWD/disk/repository'
        const there = at(repo, repo === 'local' ? files : `http://127.0.0.1:${port}`, files)
        /** What writes to the disk: vykar itself, or the server. */
        const serve = async (name: string) => {
          if (repo === 'local') return undefined
          const server = await background(
            name,
          )`env VYKAR_TOKEN=$VYKAR_E2E_REST_TOKEN vykar-server --listen 127.0.0.1:${port} --data-dir disk/repository`
          await $({ limit: '30s' })`until curl -fs -o /dev/null http://127.0.0.1:${port}/health; do sleep 0.05; done`
          return server
        }
        let [fired, tried] = [0, 0]
        for (const [command, { before, words, kept }] of Object.entries(commands)) {
          let whole = 0.6
          for (let n = 0; n <= (asked || usual); n++) {
            const name = n ? `${command} ${n}` : `${command} done`
            if (only && only !== name) continue
            tried++
            step(name)
            await $`rm -f disk.img lost.img && cp --sparse=always base.img disk.img && mount -o loop disk.img disk && rm -rf cache source/fresh && cp config.yaml lossy.yaml`
            const server = await serve('server')
            if (before === 'DELETE')
              await $`${there} vykar --config lossy.yaml snapshot delete -R ${repo} $(<extra.id) && sync -f disk`
            else await $`${{ raw: before }}`
            if (command === 'backup') await witnessed('source', 'going')
            const line = words.replace(/^(snapshot delete|\S+)/, `$1 -R ${repo}`)
            const going = await background('going')`env ${there} vykar --config lossy.yaml ${{ raw: line }}`
            const writer = server ? 'server' : 'going'
            if (n) {
              // Stopped at a moment of its work.
              const moment = whole * (0.05 + 0.9 * seeded(`power ${seed} ${system} ${name}`)())
              await $({
                expect: 'any',
              })`timeout ${moment.toFixed(3)} tail --pid=$(<going.pid) -f /dev/null; kill -STOP $(<${writer}.pid)`
            } else {
              whole = (await going.done()).seconds
            }
            const working = n ? going.running() : true
            // A file that nobody has synced must be lost, else nothing is; a copy that differs from the next one was torn.
            await $`echo torn > copied; for n in {1..9}; do echo $n > canary.n; echo unsynced > disk/canary-$n && cp --sparse=always disk.img lost.img && cmp -s disk.img lost.img && echo whole > copied && break; done || true`
            // A process that is stopped is ended by KILL all the same.
            const { code } = await going.end('KILL')
            await server?.end('KILL')
            await $`umount disk && ${{ raw: free('disk.img') }} && mount -o loop lost.img disk`
            await $`test -s disk/canary-$(<canary.n) && echo kept > canary || echo lost > canary`
            if (working && read('canary') === 'lost' && read('copied') === 'whole') fired++
            // An image that was torn while it was copied is none that a power loss leaves.
            if (read('copied') === 'torn' && !run.dry) {
              await $`umount disk && ${{ raw: free('lost.img') }}`
              continue
            }
            await $`(cd disk/repository && find . -name '.tmp*') > torn.list`
            const after = await serve('after-server')
            const ids = [...kept]
            // What had said before that it is done.
            if (code === 0 && command === 'backup') {
              await $`sed -n 's/^Snapshot created: //p' going.out > going.id`
              ids.push('going')
            }
            await afterwards(repo, ids, undefined, there, [...new Set(['ack-1', 'ack-2', 'extra', ...ids])])
            await nothingForEver(repo, there, `power lost during vykar ${command}`, 'killed-write-left')
            await after?.end('TERM')
            await $`umount disk && ${{ raw: free('lost.img') }}`
          }
        }
        fact('power lost', `${fired} of ${tried}`)
        await $`rm -rf source corpus base.img disk.img lost.img`
        await conclude(fired, tried)
      })
    }
  stillShown(run)
})
