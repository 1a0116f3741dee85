import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createEngine } from '../../src/index.js';
import { withFolder } from '../kit/test-disk.js';

const MiB = 2 ** 20;

test('an engine that does not trust images opens no backing file outside their folders', () =>
  withFolder(async (folder) => {
    mkdirSync(join(folder, 'in'));
    const filename = join(folder, 'in', 'top.qcow2');
    for (const untrusted of [false, true]) {
      await using engine = await createEngine({ untrusted });
      for (const backing of [join(folder, 'base.raw'), join(folder, 'in', 'base.raw')]) {
        await engine.createImage({ filename: backing, format: 'raw', sizeBytes: MiB });
        await engine.createImage({
          filename,
          format: 'qcow2',
          sizeBytes: MiB,
          backing: { filename: backing, format: 'raw' },
        });
        const isOutside = backing === join(folder, 'base.raw');
        const adding = engine.execute('blockdev-add', {
          driver: 'qcow2',
          'node-name': 'top',
          file: { driver: 'file', filename },
        });
        if (untrusted && isOutside) {
          await assert.rejects(adding, /not in its folder/);
          continue;
        }
        await adding;
        await engine.execute('blockdev-del', { 'node-name': 'top' });
      }
    }
  }));
