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
    const drawn = web.page.locator('section[aria-label=chains] [data-image]');
    const fold = web.page.locator('section[aria-label=chains] [data-image^="fold:"]');
    if (chains.length === 1) {
      // The middle is folded until somebody wants it; what is looked for is not in the fold.
      assert.ok((await drawn.count()) < 20, 'a deep chain is folded');
      await web.page.locator('input[name=find]').fill('n0-250.qcow2');
      await web.image('n0-250').waitFor();
      await web.page.locator('input[name=find]').fill('');
      await web.check();
      await web.shot('deep');
      await fold.first().press('Enter');
      await web.image('n0-250').waitFor();
    } else {
      await web.page.locator('input[name=find]').fill('disk63');
      await web.image('n0-0').waitFor({ state: 'detached' });
      assert.equal(await drawn.count(), 5);
      await web.page.locator('input[name=find]').fill('');
      await web.image('n0-0').waitFor();
      await web.check();
      await web.shot('many');
    }
    assert.equal(await drawn.count(), images);
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
