import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Daemon, run, scratch } from './daemon.js';
import { skipWithoutBrowser, WebPage } from './web-page.js';

/** A page has fewer elements that can be reached than that. */
const MOST_TABS = 120;

const FOCUSED = `(() => {
  const { activeElement: one } = document;
  return [one.getAttribute('aria-label') ?? one.getAttribute('name') ?? one.textContent.trim(), one.tagName].join('|');
})()`;

/** Presses Tab until what is called so has the focus. */
async function tabTo({ page }: WebPage, what: RegExp): Promise<void> {
  const seen: string[] = [];
  for (let tabs = 0; tabs < MOST_TABS; tabs++) {
    const focused = await page.evaluate<string>(FOCUSED);
    if (what.test(focused)) return;
    seen.push(focused);
    await page.keyboard.press('Tab');
  }
  assert.fail(`Tab does not lead to ${String(what)}: ${seen.join(', ')}`);
}

test(
  'a point in time is made, looked at and deleted without a mouse, and nobody loses the place',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img')) return;
    const folder = scratch(t);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '16M');
    await Daemon.livedisk(
      t,
      folder,
      ...['-blockdev', 'driver=qcow2,node-name=a,file.driver=file,file.filename=a.qcow2'],
      ...['-device', 'virtio-blk,drive=a,id=virtio0'],
    );
    const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
    const { page } = web;
    const { keyboard } = page;
    const dialog = page.locator('dialog');
    const row = (name: string): ReturnType<typeof page.locator> =>
      page.locator('tr').filter({ hasText: name });
    await page.locator('input[name=name]').waitFor();
    for (const name of ['monday', 'tuesday']) {
      await tabTo(web, /^name\|INPUT$/);
      await keyboard.press('Control+A');
      await keyboard.type(name);
      await keyboard.press('Enter');
      await dialog.getByRole('button', { name: 'Do it' }).waitFor();
      await tabTo(web, /^Do it\|/);
      await keyboard.press('Enter');
      await dialog.waitFor({ state: 'detached' });
      await row(name).getByText('usable').waitFor();
    }
    // Whoever closes a plan, by its button or by Escape, is where the plan was asked for.
    for (const leave of ['Close', 'Escape']) {
      await tabTo(web, /^delete monday\|/);
      await keyboard.press('Enter');
      await dialog.getByText('Not of the disk any more').waitFor();
      if (leave === 'Close') {
        await tabTo(web, /^Close\|/);
        await keyboard.press('Enter');
      } else await keyboard.press('Escape');
      await dialog.waitFor({ state: 'detached' });
      assert.match(await page.evaluate<string>(FOCUSED), /^delete monday\|/, leave);
    }
    await keyboard.press('Enter');
    await dialog.getByText('Not of the disk any more').waitFor();
    await tabTo(web, /^Do it\|/);
    await keyboard.press('Enter');
    await row('monday').waitFor({ state: 'detached' });
    await row('tuesday').getByText('usable').waitFor();
  },
);
