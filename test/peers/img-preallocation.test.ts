import { alike, judge, type Lines } from './tool-table.js';

const MODES = ['off', 'metadata', 'falloc', 'full'] as const;

/**
 * What each mode takes of new space: which layer says what, and that all of it reads as zeroes. Of clusters with parts QEMU
 * gives only the place, and its map calls them nothing.
 */
const judged = (options = ''): Lines =>
  judge('p.q').filter((line) => !options.includes('extended_l2') || !line.startsWith('img map'));
const more = (options?: string): Lines => [
  '$ qemu-io -f qcow2 -r -c "read -P 0 2M 3M" p.q >/dev/null',
  ...judged(options),
];

for (const options of [
  'cluster_size=64k',
  'cluster_size=4k,compat=0.10',
  'cluster_size=32k,extended_l2=on',
  'cluster_size=512,refcount_bits=1',
  'data_file=d.raw',
  'data_file=d.raw,data_file_raw=on',
])
  alike(
    `resize --preallocation of qcow2 with ${options}`,
    [],
    MODES.flatMap((mode) => [
      '$ rm -f p.q d.raw',
      `img create -q -f qcow2 -o ${options} p.q 2M`,
      "io -f qcow2 -c 'write -P 5 1M 1M' p.q",
      `img resize -f qcow2 --preallocation=${mode} p.q 5M`,
      ...more(options),
      `img resize -f qcow2 --preallocation=${mode} --shrink p.q 3M`,
      ...judged(options),
    ]),
  );

alike(
  'resize --preallocation beside backing files, in clusters that were used before, and where nothing is to be had',
  ['qemu-img create -q -f raw base 8M', "qemu-io -f raw -c 'write -P 9 0 8M' base"],
  [
    ...MODES.flatMap((mode) => [
      '$ rm -f p.q',
      'img create -q -f qcow2 -b base -F raw p.q 2M',
      `img resize -f qcow2 --preallocation=${mode} p.q 5M`,
      ...more(),
      '$ rm -f p.q',
      'img create -q -f qcow2 p.q 8M',
      "io -f qcow2 -c 'write -P 7 0 8M' -c 'discard 2M 6M' p.q",
      'img resize -q -f qcow2 --shrink p.q 2M',
      `img resize -f qcow2 --preallocation=${mode} p.q 5M`,
      ...more(),
    ]),
    ...['qed', 'vmdk', 'vpc', 'vdi', 'vhdx', 'parallels'].flatMap((format) => [
      '$ rm -f other',
      `img create -q -f ${format} other 4M`,
      ...['metadata', 'falloc', 'full'].map(
        (mode) => `img resize -f ${format} --preallocation=${mode} other 8M`,
      ),
    ]),
  ],
);

const LUKS = '--object secret,id=s,data=x';

alike(
  'resize --preallocation of what has no tables',
  [
    'qemu-img create -q -f raw r.raw 1M',
    `until qemu-img create -q -f luks ${LUKS} -o key-secret=s,iter-time=10 l.luks 1M 2>/dev/null; do :; done`,
  ],
  [
    ...MODES.flatMap((mode) => [
      `img resize -f raw --preallocation=${mode} r.raw +1M`,
      `img resize -f raw --preallocation=${mode} --shrink r.raw -64k`,
      '$ stat -c %s r.raw',
      ...(mode === 'falloc' || mode === 'full' ? ['$ test $(stat -c %b r.raw) -ge 1900'] : []),
      `img resize ${LUKS} --image-opts --preallocation=${mode} driver=luks,key-secret=s,file.filename=l.luks +1M`,
      '$ stat -c %s l.luks',
    ]),
    '$ test $(stat -c %b l.luks) -ge 4096',
    ...MODES.map((mode) => `io -f raw -c 'truncate -m ${mode} 9M' -c 'truncate -m ${mode} 8M' r.raw`),
    'img create -q -f qcow2 p.q 2M',
    ...MODES.map(
      (mode) =>
        `io -f qcow2 -c 'truncate -m ${mode} 9M' -c 'truncate -m ${mode} 8M' -c 'truncate -m x 9M' p.q`,
    ),
    ...judge('p.q'),
  ],
);

alike(
  'create with preallocation of raw images: the space that they have from the beginning',
  [],
  MODES.flatMap((mode) => [
    `img create -f raw -o preallocation=${mode} r.raw 3M`,
    // QEMU leaves an empty file behind where it refuses.
    ...(mode === 'metadata' ? [] : ['$ stat -c "%s %b" r.raw', '$ qemu-img map -f raw --output=json r.raw']),
    '$ rm -f r.raw',
  ]),
);
