import { type TestContext, test } from 'node:test';
import { skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';

const MAKE = [
  'qemu-img create -q -f qcow2 i.q 1M',
  'qemu-img create -q -f qcow2 s.q 1M',
  'qemu-img create -q -f qcow2 big.q 2M',
  'qemu-img create -q -f qcow2 -o compat=0.10 v2.q 1M',
  'qemu-img create -q -f qcow2 -u -b gone -F raw nobase.q 1M',
  'truncate -s 1M r.raw',
];

/** Says a name that it made up, and of a killed process more than we do. */
const adapt = (text: string): string => text.replace(/#block\d+/g, '#block');

function pair(t: TestContext): ToolPair | undefined {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return undefined;
  const tools = new ToolPair(t);
  tools.prepare(...MAKE);
  return tools;
}

const KILLED = (image: string): string => `qemu-io -c 'write 0 1' -c abort ${image} >/dev/null 2>&1 || true`;

test('img bitmap: what is refused, and what is done up to there, as in QEMU', async (t) => {
  const tools = pair(t);
  if (!tools) return;
  for (const line of [
    '',
    'i.q b',
    '--add i.q',
    '--add i.q a b',
    '--foo i.q b',
    "--add i.q ''",
    '--add i.q b',
    '--add i.q b',
    '--remove i.q nob',
    '--remove --add i.q b',
    '--add --remove i.q c',
    '--remove i.q b',
    '--add -g 512 i.q b',
    '--add -g 1000 i.q c',
    '--add -g 1M -g 2M i.q c',
    '--add -g xx i.q d',
    '--add -g 4G i.q d',
    '--add -g 0 i.q d',
    '--add -g 1.5k i.q e',
    '-g 512',
    '-g x --add i.q b',
    '--clear -g 512 -F qcow2 i.q',
    '--add --granularity 4k i.q long',
    '--merge b --source-file s.q --source-format qcow2 i.q long',
    '--remove i.q long',
    '--clear --enable --disable i.q b',
    '--enable --disable i.q b',
    '--merge c i.q b',
    '--merge nob i.q b',
    '--merge c -b s.q i.q b',
    '--merge c -b nofile -F qcow2 i.q b',
    '--merge c -b nobase.q -F qcow2 i.q b',
    '-b s.q --add i.q e',
    '-F qcow2 --merge c i.q b',
    '--clear -F raw -b x i.q b',
    '--merge c --merge d i.q b',
    '--add --merge c --merge d --disable i.q f',
    '--add nofile b',
    '--add r.raw b',
    '--add -f raw r.raw b',
    '--add -f raw i.q b',
    '--add -f foo i.q b',
    '--add v2.q b',
    '--add nobase.q b',
    '--add --image-opts driver=qcow2,file.filename=i.q g',
    '--add --image-opts -f qcow2 driver=qcow2,file.filename=i.q g',
    '--add --image-opts driver=qcow2,file.filename=i.q,read-only=on h',
    '--add big.q o',
    '--merge b -b i.q -F qcow2 big.q o',
    '--merge --add i.q b',
    '-U --add i.q zz',
    '--object secret,id=x --add i.q b',
    '--object secret,id=x,data=abc --add i.q k',
    `--add -f qcow2 i.q ${'x'.repeat(1024)}`,
    '--add --merge nob i.q partial',
  ])
    await tools.alike(`img bitmap ${line}`, adapt);
  for (const image of ['i.q', 's.q', 'big.q', 'v2.q', 'nobase.q']) {
    await tools.alike(`img info --output=json ${image}`);
    await tools.alike(`img info ${image}`);
    await tools.alike(`img check -f qcow2 ${image}`, (text) => text.replace(/^Image end offset: \d+$/m, ''));
  }
});

test('img bitmap: after a crash only --remove is left', async (t) => {
  const tools = pair(t);
  if (!tools) return;
  for (const line of ['--add i.q b', '--add -g 512 i.q c', '--disable i.q c'])
    await tools.alike(`img bitmap ${line}`);
  tools.prepare(KILLED('i.q'));
  await tools.alike('img info i.q');
  for (const line of [
    ...['--clear i.q b', '--enable i.q b', '--disable i.q b', '--merge c i.q b', '--merge b i.q c'],
    ...['--add --merge b i.q new', '--remove i.q b', '--add i.q b'],
  ])
    await tools.alike(`img bitmap ${line}`);
  await tools.alike('img info i.q');
  await tools.alike('img check i.q', (text) => text.replace(/^Image end offset: \d+$/m, ''));
});

test('img measure counts bitmaps that would go along', async (t) => {
  const tools = pair(t);
  if (!tools) return;
  tools.prepare(
    "qemu-io -c 'write 0 64k' i.q >/dev/null",
    'qemu-img bitmap --add i.q b0',
    'qemu-img bitmap --add -g 512 i.q b1',
    KILLED('i.q'),
    'qemu-img bitmap --add i.q b2',
  );
  for (const image of ['i.q', 's.q', 'v2.q', '-f raw r.raw'])
    for (const options of ['', '-o compat=0.10', '-o cluster_size=512'])
      await tools.alike(`img measure -O qcow2 ${options} ${image}`);
  await tools.alike('img measure -O raw --output=json i.q');
  await tools.alike('img measure -O qcow2 --output=json i.q');
});

test('img convert --bitmaps: what goes along, and what does not', async (t) => {
  const tools = pair(t);
  if (!tools) return;
  tools.prepare(
    'qemu-img bitmap --add i.q b0',
    'qemu-img bitmap --add -g 512 i.q b1',
    "qemu-io -c 'write 0 512' -c 'write 128k 4k' i.q >/dev/null",
    'qemu-img bitmap --disable i.q b0',
    'qemu-img create -q -f qcow2 -b i.q -F qcow2 over.q',
  );
  const info = (image: string): Promise<void> => tools.alike(`img info --output=json ${image}`);
  await tools.alike('img convert --bitmaps -O qcow2 i.q o.q');
  await info('o.q');
  for (const line of [
    '--bitmaps -n -O qcow2 i.q o.q',
    '--bitmaps -O raw i.q o.raw',
    '--bitmaps -O qcow2 -o compat=0.10 i.q v2.q',
    '--bitmaps -f raw -O qcow2 o.raw o2.q',
    '--skip-broken-bitmaps -O qcow2 i.q o2.q',
    '--bitmaps -O qcow2 i.q i.q o2.q',
  ])
    await tools.alike(`img convert ${line}`);
  await tools.alike('img convert --bitmaps -O qcow2 over.q o3.q');
  await info('o3.q');
  tools.prepare(KILLED('i.q'), 'qemu-img bitmap --add i.q b2');
  await tools.alike('img convert --bitmaps -O qcow2 i.q o4.q');
  await tools.alike('img convert --bitmaps --skip-broken-bitmaps -O qcow2 i.q o5.q');
  await info('o5.q');
});
