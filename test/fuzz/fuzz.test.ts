import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';

const SEED = process.env['FUZZ_SEED'] ?? '1';
const RUNS = process.env['FUZZ_RUNS'] ?? '96';

for (const side of ['nbd-server', 'nbd-client', 'vhost-user', 'parsers'])
  test(`a sample of the ${side} with peers who say anything`, async () => {
    const script = join(import.meta.dirname, 'main.ts');
    const args = ['--import', 'tsx', script, side, '--seed', SEED, '--runs', RUNS];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk: Buffer) => (output += chunk.toString()));
    const code = await new Promise((resolve) => child.once('close', resolve));
    assert.equal(code, 0, output);
  });
