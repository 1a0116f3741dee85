import { alike, comparable, IMAGES, judge } from './tool-table.js';

const SIZES = [
  'foo',
  '+foo',
  '10X',
  '0',
  '-100M',
  '+100',
  '++512',
  '--1',
  '+-1',
  '1.1',
  '0x40000000',
  "''",
  '+',
];

alike(
  'create says why an image is too large',
  [],
  [
    'img create -q -f qcow2 -o cluster_size=512 t.q 256T',
    'img create -q -f qcow2 -o cluster_size=512,nocow=on t.q 1M',
    'img create -f vdi -o nocow=off t.vdi 1M',
    'img create -f raw -o nocow=maybe t.raw 1M',
  ],
);

alike('resize refuses what qemu-img refuses', IMAGES, [
  'img resize',
  'img resize a.q',
  ...SIZES.map((size) => `img resize a.q ${size}`),
  'img resize a.q b.q 10M',
  'img resize a.q -1M',
  'img resize a.q -f qcow2 1M',
  'img resize a.q 5000',
  'img resize a.q 16E',
  'img resize -f raw r.raw 1M',
  'img resize --preallocation=foo r.raw 5M',
  'img resize -f raw --preallocation=full r.raw 5M',
  'img resize -f raw --preallocation=metadata r.raw 8M',
  'img resize --image-opts -f qcow2 driver=qcow2,file.filename=a.q 21M',
  'img resize nope 1M',
  'img resize -x a.q 2M',
  'img resize --object foo a.q 3G',
  'img resize a.q 1G --shrink',
  'img resize json:{} 5M',
  'img resize -U b.q 5G',
  ...judge('a.q', 'b.q', 'r.raw'),
]);

alike('resize resizes as qemu-img does', IMAGES, [
  'img resize a.q +1M',
  'img resize a.q 12M',
  'img resize -q a.q 13M',
  'img resize a.q 13M',
  'img resize r.raw 6M',
  'img resize -f raw r.raw 7M',
  'img resize -f raw --shrink r.raw 5M',
  'img resize -f raw --shrink r.raw 5M',
  'img resize -f raw r.raw 5M',
  'img resize -f raw --preallocation=full r.raw 6M',
  'img resize -f raw --preallocation=falloc r.raw 7M',
  '$ du -k r.raw',
  'img resize --image-opts driver=qcow2,file.filename=a.q 21M',
  'img resize --object secret,id=a,data=x a.q 22M',
  'img resize --preallocation=off a.q 23M',
  'img resize b.q 64M',
  'img resize -f raw r.raw 7341033',
  'img resize n.q 0x40000000',
  ...judge('a.q', 'r.raw'),
  ...judge('b.q').slice(1),
]);

const MEASURED = [
  '',
  '-o cluster_size=4k ',
  '-o cluster_size=2M ',
  '-o cluster_size=512 ',
  '-o refcount_bits=64 ',
  '-o refcount_bits=1 ',
];

alike('measure measures as qemu-img does', IMAGES, [
  ...MEASURED.flatMap((option) =>
    ['0', '1', '1000', '1M', '10G', '63G', '64G', '1T'].map(
      (size) => `img measure -O qcow2 ${option}--size ${size}`,
    ),
  ),
  ...MEASURED.flatMap((option) =>
    ['a.q', 'b.q', 'c.q', '-f raw r.raw'].map(
      (image) => `img measure -O qcow2 ${option}--output=json ${image}`,
    ),
  ),
  'img measure --size 1G',
  'img measure --size 1000 --output=json',
  'img measure a.q',
  'img measure -O raw --output=json b.q',
  'img measure -O qcow2 -o compat=0.10 b.q',
  'img measure -O qcow2 -o compat=0.10 --size 5G',
  'img measure -O qcow2 -o backing_file=a.q,backing_fmt=qcow2 b.q',
  'img measure -O qcow2 -o backing_file=a.q b.q',
  'img measure -O qcow2 -o size=5M b.q',
  'img measure -O qcow2 -o size=5M --size 1M',
  'img measure -U -O qcow2 b.q',
  'img measure -O qcow2 --image-opts driver=qcow2,file.filename=b.q',
  'img measure -U --size 1M',
]);

alike('measure refuses what qemu-img refuses', IMAGES, [
  'img measure',
  'img measure -O qcow2 --size 1G b.q',
  'img measure -O foo --size 1G',
  'img measure -O qcow2 -f qcow2 --size 1G',
  'img measure -O qcow2 --image-opts --size 1G',
  'img measure -O qcow2 -o foo=bar --size 1G',
  'img measure -O raw -o foo=bar --size 1G',
  'img measure -O qcow2 -o cluster_size=1234 --size 1G',
  'img measure -O qcow2 -o refcount_bits=3 --size 1G',
  'img measure -O qcow2 -o cluster_size=foo --size 1G',
  'img measure -O qcow2 -o cluster_size=512 --size 1P',
  'img measure -O qcow2 -o size=5M',
  'img measure --size foo',
  'img measure --size -5',
  'img measure a.q b.q',
  'img measure --output=foo --size 1G',
  'img measure -O file --size 1M',
  'img measure -O nbd --size 1M',
  'img measure -O blkdebug --size 1G',
  'img measure -O qcow2 nope',
  'img measure -O raw -o help --size 1M',
]);

alike('commit into the next layer empties the image', IMAGES, [
  'img commit -p c.q',
  ...judge('a.q', 'b.q', 'c.q'),
  'img commit -q b.q',
  ...judge('a.q', 'b.q', 'c.q'),
]);

alike('commit -d keeps the image', IMAGES, ['img commit -d c.q', ...judge('a.q', 'b.q', 'c.q')]);

// Where a base grew, QEMU may say in its tables that the new part is zeroes.
alike('commit -b into a deeper layer leaves those in between', IMAGES, [
  'img commit -p -b a.q c.q',
  ...judge('a.q').slice(1),
  ...judge('b.q', 'c.q').filter((line) => !line.startsWith('img map')),
]);

alike('commit -b into the next layer keeps the image', IMAGES, [
  'img commit -r 100M -b ./b.q c.q',
  ...judge('a.q', 'b.q', 'c.q'),
]);

alike(
  'commit into a longer base',
  [...IMAGES, 'qemu-img resize -q b.q 30M', 'qemu-io -c "write -P 8 25M 64k" b.q'],
  ['img commit --image-opts driver=qcow2,file.filename=c.q', ...judge('a.q', 'b.q', 'c.q')],
);

alike(
  'commit into a raw image',
  [...IMAGES, 'qemu-img rebase -u -b r.raw -F raw c.q'],
  ['img commit -t none c.q', ...judge('r.raw', 'c.q')],
);

alike(
  'commit refuses what qemu-img refuses',
  [...IMAGES, 'chmod 444 a.q'],
  [
    'img commit',
    'img commit -b foo c.q',
    'img commit -b c.q c.q',
    'img commit a.q',
    'img commit r.raw',
    'img commit -f raw r.raw',
    'img commit -t foo c.q',
    'img commit -r foo c.q',
    'img commit -r -1 c.q',
    'img commit c.q d.q',
    'img commit nope',
    'img commit -U c.q',
    'img commit -f raw c.q',
    'img commit -x c.q',
    ...judge('a.q', 'b.q', 'c.q'),
  ],
);

for (const [name, ...lines] of [
  ['to a layer of its chain', 'img rebase -b a.q -F qcow2 c.q'],
  ['to its own backing file', 'img rebase -b b.q -F qcow2 c.q'],
  ['to another image', 'img rebase -p -b n.q -F qcow2 c.q'],
  ['to none', "img rebase -b '' c.q"],
  ['to none, and from none', "img rebase -b '' c.q", 'img rebase -p -b a.q -F qcow2 c.q'],
  ['of an image in the middle', 'img rebase -q -p -b n.q -F qcow2 b.q'],
  ['to a raw image', 'img rebase -t none -T none -b r.raw -F raw c.q'],
  ['by options', 'img rebase --image-opts -b a.q -F qcow2 driver=qcow2,file.filename=c.q'],
  ['with -U', 'img rebase -U -b n.q -F qcow2 c.q'],
  ['by another spelling of a name', 'img rebase -b ./a.q -F qcow2 c.q'],
  ['with -u', 'img rebase -u -p -b n.q -F qcow2 c.q'],
] as const)
  alike(`rebase ${name} keeps what the image shows`, IMAGES, [
    ...lines,
    ...judge('c.q', 'b.q', 'a.q', 'n.q'),
  ]);

alike('rebase refuses what qemu-img refuses', IMAGES, [
  'img rebase',
  'img rebase c.q',
  'img rebase -b a.q c.q',
  'img rebase -b nope -F qcow2 c.q',
  'img rebase -b a.q -F foo c.q',
  'img rebase -b a.q -F qcow2 -f raw r.raw',
  "img rebase -f raw -b '' r.raw",
  'img rebase -b c.q -F qcow2 c.q',
  'img rebase -b c.q -F qcow2 b.q',
  'img rebase -t foo -b a.q -F qcow2 c.q',
  'img rebase -T foo -b a.q -F qcow2 c.q',
  'img rebase -b a.q -F qcow2 b.q d.q',
  'img rebase -u -b a.q -F foo c.q',
  'img rebase -x',
  'img rebase -b a.q nope',
  'img rebase -u -b a.q c.q',
  "img rebase -u -b a.q -F '' c.q",
  'img rebase -b a.q -u -T foo -F qcow2 c.q',
  'img rebase -b a.q -u -t foo -F qcow2 c.q',
  '$ mv a.q d.q',
  'img rebase -b n.q -F qcow2 b.q',
  "img rebase -b '' -F foo b.q",
  "img rebase -u -b '' -F qcow2 b.q",
  'img info b.q',
]);

alike('dd copies as qemu-img does', IMAGES, [
  'img dd if=c.q of=x',
  'img dd if=c.q of=y bs=1M count=2',
  'img dd if=a.q of=z bs=1M skip=3',
  'img dd if=a.q of=z2 bs=1M skip=3 count=30',
  'img dd if=a.q of=z3 bs=1M skip=30',
  'img dd if=a.q of=z4 -O qcow2',
  'img dd -f raw if=a.q of=w',
  'img dd -U if=a.q of=w2',
  'img dd --image-opts if=driver=qcow2,file.filename=a.q of=w3',
  'img dd if=a.q of=w4 bs=100',
  'img dd if=a.q of=w5 bs=1000 count=1',
  'img dd if=a.q of=w6 bs=2147483647',
  'img dd if=a.q of=w7 count=0',
  'img dd if=a.q if=b.q of=w8 bs=1M count=1k',
  'img dd -O qcow2 if=a.q of=w9 bs=1001 count=3',
  'img dd if=a.q of=w10 bs=1000 count=5 skip=1050',
  '$ for f in x y z z2 z3 w2 w3 w4 w5 w6 w7 w8 w10; do stat -c "%n %s" $f; sha256sum <$f; done',
  'img info z4',
  'img info w9',
  'img compare z4 x',
]);

alike('dd refuses what qemu-img refuses', IMAGES, [
  'img dd',
  'img dd if=a.q',
  'img dd of=x',
  'img dd if=a.q of=z bs=0',
  'img dd if=a.q of=z bs=foo',
  'img dd if=a.q of=z bs=512 count=foo',
  'img dd if=a.q of=z foo=1',
  'img dd if=a.q of=z foo',
  'img dd -O foo if=a.q of=w',
  'img dd if=nope of=w',
  'img dd if=a.q of=/nonexistent/f',
  'img dd if=a.q of=a.q',
  'img dd if=a.q of=w bs=3G',
  'img dd if=a.q of=w bs=-1',
  'img dd if=a.q of=w skip=-1',
  'img dd if=a.q of=w bs=',
  'img dd -x',
  'img dd -f foo if=a.q of=w',
  'img dd -n if=a.q of=w',
  ...judge('a.q'),
]);

alike(
  'bench does and refuses as qemu-img',
  IMAGES,
  [
    'img bench',
    'img bench -c 100 a.q',
    'img bench -c 10 -d 1 -w a.q',
    'img bench -c 10 -n a.q',
    'img bench -c 10 -s 1M -S 2M -o 512 a.q',
    'img bench -c foo a.q',
    'img bench -d foo a.q',
    'img bench -c 0 a.q',
    'img bench -c -1 a.q',
    'img bench -s foo a.q',
    'img bench -o foo a.q',
    'img bench -S foo a.q',
    'img bench -w --flush-interval=4 -c 10 -d 2 --pattern=7 a.q',
    'img bench --flush-interval=4 a.q',
    'img bench -w --flush-interval=1 -d 2 -c 10 a.q',
    'img bench --flush-interval=foo -w a.q',
    'img bench -w --no-drain --flush-interval=4 -d 2 -c 10 a.q',
    'img bench --pattern=300 -w a.q',
    'img bench --pattern=foo -w a.q',
    'img bench -i native -c 10 a.q',
    'img bench -i native -t none -c 10 a.q',
    'img bench -i foo a.q',
    'img bench -t foo a.q',
    'img bench -q -c 10 a.q',
    'img bench -U -c 10 a.q',
    'img bench nope',
    'img bench a.q r.raw',
    'img bench -c 10 -o 20M a.q',
    'img bench -c 10 -s 20M a.q',
    'img bench --image-opts -c 10 driver=qcow2,file.filename=a.q',
    'img bench -x',
    'img bench -f foo a.q',
    'img bench -c 10 -s 2G a.q',
    'img bench -c 3 -o 9M -s 512k -S 1M a.q',
    ...judge('a.q'),
  ],
  (text) => comparable(text.replace(/in \d+\.\d{3} seconds/, 'in x seconds')),
);

alike(
  'measure and commit of images with internal snapshots',
  [
    ...IMAGES,
    'qemu-img snapshot -c s1 c.q',
    'qemu-io -f qcow2 -c "write -P 8 16M 1M" c.q',
    'qemu-img snapshot -c s2 c.q',
  ],
  [
    'img measure -O qcow2 -l s1 c.q',
    'img measure -O qcow2 -l snapshot.id=2 c.q',
    'img measure -O qcow2 -l foo c.q',
    'img measure -O qcow2 -l snapshot.foo=2 c.q',
    'img measure -O qcow2 -l foo --size 1G',
    'img commit c.q',
    ...judge('a.q', 'b.q', 'c.q').filter((line) => !line.startsWith('img info')),
    '$ qemu-img snapshot -a s1 c.q',
    ...judge('c.q').slice(2),
  ],
);

alike(
  'measure counts the bitmaps that can be copied',
  [
    ...IMAGES,
    'qemu-img bitmap --add a.q b0',
    'qemu-img bitmap --add -g 512 a.q a-bitmap-with-a-long-name-of-its-own',
    'qemu-img create -q -f qcow2 big.q 10G',
    ...['1', '2', '3'].map(
      (n) => `qemu-img bitmap --add -g ${n}${n === '3' ? '2k' : 'M'} big.q b${n} || true`,
    ),
    'qemu-img create -q -f qcow2 -o compat=0.10 old.q 1M',
  ],
  ['', '-o cluster_size=4k ', '-o cluster_size=512 ', '-o compat=0.10 '].flatMap((option) =>
    ['a.q', '--output=json big.q', 'b.q', 'old.q'].map((image) => `img measure -O qcow2 ${option}${image}`),
  ),
  // QEMU may look for holes of the file in an image whose clusters are not all there.
  (text) => /"?bitmaps.*\d+/.exec(text)?.[0] ?? '',
);

alike('-o help tells what there is', IMAGES, [
  'img create -o help',
  'img create -f raw -o help',
  'img create -f qcow2 -o help',
  'img create -f qcow2 -o help x.q 1M',
  "img create -f raw -o '?' x",
  'img create -f qcow2 -o cluster_size=4k,help x.q 1M',
  'img create -f qcow2 -o help nbd://foo',
  'img create -f foo -o help x',
  'img convert -O qcow2 -o help',
  'img convert -O qcow2 -o help a.q b.q',
  'img convert -o help a.q b',
]);
