import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../schema/types.js';
import { parseImageOpts } from './image-opts.js';

function parsed(text: string, impliedKey?: string): { options: JsonObject; warnings: string[] } {
  const warnings: string[] = [];
  const warn = (line: string): void => void warnings.push(line);
  const flat = parseImageOpts(text, { warn, ...(impliedKey !== undefined && { impliedKey }) });
  return { options: flat.nestedTexts(), warnings };
}

test('values with commas, the last of equal names, empty parts', () => {
  const cases: ReadonlyArray<readonly [string, JsonObject]> = [
    ['', {}],
    ['driver=qcow2,file.filename=a.q', { driver: 'qcow2', file: { filename: 'a.q' } }],
    ['driver=qcow2,', { driver: 'qcow2' }],
    ['x=a,,b,,,y=1', { x: 'a,b,', y: '1' }],
    ['x=1,x=2', { x: '2' }],
    ['x=a=b', { x: 'a=b' }],
    ['x=', { x: '' }],
  ];
  for (const [text, options] of cases) assert.deepEqual(parsed(text), { options, warnings: [] }, text);
});

test('a name alone is a flag, or the value of the implied key where it comes first', () => {
  const text = 'foo,nobar,help';
  const warnings = ['foo=on', 'bar=off'].map(
    (use) =>
      `short-form boolean option '${use === 'foo=on' ? 'foo' : 'nobar'}' deprecated\nPlease use ${use} instead`,
  );
  assert.deepEqual(parsed(text), { options: { foo: 'on', bar: 'off', help: 'on' }, warnings });
  assert.deepEqual(parsed('a,,b', 'file'), { options: { file: 'a,b' }, warnings: [] });
  assert.deepEqual(parsed(',x=1', 'file'), { options: { file: '', x: '1' }, warnings: [] });
});

test('an id is one, before anything is warned of', () => {
  for (const text of ['id=5', 'flag,id=', 'id=a/b'])
    assert.throws(() => parsed(text), { message: "Parameter 'id' expects an identifier" }, text);
  for (const text of ['id=a5', 'x=id=5']) assert.doesNotThrow(() => parsed(text), text);
});
