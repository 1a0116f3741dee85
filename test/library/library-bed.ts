import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { createEngine, type CreateEngineProperties, type Engine } from '../../src/index.js';

export const MiB = 1024 * 1024;
export const DISK_BYTES = 8 * MiB;

export function scratch(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-library-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** An engine with one qcow2 image, node 'disk'. */
export async function engineWithDisk(
  t: TestContext,
  properties: CreateEngineProperties = {},
): Promise<{ engine: Engine; folder: string; filename: string }> {
  const folder = scratch(t);
  const engine = await createEngine(properties);
  t.after(() => engine.close());
  const filename = join(folder, 'disk.qcow2');
  await engine.createImage({ filename, format: 'qcow2', sizeBytes: DISK_BYTES });
  await addDisk(engine, filename);
  return { engine, folder, filename };
}

export async function addDisk(engine: Engine, filename: string): Promise<void> {
  await engine.addNode({ driver: 'qcow2', 'node-name': 'disk', file: { driver: 'file', filename } });
}

/** What another engine finds in the image; fails while somebody else has it. */
export async function contentOf(filename: string, lengthBytes: number): Promise<Buffer> {
  const engine = await createEngine();
  try {
    await addDisk(engine, filename);
    const disk = await engine.openDisk('disk', { writable: true });
    const bytes = Buffer.alloc(lengthBytes);
    await disk.read(0, bytes);
    return bytes;
  } finally {
    await engine.close();
  }
}
