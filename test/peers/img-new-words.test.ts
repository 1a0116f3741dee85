import { alike, IMAGES } from './tool-table.js';

const WORDS = [
  ...['compat=9', 'compression_type=lz', 'preallocation=x', 'encrypt.format=x', 'backing_fmt=raw'],
  ...['backing_fmt=zzz', 'lazy_refcounts=maybe', 'refcount_bits=9', 'cluster_size=3k', 'size=3.3x'],
];

alike('what is wrong with a new image is said before or after what is made, as by qemu-img', IMAGES, [
  ...WORDS.map((word) => `img create -f qcow2 -o ${word} new 1M`),
  'img create -f qcow2 -F raw new 1M',
  'img create -f qcow2 -u -F zzz new 1M',
  'img convert -n -c -t bad r.raw none',
  'img convert -n -c r.raw none',
  'img convert -n -c a.q r.raw',
]);
