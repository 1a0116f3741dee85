import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { SeededRandom } from '../../src/host/simulated.js';
import { type Cut, Relay } from '../kit/relay.js';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** A machine that moves between two processes, over a link that breaks, and to and from a real QEMU, which is refused. */

const EVENTS = { capabilities: [{ capability: 'events', state: true }] };
/** Bytes of a move towards each end: cuts come anywhere among them. */
const MOST_BYTES = { server: 570, client: 140 } as const;
/** Types of messages: src/wire/migration/messages.ts. */
const GO = 11;
const OWNED = 12;
/** MOVES_CUTS=50: more of them, MOVES_SEED=7: others. */
const CUTS = Number(process.env['MOVES_CUTS'] ?? 5);
const SEED = Number(process.env['MOVES_SEED'] ?? 20);

type Program = 'livedisk' | 'qemu';

async function start(
  t: TestContext,
  folder: string,
  program: Program,
  name: string,
  ...extra: string[]
): Promise<Daemon> {
  const argv =
    program === 'livedisk' ? [process.execPath, PROGRAM, 'run'] : ['qemu-system-x86_64', '-accel', 'tcg'];
  const daemon = await Daemon.start(
    t,
    folder,
    [
      ...[...argv, ...BARE_MACHINE, '-qmp', `unix:${name}.qmp,server=on,wait=off`],
      ...['-blockdev', 'node-name=disk,driver=qcow2,file.driver=file,file.filename=disk.qcow2'],
      ...['-device', 'virtio-blk,drive=disk,id=virtio0', ...extra],
    ],
    `${name}.qmp`,
  );
  await daemon.execute('migrate-set-capabilities', EVENTS);
  return daemon;
}

function makeDisk(t: TestContext): string {
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '16M');
  return folder;
}

async function io(daemon: Daemon, command: string): Promise<string> {
  const before = daemon.output.length;
  const line = `qemu-io -d virtio0/virtio-backend "${command}"`;
  const reply = await daemon.execute('human-monitor-command', { 'command-line': line });
  return `${reply as string}${daemon.output.slice(before)}`;
}

async function guest(daemon: Daemon, command: string): Promise<void> {
  assert.doesNotMatch(await io(daemon, command), /failed|rror|read-only/, command);
}

async function statusOf(daemon: Daemon): Promise<string> {
  return ((await daemon.execute('query-status')) as { status: string }).status;
}

async function migrationOf(daemon: Daemon): Promise<string> {
  return ((await daemon.execute('query-migrate')) as { status: string }).status;
}

async function ownerOf(daemon: Daemon): Promise<string> {
  return (
    (await daemon.execute('query-migrate').then(() => daemon.execute('x-query-move'))) as { owner: string }
  ).owner;
}

/** Until a question has one of these answers. */
async function until<T>(ask: () => Promise<T>, isGood: (answer: T) => boolean): Promise<T> {
  const end = Date.now() + 90_000;
  for (;;) {
    const answer = await ask();
    if (isGood(answer)) return answer;
    assert.ok(Date.now() < end, `still ${JSON.stringify(answer)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test('a machine moves to another process, with TLS', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = makeDisk(t);
  mkdirSync(join(folder, 'psk'));
  writeFileSync(join(folder, 'psk/keys.psk'), `qemu:${'ab'.repeat(16)}\n`);
  const credentials = (end: string): string[] => ['-object', `tls-creds-psk,id=tls,dir=psk,endpoint=${end}`];
  const source = await start(t, folder, 'livedisk', 'source', ...credentials('client'));
  const destination = await start(
    t,
    folder,
    'livedisk',
    'destination',
    ...credentials('server'),
    '-incoming',
    'defer',
  );
  await guest(source, 'write -P 0x11 0 1M');
  await destination.execute('migrate-set-parameters', { 'tls-creds': 'tls' });
  await destination.execute('migrate-incoming', { uri: 'tcp:127.0.0.1:0' });
  const info = (await destination.execute('query-migrate')) as { 'socket-address': Array<{ port: string }> };
  const uri = `tcp:127.0.0.1:${info['socket-address'][0]?.port}`;
  // Without TLS nothing comes of it.
  await source.execute('migrate', { uri });
  await source.event('MIGRATION', { status: 'failed' });
  assert.equal(await statusOf(source), 'running');
  await source.execute('migrate-set-parameters', { 'tls-creds': 'tls' });
  await source.execute('migrate', { uri });
  await source.event('MIGRATION', { status: 'completed' });
  await destination.event('RESUME');
  await guest(destination, 'read -P 0x11 0 1M');
  assert.equal(await source.quit(), 0);
  assert.equal(await destination.quit(), 0);
  run(folder, 'qemu-img', 'check', 'disk.qcow2');
});

test("a move that QEMU's destination cannot take fails by name, while the guest runs", async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = makeDisk(t);
  const source = await start(t, folder, 'livedisk', 'source');
  await start(t, folder, 'qemu', 'destination', '-incoming', 'unix:move');
  await source.execute('migrate', { uri: 'unix:move' });
  await source.event('MIGRATION', { status: 'failed' });
  const info = (await source.execute('query-migrate')) as { 'error-desc': string };
  assert.match(
    info['error-desc'],
    /no livedisk is there|has closed the connection|Connection reset|Broken pipe/,
  );
  assert.ok(!source.events.some(({ event }) => event === 'STOP'));
  await guest(source, 'write -P 1 0 64k');
});

test("a move of QEMU's is refused by name, and the next one of livedisk's is taken", async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = makeDisk(t);
  const foreign = await start(t, folder, 'qemu', 'foreign', '-S');
  const destination = await start(t, folder, 'livedisk', 'destination', '-incoming', 'unix:move');
  await foreign.execute('migrate', { uri: 'unix:move' });
  await until(
    async () => destination.output,
    (output) => output.includes('This is a migration stream of QEMU; livedisk takes only its own'),
  );
  assert.equal(await statusOf(destination), 'inmigrate');
  await foreign.kill();
  const source = await start(t, folder, 'livedisk', 'source');
  await source.execute('migrate', { uri: 'unix:move' });
  await source.event('MIGRATION', { status: 'completed' });
  await destination.event('RESUME');
});

for (const victim of ['source', 'destination'] as const)
  test(`the ${victim} is killed before the last exchange: the disk is whole, and the other end says what it has`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const folder = makeDisk(t);
    const source = await start(t, folder, 'livedisk', 'source');
    const destination = await start(t, folder, 'livedisk', 'destination', '-incoming', 'unix:move');
    await guest(source, 'write -P 0x22 0 2M');
    const pause = { capabilities: [{ capability: 'pause-before-switchover', state: true }] };
    await source.execute('migrate-set-capabilities', pause);
    await source.execute('migrate', { uri: 'unix:move' });
    await source.event('MIGRATION', { status: 'pre-switchover' });
    if (victim === 'source') {
      await source.kill();
      await destination.event('MIGRATION', { status: 'failed' });
      assert.equal(await statusOf(destination), 'inmigrate');
      run(folder, 'qemu-io', '-c', 'read -P 0x22 0 2M', 'disk.qcow2');
    } else {
      await destination.kill();
      await source.execute('migrate-continue', { state: 'pre-switchover' });
      await source.event('RESUME');
      await guest(source, 'read -P 0x22 0 2M');
      await guest(source, 'write -P 0x33 0 64k');
    }
  });

test(`a link that breaks at ${CUTS} places: one end has the machine when it is back, and the disk is right`, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const random = new SeededRandom(SEED);
  const host = createRealHost();
  for (let i = 0; i < CUTS; i++) {
    const folder = makeDisk(t);
    const relay = new Relay(
      host,
      { type: 'unix', path: join(folder, 'link') },
      { type: 'unix', path: join(folder, 'move') },
      { delayMs: 5, random: random.fork() },
    );
    await relay.open();
    t.after(() => relay.close());
    const source = await start(t, folder, 'livedisk', 'source');
    const destination = await start(t, folder, 'livedisk', 'destination', '-incoming', 'unix:move');
    await guest(source, 'write -P 0x44 0 2M');
    const towards = i % 2 === 0 ? 'client' : 'server';
    // The source's word itself, and the answer to it; and then anywhere.
    if (i < 2) relay.cutBefore({ towards, type: towards === 'client' ? OWNED : GO });
    else relay.cutAt({ towards, afterBytes: random.below(MOST_BYTES[towards]), how: 'reset' });
    await source.execute('migrate', { uri: 'unix:link' });
    await whenCut(source, relay);
    assert.ok(relay.isDown, `link ${i} has broken: ${JSON.stringify(relay.passed)}`);
    if (i < 2) assert.equal(await ownerOf(source), 'unknown');
    relay.setDown(false);
    const [winner, loser] = await whoHasIt(source, destination);
    assert.equal(await winner.quit(), 0);
    await loser.kill();
    run(folder, 'qemu-img', 'check', 'disk.qcow2');
  }
});

test('a destination with --state that is killed before its source has heard answers it when it is back', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = makeDisk(t);
  const relay = await linkIn(t, folder);
  const source = await start(t, folder, 'livedisk', 'source');
  const kept = ['--state', 'there'];
  const first = await start(t, folder, 'livedisk', 'destination', ...kept, '-incoming', 'unix:move');
  await guest(source, 'write -P 0x44 0 2M');
  relay.cutBefore({ towards: 'client', type: OWNED });
  await source.execute('migrate', { uri: 'unix:link' });
  await whenCut(source, relay);
  assert.equal(await ownerOf(source), 'unknown');
  await guest(first, 'read -P 0x44 0 2M');
  // What is done by then is kept.
  await first.execute('cont');
  await first.kill();
  const second = await Daemon.start(
    t,
    folder,
    [process.execPath, PROGRAM, 'run', ...kept],
    'destination.qmp',
  );
  assert.equal(await ownerOf(second), 'here');
  relay.setDown(false);
  await whoHasIt(source, second);
  assert.equal(await migrationOf(source), 'completed');
  await until(
    async () => readFileSync(join(folder, 'there/state'), 'utf8').includes('"arrival"'),
    (isKept) => !isKept,
  );
  for (const end of [source, second]) assert.equal(await end.quit(), 0, end.output);
  run(folder, 'qemu-img', 'check', 'disk.qcow2');
});

/** The link has broken, and the source knows of it. */
async function whenCut(source: Daemon, relay: Relay): Promise<void> {
  await until(
    async () => [await migrationOf(source), await ownerOf(source), relay.isDown],
    ([status, owner, isDown]) =>
      isDown === true && (status === 'completed' || status === 'failed' || owner === 'unknown'),
  );
}

/** When the link is back, one end has the machine, with what its guest wrote, and runs; the other one writes nothing. */
async function whoHasIt(
  source: Daemon,
  destination: Daemon,
  how?: string,
): Promise<[winner: Daemon, loser: Daemon]> {
  const owners = await until(
    async () => [await ownerOf(source), await ownerOf(destination)],
    // A destination whose source has it, and could not say so, hears of it at the next try.
    ([at, there]) => (at === 'here') !== (there === 'here') && at !== 'unknown',
  );
  const [winner, loser] = owners[0] === 'here' ? [source, destination] : [destination, source];
  await until(
    () => statusOf(winner),
    (status) => status === 'running',
  );
  await guest(winner, 'read -P 0x44 0 2M');
  await guest(winner, 'write -P 0x55 0 64k');
  assert.match(await io(loser, 'write 0 64k'), /read-only|not permitted/, how);
  return [winner, loser];
}

/** TLS on both ends, with a key that both know. */
async function secured(t: TestContext, folder: string): Promise<[source: Daemon, destination: Daemon]> {
  mkdirSync(join(folder, 'psk'), { recursive: true });
  writeFileSync(join(folder, 'psk/keys.psk'), `qemu:${'ab'.repeat(16)}\n`);
  const keys = (end: string): string[] => ['-object', `tls-creds-psk,id=tls,dir=psk,endpoint=${end}`];
  const source = await start(t, folder, 'livedisk', 'source', ...keys('client'));
  const waits = ['-incoming', 'defer'];
  const destination = await start(t, folder, 'livedisk', 'destination', ...keys('server'), ...waits);
  for (const end of [source, destination])
    await end.execute('migrate-set-parameters', { 'tls-creds': 'tls' });
  await destination.execute('migrate-incoming', { uri: 'unix:move' });
  return [source, destination];
}

async function linkIn(t: TestContext, folder: string): Promise<Relay> {
  const [from, to] = ['link', 'move'].map((name) => ({ type: 'unix', path: join(folder, name) }) as const);
  assert.ok(from && to);
  const relay = await new Relay(createRealHost(), from, to).open();
  t.after(() => relay.close());
  return relay;
}

async function tlsMove(t: TestContext): Promise<Relay['passed']> {
  const folder = makeDisk(t);
  const relay = await linkIn(t, folder);
  const [source, destination] = await secured(t, folder);
  await source.execute('migrate', { uri: 'unix:link' });
  await source.event('MIGRATION', { status: 'completed' });
  await destination.event('RESUME');
  await source.kill();
  await destination.kill();
  return relay.passed;
}

test(`TLS that breaks at ${CUTS} places: one end has the machine when the link is back, and the disk is right`, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const random = new SeededRandom(SEED);
  const whole = await tlsMove(t);
  for (let i = 0; i < CUTS; i++) {
    const folder = makeDisk(t);
    const relay = await linkIn(t, folder);
    const [source, destination] = await secured(t, folder);
    await guest(source, 'write -P 0x44 0 2M');
    const towards = i % 2 === 0 ? 'client' : 'server';
    // In the handshake, among the messages, in the last exchange.
    const least = i % 3 === 2 ? Math.floor(0.8 * whole[towards]) : 0;
    const afterBytes = least + random.below(Math.floor(0.98 * whole[towards]) - least);
    const cut: Cut = { towards, afterBytes, how: random.chance(0.7) ? 'reset' : 'half-close' };
    relay.cutAt(cut);
    await source.execute('migrate', { uri: 'unix:link' });
    await whenCut(source, relay);
    relay.setDown(false);
    const [winner] = await whoHasIt(source, destination, JSON.stringify(cut));
    if (winner === source) {
      await source.execute('migrate', { uri: 'unix:link' });
      await until(
        () => migrationOf(source),
        (status) => status === 'completed',
      );
      await guest(destination, 'read -P 0x55 0 64k');
    }
    for (const end of [source, destination]) assert.equal(await end.quit(), 0, end.output);
    run(folder, 'qemu-img', 'check', 'disk.qcow2');
  }
});
