import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Daemon, run, scratch } from './daemon.js';
import { skipWithoutBrowser, WebPage } from './web-page.js';

/** What others do while somebody looks at a plan. */

test(
  'of disks that have changed since, the new plan is shown instead of what was told being done',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img')) return;
    const folder = scratch(t);
    for (const [i, name] of ['A', 'B', 'C'].entries())
      run(
        folder,
        ...['qemu-img', 'create', '-q', '-f', 'qcow2'],
        ...(i === 0 ? [] : ['-b', `${'ABC'[i - 1] ?? ''}.qcow2`, '-F', 'qcow2']),
        ...[`${name}.qcow2`, '16M'],
      );
    const daemon = await Daemon.livedisk(
      t,
      folder,
      ...['-blockdev', 'driver=qcow2,node-name=C,file.driver=file,file.filename=C.qcow2'],
      ...['-device', 'virtio-blk,drive=C,id=virtio0'],
    );
    const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
    const dialog = web.page.locator('dialog');
    await web.image('C').click();
    await web.press('stream', 'section.panel');
    await web.press('Plan', 'section.panel');
    await dialog.getByText('Data of [A.qcow2] and [B.qcow2] are copied into [C]').waitFor();
    await daemon.execute('block-stream', {
      'job-id': 'other',
      device: 'C',
      'base-node': await baseOf(daemon),
    });
    await daemon.event('BLOCK_JOB_COMPLETED');
    await web.press('Do it', 'dialog');
    await dialog.locator('[role=alert]').getByText('would do something else than was told').waitFor();
    await dialog.getByText('Data of [A.qcow2] are copied into [C]').waitFor();
    assert.equal(await dialog.getByText('[B.qcow2]').count(), 0);
    await web.check();
    await web.shot('plan-changed');
    assert.deepEqual(await daemon.execute('query-jobs'), []);
    // What is told now is done.
    await web.press('Do it', 'dialog');
    await dialog.waitFor({ state: 'detached' });
    await daemon.event('BLOCK_JOB_COMPLETED');
    await web.page.locator('section[aria-label=chains] [data-image]').nth(1).waitFor({ state: 'detached' });
  },
);

/** The node of A, which nobody has named. */
async function baseOf(daemon: Daemon): Promise<string> {
  const nodes = (await daemon.execute('query-named-block-nodes', { flat: true })) as Array<{
    'node-name': string;
    drv: string;
    file: string;
  }>;
  const base = nodes.find(({ drv, file }) => drv === 'qcow2' && file.endsWith('A.qcow2'));
  assert.ok(base);
  return base['node-name'];
}

test(
  'two pages of one daemon, each with a token of its own: neither undoes what the other does',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img')) return;
    const folder = scratch(t);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'A.qcow2', '16M');
    const daemon = await Daemon.livedisk(
      t,
      folder,
      ...['-blockdev', 'driver=qcow2,node-name=A,file.driver=file,file.filename=A.qcow2'],
      ...['-device', 'virtio-blk,drive=A,id=virtio0'],
    );
    const [first, second] = [
      await WebPage.open(t, folder, '--allow', folder, 'qmp.sock'),
      await WebPage.open(t, folder, '--allow', folder, 'qmp.sock'),
    ];
    // A token is good at its own page only, and once.
    const { port } = new URL(second.url);
    const foreign = new URL(first.url);
    foreign.port = port;
    assert.equal((await fetch(foreign, { redirect: 'manual' })).status, 401);
    assert.equal((await fetch(first.url, { redirect: 'manual' })).status, 401);
    // Both plan a snapshot under the same names: one does it, the other is told.
    for (const web of [first, second]) {
      await web.image('A').click();
      await web.press('snapshot', 'section.panel');
      await web.press('Plan', 'section.panel');
      await web.page.locator('dialog').getByRole('button', { name: 'Do it' }).waitFor();
    }
    await first.press('Do it', 'dialog');
    await first.image('B').waitFor();
    await second.press('Do it', 'dialog');
    await second.page.locator('dialog [role=alert]').waitFor();
    await second.press('Close', 'dialog');
    await second.image('B').waitFor();
    // A job that is over is not taken back, and nor is another's of its name.
    await first.image('B').click();
    await first.press('stream', 'section.panel');
    await first.press('Plan', 'section.panel');
    await first.press('Do it', 'dialog');
    await daemon.event('BLOCK_JOB_COMPLETED');
    const done = first.page.locator('section[aria-label=done] li').first();
    await done.getByText('nothing takes it back').waitFor();
    await second.check();
    await daemon.kill();
    for (const { page } of [first, second]) await page.locator('main > [role=alert]').waitFor();
  },
);
