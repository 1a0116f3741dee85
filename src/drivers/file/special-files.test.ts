import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { createRealHost } from '../../host/real.js';
import { TestBed, withFolder } from '../../../test/kit/test-disk.js';
import { fileDriver } from './index.js';

test('what is no file is refused, without opening it', () =>
  withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), [fileDriver], folder);
    const path = (name: string): string => join(folder, name);
    assert.equal(spawnSync('mkfifo', [path('fifo')]).status, 0);
    mkdirSync(path('folder'));
    const server = createServer().listen(path('socket'));
    const cases: ReadonlyArray<[string, string, string]> = [
      // A FIFO that nobody writes keeps waiting whoever opens it to read.
      [path('fifo'), 'regular', 'regular'],
      [path('socket'), 'ENXIO', 'ENXIO'],
      [path('folder'), 'regular', 'EISDIR'],
      ['/dev/null', 'regular', 'regular'],
      ['/dev/zero', 'regular', 'regular'],
    ];
    const messages = (filename: string): Record<string, string> => ({
      regular: `'file' driver requires '${filename}' to be a regular file`,
      ENXIO: `Could not open '${filename}': No such device or address`,
      EISDIR: `Could not open '${filename}': Is a directory`,
    });
    for (const [filename, reading, writing] of cases) {
      for (const [readOnly, which] of [
        [true, reading],
        [false, writing],
      ] as const) {
        const opened = bed.open({ driver: 'file', filename }, { readOnly });
        await assert.rejects(opened, { message: messages(filename)[which] });
      }
      await assert.rejects(fileDriver.createFile?.(bed.host, filename, 4096) ?? Promise.resolve());
    }
    assert.equal(bed.graph.nodes.size, 0);
    server.close();
  }));
