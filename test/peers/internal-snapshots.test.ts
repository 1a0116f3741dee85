import assert from 'node:assert/strict';
import { copyFileSync, readFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { drawn } from '../kit/amount.js';
import { seededBelow } from '../kit/crash-states.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';

const KiB = 1024;
const SIZE = 4 * 1024 * KiB;

/** Dates and clocks are their own. */
const undated = (text: string): string =>
  text
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d\d:\d\d:\d\d\.\d{3}/g, 'DATE CLOCK')
    .replace(/"(date-sec|date-nsec|vm-clock-nsec)": \d+/g, '"$1": 0')
    .replace(/Image end offset: \d+/g, 'Image end offset');

test('img snapshot and convert -l answer as qemu-img does', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const pair = new ToolPair(context);
  pair.prepare(
    'qemu-img create -q -f qcow2 a.q 4M',
    'qemu-img create -q -f qcow2 -o compat=0.10 v2.q 4M',
    'qemu-img create -q -f qcow2 -o refcount_bits=1 one.q 4M',
    'qemu-img create -q -f raw r.raw 1M',
    "qemu-io -f qcow2 -c 'write -P 1 0 128k' a.q",
    "qemu-io -f qcow2 -c 'write -P 1 0 128k' one.q",
  );
  const lines = `
    img snapshot -l a.q
    img snapshot -c s1 a.q
    img snapshot -l a.q
    img snapshot a.q
    img snapshot -c s1 a.q
    img snapshot -c '' a.q
    img snapshot -c 1 a.q
    img snapshot -l a.q
    img info --output=json a.q
    img info a.q
    img snapshot -a nope a.q
    img snapshot -d nope a.q
    img snapshot -c x -a y a.q
    img snapshot -l -l a.q
    img snapshot -c
    img snapshot -l
    img snapshot -z a.q
    img snapshot -f qcow2 -l a.q
    img snapshot -d 2 a.q
    img snapshot -d 1 a.q
    img snapshot -l a.q
    img snapshot -U -l a.q
    img snapshot -l -U --image-opts driver=qcow2,file.filename=a.q
    img snapshot -U -c x a.q
    img snapshot -q -c last a.q
    img snapshot -a 1 a.q
    img check a.q
    img snapshot -c x one.q
    img snapshot -c x v2.q
    img snapshot -l v2.q
    img check v2.q
    img snapshot -c x r.raw
    img snapshot -l r.raw
    img snapshot -a x r.raw
    img snapshot -d x r.raw
    img snapshot -c x none.q
    img convert -l s1 -O raw a.q o.raw
    img compare a.q o.raw
    img convert -l snapshot.id=1 -O raw a.q o.raw
    img convert -l snapshot.id=1,snapshot.name=zz -O raw a.q o.raw
    img convert -l nope -O raw a.q o.raw
    img convert -l snapshot.foo=1 -O raw a.q o.raw
    img convert -l snapshot.id=1,foo=2 -O raw a.q o.raw
    img convert -l x -O qcow2 r.raw o.raw
    img convert -l s1 -O raw a.q a.q o.raw`;
  for (const line of lines.split('\n').map((text) => text.trim()))
    if (line !== '')
      await pair.alike(line, (text) => undated(text).replace(/^WARNING[^]*restrictions\.\n/, ''));
});

/** One step of a history, as lines for either side's tools. */
function history(seed: number): Array<{ tool: 'img' | 'io'; words: string[] }> {
  const below = seededBelow(seed * 7919);
  const names: string[] = [];
  return Array.from({ length: 14 }, (_, i) => {
    const at = `${below(SIZE / KiB - 300)}k`;
    const length = `${1 + below(290)}k`;
    const name = names[below(Math.max(1, names.length))];
    switch (below(7)) {
      case 0:
      case 1: {
        names.push(`s${i}`);
        return { tool: 'img', words: ['snapshot', '-c', `s${i}`, 'image'] };
      }
      case 2:
        if (name !== undefined) return { tool: 'img', words: ['snapshot', '-a', name, 'image'] };
        break;
      case 3:
        if (name === undefined) break;
        names.splice(names.indexOf(name), 1);
        return { tool: 'img', words: ['snapshot', '-d', name, 'image'] };
      case 4:
        return { tool: 'io', words: ['-f', 'qcow2', '-c', `write -z -u ${at} ${length}`, 'image'] };
      default:
    }
    return { tool: 'io', words: ['-f', 'qcow2', '-c', `write -P ${i + 1} ${at} ${length}`, 'image'] };
  });
}

function contents(folder: string): Map<string, Buffer> {
  const found = new Map<string, Buffer>();
  const info = JSON.parse(run(folder, 'qemu-img', 'info', '--output=json', 'image')) as {
    snapshots?: Array<{ name: string }>;
  };
  run(folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', 'image', 'raw');
  found.set('', readFileSync(`${folder}/raw`));
  for (const { name } of info.snapshots ?? []) {
    run(folder, 'qemu-img', 'convert', '-l', `snapshot.name=${name}`, '-O', 'raw', 'image', 'raw');
    found.set(name, readFileSync(`${folder}/raw`));
  }
  return found;
}

const CREATE = [
  'cluster_size=64k',
  'cluster_size=512,refcount_bits=8',
  'cluster_size=4k,compat=0.10',
  'cluster_size=2M,refcount_bits=64',
];

test('the same history by livedisk, by QEMU and by both in turn: the same snapshots, and no leak', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  for (const [i, options] of drawn([...CREATE.entries()])) {
    const seed = 11 + i;
    const steps = history(seed);
    const results = (['ours', 'theirs', 'both'] as const).map((who) => {
      const folder = scratch(context);
      run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, 'image', String(SIZE));
      steps.forEach(({ tool, words }, at) => {
        const isOurs = who === 'ours' || (who === 'both' && at % 2 === 0);
        if (isOurs) run(folder, process.execPath, PROGRAM, tool, ...words);
        else run(folder, `qemu-${tool}`, ...words);
      });
      assert.match(run(folder, 'qemu-img', 'check', 'image'), /^No errors were found/, `${options} ${who}`);
      assert.match(run(folder, process.execPath, PROGRAM, 'img', 'check', 'image'), /^No errors were found/);
      return contents(folder);
    });
    const [expected] = results;
    for (const result of results) assert.deepEqual(result, expected, `seed ${seed}, ${options}`);
  }
});

test('snapshots taken of a running machine are shown by qemu-img, and by qemu-nbd as by livedisk nbd', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(context);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.q', '4M');
  const daemon = await Daemon.start(context, folder, [
    ...[process.execPath, PROGRAM, 'run', '-S', '-display', 'none', '-nodefaults'],
    ...['-qmp', 'unix:qmp.sock,server=on,wait=off', '-drive', 'file=a.q,if=none,id=d,format=qcow2'],
    ...['-device', 'virtio-blk,drive=d'],
  ]);
  const hmp = (line: string): Promise<unknown> =>
    daemon.execute('human-monitor-command', { 'command-line': line });
  await hmp('qemu-io d "write -P 1 0 1M"');
  assert.equal(await hmp('savevm one'), '');
  await hmp('qemu-io d "write -P 2 0 1M"');
  await daemon.execute('blockdev-snapshot-internal-sync', { device: 'd', name: 'two' });
  await hmp('qemu-io d "write -P 3 0 1M"');
  await daemon.quit();
  assert.match(run(folder, 'qemu-img', 'check', 'a.q'), /^No errors were found/);
  for (const [name, fill] of [
    ['one', 1],
    ['two', 2],
  ] as const) {
    run(folder, 'qemu-img', 'convert', '-l', name, '-O', 'raw', 'a.q', 'raw');
    assert.ok(
      readFileSync(`${folder}/raw`)
        .subarray(0, 1024 * KiB)
        .every((byte) => byte === fill),
      name,
    );
    const read = `read -P ${fill} 0 1M`;
    for (const server of [['qemu-nbd'], [process.execPath, PROGRAM, 'nbd']]) {
      const [program = '', ...words] = server;
      run(folder, program, ...words, '--fork', '-l', `snapshot.name=${name}`, '-k', `${folder}/s`, 'a.q');
      run(folder, 'qemu-io', '-r', '-f', 'raw', '-c', read, `nbd+unix:///?socket=${folder}/s`);
    }
  }
  copyFileSync(`${folder}/a.q`, `${folder}/b.q`);
  run(folder, 'qemu-img', 'snapshot', '-a', 'one', 'b.q');
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'read -P 1 0 1M', 'b.q');
  run(folder, 'qemu-img', 'snapshot', '-d', 'one', 'b.q');
  assert.match(run(folder, 'qemu-img', 'check', 'b.q'), /^No errors were found/);
});

test("a machine's snapshot of QEMU is kept, gone back to offline, and refused by name by loadvm", async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(context);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.q', '4M');
  const start = (context: TestContext, program: readonly string[]): Promise<Daemon> =>
    Daemon.start(context, folder, [
      ...program,
      ...['-S', '-display', 'none', '-nodefaults', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
      ...['-drive', 'file=a.q,if=none,id=d,format=qcow2', '-device', 'virtio-blk,drive=d'],
    ]);
  const theirs = await start(context, ['qemu-system-x86_64', '-accel', 'tcg']);
  const hmp = (daemon: Daemon, line: string): Promise<unknown> =>
    daemon.execute('human-monitor-command', { 'command-line': line });
  await hmp(theirs, 'qemu-io d "write -P 1 0 1M"');
  assert.equal(await hmp(theirs, 'savevm q'), '');
  await hmp(theirs, 'qemu-io d "write -P 2 0 1M"');
  await theirs.quit();
  const ours = await start(context, [process.execPath, PROGRAM, 'run']);
  assert.match(String(await hmp(ours, 'loadvm q')), /^Error: The VM state of snapshot 'q' is QEMU's/);
  assert.equal(await hmp(ours, 'savevm o'), '');
  await ours.quit();
  run(folder, process.execPath, PROGRAM, 'img', 'snapshot', '-a', 'q', 'a.q');
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'read -P 1 0 1M', 'a.q');
  assert.match(run(folder, 'qemu-img', 'check', 'a.q'), /^No errors were found/);
  // What is theirs still loads.
  const again = await start(context, ['qemu-system-x86_64', '-accel', 'tcg']);
  assert.equal(await hmp(again, 'loadvm q'), '');
  assert.match(String(await hmp(again, 'loadvm o')), /Not a migration stream/);
  await again.quit();
});
