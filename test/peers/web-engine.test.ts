import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import { run, scratch } from './daemon.js';
import { skipWithoutBrowser, WebPage } from './web-page.js';

test(
  'an engine in the process of the page: its disk is written to, snapshotted, and whole at the end',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img', 'qemu-io')) return;
    const folder = scratch(t);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '16M');
    const web = await WebPage.open(
      t,
      folder,
      ...['--allow', folder, '--blockdev', 'driver=qcow2,node-name=A,file.driver=file,file.filename=a.qcow2'],
      ...[
        '--nbd-server',
        'addr.type=unix,addr.path=nbd',
        '--export',
        'type=nbd,id=e,node-name=A,writable=on',
      ],
    );
    const disk = `nbd+unix:///A?socket=${join(folder, 'nbd')}`;
    const io = (command: string): string => run(folder, 'qemu-io', '-f', 'raw', '-c', command, disk);
    io('write -P 1 0 1M');
    await web.image('A').click();
    await web.press('snapshot');
    await web.press('Plan');
    await web.press('Do it', 'dialog');
    await web.image('B').waitFor();
    io('write -P 2 1M 1M');
    await web.image('B').click();
    await web.press('map');
    await web.page.locator('section[aria-label=map] canvas').waitFor();
    await web.check();
    web.server.kill('SIGTERM');
    const [status] = (await once(web.server, 'exit')) as [number | null];
    assert.equal(status, 0);
    run(folder, 'qemu-io', '-r', '-f', 'qcow2', '-c', 'read -P 1 0 1M', '-c', 'read -P 2 1M 1M', 'B.qcow2');
    for (const image of ['a.qcow2', 'B.qcow2']) run(folder, 'qemu-img', 'check', '-q', image);
  },
);

test('what is wrong with its options is told, and nothing is left', { timeout: 60_000 }, async (t) => {
  if (skipWithoutBrowser(t)) return;
  const folder = scratch(t);
  await assert.rejects(
    WebPage.open(t, folder, '--blockdev', 'driver=qcow2,node-name=A,file.driver=file,file.filename=none'),
    /none/,
  );
});
