import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { partOf } from '../kit/amount.js';
import { sourceWords } from '../kit/program.js';

const { FUZZ_SEED: SEED } = process.env;
const RUNS = process.env['FUZZ_RUNS'] ?? String(partOf(160));

/** So many conversations with one side; all must pass. */
async function converse(side: string, seed: string | undefined, runs: string): Promise<void> {
  const seeded = seed === undefined ? [] : ['--seed', seed];
  const args = sourceWords('test/fuzz/main.ts', side, ...seeded, '--runs', runs);
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const code = await new Promise((resolve) => child.once('close', resolve));
  assert.equal(code, 0, output);
}

for (const side of ['nbd-server', 'nbd-client', 'vhost-user', 'parsers'])
  test(`a sample of the ${side} with peers who say anything`, () => converse(side, SEED, RUNS));

test('memory of a front-end that says where rings are not, after new memory, is let go of', () =>
  converse('vhost-user', '1435760625', '1'));
