import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, run, scratch } from './daemon.js';
import { CONTROL, skipWithoutBrowser, WebPage } from './web-page.js';

const NODE = 'driver=qcow2,node-name=A,file.driver=file,file.filename=a.qcow2';

test('a bitmap lies over the map, and percentiles are plotted', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '64M');
  run(folder, 'qemu-io', '-c', 'write -P 1 0 16M', 'a.qcow2');
  const daemon = await Daemon.livedisk(
    ...([t, folder, '-blockdev', NODE] as const),
    ...['-device', 'virtio-blk,drive=A,id=virtio0'],
  );
  const io = (command: string): Promise<unknown> =>
    daemon.execute('human-monitor-command', { 'command-line': `qemu-io -d virtio0 "${command}"` });
  await daemon.execute('block-dirty-bitmap-add', { node: 'A', name: 'changed' });
  await io('write -P 3 4M 3M');
  await io('write -P 3 20M 1M');
  await io('flush');
  const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
  const { page } = web;
  await web.image('A').click();
  await web.press('map');
  const map = page.locator('section[aria-label=map]');
  await map.getByText('each cell').waitFor();
  await map.locator('select[name=bitmap]').selectOption({ index: 1 });
  await map.getByText('Hatched is what changed has as dirty').waitFor();
  await web.press('latency percentiles');
  await web.press('Do it', 'dialog');
  await page.getByText('shown once there are requests').waitFor();
  await io('read 0 1M');
  await page.locator('figcaption').getByText('latency percentiles of buckets').waitFor();
  await web.check();
  await web.shot('overlays');
});

test('a real QEMU counts for percentiles, and tells no bitmap', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '64M');
  const qemu = await Daemon.start(t, folder, [
    ...['qemu-system-x86_64', '-display', 'none', '-nodefaults', '-S', '-blockdev', NODE],
    ...['-device', 'virtio-blk,drive=A,id=virtio0', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
  ]);
  await qemu.execute('block-dirty-bitmap-add', { node: 'A', name: 'changed' });
  await qemu.hangUp();
  const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
  await web.press('latency percentiles');
  await web.press('Do it', 'dialog');
  await web.page.getByRole('button', { name: 'no more percentiles' }).waitFor();
  // What the map says comes last, and takes nothing away of what the bitmap said.
  let goOn: () => void = () => undefined;
  const isSaid = new Promise<void>((resolve) => (goOn = resolve));
  await web.page.route('**/api/map', (route) => isSaid.then(() => route.continue()));
  await web.image('A').click();
  await web.press('map');
  const map = web.page.locator('section[aria-label=map]');
  await map.locator('select[name=bitmap]').selectOption({ index: 1 });
  const refusal = map.locator('[role=alert]').getByText('x-bitmap-extents');
  await refusal.waitFor();
  goOn();
  await map.getByText('each cell').waitFor();
  assert.ok(await refusal.isVisible());
});

test(
  'images that name each other from their folder, and that a QEMU was given by their paths, are told as files and planned to the byte',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img', 'qemu-io', 'qemu-storage-daemon')) return;
    const folder = scratch(t);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '64M');
    run(folder, 'qemu-io', '-c', 'write -P 1 0 8M', 'a.qcow2');
    for (const [lower, upper] of ['ab', 'bc'])
      run(
        folder,
        'qemu-img',
        'create',
        '-q',
        '-f',
        'qcow2',
        '-b',
        `${lower}.qcow2`,
        '-F',
        'qcow2',
        `${upper}.qcow2`,
      );
    run(folder, 'qemu-io', '-c', 'write -P 2 4M 8M', 'b.qcow2');
    run(folder, 'qemu-io', '-c', 'write -P 3 5M 2M', 'c.qcow2');
    const nodes = [...'abc'].flatMap((name, i) => {
      const file = { driver: 'file', filename: join(folder, `${name}.qcow2`) };
      const backing = i === 0 ? {} : { backing: 'abc'[i - 1] };
      return ['--blockdev', JSON.stringify({ driver: 'qcow2', 'node-name': name, file, ...backing })];
    });
    const daemon = await Daemon.start(t, folder, ['qemu-storage-daemon', ...nodes, ...CONTROL]);
    await daemon.hangUp();
    const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
    await web.image('c').click();
    const panel = web.page.locator('section.panel');
    await panel.getByText(join(folder, 'c.qcow2'), { exact: true }).waitFor();
    await panel.getByText('made').waitFor();
    await web.press('stream', 'section.panel');
    await panel.locator('select[name=base]').selectOption('a');
    await web.press('Plan', 'section.panel');
    // What c hides of b is not copied.
    await web.page.locator('dialog').getByText('6.0 MiB are copied, ').waitFor();
    await web.press('Close', 'dialog');
    await web.press('map', 'section.panel');
    const map = web.page.locator('section[aria-label=map]');
    for (const layer of ['c: 2.0 MiB', 'b: 6.0 MiB', 'a: 4.0 MiB']) await map.getByText(layer).waitFor();
  },
);
