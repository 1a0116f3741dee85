import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { createRealHost } from '../src/host/real.js';
import type { JsonObject } from '../src/schema/types.js';
import { QmpClient } from '../src/wire/qmp/client.js';
import { disturbance, lookAround, type Quiet } from './machine.js';
import { isSkipped, median, missing, run } from './measure.js';
import { PROGRAM, Server } from './servers.js';

/** For how long a guest may rest while it moves with its disk. */
const STOP_GOAL_MS = 100;
const RATE = '50m';
const DISK_MIB = 1024;

interface Move {
  stopMs: number;
  forecastMs: number;
  seconds: number;
}

/** How long a guest rests that moves with its disk to another program, over loopback, while it writes to it. */
export async function benchMove(place: string, folder: string, roundCount: number): Promise<void> {
  if (isSkipped('move', missing('fio'))) return;
  const moves: Move[] = [];
  const looks: Quiet[] = [];
  for (let round = 0; round < roundCount; round++) {
    looks.push(await lookAround());
    moves.push(await oneMove(folder));
  }
  const stops = moves.map(({ stopMs }) => stopMs).sort((a, b) => a - b);
  const [least = NaN, most = NaN] = [stops[0], stops.at(-1)];
  const forecast = median(moves.map(({ forecastMs }) => forecastMs));
  const seconds = median(moves.map((move) => move.seconds)).toFixed(1);
  process.stdout.write(
    `\na move with a disk of ${DISK_MIB} MiB that is written at 50 MiB/s, ${place}, ${roundCount} rounds\n` +
      `  the guest rests ${least} / ${median(stops)} / ${most} ms (goal ${STOP_GOAL_MS}; the dry run said ${forecast} or more), ` +
      [
        `all of it takes ${seconds} s`,
        ...(median(stops) > STOP_GOAL_MS ? ['MISSED'] : []),
        disturbance(looks),
      ]
        .join('  ')
        .trimEnd() +
      '\n',
  );
}

async function oneMove(folder: string): Promise<Move> {
  const [source, destination] = [
    await machine(folder, 'here'),
    await machine(folder, 'there', '-incoming', 'tcp:127.0.0.1:0'),
  ];
  const writer = spawn(
    'fio',
    [
      ...['--name=w', '--ioengine=nbd', `--uri=nbd+unix:///virtio0?socket=${join(folder, 'here.sock')}`],
      ...['--rw=randwrite', '--bs=64k', '--iodepth=4', `--rate=${RATE}`, '--time_based', '--runtime=600'],
    ],
    { cwd: folder, stdio: 'ignore' },
  );
  try {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    const { port, address } = await prepare(destination.qmp);
    const request = { uri: `tcp:127.0.0.1:${port}`, storage: { server: address } };
    const plan = (await source.qmp.execute('x-move', { ...request, 'dry-run': true })) as JsonObject;
    const startedMs = performance.now();
    await source.qmp.execute('x-move', request);
    for (;;) {
      const answer = (await source.qmp.execute('x-query-move')) as JsonObject;
      const progress = answer['x-progress'] as JsonObject;
      if (progress['stage'] === 'failed') throw new Error(progress['error'] as string);
      if (progress['stage'] === 'completed')
        return {
          stopMs: Number(progress['stop-ms']),
          forecastMs: Number(plan['forecast-stop-ms']),
          seconds: (performance.now() - startedMs) / 1000,
        };
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  } finally {
    writer.kill('SIGKILL');
    for (const { qmp, server } of [source, destination]) {
      qmp.close();
      await server.stop();
    }
    for (const name of ['here', 'there'])
      for (const kind of ['qcow2', 'qmp', 'sock']) rmSync(join(folder, `${name}.${kind}`), { force: true });
  }
}

async function machine(
  folder: string,
  name: string,
  ...more: string[]
): Promise<{ server: Server; qmp: QmpClient }> {
  const image = join(folder, `${name}.qcow2`);
  run([process.execPath, PROGRAM, 'img', 'create', '-q', '-f', 'qcow2', image, `${DISK_MIB}M`]);
  const server = new Server(folder, [
    ...[process.execPath, PROGRAM, 'run', '-qmp', `unix:${name}.qmp,server=on,wait=off`],
    ...['-blockdev', `node-name=disk,driver=qcow2,file.driver=file,file.filename=${image}`],
    ...['-device', `virtio-blk,drive=disk,id=virtio0,x-endpoint=unix:${name}.sock`, ...more],
  ]);
  const path = join(folder, `${name}.qmp`);
  await server.untilThere(path);
  return { server, qmp: await QmpClient.connect(createRealHost(), { type: 'unix', path }) };
}

/** The disk there is exported for writing. Answers where the machine waits, and where its disk is. */
async function prepare(qmp: QmpClient): Promise<{ port: string; address: JsonObject }> {
  const info = (await qmp.execute('query-migrate')) as { 'socket-address': Array<{ port: string }> };
  const path = 'there.nbd';
  await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  const disk = { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'virtio0', writable: true };
  await qmp.execute('block-export-add', disk);
  return { port: info['socket-address'][0]?.port ?? '', address: { type: 'unix', path } };
}
