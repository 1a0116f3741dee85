import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { QmpClient } from '../../src/wire/qmp/client.js';
import type { JsonObject } from '../../src/schema/types.js';
import { byName, Comparison, ourSchema, type Schema, word } from './introspection-comparison.js';
import { DIFFERENCES, differencesText, MISSING } from './introspection-differences.js';
import { spawnQemu } from './qemu-monitor.js';

async function qemuSchema(context: TestContext): Promise<Schema | undefined> {
  const path = await spawnQemu(context);
  if (path === undefined) return undefined;
  const client = await QmpClient.connect(createRealHost(), { type: 'unix', path });
  context.after(() => client.close());
  return byName((await client.execute('query-qmp-schema')) as JsonObject[]);
}

test('what the schema says of commands and events is what QEMU says of them', async (context) => {
  const theirs = await qemuSchema(context);
  if (!theirs) return;
  const ours = ourSchema();
  const comparison = new Comparison(ours, theirs);
  for (const [name, info] of ours) {
    if (info['meta-type'] !== 'command' && info['meta-type'] !== 'event') continue;
    const same = theirs.get(name);
    if (same) comparison.compareEntities(info, same, name);
    else comparison.differences.push(`more: ${name}`);
  }
  const missing = [...theirs.values()].filter(
    ({ name, 'meta-type': kind }) => kind === 'command' && !ours.has(word(name)),
  );
  assert.deepEqual(missing.map(({ name }) => word(name)).sort(), [...MISSING].sort());
  const { differences } = comparison;
  const unlisted = differences.filter((text) => !DIFFERENCES.includes(text));
  const gone = DIFFERENCES.filter((text) => !differences.includes(text));
  assert.deepEqual({ unlisted, gone }, { unlisted: [], gone: [] });
});

test('the document names every difference', () => {
  const path = 'docs/QMP-DIFFERENCES.md';
  if (process.env['UPDATE'] !== undefined) writeFileSync(path, differencesText());
  assert.equal(readFileSync(path, 'utf8'), differencesText(), 'UPDATE=1 npm run test:peers -- introspection');
});

test('each description has the members that QEMU gives to its kind', async (context) => {
  const theirs = await qemuSchema(context);
  if (!theirs) return;
  const keysByKind = (schema: Schema): Map<string, Set<string>> => {
    const keys = new Map<string, Set<string>>();
    for (const info of schema.values()) {
      const kind = info['meta-type'] as string;
      const known = keys.get(kind) ?? new Set();
      for (const key of Object.keys(info)) known.add(key);
      keys.set(kind, known);
    }
    return keys;
  };
  const [our, their] = [keysByKind(ourSchema()), keysByKind(theirs)];
  // The one event that is deprecated is not livedisk's.
  const unused: { readonly [kind: string]: string } = { event: 'features' };
  for (const [kind, keys] of our) {
    const wanted = [...(their.get(kind) ?? [])].filter((key) => key !== unused[kind]);
    assert.deepEqual([...keys].sort(), wanted.sort(), kind);
  }
});
