import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { Daemon, run, scratch } from './daemon.js';
import { skipWithoutBrowser, WebPage } from './web-page.js';

/** What is told of what went away, came back, or came late. */

const LISTEN = ['--listen', '127.0.0.1:0'];

interface Bed {
  folder: string;
  start: () => Promise<Daemon>;
  daemon: Daemon;
  web: WebPage;
}

async function open(t: TestContext, ...words: string[]): Promise<Bed> {
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '8M');
  const node = 'driver=qcow2,node-name=A,file.driver=file,file.filename=a.qcow2';
  const start = (): Promise<Daemon> =>
    Daemon.livedisk(t, folder, '-blockdev', node, '-device', 'virtio-blk,drive=A,id=virtio0');
  const daemon = await start();
  const web = await WebPage.open(t, folder, ...LISTEN, '--allow', folder, 'qmp.sock', ...words);
  await web.image('A').waitFor();
  return { folder, start, daemon, web };
}

test('a stream that is turned away is asked for again', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img')) return;
  const { web } = await open(t);
  const { page } = web;
  let turnedAway = 0;
  await page.route('**/api/events', async (route) => {
    if (turnedAway++ > 0) await route.continue();
    else await route.fulfill({ status: 503, contentType: 'text/plain', body: 'too many watch already\n' });
  });
  await page.reload();
  await web.image('A').waitFor();
  assert.equal(turnedAway, 2);
});

test(
  'a browser with the page in many tabs goes on in those that are looked at',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img')) return;
    const { web } = await open(t);
    const browser = web.page.context().browser();
    assert.ok(browser);
    const context = await browser.newContext();
    t.after(() => context.close());
    await context.addCookies(await web.page.context().cookies());
    const tabs = [];
    for (let i = 0; i < 7; i++) {
      const tab = await context.newPage();
      tab.setDefaultTimeout(60_000);
      tabs.push(tab);
      await tab.goto(new URL('/', web.url).href);
      await tab.locator('[data-image="A"]').waitFor();
    }
    const [first] = tabs;
    assert.ok(first);
    const status = first.locator('header [role=status]');
    await status.getByText('in too many tabs').waitFor();
    await first.keyboard.press('Tab');
    await status.getByText('connected', { exact: true }).waitFor();
  },
);

test('a page of a livedisk web that was started anew says how to go on', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img')) return;
  const { web, folder } = await open(t);
  const { page } = web;
  const { port } = new URL(web.url);
  web.server.kill('SIGTERM');
  const lost = page.locator('header [role=status]');
  await lost.getByText('it tries again').waitFor();
  const again = await WebPage.open(t, folder, '--listen', `127.0.0.1:${port}`, 'qmp.sock');
  await lost.getByText('Open the address that "livedisk web" printed').waitFor();
  // Who comes in by the new address in the same browser is in everywhere.
  const [cookie] = await again.page.context().cookies();
  assert.ok(cookie);
  await page.context().addCookies([cookie]);
  await lost.getByText('connected', { exact: true }).waitFor();
});

test(
  'who asks a livedisk web that is gone is told what may have been done',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img')) return;
    const { web } = await open(t);
    await web.image('A').click();
    await web.press('export');
    await web.press('Plan');
    const dialog = web.page.locator('dialog');
    await dialog.getByRole('button', { name: 'Do it' }).waitFor();
    web.server.kill('SIGKILL');
    await web.page.locator('header [role=status]').getByText('it tries again').waitFor();
    await web.press('Do it', 'dialog');
    await dialog.locator('[role=alert]').getByText('What it was asked may have been done').waitFor();
    await web.check();
  },
);

test('what has failed is not said to go on, while its plan is made anew', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img')) return;
  const { web } = await open(t);
  const { page } = web;
  await web.image('A').click();
  await web.press('export');
  await web.press('Plan');
  const dialog = page.locator('dialog');
  await dialog.getByRole('button', { name: 'Do it' }).waitFor();
  let refuse = (): void => undefined;
  const isRefused = new Promise<void>((resolve) => (refuse = resolve));
  await page.route('**/api/run', async (route) => {
    await isRefused;
    await route.fulfill({ status: 400, json: { error: 'no room for that' } });
  });
  // Is not answered.
  await page.route('**/api/plan', () => undefined);
  await web.press('Do it', 'dialog');
  await dialog.locator('[role=status]').getByText('it goes on when this is closed').waitFor();
  refuse();
  await dialog.locator('[role=alert]').getByText('no room for that').waitFor();
  assert.equal(await dialog.locator('[role=status]').count(), 0);
});

test('points are asked for anew when a server has come back', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t, 'qemu-img')) return;
  const { web, daemon, start } = await open(t);
  const { page } = web;
  let isFailing = true;
  await page.route('**/api/points', async (route) => {
    if (isFailing) await route.fulfill({ status: 400, json: { error: 'the points cannot be read' } });
    else await route.continue();
  });
  await page.reload();
  const told = page.getByText('the points cannot be read');
  await told.waitFor();
  isFailing = false;
  await daemon.kill();
  await page.locator('main > [role=alert]').waitFor();
  await start();
  await told.waitFor({ state: 'detached' });
  await page.locator('section[aria-label="points in time"]').getByText('None.').waitFor();
});

test(
  'what was done, and what failed when its plan was closed, stays to be seen',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t, 'qemu-img')) return;
    const other = scratch(t);
    run(other, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'o.qcow2', '8M');
    await Daemon.livedisk(
      t,
      other,
      '-blockdev',
      'driver=qcow2,node-name=O,file.driver=file,file.filename=o.qcow2',
    );
    const { web } = await open(t, `${other}/qmp.sock`);
    const { page } = web;
    await web.press('qmp.sock', 'nav');
    await web.image('A').click();
    await web.press('export');
    await web.press('Plan');
    let answer = (): void => undefined;
    const isAnswered = new Promise<void>((resolve) => (answer = resolve));
    await page.route('**/api/run', async (route) => {
      await isAnswered;
      await route.fulfill({ status: 400, json: { error: 'no room for that' } });
    });
    await web.press('Do it', 'dialog');
    await web.press('Close', 'dialog');
    await page.locator('dialog').waitFor({ state: 'detached' });
    await web.press(`${other}/qmp.sock`, 'nav');
    await web.image('O').waitFor();
    answer();
    await web.press('qmp.sock', 'nav');
    const done = page.locator('section[aria-label=done]');
    await done.getByText('no room for that').waitFor();
    await web.check();
    await web.press(`${other}/qmp.sock`, 'nav');
    await done.waitFor({ state: 'detached' });
  },
);
