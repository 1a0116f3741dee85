import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseLog } from './log.js';

test('-d has trace points, and other items that have nothing to tell', () => {
  assert.deepEqual(parseLog(undefined, undefined, 7), { file: undefined, traces: [] });
  assert.deepEqual(parseLog('int,trace:qcow2_*,cpu,trace:-block_request', 'log', 7), {
    file: 'log',
    traces: ['qcow2_*', '-block_request'].map((enable) => ({ enable, events: undefined, file: undefined })),
  });
});

test('-d lists what there is when it is asked, or has a word that is no item', () => {
  for (const items of ['help', '', 'int,', 'int,bogus', 'INT', 'trace', 'trace:', 'none']) {
    const answer = parseLog(items, undefined, 7);
    assert.ok('text' in answer, items);
    assert.equal(answer.status, 1);
    assert.match(answer.text, /^Log items \(comma separated\):\nout_asm .*\n(.*\n)*trace:PATTERN /);
  }
  const points = parseLog('int,trace:help,bogus', undefined, 7);
  assert.ok('text' in points && points.status === 0);
  assert.match(points.text, /^qcow2_reserve$/m);
});

test("%d in the name of -D is the process, and 'tid' needs it", () => {
  assert.deepEqual(parseLog('tid', 'a%d.log', 7), { file: 'a7.log', traces: [] });
  for (const name of ['a%d%d', 'a%s', 'a%', 'a%%d'])
    assert.throws(() => parseLog(undefined, name, 7), { message: `Bad logfile template: ${name}` });
  for (const items of ['tid', 'all'])
    assert.throws(() => parseLog(items, 'log', 7), {
      message: "Filename template with '%d' required for 'tid'",
    });
});
