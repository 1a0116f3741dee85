import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { QmpClient, type QmpEvent } from '../../src/wire/qmp/client.js';
import { queryQmpSchema } from '../../src/wire/qmp/introspect.js';
import { QmpSession } from '../../src/wire/qmp/session.js';
import { EVENTS } from '../../src/schema/events.js';
import { RETURNS } from '../../src/schema/returns.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';

const MiB = 1024 * 1024;

/** An engine with a client that checks everything it is told against the schema. */
class CheckedClient {
  readonly events: QmpEvent[] = [];
  readonly #client: QmpClient;

  constructor(client: QmpClient) {
    this.#client = client;
    client.onEvent((event) => {
      this.events.push(event);
      const type = EVENTS[event.event];
      assert(type, `${event.event} is an event of the schema`);
      type.parse(event.data, '', 'qmp');
    });
  }

  async execute(command: string, args: JsonObject = {}): Promise<JsonValue> {
    const answer = await this.#client.execute(command, args);
    const type = RETURNS[command];
    if (type) type.parse(answer, '', 'qmp');
    else assert.deepEqual(answer, {}, command);
    return answer;
  }

  async queryAll(): Promise<void> {
    for (const name of [
      'query-block',
      'query-named-block-nodes',
      'query-block-jobs',
      'query-jobs',
      'query-blockstats',
    ])
      await this.execute(name);
    await this.execute('query-blockstats', { 'query-nodes': true });
    for (const name of ['query-block-exports', 'query-status', 'query-version', 'query-commands'])
      await this.execute(name);
    await this.execute('x-debug-query-block-graph');
  }
}

test('answers and events are what the schema says', async () => {
  const simulation = createSimulatedHost({ seed: 3 });
  const { host } = simulation;
  await simulation.run(async () => {
    const engine = new Engine({ host, drivers: allDrivers, kind: 'machine' });
    const address = { type: 'unix' as const, path: '/tmp/qmp' };
    const listener = await host.net.listen(address, (socket) => void new QmpSession(engine.hub, socket));
    const connection = await QmpClient.connect(host, address);
    const client = new CheckedClient(connection);
    const job = async (command: string, args: JsonObject): Promise<void> => {
      const ended = connection.waitForEvent(
        'JOB_STATUS_CHANGE',
        ({ id, status }) => id === 'j' && status === 'null',
      );
      await client.execute(command, { 'job-id': 'j', ...args });
      await client.queryAll();
      await ended;
    };
    const create = async (name: string, more: JsonObject = {}): Promise<void> => {
      const dismissed = connection.waitForEvent('JOB_STATUS_CHANGE', ({ status }) => status === 'concluded');
      const path = `/tmp/${name}`;
      await client.execute('blockdev-create', {
        'job-id': 'c1',
        options: { driver: 'file', filename: path, size: 0 },
      });
      await dismissed;
      await client.execute('job-dismiss', { id: 'c1' });
      await client.execute('blockdev-add', { driver: 'file', filename: path, 'node-name': `${name}-file` });
      const done = connection.waitForEvent('JOB_STATUS_CHANGE', ({ status }) => status === 'concluded');
      await client.execute('blockdev-create', {
        'job-id': 'c2',
        options: { driver: 'qcow2', file: `${name}-file`, size: 4 * MiB, ...more },
      });
      await done;
      await client.execute('job-dismiss', { id: 'c2' });
    };
    const open = (name: string, more: JsonObject = {}): Promise<JsonValue> =>
      client.execute('blockdev-add', { driver: 'qcow2', file: `${name}-file`, 'node-name': name, ...more });

    await create('base');
    await open('base');
    await create('top', { 'backing-file': '/tmp/base', 'backing-fmt': 'qcow2' });
    await open('top', { backing: 'base' });
    await engine.addDevice('top', { id: 'disk0' });
    await client.execute('block-dirty-bitmap-add', { node: 'top', name: 'b' });
    await client.execute('blockdev-add', { driver: 'null-co', size: 4 * MiB, 'node-name': 'null' });
    await client.queryAll();
    await client.execute('nbd-server-start', { addr: { type: 'unix', data: { path: '/tmp/nbd' } } });
    await client.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'top' });
    await client.queryAll();
    const mirrored = connection.waitForEvent('BLOCK_JOB_READY');
    await client.execute('blockdev-mirror', { 'job-id': 'j', device: 'top', target: 'null', sync: 'full' });
    await mirrored;
    await client.queryAll();
    const cancelled = connection.waitForEvent('JOB_STATUS_CHANGE', ({ status }) => status === 'null');
    await client.execute('block-job-cancel', { device: 'j', force: true });
    await cancelled;
    await job('block-stream', { device: 'top' });
    await client.execute('human-monitor-command', { 'command-line': 'info block' });
    await client.execute('stop');
    await client.execute('cont');
    const deleted = connection.waitForEvent('BLOCK_EXPORT_DELETED');
    await client.execute('block-export-del', { id: 'e' });
    await deleted;
    await client.execute('nbd-server-stop');
    await client.queryAll();

    const names = new Set(client.events.map(({ event }) => event));
    const wanted = ['BLOCK_JOB_READY', 'BLOCK_JOB_CANCELLED', 'BLOCK_JOB_COMPLETED', 'STOP', 'RESUME'];
    for (const name of wanted) assert(names.has(name), name);
    const commands = (await client.execute('query-commands')) as JsonObject[];
    const described = queryQmpSchema(engine.registry).filter((info) => info['meta-type'] === 'command');
    assert.deepEqual(
      described.map(({ name }) => name as string).sort(),
      commands.map(({ name }) => name as string).sort(),
    );
    connection.close();
    await listener.close();
    await engine.close();
  });
});
