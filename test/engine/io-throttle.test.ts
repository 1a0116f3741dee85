import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';

const PATH = '/machine/peripheral/virtio0/virtio-backend';
const NONE = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };

/** An engine in simulated time with a guest's disk virtio0. */
async function withEngine(body: (engine: Engine) => Promise<void>): Promise<void> {
  const simulation = createSimulatedHost({ seed: 1, refuseProbability: 0 });
  await simulation.run(async () => {
    const engine = new Engine({ host: simulation.host, drivers: allDrivers, kind: 'machine' });
    await engine.addNode({ driver: 'null-co', 'node-name': 'n', size: 1024 * 1024 });
    await engine.addDevice('n', { id: 'virtio0' });
    await body(engine);
    await engine.close();
  });
}

/** When each of these writes of the guest ends, in milliseconds. */
async function ends(engine: Engine, count: number): Promise<number[]> {
  const [device] = engine.devices.values();
  const { clock } = engine.host;
  const start = clock.nowMs();
  const write = async (): Promise<number> => {
    await device?.backend.write(0, Buffer.alloc(512));
    return Math.round(clock.nowMs() - start);
  };
  return Promise.all(Array.from({ length: count }, write));
}

async function shown(engine: Engine): Promise<{ [name: string]: unknown }> {
  const [disk] = await engine.execute('query-block');
  return disk?.inserted ?? {};
}

test('the limits of a guest’s disk hold, are shown, and end', () =>
  withEngine(async (engine) => {
    await engine.execute('block_set_io_throttle', { id: PATH, ...NONE, iops: 10, iops_max: 20 });
    const { iops, iops_max: burst, bps, group } = await shown(engine);
    assert.deepEqual([iops, burst, bps, group], [10, 20, 0, PATH]);
    const times = await ends(engine, 31);
    assert.equal(times.filter((time) => time === 0).length, 21);
    assert.equal(times.at(-1), 1000);
    await engine.execute('block_set_io_throttle', { id: PATH, ...NONE });
    assert.equal('group' in (await shown(engine)), false);
    assert.equal((await ends(engine, 100)).at(-1), 0);
  }));

test('a disk may take a group that is there, which is kept meanwhile', () =>
  withEngine(async (engine) => {
    await engine.execute('object-add', { 'qom-type': 'throttle-group', id: 'g' });
    await engine.execute('block_set_io_throttle', { id: PATH, ...NONE, iops: 5, group: 'g' });
    const limit = await engine.execute('qom-get', { path: '/objects/g', property: 'x-iops-total' });
    assert.equal(limit, 5);
    await assert.rejects(engine.execute('object-del', { id: 'g' }), /in use/);
    await engine.execute('qom-set', { path: '/objects/g', property: 'limits', value: { 'iops-total': 10 } });
    assert.equal((await ends(engine, 12)).at(-1), 1000);
    await engine.execute('block_set_io_throttle', { id: PATH, ...NONE });
    await engine.execute('object-del', { id: 'g' });
  }));

test('a stop waits for nobody’s pace', () =>
  withEngine(async (engine) => {
    await engine.execute('block_set_io_throttle', { id: PATH, ...NONE, iops: 1 });
    const writes = ends(engine, 50);
    const start = engine.host.clock.nowMs();
    await engine.execute('stop');
    assert.ok(engine.host.clock.nowMs() - start < 100);
    assert.ok((await writes).every((time) => time < 100));
  }));

test('disks that are not there, and limits that do not go together, are refused', () =>
  withEngine(async (engine) => {
    const refusal = (args: object): Promise<string> =>
      engine.execute('block_set_io_throttle', { ...NONE, ...args }).then(
        () => 'taken',
        (error: unknown) => (error as Error).message,
      );
    assert.equal(await refusal({ id: 'none' }), "Device 'none' not found");
    assert.equal(await refusal({}), "Need exactly one of 'device' and 'id'");
    assert.equal(await refusal({ id: 'virtio0' }), 'Device does not have a block device backend');
    const conflict = 'bps/iops/max total values and read/write values cannot be used at the same time';
    assert.equal(await refusal({ id: PATH, iops: 1, iops_rd: 1 }), conflict);
    assert.equal('group' in (await shown(engine)), false);
  }));
