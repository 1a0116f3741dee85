import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { scratch } from './daemon.js';
import { skipWithoutBrowser, WebPage } from './web-page.js';

/** The disk's active image. */
async function active(web: WebPage): Promise<string> {
  const id = await web.page.locator('section[aria-label=chains] .active').first().getAttribute('data-image');
  assert.ok(id !== null);
  return id;
}

/** Plans what the panel's form says, and does it. */
async function act(web: WebPage, image: string, kind: string, more?: () => Promise<unknown>): Promise<void> {
  await web.image(image).click();
  await web.press(kind, 'section.panel');
  await more?.();
  if (kind !== 'delete') await web.press('Plan', 'section.panel');
  await web.press('Do it', 'dialog');
  await web.page.locator('dialog').waitFor({ state: 'detached' });
}

/** So many jobs have ended since the beginning, and none runs. */
async function ended(web: WebPage, count: number): Promise<void> {
  const jobs = web.page.locator('section.jobs');
  await jobs.locator('summary').getByText(`${count} ended`).waitFor();
  await jobs.getByText('None.').waitFor();
}

test(
  "the demo's course by clicking, under a guest that writes all the time, and nothing is lost",
  { timeout: 600_000 },
  async (t) => {
    if (skipWithoutBrowser(t)) return;
    const web = await WebPage.ofProgram(t, scratch(t), 'demo', '--web');
    const printed: Buffer[] = [];
    web.server.stdout?.on('data', (chunk: Buffer) => printed.push(chunk));
    const points = web.page.locator('section[aria-label="points in time"]');
    await points.getByText('wednesday').first().waitFor();
    await web.shot('demo');
    // A point in the middle is deleted, as a newcomer would.
    await web.press('delete tuesday');
    await web.press('Do it', 'dialog');
    await points.getByText('tuesday').waitFor({ state: 'detached' });
    await ended(web, 1);
    const first = await active(web);
    await act(web, first, 'snapshot', async () => {
      await web.page.locator('section.panel input[name=file]').fill('B.qcow2');
      await web.page.locator('section.panel input[name=node]').fill('B');
    });
    await web.image('B').waitFor();
    await act(web, 'B', 'backup', () =>
      web.page.locator('section.panel input[name=file]').fill('backup.qcow2'),
    );
    await ended(web, 2);
    // The new layer goes down again, and the guest goes over when the job is ready.
    await act(web, 'B', 'commit', () =>
      web.page.locator('section.panel select[name=base]').selectOption(first),
    );
    await web.press('complete', 'article');
    await web.page.locator('dialog').getByText('Pivot: the guest goes over to').waitFor();
    await web.press('Do it', 'dialog');
    await web.image('B').waitFor({ state: 'detached' });
    await ended(web, 3);
    // All goes over to a copy.
    await act(web, first, 'mirror', async () => {
      await web.page.locator('section.panel input[name=file]').fill('copy.qcow2');
      await web.page.locator('section.panel input[name=node]').fill('copy');
    });
    await web.page.locator('article').getByRole('button', { name: 'complete' }).waitFor();
    await web.shot('demo-mirror');
    await web.press('complete', 'article');
    await web.press('Do it', 'dialog');
    await web.page.locator('.active[data-image=copy]').waitFor();
    await ended(web, 4);
    await act(web, 'copy', 'snapshot', async () => {
      await web.page.locator('section.panel input[name=file]').fill('last.qcow2');
      await web.page.locator('section.panel input[name=node]').fill('last');
    });
    await web.image('last').waitFor();
    await act(web, 'last', 'stream');
    await web.image('copy').waitFor({ state: 'detached' });
    await ended(web, 5);
    await web.check();
    web.server.kill('SIGINT');
    const [status] = (await once(web.server, 'exit')) as [number | null];
    const text = Buffer.concat(printed).toString();
    assert.equal(status, 0, text);
    assert.match(text, /the disk holds all \d+ records as the guest wrote them/);
    for (const image of ['copy.qcow2', 'backup.qcow2']) assert.ok(text.includes(`${image}: no errors`), text);
  },
);
