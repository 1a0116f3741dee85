import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { PROGRAM, scratch } from './daemon.js';
import { fakeMonitor, manyDisks } from './fake-monitor.js';
import { skipWithoutBrowser, WebPage } from './web-page.js';

/** A slow machine's; on a quiet one it is a second. */
const DRAWN_WITHIN_MS = 45_000;

for (const [what, chains, last] of [
  ['a chain of 500 layers', [500], 'n0-499'],
  ['64 disks of five layers each', Array<number>(64).fill(5), 'n63-4'],
] as const)
  test(`${what}: drawn, and the last image answers a click`, { timeout: 300_000 }, async (t) => {
    if (skipWithoutBrowser(t)) return;
    const folder = scratch(t);
    await fakeMonitor(t, join(folder, 'qmp.sock'), manyDisks(chains));
    const begun = performance.now();
    const web = await WebPage.open(t, folder, '--allow', folder, 'qmp.sock');
    await web.image(last).waitFor();
    await web.image(last).click();
    await web.page.locator('section.panel dd').getByText(`/images/${last}.qcow2`).waitFor();
    const tookMs = performance.now() - begun;
    t.diagnostic(`drawn and clicked in ${Math.round(tookMs)} ms, browser's start and all`);
    assert.ok(tookMs < DRAWN_WITHIN_MS, `it took ${tookMs} ms`);
    const images = chains.reduce((sum, layers) => sum + layers, 0);
    assert.equal(await web.page.locator('section[aria-label=chains] [data-image]').count(), images);
    await web.check();
  });

test('the page is no more than 200 KiB, compressed', (t) => {
  if (skipWithoutBrowser(t)) return;
  const folder = join(dirname(PROGRAM), 'page');
  const bytes = ['index.html', 'page.js', 'page.css']
    .map((name) => gzipSync(readFileSync(join(folder, name))).length)
    .reduce((sum, one) => sum + one, 0);
  t.diagnostic(`${bytes} bytes`);
  assert.ok(bytes < 200 * 1024, `${bytes} bytes`);
});
