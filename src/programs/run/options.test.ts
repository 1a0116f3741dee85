import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../base/error.js';
import { parseRunOptions } from './options.js';

test('what is no option is refused, whatever its name', () => {
  for (const word of ['constructor', 'toString', '__proto__'])
    for (const kind of ['machine', 'storage-daemon'] as const)
      assert.throws(() => parseRunOptions([`-${word}`], kind), { kind: 'invalid' });
  assert.throws(() => parseRunOptions(['disk.qcow2'], 'storage-daemon'), {
    message: 'disk.qcow2: Unexpected argument',
  });
});

test('an image by itself is the first hard disk', () => {
  const { steps } = parseRunOptions(['a,b.qcow2'], 'machine');
  const [step] = steps;
  assert.ok(step?.kind === 'drive');
  assert.equal(step.options.filename, 'a,b.qcow2');
  assert.equal(step.options.index, 0);
});

test('machine options take their value with them, and need one', () => {
  assert.deepEqual(parseRunOptions(['-M', '-S', '-nodefaults'], 'machine').startStopped, false);
  for (const option of ['-M', '-machine', '-m'])
    assert.throws(() => parseRunOptions([option], 'machine'), { message: `${option}: requires an argument` });
});

test('a monitor is only made as it was asked for', () => {
  const chardev = ['-chardev', 'socket,id=c,path=x.sock,server=on,wait=off'];
  assert.throws(() => parseRunOptions([...chardev, '-mon', 'chardev=c,pretty=on'], 'machine'), {
    message: "-mon chardev=c,pretty=on: 'pretty' is not compatible with HMP monitors",
  });
  const words = [...chardev, '-monitor', 'chardev=c,mode=readline'];
  const wrong = parseRunOptions(words, 'storage-daemon').steps.at(-1);
  assert.ok(wrong?.kind === 'wrong' && wrong.error instanceof BlockError);
  assert.equal(wrong.error.message, '-monitor chardev=c,mode=readline: Only QMP is supported');
});

test("a storage daemon's options may have their value in the same word", () => {
  const words = ['--pidfile=a=b', '--blockdev=null-co,node-name=n'];
  const apart = ['--pidfile', 'a=b', '--blockdev', 'null-co,node-name=n'];
  assert.deepEqual(parseRunOptions(words, 'storage-daemon'), parseRunOptions(apart, 'storage-daemon'));
  assert.throws(() => parseRunOptions(words, 'machine'), { message: '--pidfile=a=b: invalid option' });
});

test('objects are made first in a machine, else in their order; unknown types are refused', () => {
  const words = ['--blockdev', 'null-co,node-name=n', '--object', 'iothread,id=i'];
  const kinds = (kind: 'machine' | 'storage-daemon'): string[] =>
    parseRunOptions(words, kind).steps.map((step) => step.kind);
  assert.deepEqual(kinds('machine'), ['object', 'blockdev']);
  assert.deepEqual(kinds('storage-daemon'), ['blockdev', 'object']);
  const text = "Value 'can-bus' of parameter 'qom-type' is not supported by livedisk yet";
  assert.throws(() => parseRunOptions(['--object', 'can-bus,id=i'], 'machine'), {
    message: `--object can-bus,id=i: ${text}`,
  });
  assert.throws(() => parseRunOptions(['-object', 'foo,id=i'], 'machine'), {
    message: "-object foo,id=i: Parameter 'qom-type' does not accept value 'foo'",
  });
});
