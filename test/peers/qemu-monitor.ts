import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

const QEMU = 'qemu-system-x86_64';

/** A real QEMU without a machine; the path of its QMP socket. Skips the test when it is not installed. */
export async function spawnQemu(context: TestContext, ...args: string[]): Promise<string | undefined> {
  if (spawnSync(QEMU, ['--version']).error !== undefined) {
    context.skip(`not installed: ${QEMU}`);
    return undefined;
  }
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-qemu-'));
  const path = join(folder, 'qmp.sock');
  const bare = ['-machine', 'none', '-nodefaults', '-display', 'none'];
  const process = spawn(QEMU, [...bare, '-qmp', `unix:${path},server=on,wait=off`, ...args], {
    stdio: 'ignore',
  });
  const ended = new Promise((resolve) => process.once('exit', resolve));
  context.after(async () => {
    process.kill();
    await ended;
    rmSync(folder, { recursive: true, force: true });
  });
  while (!existsSync(path)) {
    if (process.exitCode !== null) throw new Error(`${QEMU} ended with ${process.exitCode}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return path;
}
