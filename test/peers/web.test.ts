import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import type { Browser, Page } from 'playwright-core';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser'].find((path) => existsSync(path));
/** Patience of a slow machine, not what is tested. */
const PATIENCE_MS = 60_000;
/** Where pictures are kept that somebody wants to look at. */
const SHOTS = process.env['SCREENSHOTS'];

const CONTROL = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];

/** Skips the test when a browser or a program is missing, saying which. */
function skipWithoutBrowser(t: TestContext, ...programs: string[]): boolean {
  if (skipWithout(t, ...programs)) return true;
  if (CHROMIUM === undefined) t.skip('not installed: chromium');
  return CHROMIUM === undefined;
}

/** `livedisk web`, and a browser's page of it. */
class WebPage {
  readonly page: Page;
  readonly url: string;
  readonly #errors: string[] = [];

  private constructor(page: Page, url: string) {
    this.page = page;
    this.url = url;
    page.on('pageerror', (error) => this.#errors.push(error.message));
    page.on('console', (message) => {
      // A server that went away is told on the page.
      if (message.type() === 'error' && !/Failed to load resource|ERR_/.test(message.text()))
        this.#errors.push(message.text());
    });
  }

  static async open(t: TestContext, cwd: string, ...words: string[]): Promise<WebPage> {
    const { chromium } = await import('playwright-core');
    const server = spawn(process.execPath, [PROGRAM, 'web', ...words], { cwd });
    t.after(() => server.kill('SIGKILL'));
    const url = await firstLine(server);
    const browser: Browser = await chromium.launch({
      ...(CHROMIUM !== undefined && { executablePath: CHROMIUM }),
      args: ['--no-sandbox', '--disable-gpu'],
    });
    t.after(() => browser.close());
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
    page.setDefaultTimeout(PATIENCE_MS);
    const web = new WebPage(page, url);
    await page.goto(url);
    return web;
  }

  image(id: string): ReturnType<Page['locator']> {
    return this.page.locator(`section[aria-label=chains] [data-image="${id}"]`);
  }

  /** Presses a button by its name. */
  async press(name: string, within = 'main'): Promise<void> {
    await this.page.locator(within).getByRole('button', { name, exact: true }).click();
  }

  async shot(name: string): Promise<void> {
    if (SHOTS === undefined) return;
    mkdirSync(SHOTS, { recursive: true });
    await this.page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
  }

  /** What accessibility rules and the page itself have against it. */
  async check(): Promise<void> {
    const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
    // In a world of its own: the page's policy lets no script of others in.
    await this.page.evaluate(axe);
    const found = await this.page.evaluate(
      `axe.run(document).then(({ violations }) => violations.map(({ id, impact, nodes }) => [impact, id, nodes[0].html]))`,
    );
    const serious = (found as Array<[string, string, string]>).filter(([impact]) =>
      ['serious', 'critical'].includes(impact),
    );
    assert.deepEqual(serious, []);
    assert.deepEqual(this.#errors, []);
  }
}

function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    child.stderr?.on('data', (chunk: Buffer) => (text += chunk.toString()));
    child.stdout?.once('data', (chunk: Buffer) => resolve(chunk.toString().trim()));
    child.once('exit', () => reject(new Error(text)));
  });
}

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
  await Daemon.livedisk(t, folder, '-blockdev', node);
  const web = await WebPage.open(t, folder, '--allow', folder, '--console', 'qmp.sock');
  const { page } = web;
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.setViewportSize({ width: 390, height: 800 });
  await web.image('A').press('Enter');
  await web.page.locator('section.panel').waitFor();
  await web.check();
  await web.shot('narrow');
  const width = await page.evaluate('document.documentElement.scrollWidth');
  assert.ok(Number(width) <= 390, `the page is ${String(width)} wide`);
  await page.locator('section.panel').getByRole('button', { name: 'resize' }).press('Enter');
  await page.locator('input[name=size]').focus();
  await page.keyboard.press('Control+A');
  await page.keyboard.type('128');
  await page.keyboard.press('Enter');
  await page.locator('dialog').getByRole('button', { name: 'Do it' }).press('Enter');
  await web.image('A').getByText('disk 128 MiB').waitFor();
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
