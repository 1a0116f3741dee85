import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { decodeRecord, encodeRecord, RECORD_BYTES } from '../../src/programs/demo/records.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';

const KILLS = Number(process.env['KILLS'] ?? 12);
const BLOCKS = 512;
const DISK_BYTES = 16 * 1024 * 1024;
const FLUSH_EVERY = 8;

function blockOffset(index: number): number {
  return ((index * 37) % (DISK_BYTES / RECORD_BYTES)) * RECORD_BYTES;
}

/** What a guest has written, and what of it must be there: the newest that a flush covers, or a newer one. */
class Records {
  readonly #durable = new Array<number>(BLOCKS).fill(0);
  readonly #unflushed = new Map<number, number[]>();
  #last = 0;

  async write(client: SmallNbd): Promise<void> {
    const block = Buffer.alloc(RECORD_BYTES);
    for (let count = 0; count < FLUSH_EVERY; count++) {
      const index = Math.floor(Math.random() * BLOCKS);
      const number = ++this.#last;
      this.#unflushed.set(index, [...(this.#unflushed.get(index) ?? []), number]);
      encodeRecord(block, number, index);
      await client.write(blockOffset(index), block);
    }
    await client.flush();
    for (const [index, numbers] of this.#unflushed) this.#durable[index] = numbers.at(-1) ?? 0;
    this.#unflushed.clear();
  }

  async check(client: SmallNbd, where: string): Promise<void> {
    for (let index = 0; index < BLOCKS; index++) {
      const found = decodeRecord(await client.read(blockOffset(index), RECORD_BYTES), index);
      const durable = this.#durable[index] ?? 0;
      const mayBe = [durable, ...(this.#unflushed.get(index) ?? [])];
      assert.ok(
        mayBe.includes(found),
        `${where}: block ${index} has ${found}, and not ${mayBe.join(' or ')}`,
      );
      this.#durable[index] = found;
    }
    this.#unflushed.clear();
  }
}

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
  const records = new Records();
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
