import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch } from './daemon.js';
import { CONTROL, skipWithoutBrowser, WebPage } from './web-page.js';

const QMP = ['-qmp', 'unix:qmp.sock,server=on,wait=off'];

/** Each with a disk of its own, by the folder that it is in. */
const SERVERS: Readonly<Record<string, (node: string) => string[]>> = {
  first: (node) => [process.execPath, PROGRAM, 'run', '-blockdev', node, ...QMP],
  second: (node) => [process.execPath, PROGRAM, 'run', '-blockdev', node, ...QMP],
  daemon: (node) => ['qemu-storage-daemon', '--blockdev', node, ...CONTROL],
  machine: (node) => [
    ...['qemu-system-x86_64', ...BARE_MACHINE, '-accel', 'tcg', '-S', '-blockdev', node],
    ...['-device', `virtio-blk-pci,drive=node-machine,id=v`, ...QMP],
  ],
};

test(
  'two livedisks, a storage daemon and a QEMU on one page; one is killed and comes back, the others stay',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img', 'qemu-storage-daemon', 'qemu-system-x86_64')) return;
    const folder = scratch(t);
    const names = Object.keys(SERVERS);
    const start = async (name: string): Promise<Daemon> => {
      const node = `driver=qcow2,node-name=node-${name},file.driver=file,file.filename=${name}.qcow2`;
      const daemon = await Daemon.start(t, join(folder, name), SERVERS[name]?.(node) ?? []);
      await daemon.hangUp();
      return daemon;
    };
    const daemons = new Map<string, Daemon>();
    for (const name of names) {
      mkdirSync(join(folder, name));
      run(join(folder, name), 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, '8M');
      daemons.set(name, await start(name));
    }
    const web = await WebPage.open(t, folder, '--allow', folder, ...names.map((name) => `${name}/qmp.sock`));
    const { page } = web;
    const choose = async (name: string): Promise<void> => {
      await web.press(`${name}/qmp.sock`, 'nav');
      await web.image(`node-${name}`).waitFor();
      assert.equal(await page.locator('section[aria-label=chains] [data-image]').count(), 1);
    };
    const alert = page.locator('main > [role=alert]');
    for (const name of names) await choose(name);
    await web.check();
    await web.shot('several');
    for (const name of ['second', 'daemon', 'machine']) {
      await choose(name);
      await daemons.get(name)?.kill();
      await alert.waitFor();
      for (const other of names.filter((one) => one !== name)) {
        await choose(other);
        assert.equal(await alert.count(), 0, `${other} is there`);
      }
      await web.press(`${name}/qmp.sock`, 'nav');
      await alert.waitFor();
      daemons.set(name, await start(name));
      await alert.waitFor({ state: 'detached' });
      // It does as it is told again.
      await choose(name);
      await web.image(`node-${name}`).click();
      await page.locator('section.panel dd').getByText(`${name}.qcow2`).first().waitFor();
    }
  },
);
