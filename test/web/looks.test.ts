import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { AllowedFiles } from '../../src/programs/web/allowed-files.js';
import { programsParts } from '../../src/programs/web/setup.js';
import type { ClusterMap } from '../../src/view/cluster-map.js';
import type { View } from '../../src/view/model.js';
import type { Plan } from '../../src/view/plan/types.js';
import type { Beside, Heat, ServerState } from '../../src/web/messages.js';
import { DISK_BYTES, MiB } from '../engine/engine-bed.js';
import { WebBed } from './web-bed.js';

async function answer<T>(web: WebBed, path: string, body: object): Promise<T> {
  const { status, text } = await web.ask(`/api/${path}`, { server: 'disk', ...body });
  assert.equal(status, 200, text);
  return JSON.parse(text) as T;
}

/** No file may be named, and none is looked at. */
const SHUT = { readMap: async () => new AllowedFiles([]).find('x') as never };

test('a livedisk tells whose clusters a disk shows, without a file', async (t) => {
  const web = await WebBed.start(t, SHUT);
  await web.login();
  const map = await answer<ClusterMap>(web, 'map', { image: 'C' });
  assert.deepEqual(map.layers, ['C', 'B', 'A']);
  assert.equal(map.diskBytes, DISK_BYTES);
  assert.deepEqual(
    map.extents.map(({ lengthBytes, layer, isZero }) => [lengthBytes / MiB, layer, isZero]),
    [
      [1, 2, false],
      [1, 1, false],
      [1, 0, false],
      [1, 2, false],
      [4, undefined, true],
    ],
  );
  const [status, text] = await web.error('/api/map', { server: 'disk', image: 'none' });
  assert.deepEqual([status, text], [400, 'there is no such image']);
});

test('a plan says how much is copied: what other layers hide is not', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const bytesOf = async (action: object): Promise<number | undefined> =>
    (await answer<Plan>(web, 'plan', { action })).bytes;
  assert.equal(await bytesOf({ kind: 'stream', image: 'C' }), 3 * MiB);
  assert.equal(await bytesOf({ kind: 'stream', image: 'C', base: 'A' }), MiB);
  assert.equal(await bytesOf({ kind: 'commit', image: 'C', base: 'A' }), 2 * MiB);
  assert.equal(await bytesOf({ kind: 'backup', image: 'C', file: 'k.qcow2' }), 4 * MiB);
  assert.equal(await bytesOf({ kind: 'stream', image: 'B' }), 3 * MiB);
});

/** A view of which that is so. */
function seen(web: WebBed, isSo: (view: View) => boolean): Promise<View> {
  return new Promise((resolve, reject) => {
    web
      .events((event, data) => {
        const { view } = data as unknown as ServerState;
        const isEnough = event === 'state' && view !== undefined && isSo(view);
        if (isEnough) resolve(view);
        return isEnough;
      })
      .catch(reject);
  });
}

test('images say what of the disk they still provide, and how old their files are', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const { chains, images } = await seen(
    web,
    ({ chains: [chain], images: [image] }) => chain?.provided !== undefined && image?.file !== undefined,
  );
  assert.deepEqual(chains[0]?.provided, [2 * MiB, MiB, MiB]);
  for (const { file, warnings } of images) {
    assert.ok(file && file.fileSystemBytes > 0 && file.unchangedSeconds < 3600, JSON.stringify(file));
    assert.equal(file.otherHolders, 0, warnings.join());
  }
});

test('an image that somebody else holds, and a full file system, are warned of', async (t) => {
  const facts = { unchangedSeconds: 5, freeBytes: MiB, fileSystemBytes: 1024 * MiB, otherHolders: 1 };
  const web = await WebBed.start(t, { lookAtFiles: async () => new Map([['C', facts]]) });
  await web.login();
  const { images } = await seen(web, (view) => view.images.some(({ file }) => file !== undefined));
  assert.deepEqual(images.find(({ id }) => id === 'C')?.warnings, [
    'is on a nearly full file system: 1.0 MiB of 1.0 GiB free',
    'is open elsewhere: somebody else holds a lock on it',
  ]);
});

test('files beside the chain are found, with what they stand on; a commit names those that it spoils', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const { bed } = web;
  const overlay = (name: string, backing: string): Promise<unknown> =>
    createImage(bed.engine.opener, bed.path(name), 'qcow2', {
      sizeBytes: DISK_BYTES,
      ...{ backingFile: bed.path(backing), backingFormat: 'qcow2' },
    });
  await overlay('clone.qcow2', 'A.qcow2');
  await overlay('<b>of a clone.qcow2', 'clone.qcow2');
  await createImage(bed.engine.opener, bed.path('alone.qcow2'), 'qcow2', { sizeBytes: DISK_BYTES });
  writeFileSync(bed.path('notes.txt'), 'no image');
  const { files, isCut } = await answer<Beside>(web, 'beside', {});
  assert.deepEqual(
    files.map(({ file, standsOn }) => [file, standsOn]),
    [
      [bed.path('<b>of a clone.qcow2'), 'A'],
      [bed.path('alone.qcow2'), undefined],
      [bed.path('clone.qcow2'), 'A'],
    ],
  );
  assert.equal(isCut, false);
  const { invalid } = await answer<Plan>(web, 'plan', { action: { kind: 'commit', image: 'C', base: 'A' } });
  assert.deepEqual(
    invalid.map(({ id }) => id),
    ['B', 'C', bed.path('<b>of a clone.qcow2'), bed.path('clone.qcow2')],
  );
  const other = await answer<Plan>(web, 'plan', { action: { kind: 'commit', image: 'C', base: 'B' } });
  assert.deepEqual(
    other.invalid.map(({ id }) => id),
    ['C'],
  );
});

test('nobody looks beside where no folder was given', async (t) => {
  const files = new AllowedFiles([]);
  const web = await WebBed.start(t, {
    lookBeside: async (server, view) =>
      programsParts({ host: {} as never, files, servers: [], folder: undefined }).lookBeside(server, view),
  });
  await web.login();
  const [status, text] = await web.error('/api/beside', { server: 'disk' });
  assert.deepEqual([status, text], [403, 'no file may be named: start "livedisk web" with --allow FOLDER']);
});

test('where a disk is written to is told', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  assert.deepEqual((await answer<Heat>(web, 'heat', { node: 'C' })).regions, []);
  await web.bed.guest('write -P 1 6M 1M');
  const { regions, region } = await answer<Heat>(web, 'heat', { node: 'C' });
  assert.equal(regions[0]?.start, 6 * MiB);
  assert.equal(regions.length, MiB / region);
});
