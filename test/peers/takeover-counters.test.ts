import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { DISK_BYTES, quit, update } from './takeover-sides.js';

const MiB = 1024 * 1024;
type Json = { [key: string]: unknown };

interface DiskStatistics {
  qdev?: string;
  stats: { timed_stats: Json[] };
  'driver-specific'?: Json;
  parent?: DiskStatistics;
}

interface Heat {
  counted: number;
  regions: Array<{ start: number; rate: number }>;
}

test('what was counted goes on to be counted: discards, latencies of intervals, where a disk is written to', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'disk.raw', String(DISK_BYTES));
  const daemon = await Daemon.start(
    t,
    folder,
    [
      ...[process.execPath, PROGRAM, 'run', '-monitor', 'none', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
      '-drive',
      'if=none,id=d0,file=disk.raw,format=raw,discard=unmap,stats-intervals.0=3600,stats-intervals.1=7200',
      ...['-device', 'virtio-blk,drive=d0,id=v0'],
    ],
    'qmp.sock',
    ['x-livedisk'],
  );
  const guest = (command: string): Promise<unknown> =>
    daemon.execute('human-monitor-command', { 'command-line': `qemu-io -d v0 "${command}"` });
  const heat = async (region?: number): Promise<Heat> =>
    (await daemon.execute('x-query-write-heat', { node: 'v0', ...(region && { region }) })) as Heat;
  const counted = async (): Promise<object> => {
    const [disk] = (await daemon.execute('query-blockstats')) as DiskStatistics[];
    assert.ok(disk);
    const latencies = disk.stats.timed_stats.map(
      // How many requests there were at a time on the mean, of a stretch that gets longer.
      ({ avg_rd_queue_depth: _, avg_wr_queue_depth: __, ...interval }) => interval,
    );
    return { latencies, discards: disk.parent?.['driver-specific'] };
  };
  await heat();
  await heat(MiB);
  for (const command of ['write 5M 2M', 'read 5M 64k', 'flush', 'discard 5M 1M', 'discard 20M 1M'])
    await guest(command);
  const before = { counted: await counted(), all: await heat(), coarse: await heat(MiB) };
  assert.match(JSON.stringify(before.counted), /"interval_length":3600/);
  assert.match(JSON.stringify(before.counted), /"discard-nb-ok":2,"discard-nb-failed":0/);
  let serving = daemon.process;
  for (let round = 0; round < 2; round++) serving = await update(t, folder, { daemon, serving });
  assert.deepEqual(await counted(), before.counted);
  for (const [was, is] of [
    [before.all, await heat()],
    [before.coarse, await heat(MiB)],
  ] as const) {
    assert.ok(is.counted >= was.counted, 'it is counted as long as before');
    assert.deepEqual(
      is.regions.map(({ start }) => start),
      was.regions.map(({ start }) => start),
    );
  }
  await guest('discard 30M 1M');
  assert.match(JSON.stringify(await counted()), /"discard-nb-ok":3/);
  await quit(daemon, serving);
});
