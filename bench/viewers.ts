import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { get, type IncomingMessage } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PROGRAM } from './servers.js';

/**
 * What the page's viewers cost a daemon: `node --import tsx bench/viewers.ts`. A livedisk with a chain of eight layers and
 * no guest is watched by nobody, by one and by ten (scripts that read the stream, no browser); told is the processor's
 * time of the daemon and of `livedisk web`, as a part of one core.
 */

const SECONDS = 15;
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

async function measure(folder: string): Promise<void> {
  const image = (i: number): string => `${i}.qcow2`;
  for (let i = 0; i < 8; i++) {
    const backing = i === 0 ? [] : ['-b', image(i - 1), '-F', 'qcow2'];
    spawnSync(process.execPath, [PROGRAM, 'img', 'create', '-f', 'qcow2', ...backing, image(i), '1G'], {
      cwd: folder,
    });
  }
  const socket = join(folder, 'qmp.sock');
  const node = `driver=qcow2,node-name=top,file.driver=file,file.filename=${image(7)}`;
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
    for (const viewers of [0, 1, 10]) {
      for (; watching < viewers; watching++) (await ask(url, '/api/events', { cookie })).resume();
      await sleep(3000);
      const before = [daemon, web].map(processorSeconds);
      await sleep(SECONDS * 1000);
      const [ofDaemon = 0, ofWeb = 0] = [daemon, web].map(
        (one, i) => (100 * (processorSeconds(one) - (before[i] ?? 0))) / SECONDS,
      );
      console.log(
        `${viewers} viewers: ${ofDaemon.toFixed(1)}% of a core in the daemon, ${ofWeb.toFixed(1)}% in livedisk web`,
      );
    }
  } finally {
    daemon.kill('SIGKILL');
    web.kill('SIGKILL');
  }
}

const folder = mkdtempSync('/tmp/livedisk-viewers-');
try {
  await measure(folder);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.exit(0);
