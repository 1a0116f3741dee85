import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { get, type IncomingMessage } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createImage } from '../src/library/whole-images.js';
import { PROGRAM } from './servers.js';

/**
 * What the page's viewers cost a daemon: `node --import tsx bench/viewers.ts [LAYERS]...`. A livedisk with a chain of so many
 * layers (8) and no guest is watched by nobody, by one and by ten (scripts that read the stream, no browser); told is the
 * processor's time of the daemon and of `livedisk web`, as a part of one core.
 */

const GiB = 1024 ** 3;
const LAYERS = 8;
const SECONDS = 30;
/** For the first look, and for a map of the disk, which is read once. */
const SETTLE_SECONDS = 10;
const TICKS_A_SECOND = 100;

/** User and system time, in seconds. */
function processorSeconds({ pid }: ChildProcess): number {
  const [, rest = ''] = /\) (.*)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? [];
  const fields = rest.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_A_SECOND;
}

async function firstLine(child: ChildProcess): Promise<string> {
  const [chunk] = (await once(child.stdout ?? child, 'data')) as [Buffer];
  return chunk.toString().trim();
}

function ask(url: URL, path: string, headers: Record<string, string> = {}): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    get({ host: url.hostname, port: url.port, path, headers }, resolve).on('error', reject);
  });
}

/** Images that hold nothing; the topmost one. */
async function makeChain(folder: string, layers: number): Promise<string> {
  const path = (layer: number): string => join(folder, `${layer}.qcow2`);
  for (let layer = 0; layer < layers; layer++)
    await createImage({
      ...{ filename: path(layer), format: 'qcow2', sizeBytes: GiB },
      ...(layer > 0 && { backing: { filename: path(layer - 1), format: 'qcow2' } }),
    });
  return path(layers - 1);
}

async function measure(folder: string, layers: number): Promise<void> {
  const image = await makeChain(folder, layers);
  const socket = join(folder, 'qmp.sock');
  const node = `driver=qcow2,node-name=top,file.driver=file,file.filename=${image}`;
  const daemon = spawn(
    process.execPath,
    [
      ...[PROGRAM, 'run', '-blockdev', node, '-device', 'virtio-blk,drive=top,id=virtio0'],
      ...['-qmp', `unix:${socket},server=on,wait=off`],
    ],
    { cwd: folder, stdio: 'inherit' },
  );
  const web = spawn(process.execPath, [PROGRAM, 'web', socket], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    const url = new URL(await firstLine(web));
    const login = await ask(url, `/${url.search}`);
    const cookie = login.headers['set-cookie']?.[0]?.split(';')[0] ?? '';
    let watching = 0;
    let looks = 0;
    const watch = async (): Promise<void> => {
      const stream = await ask(url, '/api/events', { cookie });
      if (watching++ > 0) return void stream.resume();
      stream.on(
        'data',
        (chunk: Buffer) => (looks += chunk.toString('latin1').split('event: state').length - 1),
      );
    };
    for (const viewers of [0, 1, 10]) {
      while (watching < viewers) await watch();
      await sleep(SETTLE_SECONDS * 1000);
      const before = [daemon, web].map(processorSeconds);
      const looksBefore = looks;
      await sleep(SECONDS * 1000);
      const [ofDaemon = 0, ofWeb = 0] = [daemon, web].map(
        (one, i) => (100 * (processorSeconds(one) - (before[i] ?? 0))) / SECONDS,
      );
      console.log(
        `${layers} layers, ${viewers} viewers: ${ofDaemon.toFixed(1)}% of a core in the daemon, ${ofWeb.toFixed(1)}% in livedisk web, ${looks - looksBefore} looks`,
      );
    }
  } finally {
    daemon.kill('SIGKILL');
    web.kill('SIGKILL');
  }
}

for (const layers of process.argv.length > 2 ? process.argv.slice(2).map(Number) : [LAYERS]) {
  const folder = mkdtempSync('/tmp/livedisk-viewers-');
  try {
    await measure(folder, layers);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
process.exit(0);
