import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch } from './daemon.js';
import { CONTROL, skipWithoutBrowser, WebPage } from './web-page.js';

/** A server with disk a, of 16 MiB and exported, whose monitor nobody holds. */
async function serve(t: TestContext, folder: string, argv: readonly string[]): Promise<Daemon> {
  const daemon = await Daemon.start(t, folder, [...argv]);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '16M');
  await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: join(folder, 'nbd') } } });
  const file = { driver: 'file', filename: join(folder, 'a.qcow2') };
  await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'a', file });
  await daemon.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a', writable: true });
  await daemon.hangUp();
  return daemon;
}

const row = (web: WebPage, name: string): ReturnType<WebPage['page']['locator']> =>
  web.page.locator('section[aria-label="points in time"] tr').filter({ hasText: name });

async function make(web: WebPage, name: string): Promise<void> {
  await web.page.locator('section[aria-label="points in time"] input[name=name]').fill(name);
  await web.press('make a point');
  await web.press('Do it', 'dialog');
  await row(web, name).getByText('usable').waitFor();
}

async function remove(web: WebPage, name: string): Promise<void> {
  await web.press(`delete ${name}`);
  await web.page.locator('dialog').getByText('Not of the disk any more').waitFor();
  await web.shot('point-plan');
  await web.check();
  await web.press('Do it', 'dialog');
  await row(web, name).waitFor({ state: 'detached' });
}

test('points in time of a real storage daemon, by clicking', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img', 'qemu-storage-daemon')) return;
  const folder = scratch(t);
  await serve(t, folder, ['qemu-storage-daemon', ...CONTROL]);
  const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
  await web.page.getByText('has no figures for the requests of export e').waitFor();
  await make(web, 'monday');
  await make(web, 'tuesday');
  await web.check();
  await web.shot('points');
  await web.press('go back monday');
  await web.page.locator('dialog [role=alert]').getByText("may be written to: export 'e'").waitFor();
  await web.press('Close', 'dialog');
  await remove(web, 'monday');
  await row(web, 'tuesday').getByText('usable').waitFor();
});

test('points in time of livedisk: one is gone back to, by clicking', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '16M');
  // A machine that has not begun writes nothing.
  await Daemon.livedisk(
    t,
    folder,
    ...['-S', '-blockdev', 'driver=qcow2,node-name=a,file.driver=file,file.filename=a.qcow2'],
    ...['-device', 'virtio-blk,drive=a,id=virtio0'],
  );
  const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
  await make(web, 'monday');
  await make(web, 'tuesday');
  await web.page.locator('section[aria-label=done] button').first().click();
  await web.page.locator('dialog h2').getByText('delete point tuesday').waitFor();
  await web.press('Do it', 'dialog');
  await row(web, 'tuesday').waitFor({ state: 'detached' });
  await make(web, 'wednesday');
  await web.resize(390, 800);
  await web.resize(1280, 900);
  await web.press('go back monday');
  await web.page.locator('dialog').getByText("Later points are no more: 'wednesday'.").waitFor();
  await web.check();
  await web.shot('going-back');
  await web.press('Do it', 'dialog');
  await row(web, 'wednesday').waitFor({ state: 'detached' });
  await row(web, 'monday').getByText('usable').waitFor();
});

/** Each a server with the chain [a] <-- [b] <-- [c], whose guest has not begun. */
const MACHINES: Readonly<Record<string, (folder: string) => string[]>> = {
  livedisk: () => [process.execPath, PROGRAM, 'run', '-S', '-device', 'virtio-blk,drive=c,id=v'],
  'qemu-system-x86_64': () => [
    ...['qemu-system-x86_64', ...BARE_MACHINE, '-accel', 'tcg', '-S'],
    ...['-device', 'virtio-blk-pci,drive=c,id=v'],
  ],
};

for (const [server, argv] of Object.entries(MACHINES))
  test(
    `an image without a name is gone back to on ${server}, by clicking`,
    { timeout: 300_000 },
    async (t) => {
      if (skipWithoutBrowser(t, 'qemu-img', 'qemu-io', ...(server === 'livedisk' ? [] : [server]))) return;
      const folder = scratch(t);
      for (const [i, name] of ['a', 'b', 'c'].entries()) {
        const below = i === 0 ? [] : ['-b', join(folder, `${'abc'[i - 1] ?? ''}.qcow2`), '-F', 'qcow2'];
        run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...below, `${name}.qcow2`, '16M');
        run(folder, 'qemu-io', '-c', `write -P ${i + 1} 0 1M`, `${name}.qcow2`);
      }
      const nodes = ['a', 'b', 'c'].flatMap((name, i) => [
        '-blockdev',
        JSON.stringify({
          ...{ driver: 'qcow2', 'node-name': name, backing: 'abc'[i - 1] ?? null },
          file: { driver: 'file', filename: join(folder, `${name}.qcow2`) },
        }),
      ]);
      const qmp = ['-qmp', 'unix:qmp.sock,server=on,wait=off'];
      const daemon = await Daemon.start(t, folder, [...argv(folder), ...nodes, ...qmp]);
      await daemon.hangUp();
      const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
      await web.image('a').click();
      await web.press('go back to it', 'section.panel');
      const dialog = web.page.locator('dialog');
      await dialog.getByText('The disk shows again what [a] holds').waitFor();
      await dialog.getByText(/Not of the disk any more: .*b\.qcow2, .*c\.qcow2/).waitFor();
      await web.check();
      await web.shot(`going-back-to-image-${server}`);
      await web.press('Do it', 'dialog');
      await dialog.waitFor({ state: 'detached' });
      const active = web.page.locator('section[aria-label=chains] .active');
      await active.filter({ hasText: 'c.after-a.qcow2' }).waitFor();
      await daemon.kill();
      const read = ['-r', '-c', 'read -P 1 0 1M', 'c.after-a.qcow2'];
      assert.doesNotMatch(run(folder, 'qemu-io', ...read), /verification failed/);
    },
  );
