import { alike, type Lines } from './tool-table.js';

/** A disk with a snapshot; the offsets below are where qemu-img puts its structures. */
const PREPARED: Lines = [
  'qemu-img create -q -f qcow2 s.q 8M',
  "qemu-io -f qcow2 -c 'write -P 1 0 128k' s.q",
  'qemu-img snapshot -c a s.q',
  "qemu-io -f qcow2 -c 'write -P 2 0 64k' s.q",
];

const PLACES = {
  'refcount-table': 0x10000,
  'refcount-block': 0x20000,
  'active-l1': 0x30000,
  'inactive-l2': 0x40000,
  'inactive-l1': 0x70000,
  'snapshot-table': 0x80000,
  'active-l2': 0x90000,
} as const;
const ACTIVE_L2 = 0x90000;

/** The disk's third cluster is said to lie over a structure: a write there hits it, where nothing prevents that. */
function overlapping(hostOffset: number): string {
  const bytes = [0x80, 0, 0, 0, 0, hostOffset / 65536, 0, 0];
  const escapes = bytes.map((byte) => `\\${byte.toString(8).padStart(3, '0')}`).join('');
  return `$ cp s.q i.q && printf '${escapes}' | dd of=i.q bs=1 seek=${ACTIVE_L2 + 16} conv=notrunc 2>/dev/null`;
}

function tried(options: string, hostOffset: number): Lines {
  return [
    overlapping(hostOffset),
    `io --image-opts -c 'write -P 9 128k 4k' driver=qcow2,${options},file.filename=i.q`,
    '$ qemu-img info --output=json i.q 2>&1 | grep -e corrupt -e open || true',
    `$ cmp -s -n 4096 -i ${hostOffset} i.q s.q && echo kept || echo changed`,
  ];
}

for (const template of ['none', 'constant', 'cached', 'all'])
  alike(`overlap-check=${template} prevents what it says`, PREPARED, [
    ...Object.values(PLACES).flatMap((hostOffset) => tried(`overlap-check=${template}`, hostOffset)),
  ]);

alike('overlap-check, structure by structure', PREPARED, [
  ...Object.entries(PLACES).flatMap(([structure, hostOffset]) => [
    ...tried(`overlap-check.template=all,overlap-check.${structure}=off`, hostOffset),
    ...tried(`overlap-check=none,overlap-check.${structure}=on`, hostOffset),
  ]),
  ...[
    'overlap-check=bogus',
    'overlap-check.template=bogus',
    'overlap-check=none,overlap-check.template=all',
    'overlap-check=all,overlap-check.template=all',
    'overlap-check.foo=on',
  ].map((options) => `io --image-opts -c 'read 0 1k' driver=qcow2,${options},file.filename=s.q`),
]);

alike(
  'what lies over a structure and is repaired is written elsewhere from then on',
  PREPARED,
  ['refcount-block', 'inactive-l2', 'inactive-l1'].flatMap((structure) => [
    overlapping(PLACES[structure as keyof typeof PLACES]),
    '$ qemu-img check -q -r all i.q; true',
    ...['write -P 9 128k 4k', 'discard 128k 64k', 'write -c -P 8 128k 64k'].flatMap((change) => [
      '$ cp i.q j.q',
      `io --image-opts -c '${change}' -c 'read -P 2 0 64k' driver=qcow2,overlap-check=all,file.filename=j.q`,
      'img check -q j.q',
      'img snapshot -a a j.q',
      "io -f qcow2 -c 'read -P 1 0 128k' j.q",
    ]),
  ]),
);

/** Space that the file has in the end: a discard that reached it is seen there. */
const SIZES: Lines = ['$ test $(stat -c %b d.q) -le 1200 && echo small || echo large'];

alike(
  'pass-discard: of which discards the file hears',
  [],
  [
    ...['', 'pass-discard-request=off', 'pass-discard-request=on'].flatMap((options) =>
      ['ignore', 'unmap'].flatMap((discard) => [
        '$ rm -f d.q; qemu-img create -q -f qcow2 d.q 8M; qemu-io -c "write -P 3 0 4M" d.q >/dev/null',
        `io --image-opts -c 'discard 0 4M' driver=qcow2,discard=${discard}${options && `,${options}`},file.filename=d.q`,
        ...SIZES,
        'img check -q -f qcow2 d.q',
      ]),
    ),
    ...['', 'pass-discard-snapshot=off'].flatMap((options) => [
      '$ rm -f d.q; qemu-img create -q -f qcow2 d.q 8M; qemu-io -c "write -P 3 0 4M" d.q >/dev/null',
      'img snapshot -c one d.q',
      "io -f qcow2 -c 'write -z -u 0 4M' d.q",
      `img snapshot -d one --image-opts driver=qcow2${options && `,${options}`},file.filename=d.q`,
      ...SIZES,
      'img check -q -f qcow2 d.q',
    ]),
    `io --image-opts -c 'read 0 1k' driver=qcow2,lazy-refcounts=on,file.filename=d.q`,
    '$ rm -f d.q; qemu-img create -q -f qcow2 -o compat=0.10 d.q 8M',
    `io --image-opts -c 'read 0 1k' driver=qcow2,lazy-refcounts=on,file.filename=d.q`,
  ],
);
