import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test, type TestContext } from 'node:test';
import { type CommandBlock, commandBlocks, isShown } from '../kit/document-blocks.js';
import { PROGRAM, skipWithout } from './daemon.js';

/**
 * Documents with commands that are run as they stand: each ```sh block in a shell that stops at the first failure, all of
 * a document in one folder. UPDATE=1 writes their pictures anew.
 */

const DOCS = resolve(import.meta.dirname, '../../docs');
const skip = existsSync(PROGRAM) ? false : 'not built: dist/ (npm run build)';
const LONGEST_MS = 120_000;

const root = mkdtempSync(join(tmpdir(), 'livedisk-documents-'));
after(() => rmSync(root, { recursive: true, force: true }));
const bin = join(root, 'bin');
mkdirSync(bin);
writeFileSync(join(bin, 'livedisk'), `#!/bin/sh\nexec '${process.execPath}' '${PROGRAM}' "$@"\n`);
chmodSync(join(bin, 'livedisk'), 0o755);
// For programs that import 'livedisk'.
mkdirSync(join(root, 'node_modules'));
symlinkSync(resolve(DOCS, '..'), join(root, 'node_modules/livedisk'));

/** Numbers of the programs that blocks left in the background, by their -pidfile. */
function backgroundOf(folder: string): number[] {
  return readdirSync(folder)
    .filter((name) => name.endsWith('.pid'))
    .flatMap((name) => {
      try {
        return [Number(readFileSync(join(folder, name), 'utf8'))];
      } catch {
        // It has just ended.
        return [];
      }
    });
}

function newFolder(t: TestContext): string {
  const folder = mkdtempSync(join(root, 'run-'));
  t.after(() => {
    for (const pid of backgroundOf(folder))
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has ended.
      }
  });
  return folder;
}

interface Ran {
  status: number | null;
  output: string;
}

function environment(folder: string): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${bin}:${process.env['PATH']}`, TMPDIR: folder, NO_COLOR: '1' };
}

function shell(folder: string, commands: string): Ran {
  const { status, stdout } = spawnSync('sh', ['-euc', `exec 2>&1\n${commands}`], {
    cwd: folder,
    encoding: 'utf8',
    timeout: LONGEST_MS,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: environment(folder),
  });
  return { status, output: stdout };
}

/** Of what goes on: Ctrl-C is pressed once it has printed `until`. */
async function shellUntil(folder: string, commands: string, until: string): Promise<Ran> {
  // The shell outlives Ctrl-C, to tell how its program has ended.
  const child = spawn('sh', ['-euc', `exec 2>&1\ntrap : INT\n${commands}`], {
    cwd: folder,
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: environment(folder),
  });
  const press = (signal: NodeJS.Signals): void => {
    if (child.pid !== undefined && child.exitCode === null) process.kill(-child.pid, signal);
  };
  const limit = setTimeout(() => press('SIGKILL'), LONGEST_MS);
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => {
    const had = output.includes(until);
    output += chunk.toString();
    if (!had && output.includes(until)) press('SIGINT');
  });
  const status = await new Promise<number | null>((done) => child.once('close', done));
  clearTimeout(limit);
  assert.ok(output.includes(until), `it never prints '${until}':\n${output}`);
  return { status, output };
}

/** But for sizes on disk, which a file system decides, and what is drawn by them. */
function comparablePicture(svg: string): string {
  return svg
    .replace(/\d+(\.\d+)? ([KMG]iB|B)( \d+%)?/g, 'SIZE')
    .replace(/(class="part"[^>]*? width=)"\d+"/g, '$1""')
    .replaceAll(/#block\d+/g, '#block')
    .replaceAll(/\/\S*\/(?=[^/\s"<]+\.(qcow2|nbd|sock))/g, '');
}

function comparePicture(folder: string, picture: string): void {
  const drawn = join(folder, 'picture.svg');
  const { status, output } = shell(folder, 'livedisk show --svg picture.svg ./qmp.sock');
  assert.equal(status, 0, output);
  const path = join(DOCS, picture);
  const text = readFileSync(drawn, 'utf8').replaceAll(folder, '.');
  rmSync(drawn);
  const same = existsSync(path) && comparablePicture(readFileSync(path, 'utf8')) === comparablePicture(text);
  if (!same && process.env['UPDATE'] === '1') writeFileSync(path, text);
  else assert.ok(same, `${picture} is not what is there: npm run docs:pictures`);
}

async function runBlock(folder: string, block: CommandBlock): Promise<void> {
  const { commands, until } = block;
  const { status, output } =
    until === undefined ? shell(folder, commands) : await shellUntil(folder, commands, until);
  assert.equal(status, 0, `${block.title}: status ${status}\n${block.commands}\n${output}`);
  if (block.output !== undefined)
    assert.ok(isShown(block.output, output), `${block.title} prints\n${output}\nand not\n${block.output}`);
  for (const picture of block.pictures.filter((one) => one.endsWith('.svg'))) comparePicture(folder, picture);
}

const DOCUMENTS: Readonly<Record<string, readonly string[]>> = {
  'TUTORIAL.md': [],
  'RECIPES.md': [],
  'POINTS.md': [],
  'SCREEN.md': ['curl'],
  'SESSIONS.md': [],
  'TRACKING.md': [],
  'JOBS-THAT-SURVIVE.md': [],
  'FINISH-BY.md': [],
  'FLEECING.md': [],
  'DRY-RUN.md': [],
  'TAKEOVER.md': ['qemu-system-x86_64'],
};

for (const [document, programs] of Object.entries(DOCUMENTS))
  test(`the commands of ${document} do what it says`, { skip }, async (t) => {
    if (skipWithout(t, ...programs)) return;
    const blocks = commandBlocks(readFileSync(join(DOCS, document), 'utf8'));
    assert.ok(blocks.some(({ notRun }) => notRun === undefined));
    let folder = '';
    for (const block of blocks) {
      if (block.notRun !== undefined) continue;
      if (block.isFresh || folder === '') folder = newFolder(t);
      await runBlock(folder, block);
    }
  });
