import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { SeededRandom } from '../../src/host/simulated.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { QmpClient } from '../../src/wire/qmp/client.js';
import { type Cut, Relay } from '../kit/relay.js';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** `x-move` between two processes, each with its own disk, over links that delay, stall, close by halves and break. */

const DISK = '16M';
/** What the disk has when the move begins. */
const DATA_BYTES = 3 * 1024 * 1024;
/** MOVES_CUTS=50: more of them, MOVES_SEED=7: others. */
const CUTS = Number(process.env['MOVES_CUTS'] ?? 4);
const SEED = Number(process.env['MOVES_SEED'] ?? 20);
/** Bytes of a move's messages towards each end: cuts come anywhere among them. */
const MOST_BYTES = { server: 640, client: 140 } as const;

const host = createRealHost();

/** One end: the program, and a client of it that has livedisk's own commands. */
class End {
  readonly daemon: Daemon;
  readonly #client: QmpClient;

  private constructor(daemon: Daemon, client: QmpClient) {
    this.daemon = daemon;
    this.#client = client;
  }

  static async start(t: TestContext, folder: string, name: string, ...more: string[]): Promise<End> {
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, DISK);
    const daemon = await Daemon.start(
      t,
      folder,
      [
        ...[process.execPath, PROGRAM, 'run', ...BARE_MACHINE, '-qmp', `unix:${name}.qmp,server=on,wait=off`],
        ...['-blockdev', `node-name=disk,driver=qcow2,file.driver=file,file.filename=${name}.qcow2`],
        ...['-device', 'virtio-blk,drive=disk,id=virtio0', ...more],
      ],
      `${name}.qmp`,
    );
    const client = await QmpClient.connect(host, { type: 'unix', path: join(folder, `${name}.qmp`) });
    t.after(() => client.close());
    return new End(daemon, client);
  }

  execute(command: string, args: JsonObject = {}): Promise<JsonValue> {
    return this.#client.execute(command, args);
  }

  async io(command: string): Promise<string> {
    const before = this.daemon.output.length;
    const line = `qemu-io -d virtio0/virtio-backend "${command}"`;
    const reply = await this.execute('human-monitor-command', { 'command-line': line });
    return `${reply as string}${this.daemon.output.slice(before)}`;
  }

  async guest(command: string): Promise<void> {
    assert.doesNotMatch(await this.io(command), /failed|rror|read-only/, command);
  }

  async status(): Promise<string> {
    return ((await this.execute('query-status')) as { status: string }).status;
  }

  async move(): Promise<{ owner: string; stage: string | undefined; error: string | undefined }> {
    const answer = (await this.execute('x-query-move')) as JsonObject;
    const progress = answer['x-progress'] as { stage: string; error?: string } | undefined;
    return { owner: answer['owner'] as string, stage: progress?.stage, error: progress?.error };
  }
}

interface Links {
  nbd: Relay;
  move: Relay;
}

/** A machine with a disk, one that waits with an empty one, and two links between them. */
async function startBoth(
  t: TestContext,
  random: SeededRandom,
): Promise<{ source: End; destination: End } & Links> {
  const folder = scratch(t);
  const link = async (name: string): Promise<Relay> => {
    const path = (end: string): { type: 'unix'; path: string } => ({ type: 'unix', path: join(folder, end) });
    const options = { delayMs: 3, random: random.fork() };
    const relay = await new Relay(host, path(`${name}.link`), path(name), options).open();
    t.after(() => relay.close());
    return relay;
  };
  const source = await End.start(t, folder, 'source');
  const destination = await End.start(t, folder, 'destination', '-incoming', 'unix:move');
  await destination.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd' } } });
  const disk = { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'virtio0', writable: true };
  await destination.execute('block-export-add', disk);
  await source.guest(`write -P 0x44 0 ${DATA_BYTES}`);
  return { source, destination, nbd: await link('nbd'), move: await link('move') };
}

async function ask(source: End, more: JsonObject = {}): Promise<void> {
  const storage = { server: { type: 'unix', path: 'nbd.link' }, 'reconnect-delay': 1, ...more };
  await source.execute('x-move', { uri: 'unix:move.link', storage });
}

async function until<T>(look: () => Promise<T>, isGood: (answer: T) => boolean): Promise<T> {
  const end = Date.now() + 90_000;
  for (;;) {
    const answer = await look();
    if (isGood(answer)) return answer;
    assert.ok(Date.now() < end, `still ${JSON.stringify(answer)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test('a machine goes to another process with its disk, over links that delay, while its guest writes', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const { source, destination } = await startBoth(t, new SeededRandom(SEED));
  await source.execute('block-dirty-bitmap-add', { node: 'disk', name: 'since' });
  await ask(source);
  // Anything may have been copied by then.
  for (let i = 0; i < 4; i++)
    if ((await source.status()) === 'running') await source.io(`write -P 0x5${i} ${4 + i}M 64k`);
  await until(
    () => source.move(),
    ({ stage }) => stage === 'completed',
  );
  await until(
    () => destination.status(),
    (status) => status === 'running',
  );
  await destination.guest(`read -P 0x44 0 ${DATA_BYTES}`);
  await destination.guest('write -P 0x66 0 64k');
  assert.match(await source.io('write 0 64k'), /read-only|not permitted/);
  assert.equal(await source.daemon.quit(), 0);
  assert.equal(await destination.daemon.quit(), 0);
  const folder = destination.daemon.path('.');
  run(folder, 'qemu-img', 'check', 'destination.qcow2');
});

const HOWS: ReadonlyArray<Cut['how']> = ['reset', 'stall', 'half-close'];

test(`links that break at ${CUTS} places: one end has the machine, with its disk, and a second try succeeds`, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const random = new SeededRandom(SEED);
  for (let i = 0; i < CUTS; i++) {
    const ends = await startBoth(t, random);
    const { source, destination } = ends;
    const which = i % 2 === 0 ? 'nbd' : 'move';
    const how = HOWS[i % HOWS.length] ?? 'reset';
    const towards = random.below(2) === 0 ? 'client' : 'server';
    const most = which === 'nbd' ? { client: 2_000, server: DATA_BYTES } : MOST_BYTES;
    const cut: Cut = { towards, how, afterBytes: random.below(most[towards]) };
    const what = `${i}: ${which} ${JSON.stringify(cut)}`;
    ends[which].cutAt(cut);
    const isRefused = await ask(source).then(
      () => false,
      () => true,
    );
    await until(
      () => source.move(),
      ({ owner, stage }) => isRefused || stage === 'failed' || stage === 'completed' || owner === 'unknown',
    );
    ends[which].cutAt(undefined);
    ends[which].setDown(false);
    // A destination whose source has it, and could not say so, hears of it at the next try.
    const [at] = await until(
      async () => [(await source.move()).owner, (await source.move()).stage],
      ([owner, stage]) => owner !== 'unknown' && (isRefused || stage === 'failed' || stage === 'completed'),
    );
    if (at === 'here') {
      await until(
        () => source.status(),
        (status) => status === 'running',
      );
      await source.guest(`read -P 0x44 0 ${DATA_BYTES}`);
      assert.notEqual(await destination.status(), 'running', what);
      await source.guest('write -P 0x77 8M 64k');
      // What the broken link held is let go of there.
      await until(
        () =>
          ask(source).then(
            () => '',
            (error: unknown) => String(error),
          ),
        (error) => error === '',
      );
      const { error } = await until(
        () => source.move(),
        ({ stage }) => stage === 'completed' || stage === 'failed',
      );
      assert.equal(error, undefined, what);
      await until(
        () => destination.status(),
        (status) => status === 'running',
      );
      await destination.guest('read -P 0x77 8M 64k');
    }
    await until(
      () => destination.status(),
      (status) => status === 'running',
    );
    await destination.guest(`read -P 0x44 0 ${DATA_BYTES}`);
    await destination.guest('write -P 0x55 0 64k');
    assert.match(await source.io('write 0 64k'), /read-only|not permitted/, what);
    assert.equal(await destination.daemon.quit(), 0);
    await source.daemon.kill();
    run(destination.daemon.path('.'), 'qemu-img', 'check', 'destination.qcow2');
  }
});
