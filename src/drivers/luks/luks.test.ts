import assert from 'node:assert/strict';
import { test } from 'node:test';
import { newImage } from '../../block/create.js';
import type { LuksAmendment } from '../../schema/encryption-options.js';
import { BlockError } from '../../base/error.js';
import { drawnCrashStates, seededBelow } from '../../../test/kit/crash-states.js';
import { DiskShelf } from '../../../test/kit/recorded-disk.js';
import { parseHeader } from '../encryption/luks-header.js';
import { luksDriver } from './index.js';

/** Sectors that are unlocked fastest. */
const FAST = { 'key-secret': 'one', 'iter-time': 0, 'cipher-alg': 'aes-128', 'cipher-mode': 'cbc' } as const;
const SIZE = 4096;

async function newShelf(content?: Buffer): Promise<DiskShelf> {
  const shelf = new DiskShelf(new Set([luksDriver]));
  for (const id of ['one', 'two', 'other'])
    await shelf.graph.objects.add({ 'qom-type': 'secret', id, data: `password ${id}` });
  shelf.put('image', content);
  return shelf;
}

/** A volume of one password, with text at its beginning. */
async function newVolume(): Promise<Buffer> {
  const shelf = await newShelf();
  const node = await shelf.opener.open({ driver: 'file', filename: 'image' }, { readOnly: false });
  const disk = await shelf.attach(node);
  const image = newImage(luksDriver, { sizeBytes: SIZE, options: { ...FAST } });
  const { root } = disk.backend;
  assert.ok(root);
  await luksDriver.create?.(root, image as never, shelf.graph.host, {
    filename: 'image',
    create: () => Promise.reject(new Error('one file')),
    lookAt: () => Promise.reject(new Error('no backing file')),
    secret: (id) => shelf.graph.objects.secret(id),
  });
  await disk.close();
  const open = await shelf.open('image', { driver: 'luks', 'key-secret': 'one' });
  await open.backend.write(0, Buffer.from('text'));
  await open.close();
  return shelf.disk('image').contents();
}

const sound = newVolume();

async function amended(shelf: DiskShelf, amendment: LuksAmendment, isForced = false): Promise<void> {
  const open = await shelf.open('image', { driver: 'luks', 'key-secret': 'one' });
  try {
    await open.node.instance.amend?.({ keySlots: { amendment, isForced } });
  } finally {
    await open.close();
  }
}

/** What a password shows of the disk; undefined: it opens nothing. */
async function readWith(content: Buffer, secret: string): Promise<string | undefined> {
  const shelf = await newShelf(content);
  try {
    const open = await shelf.open('image', { driver: 'luks', 'key-secret': secret, readOnly: true });
    const text = (await open.read(0, 4)).toString();
    await open.close();
    return text;
  } catch (error) {
    assert.ok(error instanceof BlockError && error.message.startsWith('Invalid password'), String(error));
    return undefined;
  }
}

test('passwords come and go, and each that is there opens the same disk', async () => {
  const shelf = await newShelf(await sound);
  await amended(shelf, { state: 'active', 'new-secret': 'two', 'iter-time': 0, keyslot: 6 });
  const both = shelf.disk('image').contents();
  assert.equal(await readWith(both, 'one'), 'text');
  assert.equal(await readWith(both, 'two'), 'text');
  assert.equal(await readWith(both, 'other'), undefined);
  await amended(shelf, { state: 'inactive', 'old-secret': 'one' });
  const last = shelf.disk('image').contents();
  assert.equal(await readWith(last, 'one'), undefined);
  assert.equal(await readWith(last, 'two'), 'text');
});

test('the last password goes only when that is forced', async () => {
  const shelf = await newShelf(await sound);
  await assert.rejects(amended(shelf, { state: 'inactive', keyslot: 0 }), { message: /refusing operation/ });
  await amended(shelf, { state: 'inactive', keyslot: 0 }, true);
  assert.equal(await readWith(shelf.disk('image').contents(), 'one'), undefined);
});

test('a volume that is full of passwords takes no more', async () => {
  const shelf = await newShelf(await sound);
  const add: LuksAmendment = { state: 'active', 'new-secret': 'two', 'iter-time': 0 };
  for (let slot = 1; slot < 8; slot++) await amended(shelf, add);
  await assert.rejects(amended(shelf, add), { message: "Can't add a keyslot - all keyslots are in use" });
});

/** Slot 6 lies across a sector's end. */
for (const keyslot of [1, 6, 7])
  test(`a crash while slot ${keyslot} is filled or erased leaves what opened the disk before`, async () => {
    const shelf = await newShelf(await sound);
    const disk = shelf.disk('image');
    await amended(shelf, { state: 'active', 'new-secret': 'two', 'iter-time': 0, keyslot });
    disk.mark('filled');
    await amended(shelf, { state: 'inactive', keyslot });
    disk.mark('erased');
    let states = 0;
    for (const { content, marks, survived } of drawnCrashStates(disk, seededBelow(keyslot), 2)) {
      const why = `${survived}, ${marks.join()}`;
      states++;
      assert.equal(await readWith(content, 'one'), 'text', why);
      const two = await readWith(content, 'two');
      assert.ok(two === undefined || two === 'text', why);
      if (marks.includes('erased')) assert.equal(two, undefined, why);
    }
    assert.ok(states > 8);
  });

test('who only looks needs no password, and reads nothing', async () => {
  const shelf = await newShelf(await sound);
  const node = await shelf.opener.open(
    { driver: 'luks', file: { driver: 'file', filename: 'image' } },
    { readOnly: true, onlyLook: true },
  );
  assert.equal(node.instance.info().isEncrypted, true);
  await assert.rejects(node.io.readBuffer(0, Buffer.alloc(512)), { errno: 'EPERM' });
  await shelf.graph.collect([node]);
});

test('a header is made apart from the disk, and nothing of the disk where there is only a header', async () => {
  const shelf = await newShelf();
  shelf.put('header');
  const image = newImage(luksDriver, { sizeBytes: SIZE, options: { ...FAST } });
  const file = { driver: 'file', filename: 'image' };
  const header = { driver: 'file', filename: 'header' };
  const [atDisk, atHeader] = [
    await shelf.attach(await shelf.opener.open(file, { readOnly: false })),
    await shelf.attach(await shelf.opener.open(header, { readOnly: false })),
  ];
  const [io, head] = [atDisk.backend.root, atHeader.backend.root];
  assert.ok(io && head);
  const context = {
    filename: 'header',
    create: () => Promise.reject(new Error('two files')),
    lookAt: () => Promise.reject(new Error('no backing file')),
    secret: (id: string) => shelf.graph.objects.secret(id),
  };
  const { host } = shelf.graph;
  const dataFile = { io, filename: 'image' };
  await luksDriver.create?.(head, { ...image, isHeaderApart: true, dataFile } as never, host, context);
  assert.equal(shelf.disk('image').contents().length, SIZE);
  const { payloadOffset } = parseHeader((await sound).subarray(0, 1024));
  assert.equal(shelf.disk('header').contents().length, payloadOffset);
  await luksDriver.create?.(head, { ...image, isHeaderApart: true } as never, host, context);
  await atDisk.close();
  await atHeader.close();
  const open = await shelf.open('image', { driver: 'luks', 'key-secret': 'one', header });
  await open.backend.write(0, Buffer.from('text'));
  assert.equal(open.backend.lengthBytes, SIZE);
  await open.close();
  assert.notEqual(shelf.disk('image').contents().toString('latin1', 0, 4), 'text');
});

test('a header of its own stands for the one that the file has not', async () => {
  const shelf = await newShelf(await sound);
  const whole = shelf.disk('image').contents();
  const { payloadOffset } = parseHeader(whole);
  shelf.put('header', whole.subarray(0, payloadOffset));
  shelf.put('image', whole.subarray(payloadOffset));
  const header = { driver: 'file', filename: 'header' };
  const open = await shelf.open('image', { driver: 'luks', 'key-secret': 'one', header });
  assert.equal((await open.read(0, 4)).toString(), 'text');
  assert.equal(open.backend.lengthBytes, SIZE);
  await open.close();
});

const WRONG: ReadonlyArray<readonly [at: number, bytes: string, message: RegExp]> = [
  [0, 'X', /^Volume is not in LUKS format$/],
  [7, '\x02', /^LUKS version 2 is not supported$/],
  [8, 'aesXX\0', /^Algorithm 'aesXX' with key size 16 bytes not supported$/],
  [8, 'a'.repeat(32), /^LUKS header cipher name is not NUL terminated$/],
  [40, 'x'.repeat(32), /^LUKS header cipher mode is not NUL terminated$/],
  [8, 'twofish\0', /^Cipher 'twofish' is not supported by livedisk$/],
  [40, 'xts\0', /^Unexpected cipher mode string format 'xts'$/],
  [40, 'xtsx-plain64\0', /^Cipher mode 'xtsx' not supported$/],
  [40, 'cbc-foo\0', /^IV generator 'foo' not supported$/],
  [40, 'cbc-essiv\0', /^Missing IV generator hash specification$/],
  [40, 'cbc-essiv:sha999\0', /^Hash algorithm 'sha999' not supported$/],
  [40, 'cbc-essiv:sha512\0', /^No AES cipher with key size 64 available$/],
  [72, 'sha999\0', /^Hash algorithm 'sha999' not supported$/],
  [108, '\0\0\0\x03', /^Algorithm 'aes' with key size 3 bytes not supported$/],
  [104, '\0\0\0\x01', /^LUKS payload is overlapping with the header$/],
  [164, '\0\0\0\0', /^LUKS key iteration count is zero$/],
  [164, '\xff\0\0\0', /^LUKS iteration count 4278190080 is not supported by livedisk$/],
  [208, '\0\0\0\0', /^Keyslot 0 state \(active\/disable\) is corrupted$/],
  [212, '\0\0\0\0', /^Keyslot 0 iteration count is zero$/],
  [248, '\0\0\0\0', /^Keyslot 0 is overlapping with the LUKS header$/],
  [252, '\0\0\0\x07', /^Keyslot 0 is corrupted \(stripes 7 != 4000\)$/],
  [296, '\0\0\0\x09', /^Keyslots 0 and 1 are overlapping in the header$/],
  [584, '\x7f\0\0\0', /^Keyslot 7 is overlapping with the encrypted payload$/],
];

for (const [at, bytes, message] of WRONG)
  test(`a header that is wrong at ${at} is refused: ${message.source}`, async () => {
    const content = Buffer.from(await sound);
    content.write(bytes, at, 'latin1');
    assert.throws(() => parseHeader(content), { name: 'BlockError', message });
  });

test('a payload behind the end of the file is an error', async () => {
  const shelf = await newShelf((await sound).subarray(0, 100_000));
  await assert.rejects(shelf.open('image', { driver: 'luks', 'key-secret': 'one' }), { errno: 'EIO' });
});

test('damaged headers are headers, or errors of ours', async () => {
  const header = (await sound).subarray(0, 1024);
  const below = seededBelow(7);
  for (let run = 0; run < 20_000; run++) {
    const bytes = Buffer.from(header);
    for (let i = 1 + below(4); i > 0; i--) bytes[below(592)] = below(256);
    try {
      const { slots, payloadOffset } = parseHeader(bytes);
      assert.ok(slots.every(({ keyOffset }) => keyOffset < payloadOffset));
    } catch (error) {
      assert.ok(error instanceof BlockError, String(error));
    }
  }
});
