import assert from 'node:assert/strict';
import { openSync, readSync, closeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { decodeRecord, encodeRecord, RECORD_BYTES, RecordLog } from '../../src/cli/demo/records.js';
import { Daemon, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';

const KILLS = Number(process.env['KILLS'] ?? 100);
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
  const log = new RecordLog(BLOCKS);
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
    let flushed = log.last;
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
        const number = log.next(index);
        encodeRecord(block, number, index);
        await client.write(blockOffset(index), Buffer.from(block));
        if (++sinceFlush < 20) continue;
        await client.flush();
        flushed = number;
        sinceFlush = 0;
      }
    } catch (error) {
      assert.ok(killed, `the client failed before the kill: ${String(error)}`);
    }
    clearTimeout(timer);
    client.close();
    await daemon.kill();
    const check = run(folder, 'qemu-img', 'check', '--output=json', 'disk.qcow2');
    assert.equal((JSON.parse(check) as { corruptions?: number }).corruptions ?? 0, 0, check);
    readRecords(folder, 'disk.qcow2').forEach((number, index) => {
      assert.ok(number >= log.at(index, flushed), `block ${index} lost a flushed record after kill ${kill}`);
    });
  }
});
