import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { CertificateFolders } from '../kit/certificates.js';
import { seededBelow } from '../kit/crash-states.js';
import { freePort } from '../kit/free-port.js';
import { VhostFrontEnd } from '../kit/vhost-front-end.js';
import { allAnswers } from './all-answers.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { FlushedRecords, RECORDS_DISK_BYTES as DISK_BYTES } from './flushed-records.js';
import { SmallNbd } from './small-nbd.js';

/**
 * A daemon that has everything that comes back (TLS, exports of both kinds, bitmaps in side files, jobs with journals,
 * limits, secrets) is killed at random moments, of its commands and between them. Whatever a query answers afterwards is
 * what it answered before, or with the one command that was under way.
 */

/** STATE_KILLS=50: more of them, KILL_SEED=7: others. */
const KILLS = Number(process.env['STATE_KILLS'] ?? 4);
const SEED = Number(process.env['KILL_SEED'] ?? Date.now() % 2 ** 31);
const SLOW = 400_000;
const COPIED_BYTES = 64 * 1024 * 1024;

type Json = { [key: string]: unknown };
type Answers = { [query: string]: unknown };

interface Operation {
  command: string;
  args: Json;
}

/** What may be done next, by what there is: each of them makes way for another. */
function operations(answers: Answers, folder: string, count: number): Operation[] {
  const text = JSON.stringify(answers);
  const has = (name: string): boolean => text.includes(`"${name}"`);
  const either = (is: boolean, undo: Operation, todo: Operation): Operation => (is ? undo : todo);
  const op = (command: string, args: Json = {}): Operation => ({ command, args });
  const isRunning = (answers['query-status'] as { running: boolean }).running;
  const isServing = has('side-export');
  return [
    either(
      isServing,
      op('block-export-del', { id: 'side-export' }),
      op('block-export-add', {
        ...{ type: 'nbd', id: 'side-export', 'node-name': 'side', name: 'side' },
      }),
    ),
    either(
      has('more-vhost'),
      op('block-export-del', { id: 'more-vhost' }),
      op('block-export-add', {
        ...{ type: 'vhost-user-blk', id: 'more-vhost', 'node-name': 'free', writable: true, 'num-queues': 2 },
        ...{ addr: { type: 'unix', path: 'more.vhost' }, 'logical-block-size': 4096 },
      }),
    ),
    either(
      has('durable'),
      op('block-dirty-bitmap-remove', { node: 'vu', name: 'durable' }),
      op('block-dirty-bitmap-add', { node: 'vu', name: 'durable', persistent: true, 'x-durable': true }),
    ),
    op('block_set_io_throttle', {
      ...{ id: '/machine/peripheral/v0/virtio-backend', bps: 0, bps_rd: 0, bps_wr: 0 },
      ...{ iops: 100_000 + count, iops_rd: 0, iops_wr: 0, group: 'limits' },
    }),
    op('blockdev-snapshot-sync', {
      ...{
        device: 'top',
        'snapshot-node-name': `n${count}`,
        'snapshot-file': join(folder, `n${count}.qcow2`),
      },
      ...{ 'node-name': topOf(answers), device: undefined },
    }),
    op('block-set-write-threshold', { 'node-name': 'side', 'write-threshold': DISK_BYTES + count }),
    either(
      // Of an object the properties are asked, by its path.
      text.includes('"/objects/spare-group.'),
      op('object-del', { id: 'spare-group' }),
      op('object-add', { 'qom-type': 'throttle-group', id: 'spare-group', limits: { 'iops-total': count } }),
    ),
    either(
      has('ring'),
      op('chardev-remove', { id: 'ring' }),
      op('chardev-add', { id: 'ring', backend: { type: 'ringbuf', data: { size: 4096 } } }),
    ),
    either(isRunning, op('stop'), op('cont')),
    either(
      has('hot'),
      op('device_del', { id: 'hot' }),
      op('device_add', { driver: 'scsi-hd', drive: 'free2', id: 'hot', serial: `s${count}`, werror: 'stop' }),
    ),
    op(has('"tray_open":true') ? 'blockdev-close-tray' : 'blockdev-open-tray', { id: 'cd' }),
    op('block-job-set-speed', { device: 'mirror', speed: SLOW + count }),
    op('qom-set', { path: '/objects/kept', property: 'limits', value: { 'bps-total': count } }),
    op('blockdev-reopen', {
      options: [
        {
          ...{ driver: 'qcow2', 'node-name': 'free2', discard: count % 2 === 0 ? 'unmap' : 'ignore' },
          ...{ file: 'free2-file', 'detect-zeroes': count % 3 === 0 ? 'on' : 'off' },
        },
      ],
    }),
  ];
}

function topOf(answers: Answers): string {
  const disks = answers['query-block'] as Array<{ qdev: string; inserted: { 'node-name': string } }>;
  return disks.find(({ qdev }) => qdev.includes('/v0/'))?.inserted['node-name'] ?? '';
}

class Bed {
  readonly #t: TestContext;
  readonly folder: string;
  readonly #port: number;
  /** Guests of the two disks that are written. */
  readonly records: FlushedRecords[];
  readonly below: (bound: number) => number;
  /** When the bitmap in a side file began. */
  #since: unknown;

  private constructor(t: TestContext, folder: string, port: number) {
    this.#t = t;
    this.folder = folder;
    this.#port = port;
    this.below = seededBelow(SEED);
    this.records = ['v0', 'v1'].map(() => new FlushedRecords(() => this.below(1_000_003) / 1_000_003));
  }

  static async make(t: TestContext): Promise<Bed> {
    const folder = scratch(t);
    const certificates = new CertificateFolders(folder);
    certificates.authority('tls');
    certificates.certificate('tls', 'server', '/CN=localhost');
    certificates.certificate('tls', 'client', '/CN=a client');
    for (const name of ['disk', 'vu', 'free', 'free2', 'cd'])
      run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, String(DISK_BYTES));
    run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'side.raw', String(DISK_BYTES));
    for (const name of ['source', 'saved'])
      run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, String(COPIED_BYTES));
    for (const name of ['mirrored', 'backed-up'])
      run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, String(COPIED_BYTES));
    for (const name of ['source', 'saved'])
      run(
        folder,
        'qemu-io',
        '-f',
        'qcow2',
        '-c',
        `write -q -P ${name.length} 0 ${COPIED_BYTES}`,
        `${name}.qcow2`,
      );
    run(folder, 'sh', '-c', 'printf "of a file" > secret');
    return new Bed(t, folder, await freePort());
  }

  #words(): string[] {
    const qcow2 = ['disk', 'vu', 'free', 'source', 'saved', 'mirrored', 'backed-up'];
    return [
      ...['-object', 'secret,id=secret,file=secret', '-object', 'authz-simple,id=who,identity=CN=a client'],
      ...['-object', 'tls-creds-x509,id=tls,dir=tls,endpoint=server,verify-peer=on'],
      ...['-object', 'throttle-group,id=kept,limits.iops-total=1000'],
      ...qcow2.flatMap((name) => [
        '-blockdev',
        `driver=qcow2,node-name=${name},file.driver=file,file.filename=${name}.qcow2`,
      ]),
      ...['-blockdev', 'driver=file,node-name=free2-file,filename=free2.qcow2'],
      ...['-blockdev', 'driver=qcow2,node-name=free2,file=free2-file'],
      ...['-blockdev', 'driver=raw,node-name=side,file.driver=file,file.filename=side.raw'],
      ...['-device', 'virtio-blk,drive=disk,id=v0,x-endpoint=unix:v0.sock'],
      ...['-device', 'virtio-blk,drive=side,id=v1,x-endpoint=unix:v1.sock', '-device', 'virtio-scsi-pci'],
      ...['-drive', 'if=none,id=medium,media=cdrom,file=cd.qcow2', '-device', 'scsi-cd,id=cd,drive=medium'],
      ...[
        '-nbd-server',
        `addr.type=inet,addr.host=127.0.0.1,addr.port=${this.#port},tls-creds=tls,tls-authz=who`,
      ],
      ...['-export', 'nbd,id=vu-nbd,node-name=vu,name=vu,writable=off'],
      ...['-export', 'vhost-user-blk,id=vu-vhost,node-name=vu,writable=on,addr.type=unix,addr.path=vu.vhost'],
      ...['-monitor', 'none', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
    ];
  }

  /** With its whole line, as a service's is, or with the folder alone. */
  start(isWhole: boolean): Promise<Daemon> {
    const words = [process.execPath, PROGRAM, 'run', '--state', join(this.folder, 'state')];
    if (isWhole) words.push(...this.#words());
    return Daemon.start(this.#t, this.folder, words, 'qmp.sock', ['x-livedisk']);
  }

  /** What is told of the bitmap in a side file. */
  async #tracking(daemon: Daemon): Promise<Json> {
    const disks = [{ node: 'side', file: join(this.folder, 'changes.bits') }];
    const [told] = (await daemon.execute('x-bitmap-ensure', { name: 'changes', disks })) as Json[];
    return told ?? {};
  }

  async prepare(daemon: Daemon): Promise<void> {
    const { since } = await this.#tracking(daemon);
    this.#since = since;
    const job = (id: string, device: string, target: string): Json => ({
      ...{
        'job-id': id,
        device,
        target,
        sync: 'full',
        speed: SLOW,
        'x-persist': join(this.folder, `${id}.job`),
      },
    });
    await daemon.execute('blockdev-mirror', job('mirror', 'source', 'mirrored'));
    await daemon.execute('blockdev-backup', job('backup', 'saved', 'backed-up'));
  }

  clients(): Promise<SmallNbd[]> {
    return Promise.all(['v0', 'v1'].map((id) => SmallNbd.connect(join(this.folder, `${id}.sock`), id)));
  }

  async checkContents(daemon: Daemon, clients: readonly SmallNbd[], where: string): Promise<void> {
    const { running } = (await daemon.execute('query-status')) as { running: boolean };
    if (!running) await daemon.execute('cont');
    for (const [i, client] of clients.entries()) await this.records[i]?.check(client, where);
    const { status, since } = await this.#tracking(daemon);
    assert.equal(status, 'usable', where);
    if (since !== this.#since) {
      // A write that took longer than a side file says in advance counts as another's, which is told.
      assert.match(daemon.output, /bitmap 'changes' of node 'side' begins anew: written-by-another/, where);
      this.#since = since;
      this.records[1]?.forget();
    }
    const { extents } = (await daemon.execute('x-bitmap-extents', { node: 'side', name: 'changes' })) as {
      extents: Array<{ start: number; length: number }>;
    };
    for (const at of this.records[1]?.written() ?? [])
      assert.ok(
        extents.some(({ start, length }) => start <= at && at < start + length),
        `${where}: byte ${at} was written, and the side bitmap does not have it`,
      );
    if (!running) await daemon.execute('stop');
  }

  /** Another program's client, with a certificate and without; and a machine's front-end. */
  async checkServers(where: string): Promise<void> {
    const uri = (name: string, query: string): string => `nbds://127.0.0.1:${this.#port}/${name}${query}`;
    const whole = uri('vu', `?tls-certificates=${join(this.folder, 'tls')}`);
    assert.match(run(this.folder, 'nbdinfo', '--size', whole), new RegExp(`^${DISK_BYTES}\\b`), where);
    assert.throws(() => run(this.folder, 'nbdinfo', '--size', `nbd://127.0.0.1:${this.#port}/vu`), where);
    const frontEnd = await VhostFrontEnd.start({
      host: createRealHost(),
      path: join(this.folder, 'vu.vhost'),
    });
    try {
      const number = this.below(200) + 1;
      assert.equal(await frontEnd.write(8, Buffer.alloc(4096, number)), 0);
      assert.equal(await frontEnd.request(4, 0), 0);
      assert.deepEqual(await frontEnd.read(8, 4096), Buffer.alloc(4096, number), where);
    } finally {
      frontEnd.close();
    }
  }
}

/** Does something until it is killed, in the midst of a command or after one: what was known before, and what was under way. */
async function work(
  bed: Bed,
  daemon: Daemon,
  clients: readonly SmallNbd[],
  counter: { count: number; done: number },
): Promise<{ before: Answers; open: Operation | undefined }> {
  let isKilled = false;
  let before = await allAnswers(daemon);
  const writing = clients.map(async (client, i) => {
    try {
      while (!isKilled) await bed.records[i]?.write(client);
    } catch (error) {
      if (!isKilled) throw error;
    }
  });
  const next = (): Operation => {
    const all = operations(before, bed.folder, ++counter.count);
    const one = all[bed.below(all.length)];
    assert.ok(one);
    return one;
  };
  const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
  for (let left = bed.below(5) + 1; left > 0; left--) {
    const { command, args } = next();
    const { error } = await daemon.raw(command, args);
    assert.ok(!error, `${command}: ${error?.desc}`);
    // Till then queries may show it, and the state does not have it.
    if (command === 'device_del') await daemon.event('DEVICE_DELETED', { device: 'hot' });
    before = await allAnswers(daemon);
    counter.done++;
  }
  let open: Operation | undefined;
  if (bed.below(3) > 0) {
    open = next();
    void daemon.raw(open.command, open.args);
    // A command and its state take about so long.
    await pause(bed.below(40));
  } else await pause(bed.below(300));
  isKilled = true;
  await daemon.kill();
  for (const client of clients) client.close();
  await Promise.all(writing);
  return { before, open };
}

/** Only what the command under way has changed is otherwise. */
function assertSame(now: Answers, before: Answers, open: Operation | undefined, where: string): void {
  const mayChange =
    open === undefined ? /^$/ : /^(qom-set|object)/.test(open.command) ? /objects/ : /query|peripheral/;
  for (const query of Object.keys({ ...now, ...before })) {
    const [is, was] = [JSON.stringify(now[query]), JSON.stringify(before[query])];
    if (is !== was && !mayChange.test(query))
      assert.fail(`${where}, ${JSON.stringify(open)}: ${query} ${firstDifference(is ?? '', was ?? '')}`);
  }
}

function firstDifference(is: string, was: string): string {
  let at = 0;
  while (is[at] === was[at] && at < was.length) at++;
  return `is now\n${is.slice(Math.max(0, at - 150), at + 100)}\nand was\n${was.slice(Math.max(0, at - 150), at + 100)}`;
}

test(`a daemon that has everything is killed ${KILLS} times, and is what it was (KILL_SEED=${SEED})`, async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io', 'nbdinfo', 'openssl')) return;
  const bed = await Bed.make(t);
  let daemon = await bed.start(true);
  await bed.prepare(daemon);
  const counter = { count: 0, done: 0 };
  for (let kill = 1; kill <= KILLS; kill++) {
    const where = `kill ${kill}`;
    const { before, open } = await work(bed, daemon, await bed.clients(), counter);
    daemon = await bed.start(kill % 2 === 0);
    const told = daemon.output.replace(/.*begins anew: written-by-another.*/g, '');
    assert.doesNotMatch(told, /warning|rror/, where);
    const now = await allAnswers(daemon);
    assertSame(now, before, open, where);
    if (open) {
      await daemon.kill();
      daemon = await bed.start(true);
      const again = await allAnswers(daemon);
      assertSame(again, now, undefined, `${where}, again`);
    }
    await bed.checkContents(daemon, await bed.clients(), where);
    await bed.checkServers(where);
  }
  for (const id of ['mirror', 'backup']) {
    await daemon.execute('block-job-set-speed', { device: id, speed: 0 });
    if (id === 'mirror') {
      await daemon.event('BLOCK_JOB_READY', { device: id });
      await daemon.execute('block-job-cancel', { device: id });
    }
    await daemon.event('BLOCK_JOB_COMPLETED', { device: id });
  }
  assert.equal(await daemon.quit(), 0, daemon.output);
  run(bed.folder, 'qemu-img', 'compare', '-q', 'source.qcow2', 'mirrored.qcow2');
  run(bed.folder, 'qemu-img', 'compare', '-q', 'saved.qcow2', 'backed-up.qcow2');
  assert.ok(counter.done >= KILLS, 'something was done');
  t.diagnostic(`${KILLS} kills of a daemon with a state, ${counter.done} commands`);
});
