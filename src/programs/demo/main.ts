import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { createImage } from '../../block/create.js';
import type { Host } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { humanBytes } from '../../view/progress-meter.js';
import { Operations } from './operations.js';
import { imagesIn, makePoints, showPage } from './page.js';
import { Bench, DemoDaemon, DEVICE, DISK_SOCKET, QMP_SOCKET } from './session.js';
import { Show } from './show.js';
import { readRecords, RecordWriter } from './writer.js';

const DISK_BYTES = 128 * 1024 * 1024;

/** Between two records of a guest that somebody looks at. */
const LEISURE_MS = 5;

export const HELP = `usage: livedisk demo [--once | --web] [--keep]

Builds the chain [A] <-- [B] <-- [C] <-- [D] in a fresh folder, with a guest that writes to it all the time, and
snapshots, streams, backs up, commits and mirrors it meanwhile. Then checks every image and every record.

  --once   end by itself; without it the daemon stays for you to look around, until Ctrl-C
  --web    a page in the browser instead: the guest's disk with points in time, to be changed by clicking
  --keep   leave the folder behind (without --once or --web it always stays)
`;

/** `livedisk demo`. */
export async function demoMain(args: readonly string[]): Promise<number> {
  const unknown = args.find((arg) => !['--once', '--web', '--keep', '--help', '-h'].includes(arg));
  if (unknown !== undefined) throw new BlockError('invalid', `demo: unknown argument '${unknown}'`);
  if (args.includes('--help') || args.includes('-h')) {
    process.stdout.write(HELP);
    return 0;
  }
  const [once, web] = [args.includes('--once'), args.includes('--web')];
  if (once && web) throw new BlockError('invalid', 'demo: --web stays until Ctrl-C, and --once does not');
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-demo-'));
  const cleanUp = (): void => {
    if ((once || web) && !args.includes('--keep')) rmSync(folder, { recursive: true, force: true });
    else process.stdout.write(`\nThe files are in ${folder}\n`);
  };
  const stopListening = onInterrupt(cleanUp);
  try {
    const host = createRealHost();
    if (web) await performOnPage(host, folder, stopListening);
    else await perform(host, folder, once, stopListening);
    return 0;
  } finally {
    stopListening();
    cleanUp();
  }
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Ends the program at a signal, cleaning up when the daemon is gone; until the answer is called. */
function onInterrupt(cleanUp: () => void): () => void {
  const end = (_signal: string, number: number): void => {
    // Ends the daemon, which is listened for first.
    process.once('exit', cleanUp);
    process.exit(128 + number);
  };
  for (const signal of SIGNALS) process.once(signal, end);
  return () => {
    for (const signal of SIGNALS) process.removeListener(signal, end);
  };
}

/** The same guest and disk, changed by whoever has the page. */
async function performOnPage(host: Host, folder: string, beforeStay: () => void): Promise<void> {
  const show = new Show();
  const bench = new Bench(host);
  await createImage(bench.opener, join(folder, 'a.qcow2'), 'qcow2', { sizeBytes: DISK_BYTES });
  const daemon = await DemoDaemon.start(host, folder, 'a.qcow2');
  try {
    const { guest, close } = await startGuest(host, bench, folder, LEISURE_MS);
    show.line(`A guest writes numbered 4 KiB records to its ${humanBytes(DISK_BYTES)} disk, all the time.`);
    await Promise.race([makePoints(host, daemon, show), failure(guest.failed)]);
    beforeStay();
    await Promise.race([showPage(host, folder, show, interruption(daemon)), failure(guest.failed)]);
    show.title('the guest stops; is everything there?');
    await guest.stop();
    await verifyDisk(show, guest.disk, guest);
    await close();
    await daemon.quit();
    for (const image of imagesIn(folder)) await checkImage(show, bench, folder, image);
  } finally {
    daemon.kill();
  }
}

async function startGuest(
  host: Host,
  bench: Bench,
  folder: string,
  pauseMs?: number,
): Promise<{ guest: RecordWriter; close: () => Promise<void> }> {
  const server = { type: 'unix', path: join(folder, DISK_SOCKET) };
  const { disk, close } = await bench.open({ driver: 'nbd', server, export: DEVICE }, false);
  const guest = new RecordWriter(host, disk);
  await guest.fill();
  guest.start(pauseMs);
  return { guest, close };
}

/** Until a signal, or the daemon's end. */
function interruption(daemon: DemoDaemon): Promise<void> {
  return new Promise((resolve) => {
    process.once('SIGINT', () => resolve());
    process.once('SIGTERM', () => resolve());
    void daemon.exited.then(() => resolve());
  });
}

async function perform(host: Host, folder: string, once: boolean, beforeStay: () => void): Promise<void> {
  const show = new Show();
  const bench = new Bench(host);
  show.line(`Everything is in ${folder}`);
  await createImage(bench.opener, join(folder, 'a.qcow2'), 'qcow2', { sizeBytes: DISK_BYTES });
  const daemon = await DemoDaemon.start(host, folder, 'a.qcow2');
  try {
    const { guest, close } = await startGuest(host, bench, folder);
    show.line(`A guest writes numbered 4 KiB records to its ${humanBytes(DISK_BYTES)} disk, all the time.`);
    const operations = new Operations(host, daemon, show, guest);
    await Promise.race([operations.runAll(), failure(guest.failed)]);
    show.title('the guest stops; is everything there?');
    await guest.stop();
    await verifyDisk(show, guest.disk, guest);
    for (const copy of operations.copies) await verifyCopy(show, bench, folder, guest, copy);
    const images = ['a', 'b', 'c', 'd', 'e', 'f', 'backup', 'copy'];
    if (!once && process.stdout.writable) {
      show.title('the guest writes on, and has a chain again');
      guest.start(LEISURE_MS);
      await Promise.race([operations.rebuildChain(), failure(guest.failed)]);
      images.push('g', 'h', 'i');
      beforeStay();
      await Promise.race([stay(show, folder, daemon), failure(guest.failed)]);
      await guest.stop();
    }
    await close();
    await daemon.quit();
    for (const image of images) await checkImage(show, bench, folder, `${image}.qcow2`);
    if (once) show.line(`\nTo look around yourself: npm start (or livedisk demo) without --once.`);
  } finally {
    daemon.kill();
  }
}

/** Rejects when the promise does, and never resolves. */
async function failure(promise: Promise<void>): Promise<never> {
  await promise;
  return new Promise<never>(() => undefined);
}

type Disk = Parameters<typeof readRecords>[0];

async function verifyDisk(show: Show, disk: Disk, guest: RecordWriter): Promise<void> {
  const found = await readRecords(disk);
  found.forEach((number, block) => {
    const expected = guest.log.at(block, guest.completed);
    if (number !== expected)
      throw new BlockError('corrupt', `block ${block} holds record ${number}, not ${expected}`);
  });
  show.line(`    the disk holds all ${guest.completed} records as the guest wrote them`);
}

/** A copy must hold the disk of one single moment, and of the right one. */
async function verifyCopy(
  show: Show,
  bench: Bench,
  folder: string,
  guest: RecordWriter,
  copy: Operations['copies'][number],
): Promise<void> {
  const file = { driver: 'file', filename: join(folder, copy.filename) };
  const { disk, close } = await bench.open({ driver: 'qcow2', file }, true);
  const { first, last } = guest.log.momentsOf(await readRecords(disk));
  await close();
  if (last < copy.notBefore || first > copy.notAfter) {
    const range = `between ${copy.notBefore} and ${copy.notAfter}`;
    throw new BlockError('corrupt', `${copy.filename} is of record ${first}, not ${range}`);
  }
  show.line(`    ${copy.filename} is of ${copy.what}: record ${first}, none after it`);
}

async function checkImage(show: Show, bench: Bench, folder: string, image: string): Promise<void> {
  const file = { driver: 'file', filename: join(folder, image) };
  const { disk, close } = await bench.open({ driver: 'qcow2', file, backing: null }, true);
  const result = await disk.node.instance.check?.('none', () => undefined);
  await close();
  assert(result, 'images of the demo can be checked');
  if (result.corruptions > 0 || result.leaks > 0)
    throw new BlockError(
      'corrupt',
      `${image}: ${result.corruptions} errors, ${result.leaks} leaked clusters`,
    );
  show.line(`    ${image}: no errors`);
}

/** How to go on from here, until Ctrl-C; the chain is drawn anew when a job has ended or the disk has another layer. */
async function stay(show: Show, folder: string, daemon: DemoDaemon): Promise<void> {
  writeLauncher(join(folder, 'livedisk'));
  show.title('the guest writes on; try these, and end it with Ctrl-C');
  show.line(`    cd ${folder}`);
  show.line(`    ./livedisk shell ${QMP_SOCKET} --wait j block-stream device=node-I job-id=j`);
  show.line(`    ./livedisk top ${QMP_SOCKET}`);
  show.line(`    ./livedisk web ${QMP_SOCKET} --allow .`);
  show.line(`\nAn NBD client is a guest, too: nbd+unix:///${DEVICE}?socket=${DISK_SOCKET}\n`);
  let drawn = Promise.resolve();
  daemon.onEvent(({ event, data }) => {
    if (event !== 'BLOCK_JOB_COMPLETED' && event !== 'BLOCK_JOB_CANCELLED') return;
    drawn = drawn
      .then(() => {
        const how = event === 'BLOCK_JOB_CANCELLED' ? 'was cancelled' : endOf(data['error']);
        show.title(`${data['type'] as string} ${data['device'] as string} ${how}`);
        return show.chain(daemon);
      })
      // The daemon may be on its way out.
      .catch(() => undefined);
  });
  await interruption(daemon);
  await drawn;
  show.line();
}

function endOf(error: unknown): string {
  return typeof error === 'string' ? `failed: ${error}` : 'has ended';
}

/** This program by a short name. */
function writeLauncher(path: string): void {
  const words = [process.execPath, process.argv[1] ?? 'livedisk'].map((word) => `'${word}'`);
  writeFileSync(path, `#!/bin/sh\nexec ${words.join(' ')} "$@"\n`, { mode: 0o755 });
}
