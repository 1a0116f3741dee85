import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { openSync, readSync, closeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { partOf } from '../kit/amount.js';
import { decodeRecord, encodeRecord, RECORD_BYTES } from '../../src/programs/demo/records.js';
import { Daemon, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';

const KILLS = Number(process.env['KILLS'] ?? partOf(100));
const BLOCKS = 2048;
const DISK_BYTES = 64 * 1024 * 1024;

/** The records of an image's blocks, read by qemu-img (through `raw`). */
function readRecords(folder: string, image: string): number[] {
  run(folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, 'content.raw');
  const file = openSync(join(folder, 'content.raw'), 'r');
  const block = Buffer.alloc(RECORD_BYTES);
  const found: number[] = [];
  for (let index = 0; index < BLOCKS; index++) {
    readSync(file, block, 0, RECORD_BYTES, blockOffset(index));
    found.push(decodeRecord(block, index));
  }
  closeSync(file);
  return found;
}

/** Scattered: neighbouring blocks are in different clusters. */
function blockOffset(index: number): number {
  return ((index * 37) % (DISK_BYTES / RECORD_BYTES)) * RECORD_BYTES;
}

test(`kill -9 under NBD load with flushes, ${KILLS} times: no corruption, flushed records are there`, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'base.qcow2', '64M');
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'disk.qcow2');
  /** Newest record of each block that a completed flush covers, or that was found after a kill. */
  const durable = new Array<number>(BLOCKS).fill(0);
  let last = 0;
  const block = Buffer.alloc(RECORD_BYTES);
  for (let kill = 0; kill < KILLS; kill++) {
    const daemon = await Daemon.livedisk(
      t,
      folder,
      ...['--blockdev', 'driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2'],
      ...['--nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
      ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
    );
    const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
    /** Records since the last flush, by block: each may be there or not. */
    const unflushed = new Map<number, number[]>();
    let sinceFlush = 0;
    let killed = false;
    const timer = setTimeout(
      () => {
        killed = true;
        daemon.process.kill('SIGKILL');
      },
      20 + ((kill * 53) % 180),
    );
    try {
      while (!killed) {
        const index = Math.floor(Math.random() * BLOCKS);
        const number = ++last;
        unflushed.set(index, [...(unflushed.get(index) ?? []), number]);
        encodeRecord(block, number, index);
        await client.write(blockOffset(index), Buffer.from(block));
        if (++sinceFlush < 20) continue;
        await client.flush();
        for (const [written, numbers] of unflushed) durable[written] = numbers.at(-1) ?? 0;
        unflushed.clear();
        sinceFlush = 0;
      }
    } catch (error) {
      assert.ok(killed, `the client failed before the kill: ${String(error)}`);
    }
    clearTimeout(timer);
    client.close();
    await daemon.kill();
    // Status 3: leaked clusters and nothing worse.
    const check = spawnSync('qemu-img', ['check', 'disk.qcow2'], { cwd: folder, encoding: 'utf8' });
    assert.ok(check.status === 0 || check.status === 3, check.stdout + check.stderr);
    readRecords(folder, 'disk.qcow2').forEach((number, index) => {
      const allowed = [durable[index] ?? 0, ...(unflushed.get(index) ?? [])];
      assert.ok(
        allowed.includes(number),
        `block ${index} holds record ${number}, not ${allowed.join()}, after kill ${kill}`,
      );
      durable[index] = number;
    });
  }
});
