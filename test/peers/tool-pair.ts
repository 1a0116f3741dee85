import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { ioMain } from '../../src/programs/io/main.js';
import { type ToolAnswer, toolAnswer } from '../kit/tool-answer.js';
import { connectUnix, scratch } from './daemon.js';
import { untilTimed } from './processor-time.js';

const MAX_OUTPUT_BYTES = 64 * 1024 * 1024;
const SIDES = ['ours', 'theirs'] as const;

/** The same folder twice: in one work livedisk's tools (in this process), in the other QEMU's. */
export class ToolPair {
  readonly #folder: string;

  constructor(context: TestContext, folder = scratch(context)) {
    this.#folder = folder;
    const start = process.cwd();
    context.after(() => process.chdir(start));
    for (const side of SIDES) mkdirSync(join(this.#folder, side));
  }

  path(side: (typeof SIDES)[number], name: string): string {
    return join(this.#folder, side, name);
  }

  /** Runs lines of shell in both folders. */
  prepare(...lines: string[]): void {
    for (const side of SIDES) this.shell(side, lines.join('\n'));
  }

  /** The same in one of them, of which the other gets a copy: also what is drawn or has a date is the same. */
  prepareOnce(...lines: string[]): void {
    this.shell('ours', lines.join('\n'));
    // Both are copies, without holes: what has just been written may have some that come and go.
    this.shell('theirs', 'cp -a --sparse=never ../ours/. .');
    this.shell('ours', 'rm -r ./* && cp -a --sparse=never ../theirs/. .');
  }

  shell(side: (typeof SIDES)[number], script: string): string {
    const cwd = join(this.#folder, side);
    const done = untilTimed(() => spawnSync('sh', ['-ec', script], { cwd, encoding: 'utf8' }));
    assert.equal(done.status, 0, `${script}: ${done.stderr}`);
    return done.stdout;
  }

  /** The same lines of shell in both folders say the same. */
  alikeInShell(script: string): void {
    assert.equal(this.shell('ours', script), this.shell('theirs', script), script);
  }

  /** The same line of "img ..." or "io ..." to both, words quoted by '; `adapt` says what may differ. */
  async alike(line: string, adapt: (text: string) => string = (text) => text): Promise<void> {
    const [expected, actual] = await this.answers(line);
    const comparable = ({ code, stdout, stderr }: ToolAnswer): ToolAnswer => ({
      code,
      stdout: adapt(withoutMeasures(stdout)),
      stderr: adapt(stderr.trimEnd()),
    });
    const ours = { ...actual, stderr: actual.stderr.replace(CUT_OFF, '') };
    assert.deepEqual(comparable(ours), comparable(expected), line);
  }

  /** QEMU's answer and ours. {SIDE} in the line is the name of the side's folder. */
  async answers(line: string): Promise<[ToolAnswer, ToolAnswer]> {
    const words = (side: string): string[] =>
      [...line.replaceAll('{SIDE}', side).matchAll(/'([^']*)'|(\S+)/g)].map(
        (match) => match[1] ?? match[2] ?? '',
      );
    const [tool, ...args] = words('theirs');
    process.chdir(join(this.#folder, 'theirs'));
    const how = { encoding: 'utf8', timeout: 60_000, input: '', maxBuffer: MAX_OUTPUT_BYTES } as const;
    const done = untilTimed(() => spawnSync(`qemu-${tool}`, args, how));
    process.chdir(join(this.#folder, 'ours'));
    const main = tool === 'img' ? imgMain : ioMain;
    const actual = await toolAnswer((out) => main(words('ours').slice(1), out, createRealHost(), allDrivers));
    return [{ code: done.status, stdout: done.stdout, stderr: done.stderr }, actual];
  }
}

/** What livedisk alone warns of. */
const CUT_OFF = /^qemu-\w+: warning: '.*' is cut off: .*\n/gm;

/** Times, rates, and disk sizes, which depend on the file system. */
function withoutMeasures(text: string): string {
  return text
    .replace(/ops; .*$/gm, 'ops')
    .replace(/^disk size: .*$/gm, 'disk size: x')
    .replace(/"actual-size": \d+/g, '"actual-size": 0');
}

/** A file as the one export of an nbdkit that ends with the test. */
export async function serve(context: TestContext, socket: string, file: string): Promise<void> {
  const server = spawn('nbdkit', ['-f', '-U', socket, 'file', file], { stdio: 'ignore' });
  context.after(() => server.kill('SIGKILL'));
  for (let tries = 0; tries < 400; tries++) {
    try {
      (await connectUnix(socket)).destroy();
      return;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }
  throw new Error('nbdkit does not listen');
}
