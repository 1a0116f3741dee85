import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSimulatedHost } from '../../host/simulated.js';
import type { JsonObject } from '../../schema/types.js';
import { EventLimits } from './event-limits.js';

test('of events in a flood the first is told at once, and the last of each second', async () => {
  const simulation = createSimulatedHost({ seed: 7 });
  const { clock } = simulation.host;
  const limits = new EventLimits(clock);
  const told: string[] = [];
  const emit = (event: string, data: JsonObject): void =>
    limits.pass(event, data, (one) => void told.push(`${event} ${JSON.stringify(one)}`));
  await simulation.run(async () => {
    for (const n of [1, 2, 3]) {
      emit('QUORUM_REPORT_BAD', { 'node-name': 'a', n });
      emit('QUORUM_REPORT_BAD', { 'node-name': 'b', n });
      emit('BLOCK_IO_ERROR', { n });
    }
    assert.deepEqual(told, [
      'QUORUM_REPORT_BAD {"node-name":"a","n":1}',
      'QUORUM_REPORT_BAD {"node-name":"b","n":1}',
      ...[1, 2, 3].map((n) => `BLOCK_IO_ERROR {"n":${n}}`),
    ]);
    told.length = 0;
    await clock.sleep(1001);
    assert.deepEqual(told, [
      'QUORUM_REPORT_BAD {"node-name":"a","n":3}',
      'QUORUM_REPORT_BAD {"node-name":"b","n":3}',
    ]);
    emit('QUORUM_REPORT_BAD', { 'node-name': 'a', n: 4 });
    assert.equal(told.length, 2);
    await clock.sleep(1001);
    assert.equal(told[2], 'QUORUM_REPORT_BAD {"node-name":"a","n":4}');
    await clock.sleep(2000);
    assert.equal(told.length, 3);
  });
});
