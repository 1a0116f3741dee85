import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  commitImage,
  convertImage,
  createImage,
  hashImage,
  measureImage,
  rebaseImage,
  resizeImage,
} from '../../src/index.js';
import { given } from '../../src/base/given.js';
import { MiB, scratch } from './library-bed.js';

const QCOW2 = 'qcow2';

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

test('whole images are copied, layered and measured, and show what they did', async (t) => {
  const folder = scratch(t);
  const at = (name: string): string => join(folder, name);
  const content = Buffer.alloc(3 * MiB);
  content.fill(7, MiB, MiB + 100_000).fill(9, 2 * MiB + 512);
  writeFileSync(at('raw'), content);
  const hash = sha256(content);
  const raw = { filename: at('raw'), format: 'raw' };
  const base = { filename: at('base'), format: QCOW2 };
  const told: number[] = [];
  const options = { checksum: 'sha256', onProgress: (done: number) => void told.push(done) } as const;
  const copied = await convertImage(raw, base, options);
  assert.deepEqual(copied, { lengthBytes: content.length, checksum: hash });
  assert.equal(told.at(-1), content.length);
  const twice = await convertImage(
    [base, raw],
    { filename: at('twice'), format: 'raw' },
    { checksum: 'md5' },
  );
  assert.equal(twice.lengthBytes, 2 * content.length);
  assert.ok(readFileSync(at('twice')).equals(Buffer.concat([content, content])));

  const top = { filename: at('top'), format: QCOW2 };
  await convertImage(base, { ...top, backing: base });
  assert.ok(statSync(at('top')).size > statSync(at('base')).size / 2);
  await createImage({ ...top, sizeBytes: content.length, backing: base });
  const measured = await measureImage(top, { format: QCOW2 });
  assert.ok(measured.requiredBytes <= measured.fullyAllocatedBytes);
  assert.equal((await measureImage({ sizeBytes: 1000 }, { format: 'raw' })).requiredBytes, 1000);
  await rebaseImage(top, undefined);
  assert.equal(await hashImage(top), hash);
  await rebaseImage(top, { filename: base.filename, format: base.format });
  await commitImage(top);
  assert.equal(await hashImage(top), hash);
  assert.equal(await hashImage(base), hash);
  await resizeImage(top, 4 * MiB, {});
  assert.equal(await hashImage(top), sha256(Buffer.concat([content], 4 * MiB)));
});

/** One byte over and over. */
function rawImage(filename: string, lengthBytes: number, byte: number): { filename: string; format: string } {
  writeFileSync(filename, Buffer.alloc(lengthBytes, byte));
  return { filename, format: 'raw' };
}

test('a rebase keeps zeroes that only the lack of a backing file has shown, in every format', async (t) => {
  const folder = scratch(t);
  const at = (name: string): string => join(folder, name);
  const base = rawImage(at('base'), 4 * MiB, 7);
  const short = rawImage(at('short'), 1 * MiB, 8);
  const v2 = { format: QCOW2, options: { version: 'v2' } };
  for (const { format, options } of [v2, { format: QCOW2, options: {} }, { format: 'qed', options: {} }])
    for (const backing of [undefined, short]) {
      const image = { filename: at('image'), format };
      await createImage({ ...image, sizeBytes: 4 * MiB, options, ...given({ backing }) });
      const hash = await hashImage(image);
      await rebaseImage(image, base);
      assert.equal(await hashImage(image), hash, `${format} ${JSON.stringify(options)} ${backing?.filename}`);
    }
});

test('over a backing file a copy shows zeroes where the source has nothing and nothing below it', async (t) => {
  const folder = scratch(t);
  const at = (name: string): string => join(folder, name);
  const base = rawImage(at('base'), 3 * MiB, 7);
  const short = rawImage(at('short'), 2 * MiB, 8);
  const source = { filename: at('source'), format: QCOW2 };
  for (const format of [QCOW2, 'qed']) {
    await createImage({ ...source, sizeBytes: 4 * MiB });
    const copy = { filename: at('copy'), format };
    await convertImage(source, { ...copy, backing: base });
    assert.equal(await hashImage(copy), sha256(Buffer.alloc(4 * MiB)), format);
    // Of what its backing file has, the copy has none.
    await createImage({ ...source, sizeBytes: 4 * MiB, backing: short });
    await convertImage(source, { ...copy, backing: base });
    const shown = Buffer.concat([Buffer.alloc(2 * MiB, 7), Buffer.alloc(2 * MiB)]);
    assert.equal(await hashImage(copy), sha256(shown), format);
  }
});

test('wrong arguments and signals end work with an error that says so', async (t) => {
  const folder = scratch(t);
  const image = { filename: join(folder, 'image'), format: QCOW2 };
  await createImage({ ...image, sizeBytes: MiB });
  await assert.rejects(resizeImage(image, 512), { kind: 'invalid' });
  await assert.rejects(commitImage(image), {
    kind: 'invalid',
    message: 'Image does not have a backing file',
  });
  await assert.rejects(commitImage(image, { base: 'nothing' }), { kind: 'not-found' });
  const target = { filename: join(folder, 'target'), format: 'raw' };
  await assert.rejects(convertImage(image, target, { signal: AbortSignal.abort() }), { name: 'AbortError' });
  await assert.rejects(convertImage({ filename: join(folder, 'none') }, target), { kind: 'not-found' });
  const over = { ...target, format: QCOW2, backing: image };
  await assert.rejects(convertImage(image, over, { checksum: 'sha256' }), { kind: 'invalid' });
  assert.ok(existsSync(image.filename));
});
