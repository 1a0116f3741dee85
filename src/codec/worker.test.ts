import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { BlockError } from '../base/error.js';
import { createRealHost } from '../host/real.js';
import type { ComputeFunction } from '../host/compute.js';
import * as codec from './index.js';

const { compute } = createRealHost();
after(() => compute.close());

const functions = Object.values(codec).filter(
  (each): each is ComputeFunction<never> => typeof each === 'object' && 'run' in each,
);

/** Enough for each of them. */
const PARAMETERS = {
  windowBits: 12,
  ...{ key: Buffer.from('0123456789abcdef0123456789ABCDEF'), direction: 'encrypt', sectorBytes: 512 },
  ...{ firstSector: 5, initialVector: 'plain64', hash: 'sha256', salt: Buffer.from('salt'), iterations: 3 },
  chunkBytes: 100,
} as const;

for (const each of functions)
  test(`threads know ${each.name}, and answer what it answers here`, async () => {
    const inputs = {
      'inflate-raw': Buffer.from('2b492d2e29218001', 'hex'),
      'inflate-zlib': Buffer.from('789c2bc849cccc030006480215', 'hex'),
      'expand-adc': Buffer.of(0x82, 0x61, 0x62, 0x63, 0x43, 0, 2),
      bunzip2: Buffer.from('QlpoOTFBWSZTWWUO6esAAAIBgCAlQAAgACGDQZoLDHF3JFOFCQZQ7p6w', 'base64'),
      'zstd-decompress': Buffer.from('KLUv/QBYYQAAYWJjYWJjYWJjYWJj', 'base64'),
    } as Record<string, Buffer>;
    const input = inputs[each.name] ?? Buffer.alloc(1024, 'plain');
    const [here, there] = [Buffer.alloc(1024), Buffer.alloc(1024)];
    const task = { function: each, input, parameters: PARAMETERS as never };
    await each.prepare?.();
    const outcome = async (run: () => number | Promise<number>): Promise<unknown> => {
      try {
        return await run();
      } catch (error) {
        assert.ok(error instanceof BlockError && error.kind === 'unsupported', String(error));
        return error.message;
      }
    };
    const expected = await outcome(() => each.run(input, here, PARAMETERS as never));
    assert.deepEqual(await outcome(() => compute.run({ ...task, output: there })), expected);
    assert.deepEqual(there, here);
  });
