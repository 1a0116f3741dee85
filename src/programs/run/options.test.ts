import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../base/error.js';
import { parseRunOptions } from './options.js';

test('what is no option is refused, whatever its name', () => {
  for (const word of ['constructor', 'toString', '__proto__'])
    for (const kind of ['machine', 'storage-daemon'] as const)
      assert.throws(() => parseRunOptions([`-${word}`], kind), { kind: 'invalid' });
});

/** What is told when that word's turn has come. */
function wrongOf(...words: string[]): string | undefined {
  const wrong = parseRunOptions(words, 'storage-daemon').steps.find(({ kind }) => kind === 'wrong');
  return wrong?.kind === 'wrong' && wrong.error instanceof BlockError ? wrong.error.message : undefined;
}

test("a storage daemon's words are read as getopt_long reads them", () => {
  assert.equal(wrongOf('disk.qcow2'), 'disk.qcow2: Unexpected argument');
  assert.equal(wrongOf('--', '--bogus'), '--bogus: Unexpected argument');
  assert.match(wrongOf('--blockdev', 'bad', 'disk.qcow2') ?? '', /does not accept value 'bad'/);
  for (const [message, ...words] of [
    ["unrecognized option '--bogus'", '--blockdev', 'bad', '--bogus=1', '--version'],
    ["unrecognized option '--bogus'", '-T', 'help', '--bogus'],
    ["invalid option -- 'x'", '--blockdev', 'bad', '-x'],
    ["option '--pidfile' requires an argument", '--blockdev', 'null-co', '--p'],
    ["option '--blockdev' requires an argument", '--blockdev'],
    ["option '--help' doesn't allow an argument", '--help=x'],
    ["option '--daemonize' doesn't allow an argument", '--daemonize=x'],
  ] as const)
    assert.throws(() => parseRunOptions(words, 'storage-daemon'), { message }, words.join(' '));
});

test("a storage daemon's long options may be cut short, and its questions are answered where they stand", () => {
  const whole = parseRunOptions(['--blockdev', 'null-co,node-name=n', '--trace', 'job_*'], 'storage-daemon');
  const cut = parseRunOptions(['--block', 'null-co,node-name=n', '-Tjob_*'], 'storage-daemon');
  assert.deepEqual({ ...cut, traces: [] }, { ...whole, traces: [] });
  for (const words of [
    ['--vers'],
    ['bogus', '-V', '--bogus'],
    ['--block', 'null-co', '--version', 'x'],
    ['-Vh'],
  ])
    assert.equal(parseRunOptions(words, 'storage-daemon').asks, 'version');
  assert.equal(parseRunOptions(['-hV'], 'storage-daemon').asks, 'help');
});

test('a monitor of a storage daemon may be JSON', () => {
  const words = ['--monitor', '{"chardev": "c", "pretty": true}'];
  const [step] = parseRunOptions(words, 'storage-daemon').steps;
  assert.deepEqual(step, {
    kind: 'monitor',
    chardev: 'c',
    isControl: true,
    pretty: true,
    text: words.join(' '),
  });
});

test("a machine's drives are there before what exports them, and its devices after that", () => {
  const words = [
    '-device',
    'virtio-blk,drive=d',
    '-export',
    'nbd,id=e,node-name=n',
    '-drive',
    'id=d,node-name=n,file=d',
  ];
  const { steps } = parseRunOptions([...words, '-blockdev', 'null-co,node-name=b'], 'machine');
  assert.deepEqual(
    steps.map(({ kind }) => kind),
    ['blockdev', 'drive', 'export', 'device'],
  );
});

test('a character device is known by one id', () => {
  const words = ['-chardev', 'null,id=a', '-chardev', 'null,id=a'];
  assert.throws(() => parseRunOptions(words, 'machine'), {
    message: "-chardev null,id=a: Duplicate ID 'a' for chardev",
  });
  assert.match(
    wrongOf(...words) ?? '',
    /attempt to add duplicate property 'a' to object \(type 'container'\)$/,
  );
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

test('of options that do not go together one is refused, in words', () => {
  const refused = (...words: string[]): void =>
    assert.throws(() => parseRunOptions(words, 'machine'), {
      message: `'${words[0]?.slice(1) ?? ''}' and 'loadvm' options are mutually exclusive`,
    });
  refused('-incoming', 'defer', '-loadvm', 's');
  refused('-preconfig', '-loadvm', 's');
  assert.throws(() => parseRunOptions(['-preconfig'], 'machine'), {
    message: '-preconfig: not supported by livedisk',
  });
});
