import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { FlushedRecords, RECORDS_DISK_BYTES as DISK_BYTES } from './flushed-records.js';
import { SmallNbd } from './small-nbd.js';

const KILLS = Number(process.env['KILLS'] ?? 12);
/** Changes the chain on and on: what it does next depends on what is there. */
class Operator {
  #count: number;
  readonly #folder: string;

  constructor(folder: string, count: number) {
    this.#folder = folder;
    this.#count = count;
  }

  get count(): number {
    return this.#count;
  }

  async step(daemon: Daemon): Promise<void> {
    const number = ++this.#count;
    const top = await topOf(daemon);
    const id = `j${number}`;
    switch (number % 4) {
      case 1:
      case 2:
        await daemon.execute('blockdev-snapshot-sync', {
          ...{ 'node-name': top, 'snapshot-node-name': `n${number}`, format: 'qcow2' },
          'snapshot-file': join(this.#folder, `n${number}.qcow2`),
        });
        return;
      case 3:
        await daemon.execute('block-stream', { 'job-id': id, device: top });
        await daemon.event('BLOCK_JOB_COMPLETED', { device: id });
        return;
      default:
        return this.#mirror(daemon, top, id);
    }
  }

  async #mirror(daemon: Daemon, top: string, id: string): Promise<void> {
    const path = join(this.#folder, `${id}.qcow2`);
    run(this.#folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', path, String(DISK_BYTES));
    const file = { driver: 'file', filename: path };
    await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': `m${id}`, file });
    await daemon.execute('blockdev-mirror', { 'job-id': id, device: top, target: `m${id}`, sync: 'full' });
    await daemon.event('BLOCK_JOB_READY', { device: id });
    await daemon.execute('block-job-complete', { device: id });
    await daemon.event('BLOCK_JOB_COMPLETED', { device: id });
  }
}

async function topOf(daemon: Daemon): Promise<string> {
  const [disk] = (await daemon.execute('query-block')) as Array<{ inserted: { 'node-name': string } }>;
  return disk?.inserted['node-name'] ?? '';
}

async function untilKilled(work: () => Promise<void>, isKilled: () => boolean): Promise<void> {
  try {
    while (!isKilled()) await work();
  } catch (error) {
    if (!isKilled()) throw error;
  }
}

test(`kill -9 while the graph changes under a guest, ${KILLS} times: the daemon comes back, and what was flushed is there`, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', String(DISK_BYTES));
  const state = ['--state', join(folder, 'state')];
  const asked = [
    ...['-blockdev', `driver=qcow2,node-name=disk,file.driver=file,file.filename=${folder}/disk.qcow2`],
    ...['-device', `virtio-blk,drive=disk,id=v0,x-endpoint=unix:${folder}/disk.sock`, '-monitor', 'none'],
  ];
  const records = new FlushedRecords();
  let steps = 0;
  const tops = new Set<string>();
  for (let kill = 0; kill <= KILLS; kill++) {
    // As a service's line, or with the folder alone.
    const daemon =
      kill % 2 === 0
        ? await Daemon.livedisk(t, folder, ...state, ...asked)
        : await Daemon.start(t, folder, [process.execPath, PROGRAM, 'run', ...state]);
    tops.add(await topOf(daemon));
    const client = await SmallNbd.connect(join(folder, 'disk.sock'), 'v0');
    await records.check(client, `after kill ${kill}`);
    if (kill === KILLS) {
      client.close();
      await daemon.quit();
      break;
    }
    let isKilled = false;
    const operator = new Operator(folder, steps);
    const timer = setTimeout(
      () => {
        isKilled = true;
        daemon.process.kill('SIGKILL');
      },
      100 + Math.floor(Math.random() * 1500),
    );
    const writing = untilKilled(
      () => records.write(client),
      () => isKilled,
    );
    const operating = untilKilled(
      () => operator.step(daemon),
      () => isKilled,
    );
    await writing;
    clearTimeout(timer);
    await daemon.kill();
    client.close();
    // A command that was not answered is waited for by nobody.
    operating.catch(() => undefined);
    steps = operator.count;
  }
  assert.ok(tops.size > 1 || KILLS < 5, 'the graph did change');
});
