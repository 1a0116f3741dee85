import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { createImage } from '../../src/block/create.js';
import type { Json, NodeOptions } from '../../src/block/driver.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

/** Nothing can be committed into it: its user has opened what lies below read-only. */
const READ_ONLY_SHAPE = 'the bytes that an image shows';

const COMMIT = 'block-commit of a middle layer';

/** Graphs that opening their top by its plain name would not give. Each makes a read-only node `n`. */
export const SHAPES: Readonly<Record<string, (bed: EngineBed) => Promise<void>>> = {
  async 'a backing file left out'(bed) {
    await layer(bed, 'low', 1, 0);
    await layer(bed, 'n', 2, 1, 'low');
    await add(bed, 'n', { backing: null });
  },

  async 'another backing file'(bed) {
    await layer(bed, 'low', 1, 0);
    await layer(bed, 'other', 3, 0);
    await layer(bed, 'n', 2, 1, 'low');
    await add(bed, 'other');
    await add(bed, 'n', { backing: 'other' });
  },

  async 'a backing file that the header does not name'(bed) {
    await layer(bed, 'low', 1, 0);
    await layer(bed, 'n', 2, 1);
    await add(bed, 'low');
    await add(bed, 'n', { backing: 'low' });
  },

  async 'another backing file further below'(bed) {
    await layer(bed, 'low', 1, 0);
    await layer(bed, 'other', 3, 0);
    await layer(bed, 'middle', 4, 1, 'low');
    await layer(bed, 'n', 2, 2, 'middle');
    await add(bed, 'other');
    await add(bed, 'middle', { backing: 'other' });
    await add(bed, 'n', { backing: 'middle' });
  },

  async 'a backing file of another format than the header says'(bed) {
    await layer(bed, 'low', 1, 0);
    const backingFile = bed.path('low.qcow2');
    await createImage(bed.engine.opener, bed.path('n.qcow2'), 'qcow2', {
      ...{ sizeBytes: DISK_BYTES, backingFile, backingFormat: 'raw' },
    });
    await add(bed, 'low');
    await add(bed, 'n', { backing: 'low' });
  },

  async 'a window of a raw file'(bed) {
    const bytes = Buffer.alloc(DISK_BYTES + 2 * MiB, 5);
    bytes.fill(6, MiB, MiB + 4096);
    writeFileSync(bed.path('raw'), bytes);
    await add(bed, 'n', {
      ...{ driver: 'raw', offset: MiB, size: DISK_BYTES, file: file(bed, 'raw') },
    });
  },

  async 'an image in a window of a raw file'(bed) {
    await layer(bed, 'inner', 7, 1);
    writeFileSync(
      bed.path('raw'),
      Buffer.concat([Buffer.alloc(MiB, 8), readFileSync(bed.path('inner.qcow2'))]),
    );
    await add(bed, 'n', { file: { driver: 'raw', offset: MiB, file: file(bed, 'raw') } });
  },

  async 'the bytes of an image'(bed) {
    await layer(bed, 'inner', 7, 1);
    await add(bed, 'n', { driver: 'raw', file: file(bed, 'inner.qcow2') });
  },

  async [READ_ONLY_SHAPE](bed) {
    await layer(bed, 'inner', 7, 1);
    await add(bed, 'inner');
    await add(bed, 'n', { driver: 'raw', file: 'inner' });
  },
};

function file(bed: EngineBed, name: string): NodeOptions {
  return { driver: 'file', filename: bed.path(name) };
}

/** A qcow2 image with a MiB of `byte`. */
async function layer(
  bed: EngineBed,
  name: string,
  byte: number,
  atMiB: number,
  backing?: string,
): Promise<void> {
  const filename = bed.path(`${name}.qcow2`);
  await createImage(bed.engine.opener, filename, 'qcow2', {
    sizeBytes: DISK_BYTES,
    ...(backing !== undefined && { backingFile: bed.path(`${backing}.qcow2`), backingFormat: 'qcow2' }),
  });
  await bed.engine.addNode({ ...image(bed, name), 'node-name': 'filled', backing: null });
  const command = `qemu-io filled "write -P ${byte} ${atMiB}M 1M"`;
  await bed.execute('human-monitor-command', { 'command-line': command });
  await bed.execute('blockdev-del', { 'node-name': 'filled' });
}

function image(bed: EngineBed, name: string): NodeOptions {
  return { driver: 'qcow2', file: file(bed, `${name}.qcow2`) };
}

async function add(bed: EngineBed, name: string, more: { [key: string]: Json } = {}): Promise<void> {
  const driver = more['driver'] ?? 'qcow2';
  const options = { ...(driver === 'qcow2' && image(bed, name)), ...more, driver };
  await bed.engine.addNode({ ...options, 'node-name': name, 'read-only': true });
}

/** Commands that make an image whose header names `n`. Each answers that image's file and the node that shows it. */
export const COMMANDS: Readonly<Record<string, (bed: EngineBed) => Promise<{ file: string; node: string }>>> =
  {
    async 'blockdev-snapshot-sync'(bed) {
      await bed.execute('blockdev-snapshot-sync', {
        ...{ 'node-name': 'n', 'snapshot-file': bed.path('s'), 'snapshot-node-name': 's' },
      });
      return { file: bed.path('s'), node: 'n' };
    },

    async 'block-stream with a base'(bed) {
      await overlays(bed);
      await bed.execute('block-stream', { device: 'o', 'job-id': 'j', 'base-node': 'n' });
      await ended(bed);
      return { file: bed.path('o.qcow2'), node: 'o' };
    },

    async [COMMIT](bed) {
      await overlays(bed);
      await bed.execute('block-commit', { device: 'o', 'job-id': 'j', 'top-node': 'm', 'base-node': 'n' });
      await ended(bed);
      return { file: bed.path('o.qcow2'), node: 'o' };
    },

    'drive-mirror sync=none': (bed) => copyOf(bed, 'drive-mirror', 'n', 'none'),
    'drive-mirror sync=top': (bed) => copyOf(bed, 'drive-mirror', 'm', 'top'),
    'drive-backup sync=none': (bed) => copyOf(bed, 'drive-backup', 'n', 'none'),
    'drive-backup sync=top': (bed) => copyOf(bed, 'drive-backup', 'm', 'top'),
  };

/** n <- m <- o, each with a MiB of its own. */
async function overlays(bed: EngineBed): Promise<void> {
  for (const [name, below, byte, at] of [
    ['m', 'n', 0x31, 4],
    ['o', 'm', 0x32, 5],
  ] as const) {
    const filename = bed.path(`${name}.qcow2`);
    const { lengthBytes } = bed.engine.graph.node('n');
    await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: lengthBytes });
    await bed.engine.addNode({ ...image(bed, name), 'node-name': name, backing: below });
    const place = lengthBytes < DISK_BYTES ? at * 4096 : at * MiB;
    const command = `qemu-io ${name} "write -P ${byte} ${place} 4k"`;
    await bed.execute('human-monitor-command', { 'command-line': command });
  }
}

async function ended(bed: EngineBed): Promise<void> {
  const { error } = await bed.event('BLOCK_JOB_COMPLETED', 'j');
  assert.equal(error, undefined);
}

async function copyOf(
  bed: EngineBed,
  command: 'drive-mirror' | 'drive-backup',
  device: string,
  sync: string,
): Promise<{ file: string; node: string }> {
  if (device === 'm') await overlays(bed);
  const source = device === 'm' ? 'o' : 'n';
  const node = device === 'm' ? 'm' : 'n';
  // Of the middle layer: what lies above has nothing to do with it.
  if (device === 'm') await bed.execute('blockdev-del', { 'node-name': source });
  const target = bed.path('target');
  await bed.execute(command, { device: node, 'job-id': 'j', target, sync, format: 'qcow2' });
  if (command === 'drive-mirror') {
    await bed.event('BLOCK_JOB_READY', 'j');
    await bed.execute('block-job-cancel', { device: 'j' });
    await ended(bed);
  } else if (sync === 'none') {
    await bed.execute('block-job-cancel', { device: 'j' });
    await bed.event('BLOCK_JOB_CANCELLED', 'j');
  } else await ended(bed);
  return { file: target, node };
}

/** Shapes with the commands that make sense with them. */
export function* cases(): Generator<[shape: string, command: string]> {
  for (const shape of Object.keys(SHAPES))
    for (const command of Object.keys(COMMANDS))
      if (shape !== READ_ONLY_SHAPE || command !== COMMIT) yield [shape, command];
}

/** All that was written is in the files. */
export async function flush(bed: EngineBed): Promise<void> {
  for (const node of bed.engine.graph.nodes.values()) if (!node.readOnly) await node.io.flush();
}

/** All that a node shows. */
export async function contentsOf(bed: EngineBed, name: string): Promise<Buffer> {
  const node = bed.engine.graph.node(name);
  const bytes = Buffer.alloc(node.lengthBytes);
  await node.io.readBuffer(0, bytes);
  return bytes;
}
