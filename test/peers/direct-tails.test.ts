import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';

/** Raw files past the page cache (cache=none) whose end is not that of a unit of O_DIRECT. */

const SIZES = [1, 512, 1000, 4096, 4608, 5000, 65_537];
/** What is done to the last sector, the last bytes, and far from them. */
const REQUESTS = [
  (last: number) => `write -P 7 ${last} 512`,
  (_last: number, size: number) => `write -P 7 ${size - 1} 1`,
  (_last: number, size: number) => `write -P 7 0 ${size}`,
  () => 'write -P 7 0 1',
  (last: number) => `write -z ${last} 512`,
  (_last: number, size: number) => `write -z -u 0 ${size}`,
  (last: number) => `write -P 7 ${last} 513`,
];

function takesDirect(path: string): boolean {
  try {
    closeSync(openSync(path, constants.O_RDWR + constants.O_DIRECT));
    return true;
  } catch {
    return false;
  }
}

async function compareTails(pair: ToolPair): Promise<void> {
  for (const size of SIZES) {
    const last = size - 1 - ((size - 1) % 512);
    const fresh = `head -c ${size} /dev/zero | tr '\\0' 'x' > a`;
    pair.prepare(fresh);
    await pair.alike(`io -f raw -t none -r -c length -c 'read -v ${last} 512' -c 'read ${last} 513' a`);
    for (const request of REQUESTS) {
      pair.prepare(fresh);
      await pair.alike(`io -f raw -t none -c '${request(last, size)}' -c length -c 'read -v ${last} 512' a`);
      const [ours, theirs] = (['ours', 'theirs'] as const).map((side) => readFileSync(pair.path(side, 'a')));
      assert.equal(ours?.length, theirs?.length, `length of ${size} bytes after ${request(last, size)}`);
      assert.ok(
        ours?.equals(theirs ?? Buffer.alloc(0)),
        `content of ${size} bytes after ${request(last, size)}`,
      );
      assert.ok(statSync(pair.path('ours', 'a')).size <= last + 512, 'it has become longer');
    }
    pair.prepare(fresh, 'rm -f out');
    await pair.alike('img convert -t none -f raw -O raw a out');
    await pair.alike('img convert -t none -n -f raw -O raw a out');
    assert.equal(statSync(pair.path('ours', 'out')).size, statSync(pair.path('theirs', 'out')).size);
  }
}

test('the last bytes of a raw file past the page cache are read and written as QEMU does', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const pair = new ToolPair(t);
  writeFileSync(pair.path('ours', 'probe'), 'x');
  if (!takesDirect(pair.path('ours', 'probe'))) return t.skip('this file system has no O_DIRECT');
  await compareTails(pair);
});

function run(...argv: string[]): string | undefined {
  const { status, stdout } = spawnSync(argv[0] ?? '', argv.slice(1), { encoding: 'utf8' });
  return status === 0 ? stdout.trim() : undefined;
}

/** An ext4 on a loop device of sectors of 4 KiB; undefined where one may not make it. */
function mountLargeSectors(t: TestContext): string | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-peers-'));
  const [image, mounted] = [join(folder, 'disk'), join(folder, 'mounted')];
  writeFileSync(image, '');
  truncateSync(image, 64 * 1024 * 1024);
  mkdirSync(mounted);
  const device = run('losetup', '--sector-size', '4096', '--find', '--show', image);
  const isMounted =
    device !== undefined &&
    run('mkfs.ext4', '-q', device) !== undefined &&
    run('mount', device, mounted) !== undefined;
  t.after(() => {
    // The tools' folder is where this process is.
    process.chdir('/');
    if (isMounted) run('umount', mounted);
    if (device !== undefined) run('losetup', '--detach', device);
    rmSync(folder, { recursive: true });
  });
  return isMounted ? mounted : undefined;
}

test('on a device of large sectors what would make a file longer is refused, as QEMU does', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const mounted = mountLargeSectors(t);
  if (mounted === undefined) return t.skip('no loop device of 4 KiB sectors (not root, or no loop devices)');
  await compareTails(new ToolPair(t, mounted));
});
