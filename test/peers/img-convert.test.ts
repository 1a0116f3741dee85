import { alike, comparable, IMAGES, judge } from './tool-table.js';

/** A blkdebug over r.raw whose second MiB begins with a sector that cannot be read. */
const UNREADABLE = String.raw`printf '[inject-error]\nevent = "read_aio"\nsector = "2048"\nonce = "off"\nerrno = "5"\n' > read.conf`;
const UNKNOWN = String.raw`printf '[inject-error]\nevent = "none"\niotype = "block-status"\nsector = "2048"\nonce = "off"\nerrno = "5"\n' > status.conf`;

// QEMU asks for the status of all of it twice, and tells so twice.
const onceTold = (text: string): string =>
  comparable(text).replace(/(qemu-img: warning: error while reading block status[^\n]*)(\n\1)+/g, '$1');

alike(
  'convert --salvage reads what can be read',
  [...IMAGES, UNREADABLE, UNKNOWN, 'qemu-io -f raw -c "write -P 9 0 5M" r.raw'],
  [
    'img convert -f raw -O raw blkdebug:read.conf:r.raw out',
    'img convert --salvage -f raw -O raw blkdebug:read.conf:r.raw out',
    '$ sha256sum out',
    'img convert --salvage -q -f raw -O raw blkdebug:read.conf:r.raw out',
    'img convert --salvage -S 0 -f raw -O qcow2 blkdebug:read.conf:r.raw out.q',
    ...judge('out.q'),
    'img convert --salvage -c -f raw -O qcow2 blkdebug:read.conf:r.raw out.q',
    ...judge('out.q'),
    'img convert --salvage -m 1 -W -f raw -O qcow2 blkdebug:read.conf:r.raw out.q',
    ...judge('out.q'),
    'img convert -f raw -O raw blkdebug:status.conf:r.raw out',
    'img convert --salvage -f raw -O raw blkdebug:status.conf:r.raw out',
    '$ sha256sum out',
    'img convert --salvage -q -f raw -O raw blkdebug:status.conf:r.raw out',
    'img convert --salvage -f raw -O raw c.q out',
    '$ sha256sum out',
  ],
  onceTold,
);

alike('convert keeps to a rate, and takes several inputs', IMAGES, [
  'img convert -r 0 a.q out',
  'img convert -r 100M -O qcow2 a.q out.q',
  ...judge('out.q'),
  'img convert -O qcow2 a.q c.q out.q',
  ...judge('out.q'),
  'img convert -O raw a.q r.raw c.q out.raw',
  '$ sha256sum out.raw',
]);

alike(
  'convert -c of images that meet within a cluster',
  [
    ...IMAGES,
    'qemu-img create -q -f raw odd1 1049600',
    'qemu-img create -q -f raw odd2 131584',
    'qemu-io -f raw -c "write -P 3 0 1049600" odd1',
    'qemu-io -f raw -c "write -P 4 512 100000" odd2',
  ],
  [
    'img convert -c -f raw -O qcow2 odd1 odd2 odd1 out.q',
    ...judge('out.q'),
    'img convert -c -f raw -O qcow2 -o cluster_size=512 odd2 odd1 odd2 out.q',
    ...judge('out.q'),
    'img convert -c -p -m 1 -f raw -O qcow2 -o cluster_size=2M odd2 odd1 odd2 out.q',
    ...judge('out.q'),
    'img convert -c -S 0 -f raw -O qcow2 odd2 odd1 odd2 out.q',
    ...judge('out.q'),
  ],
);

alike(
  'convert into an image that has its backing file already',
  [...IMAGES, 'qemu-img create -q -f qcow2 -b b.q -F qcow2 d.q 20M'],
  [
    'img convert -n -O qcow2 -B b.q c.q d.q',
    ...judge('d.q').slice(1),
    'img convert -n -W --target-is-zero -O qcow2 n.q e.q',
    'img create -f qcow2 e.q 15M',
    'img convert -n --target-is-zero -O qcow2 n.q e.q',
    ...judge('e.q'),
  ],
);

alike('convert refuses what qemu-img refuses, of these', IMAGES, [
  'img convert',
  'img convert a.q',
  'img convert -r foo a.q b',
  'img convert -r -5 a.q b',
  'img convert -C --salvage a.q b',
  'img convert -W -C a.q out',
  'img convert -e a.q out',
  'img convert -6 a.q out',
  'img convert -t foo a.q out',
  'img convert -T foo a.q out',
  'img convert -B nope -F qcow2 -O qcow2 b.q out',
  'img convert -n -B a.q -O qcow2 b.q nope',
]);

alike(
  'behind the end of its backing file a new image has nothing of what reads as zeroes',
  [
    'qemu-img create -q -f qcow2 base.q 2M',
    'qemu-img create -q -f qcow2 -b base.q -F qcow2 top.q 6M',
    "qemu-io -f qcow2 -c 'write -P 1 1M 512k' -c 'write -z 3M 1M' -c 'write -P 2 5M 64k' top.q",
  ],
  ['compat=0.10', 'compat=1.1'].flatMap((options) => [
    '$ rm -f out.q',
    `img convert -O qcow2 -o ${options} -B base.q -F qcow2 top.q out.q`,
    '$ qemu-img map out.q | cut -c1-32',
    '$ qemu-img compare top.q out.q',
  ]),
);
