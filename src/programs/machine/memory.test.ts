import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../base/error.js';
import type { HostNet } from '../../host/host.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { MachineMemory } from './memory.js';

test('where the program ends instead of an answer, the other end hears of that, and not of a socket of ours', async () => {
  const memory = new MachineMemory({} as HostNet, () => undefined);
  const closed = new BlockError('closed', 'the QMP server closed the connection');
  memory.begin({ execute: () => Promise.reject(closed) } as unknown as QmpClient);
  await assert.rejects(memory.start(), {
    kind: 'closed',
    message: 'The program that runs the guest has ended',
  });
  memory.begin({ execute: () => Promise.reject(new BlockError('invalid', 'no')) } as unknown as QmpClient);
  await assert.rejects(memory.start(), { message: 'no' });
});
