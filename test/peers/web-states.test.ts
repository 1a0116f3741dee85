import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import type { JsonValue } from '../../src/schema/types.js';
import { recorded, UNSEEN, withMover } from '../view/recorded.js';
import { scratch } from './daemon.js';
import { type Answers, fakeMonitor, Refusal } from './fake-monitor.js';
import { skipWithoutBrowser, WebPage } from './web-page.js';

const MiB = 1024 * 1024;
const PLAN = {
  words: ['It goes.'],
  bytes: MiB,
  seconds: 1,
  ends: ['/b'],
  invalid: ['c shows less'],
  users: ['u'],
};

/** A livedisk whose disk D is mirrored to E, with all that a page asks for. */
const LIVEDISK = {
  ...recorded('livedisk-mirror'),
  'query-commands': [{ name: 'x-point-list' }, { name: 'query-jobs' }],
  'query-jobs': [
    {
      ...{ id: 'm', type: 'mirror', status: 'running', 'current-progress': MiB, 'total-progress': 8 * MiB },
      error: 'no room',
      'x-progress': {
        ...{ phase: 'copy', rate: MiB, 'time-left': 7, 'dirty-rate': 4096, outlook: 'converges' },
        phases: [{ phase: 'copy', done: MiB, left: 7 * MiB }],
      },
    },
  ],
  'x-job-history': [{ id: 'old', type: 'commit', state: 'failed', error: 'it broke' }],
  'x-query-map': {
    ...{ size: 8 * MiB, layers: ['D', 'C', 'B', 'A'] },
    extents: [{ start: 0, length: 8 * MiB, layer: 0, zero: false }],
  },
  'x-query-write-heat': {
    region: 65536,
    'half-life': 60_000,
    counted: 1000,
    regions: [{ start: 0, rate: 5 }],
  },
  'x-point-list': {
    disks: [
      {
        ...{ disk: 'd', node: 'D', file: '/D', 'active-elsewhere': '/elsewhere' },
        points: [
          { name: 'monday', id: '1', created: 1, state: 'usable', node: 'C', bytes: MiB, disks: 1 },
          { name: 'tuesday', id: '2', created: 2, state: 'lost', disks: 1, why: 'written to' },
        ],
      },
    ],
    queue: [],
  },
  'x-point-delete': { id: '1', state: 'planned', plan: PLAN },
} satisfies Record<string, unknown>;

async function open(t: TestContext, answers: Answers): Promise<WebPage> {
  const folder = scratch(t);
  await fakeMonitor(t, join(folder, 'qmp.sock'), answers);
  return WebPage.open(t, folder, '--allow', folder, '--console', 'qmp.sock');
}

/** All that is read, by eyes or by who reads aloud. */
const TEXTS = `[...document.querySelectorAll('*')].flatMap((element) => [
  ...[...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data),
  ...['aria-label', 'title', 'placeholder', 'alt'].map((name) => element.getAttribute(name) ?? ''),
])`;

async function assertSeen({ page }: WebPage, where: string): Promise<void> {
  const texts = await page.evaluate<string[]>(TEXTS);
  for (const text of texts) assert.doesNotMatch(text, UNSEEN, `${where}: ${JSON.stringify(text)}`);
}

test('whatever a server says, the page shows nothing that is not seen', { timeout: 300_000 }, async (t) => {
  if (skipWithoutBrowser(t)) return;
  const mover = '\u202e\u200b\u001b[31m';
  const { 'x-point-list': points, 'x-job-history': history, 'x-point-delete': deletion, ...free } = LIVEDISK;
  // What the schema has as words stays one of them: else it is told that the answer is none.
  const words = (text: string): string =>
    /^(?:usable|lost|failed|planned)$/.test(text) ? text : `${text}${mover}`;
  const walk = (value: JsonValue): JsonValue =>
    JSON.parse(JSON.stringify(value), (_key, one: unknown) =>
      typeof one === 'string' ? words(one) : one,
    ) as JsonValue;
  const answers: Record<string, unknown> = {
    ...withMover(free as unknown as Record<string, JsonValue>, mover),
    ...{ 'x-point-list': walk(points), 'x-job-history': walk(history), 'x-point-delete': walk(deletion) },
    'block-job-pause': new Refusal(`no${mover}`),
    'job-pause': new Refusal(`no${mover}`),
  };
  const web = await open(t, answers);
  const { page } = web;
  const main = page.locator('main');
  await web.image(`D${mover}`).first().waitFor();
  await page.locator('article').waitFor();
  await page.locator('tr').filter({ hasText: 'monday' }).waitFor();
  for (const summary of await page.locator('summary').all()) await summary.press('Enter');
  await assertSeen(web, 'at first');
  await web.image(`D${mover}`).first().press('Enter');
  await page.locator('section.panel').first().waitFor();
  for (const action of ['stream', 'commit', 'export', 'map']) {
    await page
      .locator('section.panel')
      .first()
      .getByRole('button', { name: action, exact: true })
      .press('Enter');
    await assertSeen(web, action);
  }
  await page.locator('section[aria-label=map] canvas').waitFor();
  await page.locator('input[name=heat]').check();
  await page.getByText('The larger a dot').waitFor();
  await assertSeen(web, 'the map');
  await page.locator('button[aria-label^="delete monday"]').press('Enter');
  await page.locator('dialog').getByText('Not of the disk any more').waitFor();
  await assertSeen(web, "a point's plan");
  await web.press('Close', 'dialog');
  await main.locator('article').getByRole('button', { name: 'pause' }).press('Enter');
  await web.press('Do it', 'dialog');
  await page.locator('dialog [role=alert]').waitFor();
  await assertSeen(web, 'a refusal');
  await web.press('Close', 'dialog');
  await page.locator('input[name=line]').fill('query-jobs');
  await page.locator('input[name=line]').press('Enter');
  await page.locator('section[aria-label=console] pre').getByText('current-progress').waitFor();
  await assertSeen(web, 'the console');
  answers['query-named-block-nodes'] = new Refusal(`gone${mover}`);
  await page.locator('main > [role=alert]').waitFor();
  await assertSeen(web, 'an error');
});

test(
  'what can be done with a disk stays, and the form that is open, while a job comes to it',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithoutBrowser(t)) return;
    const answers: Record<string, unknown> = { ...recorded('livedisk-chain') };
    const web = await open(t, answers);
    const { page } = web;
    const choices = page.locator('section.panel .buttons').first();
    const expected = ['snapshot', 'stream', 'commit', 'mirror', 'backup', 'resize', 'export', 'map'];
    await web.image('D').click();
    await web.press('resize', 'section.panel');
    assert.deepEqual(await choices.getByRole('button').allTextContents(), expected);
    Object.assign(answers, recorded('livedisk-mirror'));
    await page.locator('article').waitFor();
    assert.deepEqual(await choices.getByRole('button').allTextContents(), expected);
    await page.locator('section.panel input[name=size]').waitFor();
    assert.equal(await choices.getByRole('button', { name: 'resize' }).getAttribute('aria-expanded'), 'true');
    await web.press('Plan', 'section.panel');
    await page.locator('dialog').getByText('works on [D]: wait for its end').waitFor();
  },
);

test(
  'each state of the page keeps the rules of accessibility, narrow and wide, light and dark',
  { timeout: 600_000 },
  async (t) => {
    if (skipWithoutBrowser(t)) return;
    const answers: Record<string, unknown> = { ...LIVEDISK };
    const web = await open(t, answers);
    const { page } = web;
    const check = async (state: string): Promise<void> => {
      for (const colorScheme of ['light', 'dark'] as const)
        for (const [width, height] of [
          [390, 800],
          [1280, 900],
        ] as const) {
          await page.emulateMedia({ colorScheme });
          await web.resize(width, height);
          await web.check().catch((error: Error) => {
            throw new Error(`${state}, ${colorScheme}, ${width}: ${error.message}`);
          });
        }
    };
    await page.locator('article').waitFor();
    await page.locator('tr').filter({ hasText: 'monday' }).waitFor();
    for (const summary of await page.locator('summary').all()) await summary.press('Enter');
    await check('a job runs');
    await web.shot('job-running');
    await page.locator('button[aria-label="delete monday"]').press('Enter');
    await page.locator('dialog').getByText('Not of the disk any more').waitFor();
    await check('a plan is open');
    await web.press('Close', 'dialog');
    answers['query-named-block-nodes'] = new Refusal('the disks are gone');
    await page.locator('main > [role=alert]').waitFor();
    await check('an error');
    await web.shot('error');
  },
);
