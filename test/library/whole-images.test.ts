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
