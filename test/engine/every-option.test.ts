import assert from 'node:assert/strict';
import { copyFileSync, existsSync, statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { NodeOptions } from '../../src/block/driver.js';
import { type DriverName, DRIVERS, GENERIC_OPTIONS } from '../../src/schema/blockdev-options.js';
import { FlatOptions } from '../../src/schema/flat.js';
import {
  isScalar,
  type JsonObject,
  type JsonValue,
  type Members,
  scalarText,
  type Type,
} from '../../src/schema/types.js';
import { Permission } from '../../src/block/permissions.js';
import { IoRequest } from '../../src/block/request.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { loopDevice } from '../kit/loop-device.js';
import { NbdExports } from '../kit/nbd-exports.js';
import { TestBed, type TestDisk, withFolder } from '../kit/test-disk.js';
import { QCOW2_SHOWS } from './qcow2-options.js';
import { SSH_SHOWS } from './ssh-options.js';
import { webOptions } from './web-options.js';

/**
 * Every option of the schema is refused by name, or there is something here that shows what it does. Who adds an
 * option has to add it here.
 */

const KiB = 1024;
const SIZE = 256 * KiB;

/** Images a.qcow2 and a.raw, of a pattern each, and what may be asked about them. */
class OptionBed extends TestBed {
  async prepare(): Promise<void> {
    for (const format of ['raw', 'qcow2']) {
      await createImage(this.opener, this.at(format), format, { sizeBytes: SIZE });
      const disk = await this.open({ driver: format, file: this.file(format) });
      for (let at = 0; at < SIZE; at += KiB) await disk.write(at, Buffer.alloc(KiB, at / KiB));
      await disk.close();
    }
  }

  at(format: string): string {
    return `${this.folder}/a.${format}`;
  }

  file(format: string, more: NodeOptions = {}): NodeOptions {
    return { driver: 'file', filename: this.at(format), ...more };
  }

  raw(more: NodeOptions = {}): NodeOptions {
    return { driver: 'raw', file: this.file('raw'), ...more };
  }

  qcow2(more: NodeOptions = {}): NodeOptions {
    return { driver: 'qcow2', file: this.file('qcow2'), ...more };
  }

  blkdebug(more: NodeOptions): NodeOptions {
    return { driver: 'blkdebug', image: this.raw(), ...more };
  }

  cbw(more: NodeOptions): NodeOptions {
    return { driver: 'copy-before-write', file: this.qcow2(), target: this.raw(), ...more };
  }

  quorum(more: NodeOptions): NodeOptions {
    const copy = `${this.folder}/b.raw`;
    copyFileSync(this.at('raw'), copy);
    const children = [
      { driver: 'raw', file: this.file('raw') },
      { driver: 'raw', file: { driver: 'file', filename: copy } },
    ].map((child) => ({ driver: 'blkdebug', image: child, 'take-child-perms': ['write'] }));
    return { driver: 'quorum', 'vote-threshold': 2, children, ...more };
  }

  preallocate(more: NodeOptions): NodeOptions {
    return { driver: 'preallocate', file: this.file('raw'), ...more };
  }

  logged(more: NodeOptions): NodeOptions {
    return { driver: 'blklogwrites', file: this.file('raw'), log: this.file('qcow2'), ...more };
  }

  /** How long the file is while something writes 1 KiB behind its end. */
  async grown(more: NodeOptions): Promise<number> {
    return this.with(this.preallocate(more), async (disk) => {
      await disk.node.io.write(IoRequest.ofBuffer(Buffer.alloc(KiB)), 0, KiB, SIZE, 0, true);
      return statSync(this.at('raw')).size;
    });
  }

  /** What `body` finds with a disk of these options. */
  async with<T>(
    options: NodeOptions,
    body: (disk: TestDisk) => T | Promise<T>,
    readOnly = false,
  ): Promise<T> {
    const disk = await this.open(options, { readOnly });
    try {
      return await body(disk);
    } finally {
      await disk.close();
    }
  }

  async refused(options: NodeOptions, message: RegExp): Promise<void> {
    await assert.rejects(async () => this.with(options, () => undefined), { message });
  }
}

type Show = (bed: OptionBed, context: TestContext) => Promise<void>;

const cacheOf = (disk: TestDisk): unknown => disk.node.child('file').node.settings.cache;

const GENERIC: Record<string, Show> = {
  'node-name': (bed) => bed.with(bed.raw({ 'node-name': 'n' }), (disk) => assert.equal(disk.node.name, 'n')),
  'read-only': (bed) => bed.refused(bed.raw({ 'read-only': true }), /read-only/),
  'auto-read-only': (bed) =>
    bed.with(bed.raw({ file: bed.file('raw', { 'auto-read-only': true, 'read-only': false }) }), (disk) =>
      disk.write(0, Buffer.alloc(512, 1)),
    ),
  'force-share': async (bed) => {
    const writer = await bed.open(bed.raw());
    const other = new OptionBed(bed.host, allDrivers, bed.folder);
    const alone = { readOnly: true, shared: Permission.consistentRead };
    await assert.rejects(other.open(bed.file('raw'), alone), { message: /lock/ });
    await (await other.open(bed.file('raw', { 'force-share': true }), alone)).close();
    await writer.close();
  },
  discard: async (bed) => {
    const blocks = async (discard: string): Promise<number> => {
      await bed.prepare();
      const file = bed.file('raw', { discard });
      await bed.with(bed.raw({ file, discard }), (disk) => disk.backend.discard(0, SIZE));
      return statSync(bed.at('raw')).blocks;
    };
    assert.ok((await blocks('ignore')) > (await blocks('unmap')));
  },
  cache: (bed) =>
    bed.with(bed.raw({ cache: { 'no-flush': true } }), (disk) =>
      assert.deepEqual(cacheOf(disk), { direct: false, 'no-flush': true }),
    ),
  'detect-zeroes': (bed) => bed.with(bed.raw({ 'detect-zeroes': 'off' }), () => undefined),
};

/** Makes an error of `event`'s requests plain to see. */
const failing = (more: NodeOptions): NodeOptions => ({
  'inject-error': [{ event: 'none', iotype: 'read', ...more }],
});

const limits =
  (key: string, request: (disk: TestDisk) => Promise<void>): Show =>
  async (bed) => {
    // One piece of the request fails; the one before it was passed on.
    const options = bed.blkdebug({ [key]: 4 * KiB, 'inject-error': [{ event: 'none', sector: 8 }] });
    await bed.with(options, async (disk) => {
      await assert.rejects(request(disk), { errno: 'EIO' });
      const head = Buffer.alloc(KiB);
      await disk.node.child('image').read(0, head);
      assert.ok(head.every((byte) => byte === 0));
    });
  };

/** On a device that holds a.raw; skipped where there can be none. */
const onDevice =
  (show: (bed: OptionBed, device: NodeOptions) => Promise<void>): Show =>
  async (bed, context) => {
    const filename = loopDevice(context, bed.at('raw'));
    if (filename !== undefined) await show(bed, { driver: 'host_device', filename });
  };

function nullOptions(driver: string): Record<string, Show> {
  return {
    size: (bed) => bed.with({ driver, size: 512 }, (disk) => assert.equal(disk.lengthBytes, 512)),
    'read-zeroes': (bed) =>
      bed.with({ driver, 'read-zeroes': true }, async (disk) => assert.equal((await disk.read(0, 1))[0], 0)),
    'latency-ns': async (bed) => {
      await bed.refused({ driver, 'latency-ns': -1 }, /latency-ns is invalid/);
      await bed.with({ driver, 'latency-ns': 1000 }, (disk) =>
        assert.equal(disk.backend.tryRead(0, Buffer.alloc(1)), false),
      );
    },
  };
}

const BEHAVIOUR: { [D in DriverName]: Record<string, Show> } = {
  blkverify: {},
  bochs: {},
  cloop: {},
  dmg: {},
  luks: {
    'key-secret': async (bed) => {
      await bed.graph.objects.add({ 'qom-type': 'secret', id: 's', data: 'right' });
      const options = { 'key-secret': 's', 'iter-time': 1 };
      await createImage(bed.opener, bed.at('luks'), 'luks', { sizeBytes: SIZE, options });
      await bed.refused({ driver: 'luks', file: bed.file('luks') }, /'key-secret' is required/);
      const luks = { driver: 'luks', file: bed.file('luks'), 'key-secret': 's' };
      await bed.with(luks, (disk) => disk.write(0, Buffer.from('text')));
      await bed.with(luks, async (disk) => assert.equal((await disk.read(0, 4)).toString(), 'text'));
    },
  },
  parallels: {},
  qed: {},
  vdi: {},
  vhdx: {},
  vmdk: {},
  vpc: {},
  'null-aio': nullOptions('null-aio'),
  compress: {},
  'copy-before-write': {
    bitmap: (bed) => bed.refused(bed.cbw({ bitmap: { node: 'n', name: 'b' } }), /Node 'n' not found/),
    'min-cluster-size': async (bed) => {
      const granularity = (more: NodeOptions): Promise<unknown> =>
        bed.with(bed.cbw(more), ({ node }) => node.dirtyBitmaps[0]?.granularityBytes);
      assert.equal(await granularity({}), 64 * KiB);
      assert.equal(await granularity({ 'min-cluster-size': 128 * KiB }), 128 * KiB);
      await bed.refused(bed.cbw({ 'min-cluster-size': 3 }), /needs to be a power of 2/);
    },
    // What becomes of the moment that is kept: src/drivers/copy-before-write/copy-before-write.test.ts.
    'on-cbw-error': async (bed) => {
      const target = bed.blkdebug({ 'inject-error': [{ event: 'none', iotype: 'write' }] });
      const write = (policy: string): Promise<void> =>
        bed.with(bed.cbw({ 'on-cbw-error': policy, target }), (disk) => disk.write(0, Buffer.alloc(1)));
      await assert.rejects(write('break-guest-write'), { errno: 'EIO' });
      await write('break-snapshot');
    },
    'cbw-timeout': async (bed) => {
      const target = bed.blkdebug({ 'x-delay': [{ iotype: 'write', 'delay-ms': 2000 }] });
      const write = bed.with(bed.cbw({ 'cbw-timeout': 1, target }), (disk) => disk.write(0, Buffer.alloc(1)));
      await assert.rejects(write, { errno: 'ETIMEDOUT' });
    },
  },
  'snapshot-access': {},
  // What is told, and to whom: src/drivers/quorum/quorum.test.ts.
  quorum: {
    'vote-threshold': (bed) => bed.refused(bed.quorum({ 'vote-threshold': 3 }), /may not exceed children/),
    blkverify: async (bed) => {
      await bed.refused(bed.quorum({ blkverify: true, 'vote-threshold': 1 }), /vote-threshold is 2/);
      await bed.refused(bed.quorum({ blkverify: true, 'rewrite-corrupted': true }), /cannot be used with/);
    },
    'rewrite-corrupted': (bed) =>
      bed.with(bed.quorum({ 'vote-threshold': 1, 'rewrite-corrupted': true }), async (disk) => {
        await disk.node.child('children.1').write(0, Buffer.alloc(1, 9), 0);
        await disk.read(0, 1);
        const mended = Buffer.alloc(1, 7);
        await disk.node.child('children.1').read(0, mended);
        assert.equal(mended[0], 0);
      }),
    'read-pattern': (bed) =>
      bed.with(bed.quorum({ 'read-pattern': 'fifo' }), async (disk) => {
        await disk.node.child('children.1').write(0, Buffer.alloc(1, 9), 0);
        assert.equal((await disk.read(0, 1))[0], 0);
      }),
  },
  preallocate: {
    'prealloc-align': async (bed) => {
      await bed.refused(bed.preallocate({ 'prealloc-align': 100 }), /is not aligned to 512/);
      assert.equal(await bed.grown({ 'prealloc-align': 100 * 512, 'prealloc-size': 0 }), 51_200 * 6);
    },
    'prealloc-size': async (bed) =>
      assert.equal(await bed.grown({ 'prealloc-align': 512, 'prealloc-size': 3 * KiB }), SIZE + 4 * KiB),
  },
  blklogwrites: {
    'log-sector-size': (bed) =>
      bed.with(bed.logged({ 'log-sector-size': 4 * KiB }), ({ node }) =>
        assert.equal(node.instance.requestAlignmentBytes, 4 * KiB),
      ),
    'log-append': (bed) => bed.refused(bed.logged({ 'log-append': true }), /Invalid log superblock magic/),
    'log-super-update-interval': (bed) =>
      bed.refused(bed.logged({ 'log-super-update-interval': 0 }), /superblock update interval 0/),
  },
  'copy-on-read': {
    bottom: async (bed) => {
      const file = bed.qcow2({ backing: bed.raw({ 'node-name': 'base' }) });
      const refused = (bottom: string, message: RegExp): Promise<void> =>
        bed.refused({ driver: 'copy-on-read', bottom, file }, message);
      await refused('none', /Bottom node 'none' not found/);
      await bed.with({ driver: 'copy-on-read', bottom: 'base', file }, ({ node }) => {
        const { below } = node.skipFilters();
        assert.equal(below?.frozen, 1);
      });
    },
  },
  throttle: {
    'throttle-group': async (bed) => {
      const { objects } = bed.graph;
      await bed.refused(
        { driver: 'throttle', 'throttle-group': 'none', file: bed.file('raw') },
        /Throttle group 'none' does not exist/,
      );
      await objects.add({ 'qom-type': 'throttle-group', id: 'g' });
      await bed.with({ driver: 'throttle', 'throttle-group': 'g', file: bed.file('raw') }, () =>
        assert.equal(objects.find('g')?.isInUse, true),
      );
      assert.equal(objects.find('g')?.isInUse, false);
    },
  },
  file: {
    filename: (bed) =>
      bed.with(bed.file('raw'), async (disk) => assert.equal((await disk.read(KiB, 1))[0], 1)),
    locking: (bed) =>
      bed.with(bed.file('raw', { locking: 'off' }), () =>
        new OptionBed(bed.host, allDrivers, bed.folder).with(bed.file('raw'), () => undefined),
      ),
    aio: async (bed) => {
      await bed.refused(bed.file('raw', { aio: 'native' }), /requires cache.direct=on/);
      await bed.with(bed.file('raw', { aio: 'io_uring' }), () => undefined);
    },
  },
  host_device: {
    filename: onDevice((bed, device) =>
      bed.with(device, async (disk) => assert.equal((await disk.read(KiB, 1))[0], 1)),
    ),
    locking: onDevice(async (bed, device) => {
      const other = new OptionBed(bed.host, allDrivers, bed.folder);
      const alone = { shared: Permission.consistentRead };
      const disk = await bed.open(device, alone);
      await assert.rejects(other.open(device, alone), { message: /lock/ });
      await disk.close();
      const unlocked = await bed.open({ ...device, locking: 'off' }, alone);
      await other.with(device, () => undefined);
      await unlocked.close();
    }),
    aio: onDevice(async (bed, device) => {
      await bed.refused({ ...device, aio: 'native' }, /requires cache.direct=on/);
      await bed.with({ ...device, aio: 'io_uring' }, () => undefined);
    }),
  },
  'null-co': nullOptions('null-co'),
  ssh: SSH_SHOWS,
  http: webOptions('http'),
  https: webOptions('https'),
  nbd: {
    server: (bed) =>
      withExport(bed, (server) =>
        bed.with({ driver: 'nbd', server }, (disk) => assert.equal(disk.lengthBytes, SIZE)),
      ),
    export: (bed) =>
      withExport(bed, (server) =>
        bed.with({ driver: 'nbd', server, export: 'other' }, (disk) =>
          assert.equal(disk.lengthBytes, 2 * SIZE),
        ),
      ),
    'x-dirty-bitmap': (bed) =>
      withExport(bed, (server) =>
        bed.refused(
          { driver: 'nbd', server, 'x-dirty-bitmap': 'qemu:dirty-bitmap:nope' },
          /^Could not open image: Invalid argument$/,
        ),
      ),
    'tls-creds': (bed) =>
      withExport(bed, (server) =>
        bed.refused({ driver: 'nbd', server, 'tls-creds': 'x' }, /No TLS credentials with id 'x'/),
      ),
    'tls-hostname': (bed) =>
      withExport(bed, (server) =>
        bed.refused({ driver: 'nbd', server, 'tls-hostname': 'x' }, /not supported without tls-creds/),
      ),
    'open-timeout': async (bed) => {
      const nowhere = { driver: 'nbd', server: { type: 'unix', path: bed.newPath('nowhere') } };
      const startedMs = bed.host.clock.nowMs();
      await bed.refused({ ...nowhere, 'open-timeout': 1 }, /Failed to connect/);
      assert.ok(bed.host.clock.nowMs() - startedMs > 500);
    },
    'reconnect-delay': async (bed) => {
      const exports = new NbdExports(bed);
      await exports.add('', SIZE);
      const server = { type: 'unix', path: exports.socketPath };
      const disk = await bed.open({ driver: 'nbd', server, 'reconnect-delay': 1 });
      await exports.close();
      const startedMs = bed.host.clock.nowMs();
      await assert.rejects(disk.read(0, 512), { errno: 'EIO' });
      assert.ok(bed.host.clock.nowMs() - startedMs > 500, 'it did not wait');
      // Nothing can be flushed, nor is there anything to.
      await disk.close();
    },
  },
  raw: {
    offset: (bed) =>
      bed.with(bed.raw({ offset: 4 * KiB }), async (disk) => assert.equal((await disk.read(0, 1))[0], 4)),
    size: (bed) => bed.with(bed.raw({ size: KiB }), (disk) => assert.equal(disk.lengthBytes, KiB)),
  },
  qcow2: {
    ...QCOW2_SHOWS,
    'cache-size': (bed) =>
      bed.refused(bed.qcow2({ 'cache-size': 1, 'l2-cache-size': 2 }), /may not exceed cache-size/),
    'l2-cache-size': async (bed) => {
      await bed.refused(bed.qcow2({ 'l2-cache-size': -1 }), /expects a non-negative number below 2\^64/);
      await bed.with(bed.qcow2({ 'l2-cache-size': 0 }), (disk) => disk.read(0, SIZE));
    },
    encrypt: async (bed) => {
      await bed.graph.objects.add({ 'qom-type': 'secret', id: 's', data: 'right' });
      await bed.refused(bed.qcow2({ encrypt: { format: 'luks' } }), /No encryption in image header/);
      const options = { encrypt: { format: 'luks', 'key-secret': 's', 'iter-time': 0 } };
      await createImage(bed.opener, bed.at('luks'), 'qcow2', { sizeBytes: SIZE, options });
      const node = { driver: 'qcow2', file: bed.file('luks') };
      await bed.refused(node, /'encrypt.key-secret' is required/);
      const encrypt = { format: 'luks', 'key-secret': 's' };
      await bed.with({ ...node, encrypt }, (disk) => disk.write(0, Buffer.from('text')));
      await bed.with({ ...node, encrypt }, async (disk) =>
        assert.equal((await disk.read(0, 4)).toString(), 'text'),
      );
    },
    'refcount-cache-size': (bed) =>
      bed.refused(bed.qcow2({ 'cache-size': 1, 'refcount-cache-size': 2 }), /refcount-cache-size may not/),
  },
  blkdebug: {
    align: (bed) =>
      bed.with(bed.blkdebug({ align: 4 * KiB }), ({ node }) =>
        assert.equal(node.instance.requestAlignmentBytes, 4 * KiB),
      ),
    'max-transfer': limits('max-transfer', (disk) => disk.write(0, Buffer.alloc(8 * KiB))),
    'max-write-zero': limits('max-write-zero', (disk) => disk.backend.writeZeroes(0, 8 * KiB)),
    'max-discard': limits('max-discard', async (disk) => {
      await disk.node.child('image').writeZeroes(0, KiB, 0);
      await disk.backend.discard(0, 8 * KiB);
    }),
    config: async (bed) => {
      const config = bed.newPath('cfg');
      await writeFile(config, '[inject-error]\nevent = "none"\niotype = "read"\nerrno = "28"\n');
      await bed.with(bed.blkdebug({ config }), (disk) =>
        assert.rejects(disk.read(0, 1), { errno: 'ENOSPC' }),
      );
    },
    'opt-write-zero': (bed) =>
      bed.with(
        bed.blkdebug({ 'opt-write-zero': 4 * KiB, 'inject-error': [{ event: 'none', iotype: 'write' }] }),
        async (disk) => {
          await disk.backend.writeZeroes(0, 4 * KiB);
          await assert.rejects(disk.backend.writeZeroes(KiB, 4 * KiB), { errno: 'EIO' });
        },
      ),
    'opt-discard': (bed) =>
      bed.refused(bed.blkdebug({ 'opt-discard': KiB, 'max-discard': 1536 }), /constraints with max-discard/),
    'inject-error': (bed) =>
      bed.with(bed.blkdebug(failing({ errno: 28 })), (disk) =>
        assert.rejects(disk.read(0, 1), { errno: 'ENOSPC' }),
      ),
    'set-state': (bed) =>
      bed.with(
        bed.blkdebug({
          'set-state': [{ event: 'pwritev', new_state: 2 }],
          'inject-error': [{ event: 'pwritev', state: 2, iotype: 'write', once: true }],
        }),
        async (disk) => {
          await disk.write(0, Buffer.alloc(1));
          await assert.rejects(disk.write(0, Buffer.alloc(1)), { errno: 'EIO' });
        },
      ),
    'take-child-perms': (bed) =>
      bed.refused(readOnlyUnder(bed, { 'take-child-perms': ['write'] }), /read-only/),
    'unshare-child-perms': async (bed) => {
      const image = bed.raw({ 'node-name': 'shared' });
      await bed.with(image, () =>
        bed.refused(
          { driver: 'blkdebug', image: 'shared', 'unshare-child-perms': ['write'] },
          /shared|write/,
        ),
      );
    },
    'x-delay': (bed) =>
      bed.with(bed.blkdebug({ 'x-delay': [{ iotype: 'read', 'delay-ms': 200 }] }), async (disk) => {
        const from = bed.host.clock.nowMs();
        await disk.read(0, 1);
        // Timers begin when the event loop last looked at the clock.
        assert.ok(bed.host.clock.nowMs() - from >= 100);
      }),
  },
};

function readOnlyUnder(bed: OptionBed, more: NodeOptions): NodeOptions {
  return { driver: 'blkdebug', image: bed.raw({ 'read-only': true }), 'read-only': true, ...more };
}

async function withExport(bed: OptionBed, body: (server: NodeOptions) => Promise<void>): Promise<void> {
  const exports = new NbdExports(bed);
  await exports.add('', SIZE);
  await exports.add('other', 2 * SIZE);
  try {
    await body({ type: 'unix', path: exports.socketPath });
  } finally {
    await exports.close();
  }
}

function onImages(show: Show): (context: TestContext) => Promise<void> {
  return (context) =>
    withFolder(async (folder) => {
      const bed = new OptionBed(createRealHost(), allDrivers, folder);
      await bed.prepare();
      await show(bed, context);
      assert.equal(bed.graph.nodes.size, 0);
      assert.ok(existsSync(bed.at('raw')));
    });
}

/** A value of a type, where livedisk has to refuse it whatever it is. */
function valueOf({ description }: Type<unknown>): JsonValue {
  switch (description.kind) {
    case 'builtin':
      if (description.jsonType === 'boolean') return true;
      return description.jsonType === 'int' ? 4096 : 'x';
    case 'enum':
      return description.values[0] ?? '';
    case 'array':
      return [valueOf(description.element)];
    case 'object':
      return { format: 'luks' };
    case 'alternate':
      return 'x';
  }
}

const ALL: Array<[string, Members]> = [
  ['generic', GENERIC_OPTIONS],
  ...Object.entries(DRIVERS).map(([name, { members }]): [string, Members] => [name, members]),
];

for (const [name, members] of ALL) {
  const shows = name === 'generic' ? GENERIC : BEHAVIOUR[name as DriverName];
  const honoured = Object.entries(members).filter(([, member]) => member.later !== true);
  test(`${name}: each option that is not refused by name does something`, () => {
    assert.deepEqual(Object.keys(shows).sort(), honoured.map(([key]) => key).sort());
  });
  for (const [key, show] of Object.entries(shows)) test(`${name}: ${key}`, onImages(show));
}

/** What a driver has to be given, so that nothing else is wrong. */
const NEEDED: { [D in DriverName]: JsonObject } = {
  blkdebug: { image: 'x' },
  blkverify: { raw: 'x', test: 'x' },
  bochs: { file: 'x' },
  cloop: { file: 'x' },
  dmg: { file: 'x' },
  'null-aio': {},
  compress: { file: 'x' },
  'copy-before-write': { file: 'x', target: 'x' },
  'snapshot-access': { file: 'x' },
  'copy-on-read': { file: 'x' },
  quorum: { children: ['x'], 'vote-threshold': 1 },
  preallocate: { file: 'x' },
  blklogwrites: { file: 'x', log: 'x' },
  file: { filename: 'x' },
  host_device: { filename: 'x' },
  ssh: { server: { host: 'x', port: '1' }, path: 'x' },
  http: { url: 'x' },
  https: { url: 'x' },
  luks: { file: 'x' },
  nbd: { server: { type: 'unix', path: 'x' } },
  'null-co': {},
  qcow2: { file: 'x' },
  parallels: { file: 'x' },
  qed: { file: 'x' },
  raw: { file: 'x' },
  vdi: { file: 'x' },
  vhdx: { file: 'x' },
  vmdk: { file: 'x' },
  vpc: { file: 'x' },
  throttle: { file: 'x', 'throttle-group': 'x' },
};

test('each other option is refused by name, on the node and on a child, however it is given', () => {
  const { gate } = new TestBed(createRealHost(), allDrivers, '').opener.drivers;
  let count = 0;
  for (const [driver, members] of ALL.slice(1)) {
    for (const [key, member] of Object.entries(members)) {
      if (member.later !== true) continue;
      count++;
      const node = { driver, ...NEEDED[driver as DriverName], [key]: valueOf(member.type) };
      const refusal = (path: string): { kind: string; message: string } => ({
        kind: 'unsupported',
        message: `Parameter '${path}' is not supported by livedisk yet`,
      });
      assert.throws(() => gate.plan(node), refusal(key));
      assert.throws(() => gate.plan({ driver: 'raw', file: node }), refusal(`file.${key}`));
      assert.throws(() => gate.planFlat(FlatOptions.of(node)), refusal(key));
      assert.throws(() => gate.planFlat(FlatOptions.of({ driver: 'raw', file: node })), refusal(key));
      if (!isScalar(member.type)) continue;
      const text = { ...node, [key]: scalarText(valueOf(member.type), key) };
      assert.throws(() => gate.plan(text, 'keyval'), refusal(key));
    }
  }
  assert.ok(count > 10);
});
