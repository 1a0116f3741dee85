import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { alignUp } from '../../base/align.js';
import { defined } from '../../base/assert.js';
import { MiB } from '../../base/limits.js';
import { isZero } from '../../base/zero.js';
import type { NodeOptions } from '../../block/driver.js';
import { FlatOptions } from '../../schema/flat.js';
import type { JsonObject } from '../../schema/types.js';
import { Flag } from '../../block/request.js';
import { createSimulatedHost, type Simulation } from '../../host/simulated.js';
import { Option, TransmissionFlag } from '../../wire/nbd/constants.js';
import { NbdServer } from '../../wire/nbd/server.js';
import { ScriptedServer } from '../../../test/kit/nbd-script.js';
import { errorOf, MemoryTarget } from '../../../test/kit/nbd-target.js';
import { TestBed, type TestDisk } from '../../../test/kit/test-disk.js';
import { rawDriver } from '../raw/index.js';
import { modernAddress, nbdFilename, parseNbdFilename } from './address.js';
import { nbdDriver } from './index.js';
import { IoRequest } from '../../block/request.js';

const PATH = '/tmp/nbd';
const ADDRESS = { type: 'unix', path: PATH } as const;
const OPTIONS: NodeOptions = { driver: 'nbd', server: ADDRESS };

const inet = (host: string, port: string, name?: string): NodeOptions => ({
  server: { type: 'inet', host, port },
  ...(name !== undefined && { export: name }),
});
const unix = (path: string, name?: string): NodeOptions => ({
  server: { type: 'unix', path },
  ...(name !== undefined && { export: name }),
});

test('filenames of every form stand for their options', () => {
  const cases: Array<[string, NodeOptions | undefined]> = [
    ['nbd:localhost:10809', inet('localhost', '10809')],
    ['nbd:localhost:1:exportname=a:b', inet('localhost', '1', 'a:b')],
    ['nbd:[::1]:10809', inet('::1', '10809')],
    ['nbd:unix:/a/b', unix('/a/b')],
    ['nbd:unix:/a/b:exportname=x y', unix('/a/b', 'x y')],
    ['nbd://host', inet('host', '10809')],
    ['nbd://host:7/', inet('host', '7')],
    ['nbd+tcp://host:7//a%20b/c', inet('host', '7', 'a b/c')],
    ['nbd://[::1]:7/x', inet('::1', '7', 'x')],
    ['nbd+unix:///x?socket=/a%3Fb', unix('/a?b', 'x')],
    ['nbd+unix://?socket=/a', unix('/a')],
    ['/some/nbd:file', undefined],
    ['nbds://host', undefined],
  ];
  for (const [filename, options] of cases) assert.deepEqual(parseNbdFilename(filename), options, filename);
});

test('what is reported for options is a filename for the same options', () => {
  const name = fc.stringMatching(/^[a-z0-9._-]{1,20}$/);
  fc.assert(
    fc.property(fc.boolean(), name, fc.option(name, { nil: undefined }), (isUnix, where, exported) => {
      const options = isUnix ? unix(`/${where}`, exported) : inet(`h${where}`, '99', exported);
      assert.deepEqual(parseNbdFilename(defined(nbdFilename(options), 'filename')), options);
    }),
  );
});

test('wrong filenames and options are refused in QEMU’s words', async () => {
  const cases: Array<[string, string]> = [
    ['nbd:', 'NBD server address missing'],
    ['nbd:foo', "error parsing address 'foo'"],
    ['nbd:[::1:5', "error parsing IPv6 address '[::1:5'"],
    ['nbd:h:1,ipv4=x', "error parsing 'ipv4' flag '=x'"],
    ['nbd://', 'No valid URL specified'],
    ['nbd+unix:///x', 'No valid URL specified'],
    ['nbd+unix://host/x?socket=/a', 'No valid URL specified'],
    ['nbd+unix:///x?socket=/a&y=z', 'No valid URL specified'],
    ['nbd://h:1/x?y=z', 'No valid URL specified'],
    ['nbd://h/%zz', 'No valid URL specified'],
  ];
  for (const [filename, message] of cases) assert.throws(() => parseNbdFilename(filename), { message });
  await onMachine(async ({ bed }) => {
    const message = async (options: NodeOptions): Promise<string> =>
      (await errorOf(bed.open({ driver: 'nbd', ...options }))).message;
    assert.equal(await message({}), "Parameter 'server' is missing");
    assert.equal(await message({ server: { type: 'unix' } }), "Parameter 'server.path' is missing");
    assert.equal(
      await message(inet('localhost', 'x')),
      'address resolution failed for localhost:x: Servname not supported for ai_socktype',
    );
    assert.match(
      await message({ server: { ...ADDRESS, abstract: true } }),
      /^Failed to connect to '\/tmp\/nbd': No such file/,
    );
    assert.equal(await message({ server: { type: 'fd', str: 'x' } }), 'Unable to parse FD number x');
    assert.match(await message({ ...unix(PATH), 'tls-creds': 'x' }), /No TLS credentials with id 'x'/);
  });
});

test('older spellings of flat options stand for a server, and are refused with one', () => {
  const modern = (options: JsonObject): JsonObject => {
    const flat = FlatOptions.of(options);
    modernAddress(flat);
    return flat.nestedTexts();
  };
  const server = (options: JsonObject): JsonObject => ({ server: options });
  assert.deepEqual(modern({ path: '/a', export: 'x' }), {
    export: 'x',
    ...server({ type: 'unix', path: '/a' }),
  });
  assert.deepEqual(modern({ host: 'h' }), server({ type: 'inet', host: 'h', port: '10809' }));
  assert.deepEqual(modern({ host: 'h', port: 7 }), server({ type: 'inet', host: 'h', port: '7' }));
  assert.deepEqual(modern({ port: '7' }), {});
  assert.deepEqual(modern(unix('/a')), unix('/a'));
  for (const [options, message] of [
    [{ path: '/a', host: 'h' }, 'path and host may not be used at the same time'],
    [{ path: '/a', port: '1' }, 'port may not be used without host'],
    [{ host: 'h', ...unix('/a') }, "Cannot use 'server' and path/host/port at the same time"],
  ] as const)
    assert.throws(() => modern(options), { message });
});

interface Machine {
  simulation: Simulation;
  bed: TestBed;
  server: NbdServer;
  target: MemoryTarget;
}

/** An own server with the exports '' and 'ro'. */
async function onMachine(body: (machine: Machine) => Promise<void>): Promise<void> {
  const simulation = createSimulatedHost({ seed: 5 });
  const { host } = simulation;
  await simulation.run(async () => {
    const bed = new TestBed(host, [nbdDriver, rawDriver], '/tmp');
    const server = await NbdServer.listen(host, ADDRESS);
    const target = new MemoryTarget(MiB);
    server.addExport({ name: '', target, readOnly: false, multiConn: true });
    server.addExport({ name: 'ro', target, readOnly: true, multiConn: true });
    await body({ simulation, bed, server, target });
    assert.equal(bed.graph.nodes.size, 0);
    await server.close();
  });
}

test('a read-only export is opened read-only or not at all', () =>
  onMachine(async ({ bed, target }) => {
    const options = { ...OPTIONS, export: 'ro' };
    const refused = await errorOf(bed.open(options));
    assert.deepEqual(
      [refused.kind, refused.message],
      ['permission', 'Could not open image: Permission denied'],
    );
    target.bytes[5] = 9;
    for (const more of [{}, { 'auto-read-only': true }]) {
      const disk = await bed.open({ ...options, ...more }, { readOnly: true });
      assert.equal((await disk.read(5, 1))[0], 9);
      await disk.close();
    }
    const writer = await errorOf(bed.open({ ...options, 'auto-read-only': true }));
    assert.equal(writer.message, 'Block node is read-only');
  }));

test('flags, sizes and status pass through', () =>
  onMachine(async ({ bed, target }) => {
    target.bytes.fill(1, 4096, 8192);
    const disk = await bed.open(OPTIONS);
    const { node } = disk;
    assert.equal(node.filename, `nbd+unix://?socket=${PATH}`);
    assert.deepEqual(await node.io.status(0, MiB), {
      lengthBytes: 4096,
      allocated: true,
      zero: true,
      data: false,
      hostOffset: 0,
    });
    assert.deepEqual(await node.io.status(4100, 100), {
      lengthBytes: 100,
      allocated: true,
      zero: false,
      data: true,
      hostOffset: 4100,
    });
    target.zeroesSlowly = true;
    assert.equal((await errorOf(node.io.writeZeroes(0, 4096, Flag.noFallback))).kind, 'unsupported');
    target.log.length = 0;
    await node.io.writeZeroes(0, 4096, Flag.mayUnmap);
    await node.io.discard(0, 4096);
    await node.io.flush();
    assert.deepEqual(target.log, ['zero 0+4096 flags 2', 'discard 0+4096', 'flush']);
    const grown = await errorOf(disk.backend.truncate(2 * MiB));
    assert.equal(grown.message, 'Cannot grow NBD nodes');
    await disk.close();
    target.log.length = 0;
    const lazy = await bed.open({ ...OPTIONS, discard: 'ignore', cache: { 'no-flush': true } });
    await lazy.backend.discard(0, 4096);
    await lazy.backend.flush();
    assert.deepEqual(target.log, []);
    await lazy.close();
  }));

test('a raw image passes on that zeroes are not to be written', () =>
  onMachine(async ({ bed, target }) => {
    const disk = await bed.open({ driver: 'raw', file: OPTIONS });
    target.zeroesSlowly = true;
    for (const flags of [Flag.noFallback, Flag.noFallback + Flag.mayUnmap])
      assert.equal((await errorOf(disk.node.io.writeZeroes(0, 4096, flags))).kind, 'unsupported');
    await disk.node.io.writeZeroes(0, 4096, Flag.none);
    await disk.close();
  }));

test('a server that tells no block sizes is asked for any bytes where it tells what it holds, else for sectors', async () => {
  const { go, structuredReply, setMetaContext } = Option;
  assert.deepEqual(await requestsOf([go, structuredReply, setMetaContext]), ['1 100+10']);
  assert.deepEqual(await requestsOf([go]), ['0 0+512', '1 0+512']);
});

/** What a server that has these options, and tells no block sizes, is asked when ten bytes are written. */
async function requestsOf(options: readonly number[]): Promise<string[]> {
  const simulation = createSimulatedHost({ seed: 6 });
  const { host } = simulation;
  const seen: string[] = [];
  return simulation.run(async () => {
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      const flags = TransmissionFlag.hasFlags;
      await server.handshake({ sizeBytes: MiB, flags, options: new Set(options), handshakeFlags: 3 });
      for (;;) {
        const request = await server.request();
        seen.push(`${request.command} ${request.offset}+${request.lengthBytes}`);
        server.simple(request, 0, Buffer.alloc(request.command === 0 ? request.lengthBytes : 0));
      }
    });
    const bed = new TestBed(host, [nbdDriver], '/tmp');
    const disk = await bed.open(OPTIONS);
    await disk.write(100, Buffer.alloc(10));
    const asked = [...seen];
    await disk.close();
    await listener.close();
    return asked;
  });
}

test('a server without zeroes, trim or flush is written to instead, in its blocks', async () => {
  const simulation = createSimulatedHost({ seed: 6 });
  const { host } = simulation;
  await simulation.run(async () => {
    const seen: string[] = [];
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      await server.handshake({
        sizeBytes: MiB,
        flags: TransmissionFlag.hasFlags,
        options: new Set<number>([Option.go]),
        handshakeFlags: 3,
        blockSize: [4096, 4096, MiB],
      });
      for (;;) {
        const request = await server.request();
        seen.push(`${request.command} ${request.offset}+${request.lengthBytes}`);
        server.simple(request, 0, Buffer.alloc(request.command === 0 ? request.lengthBytes : 0));
      }
    });
    const bed = new TestBed(host, [nbdDriver], '/tmp');
    const disk = await bed.open(OPTIONS);
    await disk.backend.writeZeroes(4096, 8192);
    await disk.backend.discard(0, 4096);
    await disk.backend.flush();
    assert.deepEqual(seen, ['1 4096+8192']);
    seen.length = 0;
    await disk.write(100, Buffer.alloc(10));
    assert.deepEqual(seen, ['0 0+4096', '1 0+4096']);
    assert.equal((await disk.node.io.status(0, 100)).data, true);
    await disk.close();
    await listener.close();
  });
});

test('a node whose server has gone fails quickly and closes', () =>
  onMachine(async ({ bed, simulation, server }) => {
    const disk = await bed.open(OPTIONS);
    simulation.setSilent(true);
    const pending = errorOf(disk.read(0, 512));
    await simulation.host.clock.sleep(10);
    await server.close();
    assert.equal((await pending).errno, 'EIO');
    assert.equal((await errorOf(disk.write(0, Buffer.alloc(512)))).errno, 'EIO');
    assert.equal((await errorOf(defined(disk.node, 'node').io.flush())).errno, 'EIO');
    // What was written may not be durable, and whoever closes is told; but it is closed.
    assert.equal((await errorOf(disk.close())).errno, 'EIO');
    assert.equal(bed.graph.nodes.size, 0);
  }));

test('a node whose connection was lost fails what is in flight, and connects again at the next request', () =>
  onMachine(async ({ bed, simulation }) => {
    const disk = await bed.open(OPTIONS);
    simulation.setSilent(true);
    const pending = errorOf(disk.read(0, 512));
    await simulation.host.clock.sleep(10);
    simulation.cutConnections();
    assert.equal((await pending).errno, 'EIO');
    await disk.write(0, Buffer.alloc(512, 7));
    assert.equal((await disk.read(0, 1))[0], 7);
    await disk.close();
  }));

test('requests to a silent server are given up at once when nobody wants them any more', () =>
  onMachine(async ({ bed, simulation }) => {
    const disk = await bed.open(OPTIONS);
    simulation.setSilent(true);
    const pending = [errorOf(disk.read(0, 512)), errorOf(disk.backend.flush())];
    await simulation.host.clock.sleep(10);
    const began = simulation.host.clock.nowMs();
    bed.graph.cancelInFlight(disk.node, [disk.backend]);
    for (const request of pending) assert.equal((await request).errno, 'ECANCELED');
    assert.equal((await errorOf(disk.read(0, 512))).errno, 'EIO');
    await disk.close();
    assert.ok(simulation.host.clock.nowMs() < began + 1);
  }));

test('an export is as long as it is: what lies beyond has no room, and less of it may be used', () =>
  onMachine(async ({ bed }) => {
    const disk = await bed.open(OPTIONS);
    const { io } = disk.node;
    const full = { kind: 'no-space', errno: 'ENOSPC' };
    await assert.rejects(io.write(IoRequest.ofBuffer(Buffer.alloc(512)), 0, 512, MiB, 0, true), full);
    await assert.rejects(io.writeZeroes(MiB - 512, 1024, 0, true), full);
    await disk.backend.truncate(MiB / 2);
    assert.equal(disk.lengthBytes, MiB);
    await disk.close();
  }));

for (const exported of [1, 511, 1023, 4097]) {
  for (const driver of ['nbd', 'raw'] as const) {
    test(`${driver}: an export of ${exported} bytes has all of them, and zeroes up to the sector's end`, () =>
      onMachine(async ({ bed, server }) => {
        const target = new MemoryTarget(exported);
        target.bytes.fill(7);
        server.addExport({ name: 'odd', target, readOnly: false, multiConn: true });
        const nbd = { ...OPTIONS, export: 'odd', discard: 'unmap' };
        const disk = await bed.open(driver === 'nbd' ? nbd : { driver, discard: 'unmap', file: nbd });
        await checkOddEnd(disk, target, alignUp(exported, 512));
        await disk.close();
      }));
  }
}

async function checkOddEnd(disk: TestDisk, target: MemoryTarget, total: number): Promise<void> {
  const exported = target.bytes.length;
  const last = total - 512;
  assert.equal(disk.lengthBytes, total);
  const bytes = await disk.readAll();
  assert.ok(bytes.subarray(0, exported).every((byte) => byte === 7));
  assert.ok(isZero(bytes.subarray(exported)));
  const end = await disk.node.io.status(exported - 1, total - exported + 1);
  assert.deepEqual([end.data, end.lengthBytes], [true, 1]);
  const rest = { lengthBytes: total - exported, allocated: true, zero: true, data: false };
  assert.deepEqual(await disk.node.io.status(exported, total - exported), rest);
  // The whole of the last sector, as a copy of a disk writes it.
  const copied = Buffer.alloc(512);
  copied.fill(8, 0, exported - last);
  await disk.write(last, copied);
  assert.deepEqual(await disk.read(last, 512), copied);
  const full = await errorOf(disk.write(last, Buffer.alloc(512, 9)));
  assert.deepEqual([full.kind, full.errno], ['no-space', 'ENOSPC']);
  assert.deepEqual(await disk.read(last, 512), copied);
  target.log.length = 0;
  await disk.backend.discard(0, total);
  assert.deepEqual(target.log, [`discard 0+${exported}`]);
  target.bytes.fill(7);
  await disk.backend.writeZeroes(0, total);
  assert.ok(isZero(target.bytes));
}

test('a read-only export does not turn writable', () =>
  onMachine(async ({ bed }) => {
    const disk = await bed.open({ ...OPTIONS, export: 'ro' }, { readOnly: true });
    const { node } = disk;
    const turn = bed.graph.transaction((transaction) => transaction.setReadOnly(node, false));
    assert.equal((await errorOf(turn)).message, 'Could not open image: Permission denied');
    assert.equal(node.readOnly, true);
    await disk.close();
  }));
