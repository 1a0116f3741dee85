import { spawnSync } from 'node:child_process';
import type { TestContext } from 'node:test';

/** A block device whose content is a file's, until the test ends. Skips the test, visibly, where there can be none. */
export function loopDevice(context: TestContext, path: string): string | undefined {
  const made = spawnSync('losetup', ['--find', '--show', path], { encoding: 'utf8' });
  if (made.error || made.status !== 0) {
    context.skip(`no loop devices: ${made.error?.message ?? made.stderr.trim()}`);
    return undefined;
  }
  const device = made.stdout.trim();
  context.after(() => void spawnSync('losetup', ['--detach', device]));
  return device;
}
