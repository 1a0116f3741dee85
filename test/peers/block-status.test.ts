import { test } from 'node:test';
import { skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';

const WRITES = [[], ['write -P 7 1M 64k'], ['write -P 7 1M 4k', 'write -z 2M 64k', 'write -P 7 3M 1M']];

for (const preallocation of ['off', 'metadata', 'falloc', 'full']) {
  test(`map and convert of images with preallocation=${preallocation} see what QEMU's see`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const pair = new ToolPair(t);
    for (const writes of WRITES) {
      for (const format of ['qcow2', 'raw']) {
        if (format === 'raw' && preallocation === 'metadata') continue;
        const commands = writes.map((command) => `-c '${command}'`).join(' ');
        pair.prepare(
          `qemu-img create -q -f ${format} -o preallocation=${preallocation} image 16M`,
          ...(commands === '' ? [] : [`qemu-io -f ${format} ${commands} image`]),
        );
        await pair.alike(`img map -f ${format} image`);
        await pair.alike(`img map -f ${format} --output=json image`);
        await pair.alike(`img convert -f ${format} -O qcow2 image out`);
        await pair.alike('img map -f qcow2 --output=json out');
        pair.prepare('qemu-img create -q -f qcow2 -F ' + format + ' -b image over');
        await pair.alike('img map -f qcow2 --output=json over');
      }
    }
  });
}
