import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { skipWithout } from './daemon.js';
import { serve, ToolPair } from './tool-pair.js';

const EXPORT = 'nbd+unix:///?socket=s';
/** Sizes around those that clusters, sectors and pages have. */
const SIZES = [1, 511, 513, 65_537, 1_000_001];

/** Both folders get the same random file of that size, as a file and as the export of an nbdkit each. */
async function serveOdd(t: TestContext, sizeBytes: number): Promise<ToolPair> {
  const pair = new ToolPair(t);
  pair.shell('ours', `head -c ${sizeBytes} /dev/urandom > a.raw; cp a.raw ../theirs/a.raw`);
  pair.prepare('cp a.raw served');
  for (const side of ['ours', 'theirs'] as const)
    await serve(t, pair.path(side, 's'), pair.path(side, 'served'));
  return pair;
}

for (const sizeBytes of SIZES) {
  test(`a file and an export of ${sizeBytes} bytes are read to their last byte`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io', 'nbdkit')) return;
    const pair = await serveOdd(t, sizeBytes);
    const last = sizeBytes - (sizeBytes % 512);
    pair.prepare(`qemu-img create -q -u -f qcow2 -F raw -b '${EXPORT}' over ${last + 512}`);
    for (const name of [EXPORT, 'a.raw', 'over']) {
      const format = name === 'over' ? 'qcow2' : 'raw';
      await pair.alike(`img info -f ${format} ${name}`);
      await pair.alike(`img map -f ${format} --output=json ${name}`);
      await pair.alike(`img compare -f raw -F ${format} a.raw ${name}`);
      await pair.alike(`io -f ${format} -r -c length -c 'read -v ${last} 512' -c 'read ${last} 513' ${name}`);
      for (const target of ['raw', 'qcow2']) {
        await pair.alike(`img convert -f ${format} -O ${target} ${name} out`);
        await pair.alike(`img compare -f raw -F ${target} a.raw out`);
        pair.prepare(`qemu-img convert -f ${target} -O raw out bytes; cmp -n ${sizeBytes} a.raw bytes`);
      }
    }
  });

  test(`the last bytes of an export of ${sizeBytes} bytes are written, and never more than it has`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io', 'nbdkit')) return;
    const pair = await serveOdd(t, sizeBytes);
    const last = sizeBytes - (sizeBytes % 512);
    for (const command of [
      `write -P 7 ${sizeBytes - 1} 1`,
      `write -P 8 ${last} ${sizeBytes - last}`,
      `write -P 9 ${sizeBytes - 1} 2`,
      `write -P 9 ${last} 512`,
      `write -P 9 ${last} 513`,
    ])
      await pair.alike(`io -f raw -c '${command}' -c 'read -v ${last} 512' ${EXPORT}`);
    pair.prepare('cmp served ../theirs/served', `test $(stat -c %s served) = ${sizeBytes}`);
    // Zeroes beyond the end are taken by us, so that a disk of whole sectors can be copied there.
    const [, copied] = await pair.answers(`img convert -n -f raw -O raw a.raw ${EXPORT}`);
    assert.deepEqual([copied.code, copied.stderr], [0, '']);
    pair.shell('ours', 'cmp a.raw served');
  });
}
