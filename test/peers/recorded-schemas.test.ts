import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { byName, Comparison, ourSchema, type Schema } from './introspection-comparison.js';
import { DIFFERENCES } from './introspection-differences.js';
import { LATER, NOT_RECORDED, PASSED } from './introspection-later.js';

/** Replies of QEMUs as libvirt's sources have them (tests/qemucapabilitiesdata). */
const FOLDER = process.env['QMP_REPLIES'];
const skip = FOLDER === undefined ? 'QMP_REPLIES names no folder of recorded replies' : false;

/** Commands and events about disks, exports and jobs. */
const OF_DISKS =
  /^((x-)?block|drive|nbd-|job-|snapshot-|transaction$|change-backing|query-(block|named-block|jobs|nbd)|x-debug-|eject$|BLOCK|JOB|DEVICE_TRAY)/;

interface Recorded {
  version: string;
  schema: Schema;
}

/** Of QEMU 7.2 and later, oldest first. */
function recorded(folder: string): Recorded[] {
  const files = readdirSync(folder).flatMap((file) => {
    const [, version = '', major = '', minor = ''] =
      /^caps_((\d+)\.(\d+)\.\d+)_x86_64\.replies$/.exec(file) ?? [];
    const age = Number(major) * 100 + Number(minor);
    return age >= 702 ? [{ file, version, age }] : [];
  });
  return files
    .sort((one, other) => one.age - other.age)
    .map(({ file, version }) => ({ version, schema: schemaIn(readFileSync(join(folder, file), 'utf8')) }));
}

function schemaIn(text: string): Schema {
  const messages = text.split(/\n\n(?=\{)/).map((one) => JSON.parse(one) as JsonObject);
  const id = messages.find(({ execute }) => execute === 'query-qmp-schema')?.['id'];
  const answer = messages.find((message) => message['id'] === id && message['return'] !== undefined);
  assert.ok(answer, 'the replies have no schema');
  return byName(answer['return'] as JsonObject[]);
}

function differencesFrom(schema: Schema): string[] {
  const ours = ourSchema();
  const comparison = new Comparison(ours, schema);
  for (const [name, info] of ours) {
    if (!OF_DISKS.test(name)) continue;
    const same = schema.get(name);
    if (same) comparison.compareEntities(info, same, name);
    else comparison.differences.push(`more: ${name}`);
  }
  for (const [name, info] of schema)
    if (OF_DISKS.test(name) && info['meta-type'] !== 'object' && !ours.has(name))
      comparison.differences.push(`less: ${name}`);
  return comparison.differences;
}

test('what recorded QEMUs, 7.2 and later, say of disks is known', { skip }, (context) => {
  const all = recorded(FOLDER ?? '');
  assert.ok(all.length > 0, `no replies in ${FOLDER ?? ''}`);
  const known = new Set([...DIFFERENCES, ...LATER, ...PASSED]);
  for (const { version, schema } of all) {
    const unknown = differencesFrom(schema).filter((text) => !known.has(text));
    assert.deepEqual(unknown, [], version);
  }
  const newest = all.at(-1);
  const found = newest ? differencesFrom(newest.schema) : [];
  assert.deepEqual(LATER.filter((text) => !found.includes(text)), [], 'what is listed and no difference'); // prettier-ignore
  const notRecorded = found.filter((text) => text.startsWith('more: ') && !LATER.includes(text));
  assert.deepEqual(notRecorded.sort(), [...NOT_RECORDED].sort(), 'what no QEMU has');
  context.diagnostic(all.map(({ version }) => version).join(' '));
});
