import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { RealFile } from '../../src/host/real-file.js';
import type { JsonObject } from '../../src/schema/types.js';
import { Command, Option, TransmissionFlag } from '../../src/wire/nbd/constants.js';
import { freePort } from '../kit/free-port.js';
import { ScriptedServer } from '../kit/nbd-script.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const SOON = { timeout: 50_000 };

const WITHOUT = 'before Linux 6.5 nothing tells what of a file is in the page cache';

async function isAtHand(path: string): Promise<boolean> {
  const file = await createRealHost().files.open(path, { write: false });
  assert.ok(file instanceof RealFile);
  const answer = file.sending.isAtHand(0, DISK_BYTES);
  await file.close();
  return answer;
}

/** An engine that has a raw disk S, of device virtio0, on a file of that name. */
async function bedWithDisk(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t);
  writeFileSync(bed.path('S'), randomBytes(DISK_BYTES));
  const file = { driver: 'file', filename: bed.path('S'), discard: 'unmap' };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'S', file, discard: 'unmap' });
  await bed.device('S');
  return bed;
}

/** Such an engine, with a node N of an export T of another engine's, on a file of that name. */
async function linked(t: TestContext, isFar: boolean): Promise<{ bed: EngineBed; server: EngineBed }> {
  const bed = await bedWithDisk(t);
  const server = new EngineBed(t);
  writeFileSync(server.path('T'), '');
  truncateSync(server.path('T'), DISK_BYTES);
  const file = { driver: 'file', filename: server.path('T') };
  await server.engine.addNode({ driver: 'raw', 'node-name': 'T', file });
  const near = { type: 'unix', path: server.path('socket') };
  const far = { type: 'inet', host: '127.0.0.1', port: String(await freePort()) };
  await server.execute('nbd-server-start', { addr: isFar ? asData(far) : asData(near) });
  await server.execute('block-export-add', {
    type: 'nbd',
    id: 'e',
    'node-name': 'T',
    name: 'T',
    writable: true,
  });
  const nbd = { driver: 'nbd', server: isFar ? far : near, export: 'T' };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'N', file: nbd });
  return { bed, server };
}

/** Gives the engine a node N of an export whose server reads all writes, and answers none. Answers how many came. */
async function addSilentTarget(t: TestContext, bed: EngineBed): Promise<() => number> {
  const server = { type: 'unix', path: bed.path('silent') } as const;
  let writes = 0;
  const listener = await ScriptedServer.listen(createRealHost(), server, async (peer) => {
    const options = new Set([Option.go]);
    await peer.handshake({
      sizeBytes: DISK_BYTES,
      flags: TransmissionFlag.hasFlags,
      options,
      handshakeFlags: 3,
    });
    for (;;) {
      const request = await peer.request();
      if (request.command === Command.write) writes++;
      else peer.simple(request, 0, Buffer.alloc(request.command === Command.read ? request.lengthBytes : 0));
    }
  });
  t.after(() => listener.close());
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'N', file: { driver: 'nbd', server } });
  return () => writes;
}

const asData = ({ type, ...data }: JsonObject): JsonObject => ({ type: type ?? null, data });

/** Tells how many bytes were read of files since it was made. */
function watchReads(t: TestContext): () => number {
  const { mock: now } = t.mock.method(RealFile.prototype, 'tryRead');
  const { mock: later } = t.mock.method(RealFile.prototype, 'read');
  return () => [...now.calls, ...later.calls].reduce((sum, { arguments: [, , , bytes] }) => sum + bytes, 0);
}

for (const isFar of [false, true])
  for (const command of ['blockdev-mirror', 'blockdev-backup'])
    test(`${command} to an export ${isFar ? 'over TCP' : 'on this machine'} reads nothing that can be sent from the page cache`, async (t) => {
      const { bed, server } = await linked(t, isFar);
      if (!(await isAtHand(bed.path('S')))) return t.skip(WITHOUT);
      const expected = readFileSync(bed.path('S'));
      const readBytes = watchReads(t);
      await bed.execute(command, { 'job-id': 'j', device: 'S', target: 'N', sync: 'full' });
      const job = bed.engine.jobs.find('j');
      assert.ok(job);
      if (command === 'blockdev-mirror') {
        await bed.event('BLOCK_JOB_READY', 'j');
        // What a guest writes on the way is there at the end, and no more.
        await bed.guest(`write -P 0x77 ${MiB} 1M`);
        expected.fill(0x77, MiB, 2 * MiB);
        await bed.execute('block-job-complete', { device: 'j' });
      }
      await job.concluded;
      assert.equal(job.error, undefined);
      assert.ok(readFileSync(server.path('T')).equals(expected));
      assert.ok(readBytes() <= MiB, `${readBytes()} bytes were read`);
    });

for (const command of ['blockdev-mirror', 'blockdev-backup'])
  test(
    `${command}: while a server takes what is sent it, and never answers, the source is its users'`,
    SOON,
    async (t) => {
      const bed = await bedWithDisk(t);
      if (!(await isAtHand(bed.path('S')))) return t.skip(WITHOUT);
      const writes = await addSilentTarget(t, bed);
      await bed.execute(command, { 'job-id': 'j', device: 'S', target: 'N', sync: 'full' });
      while (writes() === 0) await new Promise((resolve) => setImmediate(resolve));
      if (command === 'blockdev-mirror') {
        // What changes the mapping, or is read, changed and written: not as a guest's plain write.
        await bed.guest('discard 0 64k');
        await bed.guest('write -z 1M 64k');
        await bed.guest('write -P 2 65537 3');
      } else
        await bed.execute('blockdev-snapshot-sync', {
          ...{ 'node-name': 'S', 'snapshot-file': bed.path('O.qcow2'), 'snapshot-node-name': 'O' },
        });
      await bed.execute('stop');
      await bed.execute('cont');
      await bed.execute('block-job-cancel', { device: 'j', force: true });
      await bed.event('BLOCK_JOB_CANCELLED', 'j');
      await bed.guest('write -P 3 0 1M');
    },
  );
