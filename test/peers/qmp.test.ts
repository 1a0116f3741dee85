import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../src/base/error.js';
import { createRealHost } from '../../src/host/real.js';
import { QmpClient } from '../../src/wire/qmp/client.js';
import { QmpError } from '../../src/wire/qmp/registry.js';
import type { JsonObject } from '../../src/schema/types.js';
import { spawnQemu } from './qemu-monitor.js';

test('the client speaks to a real QEMU', async (context) => {
  const path = await spawnQemu(context);
  if (path === undefined) return;
  const host = createRealHost();
  const client = await QmpClient.connect(host, { type: 'unix', path });
  const version = (await client.execute('query-version')) as JsonObject;
  assert.deepEqual(client.greeting['version'], version);
  await client.execute('blockdev-add', {
    driver: 'null-co',
    'node-name': 'a',
    size: 2 ** 40,
    'read-zeroes': true,
  });
  const [node] = (await client.execute('query-named-block-nodes')) as JsonObject[];
  assert.equal((node?.['image'] as JsonObject)['virtual-size'], 2 ** 40);
  await assert.rejects(
    client.execute('blockdev-add', { driver: 'null-co', 'node-name': 'a' }),
    (error) => error instanceof QmpError && /Duplicate nodes with node-name='a'/.test(error.message),
  );
  const commands = (await client.execute('query-commands')) as JsonObject[];
  assert(commands.length > 100);

  await client.execute('blockdev-add', { driver: 'null-co', 'node-name': 'b', size: 2 ** 20 });
  await client.execute('blockdev-add', { driver: 'null-co', 'node-name': 'c', size: 2 ** 20 });
  const events = client.events();
  const ready = client.waitForEvent('BLOCK_JOB_READY', ({ device }) => device === 'j');
  await client.execute('blockdev-mirror', { 'job-id': 'j', device: 'b', target: 'c', sync: 'full' });
  assert.equal((await ready).data['type'], 'mirror');
  const completed = client.waitForEvent('BLOCK_JOB_COMPLETED');
  await client.execute('block-job-complete', { device: 'j' });
  await completed;
  const statuses: unknown[] = [];
  for await (const { event, data } of events) {
    if (event === 'JOB_STATUS_CHANGE') statuses.push(data['status']);
    if (data['status'] === 'null') break;
  }
  assert.deepEqual(statuses.slice(0, 2), ['created', 'running']);

  const second = QmpClient.connect(host, { type: 'unix', path }, { timeoutMs: 300 });
  await assert.rejects(second, (error) => error instanceof BlockError && error.kind === 'timeout');
  const shutdown = client.waitForEvent('SHUTDOWN');
  await client.execute('quit');
  assert.equal((await shutdown).data['reason'], 'host-qmp-quit');
  await client.closed;
});
