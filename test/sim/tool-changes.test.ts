import { randomInt } from 'node:crypto';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { partOf } from '../kit/amount.js';
import { COMMANDS, proveCommand, proveFaults } from './tool-changes.js';

/** A sample, drawn anew each time; `node --import tsx test/sim/tool-changes-main.ts --help` has more of them. */
const SAMPLE = Number(process.env['SEEDS'] ?? partOf(3));

for (const command of COMMANDS) {
  test(`'img' dies while it does '${command}': the image is as before or as asked for`, async () => {
    for (let i = 0; i < SAMPLE; i++)
      assert.ok((await proveCommand(command, randomInt(1, 2 ** 31))).deaths > 0);
  });

  test(`'img ${command}' meets failures and full disks: the image is as before or as asked for`, async () => {
    for (let i = 0; i < SAMPLE; i++)
      assert.ok((await proveFaults(command, randomInt(1, 2 ** 31))).deaths > 0);
  });
}
