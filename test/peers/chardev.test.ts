import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { type Answer, type Json, Pair } from './fuzz-pair.js';

const add = (id: string, type: string, data: Json = {}): [string, Json] => [
  'chardev-add',
  { id, backend: { type, data } },
];
const unix = (path: string, more: Json = {}): Json => ({ addr: { type: 'unix', data: { path } }, ...more });
const change = (id: string, type: string, data: Json = {}): [string, Json] => [
  'chardev-change',
  { id, backend: { type, data } },
];

const COMMANDS: ReadonlyArray<readonly [string, Json]> = [
  add('none', 'null'),
  add('none', 'null'),
  add('c', 'null'),
  add('1 ä', 'null'),
  add('ring', 'ringbuf', { size: 16 }),
  add('ring15', 'ringbuf', { size: 15 }),
  add('memory', 'memory'),
  add('file', 'file', { out: 'out.txt' }),
  add('more', 'file', { out: 'out.txt', append: true }),
  add('no-file', 'file', { out: '/nonexistent/out.txt' }),
  add('server', 'socket', unix('s.sock', { wait: false })),
  add('client', 'socket', unix('none.sock', { server: false })),
  add('again', 'socket', unix('none.sock', { server: false, reconnect: 1 })),
  add('both', 'socket', unix('s2.sock', { reconnect: 1 })),
  add('waits', 'socket', unix('qmp.sock', { server: false, wait: false })),
  add('tls', 'socket', unix('s3.sock', { wait: false, 'tls-creds': 'none' })),
  add('authz', 'socket', unix('s4.sock', { wait: false, 'tls-authz': 'none' })),
  add('zap', 'zap'),
  add('no-base', 'mux', { chardev: 'gone' }),
  add('base', 'ringbuf', { size: 64 }),
  add('mux', 'mux', { chardev: 'base' }),
  add('mux2', 'mux', { chardev: 'base' }),
  add('no-pipe', 'pipe', { device: '/nonexistent/pipe' }),
  add('no-log', 'null', { logfile: '/nonexistent/log' }),
  add('logged', 'null', { logfile: 'log.txt', logappend: true }),
  ['chardev-add', { id: 'x', backend: { type: 'null' } }],
  ['query-chardev', {}],
  ['ringbuf-write', { device: 'ring', data: 'hello' }],
  ['ringbuf-read', { device: 'ring', size: 3 }],
  ...[300, 0, -1].map((size) => ['ringbuf-read', { device: 'ring', size }] as const),
  ['ringbuf-write', { device: 'ring', data: '0123456789abcdefXYZ' }],
  ['ringbuf-read', { device: 'ring', size: 100 }],
  ['ringbuf-write', { device: 'ring', data: 'aGVsbG8=', format: 'base64' }],
  ['ringbuf-read', { device: 'ring', size: 100, format: 'base64' }],
  ['ringbuf-write', { device: 'ring', data: 'a!', format: 'base64' }],
  ['ringbuf-write', { device: 'ring', data: 'YQBi', format: 'base64' }],
  ['ringbuf-read', { device: 'ring', size: 100 }],
  ['ringbuf-write', { device: 'ring', data: 'x', format: 'zap' }],
  ...['gone', 'none'].flatMap((device) => [
    ['ringbuf-read', { device, size: 1 }] as const,
    ['ringbuf-write', { device, data: 'x' }] as const,
  ]),
  ...['gone', 'none'].map((id) => ['chardev-send-break', { id }] as const),
  change('gone', 'null'),
  change('mux', 'null'),
  change('base', 'null'),
  change('c', 'null'),
  change('none', 'ringbuf', { size: 4 }),
  change('server', 'socket', unix('s.sock', { wait: false })),
  ['query-chardev', {}],
  ...['base', 'mux', 'base', 'logged', 'gone', 'c', 'none', 'server', 'file', 'more', 'again'].map(
    (id) => ['chardev-remove', { id }] as const,
  ),
  ['query-chardev', {}],
];

function sorted(answer: Answer): Answer {
  if (!Array.isArray(answer.return)) return answer;
  const label = (info: unknown): string => String((info as Json)['label']);
  return { return: answer.return.sort((a, b) => (label(a) < label(b) ? -1 : 1)) as unknown };
}

test('character devices answer as those of QEMU', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon')) return;
  const pair = await Pair.start(context, scratch(context), () => undefined);
  for (const [command, args] of COMMANDS) {
    const { theirs, ours } = await pair.execute(command, args);
    assert.ok(!pair.isReferenceGone, command);
    assert.deepEqual(sorted(ours), sorted(theirs), `${command} ${JSON.stringify(args)}`);
  }
});

test('of two options that are wrong, a storage daemon names the first', (context) => {
  if (skipWithout(context, 'qemu-storage-daemon')) return;
  const folder = scratch(context);
  const bad = {
    file: ['--blockdev', 'driver=file,node-name=a,filename=/nonexistent'],
    unknown: ['--blockdev', 'driver=null-co,node-name=b,what=1'],
    twice: ['--blockdev', 'driver=null-co,node-name=n'],
    export: ['--export', 'type=nbd,id=e,node-name=none'],
    chardev: ['--chardev', 'socket,id=c,path=/nonexistent/s,server=on,wait=off'],
    object: ['--object', 'secret,id=s'],
  };
  const good = ['--blockdev', 'driver=null-co,node-name=n'];
  const complaint = (program: string[], words: string[]): string => {
    const [file = '', ...args] = program;
    try {
      return run(folder, file, ...args, ...good, ...words);
    } catch (error) {
      return String(error instanceof Error ? error.message : error);
    }
  };
  const said = (text: string): string => /^[\w-]+: (--.*)$/m.exec(text)?.[1] ?? text;
  for (const [one, first] of Object.entries(bad))
    for (const [other, second] of Object.entries(bad)) {
      const words = [...first, ...second];
      const ours = said(complaint([process.execPath, PROGRAM, 'storage-daemon'], words));
      assert.ok(ours.startsWith(first.join(' ')), `${one}, ${other}: ${ours}`);
      assert.equal(ours, said(complaint(['qemu-storage-daemon'], words)), `${one}, ${other}`);
    }
});
