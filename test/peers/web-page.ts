import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { Browser, Page } from 'playwright-core';
import { PROGRAM, skipWithout } from './daemon.js';

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser'].find((path) => existsSync(path));
/** Patience of a slow machine, not what is tested. */
const PATIENCE_MS = 60_000;
/** Where pictures are kept that somebody wants to look at. */
const SHOTS = process.env['SCREENSHOTS'];

export const CONTROL = [
  '--chardev',
  'socket,id=c,path=qmp.sock,server=on,wait=off',
  '--monitor',
  'chardev=c',
];

/** Skips the test when a browser or a program is missing, saying which. */
export function skipWithoutBrowser(t: TestContext, ...programs: string[]): boolean {
  if (skipWithout(t, ...programs)) return true;
  if (CHROMIUM === undefined) t.skip('not installed: chromium');
  return CHROMIUM === undefined;
}

/** `livedisk web`, and a browser's page of it. */
export class WebPage {
  readonly page: Page;
  readonly url: string;
  /** `livedisk web`. */
  readonly server: ChildProcess;
  readonly #errors: string[] = [];

  private constructor(page: Page, url: string, server: ChildProcess) {
    this.page = page;
    this.url = url;
    this.server = server;
    page.on('pageerror', (error) => this.#errors.push(error.message));
    page.on('console', (message) => {
      // A server that went away is told on the page.
      if (message.type() === 'error' && !/Failed to load resource|ERR_/.test(message.text()))
        this.#errors.push(message.text());
    });
  }

  static open(t: TestContext, cwd: string, ...words: string[]): Promise<WebPage> {
    return WebPage.ofProgram(t, cwd, 'web', ...words);
  }

  /** The page of any subcommand that prints its address. */
  static async ofProgram(t: TestContext, cwd: string, ...words: string[]): Promise<WebPage> {
    const { chromium } = await import('playwright-core');
    const server = spawn(process.execPath, [PROGRAM, ...words], {
      cwd,
      env: { ...process.env, TMPDIR: cwd },
    });
    t.after(() => server.kill('SIGKILL'));
    const url = await addressOf(server);
    const browser: Browser = await chromium.launch({
      ...(CHROMIUM !== undefined && { executablePath: CHROMIUM }),
      args: ['--no-sandbox', '--disable-gpu'],
    });
    t.after(() => browser.close());
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
    page.setDefaultTimeout(PATIENCE_MS);
    const web = new WebPage(page, url, server);
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

  /** Makes the window so wide; the page, drawn anew, is no wider. */
  async resize(width: number, height: number): Promise<void> {
    await this.page.setViewportSize({ width, height });
    await this.page.waitForFunction(`document.documentElement.scrollWidth <= ${String(width)}`, undefined, {
      timeout: PATIENCE_MS,
    });
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

function addressOf(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let [told, text] = ['', ''];
    child.stderr?.on('data', (chunk: Buffer) => (text += chunk.toString()));
    child.stdout?.on('data', (chunk: Buffer) => {
      told += chunk.toString();
      const [address] = /https?:\/\/\S+(?=\s)/.exec(told) ?? [];
      if (address !== undefined) resolve(address);
    });
    child.once('exit', () => reject(new Error(text)));
  });
}
