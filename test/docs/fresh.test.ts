import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { manualPages } from '../../src/programs/manual/pages.js';
import { EVENT_MEANINGS } from '../../src/programs/manual/meanings.js';
import { referenceText } from '../../src/programs/manual/reference.js';
import { manualPage } from '../../src/programs/manual/roff.js';
import { meaningOfCommand } from '../../src/programs/shell/meanings.js';
import { SUBCOMMANDS, VERSION } from '../../src/programs/subcommands.js';
import { COMMANDS } from '../../src/schema/commands.js';
import { EVENTS } from '../../src/schema/events.js';

/** What is made from the schema and from --help is what lies in docs/. `npm run docs` (UPDATE=1) writes it anew. */

const MANUAL = 'docs/man';

function assertFresh(path: string, text: string): void {
  if (process.env['UPDATE'] === '1') writeFileSync(path, text);
  const found = existsSync(path) ? readFileSync(path, 'utf8') : '';
  assert.ok(found === text, `${path} is out of date: npm run docs`);
}

test('the reference is what the schema says', () => assertFresh('docs/REFERENCE.md', referenceText()));

test('each command and each event has a sentence of ours', () => {
  assert.deepEqual(
    Object.keys(COMMANDS).filter((name) => meaningOfCommand(name) === undefined),
    [],
    'src/programs/shell/meanings.ts',
  );
  assert.deepEqual(
    Object.keys(EVENTS).filter((name) => !Object.hasOwn(EVENT_MEANINGS, name)),
    [],
    'src/programs/manual/meanings.ts',
  );
});

test('links of the reference lead somewhere', () => {
  const text = referenceText();
  const anchors = new Set([...text.matchAll(/^#+ (\S+)/gm)].map(([, name = '']) => name.toLowerCase()));
  const links = [...text.matchAll(/\]\(#([^)]+)\)/g)].map(([, name = '']) => name);
  assert.ok(links.length > 50);
  assert.deepEqual(
    links.filter((name) => !anchors.has(name)),
    [],
  );
});

test('the manual pages are what --help prints, one for each subcommand', () => {
  const pages = manualPages();
  assert.deepEqual(
    pages.map(({ name }) => name),
    ['livedisk', ...Object.keys(SUBCOMMANDS).map((name) => `livedisk-${name}`)],
    'src/programs/manual/pages.ts',
  );
  for (const page of pages) assertFresh(join(MANUAL, `${page.name}.1`), manualPage(page, VERSION));
  const { man, version } = JSON.parse(readFileSync('package.json', 'utf8')) as {
    man: string[];
    version: string;
  };
  assert.equal(version, VERSION);
  assert.deepEqual([...man].sort(), pages.map(({ name }) => `./${MANUAL}/${name}.1`).sort());
  assert.equal(readdirSync(MANUAL).length, pages.length);
});

test('groff has nothing to say about the manual pages', (t) => {
  if (spawnSync('groff', ['--version']).error) return t.skip('not installed: groff');
  for (const { name } of manualPages()) {
    const page = join(MANUAL, `${name}.1`);
    const { stdout, stderr } = spawnSync('groff', ['-man', '-Tascii', '-P-cbou', '-ww', page], { encoding: 'utf8' });
    assert.equal(stderr, '', name);
    assert.ok(stdout.includes('SYNOPSIS'), name);
  }
});
