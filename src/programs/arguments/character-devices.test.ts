import assert from 'node:assert/strict';
import { test } from 'node:test';
import { characterDeviceHelp, parseCharacterDevice } from './character-devices.js';

test('a kind that is none is told so, whatever its name', () => {
  for (const kind of ['zap', 'toString', 'constructor', '__proto__'])
    assert.throws(() => parseCharacterDevice(`${kind},id=a`), {
      message: `'${kind}' is not a valid char driver name`,
    });
});

test('what a character device lacks, or has too much, is told in turn', () => {
  for (const [text, message] of [
    ['', 'chardev: no id specified'],
    ['socket', 'chardev: no id specified'],
    ['id=c', 'chardev: "c" missing backend'],
    ['null,id=5c', "Parameter 'id' expects an identifier"],
    ['file,id=c', 'chardev: file: no filename given'],
    ['pipe,id=c', 'chardev: pipe: no device path given'],
    ['mux,id=c', 'chardev: mux: no chardev given'],
    ['null,id=c,bogus=1', "Invalid parameter 'bogus'"],
    ['socket,id=c,bogus=1', "Invalid parameter 'bogus'"],
    ['socket,id=c,host=h', 'chardev: socket: no port given'],
    ['socket,id=c', 'chardev: socket: no path, host and port, or fd given'],
    ['socket,id=c,path=x,host=h,port=1', "None or one of 'path', 'fd' or 'host' option required."],
    ['ringbuf,id=c,size=zz', "Parameter 'size' expects a non-negative number below 2^64"],
    ['ringbuf,id=c,size=-1', "Parameter 'size' expects a non-negative number below 2^64"],
    ['socket,id=c,path=x,reconnect=zz', "Parameter 'reconnect' expects a number"],
    ['stdio,id=c,signal=zz', "Parameter 'signal' expects 'on' or 'off'"],
    ['tty,id=c', "'serial' is not supported by livedisk yet"],
  ] as const)
    assert.throws(() => parseCharacterDevice(text), { message }, text);
});

test('old forms of a character device are warned of, and mean what they meant', () => {
  const warnings: string[] = [];
  const warn = (text: string): void => void warnings.push(text);
  const old = parseCharacterDevice('socket,id=c,path=a,,b,server,nowait', warn);
  assert.deepEqual(old, parseCharacterDevice('socket,id=c,path=a,,b,server=on,wait=off'));
  assert.deepEqual(warnings, [
    "short-form boolean option 'server' deprecated\nPlease use server=on instead",
    "short-form boolean option 'nowait' deprecated\nPlease use wait=off instead",
  ]);
});

test('the kinds of character devices are listed', () => {
  assert.match(characterDeviceHelp('help') ?? '', /^Available chardev backend types: \n {2}file\n/);
  assert.equal(characterDeviceHelp('null,id=c'), undefined);
});
