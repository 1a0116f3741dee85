import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const succeeds = (command: string, ...args: string[]): boolean => spawnSync(command, args).status === 0;

/** Calls `body` with a folder on a new file system that `mkfs` makes; false where this machine lets us have none. */
export async function onMounted(
  [command, ...options]: readonly [string, ...string[]],
  body: (folder: string) => Promise<void>,
): Promise<boolean> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-mounted-'));
  const [device, mounted] = [join(folder, 'device'), join(folder, 'mounted')];
  try {
    writeFileSync(device, '');
    mkdirSync(mounted);
    if (!succeeds('truncate', '-s', '200M', device)) return false;
    if (!succeeds(command, ...options, device)) return false;
    if (!succeeds('mount', '-o', 'loop', device, mounted)) return false;
    try {
      await body(mounted);
    } finally {
      succeeds('umount', '-l', mounted);
    }
    return true;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
