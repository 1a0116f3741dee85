import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';

/** Another file in an image's place is not taken for it, though it has the number that is free now. */

const MiB = 1024 * 1024;
const [SOURCE, TARGET, JOURNAL, SIDE] = ['/tmp/s', '/tmp/t', '/tmp/journal', '/tmp/side'];

async function make({ host }: Simulation, path: string): Promise<void> {
  const file = await host.files.open(path, { write: true, create: true });
  await file.truncate(4 * MiB);
  await file.close();
}

async function replace(simulation: Simulation, path: string): Promise<void> {
  const { files } = simulation.host;
  const before = await files.stat(path);
  await files.unlink(path);
  await make(simulation, path);
  assert.equal((await files.stat(path))?.identity, before?.identity);
}

async function open({ host }: Simulation): Promise<Engine> {
  const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
  for (const filename of [SOURCE, TARGET])
    await engine.addNode({
      ...{ driver: 'raw', 'node-name': filename.slice(-1) },
      file: { driver: 'file', filename },
    });
  return engine;
}

const execute = (engine: Engine, command: string, args: JsonObject): Promise<JsonValue> =>
  engine.hub.execute(command, args) as Promise<JsonValue>;

test('a job is not gone on with onto a target that was made anew', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    for (const path of [SOURCE, TARGET]) await make(simulation, path);
    const first = await open(simulation);
    await execute(first, 'blockdev-backup', {
      ...{ 'job-id': 'j', device: 's', target: 't', sync: 'full', speed: 1, 'x-persist': JOURNAL },
    });
    await execute(first, 'job-cancel', { id: 'j' });
    await first.jobs.find('j')?.concluded;
    await first.close();
    await replace(simulation, TARGET);
    const next = await open(simulation);
    for (let tries = 0; tries < 2; tries++)
      await assert.rejects(
        execute(next, 'x-job-resume', { journal: JOURNAL, 'if-changed': 'ignore' }),
        /Node 't' is not the image that the job is for/,
      );
    await next.close();
  });
});

test('the bitmap of a raw image is not that of another one in its place', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  const ensure = async (engine: Engine): Promise<JsonValue> => {
    const disks = [{ node: 's', file: SIDE }];
    const [told] = await engine.execute('x-bitmap-ensure', { name: 'b', disks });
    return [told?.status ?? '', told?.reason ?? ''];
  };
  await simulation.run(async () => {
    for (const path of [SOURCE, TARGET]) await make(simulation, path);
    const first = await open(simulation);
    assert.deepEqual(await ensure(first), ['lost', 'never-there']);
    await first.close();
    const again = await open(simulation);
    assert.deepEqual(await ensure(again), ['usable', '']);
    await again.close();
    await replace(simulation, SOURCE);
    const next = await open(simulation);
    assert.deepEqual(await ensure(next), ['lost', 'replaced']);
    await next.close();
  });
});
