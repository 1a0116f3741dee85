import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Daemon, run, scratch } from './daemon.js';
import { CONTROL, skipWithoutBrowser, WebPage } from './web-page.js';

/** Images in the order in which they are drawn. */
const DRAWN = `[...document.querySelectorAll('section[aria-label=chains] [data-image]')].map(
  (one) => one.getAttribute('data-image'),
)`;

test(
  'a quorum of a real storage daemon: what can be done to its parts is, and what cannot is said',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img', 'qemu-storage-daemon')) return;
    const folder = scratch(t);
    const nodes = ['base', 'a', 'b', 'c', 'd'].flatMap((name) => {
      const below = name === 'a' ? ['-b', 'base.qcow2', '-F', 'qcow2'] : [];
      run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...below, `${name}.qcow2`, '8M');
      const file = { driver: 'file', filename: `${name}.qcow2` };
      const backing = name === 'a' ? { backing: 'base' } : {};
      return ['--blockdev', JSON.stringify({ driver: 'qcow2', 'node-name': name, file, ...backing })];
    });
    const quorum = { driver: 'quorum', 'node-name': 'Q', 'vote-threshold': 2, children: ['a', 'b', 'c'] };
    const filter = ['driver=throttle,node-name=T,throttle-group=g,file=d'];
    const daemon = await Daemon.start(t, folder, [
      ...['qemu-storage-daemon', '--object', 'throttle-group,id=g', ...nodes],
      ...['--blockdev', JSON.stringify(quorum), '--blockdev', ...filter, ...CONTROL],
      ...[
        '--nbd-server',
        'addr.type=unix,addr.path=nbd',
        '--export',
        'type=nbd,id=e,node-name=Q,writable=on',
      ],
    ]);
    await daemon.hangUp();
    const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
    const dialog = web.page.locator('dialog');
    const drawn = (): Promise<string[]> => web.page.evaluate<string[]>(DRAWN);
    await web.image('a').click();
    for (const kind of ['commit', 'mirror', 'resize']) {
      await web.press(kind, 'section.panel');
      await web.press('Plan', 'section.panel');
      await dialog.locator('[role=alert]').getByText('[a] is a part of {Q}').waitFor();
      await web.press('Close', 'dialog');
    }
    const before = await drawn();
    await web.press('snapshot', 'section.panel');
    await web.page.locator('section.panel input[name=node]').fill('a2');
    await web.press('Plan', 'section.panel');
    await web.press('Do it', 'dialog');
    await web.image('a2').waitFor();
    // Nothing jumps: the other parts stay where they are.
    const after = await drawn();
    assert.deepEqual(
      after.filter((id) => id !== 'a2'),
      before,
    );
    await web.image('a').click();
    await web.press('delete', 'section.panel');
    await dialog.getByText('Data of [a] are copied into [a2]').waitFor();
    await web.press('Do it', 'dialog');
    await dialog.waitFor({ state: 'detached' });
    await web.page.locator('section.jobs').getByText('None.').waitFor();
    // What is no image can be offered all the same.
    for (const [id, name] of [
      ['Q', '{Q}'],
      ['T', '(T)'],
    ] as const) {
      await web.image(id).click();
      const panel = web.page.locator('section.panel');
      await panel.locator('h2').getByText(name).waitFor();
      assert.deepEqual(await panel.locator('.buttons button').allTextContents(), ['export']);
      await web.press('export', 'section.panel');
      await panel.locator('input[name=name]').fill(`x${id}`);
      await web.press('Plan', 'section.panel');
      await dialog.getByText(`offers ${name} as 'x${id}'`).first().waitFor();
      await web.press('Do it', 'dialog');
      await web.page.locator('section[aria-label=chains] .user').getByText(`export x${id}`).waitFor();
    }
    await web.check();
    await web.shot('quorum');
  },
);
