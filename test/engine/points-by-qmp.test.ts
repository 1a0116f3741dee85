import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { BlockError } from '../../src/base/error.js';
import { revertToPoint } from '../../src/monitor/points/revert.js';
import type { PointServer } from '../../src/monitor/points/server.js';
import { qmpSwitch } from '../../src/monitor/points/switch-by-qmp.js';
import { targetOver } from '../../src/programs/points/targets.js';
import { EngineBed, MiB } from './engine-bed.js';

/** The chain A <-- B <-- C of a guest that has not begun, and its server, of which only plain QMP is used. */
async function serve(t: TestContext): Promise<{ bed: EngineBed; server: PointServer; asked: string[] }> {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  return { bed, ...(await atRest(bed)) };
}

async function atRest(bed: EngineBed): Promise<{ server: PointServer; asked: string[] }> {
  await bed.execute('stop');
  await bed.execute('system_reset');
  const asked: string[] = [];
  const server: PointServer = {
    ...{ host: bed.engine.host, opener: bed.engine.opener, folder: bed.folder },
    execute: (command, args = {}) => {
      asked.push(command);
      return bed.execute(command, args);
    },
    alone: (work) => work(server),
    onJobChange: (listener) => bed.engine.onEvent(() => listener()),
  };
  return { server, asked };
}

test('by plain QMP a disk goes back to an image, as told', async (t) => {
  const { bed, server, asked } = await serve(t);
  const { answer, commands } = await revertToPoint(server, { image: 'A', isDryRun: true }, qmpSwitch(server));
  assert.deepEqual(await bed.layers(), ['C', 'B', 'A']);
  assert.deepEqual(answer.plan.ends, [bed.path('B.qcow2'), bed.path('C.qcow2')]);
  asked.length = 0;
  await revertToPoint(server, { image: 'A', isDryRun: false }, qmpSwitch(server));
  assert.deepEqual(
    asked.filter((command) => !/query/.test(command)),
    commands.map(({ execute }) => execute),
  );
  assert.deepEqual((await bed.layers()).slice(1), ['A']);
  await bed.guest(`read -P 0x11 0 4M`);
});

test('a disk below a filter goes back without losing that, and nothing is left open', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.execute('object-add', { 'qom-type': 'throttle-group', id: 'g', limits: { 'iops-total': 1000 } });
  await bed.execute('blockdev-add', {
    ...{ driver: 'throttle', 'throttle-group': 'g', 'node-name': 'T' },
    file: 'A',
  });
  await bed.device('T');
  await bed.guest('write -P 1 0 1M');
  await bed.snapshot('A', 'B');
  await bed.guest('write -P 2 0 1M');
  const { server } = await atRest(bed);
  await revertToPoint(server, { image: 'A', isDryRun: false }, qmpSwitch(server));
  assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'T');
  assert.equal(bed.engine.graph.find('B'), undefined);
  assert.deepEqual((await bed.layers()).slice(1), ['A']);
  await bed.guest('read -P 1 0 1M');
});

test('who comes to write before the pivot ends it, and the disk is as it was', async (t) => {
  const { bed, server } = await serve(t);
  const eager: PointServer = {
    ...server,
    execute: async (command, args) => {
      const answer = await server.execute(command, args);
      if (command === 'blockdev-mirror') await bed.execute('cont');
      return answer;
    },
  };
  await assert.rejects(
    revertToPoint(eager, { image: 'A', isDryRun: false }, qmpSwitch(eager)),
    /cannot go back while it may be written to: .*\(the guest is running\)/,
  );
  assert.deepEqual(await bed.layers(), ['C', 'B', 'A']);
  assert.deepEqual(await bed.execute('query-jobs'), []);
  assert.ok(!existsSync(bed.path('C.after-A.qcow2')));
  await bed.guest(`read -P 0x22 ${2 * MiB} 1M`);
});

test('a QEMU that would crash of it is not asked for its nodes while a stream has ended', async (t) => {
  const { bed, server, asked } = await serve(t);
  let hasEnded = false;
  const qemu: PointServer = {
    ...server,
    execute: async (command, args) => {
      const answer = await server.execute(command, args);
      if (command === 'blockdev-mirror') {
        hasEnded = true;
        asked.length = 0;
      }
      if (!hasEnded) return answer;
      if (command === 'query-version') return { qemu: { major: 7, minor: 2, micro: 22 }, package: '' };
      if (command !== 'query-jobs') return answer;
      const ended = { id: 's', type: 'stream', status: 'concluded' };
      return [...(answer as object[]), ended] as never;
    },
  };
  const goBack = revertToPoint(qemu, { image: 'A', isDryRun: false }, qmpSwitch(qemu));
  await assert.rejects(goBack, /a stream job has ended and is not dismissed/);
  assert.deepEqual(
    asked.filter((command) => /query-named-block-nodes|query-block-graph/.test(command)),
    [],
  );
  assert.deepEqual(await bed.layers(), ['C', 'B', 'A']);
  assert.deepEqual(await bed.execute('query-jobs'), []);
});

for (const moment of ['before', 'after'])
  for (const write of [`write -P 0x77 ${3 * MiB} 64k`, `write -z ${3 * MiB} 64k`])
    test(`who comes, has done '${write}' and is gone ${moment} the mirror is completed ends it, and the disk is as it was`, async (t) => {
      const { bed, server } = await serve(t);
      const brief: PointServer = {
        ...server,
        execute: async (command, args) => {
          if (command === 'job-complete' && moment === 'before') await visit();
          const answer = await server.execute(command, args);
          if (command === 'job-complete' && moment === 'after') await visit();
          return answer;
        },
      };
      const visit = async (): Promise<void> => {
        await bed.execute('cont');
        await bed.guest(write);
        await bed.execute('stop');
        await bed.execute('system_reset');
      };
      await assert.rejects(revertToPoint(brief, { image: 'A', isDryRun: false }, qmpSwitch(brief)), {
        kind: 'busy',
        message: /was written to while it was to go back/,
      });
      assert.deepEqual(await bed.layers(), ['C', 'B', 'A']);
      assert.deepEqual(await bed.execute('query-jobs'), []);
      assert.ok(!existsSync(bed.path('C.after-A.qcow2')));
      await bed.guest(`read -P ${write.includes('-z') ? 0 : 0x77} ${3 * MiB} 64k`);
    });

test('a disk that was resized since is not taken back by plain QMP', async (t) => {
  const { bed, server } = await serve(t);
  await bed.execute('block_resize', { 'node-name': 'C', size: 16 * MiB });
  await assert.rejects(
    revertToPoint(server, { image: 'A', isDryRun: true }, qmpSwitch(server)),
    /another length than \[A\]/,
  );
});

test('a deletion by plain QMP hears that the server is gone while it waits for a job', async (t) => {
  const { bed } = await serve(t);
  const [top = ''] = await bed.layers();
  // Whichever way it goes there is something to copy: up, what was not written again, down, all.
  await bed.guest('write -P 1 0 8M');
  await bed.execute('x-point-create', { name: 'p1', disks: [{ node: top }] });
  await bed.guest('write -P 2 0 1M');
  const [started, gone] = [deferred(), deferred()];
  let isGone = false;
  const target = await targetOver(
    bed.engine.host,
    {
      execute: async (command, args = {}) => {
        if (isGone) throw new BlockError('closed', 'the connection was closed');
        if (command === 'query-commands') return [];
        const isCopying = /^block-(stream|commit)$/.test(command);
        const answer = await bed.execute(command, isCopying ? { ...args, speed: 1 } : args);
        if (isCopying) started.resolve();
        return answer;
      },
      onEvent: (listener) => bed.engine.onEvent(listener),
      ended: gone.promise,
      close: () => Promise.resolve(),
    },
    bed.folder,
  );
  const deletion = assert.rejects(target.delete({ name: 'p1' }), { kind: 'closed' });
  await started.promise;
  // Until nothing more is asked.
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
  isGone = true;
  gone.resolve();
  await deletion;
  for (const { id } of (await bed.execute('query-jobs')) as Array<{ id: string }>)
    await bed.execute('job-cancel', { id });
});
