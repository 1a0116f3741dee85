import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

const A = 'driver=qcow2,file.filename=a.q';
const OVERLAY = 'driver=qcow2,file.filename=o.q';
const OUT = 'driver=raw,file.filename=out.raw';

const PREPARE = [
  'qemu-img create -q -f qcow2 a.q 2M',
  "qemu-io -c 'write -P 1 0 64k' a.q >/dev/null",
  'qemu-img create -q -f raw r.raw 4M',
  'qemu-img create -q -f raw out.raw 2M',
  'qemu-img create -q -f qcow2 -b a.q -F qcow2 o.q',
  'cp a.q a,b',
];

/** Each prints nothing but what is wrong, or facts of the image that is meant. */
const NAMES = [
  A,
  'file.filename=a.q',
  'file.filename=r.raw',
  'a.q',
  "''",
  'driver=qcow2',
  'driver',
  '=x',
  'help',
  `${A},help`,
  `${A},foo`,
  `${A},nofoo`,
  `${A},no`,
  `${A},id=5`,
  `${A},id=`,
  `${A},id=x`,
  `${A},id`,
  `${A},`,
  `,${A}`,
  `,,${A}`,
  `,,,${A}`,
  'driver=qcow2,,,file.filename=a.q',
  'driver=qcow2,file.filename=a,,b',
  'driver=qcow2,,file.filename=a.q',
  'driver=qcow2,,=,file.filename=a.q',
  `${A},driver=raw`,
  `${A},read-only=on`,
  `${A},force-share=off`,
  `${A},cache.direct`,
  `${A},nocache.direct`,
  `${A},cache.no-flush=maybe`,
  `${A},node-name=x`,
  'json:{"driver":"qcow2"}',
  '{"driver":"qcow2"}',
  'file=a.q',
  'file=a.q,file.driver=file',
  'driver=raw,file.filename=r.raw,size=1048576,offset=524288',
  'driver=file,filename=r.raw',
  'filename=r.raw',
  'driver=qcow2,file.filename=nofile',
  `${OVERLAY},backing=`,
  `${OVERLAY},backing.driver=raw`,
  `${OVERLAY},backing.driver=qcow2,backing.file.filename=a.q`,
];

test('img and io take and refuse options for a name as QEMU does', { skip }, async (context) => {
  const pair = new ToolPair(context);
  pair.prepare(...PREPARE);
  for (const name of NAMES) {
    const word = name === "''" || /[{}"]/.test(name) ? `'${name.replaceAll("'", '')}'` : name;
    // Numbers of QEMU's names are texts where they were given as such.
    await pair.alike(`img info --image-opts ${word}`, (text) => text.replace(/"(\d+)"/g, '$1'));
    await pair.alike(`img map --image-opts ${word}`);
    await pair.alike(`io --image-opts -r -c 'read -P 1 0 512' ${word}`);
  }
});

test('every subcommand that takes options for a name does as QEMU’s', { skip }, async (context) => {
  const pair = new ToolPair(context);
  pair.prepare(...PREPARE);
  for (const line of [
    `img info --image-opts -U ${A}`,
    `img info --image-opts -U ${A},force-share=off`,
    `img info --image-opts -U ${A},force-share=yes`,
    `img info --image-opts -U ${A},force-share=on`,
    `img info --image-opts -f qcow2 ${A}`,
    `img info --image-opts --output=json ${A}`,
    `img info --backing-chain --image-opts ${OVERLAY}`,
    `img check --image-opts ${A}`,
    `img check --image-opts -f qcow2 ${A}`,
    `img check --image-opts --output=json ${A}`,
    'img check --image-opts file.filename=r.raw',
    `img map --image-opts -f qcow2 ${A}`,
    `img map --image-opts -U ${A},force-share=off`,
    `img compare --image-opts ${A} ${A}`,
    `img compare --image-opts -f raw ${A} ${A}`,
    `img compare --image-opts -F raw ${A} ${A}`,
    `img compare --image-opts ${A} a.q`,
    `img compare --image-opts ${A} driver=qcow2,id=1`,
    `img compare --image-opts -U ${A},force-share=off ${A}`,
    `img compare --image-opts ${A} driver=raw,file.filename=r.raw`,
    `img convert --image-opts -O raw ${A} new.raw`,
    `img convert --image-opts -f qcow2 -O raw ${A} new.raw`,
    `img convert --image-opts -O raw ${A} ${A} new.raw`,
    `img convert --image-opts -U -O raw ${A},force-share=off new.raw`,
    `img convert --image-opts -T foo ${A} new.raw`,
    'img convert --image-opts driver=qcow2,id=1 new.raw',
    'img compare -f raw -F raw new.raw out.raw',
    `img convert --target-image-opts a.q ${OUT}`,
    `img convert --target-image-opts -O foo a.q ${OUT}`,
    `img convert --target-image-opts --target-is-zero a.q ${OUT}`,
    `img convert -n -o x --target-image-opts a.q ${OUT}`,
    `img convert -n -O raw --target-image-opts a.q ${OUT}`,
    `img convert -n -O foo --target-image-opts nofile ${OUT}`,
    `img convert -n -c --target-image-opts a.q ${OUT}`,
    'img convert -n --target-image-opts a.q driver=qcow2,id=1',
    'img convert -n --target-image-opts a.q driver=raw,file.filename=nofile',
    `img convert -n --target-image-opts a.q ${OUT},read-only=on`,
    `img convert -n --target-image-opts a.q ${OUT},size=1M`,
    `img convert -n --target-image-opts a.q ${A}`,
    `img convert -n --target-image-opts -U a.q ${OUT},force-share=off`,
    "io -f raw -c 'read -P 1 0 64k' out.raw",
    `img convert -n --image-opts --target-image-opts ${A} ${OVERLAY}`,
    `img rebase -u --image-opts -b '' ${OVERLAY}`,
    `img rebase -u --image-opts -f qcow2 -b a.q ${OVERLAY}`,
    `img rebase -u --image-opts -F qcow2 -b driver=qcow2,file.filename=a.q ${OVERLAY}`,
    'img info o.q',
    `img info --backing-chain --image-opts ${OVERLAY}`,
    `img rebase -u --image-opts -b '' ${A},read-only=on`,
    'img create -f qcow2 --image-opts x 1M',
    `io --image-opts -f qcow2 ${A} -c 'read 0 512'`,
    `io --image-opts -U ${A} -c 'read 0 512'`,
    `io --image-opts -r -U ${A},force-share=off -c 'read 0 512'`,
    `io --image-opts -r -U ${A},force-share=on -c 'read 0 512'`,
    `io --image-opts ${A},read-only=on -c 'write 0 512'`,
    `io --image-opts -r ${A},read-only=off -c 'write 0 512'`,
    `io --image-opts -n ${A},cache.direct=off -c 'write -P 1 0 512'`,
    "io --image-opts file.filename=r.raw -c 'write 0 512'",
  ])
    await pair.alike(line);
});

test('objects that QEMU refuses are refused in its words', { skip }, async (context) => {
  const pair = new ToolPair(context);
  pair.prepare(...PREPARE);
  for (const object of ['foo,id=a', "''", 'id=a', 'qom-type=foo', '{"qom-type":5}', '{"id":"a"}', '5,id=a'])
    for (const line of [`img info --object ${object.includes('{') ? `'${object}'` : object} a.q`])
      await pair.alike(line);
  await pair.alike("io --object foo,id=a -c 'read 0 512' a.q");
  await pair.alike('img create --object foo,id=a -f qcow2 b.q 1M');
});
