import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { ioMain } from '../../src/programs/io/main.js';
import { toolAnswer } from '../kit/tool-answer.js';
import { untilTimed } from './processor-time.js';

/** Tools on encrypted images: QEMU's, and ours in this process. They succeed, and what they print is answered. */

export const SECRETS = ['s', 't', 'bad'].flatMap((id) => ['--object', `secret,id=${id},data=password-${id}`]);

export function qemu(tool: 'img' | 'io', ...args: string[]): string {
  const done = untilTimed(() => spawnSync(`qemu-${tool}`, args, { encoding: 'utf8', timeout: 120_000 }));
  const text = done.stdout + done.stderr;
  assert.equal(done.status, 0, `qemu-${tool} ${args.join(' ')}: ${text}`);
  return text;
}

export async function ours(tool: 'img' | 'io', ...args: string[]): Promise<string> {
  const main = tool === 'img' ? imgMain : ioMain;
  const answer = await toolAnswer((out) => main(args, out, createRealHost(), allDrivers));
  assert.equal(answer.code, 0, `${tool} ${args.join(' ')}: ${answer.stdout}${answer.stderr}`);
  return answer.stdout + answer.stderr;
}
