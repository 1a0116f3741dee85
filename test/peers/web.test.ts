import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Daemon, run, scratch } from './daemon.js';
import { CONTROL, skipWithoutBrowser, WebPage } from './web-page.js';

function createImage(folder: string): string[] {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '64M');
  run(folder, 'qemu-io', '-c', 'write -P 1 0 16M', 'a.qcow2');
  return ['driver=qcow2,node-name=A,discard=unmap,file.driver=file,file.filename=a.qcow2'];
}

test(
  'a point in time is made and deleted by clicking, and a job followed',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img', 'qemu-io')) return;
    const folder = scratch(t);
    const [node = ''] = createImage(folder);
    const device = ['-device', 'virtio-blk,drive=A,id=virtio0'];
    const daemon = await Daemon.livedisk(t, folder, '-blockdev', node, ...device);
    const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
    assert.ok(!web.page.url().includes('token'), web.page.url());
    for (const [from, to] of [
      ['A', 'B'],
      ['B', 'C'],
    ] as const) {
      await web.image(from).click();
      await web.press('snapshot');
      await web.press('Plan');
      await web.press('Do it', 'dialog');
      await web.image(to).waitFor();
    }
    await web.image('B').click();
    await web.press('delete');
    const dialog = web.page.locator('dialog');
    await dialog.getByText('cannot be taken back any more to what [B] holds').waitFor();
    await web.shot('plan');
    await web.check();
    await web.press('Do it', 'dialog');
    await web.image('B').waitFor({ state: 'detached' });
    await web.shot('after');
    await daemon.execute('block-stream', { 'job-id': 'slow', device: 'C', speed: 65536 });
    await web.page.locator('article').getByText('stream slow').waitFor();
    await web.check();
    await web.shot('job');
    await web.press('cancel', 'article');
    await dialog.getByText('ends unfinished').waitFor();
    await web.press('Do it', 'dialog');
    await web.page.locator('article').waitFor({ state: 'detached' });
    assert.deepEqual(await daemon.execute('query-jobs'), []);
  },
);

test('by keyboard alone, narrow and dark', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  const [node = ''] = createImage(folder);
  const daemon = await Daemon.livedisk(t, folder, '-blockdev', node);
  const web = await WebPage.open(t, folder, '--allow', folder, '--console', 'qmp.sock');
  const { page } = web;
  await page.emulateMedia({ colorScheme: 'dark' });
  await web.resize(390, 800);
  await web.image('A').press('Enter');
  await web.page.locator('section.panel').waitFor();
  await web.check();
  await web.shot('narrow');
  const [box, image] = await Promise.all([
    page.locator('section[aria-label=chains] .picture').boundingBox(),
    web.image('A').boundingBox(),
  ]);
  assert.ok(box && image && image.x >= box.x, 'the active image is seen from its left edge on');
  await web.resize(390, 800);
  await page.locator('section.panel').getByRole('button', { name: 'resize' }).press('Enter');
  await page.locator('input[name=size]').focus();
  await page.keyboard.press('Control+A');
  await page.keyboard.type('128');
  // The disk is looked at anew, and what was typed stays.
  await daemon.execute('block-dirty-bitmap-add', { node: 'A', name: 'seen' });
  await page.locator('section.panel dd').getByText('seen').waitFor();
  await page.keyboard.press('Enter');
  await page.locator('dialog').getByRole('button', { name: 'Do it' }).press('Enter');
  await web.image('A').getByText('disk 128 MiB').waitFor();
  // Tab completes what can be, and goes on where nothing can.
  const line = page.locator('input[name=line]');
  const fitting = page.locator('[aria-label="what fits"]');
  await line.focus();
  await page.keyboard.type('query-version');
  await fitting.getByText('query-version', { exact: true }).waitFor();
  await page.keyboard.press('Tab');
  assert.equal(await line.inputValue(), 'query-version ');
  await fitting.getByText('query-version').waitFor({ state: 'detached' });
  await page.keyboard.press('Enter');
  await page.locator('section[aria-label=console] pre').getByText('"micro"').waitFor();
  await web.check();
  await page.keyboard.press('ArrowUp');
  assert.equal(await line.inputValue(), 'query-version ');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Tab');
  assert.equal(await line.evaluate('document.activeElement.textContent'), 'send');
});

test(
  'of a real storage daemon: names that are markup, and one that goes and comes back',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img', 'qemu-io', 'qemu-storage-daemon')) return;
    const folder = scratch(t);
    const name = '<img src=x onerror=alert(1)>&amp;".qcow2';
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', name, '8M');
    const options = { driver: 'qcow2', 'node-name': 'A', file: { driver: 'file', filename: name } };
    const argv = ['qemu-storage-daemon', '--blockdev', JSON.stringify(options), ...CONTROL];
    const first = await Daemon.start(t, folder, argv);
    await first.hangUp();
    const web = await WebPage.open(t, folder, 'qmp.sock');
    await web.image('A').click();
    await web.page.locator('dd').getByText(name).waitFor();
    await web.check();
    await first.kill();
    await web.page.locator('main > [role=alert]').waitFor();
    await web.shot('gone');
    const second = await Daemon.start(t, folder, argv);
    await second.hangUp();
    await web.page.locator('main > [role=alert]').waitFor({ state: 'detached' });
  },
);
