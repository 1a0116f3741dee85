import { alike, IMAGES } from './tool-table.js';

/** A command of the exerciser's to either side's own, and what the other one's reads of it. */
const own = (command: string, image = 'a.q'): string => `io -f qcow2 -c '${command}' ${image}`;
const peers = (command: string, image = 'a.q'): string =>
  `$ qemu-io -f qcow2 -c '${command}' ${image} | sed 's/ops;.*//'`;

alike('the state of a machine beside a disk is written and read as by qemu-io', IMAGES, [
  own('read -b 0 64k'),
  own('read -b -P 0 10G 512'),
  own('write -b -P 7 0 200k'),
  own('read -b -P 7 0 200k'),
  own('read -b -P 8 0 512'),
  own('read -b -P 7 -s 100 -l 50 512 512'),
  own('read -b -v 204288 1k'),
  peers('read -b -P 7 0 200k'),
  peers('read -b -v 204288 1k'),
  // A part of a cluster, and what goes over clusters that are there and not.
  own('write -b -P 9 1024 512'),
  own('write -b -P 5 190k 100k'),
  peers('read -b -v 512 1536'),
  peers('read -b -P 5 190k 100k'),
  peers('write -b -P 3 60k 8k'),
  own('read -b -v 59k 10k'),
  own('read -b -P 3 60k 8k'),
  own('write -b -P 1 5T 512'),
  peers('read -b -P 1 5T 512'),
  own('write -b -q -C 8M 512'),
  own('write -b -c 8M 512'),
  // Where a disk grows there is no state any more; its snapshots keep what they are.
  'img check -q -f qcow2 a.q',
  own('read -P 0 0 1M'),
  own('read -P 1 1M 100k'),
  'img resize -f qcow2 a.q +1G',
  own('read -P 0 1020M 512k'),
  'img check -q -f qcow2 a.q',
  ...['100 512', '0 100', '0 5', '-1 512', '0 -1'].flatMap((range) => [
    own(`read -b ${range}`),
    own(`write -b ${range}`),
  ]),
  ...['-z', '-f', '-n', '-u', '-P x', '-s none'].map((option) => own(`write -b ${option} 0 512`)),
  "io -r -f qcow2 -c 'write -b 0 512' a.q",
  "io -r -f qcow2 -c 'read -b 0 512' a.q",
  ...['read', 'write'].map((command) => `io -f raw -c '${command} -b 0 512' r.raw`),
  own('write -b -P 4 0 64k', 'c.q'),
  peers('read -b -P 4 0 64k', 'c.q'),
  'img check -q -f qcow2 c.q',
  'img compare -f qcow2 -F qcow2 c.q c.q',
]);

alike(
  'the state of a machine lies beside small clusters, parts of clusters and in version 2 as well',
  [
    'qemu-img create -q -f qcow2 -o cluster_size=512 s.q 1M',
    'qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=64k x.q 1M',
    'qemu-img create -q -f qcow2 -o compat=0.10 v2.q 1M',
  ],
  [
    ...['s.q', 'x.q', 'v2.q'].flatMap((image) => [
      own('write -b -P 7 1k 70k', image),
      own('write -b -P 6 40k 512', image),
      own('read -b -P 6 40k 512', image),
      peers('read -b -P 7 1k 39k', image),
      peers('read -b -P 6 40k 512', image),
      peers('write -b -P 2 10k 30k', image),
      own('read -b -P 2 10k 30k', image),
      own('read -P 0 0 1M', image),
      `img check -q -f qcow2 ${image}`,
    ]),
  ],
);
