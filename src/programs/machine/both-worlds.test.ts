import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { EngineBed } from '../../../test/engine/engine-bed.js';
import type { JsonValue } from '../../schema/types.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { BothWorlds } from './both-worlds.js';
import { FrontEnds } from './front-ends.js';
import type { GuestProcess } from './guest-process.js';
import { MachineMemory } from './memory.js';

/** A machine whose other program does all that it is asked for, and what it was asked for. */
async function machine(t: TestContext): Promise<{ bed: EngineBed; worlds: BothWorlds; asked: string[] }> {
  const bed = new EngineBed(t);
  const asked: string[] = [];
  const qmp = {
    execute(name: string): Promise<JsonValue> {
      asked.push(name);
      return Promise.resolve(name === 'query-commands' ? [] : {});
    },
    onEvent: () => undefined,
  } as unknown as QmpClient;
  const worlds = new BothWorlds(bed.engine, {
    qmp,
    frontEnds: new FrontEnds(true),
    memory: new MachineMemory(bed.engine.host.net, () => undefined),
    process: () => ({}) as GuestProcess,
  });
  await worlds.begin();
  asked.length = 0;
  return { bed, worlds, asked };
}

test('cont while a machine leaves does not start the processors of its program', async (t) => {
  const { bed, asked } = await machine(t);
  const { runState } = bed.engine;
  runState.finishMigrate();
  assert.equal(await bed.refusal('cont'), 'Migration is not finalized yet');
  assert.deepEqual(asked, []);
  runState.returnFromMigrate();
  await bed.execute('cont');
  assert.deepEqual(asked, ['cont']);
});

test('cont is refused, too, when its program has written all of its memory, and the move has not sent it yet', async (t) => {
  const { bed, worlds, asked } = await machine(t);
  const leaving = worlds.memory.leave(() => Promise.resolve());
  while (!asked.includes('migrate')) await new Promise((resolve) => setTimeout(resolve, 5));
  worlds.memory.heard('completed');
  assert.equal(await bed.refusal('cont'), 'Migration is not finalized yet');
  await leaving;
  assert.deepEqual(asked, ['migrate']);
  await bed.execute('cont');
  assert.deepEqual(asked, ['migrate', 'cont']);
});
