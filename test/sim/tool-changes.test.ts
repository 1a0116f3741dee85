import assert from 'node:assert/strict';
import { test } from 'node:test';
import { partOf } from '../kit/amount.js';
import { COMMANDS, proveCommand, proveFaults } from './tool-changes.js';

/** A sample of known seeds, or from SEED on; `test/sim/tool-changes-main.ts --seed N --seeds N` runs more of them. */
const FIRST_SEED = Number(process.env['SEED'] ?? 1);
const SAMPLE = Number(process.env['SEEDS'] ?? partOf(3));

for (const command of COMMANDS) {
  test(`'img' dies while it does '${command}': the image is as before or as asked for`, async () => {
    for (let i = 0; i < SAMPLE; i++) assert.ok((await proveCommand(command, FIRST_SEED + i)).deaths > 0);
  });

  test(`'img ${command}' meets failures and full disks: the image is as before or as asked for`, async () => {
    for (let i = 0; i < SAMPLE; i++) assert.ok((await proveFaults(command, FIRST_SEED + i)).deaths > 0);
  });
}
