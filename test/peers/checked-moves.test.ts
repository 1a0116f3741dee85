import assert from 'node:assert/strict';
import { test } from 'node:test';
import { run } from './daemon.js';
import { MODULES, RECORD_BYTES, RING_RECORDS } from './guest-machine.js';
import { assertUnbroken, ringOf } from './guest-ring.js';
import { End, newBed, PRIVATE, unsoundMoves, VIRTIO } from './machine-end.js';

/**
 * A guest that looks at its memory goes from process to process. What a disk writes into memory while that is copied must be
 * in the log of what has changed: else a guest goes on with pages of an earlier moment.
 */

const MOVES = Number(process.env['MOVES'] ?? 3);
/** Its data on the disk lies behind its numbered records. */
const DATA_AT_MIB = 2;
const DATA_MIB = 2;

/**
 * Numbered records, as the usual guest's. Between them: data that stays in memory is compared with what the disk reads into
 * other memory, past the page cache and through it, and both change all the time.
 */
const CHECKING_INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
mkdir -p /m
mount -t tmpfs -o size=64m m /m
for module in ${MODULES.join(' ')}; do insmod /modules/$module.ko; done
renew() {
  dd if=/dev/urandom of=/m/data bs=1M count=${DATA_MIB} 2>/dev/null
  md5sum < /m/data > /m/sum
  dd if=/m/data of=/dev/vda bs=64k seek=${DATA_AT_MIB * 16} oflag=direct conv=notrunc,fsync 2>/dev/null || echo GUEST ERROR write
}
renew
echo GUEST READY
number=0
while [ -b /dev/vda ]; do
  printf 'record %012d' $number > /record
  dd if=/record of=/dev/vda bs=${RECORD_BYTES} seek=$((number % ${RING_RECORDS})) conv=notrunc,sync,fsync 2>/dev/null || echo GUEST ERROR $number
  dd if=/dev/vda of=/m/copy bs=64k skip=${DATA_AT_MIB * 16} count=${DATA_MIB * 16} iflag=direct 2>/dev/null || echo GUEST ERROR read
  cmp /m/data /m/copy || echo GUEST ERROR what was read directly differs in $number
  rm /m/copy
  echo 1 > /proc/sys/vm/drop_caches
  dd if=/dev/vda bs=1M skip=${DATA_AT_MIB} count=${DATA_MIB} 2>/dev/null | cmp - /m/data || echo GUEST ERROR what was read differs in $number
  [ "$(md5sum < /m/data)" = "$(cat /m/sum)" ] || echo GUEST ERROR memory differs in $number
  [ $((number % 4)) = 3 ] && renew
  echo GUEST WROTE $number
  number=$((number + 1))
done
`;

for (const [way, options] of [
  ['vhost-user', []],
  ['NBD', PRIVATE],
] as const)
  test(`a guest that compares memory and disk is moved ${MOVES} times, its disk over ${way}`, async (t) => {
    const unsound = unsoundMoves();
    if (unsound !== undefined) return t.skip(unsound);
    const bed = newBed(t, { init: CHECKING_INIT, moduleFolders: [] });
    if (!bed) return;
    const { folder } = bed;
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '64M');
    const words = [...VIRTIO, ...options];
    let here = await End.start(t, bed, 'end0', 'a.qcow2', ...words);
    await here.reached(1);
    for (let move = 1; move <= MOVES; move++) {
      const there = await End.start(t, bed, `end${move}`, 'a.qcow2', ...words, '-incoming', 'unix:move.sock');
      await here.daemon.execute('migrate', { uri: 'unix:move.sock' });
      assert.equal(await here.moved(), 'completed');
      const left = here.lastRecord;
      await there.reached(left + 2);
      assert.doesNotMatch(here.text + there.text, /GUEST ERROR|[Pp]anic|BUG|Oops|differ/, `move ${move}`);
      assert.equal(await here.daemon.quit(), 0, here.daemon.output);
      here = there;
      t.diagnostic(`move ${move}: record ${here.lastRecord}`);
    }
    await here.daemon.execute('stop');
    const last = here.lastRecord;
    assert.equal(await here.daemon.quit(), 0, here.daemon.output);
    run(folder, 'qemu-img', 'check', 'a.qcow2');
    assertUnbroken(ringOf(folder, 'a.qcow2'), last, 'the disk');
  });
